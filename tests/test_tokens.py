"""The cache of access tokens, around the real token client, against a token endpoint that counts.

Only the other server is made up; time is virtual throughout.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from broker.declared import SecretRef
from broker.errors import (
    BrokerError,
    InternalError,
    MinFreshNotMet,
    Overloaded,
    UpstreamNonsense,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from broker.file import CredentialEntry
from broker.flights import Tasks
from broker.guard import MOST_COOLING
from broker.keyring import Keyring
from broker.metrics import Metrics
from broker.model import AccessToken, Life, Priority, Secret
from broker.schedule import floor_of
from broker.tokens import REFUSED_WAIT, ROUNDS, SOONEST, Cached, floor_for, refresh_below
from broker.upstreams.oauth import OAuth
from tests.support import AppTransport, VirtualClock, settle
from tests.test_oauth import Through, plain_digest

ID, SECRET = SecretRef(env="ID"), SecretRef(env="SECRET")
DAY = 86400.0


class Endpoint:
    """A token endpoint that issues numbered tokens and remembers when, by true time."""

    def __init__(self, clock: VirtualClock, lifetime: float = 3600) -> None:
        self.clock = clock
        self.lifetime = lifetime
        self.failure: httpx2.Response | None = None
        self.slow = 0.0
        self.gate: asyncio.Event | None = None
        self.asked: list[float] = []
        self.ended: list[tuple[float, bool]] = []
        self.issued: dict[str, float] = {}
        self.transport = AppTransport(handler=self._answer)
        self.transport.before = self._before

    @property
    def count(self) -> int:
        return len(self.transport.calls)

    async def _before(self) -> None:
        self.asked.append(self.clock.monotonic())
        if self.gate is not None:
            await self.gate.wait()
        if self.slow:
            await self.clock.sleep(self.slow)

    def _answer(self, _request: httpx2.Request) -> httpx2.Response:
        now = self.clock.monotonic()
        self.ended.append((now, self.failure is None))
        if self.failure is not None:
            return self.failure
        value = f"token-{len(self.issued) + 1}"
        self.issued[value] = now
        return httpx2.Response(
            200,
            json={"access_token": value, "token_type": "Bearer", "expires_in": self.lifetime},
        )


class World:
    """An endpoint, the cache before it, and what both stand on."""

    def __init__(
        self,
        lifetime: float = 3600,
        min_remaining: float | None = None,
        draw: Callable[[], float] = lambda: 0.5,
    ) -> None:
        self.clock = VirtualClock()
        self.metrics = Metrics()
        self.endpoint = Endpoint(self.clock, lifetime)
        self.tasks = Tasks()
        entry = CredentialEntry(
            token_url="https://idp.test/token",
            client_id=ID,
            client_secret=[SECRET],
            max_lifetime="7d",  # type: ignore[arg-type]
        )
        keyring = Keyring(
            [("/a", ID), ("/b", SECRET)], Path(), {"ID": "us", "SECRET": "canary-secret"}
        )
        self.guard = Through(self.clock)
        source = OAuth(
            "checkout",
            entry,
            keyring,
            self.endpoint.transport,
            self.clock,
            self.metrics,
            self.guard,  # type: ignore[arg-type]
            plain_digest,
        )
        self.cache = Cached(
            source,
            self.clock,
            self.metrics,
            "checkout",
            min_remaining=min_remaining,
            spawn=self.tasks.spawn,
            draw=draw,
        )

    async def value(self, **wanted: float) -> str:
        return (await self.cache.token(**wanted)).value.reveal()

    async def fails(self, kind: type[BrokerError], **wanted: float) -> BrokerError:
        with pytest.raises(kind) as caught:
            await self.cache.token(**wanted)
        return caught.value

    def gauge(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(
            f"broker_access_token_{name}_timestamp_seconds", {"credential": "checkout"}
        )


def run(work: Callable[[World], Any], **made: Any) -> None:
    async def main() -> None:
        world = World(**made)
        try:
            await work(world)
        finally:
            await world.tasks.close()
            await world.endpoint.transport.close()

    asyncio.run(main())


def test_ten_thousand_callers_of_a_cold_cache_cost_one_token_request() -> None:
    """10 000 concurrent requests for one cold token cause exactly one token request."""

    async def work(world: World) -> None:
        world.endpoint.gate = asyncio.Event()
        callers = [asyncio.create_task(world.value()) for _ in range(10_000)]
        await settle()
        world.endpoint.gate.set()
        assert set(await asyncio.gather(*callers)) == {"token-1"}
        assert world.endpoint.count == 1

    run(work)


def test_the_first_callers_leaving_ends_nobody_elses_wait() -> None:
    """With the first caller cancelled, the 9 999 others get the token of the same one request."""

    async def work(world: World) -> None:
        world.endpoint.gate = asyncio.Event()
        callers = [asyncio.create_task(world.value()) for _ in range(10_000)]
        await settle()
        callers[0].cancel()
        await settle()
        world.endpoint.gate.set()
        found = await asyncio.gather(*callers, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert set(found[1:]) == {"token-1"}
        assert world.endpoint.count == 1

    run(work)


def test_a_failed_flight_that_nobody_waits_for_is_silent() -> None:
    """All callers gone and the flight failed: no "exception was never retrieved", and the next
    caller is told without a request."""

    async def work(world: World) -> None:
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, ctx: complaints.append(ctx))
        world.endpoint.gate = asyncio.Event()
        world.endpoint.failure = httpx2.Response(503)
        caller = asyncio.create_task(world.value())
        await settle()
        caller.cancel()
        await settle()
        world.endpoint.gate.set()
        await settle()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gc.collect()
        await world.fails(UpstreamUnavailable)
        assert (world.endpoint.count, complaints) == (1, [])

    run(work)


def test_ten_thousand_callers_share_one_failure() -> None:
    """A failed flight is one request, told to each caller as an error object of their own."""

    async def work(world: World) -> None:
        world.endpoint.gate = asyncio.Event()
        world.endpoint.failure = httpx2.Response(503)
        callers = [asyncio.create_task(world.value()) for _ in range(10_000)]
        await settle()
        world.endpoint.gate.set()
        found = await asyncio.gather(*callers, return_exceptions=True)
        assert {type(one) for one in found} == {UpstreamUnavailable}
        assert len({id(one) for one in found}) == 10_000
        assert world.endpoint.count == 1

    run(work)


def test_fresh_is_handed_out_without_waiting() -> None:
    """A fresh token comes from `token()` without suspending once, and from `peek()`; a stale or an
    expired one does not come from `peek()`."""

    async def work(world: World) -> None:
        assert world.cache.peek() is None
        held = await world.cache.token()
        assert world.cache.peek() is held
        with pytest.raises(StopIteration) as ended:
            world.cache.token().send(None)
        assert ended.value.value is held
        world.clock.pass_(2701)
        assert world.cache.peek() is None
        world.clock.pass_(900)
        assert world.cache.peek() is None
        assert world.endpoint.count == 1

    run(work)


def test_stale_is_handed_out_and_refreshed_behind_once() -> None:
    """Past three quarters of its life a token is still handed out at once, to everybody, while one
    request fetches the next."""

    async def work(world: World) -> None:
        await world.value()
        world.clock.pass_(2699)
        assert await world.value() == "token-1"
        await settle()
        assert world.endpoint.count == 1
        world.clock.pass_(2)
        assert {await world.value() for _ in range(100)} == {"token-1"}
        await settle()
        assert await world.value() == "token-2"
        assert world.endpoint.count == 2

    run(work)


def test_the_refresh_point_is_drawn_once_for_each_token() -> None:
    """One draw a token, however often it is looked at: redrawing would undo the spread."""
    draws: list[float] = []

    def draw() -> float:
        draws.append(0.5)
        return 0.5

    async def work(world: World) -> None:
        for _ in range(500):
            await world.value()
            world.clock.pass_(5)
        assert len(draws) == 1
        world.clock.pass_(300)
        await world.value()
        await settle()
        assert (len(draws), world.endpoint.count) == (2, 2)

    run(work, draw=draw)


def test_what_is_held_is_exported() -> None:
    """The gauges say when the held token ends and when it will be replaced, as instants."""

    async def work(world: World) -> None:
        now = world.clock.now().timestamp()
        await world.value()
        assert world.gauge("expiry") == now + 3600
        assert world.gauge("refresh_after") == now + 2700

    run(work)


def test_an_outage_for_nine_tenths_of_what_is_left_fails_no_call() -> None:
    """The endpoint down for 90 % of a token's usable rest: every call is served, none under the
    floor, and the requests made meanwhile are few."""

    async def work(world: World) -> None:
        await world.value()
        world.clock.pass_(2701)
        world.endpoint.failure = httpx2.Response(500)
        outage = 0.9 * (3600 - 2701 - 30)
        for _ in range(int(outage)):
            token = await world.cache.token()
            assert token.life.remaining(world.clock.monotonic()) > 30
            await settle()
            world.clock.pass_(1)
        assert 5 <= world.endpoint.count <= 8 + outage / 30
        world.endpoint.failure = None
        world.clock.pass_(60)
        assert await world.value() == "token-1"
        await settle()
        assert await world.value() == "token-2"

    run(work)


@settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    lifetime=st.sampled_from([60.0, 300.0, 900.0, 3600.0, DAY]),
    share=st.sampled_from([1.0, 1.0, 0.999, 0.5]),
    draw=st.floats(0.0, 1.0, exclude_max=True),
    often=st.sampled_from([1 / 500, 1 / 20]),
    how=st.sampled_from(["refused", "hangs"]),
)
def test_an_outage_of_nine_tenths_of_any_rest_fails_no_call(
    lifetime: float, share: float, draw: float, often: float, how: str
) -> None:
    """Whenever it begins in a token's life, however it shows, and whether calls are many or few:
    an outage for 90 % of what was left above the floor is over before anybody is told of it."""

    async def work(world: World) -> None:
        endpoint, clock = world.endpoint, world.clock
        first = await world.cache.token()
        floor = floor_of(lifetime)
        held = world.cache._held
        assert held is not None
        await clock.advance(share * (lifetime - held.refresh_below) - 1e-3)
        rest = first.life.until - floor - clock.monotonic()

        async def hang() -> None:
            endpoint.asked.append(clock.monotonic())
            if clock.monotonic() < back:
                await clock.sleep(0.2)
                raise UpstreamTimeout("late")

        began = clock.monotonic()
        back = began + 0.9 * rest
        if how == "hangs":
            endpoint.transport.before = hang
        else:
            endpoint.failure = httpx2.Response(503)
        while (now := clock.monotonic()) < began + 1.5 * rest:
            if now >= back:
                endpoint.failure = None
            found = await world.cache.token()
            assert found.life.remaining(now) > floor
            step = often * lifetime
            await clock.advance(back - now + 1e-6 if now < back < now + step else step)
        assert endpoint.count <= 40 + rest / 30

    run(work, lifetime=lifetime, draw=lambda: draw)


def test_a_token_in_use_is_renewed_without_a_caller() -> None:
    """With one call in each life, each finds a fresh token: it was renewed at its refresh point.
    A token that nobody used since it came is not renewed, so that an idle credential costs one
    request after its last use, and none from then on."""

    async def work(world: World) -> None:
        for call in range(1, 6):
            assert await world.value() == f"token-{call}"
            await world.clock.advance(2700)
            assert world.endpoint.count == call + 1
        await world.clock.advance(2600)
        assert world.cache.peek() is not None
        await world.clock.advance(10 * DAY)
        assert world.endpoint.count == 7
        assert await world.value() == "token-8"

    run(work)


def test_what_peek_hands_out_is_in_use() -> None:
    """The hottest path counts as use too; a token that was only fetched ahead is in use by none."""

    async def work(world: World) -> None:
        await world.cache.warm()
        await world.clock.advance(100)
        assert world.cache.peek() is not None
        await world.clock.advance(2700)
        assert world.endpoint.count == 2
        await world.clock.advance(DAY)
        assert world.endpoint.count == 2

    run(work)


def test_a_token_that_somebody_waited_for_is_in_use() -> None:
    """Also where the request had begun behind the token before: the one who came to need it uses
    what it brings, and so it is renewed."""

    async def work(world: World) -> None:
        await world.value()
        world.endpoint.gate = asyncio.Event()
        await world.clock.advance(2700)
        await world.clock.advance(880)
        waiting = asyncio.create_task(world.value())
        await settle()
        world.endpoint.gate.set()
        assert await waiting == "token-2"
        await world.clock.advance(2700)
        assert world.endpoint.count == 3

    run(work)


def test_a_failed_renewal_is_tried_again_without_a_caller() -> None:
    """During an outage the renewer goes on by the same back-off, up to the token's floor, and is
    done as soon as the endpoint is back; past the floor it asks no more."""

    async def work(world: World) -> None:
        await world.value()
        world.endpoint.failure = httpx2.Response(503)
        await world.clock.advance(3000)
        assert 3 <= world.endpoint.count <= 15
        world.endpoint.failure = None
        await world.clock.advance(60)
        assert await world.value() == "token-2"
        world.endpoint.failure = httpx2.Response(503)
        await world.clock.advance(DAY)
        asked = world.endpoint.count
        await world.clock.advance(DAY)
        assert world.endpoint.count == asked <= 60

    run(work)


def test_for_whom_it_asks() -> None:
    """A person's request where nothing is held, a refresh behind what is, a prefetch ahead of
    everybody: that is what the source is told."""

    async def work(world: World) -> None:
        await world.cache.warm()
        world.clock.pass_(2800)
        await world.value()
        await settle()
        world.clock.pass_(3600)
        await world.value()
        world.clock.pass_(1000)
        await world.value(min_fresh=3000)
        asked = [priority for _, priority, _ in world.guard.asked]
        assert asked == [Priority.PREFETCH, Priority.REFRESH, Priority.PERSON, Priority.PERSON]

    run(work)


def test_a_refresh_in_a_hurry_holds_back_nobody() -> None:
    """A request behind a good token has little time. Where that was too little, and the token has
    ended, a person's own request is made at once, in spite of the back-off; also for one who was
    already waiting. A person's own failure is everybody's again."""

    async def work(world: World) -> None:
        endpoint, clock = world.endpoint, world.clock
        gate = asyncio.Event()

        async def late() -> None:
            await gate.wait()
            raise UpstreamTimeout("late")

        await world.value()
        clock.pass_(3560)
        endpoint.transport.before = late
        assert await world.value() == "token-1"
        await settle()
        clock.pass_(20)
        waiting = asyncio.create_task(world.value())
        await settle()
        endpoint.transport.before = endpoint._before
        gate.set()
        assert await waiting == "token-2"
        assert endpoint.count == 3

        clock.pass_(3600)
        endpoint.transport.before = late
        await world.fails(UpstreamTimeout)
        await world.fails(UpstreamTimeout)
        assert endpoint.count == 4

    run(work)


@pytest.mark.parametrize("error", [UpstreamTimeout("late"), Overloaded("x", retry_after=60.0)])
@pytest.mark.parametrize("begun", ["ahead", "behind"])
def test_what_is_shed_behind_holds_back_nobody(begun: str, error: BrokerError) -> None:
    """A request that is made ahead of or behind people has less time than theirs, and less of the
    budget and of the places. What it lacked is not remembered against them: whoever comes then
    asks at once, and so does who was waiting for it; only it itself backs off."""

    async def work(world: World) -> None:
        endpoint, clock = world.endpoint, world.clock
        gate = asyncio.Event()

        async def shed() -> None:
            await gate.wait()
            raise error.again()

        if begun == "behind":
            await world.value()
            clock.pass_(3560)
        before = endpoint.count
        endpoint.transport.before = shed
        first = asyncio.create_task(world.cache.token(priority=Priority.PREFETCH))
        await settle()
        clock.pass_(20)
        waiting = asyncio.create_task(world.value())
        await settle()
        assert endpoint.count == before + 1
        endpoint.transport.before = endpoint._before
        gate.set()
        assert await waiting == f"token-{before + 1}"
        assert endpoint.count == before + 2
        await asyncio.gather(first, return_exceptions=True)

        clock.pass_(3600)
        endpoint.transport.before = shed
        for _ in range(2):
            with pytest.raises(type(error)):
                await world.cache.token(priority=Priority.PREFETCH)
        assert endpoint.count == before + 3
        endpoint.transport.before = endpoint._before
        assert await world.value() == f"token-{before + 2}"

        clock.pass_(3600)
        endpoint.transport.before = shed
        for _ in range(2):
            await world.fails(type(error))
        assert endpoint.count == before + 5

    run(work)


def test_whoever_is_retired_asks_no_more() -> None:
    """Another credential is in its place: neither at its refresh point nor after a request that is
    under way just then does it ask again. Calls that have begun with it are served."""

    async def work(world: World) -> None:
        await world.value()
        world.cache.retire()
        await world.clock.advance(DAY)
        assert world.endpoint.count == 1

        world.endpoint.gate = asyncio.Event()
        waiting = asyncio.create_task(world.value())
        await settle()
        world.cache.retire()
        world.endpoint.gate.set()
        assert await waiting == await world.value() == "token-2"
        await world.clock.advance(DAY)
        assert world.endpoint.count == 2

    run(work)


def test_whoever_is_retired_in_the_midst_of_a_renewal_asks_no_more() -> None:
    """The renewer itself may be waiting for an answer then, be it good or bad."""

    async def work(world: World) -> None:
        for failure in (None, httpx2.Response(401, json={"error": "invalid_client"})):
            await world.value()
            count = world.endpoint.count
            world.endpoint.gate = asyncio.Event()
            await world.clock.advance(2700)
            assert world.endpoint.count == count + 1
            world.cache.retire()
            world.endpoint.failure = failure
            world.endpoint.gate.set()
            await world.clock.advance(DAY)
            assert world.endpoint.count == count + 1
            world.cache._retired = False

    run(work)


@given(
    life=st.floats(1.0, 30 * DAY),
    floor=st.none() | st.floats(0.0, 1.0, exclude_max=True),
    draw=st.floats(0.0, 1.0),
)
def test_the_refresh_point_lies_between_the_floor_and_the_whole_life(
    life: float, floor: float | None, draw: float
) -> None:
    """Whatever the floor: a new token is fresh, or it would be replaced at every look; and there
    is time between its refresh point and its floor."""
    instant = VirtualClock().now()
    token = AccessToken(
        Secret("t"), "Bearer", "", Life(instant, timedelta(seconds=life), life), 0.0
    )
    least = None if floor is None else floor * token.life.lifetime.total_seconds()
    if floor is not None and floor > 0.999:
        return
    below = refresh_below(token, least, lambda: draw)
    assert floor_for(token, least) < below < token.life.lifetime.total_seconds()


def test_a_token_at_its_floor_is_not_handed_out_whatever_the_endpoint_does() -> None:
    """At 30 s left with the endpoint down, the answer is the problem and not the token."""

    async def work(world: World) -> None:
        await world.value()
        world.clock.pass_(3569.9)
        world.endpoint.failure = httpx2.Response(500)
        assert await world.value() == "token-1"
        await settle()
        world.clock.pass_(0.1)
        await world.fails(UpstreamUnavailable)

    run(work)


def test_back_off_doubles_and_is_told() -> None:
    """After failures in a row the source is left alone for 1, 2, 4 … 60 s (less jitter), callers
    are told the rest of the wait without a request; success ends it."""

    async def work(world: World) -> None:
        world.endpoint.failure = httpx2.Response(503)
        waits = []
        for failures in range(1, 9):
            error = await world.fails(UpstreamUnavailable)
            assert world.endpoint.count == failures
            assert error.retry_after is not None
            waits.append(error.retry_after)
            world.clock.pass_(error.retry_after - 0.01)
            again = await world.fails(UpstreamUnavailable)
            assert again.retry_after == pytest.approx(0.01)
            assert (again.detail, again.cause) == (error.detail, error.cause)
            assert world.endpoint.count == failures
            world.clock.pass_(0.02)
        assert waits == [0.75 * ceiling for ceiling in (1, 2, 4, 8, 16, 32, 60, 60)]
        world.endpoint.failure = None
        assert await world.value() == "token-1"
        world.endpoint.failure = httpx2.Response(503)
        world.clock.pass_(3600)
        assert (await world.fails(UpstreamUnavailable)).retry_after == 0.75

    run(work)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(form: str) -> None:
    """Retry-After, in seconds or as a date, holds the source back where it is later than our own
    back-off, and is passed on with what is left of it."""

    async def work(world: World) -> None:
        at = format_datetime(world.clock.now() + timedelta(seconds=40), usegmt=True)
        fields = {"Retry-After": "40" if form == "seconds" else at}
        world.endpoint.failure = httpx2.Response(429, headers=fields)
        assert (await world.fails(UpstreamUnavailable)).retry_after == 40
        world.clock.pass_(39)
        assert (await world.fails(UpstreamUnavailable)).retry_after == 1
        assert world.endpoint.count == 1
        world.endpoint.failure = None
        world.clock.pass_(1)
        assert await world.value() == "token-1"

    run(work)


@pytest.mark.parametrize("status", [429, 503])
def test_an_absurd_retry_after_is_no_outage(status: int) -> None:
    """A day is obeyed for a minute, as by the gate before every other call; then it costs one
    request a minute."""

    async def work(world: World) -> None:
        world.endpoint.failure = httpx2.Response(status, headers={"Retry-After": "86400"})
        for count in (1, 2):
            assert (await world.fails(UpstreamUnavailable)).retry_after == MOST_COOLING
            world.clock.pass_(MOST_COOLING - 0.01)
            await world.fails(UpstreamUnavailable)
            assert world.endpoint.count == count
            world.clock.pass_(0.02)
        world.endpoint.failure = None
        assert await world.value() == "token-1"

    run(work)


def test_a_replaced_secret_is_tried_at_once() -> None:
    """A refusal is forgotten when a secret changed, so that the one who mends it need not wait a
    minute, with and without a token in hand; an outage is none the shorter for it."""
    refused = httpx2.Response(401, json={"error": "invalid_client"})

    async def work(world: World) -> None:
        world.endpoint.failure = refused
        await world.fails(UpstreamRefused)
        await world.fails(UpstreamRefused)
        world.cache.hope()
        await world.fails(UpstreamRefused)
        await world.fails(UpstreamRefused)
        assert world.endpoint.count == 2
        world.endpoint.failure = None
        world.cache.hope()
        assert await world.value() == "token-1"

        world.clock.pass_(3000)
        world.endpoint.failure = refused
        await world.value()
        await settle()
        world.endpoint.failure = None
        world.cache.hope()
        await world.value()
        await settle()
        assert await world.value() == "token-2"

        world.clock.pass_(3600)
        world.endpoint.failure = httpx2.Response(503)
        await world.fails(UpstreamUnavailable)
        count = world.endpoint.count
        world.cache.hope()
        await world.fails(UpstreamUnavailable)
        assert world.endpoint.count == count

    run(work)


def test_a_retry_after_of_nought_does_not_undo_the_back_off() -> None:
    """`Retry-After: 0` is no leave to hammer: the later of the two counts."""

    async def work(world: World) -> None:
        world.endpoint.failure = httpx2.Response(503, headers={"Retry-After": "0"})
        assert (await world.fails(UpstreamUnavailable)).retry_after == 0.75

    run(work)


def test_a_wrong_secret_costs_one_request_a_minute() -> None:
    """A refusal is permanent: the first one already backs off for a minute, and an hour of calls at
    every second costs at most 60 requests."""

    async def work(world: World) -> None:
        world.endpoint.failure = httpx2.Response(401, json={"error": "invalid_client"})
        error = await world.fails(UpstreamRefused)
        assert error.retry_after is not None
        assert error.retry_after >= REFUSED_WAIT
        for _ in range(3600):
            await world.fails(UpstreamRefused)
            world.clock.pass_(1)
        assert 50 <= world.endpoint.count <= 60
        assert "canary" not in repr(vars(error)) + str(error)

    run(work)


def test_a_defect_in_the_source_is_an_internal_error_and_backs_off() -> None:
    """What is no BrokerError is logged with its traceback and told as an internal error."""

    class Broken:
        calls = 0

        async def token(
            self, *, min_fresh: float = 0.0, priority: Priority = Priority.PERSON
        ) -> AccessToken:
            self.calls += 1
            raise ZeroDivisionError

        def forget(self, *, older_than: float) -> None: ...

    async def work(world: World) -> None:
        source = Broken()
        cache = Cached(
            source, world.clock, Metrics(), "x", min_remaining=None, spawn=world.tasks.spawn
        )
        for _ in range(3):
            with pytest.raises(InternalError):
                await cache.token()
        assert source.calls == 1

    run(work)


def test_short_lived_tokens_work() -> None:
    """Five seconds of life: a floor of half a second, a request every 3.75 s and no more."""

    async def work(world: World) -> None:
        for _ in range(600):
            token = await world.cache.token()
            assert token.life.remaining(world.clock.monotonic()) > 0.5
            await settle()
            await world.clock.advance(0.1)
        assert 14 <= world.endpoint.count <= 17

    run(work, lifetime=5)


def test_a_life_not_above_the_floor_is_nonsense() -> None:
    """A token that arrives with no more than `min_remaining` left is never handed out, and the
    endpoint is not asked again for each caller."""

    async def work(world: World) -> None:
        for _ in range(10):
            await world.fails(UpstreamNonsense)
        assert world.endpoint.count == 1

    run(work, lifetime=300, min_remaining=300.0)


def test_a_life_spent_on_the_way_is_nonsense() -> None:
    """Life starts when the request is sent: an answer slower than the token lives brings none."""

    async def work(world: World) -> None:
        world.endpoint.slow = 4.6
        caller = asyncio.create_task(world.fails(UpstreamNonsense))
        await world.clock.advance(5)
        await caller

    run(work, lifetime=5)


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_a_step_of_the_wall_clock_changes_nothing(step: float) -> None:
    """An hour back or forth while a token is held: fresh, stale and expired come when they would
    have, and an arriving token is judged by the time that passed."""

    async def work(world: World) -> None:
        await world.value()
        for seconds, fresh, value in (
            (2000, True, "token-1"),
            (690, True, "token-1"),
            (20, False, "token-1"),
        ):
            world.clock.pass_(seconds)
            world.clock.step(step)
            assert (world.cache.peek() is not None) is fresh
            assert await world.value() == value
        world.cache.forget(older_than=world.clock.monotonic())
        await settle()
        assert await world.value() == "token-2"
        world.clock.step(-3 * step)
        world.clock.pass_(3570)
        assert await world.value() == "token-3"
        world.endpoint.slow = 100
        world.clock.pass_(3570)
        caller = asyncio.create_task(world.value())
        await settle()
        world.clock.step(step)
        await world.clock.advance(100)
        assert await caller == "token-4"
        assert (await world.cache.token()).life.remaining(world.clock.monotonic()) == 3500

    run(work)


def test_a_token_slept_away_before_its_caller_wakes_is_not_handed_out() -> None:
    """Where a machine is suspended between a token's arrival and its caller's turn, the caller gets
    the next token, not one whose life went by meanwhile."""

    async def work(world: World) -> None:
        naps = [4.6]

        async def suspended(flight: Any) -> Any:
            found = await flight
            world.clock.pass_(naps.pop() if naps and isinstance(found, AccessToken) else 0.0)
            return found

        world.cache._spawn = lambda flight: world.tasks.spawn(suspended(flight))
        assert await world.value() == "token-2"

    run(work, lifetime=5)


def test_a_high_floor_leaves_room_to_refresh_behind() -> None:
    """With `min_remaining` at 90 % of life there still is a stale stretch above the floor, so that
    a caller every second never waits for a token but the first time."""

    async def work(world: World) -> None:
        await world.value()
        for _ in range(3000):
            with pytest.raises(StopIteration):
                world.cache.token().send(None)
            await settle(8)
            world.clock.pass_(1)
        assert world.endpoint.count <= 3000 / 270 + 2

    run(work, min_remaining=3240.0)


def test_min_fresh_refreshes_a_fresh_token() -> None:
    """A caller who wants more than the held token has gets a new one, all such callers from one
    request; who wants less gets the held one."""

    async def work(world: World) -> None:
        await world.value()
        world.clock.pass_(600)
        assert await world.value(min_fresh=3000) == "token-1"
        wanted = [asyncio.create_task(world.value(min_fresh=3001)) for _ in range(100)]
        assert set(await asyncio.gather(*wanted)) == {"token-2"}
        assert world.endpoint.count == 2

    run(work)


def test_min_fresh_beyond_any_life_is_refused_without_a_request() -> None:
    """More than a whole life cannot be had: told at once. So is nearly a whole life while the
    token is young, or such a caller would cause a token request with each call."""

    async def work(world: World) -> None:
        await world.value()
        world.clock.pass_(1000)
        await world.fails(MinFreshNotMet, min_fresh=3601)
        assert world.endpoint.count == 1
        for _ in range(3600):
            with contextlib.suppress(MinFreshNotMet):
                await world.value(min_fresh=3600)
            world.clock.pass_(1)
        assert world.endpoint.count <= 1 + 12
        assert await world.value()

    run(work)


def test_min_fresh_that_a_new_token_does_not_meet_is_told() -> None:
    """Cold, or with lives grown shorter, a new token with less than is asked for is a typed
    problem, and is still there for others."""

    async def work(world: World) -> None:
        await world.fails(MinFreshNotMet, min_fresh=4000)
        world.endpoint.lifetime = 1800
        world.clock.pass_(1000)
        await world.fails(MinFreshNotMet, min_fresh=3000)
        assert await world.value() == "token-2"
        assert world.endpoint.count == 2

    run(work)


def test_min_fresh_while_the_endpoint_is_down_spares_the_held_token() -> None:
    """The caller who wants more is told of the outage; the others go on with what is held."""

    async def work(world: World) -> None:
        await world.value()
        world.clock.pass_(1000)
        world.endpoint.failure = httpx2.Response(502)
        await world.fails(UpstreamUnavailable, min_fresh=3000)
        await world.fails(UpstreamUnavailable, min_fresh=3000)
        assert await world.value() == "token-1"
        assert world.endpoint.count == 2

    run(work)


def test_a_401_drops_the_token_that_was_used() -> None:
    """Forgetting what is older than the refused call drops the token it used, once: a burst of a
    thousand refused calls costs one token request."""

    async def work(world: World) -> None:
        await world.value()
        world.clock.pass_(10)
        sent = world.clock.monotonic()
        world.clock.pass_(1)
        world.endpoint.gate = asyncio.Event()
        callers = []
        for _ in range(1000):
            world.cache.forget(older_than=sent)
            callers.append(asyncio.create_task(world.value()))
            await asyncio.sleep(0)
        world.endpoint.gate.set()
        assert set(await asyncio.gather(*callers)) == {"token-2"}
        assert world.endpoint.count == 2

    run(work)


def test_a_late_401_does_not_evict_a_newer_token() -> None:
    """The 401 of a call that was sent before the held token was asked for says nothing of it."""

    async def work(world: World) -> None:
        await world.value()
        world.clock.pass_(10)
        sent = world.clock.monotonic()
        world.clock.pass_(10)
        world.cache.forget(older_than=sent)
        assert await world.value() == "token-2"
        world.clock.pass_(10)
        world.cache.forget(older_than=sent)
        assert await world.value() == "token-2"
        assert world.endpoint.count == 2

    run(work)


def test_a_flight_begun_before_the_refused_call_is_not_trusted() -> None:
    """What a refresh brings whose request left before the refused call did may be the refused token
    itself: those who wait for it get the next one instead."""

    async def work(world: World) -> None:
        await world.value()
        world.clock.pass_(2750)
        world.endpoint.gate = asyncio.Event()
        assert await world.value() == "token-1"
        await settle()
        world.clock.pass_(1)
        sent = world.clock.monotonic()
        world.clock.pass_(1)
        world.cache.forget(older_than=sent)
        waiting = asyncio.create_task(world.value())
        await settle()
        world.endpoint.gate.set()
        found = await waiting
        assert world.endpoint.count == 3
        assert await world.value() == found
        assert (await world.cache.token()).obtained >= sent

    run(work)


def test_what_a_forgotten_flight_brings_is_not_held() -> None:
    """Nor does the doubtful token lie in the cache when nobody waited for it."""

    async def work(world: World) -> None:
        await world.value()
        world.clock.pass_(2750)
        world.endpoint.gate = asyncio.Event()
        await world.value()
        await settle()
        world.clock.pass_(1)
        world.cache.forget(older_than=world.clock.monotonic())
        world.endpoint.gate.set()
        await settle()
        assert (world.endpoint.count, world.cache.peek()) == (2, None)
        assert await world.value() == "token-3"

    run(work)


def test_those_who_wait_for_a_flight_that_is_forgotten_get_the_next() -> None:
    """A caller already waiting when the 401 comes in is not handed the doubtful token either."""

    async def work(world: World) -> None:
        world.endpoint.gate = asyncio.Event()
        waiting = asyncio.create_task(world.cache.token())
        await settle()
        world.clock.pass_(1)
        sent = world.clock.monotonic()
        world.cache.forget(older_than=sent)
        world.endpoint.gate.set()
        assert (await waiting).obtained >= sent
        assert world.endpoint.count == 2

    run(work)


def test_endless_forgetting_ends_in_a_problem() -> None:
    """A caller whose flights are all forgotten is told so after a few; nothing spins."""

    async def work(world: World) -> None:
        def forget() -> None:
            world.clock.pass_(1)
            world.cache.forget(older_than=world.clock.monotonic())

        world.endpoint.transport.before = forget
        await world.fails(UpstreamUnavailable)
        assert world.endpoint.count == ROUNDS

    run(work)


def test_warm_never_raises() -> None:
    """At start the token is fetched ahead; an endpoint that is down is logged, not raised."""

    async def work(world: World) -> None:
        world.endpoint.failure = httpx2.Response(500)
        await world.cache.warm()
        assert (world.cache.peek(), world.endpoint.count) == (None, 1)
        world.endpoint.failure = None
        world.clock.pass_(2)
        await world.cache.warm()
        assert world.cache.peek() is not None

    run(work)


def test_a_token_is_told_by_the_clocks_at_its_sending() -> None:
    """Both ends of a life are counted from when the request was sent, not from the answer."""

    async def work(world: World) -> None:
        began, wall = world.clock.monotonic(), world.clock.now()
        world.endpoint.slow = 7
        caller = asyncio.create_task(world.cache.token())
        await world.clock.advance(8)
        token = await caller
        assert token.obtained == began
        assert token.life.until == began + 3600
        assert token.life.expires_at == wall + timedelta(hours=1)

    run(work)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("advance"), st.floats(0.0, 0.5)),
        st.tuples(st.just("call"), st.just(0.0)),
        st.tuples(st.just("call"), st.just(0.0)),
        st.tuples(st.just("wall"), st.sampled_from([-3600.0, 3600.0]) | st.floats(-3600.0, 3600.0)),
        st.tuples(st.just("endpoint"), st.sampled_from([0.0, 1.0, 2.0])),
        st.tuples(st.just("slow"), st.floats(0.0, 0.3)),
        st.tuples(st.just("forget"), st.floats(0.0, 0.5)),
    ),
    min_size=1,
    max_size=40,
)


LIFETIMES = st.sampled_from([5.0, 60.0, 900.0, 3600.0]) | st.floats(5.0, DAY)


@settings(max_examples=400, deadline=None)
@given(lifetime=LIFETIMES, steps=STEPS, draw=st.floats(0.0, 1.0, exclude_max=True))
def test_no_token_under_its_floor_by_true_time(
    lifetime: float, steps: list[tuple[str, float]], draw: float
) -> None:
    """Whatever the wall clock, the endpoint and the callers do: a token handed out has more than
    its floor left by true time since the endpoint issued it; two token requests are apart by the
    refresh point after a success, by the back-off after a failure, unless a 401 came in; and two
    lives after the last caller nothing is asked for any more."""
    failures = [None, httpx2.Response(503), httpx2.Response(401, json={"error": "invalid_client"})]

    async def work(world: World) -> None:
        endpoint, clock = world.endpoint, world.clock
        forgotten: list[float] = []
        asking: list[asyncio.Task[None]] = []

        async def ask() -> None:
            try:
                token = await world.cache.token()
            except (UpstreamUnavailable, UpstreamRefused, UpstreamNonsense, UpstreamTimeout):
                return
            age = clock.monotonic() - endpoint.issued[token.value.reveal()]
            assert lifetime - age > floor_of(lifetime) - 1e-6
            assert token.obtained >= max(forgotten, default=0.0)

        for step, size in steps:
            if step == "advance":
                await clock.advance(size * lifetime)
            elif step == "wall":
                clock.step(size)
            elif step == "endpoint":
                endpoint.failure = failures[int(size)]
            elif step == "slow":
                endpoint.slow = size * lifetime
            elif step == "forget":
                forgotten.append(clock.monotonic() - size * lifetime / 10)
                world.cache.forget(older_than=forgotten[-1])
            else:
                asking.append(asyncio.create_task(ask()))
                await settle(8)
        ended = clock.monotonic()
        await clock.advance(10 * lifetime)
        await asyncio.gather(*asking)
        if not forgotten:
            _are_apart(endpoint, lifetime)
        assert all(at <= ended + 2.7 * lifetime for at in endpoint.asked)

    run(work, lifetime=lifetime, draw=lambda: draw)


def _are_apart(endpoint: Endpoint, lifetime: float) -> None:
    for began, asked, (ended, granted) in zip(
        endpoint.asked, endpoint.asked[1:], endpoint.ended, strict=False
    ):
        assert asked >= ended
        if granted:
            nonsense = ended - began >= lifetime - floor_of(lifetime)
            assert nonsense or asked >= began + 0.67 * lifetime - 1e-6
        else:
            assert asked >= ended + SOONEST - 1e-6
