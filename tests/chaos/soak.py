"""The soak: 100 000 distinct callers, one after the other, and what that costs in memory."""

from __future__ import annotations

import asyncio
import statistics
import time

from tests.chaos.kinds import SOAK
from tests.chaos.sharing import store
from tests.chaos.stage import Row, Stage

CALLERS = 100_000
MOST_RATE = 220.0
"""Mints in a second that this machine's two cores, shared with callers and upstream, stand."""
MOST_GROWTH = 0.03
"""Of the last third's mean over the middle third's; the first third is warm-up."""


async def _soak(stage: Stage) -> None:
    seconds = stage.long(stage.soak_seconds, 8)
    # The short form has two other worlds beside it, and proves little in so few seconds anyway.
    rate = 100.0 if stage.short else min(MOST_RATE, CALLERS / seconds)
    stage.load.mix = {"stranger": 1}
    stage.load.verify = 0.02
    process, samples, files = stage.world.brokers[0].up, [], []
    async with store(stage) as redis:
        await redis.config_set("maxmemory", "1gb")
    async with stage.load.running(rate):
        last = time.monotonic() + seconds
        while time.monotonic() < last:
            await asyncio.sleep(min(1.0, seconds / 60))
            samples.append(process.rss())
            files.append(process.descriptors())
    third = len(samples) // 3
    first, middle, end = (
        statistics.mean(part)
        for part in (samples[:third], samples[third : 2 * third], samples[-third:])
    )
    growth = end / middle - 1
    stage.note(
        f"{stage.load.strangers} distinct callers in {seconds:.0f} s; RSS {samples[0]:.1f} MB at "
        f"first, {first:.1f} → {middle:.1f} → {end:.1f} MB by thirds ({growth:+.1%}), "
        f"{max(samples):.1f} MB at most; {max(files)} descriptors at most"
    )
    # A short soak is all warm-up: then only that it does not run away.
    most = MOST_GROWTH if seconds >= 300 else 0.25
    stage.must(growth <= most, f"memory grew by {growth:.1%} from the middle third to the last")


ROWS = [
    Row("soak", "100 000 distinct callers, one after the other",
        "no failed request, memory flat after warm-up", SOAK, _soak),
]  # fmt: skip
