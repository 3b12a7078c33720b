"""How the API host of Checkout.com answers and says no: one set of headers, one body of refusal.

Error codes name fields, and must never repeat what was sent in them.
"""

import json
import secrets
from typing import Any

from broker.sandbox.exchange import NO_STORE, Call, RefusedError, Reply, as_json

INVALID = "request_invalid"


def stamps(request_id: str = "") -> tuple[tuple[bytes, bytes], ...]:
    """The headers of every answer."""
    told = request_id or _new_id()
    return (*NO_STORE, (b"cko-request-id", told.encode()), (b"cko-version", b"1.0.0"))


def complaint(status: int, error_type: str, *codes: str) -> RefusedError:
    """The body that its published reference prints; the header says the id once more."""
    request_id = _new_id()
    body = {"request_id": request_id, "error_type": error_type, "error_codes": list(codes)}
    return RefusedError(as_json(status, body, *stamps(request_id)))


def wrong_scope() -> RefusedError:
    return complaint(403, "operation_not_allowed", "operation_not_allowed_for_scope")


def json_object(call: Call, error_type: str = INVALID) -> dict[str, Any]:
    """The body of `call`.  What the real host says to no JSON at all is not published: a guess."""
    if call.media_type() != "application/json":
        raise RefusedError(Reply(415, headers=stamps()))
    try:
        value = json.loads(call.body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise complaint(422, error_type, "request_body_malformed")
    return value


def _new_id() -> str:
    return f"req-{secrets.token_hex(8)}"
