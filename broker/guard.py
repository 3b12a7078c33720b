"""What stands between us and one upstream account: what is let out to it, when, and how often.

Exists so that a slow or angry upstream stays its own problem: every call has one time budget, its
repetitions included; a dead upstream is left alone (`breaker`), one that says when to come again is
obeyed, and no more calls than agreed are out at once or within a minute, of which people get the
most. Must never repeat a call of which nobody knows whether it has happened, unless whoever calls
says that this is safe; must never begin an attempt that has no time to end; and whatever it refuses
was certainly not sent. On the way of a call to a well upstream it takes no lock, and waits
for nothing but the count of a budget that replicas share.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import structlog
from limits import RateLimitItem

from broker.breaker import CLOSED, Breaker, NotForThis, unwell
from broker.errors import (
    BrokerError,
    CallerError,
    Overloaded,
    Throttled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from broker.limits import RateLimits
from broker.loop_time import LoopTime
from broker.metrics import Metrics
from broker.model import Priority
from broker.schedule import Clock, backoff

V = TypeVar("V")

LEAST = 0.02
"""Seconds under which an attempt is not begun: on a kept connection a round trip within one region
takes a tenth of it, but an upstream needs time to think, and most are farther away."""
PAUSES = ((0.05, 0.2), (0.1, 0.4))
"""Seconds before the second and the third attempt, drawn between: a node that was taken out of its
balancer is gone by then, and whoever failed together does not come back together."""
OBEYED_IN_REQUEST = 2.0
"""Seconds of Retry-After that are waited for within a request; longer ones, the caller is told."""
MOST_COOLING = 60.0
"""Seconds of Retry-After that the gate obeys: an absurd header is no outage. Longer bans come back
with the next 429, which costs one call a minute."""
BUDGET_WAIT = 1.0
"""Seconds that a person waits for a place in the budget."""
_FULL_WAIT = 1.0
_OUR_SHARE = 0.25
"""Of a call's time, in which our own loop stood still: with more, a late answer is not held against
the upstream."""
_LATE = UpstreamTimeout("", cause="cut off at the deadline")
"""What a call that hangs ends in: asked about before there is one, and told to the breaker."""
_OF_BUDGET = {Priority.PERSON: 1.0, Priority.REFRESH: 0.75, Priority.PREFETCH: 0.5}
"""Of the budget and of the places, up to where each may fill them: the rest is for people."""

_log = structlog.get_logger("guard")


class Guard:
    """One upstream account, or one credential's token endpoint: what is let out to it, and when."""

    def __init__(
        self,
        name: str,
        *,
        account: str,
        clock: Clock,
        metrics: Metrics,
        limits: RateLimits,
        rate: RateLimitItem | None,
        most: int,
        draw: Callable[[], float] = random.random,
        paced: bool = False,
        loop_time: LoopTime | None = None,
    ) -> None:
        """name: the metrics' word. account: what the budget is counted by, on all replicas. rate:
        the outbound budget, shared with other replicas where `limits` is; None for none. most:
        calls at once, and people who wait for a credential to call with. draw: for jitter, from 0
        to 1. paced: see `Breaker`."""
        self._name = name
        self._account = account
        self._clock = clock
        self._metrics = metrics
        self._limits = limits
        self.rate = rate
        self._places = [max(1, int(most * _OF_BUDGET[one])) for one in Priority]
        self._draw = draw
        self._loop_time = loop_time or LoopTime()
        self._breaker = Breaker(name, clock=clock, metrics=metrics, draw=draw, paced=paced)
        self._in_flight = self._waiting = 0
        self._cool_until = float("-inf")
        self._throttled = 0

    async def call(
        self,
        work: Callable[[float], Coroutine[Any, Any, V]],
        *,
        deadline: float,
        priority: Priority = Priority.PERSON,
        operation: str,
        again: Callable[[BrokerError], bool],
    ) -> V:
        """Runs `work(seconds)`: one attempt within `seconds`; twice more where `again(error)` says
        that this is safe. Raises what the last attempt raised; without an attempt,
        UpstreamUnavailable, UpstreamRefused or Overloaded, with when to come again.

        deadline: monotonic seconds at which all of it must be over. operation: the metrics' word.
        again: pure; is also asked about an answer that does not come, before the call.
        """
        self._may_ask(deadline)
        ticket, out = self._breaker.enter(), False
        began = (self._clock.monotonic(), self._loop_time.stalled)

        async def attempt(seconds: float) -> V:
            nonlocal out
            out = True
            try:
                return await work(seconds)
            except BrokerError:
                out = False
                raise

        try:
            value = await self._attempts(attempt, ticket, deadline, priority, operation, again)
        except BaseException as exc:
            late = out and self._is_late(deadline, *began)
            self._judge(ticket, _LATE if late and isinstance(exc, asyncio.CancelledError) else exc)
            raise
        self._breaker.good(ticket)
        self._throttled = 0
        return value

    def _is_late(self, deadline: float, began: float, stalled: float) -> bool:
        """Is the time over, and has the upstream had it? The request's own deadline may cut a call
        off before the call's does; what our loop slept away of it is no fault of theirs."""
        now = self._clock.monotonic()
        ours = self._loop_time.stalled - stalled
        return now >= deadline - LEAST and ours <= (now - began) * _OUR_SHARE

    async def _attempts(
        self,
        work: Callable[[float], Coroutine[Any, Any, V]],
        ticket: int,
        deadline: float,
        priority: Priority,
        operation: str,
        again: Callable[[BrokerError], bool],
    ) -> V:
        """One call, which the breaker judges once, by its end."""
        failed: BrokerError | None = None
        for pause in (*PAUSES, None):
            try:
                await self._enter(deadline, priority)
            except BrokerError:
                if failed is None:
                    raise
                raise failed from None  # that may have happened; what was refused now has not
            try:
                if failed is not None:
                    self._metrics.upstream_retried(self._name, operation)
                seconds = deadline - self._clock.monotonic()
                if pause is not None and again(_LATE):
                    seconds /= 2  # one that hangs leaves time for another
                return await work(seconds)
            except BrokerError as exc:
                self._obey(exc)
                wait = self._pause(exc, pause, deadline) if pause and again(exc) else None
                if wait is None:
                    raise
                failed = exc
            finally:
                self._leave()
            await self._clock.sleep(wait)
            if not self._breaker.stands(ticket):  # others have found it dead meanwhile
                raise failed
        raise AssertionError("the last attempt returns or raises")

    def failed(self, error: BrokerError) -> None:
        """Tells of a failure that several calls showed together: of a credential, say, of which
        each version was refused. Without effect for an error that is one request's own."""
        if unwell(error):
            self._breaker.failed(error)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for what a call needs first: who waits holds a place that others want,
        though no call is out yet. Raises Overloaded."""
        if self._waiting >= self._places[Priority.PERSON]:
            raise self._full()
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def _full(self) -> Overloaded:
        self._metrics.upstream_shed(self._name, "full")
        return Overloaded(
            "Too many calls to this upstream at once.",
            cause="upstream full",
            retry_after=_FULL_WAIT * (1 + self._draw()),
        )

    def retire(self) -> None:
        """No configuration has such an account any more."""
        self._metrics.circuit(self._name, CLOSED)

    def hope(self) -> None:
        """A credential was replaced: one that was refused may be taken now."""
        self._breaker.hope()

    def _may_ask(self, deadline: float) -> None:
        """There is time, and the upstream has not asked for a pause. Raises NotForThis."""
        now = self._clock.monotonic()
        if deadline - now < LEAST:
            self._metrics.upstream_shed(self._name, "late")
            raise NotForThis(
                "No time was left to ask the upstream.", cause="no time left", retry_after=1.0
            )
        if now < self._cool_until:
            self._metrics.upstream_shed(self._name, "cooldown")
            raise NotForThis(
                "The upstream has asked for a pause.",
                cause="cooling down",
                retry_after=self._cool_until - now,
            )

    async def _enter(self, deadline: float, priority: Priority) -> None:
        """Takes a place and a part of the budget; `_leave` gives the place back. Raises where there
        is none."""
        self._may_ask(deadline)
        if self._in_flight >= self._places[priority]:
            raise self._full()
        self._in_flight += 1
        self._metrics.upstream_in_flight(self._name, 1)
        if self.rate is not None:
            try:
                await self._spend(self.rate, deadline, priority)
                self._may_ask(deadline)
            except BaseException:
                self._leave()
                raise

    def _leave(self) -> None:
        self._in_flight -= 1
        self._metrics.upstream_in_flight(self._name, -1)

    async def _spend(self, rate: RateLimitItem, deadline: float, priority: Priority) -> None:
        """Counts one call in the budget; for a person, after a moment's wait if need be."""
        share = _OF_BUDGET[priority]
        wait = await self._limits.room(rate, "upstream", self._account, share=share)
        left = deadline - self._clock.monotonic()
        if 0 < wait <= min(BUDGET_WAIT, left / 4) and priority is Priority.PERSON:
            await self._clock.sleep(wait)
            wait = await self._limits.room(rate, "upstream", self._account, share=share)
        if wait > 0:
            self._metrics.upstream_shed(self._name, "budget")
            raise Overloaded(
                "The budget of calls to this upstream is spent.",
                cause="upstream budget",
                retry_after=wait,
            )

    def _obey(self, error: BrokerError) -> None:
        """Lets the account be where it asks for that."""
        if isinstance(error, Throttled):
            self._throttled += 1
            self._cool(error.retry_after or backoff(self._throttled, self._draw))
        elif isinstance(error, UpstreamUnavailable) and not isinstance(error, NotForThis):
            self._cool(error.retry_after or 0.0)

    def _judge(self, ticket: int, error: BaseException) -> None:
        if isinstance(error, BrokerError) and unwell(error):
            self._breaker.bad(ticket, error)
        elif isinstance(error, CallerError):  # a whole answer, though not one to this one's liking
            self._breaker.good(ticket)
        else:
            self._breaker.neither(ticket)

    def _cool(self, seconds: float) -> None:
        """Shuts the gate: at least so long, and up to a tenth more, lest all come back at once."""
        if seconds <= 0:
            return
        wait = min(seconds, MOST_COOLING) * (1 + self._draw() / 10)
        self._cool_until = max(self._cool_until, self._clock.monotonic() + wait)
        _log.warning("upstream_cooling", upstream=self._name, seconds=round(wait, 1))

    def _pause(
        self, error: BrokerError, between: tuple[float, float], deadline: float
    ) -> float | None:
        """Seconds to wait before another attempt; None where there shall be none."""
        if isinstance(error, Throttled) or (error.retry_after or 0.0) > OBEYED_IN_REQUEST:
            return None
        low, high = between
        now = self._clock.monotonic()
        wait = max(low + (high - low) * self._draw(), self._cool_until - now)
        return wait if now + wait + LEAST <= deadline else None
