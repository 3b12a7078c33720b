"""Time as our own event loop had it: the seconds in which it ran, less those in which it stood
still.

Exists so that our own delay is never held against somebody else. A process that is short of CPU, or
was stopped, finds its timers due before it has read the answers that have long been in its sockets;
a deadline of plain seconds would then call a healthy store or upstream silent. Deadlines for others
are therefore counted in running seconds, and after a stall there is always a moment left in which
what has arrived is read. A request's own budget stays in plain seconds, as its caller's patience
does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

TICK_SECONDS = 0.02
UNNOTICED_SECONDS = 0.01
"""Of each tick's delay, which is no stall: every turn of a busy loop takes some milliseconds."""
LAST_LOOK_SECONDS = 0.05
"""Running seconds that a wait is given after a stall, whatever was left of it: an answer that lies
in the socket passes through a handful of turns of the loop before its reader has it."""
_WINDOW_SECONDS = 5.0


class LoopTime:
    """The running seconds of one event loop. Before `start` all seconds count as running."""

    def __init__(self, stalled: Callable[[float], None] = lambda _: None) -> None:
        """stalled: told of each stall, in seconds."""
        self._tell = stalled
        self._stalled = 0.0
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._worst = self._worst_before = 0.0
        self._window_ends = 0.0

    def start(self) -> None:
        """Begins to tick on the running loop."""
        self._arm()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._due = None

    def running(self) -> float:
        """Monotonic seconds, less those of `stalled`."""
        return time.monotonic() - self.stalled

    @property
    def stalled(self) -> float:
        """Seconds in which the loop stood still so far, a stall that has just ended included."""
        return self._stalled + self._overdue()

    @property
    def lag(self) -> float:
        """The longest delay of a timer in the last five to ten seconds, in seconds."""
        return max(self._worst, self._worst_before, self._overdue())

    async def finished(self, task: asyncio.Future[Any], seconds: float) -> bool:
        """Waits for `task`, at most for `seconds` of running time. Is it done? Never cancels it."""
        wait = _Deadline(self, seconds)
        while not task.done() and (left := wait.left()) > 0:
            await asyncio.wait((task,), timeout=left)
        return task.done()

    def limit(self, seconds: float) -> Limit:
        """`async with` it: raises TimeoutError when the block took `seconds` of running time."""
        return Limit(self, seconds)

    def _overdue(self) -> float:
        if self._due is None:
            return 0.0
        return max(0.0, time.monotonic() - self._due - UNNOTICED_SECONDS)

    def _arm(self) -> None:
        self._due = time.monotonic() + TICK_SECONDS
        self._timer = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        late = self._overdue()
        now = time.monotonic()
        if now >= self._window_ends:
            self._worst_before, self._worst = self._worst, 0.0
            self._window_ends = now + _WINDOW_SECONDS
        if late:
            self._stalled += late
            self._worst = max(self._worst, late)
            self._tell(late)
        self._arm()


class _Deadline:
    """Running seconds that are left of a wait, and a last look after a stall."""

    def __init__(self, time_: LoopTime, seconds: float) -> None:
        self._time = time_
        self._until = time_.running() + seconds
        self._stalled = time_.stalled
        self._looked = False

    def left(self) -> float:
        """Seconds to wait before asking again; 0 where the time is over."""
        left = self._until - self._time.running()
        stalled = self._time.stalled
        if stalled > self._stalled and not self._looked and left < LAST_LOOK_SECONDS:
            self._looked, self._stalled = True, stalled
            return LAST_LOOK_SECONDS
        return max(0.0, left)

    def move(self, seconds: float) -> None:
        """Ends `seconds` later than it would, and with a last look of its own."""
        self._until += seconds
        self._looked, self._stalled = False, self._time.stalled


class Limit:
    """See `LoopTime.limit`. extend: moves the end while the block runs."""

    def __init__(self, time_: LoopTime, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = _Deadline(time_, seconds)
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    def extend(self, seconds: float) -> None:
        self._deadline.move(seconds)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._timeout.__aexit__(kind, error, traceback)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        left = self._deadline.left()
        if left > 0:
            self._timer = loop.call_later(left, self._look)
        else:
            self._timeout.reschedule(loop.time())
