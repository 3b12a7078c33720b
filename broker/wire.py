"""HTTP in and out, without meaning: header look-ups, bodies, replies, problems.

Raw ASGI rather than Request and Response objects, which would cost a mint a third more. What comes
in is bounded and strict; what goes out never echoes a value of the request.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.types import Receive, Scope, Send

from broker.errors import (
    BrokerError,
    Fault,
    MalformedRequest,
    MethodNotAllowed,
    RequestTimeout,
    RequestTooLarge,
    Unauthenticated,
    UnsupportedMediaType,
)
from broker.faults import faults_of
from broker.strict import Unreadable, read_json

Header = tuple[bytes, bytes]
B = TypeVar("B", bound=BaseModel)

_JSON = (b"content-type", b"application/json")
_PROBLEM = (b"content-type", b"application/problem+json")
NO_STORE = (b"cache-control", b"no-store")
_SINGLE = frozenset(
    {b"authorization", b"content-type", b"content-length", b"idempotency-key", b"origin"}
)
BODY_SECONDS = 3.0
"""For a few kilobytes, from a caller who is known: who is slower holds a place that others want."""
_REQUEST_ID = re.compile(rb"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}")
_MIN_FRESH = re.compile(rb"(?:^|[,\s])min-fresh\s*=\s*\"?(\d{1,9})(?!\d)", re.IGNORECASE)


@dataclass(slots=True)
class Reply:
    """An answer ready to send."""

    status: int
    body: bytes = b""
    headers: list[Header] = field(default_factory=list)

    def raw(self, extra: Iterable[Header]) -> bytes:
        """All of it as HTTP/1.1 has it on the wire, with `extra` header fields."""
        phrase = HTTPStatus(self.status).phrase
        head = [f"HTTP/1.1 {self.status} {phrase}".encode()]
        head += [b"%b: %b" % header for header in (*self.headers, *extra)]
        head.append(b"content-length: %d\r\n\r\n" % len(self.body))
        return b"\r\n".join(head) + self.body

    async def send(self, send: Send) -> None:
        headers = list(self.headers)
        if self.status not in (204, 304):  # which have no body, so no length (RFC 9110 §8.6)
            headers.append((b"content-length", str(len(self.body)).encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def json_reply(status: int, tree: object, *headers: Header) -> Reply:
    return Reply(status, orjson.dumps(tree), [_JSON, *headers])


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """The request's header fields by lower-case name; several of a list-like field are joined.

    Raises MalformedRequest for two of a field that must be single: which one counts is a matter
    of taste, and proxies differ in it."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in found:
            if name in _SINGLE:
                raise MalformedRequest("A header field is given twice.")
            joint = b"; " if name == b"cookie" else b", "
            found[name] = found[name] + joint + value
        else:
            found[name] = value
    return found


def text(value: bytes | None) -> str:
    """A header value as text; bytes outside ASCII stay distinguishable and do no harm."""
    return value.decode("latin-1") if value else ""


def request_id_of(headers: dict[bytes, bytes]) -> str:
    """The caller's X-Request-Id where it is a UUID (with or without hyphens), else a new one."""
    given = headers.get(b"x-request-id", b"")
    if len(given) <= 36 and _REQUEST_ID.fullmatch(given):
        return given.decode()
    return new_uuid()


def new_uuid() -> str:
    """A random UUID (RFC 9562 §5.4), for a third of what `uuid.uuid4` costs."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[0], 16) & 3]
    return f"{digits[1:9]}-{digits[9:13]}-4{digits[13:16]}-{variant}{digits[16:19]}-{digits[19:31]}"


def uuid_of(request_id: bytes) -> bytes:
    """A request's id, which has the form that `request_id_of` asks for, as a UUID is written."""
    digits = request_id.replace(b"-", b"").lower()
    return b"-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def min_fresh_of(headers: dict[bytes, bytes]) -> float:
    """Seconds of `Cache-Control: min-fresh=N` (RFC 9111 §5.2.1.3), 0 without."""
    value = headers.get(b"cache-control")
    found = _MIN_FRESH.search(value) if value else None
    return float(found[1]) if found else 0.0


async def read_body(
    headers: dict[bytes, bytes], receive: Receive, limit: int, seconds: float = BODY_SECONDS
) -> bytes:
    """The request's body, if it comes within `seconds`. Raises RequestTooLarge as soon as that is
    known, RequestTimeout, and MalformedRequest when the caller goes away."""
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared[:12]) > limit:
        raise _too_large(limit)
    body = b""
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise MalformedRequest("The request broke off.")
                body += bytes(message.get("body", b""))
                if len(body) > limit:
                    raise _too_large(limit)
                if not message.get("more_body", False):
                    return body
    except TimeoutError:
        raise RequestTimeout("The body did not come in time.") from None


def is_json(headers: Mapping[bytes, bytes]) -> bool:
    """Does the request say that its body is JSON?"""
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return kind == b"application/json"


def parse_body(headers: dict[bytes, bytes], raw: bytes, shape: type[B]) -> B:
    """The body as `shape`; an empty one counts as `{}`.

    Only JSON is read, so that no form of a foreign page can ask for anything. Raises
    UnsupportedMediaType, MalformedRequest."""
    if (raw or b"content-type" in headers) and not is_json(headers):
        raise UnsupportedMediaType("The body must be application/json.")
    try:
        return shape.model_validate(read_json(raw) if raw else {})
    except Unreadable as exc:
        raise MalformedRequest(f"The body cannot be read: {exc.reason}.") from None
    except ValidationError as exc:
        raise MalformedRequest(
            "The body does not have the form that is asked for.", faults=faults_of(exc, "", {})
        ) from None


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"A request body has {limit} bytes at the most.")


def problem(error: BrokerError, request_id: str) -> Reply:
    """An error's public face (RFC 9457)."""
    body: dict[str, object] = {
        "type": f"urn:token-broker:problem:{error.slug}",
        "title": error.title,
        "status": error.status,
        "instance": f"urn:uuid:{uuid.UUID(request_id)}",
    }
    headers = [_PROBLEM, NO_STORE]
    if error.detail:
        body["detail"] = error.detail
    wait = error.retry_after
    if wait is None and error.status in (429, 503):
        wait = 1.0
    if wait is not None:
        seconds = max(1, math.ceil(wait))
        body["retry_after"] = seconds
        headers.append((b"retry-after", str(seconds).encode()))
        if policy := getattr(error, "policy", ""):
            name = policy.partition(";")[0]
            headers.append((b"ratelimit-policy", policy.encode()))
            headers.append((b"ratelimit", f"{name};r=0;t={seconds}".encode()))
    if error.faults:
        body["errors"] = [_fault(fault) for fault in error.faults[:50]]
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b'Bearer realm="token-broker"'))
    return Reply(error.status, orjson.dumps(body), headers)


def _fault(fault: Fault) -> dict[str, str]:
    return {"pointer": fault.pointer, "reason": fault.reason}
