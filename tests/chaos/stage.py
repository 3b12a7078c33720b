"""What a row acts on: a world with load, the words to break it with, and what can be read of it.

A row raises nothing for what does not hold: it says so with `must`, so that all of it is told. The
stage checks, at the end of every row, what no row may forgive.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.chaos.judge import UPSTREAM_DOWN, Judge
from tests.chaos.load import Load
from tests.chaos.process import until
from tests.chaos.world import Broker, Kind, World

CALM = 1.0
"""Seconds without any error that are taken for recovered."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. done, holds: sentences for the report. alone: it takes the processor
    from whatever runs beside it, and so is run when all other rows have ended."""

    name: str
    done: str
    holds: str
    kind: Kind
    run: Callable[[Stage], Awaitable[None]]
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Form:
    """How a run is done: the short form or the long one, operations a second, worlds at once."""

    short: bool
    rate: float
    lanes: int = 1
    soak_seconds: float = 600.0
    is_starved: bool = False
    """Busy processes run beside all of it: then any request may be put off."""


@dataclass
class Told:
    """How a row went."""

    row: Row
    judge: Judge
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    token_requests: str = ""
    not_here: str = ""
    """Why it could not be tried on this machine."""

    @property
    def held(self) -> bool:
        return not self.failures and not self.not_here


class Stage:
    """One row being run."""

    def __init__(self, told: Told, world: World, http: aiohttp.ClientSession, form: Form) -> None:
        self.told = told
        self.world = world
        self.http = http
        self.short = form.short
        self.rate = form.rate
        self.soak_seconds = form.soak_seconds
        self.judge = told.judge
        self.judge.is_starved = form.is_starved
        self.load = Load(http, world.sandbox, [b.url for b in world.brokers], self.judge)

    # --- time ---------------------------------------------------------------------------------

    def long(self, seconds: float, short: float) -> float:
        """The one in the long form, the other in the short."""
        return short if self.short else seconds

    async def hold(self, seconds: float = 6.0, short: float = 1.0) -> None:
        """Lets what is the case go on."""
        await asyncio.sleep(self.long(seconds, short))

    @contextlib.asynccontextmanager
    async def under_load(self) -> AsyncIterator[None]:
        """Load before, during and after; before it must be calm, and at the end too."""
        async with self.load.running(self.rate):
            await self.calm("before the fault", 10)
            yield
            await self.hold(3, 0.5)
            await self.calm("at the end", 10)

    @contextlib.asynccontextmanager
    async def fault(
        self, recovery: float = 15, **allowed: frozenset[str] | set[str]
    ) -> AsyncIterator[None]:
        """Meanwhile, and until calm again, these problems may be. recovery: the longest that may
        take once the fault is gone, in seconds."""
        with self.judge.allowing(**allowed):
            yield
            await self.load.settled()  # what hung in the fault may yet open a circuit
            await self.calm("after the fault", recovery, told=bool(allowed))

    async def calm(self, when: str, deadline: float, *, told: bool = False) -> None:
        """told: says in the report how long it took."""
        started = time.monotonic()
        try:
            await until(lambda: self.judge.calm_for(CALM), "calm", deadline + CALM)
        except TimeoutError:
            self.fail(f"{when}: still errors after {deadline:.0f} s")
        if told:
            took = max(0.0, time.monotonic() - started - CALM)
            self.note(f"calm {took:.1f} s {when}")

    # --- words of the report --------------------------------------------------------------------

    def note(self, text: str) -> None:
        self.told.notes.append(text)

    def fail(self, text: str) -> None:
        self.told.failures.append(text)

    def must(self, holds: object, text: str) -> None:
        if not holds:
            self.fail(text)

    async def must_become(
        self, said: Callable[[], Awaitable[Any]], text: str, deadline: float = 15
    ) -> None:
        """Polls `said`, an async function, until it is true."""
        last = time.monotonic() + deadline
        while not await said():
            if time.monotonic() > last:
                return self.fail(f"{text}: not within {deadline:.0f} s")
            await asyncio.sleep(0.05)
        return None

    # --- the upstreams ------------------------------------------------------------------------

    async def order(self, path: str, body: Any = None) -> None:
        async with self.http.post(f"{self.world.sandbox}/_sandbox/{path}", json=body) as answer:
            assert answer.status < 300, await answer.text()

    @contextlib.asynccontextmanager
    async def upstream(self, *operations: str, kind: str, **options: Any) -> AsyncIterator[None]:
        """These operations of the sandbox misbehave meanwhile; faults of before go on after."""
        for operation in operations:
            await self.order("faults", {"operation": operation, "kind": kind, **options})
        try:
            yield
        finally:
            await self.well()

    async def well(self) -> None:
        """No faults any more."""
        async with self.http.delete(f"{self.world.sandbox}/_sandbox/faults") as answer:
            assert answer.status == 204

    async def calls(self, operation: str) -> int:
        async with self.http.get(f"{self.world.sandbox}/_sandbox/calls") as answer:
            return int((await answer.json())[operation])

    @contextlib.asynccontextmanager
    async def nothing_lost(self) -> AsyncIterator[None]:
        """Every session that the upstream made meanwhile came to somebody, and none is made twice
        for one wish. Only where nothing fails."""
        before = await self.calls("nmi.session")
        self.judge.nmi_tokens.clear()
        yield
        asked, seen = await self.calls("nmi.session") - before, len(self.judge.nmi_tokens)
        self.note(f"{asked} upstream mints, {seen} tokens handed out")
        self.must(asked == seen, f"{asked} upstream mints for {seen} tokens that were handed out")

    # --- the brokers --------------------------------------------------------------------------

    async def metric(self, broker: Broker, name: str, **labels: str) -> float:
        """The sum of the samples with these labels."""
        async with self.http.get(f"{broker.ops}/metrics") as answer:
            text = await answer.text()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def metrics(self, name: str, **labels: str) -> float:
        """The same over all replicas."""
        each = [await self.metric(one, name, **labels) for one in self.world.brokers]
        return sum(each)

    async def finish(self) -> None:
        """What must be so after every row, whatever it was about."""
        await self.well()
        judge = self.judge
        for reason, count in judge.wrong.most_common():
            self.fail(f"{reason} ({count} times)")
        self.must(judge.requests, "no request was sent")
        if self.load.skipped:
            self.note(f"{self.load.skipped} operations not started, as too many were under way")
        if busy := judge.outcomes["overloaded"]:
            self.note(
                f"{busy} of {judge.requests} answers said 503 overloaded, and when to come again"
            )
        for broker in self.world.brokers:
            if not (broker.process and broker.up.running):
                self.fail(f"broker {broker.index} does not run")
                continue
            below = await self.metric(broker, "broker_tokens_served_below_floor_total")
            self.must(not below, f"broker {broker.index} counts {below:.0f} tokens under the floor")
            said = broker.up.said()
            for sign in ("Traceback", '"event":"defect"', "never awaited", "never retrieved"):
                if sign in said:
                    at = said.index(sign)
                    self.fail(f"broker {broker.index} logged {sign}: {said[at - 200 : at + 800]}")


__all__ = ["CALM", "UPSTREAM_DOWN", "Form", "Row", "Stage", "Told"]
