"""Connections that are kept, to replicas that may die: as cheap as benchmarks/load.py, and with an
owner that may give a request up.

Understands just as much HTTP as the broker writes: a status line, a Content-Length, no chunks.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import orjson

from benchmarks.overload.books import Answer, Asked

MOST_LINES = 4000
"""To one replica; it would refuse more than 4096. What finds none waits here, on its own clock."""
IDLE_SECONDS = 50.0
"""After which an unused line is closed here, before the replica closes it under a request."""
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)


def read(data: bytes) -> Answer | None:
    """One whole answer; None while there is more to come."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    found = _LENGTH.search(data, 0, end + 2)
    if found and len(data) < end + 4 + int(found[1]):
        return None
    status = int(data[9:12])
    if status in (200, 201):
        body = orjson.loads(data[end + 4 :])
        return Answer(status, token=body.get("session_token", ""), handle=body.get("handle", ""))
    told = status == 503 and b"\r\nretry-after: " in data[: end + 2].lower()
    return Answer(status, retry_after=told)


class Line(asyncio.Protocol):
    """One connection, with one request at a time."""

    __slots__ = ("_partial", "_transport", "asked", "owner", "replica", "used")

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.asked: Asked | None = None
        self.used = 0.0
        self._partial = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not derived from it

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, asked: Asked) -> None:
        assert self._transport is not None
        self.asked, asked.line = asked, self
        self._transport.write(asked.data)

    def data_received(self, data: bytes) -> None:
        if self._partial:
            data = self._partial + data
        answer = read(data)
        if answer is None:
            self._partial = data
            return
        self._partial = b""
        asked, self.asked = self.asked, None
        self.used = time.perf_counter()
        if b"\r\nconnection: close" in data:
            self.abort()  # before anything else is sent on it
        else:
            self.replica.free(self)
        if asked is not None:
            self.replica.answered(asked, answer)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._transport = None
        asked, self.asked = self.asked, None
        self.replica.lost()
        if asked is not None and not asked.done:
            self.replica.cut(self.replica, asked)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


@dataclass(eq=False)
class Replica:
    """One broker as the generator sees it.

    answered, cut: told of each answer, and of each request whose connection ended without one.
    """

    port: int
    answered: Callable[[Asked, Answer], None]
    cut: Callable[[Replica, Asked], None]
    in_service: bool = True
    dying: bool = False
    """Killed, so that a cut is nobody's fault; until it is in service again."""
    lines: int = 0
    most: int = 0
    _idle: list[Line] = field(default_factory=list)
    _waiting: deque[Asked] = field(default_factory=deque)
    _opening: set[asyncio.Task[None]] = field(default_factory=set)

    def send(self, asked: Asked) -> None:
        """On the line that was used last, so that few are in use; on a new one if all are."""
        while self._idle:
            line = self._idle.pop()
            if line.is_open:
                line.send(asked)
                return
        self._waiting.append(asked)
        self._one_more()

    def free(self, line: Line) -> None:
        if (asked := self._next()) is not None:
            line.send(asked)
        else:
            self._idle.append(line)

    def lost(self) -> None:
        """A line has ended; if it was idle, it is passed over when its turn comes."""
        self.lines -= 1
        if self._waiting:
            self._one_more()

    def tidy(self) -> None:
        """Closes what was not used for long."""
        old = time.perf_counter() - IDLE_SECONDS
        for line in self._idle:
            if line.used < old:
                line.abort()
        self._idle = [line for line in self._idle if line.is_open]

    def taken(self) -> list[Asked]:
        """Those who still wait for a line, which the other replica may have."""
        waiting = [asked for asked in self._waiting if not asked.done]
        self._waiting.clear()
        return waiting

    def _one_more(self) -> None:
        if self.lines >= MOST_LINES:
            return
        self.lines += 1
        self.most = max(self.most, self.lines)
        task = asyncio.create_task(self._open())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, line = await loop.create_connection(lambda: Line(self), "127.0.0.1", self.port)
        except OSError:
            self.lines -= 1
            if (asked := self._next()) is not None:
                self.cut(self, asked)
            return
        line.used = time.perf_counter()
        self.free(line)

    def _next(self) -> Asked | None:
        while self._waiting:
            asked = self._waiting.popleft()
            if not asked.done:
                return asked
        return None
