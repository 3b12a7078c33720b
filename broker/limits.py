"""Rate limits: how often one caller may make us call an upstream, and how often we call one.

Strategy, notation and arithmetic are the `limits` library's (sliding window counter). Its own
in-process storage is not used: it walks every key at each hit, in threads, and keeps time by the
wall clock, so that a step of it would open or shut the gate. Ours is its storage interface over a
bounded cachetools cache, on the clock that cannot be set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from dataclasses import dataclass
from typing import cast

from cachetools import LRUCache
from limits import RateLimitItem
from limits.aio.storage import SlidingWindowCounterSupport, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from broker.errors import RateLimited
from broker.schedule import Clock
from broker.state.store import Store, StoreDown

MOST_KEYS = 100_000


@dataclass(slots=True)
class _Window:
    began: float
    current: int = 0
    previous: int = 0

    def roll(self, now: float, length: float) -> None:
        """Moves on to the window that `now` is in."""
        passed = int((now - self.began) // length)
        if passed >= 1:
            self.previous = self.current if passed == 1 else 0
            self.current = 0
            self.began += passed * length


class _ClockStorage(Storage, SlidingWindowCounterSupport):
    """Counters of this process; never waits, so that a hit and its count are one step."""

    STORAGE_SCHEME = None

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._windows: LRUCache[str, _Window] = LRUCache(MOST_KEYS)

    def _window(self, key: str, length: float) -> _Window:
        now = self._clock.monotonic()
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = _Window(now)
        window.roll(now, length)
        return window

    async def acquire_sliding_window_entry(
        self, key: str, limit: int, expiry: int, amount: int = 1
    ) -> bool:
        window = self._window(key, expiry)
        left = 1 - (self._clock.monotonic() - window.began) / expiry
        if math.floor(window.previous * left) + window.current + amount > limit:
            return False
        window.current += amount
        return True

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        window = self._window(key, expiry)
        left = expiry - (self._clock.monotonic() - window.began)
        return window.previous, left, window.current, left + expiry

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        self._windows.pop(key, None)

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        raise NotImplementedError("only sliding windows are kept")

    async def get(self, key: str) -> int:
        raise NotImplementedError("only sliding windows are kept")

    async def get_expiry(self, key: str) -> float:
        raise NotImplementedError("only sliding windows are kept")

    async def check(self) -> bool:
        return True

    async def reset(self) -> int | None:
        self._windows.clear()
        return None

    async def clear(self, key: str) -> None:
        self._windows.pop(key, None)


class RateLimits:
    """One limiter for all profiles; a caller's count in one is not its count in another.

    Counted in the store that replicas share, where there is one; while that is down, each replica
    counts alone, so that N of them let N times as much through."""

    def __init__(self, clock: Clock, store: Store | None = None) -> None:
        self._storage = _ClockStorage(clock)
        self._alone = SlidingWindowCounterRateLimiter(self._storage)
        self._together: SlidingWindowCounterRateLimiter | None = None
        if store is not None:
            windows = cast("Storage", store.windows)  # the library asks for both, and uses one
            self._together = SlidingWindowCounterRateLimiter(windows)

    async def hit(self, item: RateLimitItem, *who: str, policy_name: str = "mint") -> None:
        """Counts one. Raises RateLimited with when to come again."""
        wait = await self._count(item, _key(who), 1.0)
        if wait > 0:
            raise RateLimited(
                "Too many requests from this caller for this profile.",
                retry_after=wait,
                policy=f'"{policy_name}";q={item.amount};w={item.get_expiry()}',
            )

    async def room(self, item: RateLimitItem, *who: str, share: float = 1.0) -> float:
        """Counts one of a budget and gives 0.0, if less than `share` of it is used; else counts
        nothing and gives the seconds after which to ask again, which are more than nought.

        Who asks with a smaller share leaves the rest to whoever comes first. Looking and counting
        are two steps: of those that ask at one moment a few may go over their share, none over the
        whole."""
        return await self._count(item, _key(who), share)

    async def _count(self, item: RateLimitItem, key: str, share: float) -> float:
        if self._together is not None:
            with contextlib.suppress(StoreDown):
                return await _counted(self._together, item, key, share)
        return await _counted(self._alone, item, key, share)


async def _counted(
    limiter: SlidingWindowCounterRateLimiter, item: RateLimitItem, key: str, share: float
) -> float:
    """0.0 if it was counted, else seconds to wait. Raises StoreDown."""
    if share < 1:
        wait = await _seen(limiter, item, key, item.amount * share)
        if wait > 0:
            return wait
    if await limiter.hit(item, key):
        return 0.0
    return max(0.001, await _seen(limiter, item, key, item.amount))


async def _seen(
    limiter: SlidingWindowCounterRateLimiter, item: RateLimitItem, key: str, limit: float
) -> float:
    """Seconds until less than `limit` is used, 0.0 if so now."""
    window = item.get_expiry()
    windows = cast("SlidingWindowCounterSupport", limiter.storage)
    previous, _, current, ends = await windows.get_sliding_window(item.key_for(key), window)
    left = max(0.0, ends - window)
    if previous * left / window + current < limit:
        return 0.0
    return _wait(limit, window, previous, current, left)


def _key(who: tuple[str, ...]) -> str:
    """One text for all of them, of one length. The library joins them with "/", which would let
    ("a/b", "c") share a count with ("a", "b/c"), and a subject is as long as its issuer likes."""
    return hashlib.sha256(json.dumps(who).encode()).hexdigest()


def _wait(limit: float, window: float, previous: int, current: int, left: float) -> float:
    """Seconds until one more fits: as the window before this one, or this one, slides out."""
    if current < limit and previous:
        return max(0.0, left - window * (limit - current) / previous) + 0.001
    if current == 0:
        return left
    return left + max(0.0, window * (1 - limit / current)) + 0.001
