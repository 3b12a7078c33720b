"""What a store shared by replicas must be able to do, in terms of bytes.

The in-process memories need none of it. Whoever implements this knows a server; whoever uses it
knows that it may be down at any moment, for which there is an answer of its own: neither "yes" nor
"no", and never an outage.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from limits.aio.storage import SlidingWindowCounterSupport


class StoreDown(Exception):
    """The store has been away for seconds: act alone."""


class StoreFailed(StoreDown):
    """One call failed, and the store may be well. A caller that needs to know tries again, until it
    succeeds or the store counts as away; one that does not need to know acts alone."""


class Claim(Enum):
    """The answer to a claim: three, as an error must look neither like a yes nor like a no."""

    ACQUIRED = "acquired"
    HELD = "held"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Kept:
    """What the store has under a name. seconds: for which it will still have it."""

    value: bytes
    seconds: float


@dataclass(frozen=True, slots=True)
class Put:
    """Something to keep. owner: of a claim under the same name, which this releases; "" for none.
    Where another owner has it by now, or has put another value there, this is not put.

    only_new: not put where there is another value already."""

    name: str
    value: bytes
    seconds: float
    owner: str = ""
    only_new: bool = False


class Told(Protocol):
    """The two calls of a store that work while it is withheld from everybody else, because it has
    just come back: so that it can be told again what it may have lost. Both raise for any
    failure."""

    async def get(self, names: Sequence[str]) -> list[Kept | None]: ...

    async def put(self, items: Sequence[Put]) -> list[bool]: ...


Again = Callable[[Told, bool], Awaitable[None]]
"""Tells a store again what it must know: all of it, or what it was told in the last seconds."""


class Store(Protocol):
    """Every call ends within a deadline under a second of running time (see `loop_time`). Names are
    the caller's; values are sealed on the way, with the name as associated data. What does not open
    is not there. "Raises StoreDown" includes StoreFailed."""

    def when_back(self, again: Again) -> None:
        """again: called about every second while the store is well, for what was told just now; and
        for all whenever the store was away, has lost data or is another server, before anybody
        else may use it again."""
        ...

    def missed(self) -> None:
        """It could not be told something on which replicas must agree. Until it has been told all
        again it counts as down, though it may be used."""
        ...

    async def get(self, names: Sequence[str]) -> list[Kept | None]:
        """In the order of `names`, in one round trip. Raises StoreDown."""
        ...

    async def put(self, items: Sequence[Put]) -> list[bool]:
        """All of them, in one round trip; for each, whether it is there now. Raises StoreDown."""
        ...

    async def delete_if(self, name: str, value: bytes) -> None:
        """Forgets what is under a name if it is still `value`. Raises StoreDown."""
        ...

    async def claim(self, name: str, owner: str, seconds: float) -> tuple[Claim, Kept | None]:
        """Claims the making of what will be under a name, for `seconds` from now; ACQUIRED too
        where it is this owner's already. And what is there now. ERROR where the store is away;
        raises StoreFailed where this call failed."""
        ...

    async def extend(self, name: str, owner: str, seconds: float) -> bool:
        """Makes a claim last `seconds` from now. False where it is not this owner's any more: never
        takes it anew. True too where the store is down. Does not raise."""
        ...

    async def release(self, name: str, owner: str) -> None:
        """Gives a claim back, if it is still this owner's. Does not raise."""
        ...

    @property
    def windows(self) -> SlidingWindowCounterSupport:
        """The counters of rate limits; its methods raise StoreDown."""
        ...

    async def close(self) -> None: ...
