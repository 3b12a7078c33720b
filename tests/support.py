"""What several test rooms need: a clock that stands still, and upstreams that are ASGI apps."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

import httpx2

from broker.errors import UpstreamNonsense
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
