"""Rows where replicas race: for one key, one handle, one access token; and where the winner dies."""

from __future__ import annotations

import asyncio
import signal
import time

from tests.chaos.judge import UPSTREAM_DOWN, Answer
from tests.chaos.kinds import FIVE, TWO
from tests.chaos.load import Chain
from tests.chaos.sharing import at_once, tokens_of
from tests.chaos.stage import Row, Stage

EARLIEST, LATEST = 0.67, 0.83
"""Shares of its life after which an access token is replaced, as README and design say."""


async def _race(stage: Stage) -> None:
    rounds = 10 if not stage.short else 3
    # An upstream that takes its time, so that all of them are under way together.
    async with stage.upstream("nmi.session", kind="latency", seconds=0.2):
        await _one_key(stage, rounds)
        await _one_handle(stage, rounds)
        await _one_end(stage, rounds)
    await _one_access_token(stage)


async def _one_key(stage: Stage, rounds: int) -> None:
    before = await stage.calls("nmi.session")
    for number in range(rounds):
        answers = await at_once(stage, f"u{number}", times=2)
        stage.must(len(tokens_of(answers)) == 1, _different("one key", answers))
    asked = await stage.calls("nmi.session") - before
    stage.note(f"{rounds} keys on all replicas at once: {asked} upstream mints")
    stage.must(asked == rounds, f"{asked} upstream mints for {rounds} keys")


async def _one_handle(stage: Stage, rounds: int) -> None:
    asked = 0
    for number in range(rounds):
        chain = await stage.load.chain(f"u{number}")
        before = await stage.calls("nmi.session")
        answers = await _everywhere(stage, chain)
        stage.must(len(tokens_of(answers)) == 1, _different("one handle", answers))
        asked += await stage.calls("nmi.session") - before
    stage.note(f"{rounds} handles on all replicas at once: {asked} upstream mints")
    stage.must(asked == rounds, f"{asked} upstream mints for {rounds} handles")


async def _one_end(stage: Stage, rounds: int) -> None:
    """Once an end is acknowledged, the handle is dead on every replica."""
    for number in range(rounds):
        chain = await stage.load.chain(f"u{number}")
        ended = await stage.load.end(chain, stage.world.brokers[number % 2].url)
        stage.must(ended.ok, f"an end was answered {ended.status} {ended.outcome}")
        answers = await _everywhere(stage, chain, "ended")
        stage.must(not tokens_of(answers), f"an ended chain rotated on {len(answers)} replicas")


async def _one_access_token(stage: Stage) -> None:
    """Over several short lives, all replicas together ask once for each."""
    life, lives = (8, 5) if not stage.short else (4, 2)
    stage.judge.access_floor = life / 10
    stage.load.mix = {"flow": 1, "access": 1}
    async with stage.upstream("checkout.token", kind="expires-in", value=life):
        with stage.judge.allowing(unknown={"access"}):
            await stage.order("revoke")
            async with stage.load.running(stage.rate / 2):
                await asyncio.sleep(life * LATEST + 0.5)  # until all have one of the short ones
                stage.judge.access_tokens.clear()
                before, started = await stage.calls("checkout.token"), time.monotonic()
                await asyncio.sleep(life * lives)
                asked = await stage.calls("checkout.token") - before
                seconds = time.monotonic() - started
        seen = len(stage.judge.access_tokens)
        most = int(seconds / (life * EARLIEST)) + 1
        least = int(seconds / (life * LATEST + 1.0))
        stage.told.token_requests = (
            f"{asked} in {seconds:.0f} s of lives of {life} s, replaced at about 3/4: "
            f"one each is {least} to {most}"
        )
        stage.must(
            least <= asked <= most,
            f"{asked} token requests in {seconds:.0f} s of lives of {life} s; {least} to {most} expected",
        )
        # The first of those seen was asked for before; the last asked for may not be seen yet.
        stage.must(asked <= seen, f"{asked} token requests brought {seen - 1} tokens to anybody")
    await stage.order("revoke")
    await asyncio.sleep(0.2)


async def _holder_dies(stage: Stage) -> None:
    """Who holds the claim, on an access token and on a mint, is killed; the others do without."""
    for operation, profile in (("checkout.token", "flow"), ("nmi.session", "nmi")):
        await _without_holder(stage, operation, profile, signal.SIGKILL)
        await stage.world.serve()


async def _holder_stands_still(stage: Stage) -> None:
    """The same with one that goes on afterwards, its claim long lost: all agree then."""
    victim = stage.world.brokers[0]
    for operation, profile in (("checkout.token", "flow"), ("nmi.session", "nmi")):
        try:
            await _without_holder(stage, operation, profile, signal.SIGSTOP)
        finally:
            victim.up.send(signal.SIGCONT)
        await stage.world.ready(victim)
        answers = await at_once(stage, "u2")
        good = all(answer.ok for answer in answers) and len(tokens_of(answers)) == 1
        stage.must(good, _different("after it went on", answers))
        # Its own token request has failed meanwhile: it may wait a moment before the next.
        started = time.monotonic()
        with stage.judge.allowing(flow=UPSTREAM_DOWN):
            await stage.must_become(lambda: _flows(stage), "Flow goes on everywhere", 5)
        stage.note(f"Flow goes on after {time.monotonic() - started:.1f} s")


async def _flows(stage: Stage) -> bool:
    mints = [stage.load.mint("flow", "u2", target=b.url) for b in stage.world.brokers]
    return all(answer.ok for answer in await asyncio.gather(*mints))


async def _without_holder(stage: Stage, operation: str, profile: str, sent: signal.Signals) -> None:
    """The first broker is inside `operation` when the signal comes; the others are asked then."""
    world, load, victim = stage.world, stage.load, stage.world.brokers[0]
    others = [broker.url for broker in world.brokers[1:]]
    await asyncio.gather(*(load.mint("flow", "u1", target=b.url) for b in world.brokers))
    before, key = await stage.calls(operation), f"holder-{operation}-{sent}"
    path, token = f"/v1/profiles/{profile}/sessions", load.jwt_of("u1")
    stage.judge.excused.add(victim.url)
    async with stage.upstream(operation, kind="hang"):
        await stage.order("revoke")
        lost = asyncio.create_task(
            load.ask(profile, "POST", path, "u1", token, victim.url, key=key)
        )

        async def holds() -> bool:
            return await stage.calls(operation) > before

        await stage.must_become(holds, f"{operation} is under way")
        victim.up.send(sent)
    if sent == signal.SIGKILL:
        await victim.up.ended()
    started = time.monotonic()
    answers = await asyncio.gather(*(load.mint(profile, "u1", key, url) for url in others))
    seconds = time.monotonic() - started
    asked = await stage.calls(operation) - before - 1
    stage.must(all(a.ok for a in answers), f"{operation}: the others did not get on")
    stage.note(f"{operation}: the others got on within {seconds:.1f} s, with {asked} calls")
    stage.must(len(tokens_of(answers)) == 1, _different(operation, answers))
    if sent == signal.SIGSTOP:
        victim.up.send(signal.SIGCONT)
    await lost
    stage.judge.excused.clear()


async def _everywhere(stage: Stage, chain: Chain, kind: str = "rotate") -> list[Answer]:
    urls = [broker.url for broker in stage.world.brokers] * 2
    return await asyncio.gather(*(stage.load.rotate(kind, chain, url) for url in urls))


def _different(what: str, answers: list[Answer]) -> str:
    outcomes = sorted(f"{answer.status} {answer.outcome}" for answer in answers)
    return f"{what}: {len(tokens_of(answers))} tokens, {outcomes}"


DONE = "{} replicas at once: one Idempotency-Key, one handle, one ended chain, one access token"
ONE = "one upstream mint and one token each; one token request a lifetime, for all together"
ROWS = [
    Row("race-of-two", DONE.format("two"), ONE, TWO, _race),
    Row("race-of-five", DONE.format("five"), ONE, FIVE, _race),
    Row("claim-holder-killed", "who asks for the token, or mints under a key, is killed meanwhile",
        "the others get on within the request's budget", TWO, _holder_dies),
    Row("claim-holder-stopped", "the same one stands still (SIGSTOP), and goes on when it is over",
        "the others get on, and afterwards all agree", TWO, _holder_stands_still),
]  # fmt: skip
