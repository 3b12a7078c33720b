"""A breaker: when to stop asking an upstream that is unwell, and how to find out that it is well.

Exists so that an outage costs its callers a moment instead of their whole time budget, and the
upstream no calls that only keep it down. It must never let two probes out side by side, nor take
the late end of a call from before for news of today. Ours, as pybreaker, aiobreaker and purgatory
keep time by the wall clock and let every call that comes while one probes out as well.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from broker.errors import (
    BrokerError,
    Throttled,
    UpstreamNonsense,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from broker.metrics import Metrics
from broker.schedule import Clock, backoff

OPENS_AFTER = 5
"""Failures in a row. One bad node of ten in turn gives five in a row once in 100,000 calls; a dead
upstream gives them at once, however little traffic there is (a rate would need a least number)."""
PROBE_WAIT = 1.0
"""Seconds that are told while a probe is out: most answer within one."""
CLOSED, HALF_OPEN, OPEN = 0, 1, 2

_log = structlog.get_logger("breaker")


class CredentialRefused(UpstreamRefused):
    """Our own key or token was refused, whatever was asked for: each further call will be too."""


class NotForThis(UpstreamUnavailable):
    """Unavailable for this one request: it says nothing of the upstream as a whole."""


def unwell(error: BrokerError) -> bool:
    """Whether an error says that other calls to this upstream would fail too.

    Not so a refusal of one request's content, which a caller could bring about as often as they
    like, nor a 429: the upstream is well, and has said when to come again.
    """
    return isinstance(
        error, UpstreamUnavailable | UpstreamTimeout | UpstreamNonsense | CredentialRefused
    ) and not isinstance(error, Throttled | NotForThis)


class Breaker:
    """`enter()` before a call; `good`, `bad` or `neither` after it, with the ticket of `enter`.

    A ticket is the generation that the call belongs to: each opening and each probe begins another,
    and what ends with an old ticket changes nothing.
    """

    def __init__(
        self,
        name: str,
        *,
        clock: Clock,
        metrics: Metrics,
        draw: Callable[[], float],
        paced: bool = False,
    ) -> None:
        """paced: whoever calls makes pauses of their own after a failure, so that each of their
        calls is as good as a probe."""
        self._name = name
        self._clock = clock
        self._metrics = metrics
        self._draw = draw
        self._paced = paced
        self._generation = 0
        self._failures = 0
        self._openings = 0
        self._until: float | None = None
        """When a probe may go out; None while closed."""
        self._probing = False
        self._why: BrokerError | None = None
        metrics.circuit(name, CLOSED)

    def enter(self) -> int:
        """A ticket. While this is open, or while somebody else probes, raises UpstreamRefused where
        our credential was refused, else UpstreamUnavailable, with when to come again."""
        if self._until is None:
            return self._generation
        left = 0.0 if self._paced else self._until - self._clock.monotonic()
        if left > 0 or self._probing:
            self._metrics.upstream_shed(self._name, "circuit")
            raise self._refusal(max(left, PROBE_WAIT if self._probing else 0.0))
        self._probing = True
        self._generation += 1
        self._metrics.circuit(self._name, HALF_OPEN)
        return self._generation

    def stands(self, ticket: int) -> bool:
        """Has nothing changed since that ticket was given?"""
        return ticket == self._generation

    def good(self, ticket: int) -> None:
        """The upstream did what it was asked for."""
        if ticket != self._generation:
            return
        self._failures = 0
        if self._until is not None:
            self._until, self._probing, self._openings = None, False, 0
            self._metrics.circuit(self._name, CLOSED)
            _log.info("circuit_closed", upstream=self._name)

    def bad(self, ticket: int, error: BrokerError) -> None:
        """The upstream is unwell, as `error` tells."""
        if ticket != self._generation:
            return
        self._failures += 1
        if self._until is not None or self._failures >= OPENS_AFTER:
            self._open(error)

    def neither(self, ticket: int) -> None:
        """Nothing was learnt. A probe's place is free for another."""
        if ticket == self._generation:
            self._probing = False

    def failed(self, error: BrokerError) -> None:
        """A failure that several calls showed together, each of which was neither by itself."""
        if self._until is None or (self._clock.monotonic() >= self._until and not self._probing):
            self.bad(self._generation, error)

    def hope(self) -> None:
        """What was refused may be taken now: a probe may go out at once."""
        if isinstance(self._why, UpstreamRefused) and self._until is not None:
            self._until = min(self._until, self._clock.monotonic())

    def _open(self, error: BrokerError) -> None:
        self._openings += 1
        self._generation += 1
        self._failures, self._probing, self._why = 0, False, error
        wait = backoff(self._openings, self._draw)
        self._until = self._clock.monotonic() + wait
        self._metrics.circuit(self._name, OPEN)
        _log.warning(
            "circuit_opened",
            upstream=self._name,
            problem=error.slug,
            cause=error.cause,
            openings=self._openings,
            retry_in=round(wait, 1),
        )

    def _refusal(self, wait: float) -> BrokerError:
        if isinstance(self._why, UpstreamRefused):
            return UpstreamRefused(
                "The upstream refuses our credential.", cause="circuit open", retry_after=wait
            )
        return UpstreamUnavailable(
            "The upstream cannot answer now.", cause="circuit open", retry_after=wait
        )
