"""Whether the shared store works, judged by each operation that it is used for.

Exists because a server that answers reads may refuse every write (it is full, has become a replica,
or our user may not), and a success of one operation must never hide that another one fails. Pure:
knows no server and no clock. Must never call a store away for less than seconds of failure: until
then whoever needs it waits, as acting alone is what breaks promises between replicas.
"""

from __future__ import annotations

from collections.abc import Iterable

AWAY_AFTER_SECONDS = 2.0
"""Running seconds in which an operation has failed and never succeeded. A failover by sentinels or
an operator takes longer; a lost packet, a slow fork or a full accept queue takes less."""
KINDS = {"get": "read", "hit": "count"}
"""What an operation needs of the server; all others write. While one operation is away, all of its
kind are withheld: a claim that can be taken and not given back is worse than none."""


def kind_of(operation: str) -> str:
    return KINDS.get(operation, "write")


class Health:
    """Call `worked` and `failed` as operations end, and `back` after a probe of all of them."""

    def __init__(self) -> None:
        self._failing: dict[str, float] = {}
        self._away: set[str] = set()

    @property
    def is_well(self) -> bool:
        """Has no operation failed since it last succeeded?"""
        return not self._failing and not self._away

    @property
    def away(self) -> list[str]:
        """The kinds of operations that are withheld."""
        return sorted(self._away)

    def is_away(self, operation: str) -> bool:
        return bool(self._away) and kind_of(operation) in self._away

    def worked(self, operation: str) -> None:
        """Without effect on what is away, which only `back` ends."""
        if self._failing:
            self._failing.pop(operation, None)

    def failed(self, operation: str, now: float) -> bool:
        """now: running seconds. Is its kind away because of this, and was not before?"""
        since = self._failing.setdefault(operation, now)
        kind = kind_of(operation)
        if now - since < AWAY_AFTER_SECONDS or kind in self._away:
            return False
        self._away.add(kind)
        return True

    def withhold(self, kinds: Iterable[str]) -> None:
        """What had come back is away again."""
        self._away.update(kinds)

    def back(self) -> None:
        """Every operation has just succeeded."""
        self._failing.clear()
        self._away.clear()
