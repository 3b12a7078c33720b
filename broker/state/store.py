"""What a store shared by replicas must be able to do, in terms of bytes.

The in-process memories need none of it. Whoever implements this knows a server; whoever uses it
knows that it may be down at any moment, for which there is an answer of its own: neither "yes" nor
"no", and never an outage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from limits.aio.storage import SlidingWindowCounterSupport


class StoreDown(Exception):
    """The store did not answer within its deadline, or with an error. Act alone."""


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
    Where another has it by now, or has put something there, this is not put.

    durable: where the store is down, it is told later, when it is back."""

    name: str
    value: bytes
    seconds: float
    owner: str = ""
    durable: bool = False


class Store(Protocol):
    """Every call ends within a deadline under a second. Names are the caller's; values are sealed
    on the way, with the name as associated data. What does not open is not there."""

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
        where it is this owner's already. And what is there now. ERROR where the store is down: this
        does not raise."""
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
