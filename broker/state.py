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
MOST_ITEMS = 200_000
"""Of small things (names of handles and chains), at about 300 bytes: 60 MB."""
MOST_BYTES = 64 << 20
"""Of sessions with their handles and outputs, each of the two kinds, by the estimate of `put`."""


@dataclass(frozen=True, slots=True)
class _Item(Generic[V]):
    value: V
    until: float
    size: int


class Remembered(Generic[V]):
    """A bounded memory from text to value, each for its own time."""

    def __init__(self, clock: Clock, most: int = MOST_ITEMS) -> None:
        """most: the sum of sizes that are kept."""
        self._clock = clock
        self._most = most
        self._items: TLRUCache[str, _Item[V]] = TLRUCache(
            maxsize=most,
            ttu=lambda _key, item, _now: item.until,
            timer=clock.monotonic,
            getsizeof=lambda item: item.size,
        )

    def get(self, key: str) -> V | None:
        item = self._items.get(key)
        return None if item is None else item.value

    def put(self, key: str, value: V, seconds: float, size: int = 1) -> None:
        """Remembers `value` for `seconds`; not at all for nought or less, or if it is too large."""
        if seconds > 0 and size <= self._most:
            self._items[key] = _Item(value, self._clock.monotonic() + seconds, size)

    def __len__(self) -> int:
        return len(self._items)


@dataclass(frozen=True, slots=True)
class Answered(Generic[V]):
    """An answer given under an Idempotency-Key, and the digest of the body that asked for it."""

    body: str
    answer: V


class State:
    """The memories of one app."""

    def __init__(self, clock: Clock) -> None:
        self.successors: Remembered[Any] = Remembered(clock, MOST_BYTES)
        """By handle id: the successor, kept for the grace window."""
        self.spent: Remembered[bool] = Remembered(clock)
        """Handle ids that have a successor, until they would have died anyway."""
        self.ended: Remembered[bool] = Remembered(clock)
        """Chain ids, until the chain's own end."""
        self.newest: Remembered[str] = Remembered(clock)
        """By chain id: the upstream's name of its newest session, where it can be revoked."""
        self.answers: Remembered[Answered[Any]] = Remembered(clock, MOST_BYTES)
        """By digest of caller, profile and key."""
        self.expected: Remembered[tuple[str, str]] = Remembered(clock)
        """By upstream and its name of a session: profile and chain, where callbacks may come."""
        self.results: Remembered[Any] = Remembered(clock, MOST_BYTES)
        """By upstream and its name of a session: how it ended."""
        self.events: Remembered[bool] = Remembered(clock)
        """By profile and the upstream's name of a signed event: that it was dealt with."""
