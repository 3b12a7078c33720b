"""What several test rooms need: a clock that stands still, and upstreams that are ASGI apps."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2

from broker.errors import UpstreamNonsense
from broker.limits import _ClockStorage
from broker.state.store import Again, Claim, Kept, Put, StoreDown, StoreFailed
from broker.upstreams.transport import BODY_LIMIT, Answer


class VirtualClock:
    """Time that passes only when told to; the wall clock can be stepped apart from it."""

    def __init__(self, start: datetime = datetime(2026, 11, 20, 12, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed = 0.0
        self._skew = timedelta(0)
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed) + self._skew

    def monotonic(self) -> float:
        return 1000.0 + self._elapsed

    def step(self, seconds: float) -> None:
        """Sets the wall clock forward or back; no time passes."""
        self._skew += timedelta(seconds=seconds)

    def pass_(self, seconds: float) -> None:
        """Lets time pass without waking anybody (for code that does not wait)."""
        self._elapsed += seconds

    async def advance(self, seconds: float) -> None:
        """Lets time pass, waking sleepers in their order."""
        until = self._elapsed + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= until:
            at, _, sleeper = heapq.heappop(self._sleepers)
            self._elapsed = max(self._elapsed, at)
            if not sleeper.done():
                sleeper.set_result(None)
            await settle()
        self._elapsed = until
        await settle()

    async def sleep(self, seconds: float) -> None:
        self._count += 1
        sleeper = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + max(0.0, seconds), self._count, sleeper))
        await sleeper


async def settle(rounds: int = 20) -> None:
    """Lets every task that can run do so."""
    for _ in range(rounds):
        await asyncio.sleep(0)


class AppTransport:
    """A `Transport` whose other end is an ASGI app in this process, or a function of the request.

    Counts its calls. `before` runs ahead of each and may raise or wait.
    """

    def __init__(
        self,
        app: Callable[..., object] | None = None,
        handler: Callable[[httpx2.Request], httpx2.Response] | None = None,
    ) -> None:
        transport: httpx2.AsyncBaseTransport
        if handler is not None:
            transport = httpx2.MockTransport(handler)
        else:
            assert app is not None
            transport = httpx2.ASGITransport(app=app)  # type: ignore[arg-type]
        self._client = httpx2.AsyncClient(transport=transport)
        self.calls: list[tuple[str, str]] = []
        self.before: Callable[[], object] | None = None

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        timeout: float,
        limit: int = BODY_LIMIT,
    ) -> Answer:
        self.calls.append((method, url))
        if self.before is not None:
            waiting = self.before()
            if asyncio.iscoroutine(waiting):
                await waiting
        answer = await self._client.request(method, url, headers=dict(headers), content=body)
        if len(answer.content) > limit:
            raise UpstreamNonsense("The upstream's answer is too large.")
        return Answer(
            answer.status_code, {k.lower(): v for k, v in answer.headers.items()}, answer.content
        )

    async def close(self) -> None:
        await self._client.aclose()


class DictStore:
    """A `Store` in this process, on a virtual clock: for replicas that are apps of one test. The
    real one is judged in test_store."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.down = False
        self.failing = False
        """Calls fail, and the store does not count as away yet."""
        self.told: list[Again] = []
        self.has_missed = False
        self.kept: dict[str, tuple[bytes, float]] = {}
        self.claims: dict[str, tuple[str, float]] = {}
        self.trips = 0
        self._windows = _Windows(self)

    def _look(self, name: str) -> Kept | None:
        value, until = self.kept.get(name, (b"", 0.0))
        left = until - self._clock.monotonic()
        return Kept(value, left) if left > 0 else None

    async def _trip(self) -> None:
        self.trips += 1
        await asyncio.sleep(0)
        if self.down:
            raise StoreDown
        if self.failing:
            raise StoreFailed

    def when_back(self, again: Again) -> None:
        self.told.append(again)

    def missed(self) -> None:
        self.has_missed = True

    async def back(self, *, everything: bool = True) -> None:
        """The store is well again, and replicas tell it what it must know."""
        self.down = self.failing = False
        for again in self.told:
            await again(self, everything)

    async def get(self, names: Sequence[str]) -> list[Kept | None]:
        await self._trip()
        return [self._look(name) for name in names]

    def _holder(self, name: str) -> str:
        owner, until = self.claims.get(name, ("", 0.0))
        return owner if until > self._clock.monotonic() else ""

    async def put(self, items: Sequence[Put]) -> list[bool]:
        await self._trip()
        return [self._put(item) for item in items]

    def _put(self, item: Put) -> bool:
        mine = bool(item.owner) and self._holder(item.name) == item.owner
        others = self._holder(item.name) or self._look(item.name)
        there = self._look(item.name)
        same = there is not None and there.value == item.value
        if ((item.owner and not mine and others) or (item.only_new and there)) and not same:
            return False
        self.kept[item.name] = (item.value, self._clock.monotonic() + item.seconds)
        if mine:
            del self.claims[item.name]
        return True

    async def delete_if(self, name: str, value: bytes) -> None:
        await self._trip()
        if self.kept.get(name, (b"",))[0] == value:
            del self.kept[name]

    async def claim(self, name: str, owner: str, seconds: float) -> tuple[Claim, Kept | None]:
        try:
            await self._trip()
        except StoreFailed:
            raise
        except StoreDown:
            return Claim.ERROR, None
        if self._holder(name) not in ("", owner):
            return Claim.HELD, self._look(name)
        self.claims[name] = (owner, self._clock.monotonic() + seconds)
        return Claim.ACQUIRED, self._look(name)

    async def extend(self, name: str, owner: str, seconds: float) -> bool:
        try:
            await self._trip()
        except StoreDown:
            return True
        if self._holder(name) != owner:
            return False
        self.claims[name] = (owner, self._clock.monotonic() + seconds)
        return True

    async def release(self, name: str, owner: str) -> None:
        if not self.down and self.claims.get(name, ("",))[0] == owner:
            del self.claims[name]

    @property
    def windows(self) -> Any:
        return self._windows

    async def close(self) -> None: ...


class _Windows(_ClockStorage):
    """The counters of a DictStore: one set, as long as the store is up."""

    def __init__(self, store: DictStore) -> None:
        super().__init__(store._clock)
        self._store = store

    async def acquire_sliding_window_entry(self, *args: Any, **options: Any) -> bool:
        await self._store._trip()
        return await super().acquire_sliding_window_entry(*args, **options)

    async def get_sliding_window(self, *args: Any, **options: Any) -> tuple[int, float, int, float]:
        await self._store._trip()
        return await super().get_sliding_window(*args, **options)
