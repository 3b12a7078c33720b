"""One HTTP exchange as two values: a `Call` that came in, a `Reply` that goes out.

Every endpoint of the sandbox is a plain function from one to the other, so that a fault can
run the honest endpoint and then spoil its reply.  Nothing here may know an upstream.
"""

import base64
import binascii
import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote_plus

from starlette.types import Receive, Scope, Send

from broker.sandbox.clock import SandboxClock

MAX_BODY = 64 * 1024
"""No honest request to any of these upstreams comes near it."""

NO_STORE = ((b"cache-control", b"no-store"),)


class Reply(NamedTuple):
    """What is sent back; a NamedTuple because the benchmarks make one per request."""

    status: int
    content_type: bytes = b""
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()


class RefusedError(Exception):
    """An endpoint's early exit: carries the reply that says no."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


class ClientGoneError(Exception):
    """The client left before its request was complete; nobody is there to answer."""


class RepeatedFieldError(ValueError):
    """A form field came twice, which RFC 6749 section 3.2 forbids."""


class Call:
    """A request, fully read.  Headers are searched, not indexed: there are a handful of them."""

    __slots__ = ("body", "scope")

    def __init__(self, scope: Scope, body: bytes) -> None:
        self.scope = scope
        self.body = body

    @property
    def method(self) -> str:
        return str(self.scope["method"])

    def header(self, name: bytes) -> str | None:
        for key, value in self.scope["headers"]:
            if key == name:
                return str(value, "latin-1")
        return None

    def path_parameter(self, name: str) -> str:
        return str(self.scope["path_params"][name])

    def media_type(self) -> str:
        return (self.header(b"content-type") or "").partition(";")[0].strip().lower()

    def query(self) -> dict[str, str]:
        return _single(str(self.scope["query_string"], "latin-1"))

    def form(self) -> dict[str, str]:
        # Starlette's own form parser would need python-multipart for nothing but this.
        return _single(str(self.body, "utf-8", "replace"))

    def bearer(self) -> str | None:
        scheme, _, value = (self.header(b"authorization") or "").partition(" ")
        return value.strip() if scheme.lower() == "bearer" and value.strip() else None

    def base_url(self, fixed: str | None) -> str:
        if fixed is not None:
            return fixed.rstrip("/")
        return f"{self.scope['scheme']}://{self.header(b'host') or 'localhost'}"


Endpoint = Callable[[Call], Reply]
AwaitedEndpoint = Callable[[Call], Awaitable[Reply]]
"""One that has something to wait for."""


def _single(encoded: str) -> dict[str, str]:
    pairs = parse_qsl(encoded, keep_blank_values=True)
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise RepeatedFieldError
    return fields


def basic_credentials(call: Call) -> tuple[str, str] | None:
    """RFC 6749 section 2.3.1: both halves are form-encoded before they are joined and encoded.

    An unencoded `+` therefore arrives as a space, which is the trap the real ones set.
    """
    scheme, _, encoded = (call.header(b"authorization") or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return None
    name, colon, secret = decoded.partition(":")
    return (unquote_plus(name), unquote_plus(secret)) if colon else None


def text(status: int, body: str, *headers: tuple[bytes, bytes]) -> Reply:
    return Reply(status, b"text/plain; charset=utf-8", body.encode(), headers)


def html(status: int, title: str) -> Reply:
    page = f"<!DOCTYPE html>\n<html><head><title>{title}</title></head><body>{title}</body></html>"
    return Reply(status, b"text/html; charset=utf-8", page.encode())


def as_json(status: int, value: Any, *headers: tuple[bytes, bytes]) -> Reply:
    return Reply(status, b"application/json", json.dumps(value).encode(), headers)


async def read_body(receive: Receive) -> bytes:
    """The whole request body, up to the limit."""
    body = b""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise RefusedError(text(413, "Request entity too large"))
        more = message.get("more_body", False)
    return body


def start(reply: Reply, clock: SandboxClock, length: int | None) -> dict[str, Any]:
    """The ASGI message that opens `reply`; no length means a chunked body."""
    headers = [(b"date", clock.date_header()), *reply.headers]
    if reply.content_type:
        headers.append((b"content-type", reply.content_type))
    if length is not None and reply.status != 204:
        headers.append((b"content-length", b"%d" % length))
    return {"type": "http.response.start", "status": reply.status, "headers": headers}


async def send_reply(send: Send, reply: Reply, clock: SandboxClock) -> None:
    await send(start(reply, clock, len(reply.body)))
    await send({"type": "http.response.body", "body": reply.body})
