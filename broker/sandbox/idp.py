"""The development identity provider: who the shop's users and services are, in tests and demo.

It signs a token for anybody who asks for one, with any lifetime.  That is its purpose, and the
reason why it must never be configured as an issuer of anything real.
"""

import hmac
import secrets
from typing import Any

from starlette.requests import cookie_parser

from broker.sandbox.clock import SandboxClock
from broker.sandbox.exchange import (
    NO_STORE,
    Call,
    RefusedError,
    Reply,
    as_json,
    basic_credentials,
    text,
)
from broker.sandbox.keys import ALGORITHMS, SigningKeys
from broker.sandbox.opaque import OpaqueTokens
from broker.sandbox.settings import SandboxSettings

_TOKEN_FIELDS = {"user", "client", "audience", "alg", "lifetime", "format"}


class IdentityProvider:
    """Discovery, keys, tokens, introspection and the cookie endpoint of an old shop."""

    def __init__(
        self, settings: SandboxSettings, clock: SandboxClock, service_tokens: OpaqueTokens
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._service_tokens = service_tokens
        self.keys = SigningKeys(ALGORITHMS)

    def discovery(self, call: Call) -> Reply:
        issuer = self._issuer(call)
        metadata = {
            "issuer": issuer,
            "jwks_uri": f"{issuer}/jwks",
            "authorization_endpoint": f"{issuer}/authorize",
            "token_endpoint": f"{issuer}/token",
            "token_endpoint_auth_methods_supported": ["none"],
            "code_challenge_methods_supported": ["S256"],
            "introspection_endpoint": f"{issuer}/introspect",
            "introspection_endpoint_auth_methods_supported": ["client_secret_basic"],
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": list(ALGORITHMS),
        }
        return as_json(200, metadata, self._max_age())

    def jwks(self, call: Call) -> Reply:
        return as_json(200, self.keys.jwks(), self._max_age())

    def token(self, call: Call) -> Reply:
        fields = _fields(call)
        user, service = fields.get("user"), fields.get("client")
        lifetime = _lifetime(fields, self._settings.idp_token_seconds)
        if (user is None) == (service is None):
            raise _bad("give one of user and client")
        if user is not None:
            token = self._user_token(call, user, fields, lifetime)
        else:
            token = self._service_token(service or "", lifetime)
        if fields.get("format") == "text" or (call.header(b"accept") or "").startswith(
            "text/plain"
        ):
            return text(200, token, *NO_STORE)
        return _bearer(token, lifetime)

    def signed_for(self, call: Call, user: str) -> Reply:
        """A token for somebody who has logged in."""
        lifetime = self._settings.idp_token_seconds
        return _bearer(self._user_token(call, user, {}, lifetime), lifetime)

    def introspect(self, call: Call) -> Reply:
        """RFC 7662: an unknown token is a fact about it, not an error."""
        name, secret = basic_credentials(call) or ("", "")
        known = self._settings.idp_introspection_clients.get(name)
        if known is None or not hmac.compare_digest(known.encode(), secret.encode()):
            challenge = (b"www-authenticate", b'Basic realm="introspection"')
            raise RefusedError(as_json(401, {"error": "invalid_client"}, challenge))
        token = call.form().get("token")
        if not token:
            raise _bad("token is required")
        found = self._introspect_service(call, token) or self._introspect_user(token)
        return as_json(200, {"active": True, **found} if found else {"active": False}, *NO_STORE)

    def whoami(self, call: Call) -> Reply:
        """Forward authentication as an old shop has it: a cookie in, a person out."""
        cookie = cookie_parser(call.header(b"cookie") or "").get("shop_session", "")
        user = cookie.removesuffix("-session")
        claims = self._settings.idp_users.get(user)
        if claims is None or cookie == user:
            raise RefusedError(Reply(401))
        return as_json(200, {"subject": user, "claims": dict(claims)}, *NO_STORE)

    def _issuer(self, call: Call) -> str:
        return call.base_url(self._settings.issuer_base_url) + "/idp"

    def _max_age(self) -> tuple[bytes, bytes]:
        return (b"cache-control", b"max-age=%d" % self._settings.idp_jwks_max_age)

    def _user_token(self, call: Call, user: str, fields: dict[str, str], lifetime: int) -> str:
        person = self._settings.idp_users.get(user)
        algorithm = fields.get("alg", "RS256")
        if person is None:
            raise _bad("no such user")
        if algorithm not in ALGORITHMS:
            raise _bad(f"alg must be one of {', '.join(ALGORITHMS)}")
        now = int(self._clock.now())
        claims = {
            **person,
            "iss": self._issuer(call),
            "sub": user,
            "aud": fields.get("audience", "token-broker"),
            "iat": now,
            "nbf": now,
            "exp": now + lifetime,
            "jti": secrets.token_hex(16),
        }
        return self.keys.encode(algorithm, "JWT", claims)

    def _service_token(self, service: str, lifetime: int) -> str:
        if service not in self._settings.idp_services:
            raise _bad("no such client")
        return self._service_tokens.mint(int(self._clock.now()) + lifetime, service)

    def _introspect_service(self, call: Call, token: str) -> dict[str, Any] | None:
        opened = self._service_tokens.open(token)
        if opened is None:
            return None
        expires_at, (service,) = opened
        return {
            "iss": self._issuer(call),
            "sub": service,
            "client_id": service,
            "scope": self._settings.idp_services[service],
            "token_type": "Bearer",
            "exp": expires_at,
        }

    def _introspect_user(self, token: str) -> dict[str, Any] | None:
        claims = self.keys.verified_claims(token)
        if claims is None or not claims["nbf"] <= self._clock.now() < claims["exp"]:
            return None
        return {**claims, "username": claims["sub"], "token_type": "Bearer"}


def _bearer(token: str, lifetime: int) -> Reply:
    answer = {"access_token": token, "token_type": "Bearer", "expires_in": lifetime}
    return as_json(200, answer, *NO_STORE)


def _fields(call: Call) -> dict[str, str]:
    fields = call.query() if call.method == "GET" else {**call.query(), **call.form()}
    unknown = sorted(set(fields) - _TOKEN_FIELDS)
    if unknown:
        raise _bad(f"only {', '.join(sorted(_TOKEN_FIELDS))} are understood")
    return fields


def _lifetime(fields: dict[str, str], default: int) -> int:
    """Seconds; negative ones make a token that is expired already, which tests need."""
    try:
        return int(fields.get("lifetime", default))
    except ValueError:
        raise _bad("lifetime must be a whole number of seconds") from None


def _bad(reason: str) -> RefusedError:
    return RefusedError(
        as_json(400, {"error": "invalid_request", "error_description": reason}, *NO_STORE)
    )
