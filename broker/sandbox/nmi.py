"""NMI component sessions: the endpoint that mints them, and one that accepts them.

As strict as what is known of the real one, and opaque in its refusals as that is.  It must never
repeat a key in an answer.
"""

import hmac
import json
from collections.abc import Iterable
from typing import Any

from broker.sandbox.clock import SandboxClock, rfc3339
from broker.sandbox.exchange import NO_STORE, Call, RefusedError, Reply, as_json, text
from broker.sandbox.opaque import OpaqueTokens
from broker.sandbox.settings import SandboxSettings

VARIANTS = ("gateway", "merchant-central")


class Nmi:
    """One account of the Reporting API, as far as a broker touches it."""

    def __init__(
        self,
        settings: SandboxSettings,
        clock: SandboxClock,
        tokens: OpaqueTokens,
        lifetime: int,
    ) -> None:
        self._clock = clock
        self._tokens = tokens
        self._lifetime = lifetime
        self._environments = settings.nmi_environments
        self._keys = {
            "gateway": settings.nmi_gateway_keys,
            "merchant-central": settings.nmi_merchant_central_keys,
        }

    def create_session(self, call: Call) -> Reply:
        _check_headers(call)
        variant, constraints = _variant(call.body)
        if not _matches(_api_key(call, constraints), self._keys[variant]):
            raise RefusedError(text(401, "Unauthorized"))
        if variant == "gateway":
            self._check_gateway(constraints)
        merchant = constraints.get("merchant_id")
        expires_at = int(self._clock.now()) + self._lifetime
        token = self._tokens.mint(expires_at, variant, merchant or "")
        # Neither member can hold a character that JSON would escape.
        body = f'{{"session_token":"{token}","expires_at":"{rfc3339(expires_at)}"}}'
        return Reply(201, b"application/json", body.encode(), NO_STORE)

    def report(self, call: Call) -> Reply:
        """What a component fetches: proof that a minted token is worth something."""
        opened = self._tokens.open(call.bearer() or "")
        if opened is None:
            raise RefusedError(text(401, "Session token is missing, invalid or expired"))
        expires_at, (variant, merchant) = opened
        report: dict[str, Any] = {
            "variant": variant,
            "merchant_id": merchant or None,
            "transactions": [],
        }
        return as_json(200, {**report, "session_expires_at": rfc3339(expires_at)}, *NO_STORE)

    def _check_gateway(self, constraints: dict[str, Any]) -> None:
        if not constraints.get("merchant_id"):
            raise _invalid("gateway.merchant_id is required")
        if constraints.get("environment") not in self._environments:
            raise _invalid("gateway.environment is missing or unknown")


def _invalid(reason: str) -> RefusedError:
    return RefusedError(text(422, f"Request validation failed: {reason}"))


def _check_headers(call: Call) -> None:
    if call.media_type() != "application/json":
        raise RefusedError(text(415, "Content-Type must be application/json"))
    accepted = (call.header(b"accept") or "").lower()
    ranges = {part.partition(";")[0].strip() for part in accepted.split(",")}
    if not ranges & {"application/json", "application/*", "*/*"}:
        raise RefusedError(text(406, "Accept must allow application/json"))


def _variant(body: bytes) -> tuple[str, dict[str, Any]]:
    try:
        request = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise RefusedError(text(400, "Request body is not JSON")) from None
    if not isinstance(request, dict):
        raise _invalid("the body must be an object")
    named = [variant for variant in VARIANTS if variant in request]
    if len(named) == 2:
        raise _invalid("gateway and merchant-central must not both be set")
    if not named:
        raise _invalid("one of gateway and merchant-central must be set")
    constraints = request[named[0]]
    if not isinstance(constraints, dict):
        raise _invalid(f"{named[0]} must be an object")
    for member in ("api_key", "merchant_id", "environment"):
        if not isinstance(constraints.get(member, ""), str):
            raise _invalid(f"{named[0]}.{member} must be a string")
    return named[0], constraints


def _api_key(call: Call, constraints: dict[str, Any]) -> str:
    """The key, from wherever it was sent: the public sources disagree on where it goes."""
    places = (call.bearer(), call.header(b"x-api-key"), constraints.get("api_key"))
    sent = [key for key in places if key]
    if len(sent) > 1:
        raise _invalid("the API key must be sent once")
    return sent[0] if sent else ""


def _matches(unverified_key: str, keys: Iterable[str]) -> bool:
    # JSON can carry half a surrogate pair, which UTF-8 cannot.
    sent = unverified_key.encode(errors="replace")
    return any(hmac.compare_digest(sent, key.encode()) for key in keys)
