"""What came of one phase of load, as figures: rates, percentiles, and when all was well again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.overload.books import HELD, Asked, Kind, Outcome

WELL_SECONDS = 0.5
"""A right answer within this is a good one, to somebody who waits for a page."""
_SLOT, _RUN = 0.25, 8
"""Well again is: nothing but good answers in a row of this many slots of so many seconds."""


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """By nearest rank: a value that was there. ordered: ascending."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def well_again(marks: Iterable[tuple[float, bool]], seconds: float) -> float | None:
    """Seconds from the start until nothing but good answers came, for a while at least; None where
    that did not happen. marks: when each request was due, and whether its answer was good."""
    count = int(seconds / _SLOT)
    good, asked = [True] * count, [False] * count
    for due, is_good in marks:
        slot = min(count - 1, int(due / _SLOT))
        asked[slot] = True
        good[slot] &= is_good
    both = [one and other for one, other in zip(good, asked, strict=True)]
    for first in range(count - _RUN + 1):
        if all(both[first : first + _RUN]):
            return first * _SLOT
    return None


def spread(latencies: list[float]) -> dict[str, float | None]:
    ordered = sorted(latencies)
    told = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "slowest": 1.0}
    return {name: percentile(ordered, share) for name, share in told.items()}


@dataclass(slots=True)
class Tally:
    """One phase while it goes on. rate: requests a second, 0 for a closed loop.

    Goodput counts what arrived within the phase, whenever it was due: what is answered in the
    silence afterwards is no throughput. Everything else is told of the requests that were due in
    the phase, whenever they were answered.
    """

    rate: float
    seconds: float
    began: float = 0.0
    arrived: int = 0
    sent: Counter[Kind] = field(default_factory=Counter)
    outcomes: dict[Kind, Counter[Outcome]] = field(
        default_factory=lambda: {kind: Counter() for kind in Kind}
    )
    right: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    marks: list[tuple[float, bool]] = field(default_factory=list)
    behind: list[float] = field(default_factory=list)
    """How much later than due the generator came to each request."""

    def holds(self, now: float) -> bool:
        return self.began <= now < self.began + self.seconds

    def came(self, asked: Asked, outcome: Outcome, took: float) -> None:
        self.outcomes[asked.kind][outcome] += 1
        good = False
        if outcome is Outcome.RIGHT:
            self.right.append(took)
            good = took <= WELL_SECONDS
        elif outcome is Outcome.REFUSED:
            self.refused.append(took)
        self.marks.append((asked.due - self.began, good))

    def figures(self) -> dict[str, Any]:
        sent = self.sent.total()
        of = {outcome: sum(one[outcome] for one in self.outcomes.values()) for outcome in Outcome}
        return {
            "rate": self.rate,
            "seconds": self.seconds,
            "sent": sent,
            "goodput": self.arrived / self.seconds,
            "good_in_time": sum(good for _, good in self.marks) / self.seconds,
            **{outcome.value: count for outcome, count in of.items()},
            "refused_share": of[Outcome.REFUSED] / sent if sent else 0.0,
            "answered": spread(self.right),
            "refusals": spread(self.refused),
            "share_held": self._share(HELD),
            "share_first": self._share(frozenset(Kind) - HELD),
            "well_again": well_again(self.marks, self.seconds),
            "behind": spread(self.behind),
            "kinds": {
                kind.value: {"sent": self.sent[kind]}
                | {outcome.value: count for outcome, count in self.outcomes[kind].items()}
                for kind in Kind
            },
        }

    def _share(self, kinds: frozenset[Kind]) -> float | None:
        """Of the requests of these kinds, how many were answered right?"""
        sent = sum(self.sent[kind] for kind in kinds)
        right = sum(self.outcomes[kind][Outcome.RIGHT] for kind in kinds)
        return right / sent if sent else None
