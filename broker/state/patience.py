"""Waiting for a store that may be well, before anybody acts without it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from broker.errors import Overloaded
from broker.schedule import Clock
from broker.state.store import StoreFailed

T = TypeVar("T")
MOST_SECONDS = 4.0
"""Of waiting in one call: a store counts as away after 2 s, and settles for 2 s when it is back."""
OF_BUDGET = 0.5
"""Of a request's time at the most: the rest is for what the request is about."""
_PAUSES = (0.05, 0.2)
"""Seconds between two tries, drawn between."""


class Patience:
    """How long whoever holds a session, or repeats a request, waits for the store."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.seconds = MOST_SECONDS

    def fit(self, budget: float) -> None:
        """budget: seconds that one request may take."""
        self.seconds = min(MOST_SECONDS, budget * OF_BUDGET)

    async def insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Makes the call until it succeeds. Raises StoreDown where the store is away, and
        Overloaded where nothing is certain by the end."""
        until = self._clock.monotonic() + self.seconds
        while True:
            try:
                return await call()
            except StoreFailed:
                if self._clock.monotonic() >= until:
                    raise Overloaded(
                        "What replicas share cannot be told now.",
                        cause="store uncertain",
                        retry_after=1.0 + random.random(),  # noqa: S311  (jitter)
                    ) from None
            await self._clock.sleep(random.uniform(*_PAUSES))  # noqa: S311  (jitter)
