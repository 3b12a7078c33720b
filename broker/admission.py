"""What is let in: work that can be finished in time; of more than that, the newest is told to come
again.

Exists because one event loop that takes in everything answers nobody in time: each request waits
behind thousands that nobody waits for any more. Two known means. New work begins in portions that
fit a turn of the loop, so that a turn stays short and a refusal is told at once (a limit of
concurrency that adapts, as TCP's window does). And the queue in front of it is bounded by the time
it stands for, with more room for a burst than for a queue that never empties (CoDel, RFC 8289).
Requests of those who hold a session go before first mints. Must never queue what is answered from
memory, nor count the time of an upstream: calls that hang cost the loop nothing.

No library: those for asyncio limit rates or numbers that somebody chose, not what a loop can do.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

import structlog

from broker.errors import Overloaded

TURN_SECONDS = 0.002
"""Of the processor, for one turn of a full loop. A mint takes some forty turns, so 0.1 s, and twice
that where two replicas share a core; a refusal takes one or two."""
MOST_AT_ONCE = 64.0
"""Requests that begin in one turn, while turns are short."""
LEAST_AT_ONCE = 0.5
"""However long turns are, for whatever reason: what is under way then is what begins in some forty
turns, and takes as long as twenty requests cost."""
MOST_WAITING = 64
"""That may wait however slow the loop is: a few dozen callers, each of whom waits for an answer
before asking again, are never refused."""
BURST_SECONDS = 0.6
"""Of work that may wait, where the queue was empty a moment ago: a crowd that comes together."""
STANDING_SECONDS = (0.4, 0.2)
"""The same where the queue has not been empty for `BURST_SECONDS`, by urgency: with what is under
way, answers come within a second."""
CALM_SECONDS = 1.0
"""Without a refusal, after which a queue counts as a burst again."""
OLDEST_SECONDS = 2.0
"""After which a first mint that rotations have overtaken is refused."""
_FIRST_GUESS = 300.0
"""Requests a second, until the first queue shows it."""
_FORGETTING = 0.98
"""Of what was counted, kept from one turn to the next: the rate is that of the last fifty turns."""
_TOLD_EVERY_SECONDS = 1.0

_log = structlog.get_logger("admission")


class Urgency(IntEnum):
    """FIRST: the caller holds a session, or a token that many share. LAST: everything else."""

    FIRST = 0
    LAST = 1


@dataclass(slots=True)
class _Waiting:
    began: float
    is_gone: Callable[[], bool]
    turn: asyncio.Future[bool] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Admission:
    """The way in to one event loop."""

    def __init__(
        self,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        processor: Callable[[], float] = time.thread_time,
    ) -> None:
        """processor: seconds that this thread has had of it: a process that is short of it takes
        longer, not less."""
        self._monotonic = monotonic
        self._processor = processor
        self._queues: tuple[deque[_Waiting], deque[_Waiting]] = (deque(), deque())
        self._portion = MOST_AT_ONCE
        self._credit = 0.0
        self._begun = 0
        self._begun_lately, self._seconds_lately = _FIRST_GUESS / 10, 0.1
        self._armed = False
        self._turn_began = (0.0, 0.0)
        self._waits_since: float | None = None
        self._crowded_until = float("-inf")
        self._refused = 0

    def is_full(self, urgency: Urgency) -> bool:
        """Would a request that comes now wait for longer than makes sense?"""
        waiting = len(self._queues[Urgency.FIRST])
        if urgency is Urgency.LAST:
            waiting += len(self._queues[Urgency.LAST])
        if not waiting:
            return False
        most = STANDING_SECONDS[urgency] if self._stands() else BURST_SECONDS
        return waiting >= max(MOST_WAITING, most * self._rate)

    async def enter(self, urgency: Urgency, is_gone: Callable[[], bool]) -> None:
        """Waits until the request may begin. is_gone: has its caller left? Raises Overloaded."""
        if self._begun < int(self._portion) and not any(self._queues):
            self._begun += 1
            self._arm()
            return
        if self.is_full(urgency):
            raise self.refused()
        waiting = _Waiting(self._monotonic(), is_gone)
        self._queues[urgency].append(waiting)
        self._arm()
        if not await waiting.turn:
            raise self.refused()

    def refused(self) -> Overloaded:
        """Notes a refusal, which the log tells of once a second; gives what to answer."""
        if self._stands():
            self._crowded_until = self._monotonic() + CALM_SECONDS
        if self._refused == 0:
            asyncio.get_running_loop().call_later(_TOLD_EVERY_SECONDS, self._tell)
        self._refused += 1
        return Overloaded(
            "More is asked for than can be done in time.",
            cause="not admitted",
            retry_after=4.0 * random.random(),  # noqa: S311  (jitter; told as 1 to 4 s)
        )

    @property
    def _rate(self) -> float:
        """Requests that begin in a second, while others wait."""
        return self._begun_lately / self._seconds_lately

    def _stands(self) -> bool:
        now = self._monotonic()
        long = self._waits_since is not None and now - self._waits_since > BURST_SECONDS
        return long or now < self._crowded_until

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self._turn_began = (self._monotonic(), self._processor())
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Once in each turn of the loop in which something began or waits."""
        now, processor = self._monotonic(), self._processor()
        began, before = self._turn_began
        self._turn_began = (now, processor)
        self._adapt(processor - before)
        begun = self._begin(now)
        if self._waits_since is not None and now > began:
            self._begun_lately = self._begun_lately * _FORGETTING + begun
            self._seconds_lately = self._seconds_lately * _FORGETTING + now - began
        waits = any(self._queues)
        if not waits:
            self._waits_since = None
        elif self._waits_since is None:
            self._waits_since = now
        self._begun = begun
        self._armed = waits or begun > 0
        if self._armed:
            asyncio.get_running_loop().call_soon(self._turn)

    def _adapt(self, spent: float) -> None:
        """The portion: of requests that begin in a turn, and less than one where each turn is
        long."""
        if spent > TURN_SECONDS:
            self._portion = max(LEAST_AT_ONCE, self._portion * max(0.8, TURN_SECONDS / spent))
        else:
            self._portion = min(MOST_AT_ONCE, self._portion * 1.1 + 0.05)

    def _begin(self, now: float) -> int:
        """Lets a portion of those who wait begin. How many?"""
        self._credit = min(self._credit, 1.0) + self._portion
        begun, most = 0, int(self._credit)
        for queue in self._queues:
            while queue and begun < most:
                waiting = queue.popleft()
                if waiting.turn.done():  # whoever waited was cancelled
                    continue
                in_time = now - waiting.began <= OLDEST_SECONDS and not waiting.is_gone()
                waiting.turn.set_result(in_time)
                begun += in_time
        self._credit -= begun
        return begun

    def _tell(self) -> None:
        count, self._refused = self._refused, 0
        _log.warning("requests_refused", count=count, rate=round(self._rate))
