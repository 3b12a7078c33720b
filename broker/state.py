"""What must be remembered between requests: successors, ended chains, idempotent answers.

In this process, in bounded caches whose every item has its own lifetime (cachetools TLRUCache on
the clock that cannot be set). A full cache forgets the item that was used longest ago: a forgotten
successor or answer costs one more mint, a forgotten end lets a chain of an hour ago rotate, to its
own caller, until its handle expires. A store shared by replicas takes this room's place later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cachetools import TLRUCache

from broker.schedule import Clock

V = TypeVar("V")
MOST = 100_000
"""Items of a kind. About 1 KiB each, so 100 MiB at the very most; a burst of 30 mints a second
for an hour fits."""


@dataclass(frozen=True, slots=True)
class _Item(Generic[V]):
    value: V
    until: float


class Remembered(Generic[V]):
    """A bounded memory from text to value, each for its own time."""

    def __init__(self, clock: Clock, most: int = MOST) -> None:
        self._clock = clock
        self._items: TLRUCache[str, _Item[V]] = TLRUCache(
            maxsize=most, ttu=lambda _key, item, _now: item.until, timer=clock.monotonic
        )

    def get(self, key: str) -> V | None:
        item = self._items.get(key)
        return None if item is None else item.value

    def put(self, key: str, value: V, seconds: float) -> None:
        """Remembers `value` for `seconds`; not at all where that is nought or less."""
        if seconds > 0:
            self._items[key] = _Item(value, self._clock.monotonic() + seconds)

    def __len__(self) -> int:
        return len(self._items)


@dataclass(frozen=True, slots=True)
class Answered(Generic[V]):
    """An answer given under an Idempotency-Key, and the digest of the body that asked for it."""

    body: str
    answer: V


class State:
    """The three memories of one app. They outlive a snapshot: a reload forgets nothing."""

    def __init__(self, clock: Clock) -> None:
        self.successors: Remembered[Any] = Remembered(clock)
        """By handle id: the successor, kept for the grace window."""
        self.spent: Remembered[bool] = Remembered(clock)
        """Handle ids that have a successor, until they would have died anyway."""
        self.ended: Remembered[bool] = Remembered(clock)
        """Chain ids, until the chain's own end."""
        self.answers: Remembered[Answered[Any]] = Remembered(clock)
        """By digest of caller, profile and key."""
