"""Rows about brokers that are short of processor time, or asked for more than they can do.

Store and upstreams are well all the time. So a broker may put callers off, and may say nothing
wrong of anybody: time in which it stood still itself is no sign of a store or an upstream.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence

import aiohttp

from tests.chaos import config
from tests.chaos.judge import ASKED, BUSY
from tests.chaos.kinds import STARVED
from tests.chaos.process import Process, busy_neighbours
from tests.chaos.stage import Row, Stage
from tests.chaos.world import Broker, needed

PUT_OFF = dict.fromkeys(ASKED, BUSY)
LATE = config.BUDGET + 3.0
"""Seconds that an answer may take here: callers wait for the processor like everybody else."""
TENTH = 10
"""Of one processor, in percent: what a broker gets."""
WANTED = 0.3
"""Of one processor: what a replica would need for all that it is asked. With a tenth it can still
refuse what it cannot do; to ask for ten times as much would leave no time to refuse it either."""
WANTED_OF_SLICES = 0.2
"""The same where a slice of 10 ms comes to 7 % of a processor, as signals take their time."""
SLICES = (
    "import os, signal, sys, time\n"
    "pid, stopped, running = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])\n"
    "while True:\n"
    "    os.kill(pid, signal.SIGSTOP); time.sleep(stopped)\n"
    "    os.kill(pid, signal.SIGCONT); time.sleep(running)\n"
)
"""In a process of its own, so that it keeps time while the suite is busy."""


async def _tenth(stage: Stage) -> None:
    program = needed("cpulimit")
    limits = [
        [program, "-q", "-z", "-l", str(TENTH), "-p", str(broker.up.pid)]
        for broker in stage.world.brokers
    ]
    load = _load(stage, await _rate(stage, WANTED))
    async with _watched(stage), load, _beside(stage, "cpulimit", limits):
        await stage.hold(17, 3)


async def _slices(stage: Stage) -> None:
    """Short slices, then long ones; each replica in a rhythm of its own."""
    async with _watched(stage), _load(stage, await _rate(stage, WANTED_OF_SLICES)):
        for stopped, running in ((0.09, 0.01), (0.8, 0.2)):
            commands = [
                [sys.executable, "-c", SLICES, str(broker.up.pid), str(stopped), str(running)]
                for broker in stage.world.brokers
            ]
            async with _beside(stage, "slices", commands):
                await stage.hold(10, 2)


async def _neighbours(stage: Stage) -> None:
    load = _load(stage, await _rate(stage, WANTED))
    async with _watched(stage), load, busy_neighbours(4, stage.world.directory):
        await stage.hold(17, 3)


async def _overload(stage: Stage) -> None:
    """Half as much again as the replicas could do with a processor each; here they share two with
    callers, upstream and store."""
    rate = await _rate(stage, 1.5)
    stage.load.verify, stage.load.most_at_once = 0.02, 4000
    async with _watched(stage), _load(stage, rate):
        await stage.hold(17, 3)
    if not stage.short:  # three seconds of it may be worked off behind
        stage.must(stage.judge.outcomes["overloaded"], "the overload was not felt")


@contextlib.asynccontextmanager
async def _load(stage: Stage, rate: float = 0.0) -> AsyncIterator[None]:
    """Usual load before and after; meanwhile at this rate, and callers may be put off."""
    stage.judge.late = LATE
    more = stage.load.more(max(0.0, rate - stage.rate))
    async with stage.under_load(), stage.fault(recovery=20, **PUT_OFF), more:
        yield


@contextlib.asynccontextmanager
async def _beside(
    stage: Stage, name: str, commands: Sequence[Sequence[str]]
) -> AsyncIterator[None]:
    """Processes that stop the brokers and let them go on; they end here, and the brokers run."""
    started: list[Process] = []
    try:
        for number, command in enumerate(commands):
            started.append(stage.world.start(f"{name}-{number}", command))
            await asyncio.sleep(0.03)  # so that the replicas are not stopped in step
        before = [broker.up.cpu() for broker in stage.world.brokers]
        since = time.monotonic()
        yield
        seconds = time.monotonic() - since
        had = [
            broker.up.cpu() - was for broker, was in zip(stage.world.brokers, before, strict=True)
        ]
        stage.note("had " + ", ".join(f"{cpu / seconds:.0%}" for cpu in had) + " of a processor")
        stage.must(all(one.running for one in started), f"{name} ended by itself")
    finally:
        for one in started:
            await one.kill()
        for broker in stage.world.brokers:
            broker.up.send(signal.SIGCONT)


async def _rate(stage: Stage, share: float) -> float:
    """Operations a second for which each replica would need this share of a processor, so that a
    row is as hard on a fast machine as on a slow one."""
    if not stage.world.operation_cost:
        stage.world.operation_cost = await _cost(stage)
    rate = share / stage.world.operation_cost
    stage.note(f"{rate:.0f} operations a second, which want {share:.0%} of a processor a replica")
    return rate


async def _cost(stage: Stage) -> float:
    """Seconds of processor time that one operation of the load costs each replica, as measured."""
    seconds = stage.long(4, 2)
    async with stage.load.running(stage.rate):
        await asyncio.sleep(0.5)
        before = sum(broker.up.cpu() for broker in stage.world.brokers)
        await asyncio.sleep(seconds)
        used = sum(broker.up.cpu() for broker in stage.world.brokers) - before
    return used / len(stage.world.brokers) / (seconds * stage.rate)


# --- what must hold in all of them ----------------------------------------------------------------


@contextlib.asynccontextmanager
async def _watched(stage: Stage) -> AsyncIterator[None]:
    """No replica says meanwhile, in its metric or its log, that the store is away."""
    before = [broker.up.said().count("store_down") for broker in stage.world.brokers]
    told = [asyncio.create_task(_polled(stage, broker)) for broker in stage.world.brokers]
    own = asyncio.create_task(_own_lag())
    try:
        yield
    finally:
        for task in (*told, own):
            task.cancel()
        lowest = await asyncio.gather(*told)
        slack = await own
    for broker, was, up in zip(stage.world.brokers, before, lowest, strict=True):
        lines = broker.up.said().count("store_down") - was
        stage.must(up == 1, f"broker {broker.index} said that a healthy store is away")
        stage.must(not lines, f"broker {broker.index} logged store_down {lines} times")
    stalled = await stage.metrics("broker_loop_stalled_seconds_total")
    shed = await stage.metrics("broker_requests_shed_total")
    stage.note(
        f"slowest answer {stage.judge.slowest:.1f} s, slowest refusal "
        f"{stage.judge.slowest_refusal:.1f} s; shed {shed:.0f}, loops stood still for "
        f"{stalled:.1f} s; the callers' own lag {slack:.2f} s at most"
    )


async def _polled(stage: Stage, broker: Broker) -> float:
    """The lowest `broker_store_up` that was seen, until cancelled."""
    lowest = 1.0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                lowest = min(lowest, await stage.metric(broker, "broker_store_up"))
            await asyncio.sleep(0.5)
    return lowest


async def _own_lag() -> float:
    """The most that this process was late itself, until cancelled."""
    most = 0.0
    with contextlib.suppress(asyncio.CancelledError):
        for _ in itertools.count():
            before = time.monotonic()
            await asyncio.sleep(0.05)
            most = max(most, time.monotonic() - before - 0.05)
    return most


HOLDS = (
    "503 overloaded with Retry-After, or what was asked for; no other error, nothing wrong, and "
    "nobody says that the store is away"
)
ROWS = [
    Row("starved-tenth", "each replica gets a tenth of a processor (cpulimit) and would like three",
        HOLDS, STARVED, _tenth, alone=True),
    Row("starved-slices", "each replica stands still (SIGSTOP) for 90 ms of every 100, then for 0.8 s "
        "of every second", HOLDS, STARVED, _slices, alone=True),
    Row("busy-neighbours", "four busy processes beside everything", HOLDS, STARVED, _neighbours, alone=True),
    Row("overload", "half as many operations again as two replicas can do at the very best",
        HOLDS, STARVED, _overload, alone=True),
]  # fmt: skip
