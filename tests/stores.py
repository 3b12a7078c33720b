"""A `RedisStore` at a real server, what a test sees of it, and an address in front of servers.

`quicken` makes the watch over a store ten times as fast; what is claimed of seconds is claimed at
the real ones, by tests that say so. Waiting is always for a condition: how fast this machine is
today must decide nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any

import pytest

from broker.flights import Tasks
from broker.model import Secret
from broker.schedule import Clock, SystemClock
from broker.state.redis_store import RedisStore
from broker.state.store import Kept, StoreDown, StoreFailed, Told
from broker.state.vault import Vault
from tests.redis_server import RedisServer

NEW, OLD = Secret("n" * 32), Secret("o" * 32)
TIMEOUT = 0.25
PATIENT = 2.0
"""The deadline where the server is well, or refuses at once, and only the machine may be slow."""
SLACK = 0.7
"""Of a busy machine, beyond the deadline: with it, a call still ends within a second."""
LONG = 30.0
"""The end of a wait for something that takes a second on an idle machine."""


def quicken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch beats, gives up and settles about ten times as fast."""
    for name, seconds in (("BEAT", 0.1), ("PROBE", 0.05), ("SETTLE", 0.3)):
        monkeypatch.setattr(f"broker.state.store_watch.{name}_SECONDS", seconds)
    monkeypatch.setattr("broker.state.health.AWAY_AFTER_SECONDS", 0.4)


class Seen:
    """Stands in for the metrics."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, str]] = Counter()
        self.ups: list[bool] = []
        """Each value that a gauge would have had, without repetitions."""

    def store_answered(self, operation: str, outcome: str) -> None:
        self.answers[operation, outcome] += 1

    def store_up(self, is_up: bool) -> None:
        if self.ups[-1:] != [is_up]:
            self.ups.append(is_up)

    @property
    def is_up(self) -> bool:
        return self.ups[-1]


class Retold:
    """Stands in for what tells a store again: notes whether all was asked for, may fail or wait."""

    def __init__(self, store: RedisStore) -> None:
        self.calls: list[bool] = []
        self.does: Callable[[Told], Awaitable[object]] | None = None
        store.when_back(self._again)

    async def _again(self, told: Told, everything: bool) -> None:
        self.calls.append(everything)
        if everything and self.does is not None:
            await self.does(told)

    @property
    def wholes(self) -> int:
        """How often all was told."""
        return self.calls.count(True)


@contextlib.asynccontextmanager
async def store_at(
    url: str,
    *ring: Secret,
    seen: Seen | None = None,
    clock: Clock | None = None,
    tasks: Tasks | None = None,
    **options: Any,
) -> AsyncIterator[RedisStore]:
    tasks = tasks or Tasks()
    store = RedisStore(
        Secret(url), Vault(ring or (NEW,)), clock or SystemClock(), seen or Seen(), tasks.spawn,
        **{"timeout": PATIENT, "prefix": "broker", "ca_file": None} | options,
    )  # fmt: skip
    try:
        yield store
    finally:
        await store.close()
        await tasks.close()


def run(story: Coroutine[Any, Any, None], seconds: float = 60) -> None:
    asyncio.run(asyncio.wait_for(story, seconds))


async def until(true: Callable[[], bool | Awaitable[bool]], seconds: float = LONG) -> None:
    end = time.monotonic() + seconds
    while True:
        answer = true()
        if answer if isinstance(answer, bool) else await answer:
            return
        assert time.monotonic() < end, "did not come true"
        await asyncio.sleep(0.01)


async def works(store: RedisStore) -> bool:
    try:
        await store.get(["anything"])
    except StoreDown:
        return False
    return True


async def down(call: Awaitable[Any]) -> float:
    """Seconds after which it said that the store is down, or has failed."""
    began = time.monotonic()
    with pytest.raises(StoreDown) as caught:
        await call
    assert caught.value.__cause__ is None
    return time.monotonic() - began


async def outcome(call: Awaitable[Any]) -> str:
    """How a call ended: "ok", "failed" (it may be well), "away" (act alone)."""
    try:
        await call
    except StoreFailed:
        return "failed"
    except StoreDown:
        return "away"
    return "ok"


def values(kept: Sequence[Kept | None]) -> list[bytes | None]:
    return [one and one.value for one in kept]


def keys_of(server: RedisServer) -> list[bytes]:
    """Of what callers put there: not of the watch, nor of counters."""
    lines = server.command("KEYS", "*").split(b"\r\n")[2::2]
    return [line for line in lines if line and b"{broker:probe:" not in line]


class Forwarder:
    """An address. What comes over a connection goes to the server that was behind the address when
    the connection was made, one whole command after another."""

    def __init__(self, port: int, delay: Callable[[], float] = lambda: 0.0) -> None:
        """delay: seconds by which an answer is late."""
        self.port = port
        self.delay = delay
        self.accepted = 0
        self.says: bytes | None = None
        """Answers every command itself with this line, as long as it is set."""
        self.mute = False
        """Lets every command through and no answer back; what was kept back comes when it ends."""
        self.url = ""
        self._tasks = Tasks()
        self._lines: dict[Any, None] = {}

    def cut(self, but: int = 0) -> None:
        """Ends all connections that there are, on both sides, but for the first few."""
        for writer in list(self._lines)[2 * but :]:
            writer.transport.abort()

    @property
    def connections(self) -> int:
        """That are open, from whoever asks."""
        return len(self._lines) // 2

    async def serve(self, reader: Any, writer: Any) -> None:
        self.accepted += 1
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        self._lines |= dict.fromkeys((writer, back))
        ways = [self._answers(there, writer), self._commands(reader, writer, back)]
        running = [self._tasks.spawn(way) for way in ways]
        try:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._lines[writer], self._lines[back]
            for task in running:
                task.cancel()
            for one in (writer, back):
                one.transport.abort()

    async def _answers(self, there: Any, writer: Any) -> None:
        with contextlib.suppress(OSError):
            while data := await there.read(65536):
                await asyncio.sleep(self.delay())
                await until(lambda: not self.mute, 600)
                writer.write(data)
                await writer.drain()

    async def _commands(self, reader: Any, writer: Any, back: Any) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while head := await reader.readline():
                command = head
                for _ in range(int(head[1:])):
                    size = await reader.readline()
                    command += size + await reader.readexactly(int(size[1:]) + 2)
                (back if self.says is None else writer).write(self.says or command)
                await back.drain()

    async def close(self) -> None:
        self.cut()
        await self._tasks.close()
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def forwarder(
    port: int, delay: Callable[[], float] = lambda: 0.0
) -> AsyncIterator[Forwarder]:
    place = Forwarder(port, delay)
    listening = await asyncio.start_server(place.serve, "127.0.0.1", 0)
    place.url = f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield place
    finally:
        listening.close()
        await place.close()
