"""The run itself: find the peak, then offer shares and multiples of it, deployments by turns."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from benchmarks.overload.world import HERE, REST, TESTED, Deployment, Replica
from benchmarks.processes import NotStarted

Progress = Callable[[str], None]
WARM_UP_SECONDS, PEAK_SECONDS = 2.0, 3.0
CONNECTIONS = (16, 32, 64, 128)
"""Of the closed loops that find the peak."""
AFTERWARDS = 0.5
"""Of the peak: what is offered after the highest load, to see how long that is felt."""
DEAD_SECONDS, POLL_SECONDS, READY_SECONDS = 2.0, 0.25, 30.0
_SETTLED_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one run. loads: multiples of the peak. afterwards: seconds that recovery is watched for.
    rate: used instead of a peak that is measured, where it is not 0."""

    loads: tuple[float, ...]
    seconds: float
    pause: float
    afterwards: float
    kill: bool
    rate: float


@dataclass
class Driver:
    """A deployment with its generator."""

    deployment: Deployment
    process: asyncio.subprocess.Process
    peak: dict[str, Any] = field(default_factory=dict)

    @classmethod
    async def started(cls, deployment: Deployment) -> Driver:
        env = {**os.environ, **deployment.env, "PYTHONPATH": str(HERE)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.overload.generator",
            *map(str, deployment.ports),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            limit=1 << 24, cwd=HERE, env=env,
        )  # fmt: skip
        os.sched_setaffinity(process.pid, REST)
        return cls(deployment, process)

    def tell(self, what: str, **told: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(orjson.dumps({"do": what, **told}) + b"\n")

    async def ask(self, what: str, **told: Any) -> dict[str, Any]:
        assert self.process.stdout is not None
        self.tell(what, **told)
        line = await self.process.stdout.readline()
        if not line:
            raise NotStarted(f"the generator of {self.deployment.name} has ended")
        answer: dict[str, Any] = orjson.loads(line)
        return answer

    async def stop(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), 3)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    async def settled(self) -> None:
        """Waits until the replicas have done with what nobody waits for any more."""
        end = time.monotonic() + _SETTLED_SECONDS
        while time.monotonic() < end:
            busy = [
                await asyncio.to_thread(replica.in_flight) for replica in self.deployment.replicas
            ]
            if not any(busy):
                return
            await asyncio.sleep(POLL_SECONDS)


async def until_ready(replica: Replica, seconds: float = READY_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not await asyncio.to_thread(replica.is_ready):
        if time.monotonic() > end:
            raise NotStarted(f"broker {replica.index} is not ready: {replica.said()}")
        await asyncio.sleep(POLL_SECONDS)


async def measured(
    deployments: list[Deployment], settings: Settings, progress: Progress
) -> dict[str, Any]:
    """Peaks, reference and steps, as they go into the JSON."""
    drivers = [await Driver.started(one) for one in deployments]
    try:
        for driver in drivers:
            for replica in driver.deployment.replicas:
                await until_ready(replica)
            driver.peak = await _peak(driver, settings, progress)
        reference = settings.rate or max(driver.peak["goodput"] for driver in drivers)
        steps = []
        for turn, load in enumerate(settings.loads):
            for driver in drivers if turn % 2 else reversed(drivers):
                progress(f"{driver.deployment.name}: {load} x {reference:.0f}/s")
                steps.append(await _step(driver, load, reference, settings))
                await driver.settled()
                await asyncio.sleep(settings.pause)
        peaks = {driver.deployment.name: driver.peak for driver in drivers}
        return {"peak": peaks, "reference": reference, "steps": steps}
    finally:
        for driver in drivers:
            await driver.stop()


async def _peak(driver: Driver, settings: Settings, progress: Progress) -> dict[str, Any]:
    """The most that was answered right, in a second, by any number of connections."""
    name = driver.deployment.name
    progress(f"{name}: warm-up")
    await driver.ask("closed", connections=CONNECTIONS[1], seconds=WARM_UP_SECONDS)
    if settings.rate:
        return {"goodput": settings.rate, "given": True}
    tried = []
    for connections in CONNECTIONS:
        progress(f"{name}: peak, {connections} connections")
        use = _Use(driver.deployment)
        watched = asyncio.create_task(use.after(PEAK_SECONDS))
        told = await driver.ask("closed", connections=connections, seconds=PEAK_SECONDS)
        goodput = told["phases"][0]["goodput"]
        tried.append(
            {"connections": connections, "goodput": goodput, "wrong": told["wrong"]}
            | {"refused": told["phases"][0]["refused"], "use": (used := await watched)}
            | {"goodput_per_cpu": _per_cpu(goodput, used)}
        )
        await asyncio.sleep(0.5)
    best = max(tried, key=lambda one: float(one["goodput"]))
    return {**best, "tried": tried}


def _per_cpu(goodput: float, used: dict[str, float]) -> float:
    """Right answers for each second of CPU that the brokers had: whoever else is on the machine
    takes from the goodput, but hardly from this."""
    return goodput / used["brokers"] if used["brokers"] else 0.0


async def _step(
    driver: Driver, load: float, reference: float, settings: Settings
) -> dict[str, Any]:
    phases = [(load * reference, settings.seconds)]
    is_last = load == settings.loads[-1]
    if is_last and settings.afterwards:
        phases.append((AFTERWARDS * reference, settings.afterwards))
    use = _Use(driver.deployment)
    watched = asyncio.create_task(use.after(settings.seconds))
    killed = asyncio.create_task(_killed(driver, settings.seconds)) if settings.kill else None
    told = await driver.ask("open", phases=phases)
    found, used = told["phases"], await watched
    return {
        "deployment": driver.deployment.name,
        "load": load,
        **found[0],
        "goodput_share": found[0]["goodput"] / reference,
        "goodput_per_cpu": _per_cpu(found[0]["goodput"], used),
        "reasons": told["wrong"],
        "lines": told["lines"],
        "use": {**used, "generator": told["cpu_share"][0]},
        "afterwards": found[1] if len(found) > 1 else None,
        "kill": await killed if killed is not None else None,
    }


async def _killed(driver: Driver, seconds: float) -> dict[str, Any]:
    """Kills a replica in the middle of a step, and starts it again into the load.

    The generator sends there again as soon as it says that it is ready, as a balancer would.
    """
    end = time.monotonic() + seconds
    await asyncio.sleep(seconds / 2)
    replica = driver.deployment.replicas[1]
    driver.tell("killing", index=1)
    await asyncio.sleep(0)
    replica.kill()
    await asyncio.sleep(DEAD_SECONDS)
    replica.start()
    began, ready, polls, not_ready = time.monotonic(), 0.0, 0, 0
    while time.monotonic() < end or not ready:
        said = await asyncio.to_thread(replica.is_ready)
        now = time.monotonic()
        if ready:
            polls, not_ready = polls + 1, not_ready + (not said)
        elif said:
            ready = now
            driver.tell("up", index=1)
        elif now - began > READY_SECONDS:
            raise NotStarted(f"the replica that was killed is not ready again: {replica.said()}")
        await asyncio.sleep(POLL_SECONDS)
    return {
        "ready_after": ready - began,
        "ready_within_step": ready < end,
        "later_polls": polls,
        "later_not_ready": not_ready,
    }


class _Use:
    """What was used of the processor from now on: shares of one core."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._before = self._now()

    async def after(self, seconds: float) -> dict[str, float]:
        await asyncio.sleep(seconds)
        now = self._now()
        wall = now["wall"] - self._before["wall"]
        used = {name: (now[name] - self._before[name]) / wall for name in now if name != "wall"}
        used["neighbours"] = max(0.0, used["core_of_brokers"] - used["brokers"])
        return {name: round(share, 3) for name, share in used.items()}

    def _now(self) -> dict[str, float]:
        sandbox, redis = self._deployment.helpers
        return {
            "wall": time.monotonic(),
            "brokers": self._deployment.cpu(),
            "upstream": sandbox.cpu(),
            "redis": redis.cpu(),
            "core_of_brokers": _busy(TESTED),
            "cores_of_the_rest": _busy(REST),
        }


def _busy(wanted: set[int]) -> float:
    """Seconds for which these cores were not idle, whoever used them."""
    total = 0
    with open("/proc/stat") as file:
        for line in file:
            name, *ticks = line.split()
            if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in wanted:
                total += sum(map(int, ticks[:8])) - int(ticks[3]) - int(ticks[4])
    return total / 100
