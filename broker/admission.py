"""Lets in the work that can be finished in time, and tells the newest of the rest to come again.

Exists because one event loop that takes in everything answers nobody in time: each request waits
behind thousands that nobody waits for any more. Two known means. One request begins in each turn of
the loop, so that turns stay short and what is under way is what fits the turns that a request
takes, however fast the machine is (a limit of concurrency that adapts by itself). And the queue in
front of it is bounded by the time it stands for, with more room for a burst than for a queue that
never empties (as CoDel has it, RFC 8289). Requests of those who hold a session go before first
mints. Must never queue what is answered from memory, nor count the time of an upstream: calls that
hang cost the loop no turns.

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

MOST_WAITING = 64
"""That may wait however slow the loop is, where nothing more urgent waits: a few dozen callers,
each of whom waits for an answer before asking again, are never refused."""
BURST_SECONDS = 0.6
"""Of work that may wait, where the queue was empty a moment ago: a crowd that comes together."""
STANDING_SECONDS = (0.4, 0.2, 0.2)
"""The same where the queue has not been empty for `BURST_SECONDS`, by urgency: with what is under
way, answers come within a second."""
CALM_SECONDS = 1.0
"""Without a refusal, after which a queue counts as a burst again; and without anything more urgent
in the queue, after which the rest need not fear for their turn."""
OLDEST_SECONDS = (2.0, 0.4)
"""After which one that waits is refused, by whether something more urgent takes its turns."""
MOST_RETRY_SECONDS = 4
"""To come again after, at the most: long enough to spread a crowd, short beside a session's
life."""
_FIRST_GUESS = 300.0
"""Requests a second, until the first queue shows it."""
_FORGETTING = 0.98
"""Of what was counted, kept from one request to the next: the rate is that of the last fifty."""
_TOLD_EVERY_SECONDS = 1.0

_log = structlog.get_logger("admission")


class Urgency(IntEnum):
    """What goes first: the caller holds a session, or asks for a token that many share; then first
    mints; then what an upstream posts, which it will post again."""

    HELD = 0
    MINT = 1
    CALLBACK = 2


@dataclass(slots=True)
class _Waiting:
    since: float
    is_gone: Callable[[], bool]
    turn: asyncio.Future[bool] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Admission:
    """The way in to one event loop."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._queues: list[deque[_Waiting]] = [deque() for _ in Urgency]
        self._is_armed = False
        self._began_at = 0.0
        self._begun_lately = [_FIRST_GUESS / 10 for _ in Urgency]
        self._seconds_lately = 0.1
        self._waited_at = [float("-inf") for _ in Urgency]
        self._waits_since: float | None = None
        self._crowded_until = float("-inf")
        self._refused = 0

    def is_full(self, urgency: Urgency) -> bool:
        """Would a request that comes now wait for longer than makes sense?"""
        waiting = len(self._queues[urgency])
        if waiting == 0:
            return False
        if waiting < MOST_WAITING and not self._is_contended(urgency):
            return False
        most = STANDING_SECONDS[urgency] if self._stands() else BURST_SECONDS
        return waiting >= most * self._begun_lately[urgency] / self._seconds_lately

    async def enter(self, urgency: Urgency, is_gone: Callable[[], bool]) -> None:
        """Waits until the request may begin. is_gone: has its caller left? Raises Overloaded."""
        if not self._is_armed:  # nothing waits, and nothing has begun in this turn
            self._arm()
            return
        if self.is_full(urgency):
            raise self.refused()
        now = self._monotonic()
        if self._waits_since is None:
            self._waits_since = self._began_at = now
        self._waited_at[urgency] = now
        waiting = _Waiting(now, is_gone)
        self._queues[urgency].append(waiting)
        if not await waiting.turn:
            raise self.refused()

    def refused(self) -> Overloaded:
        """Notes a refusal, which the log tells of once a second; gives what to answer."""
        if self._stands():
            self._crowded_until = self._monotonic() + CALM_SECONDS
        if self._refused == 0:
            asyncio.get_running_loop().call_later(_TOLD_EVERY_SECONDS, self._tell)
        self._refused += 1
        return self.refusal(MOST_RETRY_SECONDS * (1.0 - random.random()))  # noqa: S311  (jitter)

    @staticmethod
    def refusal(retry_after: float) -> Overloaded:
        """The error alone. retry_after: seconds, told as the whole ones that are not less."""
        detail = "More is asked for than can be done in time."
        return Overloaded(detail, cause="not admitted", retry_after=retry_after)

    def _stands(self) -> bool:
        now = self._monotonic()
        long = self._waits_since is not None and now - self._waits_since > BURST_SECONDS
        return long or now < self._crowded_until

    def _is_contended(self, urgency: Urgency) -> bool:
        """Does something more urgent take turns?"""
        since = self._monotonic() - CALM_SECONDS
        return any(at > since for at in self._waited_at[:urgency])

    def _arm(self) -> None:
        self._is_armed = True
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Once in each turn of the loop, as long as anything waits, and once after the last."""
        if self._waits_since is None or not self._begin_one():
            self._is_armed, self._waits_since = False, None
        else:
            self._arm()

    def _begin_one(self) -> bool:
        """Lets the next of those who wait begin, and refuses who has waited for too long. False
        where nobody waits."""
        now, has_begun = self._monotonic(), False
        for urgency, queue in zip(Urgency, self._queues, strict=True):
            if not queue:
                continue
            oldest = now - OLDEST_SECONDS[self._is_contended(urgency)]
            while queue and not (has_begun and queue[0].since > oldest):
                waiting = queue.popleft()
                if waiting.turn.done():  # whoever waited was cancelled
                    continue
                may_begin = waiting.since > oldest and not waiting.is_gone()
                waiting.turn.set_result(may_begin)
                if may_begin:
                    self._count(urgency, now)
                    has_begun = True
        return has_begun

    def _count(self, urgency: Urgency, now: float) -> None:
        self._begun_lately = [begun * _FORGETTING for begun in self._begun_lately]
        self._begun_lately[urgency] += 1.0
        self._seconds_lately = self._seconds_lately * _FORGETTING + now - self._began_at
        self._began_at = now

    def _tell(self) -> None:
        count, self._refused = self._refused, 0
        rate = round(sum(self._begun_lately) / self._seconds_lately)
        _log.warning("requests_refused", count=count, rate=rate)
