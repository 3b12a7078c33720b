"""How a person logs in: the authorisation code flow with PKCE, without a password.

Only for pages of this machine.  A request whose client or address is wrong must never be
redirected (RFC 6749 section 4.1.2.1): it is told so on a page of our own.
"""

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode

from starlette.requests import cookie_parser

from broker.sandbox.clock import SandboxClock
from broker.sandbox.codes import Asked, Codes, is_challenge
from broker.sandbox.exchange import NO_STORE, Call, RefusedError, Reply, as_json
from broker.sandbox.html_page import see_other
from broker.sandbox.idp import IdentityProvider
from broker.sandbox.login_html import choice, notice
from broker.sandbox.opaque import OpaqueTokens
from broker.sandbox.settings import SandboxSettings

_COOKIE: Final = "idp_login"
_COOKIE_SECONDS: Final = 8 * 3600
"""A working day: longer than any chain of the demo."""

# As strict as it is short: what it lets through is written into a header and a policy.  Printable
# ASCII but for the backslash, which browsers read as a slash, and the fragment's sign.
_REDIRECT: Final = re.compile(
    r"(http://(?:127\.0\.0\.1|localhost)(?::[0-9]{1,5})?)(?:[/?][\x21\x22\x24-\x5b\x5d-\x7e]*)?"
)
_PAGE_PROMPTS: Final = {"login", "select_account"}


class Login:
    """The two addresses that a browser is sent to, and the one that a page's script asks."""

    def __init__(
        self,
        settings: SandboxSettings,
        clock: SandboxClock,
        idp: IdentityProvider,
        logins: OpaqueTokens,
    ) -> None:
        self._people = settings.idp_users
        self._clients = settings.idp_login_clients
        self._clock = clock
        self._idp = idp
        self._logins = logins
        self._codes = Codes(clock)

    def authorize(self, call: Call) -> Reply:
        query = call.query()
        redirect_uri = query.get("redirect_uri", "")
        origin = _origin(redirect_uri)
        if query.get("client_id") not in self._clients:
            raise _misled("No such client may send people here.")
        if origin is None:
            raise _misled("The address to come back to must be http and on this machine.")
        error = _fault(query)
        if error is not None:
            return _back(query, error=error)
        if call.method == "POST":
            return self._chosen(call, query)
        prompt = query.get("prompt")
        user = None if prompt in _PAGE_PROMPTS else self._logged_in(call)
        if user is not None:
            return self._granted(query, user)
        if prompt == "none":
            return _back(query, error="login_required")
        return choice(self._people, origin)

    def logout(self, call: Call) -> Reply:
        """Forgets who is logged in here; what was signed for them lives out its time."""
        redirect_uri = call.query().get("redirect_uri")
        if redirect_uri is None:
            reply = notice(200, "Signed out", "Nobody is signed in here now.")
        elif _origin(redirect_uri) is None:
            raise _misled("The address to come back to must be http and on this machine.")
        else:
            reply = see_other(redirect_uri)
        return _with_cookie(reply, "", 0)

    def token(self, call: Call) -> Reply:
        """Codes are redeemed; whatever names no grant is a test that asks for a token outright."""
        form = call.form() if call.method == "POST" else {}
        grant = form.get("grant_type")
        if grant is None:
            return self._idp.token(call)
        if grant != "authorization_code":
            raise _oauth_error("unsupported_grant_type")
        if form.get("client_id") not in self._clients:
            raise _oauth_error("invalid_client")
        names = ("code", "client_id", "redirect_uri", "code_verifier")
        if not all(form.get(name) for name in names):
            raise _oauth_error("invalid_request")
        user = self._codes.redeem(*(form[name] for name in names))
        if user is None:
            raise _oauth_error("invalid_grant")
        return self._idp.signed_for(call, user)

    def _chosen(self, call: Call, query: Mapping[str, str]) -> Reply:
        user = call.form().get("user", "")
        # Else any page could log somebody in as it pleases (login CSRF). Not told by Origin, which
        # is "null" here, as the page sends no referrer.
        if call.header(b"sec-fetch-site") not in (None, "same-origin"):
            raise _misled("Only this page logs people in.")
        if user not in self._people:
            raise _misled("There is no such person.")
        cookie = self._logins.mint(int(self._clock.now()) + _COOKIE_SECONDS, user)
        return _with_cookie(self._granted(query, user), cookie, _COOKIE_SECONDS)

    def _logged_in(self, call: Call) -> str | None:
        opened = self._logins.open(cookie_parser(call.header(b"cookie") or "").get(_COOKIE, ""))
        return opened[1][0] if opened else None

    def _granted(self, query: Mapping[str, str], user: str) -> Reply:
        asked = Asked(query["client_id"], query["redirect_uri"], query["code_challenge"])
        return _back(query, code=self._codes.issue(asked, user))


def _origin(redirect_uri: str) -> str | None:
    """The origin of an address that people may be sent to, None of any other."""
    found = _REDIRECT.fullmatch(redirect_uri)
    return found[1] if found else None


def _fault(query: Mapping[str, str]) -> str | None:
    """What is wrong with a request of a known client, in OAuth's word for it."""
    if query.get("response_type") != "code":
        return "unsupported_response_type"
    # S256 only: with `plain`, whoever reads the address has all that the code needs.
    pkce = query.get("code_challenge_method") == "S256" and is_challenge(
        query.get("code_challenge", "")
    )
    if not pkce or query.get("prompt", "none") not in {"none", *_PAGE_PROMPTS}:
        return "invalid_request"
    return None


def _back(query: Mapping[str, str], **answer: str) -> Reply:
    """To the page that asked, with the answer and its own state."""
    if "state" in query:
        answer["state"] = query["state"]
    joint = "&" if "?" in query["redirect_uri"] else "?"
    reply = see_other(f"{query['redirect_uri']}{joint}{urlencode(answer)}")
    return reply._replace(headers=(*reply.headers, (b"referrer-policy", b"no-referrer")))


def _with_cookie(reply: Reply, value: str, seconds: int) -> Reply:
    cookie = f"{_COOKIE}={value}; Path=/idp; Max-Age={seconds}; HttpOnly; SameSite=Lax"
    return reply._replace(headers=(*reply.headers, (b"set-cookie", cookie.encode())))


def _misled(sentence: str) -> RefusedError:
    return RefusedError(notice(400, "Not understood", sentence))


def _oauth_error(error: str) -> RefusedError:
    return RefusedError(as_json(400, {"error": error}, *NO_STORE))
