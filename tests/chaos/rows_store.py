"""Rows about the shared store: it makes replicas agree, and nobody may need it in order to mint."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable

from tests.chaos import config
from tests.chaos.judge import BUSY
from tests.chaos.kinds import SLOW, STORE
from tests.chaos.sharing import AT_FIRST, WAITING, Ends, agree, alone, noticed, store
from tests.chaos.stage import Row, Stage

Doing = Callable[[], Awaitable[object]]


async def away(stage: Stage, begin: Doing, lift: Doing, seconds: float = 6) -> None:
    """A fault in which no store takes a write. Chains are ended before it, at its beginning, and
    when it is known; seconds: how long it lasts after that, in the long form."""
    ends = await Ends.made(stage)
    async with alone(stage, ends):
        try:
            await begin()
            await ends.told(4, in_vain=True)
            await noticed(stage)
            await ends.told(4, in_vain=True)
            await stage.hold(seconds, 0.5)
            await ends.here()
        finally:
            await lift()


async def _killed(stage: Stage) -> None:
    assert stage.world.store is not None
    async with stage.under_load():
        await away(stage, stage.world.store.kill, stage.world.start_store, 8)
    slow_by(stage)


async def _paused(stage: Stage) -> None:
    world = stage.world

    async def sent(what: signal.Signals) -> None:
        assert world.store is not None
        world.store.send(what)

    async with stage.under_load():
        await away(stage, lambda: sent(signal.SIGSTOP), lambda: sent(signal.SIGCONT), 15)
    slow_by(stage)


async def _flushed(stage: Stage) -> None:
    """What was ended before is dead after it too, once the replicas have seen what happened."""
    ends = await Ends.made(stage, before=6, during=0)
    async with stage.under_load(), store(stage) as redis:
        for _ in range(5 if not stage.short else 2):
            with stage.judge.allowing(seconds=AT_FIRST, end=BUSY, **WAITING):
                # Before and after: what was begun before must not be expected of after.
                stage.judge.epoch += 1
                await redis.flushall()
                stage.judge.epoch += 1
                await stage.hold(2, 0.7)
                await ends.dead(within=5)
        await agree(stage)


async def _full(stage: Stage) -> None:
    """The store answers, and takes nothing more."""
    async with stage.under_load(), store(stage) as redis:

        async def limited(size: str) -> None:
            await redis.config_set("maxmemory", size)

        await away(stage, lambda: limited("1"), lambda: limited("64mb"), 8)
    slow_by(stage)


async def _slow(stage: Stage) -> None:
    proxy = stage.world.proxy
    async with stage.under_load():
        ends = await Ends.made(stage)
        async with alone(stage, ends):
            proxy.delay = 1.0
            await ends.told(8, in_vain=False)
            await stage.hold(10, 2.5)
            proxy.delay = 0.0
        for _ in range(4 if not stage.short else 1):  # and cut, which is over at once
            async with alone(stage):
                proxy.cut()
                await stage.hold(1, 0.3)
        async with alone(stage):
            proxy.nonsense = True
            proxy.cut()
            await stage.hold(5, 1)
            proxy.nonsense = False
    slow_by(stage)


def slow_by(stage: Stage) -> None:
    """A store that does not answer costs the time in which it is hoped for, and not the request's
    budget."""
    slowest, most = stage.judge.slowest, 0.9 * config.BUDGET
    stage.note(f"slowest answer {slowest:.2f} s")
    stage.must(slowest <= most, f"an answer took {slowest:.2f} s, at most {most:.1f} expected")


HOLDS = (
    "mints go on; whoever needs the store is put off for 3.5 s at most; an end is 503 until the "
    "store knows it; nothing ended rotates afterwards; replicas agree again by themselves"
)
FORGETS = "no failed mint; what was ended before stays ended; replicas agree again by themselves"
ROWS = [
    Row("store-killed", "the store is killed (SIGKILL) and comes back empty", HOLDS, STORE, _killed),
    Row("store-paused", "the store is stopped (SIGSTOP): it accepts and does not answer",
        HOLDS, STORE, _paused),
    Row("store-flushed", "FLUSHALL, again and again", FORGETS, STORE, _flushed),
    Row("store-full", "maxmemory is reached: every write is refused", HOLDS, STORE, _full),
    Row("store-slow", "each answer of the store takes a second or two; then its connections are reset; "
        "then something else answers in its place", HOLDS, SLOW, _slow),
]  # fmt: skip
