"""Checkout.com: the OAuth token endpoint, and one resource that its tokens open.

Everything else under the prefix answers as the real hosts do to a wrong account prefix: 406 with
an HTML page.  Client secrets must never appear in an answer.
"""

import hmac
import secrets

from broker.sandbox.clock import SandboxClock
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
        if call.media_type() != _FORM:
            raise _oauth_error("invalid_request")
        try:
            form = call.form()
        except RepeatedFieldError:
            raise _oauth_error("invalid_request") from None
        client_id = self._client(call, form)
        grant_type = form.get("grant_type")
        if grant_type != "client_credentials":
            raise _oauth_error("unsupported_grant_type" if grant_type else "invalid_request")
        scopes = self._scopes(form.get("scope", ""))
        answer = {
            "access_token": self._issue(call, client_id, scopes),
            "expires_in": self._settings.checkout_token_seconds,
            "token_type": "Bearer",
            "scope": " ".join(scopes),
        }
        return as_json(200, answer, *NO_STORE)

    def ping(self, call: Call) -> Reply:
        scopes = self.authorised_scopes(call)
        if not self._settings.checkout_ping_scopes.intersection(scopes):
            raise RefusedError(
                as_json(
                    403,
                    {
                        "request_id": f"req-{secrets.token_hex(8)}",
                        "error_type": "operation_not_allowed",
                        "error_codes": ["operation_not_allowed_for_scope"],
                    },
                )
            )
        return as_json(200, {"pong": True, "scope": " ".join(scopes)})

    def authorised_scopes(self, call: Call) -> list[str]:
        """Scopes of the live bearer token of `call`; the real API says no with an empty body."""
        claims = self._keys.verified_claims(call.bearer() or "")
        if claims is None or claims["exp"] <= self._clock.now():
            raise RefusedError(Reply(401))
        if _serial_of(claims["jti"]) < self._first_live_serial:
            raise RefusedError(Reply(401))
        return list(claims["scope"])

    def revoke_everything(self) -> None:
        self._first_live_serial = self._serial + 1

    def elsewhere(self, call: Call) -> Reply:
        return html(406, "Not Acceptable")

    def _client(self, call: Call, form: dict[str, str]) -> str:
        in_body = "client_id" in form or "client_secret" in form
        if call.header(b"authorization") is None:
            sent = (form.get("client_id", ""), form.get("client_secret", ""))
        elif in_body:
            raise _oauth_error("invalid_request")
        else:
            sent = basic_credentials(call) or ("", "")
        client_id, secret = sent
        known = self._settings.checkout_clients.get(client_id)
        if known is None or not hmac.compare_digest(known.encode(), secret.encode()):
            raise _oauth_error("invalid_client")
        return client_id

    def _scopes(self, requested: str) -> list[str]:
        allowed = self._settings.checkout_scopes
        # No scope asked for means all that the key has.
        scopes = list(dict.fromkeys(requested.split())) or list(allowed)
        if not set(scopes) <= set(allowed):
            raise _oauth_error("invalid_scope")
        return scopes

    def _issue(self, call: Call, client_id: str, scopes: list[str]) -> str:
        now = int(self._clock.now())
        base = call.base_url(self._settings.issuer_base_url)
        self._serial += 1
        claims = {
            "nbf": now,
            "exp": now + self._settings.checkout_token_seconds,
            "iss": f"{base}/checkout/access",
            "aud": f"{base}/checkout/api",
            "client_id": client_id,
            "cko_client_id": "cli_sandboxsandboxsandboxsandb",
            "cko_entity_id": "ent_sandboxsandboxsandboxsandb",
            # The serial in front makes revoking all of them one comparison, with no table.
            "jti": f"{self._serial:08X}{secrets.token_hex(12).upper()}",
            "iat": now,
            "scope": scopes,
        }
        return self._keys.encode("RS256", "at+jwt", claims)


def _serial_of(jti: str) -> int:
    return int(jti[:8], 16)


def _oauth_error(code: str) -> RefusedError:
    # 400 even for invalid_client: the only status its published reference names.
    return RefusedError(as_json(400, {"error": code}, *NO_STORE))
