"""Rows about upstreams that fail, each on every operation that a mint needs, with load running."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tests.chaos.judge import UPSTREAM_DOWN
from tests.chaos.kinds import PAIR, TOKENS
from tests.chaos.stage import Row, Stage

_BUSY = UPSTREAM_DOWN | {"overloaded"}
"""The second is for who repeats on one replica what hangs on another."""
NMI = {"nmi": _BUSY, "rotate": _BUSY, "ended": _BUSY}
"""What may fail while NMI does: and nothing of the other upstream."""


async def _broken(stage: Stage, kind: str, **options: Any) -> None:
    """NMI's sessions misbehave; Flow and access tokens must not notice. Then Flow's, the same."""
    session, other = "nmi.session", "checkout.payment-session"
    async with stage.under_load():
        async with stage.fault(**NMI), stage.upstream(session, kind=kind, **options):
            await stage.hold()
        async with stage.fault(flow=UPSTREAM_DOWN), stage.upstream(other, kind=kind, **options):
            await stage.hold()
        # The token endpoint: the token that is held outlives this by far, so nobody may notice.
        async with stage.upstream("checkout.token", kind=kind, **options):
            await stage.hold(3, 0.5)
        await stage.must_become(lambda: _closed(stage), "every circuit is closed again")
    stage.must(stage.judge.errors, "the fault was not felt")


async def _closed(stage: Stage) -> bool:
    return await stage.metrics("broker_circuit_state") == 0


async def _hang(stage: Stage) -> None:
    await _broken(stage, "hang")


async def _reset(stage: Stage) -> None:
    await _broken(stage, "reset")
    unknown = await stage.metrics("broker_unknown_mints_total")
    stage.must(unknown > 0, "a mint whose answer was lost was not counted as unknown")


async def _drip(stage: Stage) -> None:
    await _broken(stage, "slow-drip", seconds=0.5)


async def _5xx(stage: Stage) -> None:
    await _broken(stage, "status", code=503)


async def _storm(stage: Stage) -> None:
    """429 with Retry-After: the upstream is left alone until then."""
    after = 3
    async with stage.under_load():
        before = await stage.calls("nmi.session")
        storm = stage.upstream("nmi.session", kind="status", code=429, retry_after=after)
        async with stage.fault(**NMI), storm:
            started = time.monotonic()
            await stage.hold(8, 2.5)
            seconds = time.monotonic() - started
            asked = await stage.calls("nmi.session") - before
        # Of each replica: those under way when it began, and one or two after each Retry-After.
        most = len(stage.world.brokers) * (4 + int(2 * seconds / after))
        stage.note(f"{asked} calls in {seconds:.1f} s of 429 (at most {most})")
        stage.must(asked <= most, f"{asked} calls during a storm of 429, at most {most}")


async def _garbled(stage: Stage) -> None:
    bad = UPSTREAM_DOWN | {"upstream-nonsense"}
    async with stage.under_load():
        for kind in ("truncated-json", "html-200", "endless-body", "duplicate-keys"):
            garbled = stage.upstream("nmi.session", kind=kind)
            async with stage.fault(nmi=bad, rotate=bad, ended=bad), garbled:
                await stage.hold(3, 0.7)
        for operation in ("checkout.payment-session", "checkout.token"):
            async with stage.fault(flow=bad), stage.upstream(operation, kind="html-200"):
                await stage.hold(3, 0.7)
    stage.must(stage.judge.outcomes["upstream-nonsense"], "nonsense was not told as nonsense")


async def _expired(stage: Stage) -> None:
    """What is dead on arrival is never handed out: sessions first, then the access token."""
    bad = UPSTREAM_DOWN | {"upstream-nonsense"}
    async with stage.under_load():
        dead = stage.upstream("nmi.session", kind="past-expiry", seconds=60)
        async with stage.fault(nmi=bad, rotate=bad, ended=bad), dead:
            await stage.hold()
        refused = stage.judge.outcomes["upstream-nonsense"]
        stage.must(refused, "dead sessions were not refused")
        dead = stage.upstream("checkout.token", kind="past-expiry", seconds=60)
        with stage.judge.allowing(unknown={"access"}):  # until each replica has learnt it
            async with stage.fault(flow=bad, access=bad), dead:
                await stage.order("revoke")  # so that a new one is needed, and comes expired
                await stage.hold()
        stage.must(stage.judge.errors > refused, "a dead access token was not felt")


async def _revoked(stage: Stage) -> None:
    """All access tokens are revoked: the next call is refused, learns it, and is made again."""
    async with stage.under_load():
        before = await stage.calls("checkout.token")
        with stage.judge.allowing(unknown={"access"}):
            times = 3 if not stage.short else 1
            for _ in range(times):
                await stage.order("revoke")
                await stage.hold(4, 1.5)
        asked = await stage.calls("checkout.token") - before
        most = 2 * times * len(stage.world.brokers)
        stage.told.token_requests = f"{asked} for {times} revocations"
        stage.must(times <= asked <= most, f"{asked} token requests, at most {most}")


async def _token_endpoint_down(stage: Stage) -> None:
    """The endpoint dies where the token would be refreshed, for 90 % of what is left of its life."""
    life = stage.long(60, 20)
    floor = life / 10
    stage.judge.access_floor = floor
    async with stage.under_load():
        async with stage.upstream("checkout.token", kind="expires-in", value=int(life)):
            await stage.order("revoke")
            before = await stage.calls("checkout.token")
            with stage.judge.allowing(unknown={"access"}):

                async def renewed() -> bool:
                    return await stage.calls("checkout.token") > before

                await stage.must_become(renewed, "a new access token")
                started = time.monotonic()
                await asyncio.sleep(2)  # the other replica has yet to learn that its own is dead
            # Refreshed with a third of its life left at the most: from before that on, it is dead.
            await asyncio.sleep(started + life * 0.6 - time.monotonic())
        async with stage.upstream("checkout.token", kind="reset"):
            dead = life * 0.4 * 0.9 - floor * 0.9
            await asyncio.sleep(max(0.0, started + life * 0.6 + dead - time.monotonic()))
            tried = await stage.calls("checkout.token") - before - 1
            # What comes new to a caller from here on was made after the fault: in it nothing was.
            known = set(stage.judge.access_tokens)

        async def fresh() -> bool:
            return bool(stage.judge.access_tokens - known)

        await stage.must_become(fresh, "a refresh once the endpoint is back", life)
        stage.note(
            f"endpoint dead for {dead:.0f} s of a life of {life:.0f} s, {tried} tries meanwhile"
        )


ROWS = [
    Row("upstream-hang", "session endpoints, then the token endpoint, never answer",
        "504 or 503 within the budget, the other upstream unharmed, calm again by itself", PAIR, _hang),
    Row("upstream-reset", "they cut the connection (RST) after the request",
        "the same; lost answers are counted as unknown mints", PAIR, _reset),
    Row("upstream-drip", "they answer a byte every half second",
        "the same: time is counted over the whole answer", PAIR, _drip),
    Row("upstream-5xx", "they answer 503", "503 with Retry-After, never passed on; calm again", PAIR, _5xx),
    Row("upstream-429", "429 with Retry-After, to everybody",
        "the upstream is let be meanwhile: hardly a call", PAIR, _storm),
    Row("garbled-200", "half a JSON, HTML, an endless body, members twice, as 200",
        "502 upstream-nonsense, never a token", PAIR, _garbled),
    Row("expired-answered", "sessions and access tokens that end in the past",
        "refused as nonsense; nothing under its floor is handed out", PAIR, _expired),
    Row("revoked", "all access tokens are revoked at once",
        "no failed mint; one or two token requests a replica", PAIR, _revoked),
    Row("token-endpoint-down", "the token endpoint is dead for 90 % of a token's remaining life",
        "no failed mint; refreshed once it is back", TOKENS, _token_endpoint_down),
]  # fmt: skip
