"""What replicas share, judged from outside: agreement, a store that is away, ends that stay ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator

from redis.asyncio import Redis

from tests.chaos.judge import BUSY, Answer
from tests.chaos.load import Chain
from tests.chaos.stage import Stage

AT_FIRST = 3.5
"""Seconds in which a broker may still hope for its store, and put off whoever needs it."""
WAITING = {"nmi": BUSY, "rotate": BUSY, "ended": BUSY}
"""The requests that need the store, and so may be told to come again; Flow is minted without a key."""
NOTICED = 6.0
"""Seconds within which a store that is away must be told as away; two or three are expected."""


@contextlib.asynccontextmanager
async def store(stage: Stage, port: int = 0) -> AsyncIterator[Redis]:
    """Said to the store itself, past any proxy. port: of another one."""
    client = Redis(port=port or stage.world.store_port)
    try:
        yield client
    finally:
        await client.aclose()


@contextlib.asynccontextmanager
async def alone(stage: Stage, ends: Ends | None = None) -> AsyncIterator[None]:
    """Meanwhile replicas cannot agree; after it they must again, by themselves and soon.

    Callers may be put off at the beginning and at the end, but for an end of a chain: that is put
    off until the store knows of it."""
    stage.judge.shared = False
    with stage.judge.allowing(end=BUSY):
        with stage.judge.allowing(seconds=AT_FIRST, **WAITING):
            yield
        with stage.judge.allowing(seconds=AT_FIRST, **WAITING):
            await all_up(stage)
            if ends is not None:
                await ends.dead()
            await agree(stage)
            # Who was put off last was told so by now.
            await stage.load.settled()
    if ends is not None:
        await ends.known()
    stage.judge.epoch += 1
    stage.judge.shared = True


async def all_up(stage: Stage) -> None:
    """Every replica says that its store is up."""
    await stage.must_become(lambda: _say(stage, 1), "every replica says that the store is up")


async def noticed(stage: Stage) -> None:
    """Every replica says that its store is away; the report tells after how long."""
    started = time.monotonic()
    await stage.must_become(
        lambda: _say(stage, 0), "every replica says that the store is away", NOTICED
    )
    stage.note(f"noticed after {time.monotonic() - started:.1f} s")


async def _say(stage: Stage, up: int) -> bool:
    each = [await stage.metric(one, "broker_store_up") for one in stage.world.brokers]
    return all(value == up for value in each)


async def agree(stage: Stage) -> None:
    """One key shown to all replicas at once brings one session."""

    async def one_token() -> bool:
        answers = await at_once(stage, "u0")
        return all(a.ok for a in answers) and len(tokens_of(answers)) == 1

    await stage.must_become(one_token, "replicas agree again")
    await all_up(stage)


async def at_once(stage: Stage, subject: str, times: int = 1) -> list[Answer]:
    """The same mint under one new key, at the same instant on every replica, `times` each."""
    key = f"race-{id(stage)}-{stage.judge.requests}"
    urls = [broker.url for broker in stage.world.brokers] * times
    return await asyncio.gather(*(stage.load.mint("nmi", subject, key, url) for url in urls))


def tokens_of(answers: list[Answer]) -> set[str]:
    return {answer.body["session_token"] for answer in answers if answer.ok}


class Ends:
    """Chains that are ended around a fault: some before it, on either replica, and some during it,
    all of these on the first one. Afterwards none may rotate anywhere."""

    def __init__(self, stage: Stage, chains: list[Chain]) -> None:
        self._stage = stage
        self._first = stage.world.brokers[0].url
        self._alive = chains
        self._ended: list[Chain] = []
        self._put_off: list[Chain] = []

    @classmethod
    async def made(cls, stage: Stage, before: int = 4, during: int = 8) -> Ends:
        """before: so many are ended at once. during: so many are left for the fault."""
        subjects = [f"u{number}" for number in range(before + during)]
        ends = cls(stage, await asyncio.gather(*(stage.load.chain(name) for name in subjects)))
        for number in range(before):
            chain = ends._alive.pop()
            broker = stage.world.brokers[number % len(stage.world.brokers)]
            ended = await stage.load.end(chain, broker.url)
            stage.must(ended.ok, f"an end before the fault: {ended.status} {ended.outcome}")
            ends._ended.append(chain)
        return ends

    async def told(self, count: int, *, in_vain: bool) -> None:
        """Ends so many on the first replica. in_vain: no store can have been told of it."""
        chains, self._alive = self._alive[:count], self._alive[count:]
        answers = await asyncio.gather(*(self._stage.load.end(c, self._first) for c in chains))
        self._ended += chains
        pairs = zip(chains, answers, strict=True)
        self._put_off += [chain for chain, answer in pairs if not answer.ok]
        good = sum(answer.ok for answer in answers)
        if in_vain:
            self._stage.must(not good, f"{good} ends were answered 204 though no store knows them")
        else:
            said = dict(Counter(answer.outcome for answer in answers))
            self._stage.note(f"ends during the fault: {said}")

    async def here(self) -> None:
        """The replica that was told keeps to it while the store does not know, and says so."""
        for chain in self._put_off[-2:]:
            rotated = await self._stage.load.rotate("ended", chain, self._first)
            self._stage.must(not rotated.ok, "a chain rotated on the replica that had ended it")
            again = await self._stage.load.end(chain, self._first)
            self._stage.must(not again.ok, "a repeated end was answered 204 without a store")

    async def dead(self, within: float = 0.0) -> None:
        """Every replica answers 410 to every one of them, and to what the load has ended last.
        within: seconds that this may take."""
        stage, started, rotated = self._stage, time.monotonic(), set()
        urls = [broker.url for broker in stage.world.brokers]
        pairs = [(chain, url) for chain in [*self._ended, *stage.load.ended] for url in urls]
        while True:
            asked = [stage.load.rotate("ended", chain, url) for chain, url in pairs]
            answers = await asyncio.gather(*asked)
            alive = {pair[0] for pair, answer in zip(pairs, answers, strict=True) if answer.ok}
            rotated |= alive
            clear = all(answer.outcome == "handle-expired" for answer in answers)
            if clear or time.monotonic() - started >= within:
                break
            await asyncio.sleep(0.2)
        chains = len(pairs) // len(urls)
        seconds = f" after {time.monotonic() - started:.1f} s" if within else ""
        stage.note(f"ended chains rotated afterwards: {len(alive)} of {chains}{seconds}")
        if rotated - alive:
            stage.note(f"{len(rotated - alive)} rotated once more before that")
        stage.must(not alive, f"{len(alive)} of {chains} ended chains rotated after the fault")
        other = Counter(a.outcome for a in answers if not a.ok and a.outcome != "handle-expired")
        stage.must(not other, f"ended chains were answered {dict(other)} instead of 410")

    async def known(self) -> None:
        """What was put off is done by now: who repeats an end is put off no more."""
        stage, chains = self._stage, self._put_off[-3:]

        async def done() -> bool:
            answers = await asyncio.gather(*(stage.load.end(c, self._first) for c in chains))
            return all(answer.outcome in ("ok", "handle-expired") for answer in answers)

        with stage.judge.allowing(end=BUSY | {"handle-expired"}):
            await stage.must_become(done, "a repeated end is answered 204", 5)
