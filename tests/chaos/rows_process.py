"""Rows about the brokers' own processes: ended, killed, stopped, and where they log to."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from tests.chaos.kinds import DISK, PAIR
from tests.chaos.stage import Row, Stage
from tests.chaos.world import Broker


def slowly(stage: Stage) -> AbstractAsyncContextManager[None]:
    """An upstream that takes its time, so that there always are requests under way."""
    return stage.upstream("nmi.session", kind="latency", seconds=0.4)


async def _terminated(stage: Stage) -> None:
    """A balancer that sends nothing more to who is told to stop: whatever runs is answered."""
    async with stage.nothing_lost(), stage.under_load(), slowly(stage):
        for broker in stage.world.brokers:
            stage.load.targets.remove(broker.url)
            await asyncio.sleep(0.1)  # what was about to be sent there has been
            status = await stage.world.stop(broker)
            stage.must(status == 0, f"exit status {status}")
            await stage.hold(2, 0.3)
            await _back(stage, broker)


async def _killed(stage: Stage) -> None:
    """The callers of the dead one ask the other, under the same key."""
    async with stage.under_load(), slowly(stage):
        for broker in stage.world.brokers:
            stage.judge.excused.add(broker.url)
            stage.load.targets.remove(broker.url)
            await broker.up.kill()
            await stage.hold(4, 1)
            await _back(stage, broker)
            stage.judge.excused.clear()
    stage.note(f"{stage.judge.outcomes['cut']} answers cut, each asked for again")


async def _stopped(stage: Stage) -> None:
    """SIGSTOP; for a second nobody notices, then the balancer leaves it out; then it goes on."""
    seconds = stage.long(30, 3)
    async with stage.under_load():
        broker = stage.world.brokers[0]
        stage.judge.excused.add(broker.url)
        broker.up.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(min(1.0, seconds / 2))
            stage.load.targets.remove(broker.url)
            await asyncio.sleep(seconds - 1)
        finally:
            broker.up.send(signal.SIGCONT)
        await stage.world.ready(broker)
        await stage.load.settled()
        stage.judge.excused.clear()
        stage.load.targets.append(broker.url)
        await stage.hold(5, 1)
    stage.note(f"stopped for {seconds:.0f} s")


async def _back(stage: Stage, broker: Broker) -> None:
    await stage.world.serve()
    stage.load.targets.append(broker.url)
    await stage.hold(2, 0.5)


async def _disk_full(stage: Stage) -> None:
    """Its audit lines go to a disk that fills up, and is made room on again."""
    broker = stage.world.brokers[0]
    disk = stage.world.stdout
    assert disk is not None

    async def lost() -> bool:
        return await stage.metric(broker, "broker_log_lines_lost") > 0

    async with stage.under_load():
        if disk != Path("/dev/full"):
            ballast = disk.with_name("ballast")
            subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=1k", "count=64"],
                           check=False, capture_output=True)  # fmt: skip
        await stage.must_become(lost, "lost lines are counted", 20)
        await stage.hold(8, 1)
        count = await stage.metric(broker, "broker_log_lines_lost")
        stage.note(f"{count:.0f} lines lost, and counted")
        if disk != Path("/dev/full"):
            ballast.unlink()
            with disk.open("r+b") as file:
                file.truncate(0)

            async def written() -> bool:
                return b'"event":"request"' in disk.read_bytes()

            await stage.must_become(written, "lines are written again once there is room")


ROWS = [
    Row("broker-term", "each replica in turn: SIGTERM under load, started again",
        "no failed request, exit status 0", PAIR, _terminated),
    Row("broker-kill", "each replica in turn: SIGKILL under load, started again",
        "who asks again under the same key gets a session; nothing else fails", PAIR, _killed),
    Row("broker-stop", "a replica stands still (SIGSTOP: 30 s, short form 3 s) and goes on",
        "the other serves all; afterwards nothing stale is handed out", PAIR, _stopped),
    Row("disk-full", "standard output is a disk without room", "no failed request, lost lines are "
        "counted, lines come again once there is room", DISK, _disk_full),
]  # fmt: skip
