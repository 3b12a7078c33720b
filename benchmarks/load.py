"""A load generator that costs little: kept connections, prepared bytes, a closed loop.

Each connection sends its next request when its last was answered. It understands just as much HTTP
as uvicorn writes (a status line, a Content-Length, no chunks), since every microsecond it spends
delays the server it measures. Latencies are those of a saturated server, with as many requests in
flight as there are connections: fit for comparing variants, not for promising anything to anybody.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_PATIENCE = 60.0
"""Seconds for one slice; the slowest takes five."""


@dataclass(slots=True)
class Answers:
    """What came back of one slice. Latencies in seconds; bodies in the order of the requests,
    empty where they were not asked for or not as expected."""

    latencies: list[float] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    errors: int = 0
    seconds: float = 0.0
    first_error: str = ""


class _Connection(asyncio.Protocol):
    def __init__(self, load: Load) -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._partial = b""
        self._sent = 0.0
        self.alive = False
        self.waiting = False
        self.index = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not derived from it
        self.alive = True

    def send(self, index: int, request: bytes) -> None:
        assert self._transport is not None
        self.index = index
        self.waiting = True
        self._sent = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._partial:
            data = self._partial + data
        end = data.find(b"\r\n\r\n")
        found = _LENGTH.search(data, 0, end) if end >= 0 else None
        if end < 0 or (found and len(data) < end + 4 + int(found[1])):
            self._partial = data
            return
        self._partial = b""
        self.waiting = False
        took = time.perf_counter() - self._sent
        self._load.answered(self, data[9:12], data, end + 4, took)

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        self._partial = b""
        if self.waiting:
            self.waiting = False
            self._load.broken(exc)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Load:
    """Kept connections to one server."""

    def __init__(self, port: int, connections: int) -> None:
        self.port = port
        self._want = connections
        self._connections: list[_Connection] = []
        self._todo: Iterator[tuple[int, bytes]] = iter(())
        self._outstanding = 0
        self._expect = b""
        self._keep = False
        self._answers = Answers()
        self._done: asyncio.Future[None] | None = None

    async def run(
        self, requests: Sequence[bytes], expect: int, *, keep_bodies: bool = False
    ) -> Answers:
        """Sends them all; an answer with another status than `expect` is an error."""
        loop = asyncio.get_running_loop()
        self._connections = [one for one in self._connections if one.alive]
        while len(self._connections) < self._want:
            _, one = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self.port)
            self._connections.append(one)
        self._todo = enumerate(requests)
        self._expect = b"%d" % expect
        self._keep = keep_bodies
        self._answers = answers = Answers(bodies=[b""] * len(requests))
        self._done = loop.create_future()
        self._outstanding = 1
        began = time.perf_counter()
        for one in self._connections:
            self._next(one)
        self._landed()
        await asyncio.wait_for(self._done, _PATIENCE)
        answers.seconds = time.perf_counter() - began
        return answers

    def answered(
        self, one: _Connection, status: bytes, data: bytes, body: int, seconds: float
    ) -> None:
        self._answers.latencies.append(seconds)
        if status != self._expect:
            self._error(f"{status.decode()} {data[body : body + 300]!r}")
        elif self._keep:
            self._answers.bodies[one.index] = data[body:]
        self._next(one)
        self._landed()

    def broken(self, exc: Exception | None) -> None:
        self._error(f"connection closed ({exc!r})")
        self._landed()

    def _next(self, one: _Connection) -> None:
        if one.alive and (following := next(self._todo, None)) is not None:
            self._outstanding += 1
            one.send(*following)

    def _landed(self) -> None:
        self._outstanding -= 1
        if self._outstanding == 0 and self._done is not None and not self._done.done():
            # What nobody was left to send was not answered either.
            for _ in self._todo:
                self._error("not sent: every connection was closed")
            self._done.set_result(None)

    def _error(self, text: str) -> None:
        self._answers.errors += 1
        self._answers.first_error = self._answers.first_error or text

    def close(self) -> None:
        for one in self._connections:
            one.close()


def request(
    port: int, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
) -> bytes:
    """One request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", f"host: 127.0.0.1:{port}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
