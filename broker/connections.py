"""Connections of the listeners, bounded before there is a request: how many, how long, how large.

uvicorn and httptools bound none of it: a stranger could send one header of gigabytes, or open
connections and say nothing until no descriptor is left for the probes. What is refused here has no
request id and no audit line, so it is counted. Also joins the head and the body of an answer into
one write, a fifth of a short answer's cost.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD = 65536
"""Bytes of request line and header fields: a JWT and a cookie of 16 KiB each, and as much again."""
MOST_FIELDS = 100
MOST_PIPELINED = 64
"""Requests that wait behind another of their connection: each is kept, and nobody's limit counts
them."""
REQUEST_SECONDS = 10.0
"""From the connection, or the first byte of a later request, to a request's last byte."""
Refusal = Callable[[bytes, bytes, list[tuple[bytes, bytes]]], bytes | None]
"""Method, URL and header fields of a request: its whole answer where there is no time for it."""
_SPARE_DESCRIPTORS = 64
_BODY = (b"content-length", b"transfer-encoding")

_FACES = {
    400: (b"400 Bad Request", b"malformed-request", b"Malformed request"),
    431: (b"431 Request Header Fields Too Large", b"request-too-large", b"Request too large"),
}


def most_connections(wanted: int, outbound: int) -> int:
    """How many a listener may hold, so that descriptors are left for the rest of the process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(16, min(wanted, soft - min(outbound, soft // 4) - _SPARE_DESCRIPTORS))


class _Joined:
    """A transport that writes what one turn of the loop brings at once, in the order it came."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._call_soon = loop.call_soon
        self._parts: list[bytes] = []
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    @property
    def holds(self) -> bool:
        """Is there something that this turn has brought?"""
        return bool(self._parts)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._call_soon(self._flush)
        self._parts.append(data)

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))

    def close(self) -> None:
        self._flush()
        self._transport.close()


class _Unwelcome(Exception):
    """Ends the parsing of a request that will not be served."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol for one connection, within bounds; see `bounded`.

    A request has a deadline from its first byte to its last, and so have line breaks that are
    sent instead of one; only a connection on which nothing is said may be idle.
    """

    most: int
    most_body: int
    refused: Callable[[str], None]
    refusal: Refusal

    _turned_away = False
    _in_head = True
    _between = True
    _began = _ended = False
    _oversized = False
    _skips = False
    _bytes = _head_bytes = _fields = 0
    _deadline: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        if len(self.connections) >= self.most:
            self._turned_away = True
            type(self).refused("full")
            transport.abort()
            return
        super().connection_made(_Joined(transport, self.loop))  # type: ignore[arg-type]
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._turned_away:
            return
        self._in_time()
        self._reads_again()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._turned_away or self.transport.is_closing():
            return
        self._began = self._ended = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._ended and self._between:
            self._in_time()  # a request came whole, and nothing behind it
            return
        if not self._began:
            self._bytes += len(data)
            if self._bytes > (MOST_HEAD if self._in_head else self.most_body):
                self._too_large()
                return
        if self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_SECONDS, self._late)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if len(self.pipeline) >= MOST_PIPELINED:
            self._oversized = True
            raise _Unwelcome
        self._between, self._in_head, self._began = False, True, True
        self._bytes = self._head_bytes = self._fields = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        self._head_bytes += len(name) + len(value)
        if self._fields > MOST_FIELDS or self._head_bytes > MOST_HEAD:
            self._oversized = True
            raise _Unwelcome
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._bytes = False, 0
        if self.parser.should_upgrade() and any(name in _BODY for name, _ in self.headers):
            raise _Unwelcome  # the parser would stop here, and the body be taken for empty
        if not self._is_refused():
            super().on_headers_complete()
            self.scope["is_gone"] = self.transport.is_closing  # type: ignore[typeddict-unknown-key]

    def _is_refused(self) -> bool:
        """Answers at once, before a task is made, what the app would not find the time for. The app
        answers where this answer would overtake another or must end the connection, and where the
        client sends without reading: it bounds how many requests come in a row."""
        before: Any = self.cycle  # None at first, which its type does not say
        is_free = before is None or before.response_complete
        waits = self.flow.write_paused or self.transport.holds  # type: ignore[attr-defined]
        if waits or not (is_free and self.parser.should_keep_alive()):
            return False
        if self.parser.get_http_version() != "1.1":
            return False
        answer = type(self).refusal(self.parser.get_method(), self.url, self.headers)
        if answer is None:
            return False
        self._skips = True
        self.transport.write(answer)
        return True

    def on_body(self, body: bytes) -> None:
        if not self._skips:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._between = self._in_head = self._ended = True
        self._bytes = 0
        if self._skips:
            self._skips = False
            self.on_response_complete()
        else:
            super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self.loop.call_later(REQUEST_SECONDS, self._stalled)

    def resume_writing(self) -> None:
        self._reads_again()
        super().resume_writing()

    def _stalled(self) -> None:
        """Who does not read what was asked for holds a place that others want. Not `close()`, which
        waits until all is read."""
        type(self).refused("stalled")
        self.transport.abort()

    def _reads_again(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _too_large(self) -> None:
        """A head gets an answer; behind it the app has answered, or will not be waited for."""
        if self._in_head:
            self._oversized = True
            self.send_400_response("")
            return
        type(self).refused("oversized")
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """What cannot be read as a request gets a problem too, and the connection ends."""
        status = 431 if self._oversized else 400
        line, slug, title = _FACES[status]
        type(self).refused("oversized" if self._oversized else "malformed")
        body = b'{"type":"urn:token-broker:problem:%b","title":"%b","status":%d}'
        body %= (slug, title, status)
        self.transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/problem+json\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (line, len(body), body)
        )
        self.transport.close()

    def _late(self) -> None:
        self._deadline = None
        type(self).refused("slow")
        self.transport.abort()

    def _in_time(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _never(_method: bytes, _url: bytes, _headers: list[tuple[bytes, bytes]]) -> None:
    return None


def bounded(
    most: int, most_body: int, refused: Callable[[str], None], refusal: Refusal = _never
) -> type[BoundedProtocol]:
    """The protocol class for one listener.

    most: connections. most_body: bytes behind a head, chunk framing and trailers included.
    refused: counts, by full, slow, stalled, oversized, malformed. refusal: see there.
    """
    members = {
        "most": most,
        "most_body": most_body,
        "refused": staticmethod(refused),
        "refusal": staticmethod(refusal),
    }
    return type("Bounded", (BoundedProtocol,), members)
