"""One run of a piece of work for each key, however many ask, and whoever leaves.

The work runs in a task of its own, so that a caller who goes away cancels only their own wait.
Nothing is remembered once it has landed: that is a cache's business. No locks: one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from broker.errors import BrokerError, Overloaded

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Spawn = Callable[[Coroutine[Any, Any, Any]], "asyncio.Task[Any]"]


class Flights(Generic[K, V]):
    """`join(key, work)`: the result of the run under way, or of a new one."""

    def __init__(self, spawn: Spawn) -> None:
        """spawn: starts a task that belongs to the app, see `Tasks`."""
        self._spawn = spawn
        self._aloft: dict[K, asyncio.Task[V]] = {}

    def __len__(self) -> int:
        return len(self._aloft)

    async def join(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> tuple[V, bool]:
        """The result, and whether this caller's `work` made it. Raises what the run raised."""
        task = self._aloft.get(key)
        mine = task is None
        if task is None:
            task = self._spawn(work())
            self._aloft[key] = task
            task.add_done_callback(lambda landed: self._landed(key, landed))
        try:
            return await asyncio.shield(task), mine
        except BrokerError as exc:
            raise exc.again() from exc  # its own for each: one that many raise gathers their frames

    def leave(self, key: K) -> None:
        """Whoever asks from now on does not join the run under way; who is aboard stays."""
        self._aloft.pop(key, None)

    def _landed(self, key: K, task: asyncio.Task[V]) -> None:
        if self._aloft.get(key) is task:
            del self._aloft[key]
        if not task.cancelled():
            task.exception()  # marks it as seen where every waiter has left


class Turns(Generic[K]):
    """One at a time for each key, in the order they came: `async with turns.of(key)`.

    For calls that an upstream refuses to take side by side. Who waits holds a place that others
    want, so the wait is bounded, in number and in time."""

    def __init__(self, most: int = 8, seconds: float = 5.0) -> None:
        """most: that hold or await one key. seconds: of waiting, of the running loop's time."""
        self._most = most
        self._seconds = seconds
        self._held: dict[K, tuple[asyncio.Lock, set[object]]] = {}

    @contextlib.asynccontextmanager
    async def of(self, key: K) -> AsyncIterator[None]:
        """Raises Overloaded, without anything having been done, where the wait is over a bound."""
        lock, present = self._held.setdefault(key, (asyncio.Lock(), set()))
        if len(present) >= self._most:
            raise Overloaded("Too many calls about this session at once.", retry_after=1.0)
        me = object()
        present.add(me)
        try:
            try:
                async with asyncio.timeout(self._seconds):
                    await lock.acquire()
            except TimeoutError:
                raise Overloaded("This session is being worked on.", retry_after=1.0) from None
            try:
                yield
            finally:
                lock.release()
        finally:
            present.remove(me)
            if not present:
                del self._held[key]


class Tasks:
    """Every background task of the app: kept from the garbage collector, ended with the app."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def close(self) -> None:
        """Cancels what still runs and waits for it."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
