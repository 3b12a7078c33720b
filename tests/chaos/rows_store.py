"""Rows about the shared store: it makes replicas agree, and nobody may need it in order to mint."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

from redis.asyncio import Redis

from tests.chaos.judge import Answer
from tests.chaos.kinds import PAIR, SLOW
from tests.chaos.stage import Row, Stage


@contextlib.asynccontextmanager
async def store(stage: Stage) -> AsyncIterator[Redis]:
    """Said to the store itself, past any proxy."""
    client = Redis(port=stage.world.store_port)
    try:
        yield client
    finally:
        await client.aclose()


@contextlib.asynccontextmanager
async def alone(stage: Stage) -> AsyncIterator[None]:
    """Meanwhile replicas cannot agree; after it they must again, by themselves and soon."""
    stage.judge.shared = False
    yield
    await agree(stage)
    stage.judge.epoch += 1
    stage.judge.shared = True


async def agree(stage: Stage) -> None:
    """One key shown to all replicas at once brings one session."""

    async def one_token() -> bool:
        answers = await at_once(stage, "u0")
        return all(a.ok for a in answers) and len(tokens_of(answers)) == 1

    await stage.must_become(one_token, "replicas agree again")
    up = await stage.metrics("broker_store_up")
    stage.must(up == len(stage.world.brokers), f"{up:.0f} replicas say that their store is up")


async def at_once(stage: Stage, subject: str, times: int = 1) -> list[Answer]:
    """The same mint under one new key, at the same instant on every replica, `times` each."""
    key = f"race-{id(stage)}-{stage.judge.requests}"
    urls = [broker.url for broker in stage.world.brokers] * times
    return await asyncio.gather(*(stage.load.mint("nmi", subject, key, url) for url in urls))


def tokens_of(answers: list[Answer]) -> set[str]:
    return {answer.body["session_token"] for answer in answers if answer.ok}


async def _killed(stage: Stage) -> None:
    """Also: who logs out meanwhile is logged out everywhere, once the store is back."""
    async with stage.under_load():
        chain = await stage.load.chain("u1")
        async with alone(stage):
            assert stage.world.store is not None
            await stage.world.store.kill()
            await stage.hold(8, 2)
            up = await stage.metrics("broker_store_up")
            stage.must(up == 0, f"{up:.0f} replicas say that a killed store is up")
            ended = await stage.load.end(chain, stage.world.brokers[0].url)
            stage.must(ended.ok, f"an end without a store: {ended.status} {ended.outcome}")
            await stage.world.start_store()
        await stage.hold(1, 1)
        again = await stage.load.rotate("ended", chain, stage.world.brokers[1].url)
        stage.must(not again.ok, "what was ended while the store was down rotates elsewhere")
    _slow_by(stage, 3.0)


async def _paused(stage: Stage) -> None:
    async with stage.under_load(), alone(stage):
        assert stage.world.store is not None
        stage.world.store.send(signal.SIGSTOP)
        try:
            await stage.hold(15, 2)
        finally:
            stage.world.store.send(signal.SIGCONT)
    _slow_by(stage, 3.0)


async def _flushed(stage: Stage) -> None:
    async with stage.under_load(), store(stage) as redis:
        for _ in range(5 if not stage.short else 2):
            # Before and after: what was begun before must not be expected of after.
            stage.judge.epoch += 1
            await redis.flushall()
            stage.judge.epoch += 1
            await stage.hold(2, 0.7)
        await agree(stage)


async def _full(stage: Stage) -> None:
    """The store answers, and takes nothing more."""
    async with stage.under_load(), store(stage) as redis, alone(stage):
        await redis.config_set("maxmemory", "1")
        await stage.hold(8, 2)
        await redis.config_set("maxmemory", "64mb")
    _slow_by(stage, 3.0)


async def _slow(stage: Stage) -> None:
    proxy = stage.world.proxy
    async with stage.under_load():
        async with alone(stage):
            proxy.delay = 1.0
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
    _slow_by(stage, 3.0)


def _slow_by(stage: Stage, most: float) -> None:
    """A store that does not answer costs its timeout, not the request's budget."""
    slowest = stage.judge.slowest
    stage.note(f"slowest answer {slowest:.2f} s")
    stage.must(slowest <= most, f"an answer took {slowest:.2f} s, at most {most:.0f} expected")


NOTHING_FAILS = "no failed request; replicas agree again by themselves"
ROWS = [
    Row("store-killed", "the store is killed (SIGKILL) and comes back empty", NOTHING_FAILS, PAIR, _killed),
    Row("store-paused", "the store is stopped (SIGSTOP): it accepts and does not answer",
        NOTHING_FAILS, PAIR, _paused),
    Row("store-flushed", "FLUSHALL, again and again", NOTHING_FAILS, PAIR, _flushed),
    Row("store-full", "maxmemory is reached: every write is refused", NOTHING_FAILS, PAIR, _full),
    Row("store-slow", "each answer of the store takes a second or two; then its connections are reset; "
        "then something else answers in its place", NOTHING_FAILS, SLOW, _slow),
]  # fmt: skip
