"""Checkout.com: the OAuth token endpoint, and one resource that its tokens open.

Everything else under the prefix answers as the real hosts do to a wrong account prefix: 406 with
an HTML page.  Client secrets must never appear in an answer.
"""

import hmac
import secrets
from urllib.parse import unquote_plus

from broker.sandbox.clock import SandboxClock
from broker.sandbox.complaints import stamps, wrong_scope
from broker.sandbox.exchange import (
    NO_STORE,
    Call,
    RefusedError,
    RepeatedFieldError,
    Reply,
    as_json,
    basic_credentials,
    html,
)
from broker.sandbox.keys import SigningKeys
from broker.sandbox.settings import SandboxSettings

_FORM = "application/x-www-form-urlencoded"


class Checkout:
    """The authorisation server and the door of the API."""

    def __init__(self, settings: SandboxSettings, clock: SandboxClock) -> None:
        self._settings = settings
        self._clock = clock
        self._keys = SigningKeys(("RS256",))
        self._serial = 0
        self._first_live_serial = 1

    def token(self, call: Call) -> Reply:
        form = token_form(call)
        client_id = self._client(call, form)
        check_grant(form)
        scopes = self._scopes(form.get("scope", ""))
        return self.granted(call, client_id, scopes, self._settings.checkout_token_seconds)

    def granted(
        self, call: Call, client_id: str, scopes: list[str], seconds: int, **claims: object
    ) -> Reply:
        """A new bearer token; `claims` are told inside it only."""
        answer = {
            "access_token": self._issue(call, client_id, scopes, seconds, claims),
            "expires_in": seconds,
            "token_type": "Bearer",
            "scope": " ".join(scopes),
        }
        return as_json(200, answer, *NO_STORE)

    def ping(self, call: Call) -> Reply:
        scopes = self.authorised_scopes(call)
        if not self._settings.checkout_ping_scopes.intersection(scopes):
            raise wrong_scope()
        return as_json(200, {"pong": True, "scope": " ".join(scopes)})

    def authorised_scopes(self, call: Call) -> list[str]:
        """Scopes of the live bearer token of `call`; the real API says no with an empty body."""
        claims = self._keys.verified_claims(call.bearer() or "")
        if claims is None or claims["exp"] <= self._clock.now():
            raise RefusedError(Reply(401, headers=stamps()))
        if _serial_of(claims["jti"]) < self._first_live_serial:
            raise RefusedError(Reply(401, headers=stamps()))
        return list(claims["scope"])

    def revoke_everything(self) -> None:
        self._first_live_serial = self._serial + 1

    def elsewhere(self, call: Call) -> Reply:
        return html(406, "Not Acceptable")

    def known_client(self, client_id: str, secret: str) -> str:
        known = self._settings.checkout_clients.get(client_id)
        if known is None or not hmac.compare_digest(known.encode(), secret.encode()):
            raise oauth_error("invalid_client")
        return client_id

    def _client(self, call: Call, form: dict[str, str]) -> str:
        in_body = "client_id" in form or "client_secret" in form
        if call.header(b"authorization") is not None and not in_body:
            return self.known_client(*(basic_credentials(call) or ("", "")))
        sent = credentials_in(form)
        # The official Python SDK sends both, the Basic one not form-encoded, and is served, for
        # all that RFC 6749 section 2.3 says: the body counts, unless the header says otherwise.
        as_sdk = (unquote_plus(sent[0]), unquote_plus(sent[1]))
        if call.header(b"authorization") and basic_credentials(call) not in (sent, as_sdk):
            raise oauth_error("invalid_request")
        return self.known_client(*sent)

    def _scopes(self, requested: str) -> list[str]:
        allowed = self._settings.checkout_scopes
        # No scope asked for means all that the key has.
        scopes = list(dict.fromkeys(requested.split())) or list(allowed)
        if not set(scopes) <= set(allowed):
            raise oauth_error("invalid_scope")
        return scopes

    def _issue(
        self,
        call: Call,
        client_id: str,
        scopes: list[str],
        seconds: int,
        more: dict[str, object],
    ) -> str:
        now = int(self._clock.now())
        base = call.base_url(self._settings.issuer_base_url)
        self._serial += 1
        claims = {
            "nbf": now,
            "exp": now + seconds,
            "iss": f"{base}/checkout/access",
            "aud": f"{base}/checkout/api",
            "client_id": client_id,
            "cko_client_id": "cli_sandboxsandboxsandboxsandb",
            "cko_entity_id": "ent_sandboxsandboxsandboxsandb",
            # The serial in front makes revoking all of them one comparison, with no table.
            "jti": f"{self._serial:08X}{secrets.token_hex(12).upper()}",
            "iat": now,
            "scope": scopes,
            **more,
        }
        return self._keys.encode("RS256", "at+jwt", claims)


def _serial_of(jti: str) -> int:
    return int(jti[:8], 16)


def token_form(call: Call) -> dict[str, str]:
    """The form body of a token request, of which no field may come twice."""
    if call.media_type() != _FORM:
        raise oauth_error("invalid_request")
    try:
        return call.form()
    except RepeatedFieldError:
        raise oauth_error("invalid_request") from None


def credentials_in(form: dict[str, str]) -> tuple[str, str]:
    return form.get("client_id", ""), form.get("client_secret", "")


def check_grant(form: dict[str, str]) -> None:
    grant_type = form.get("grant_type")
    if grant_type != "client_credentials":
        raise oauth_error("unsupported_grant_type" if grant_type else "invalid_request")


def oauth_error(code: str) -> RefusedError:
    # 400 even for invalid_client: the only status its published reference names.
    return RefusedError(as_json(400, {"error": code}, *NO_STORE))
