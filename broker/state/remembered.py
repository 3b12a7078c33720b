"""A bounded memory of this process, whose every item has its own lifetime.

cachetools' TLRUCache on the clock that cannot be set. A full one forgets the item that was used
longest ago: a forgotten successor or answer costs one more mint, a forgotten end lets a chain of an
hour ago rotate, to its own caller, until its handle expires.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from cachetools import TLRUCache

from broker.schedule import Clock

V = TypeVar("V")
MOST_ITEMS = 200_000
"""Of small things (names of handles and chains), at about 300 bytes: 60 MB."""


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

    def look(self, key: str) -> tuple[V | None, float]:
        """A value and the seconds for which it will still be remembered."""
        item = self._items.get(key)
        return (None, 0.0) if item is None else (item.value, item.until - self._clock.monotonic())

    def put(self, key: str, value: V, seconds: float, size: int = 1) -> None:
        """Remembers `value` for `seconds`; not at all for nought or less, or if it is too large."""
        if seconds > 0 and size <= self._most:
            self._items[key] = _Item(value, self._clock.monotonic() + seconds, size)

    def drop(self, key: str) -> None:
        self._items.pop(key, None)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._items))

    def __len__(self) -> int:
        return len(self._items)
