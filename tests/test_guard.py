"""What is let out to an upstream account: within one budget of time, of places and of calls."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import limits
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.breaker import OPENS_AFTER, CredentialRefused, NotForThis
from broker.errors import (
    BrokerError,
    HandleExpired,
    InvalidParameters,
    Overloaded,
    Throttled,
    UpstreamNonsense,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from broker.guard import LEAST, Guard
from broker.limits import RateLimits
from broker.loop_time import LoopTime
from broker.metrics import Metrics
from broker.model import Priority
from broker.schedule import SystemClock
from broker.upstreams.transport import NotSent
from tests.support import VirtualClock, settle

DOWN = UpstreamUnavailable("x", cause="status 500")
LOST = UpstreamTimeout("x", cause="lost")


class Stalled(LoopTime):
    """Our own loop stood still for as long as the test says."""

    seconds = 0.0

    @property
    def stalled(self) -> float:
        return self.seconds


def never(_: BrokerError) -> bool:
    return False


def always(_: BrokerError) -> bool:
    return True


def if_not_sent(error: BrokerError) -> bool:
    return isinstance(error, NotSent)


class World:
    """A guard on a played clock, in front of an upstream that ends as it is told to, in turn."""

    def __init__(self, *, rate: str | None = None, most: int = 8, draw: float = 1.0) -> None:
        self.clock = VirtualClock()
        self.metrics = Metrics()
        self.draw = draw
        self.limits = RateLimits(self.clock)
        self.loop_time = Stalled()
        self.guard = self.another(rate, most)
        self.ends: list[BrokerError | float | str] = []
        """An error; seconds that the answer takes; "hang": until the attempt's time is over."""
        self.began: list[float] = []
        self.given: list[float] = []
        self.out = 0
        self.most_out = 0

    def another(
        self,
        rate: str | None,
        most: int = 8,
        *,
        name: str = "acme",
        account: str = "acme",
        paced: bool = False,
    ) -> Guard:
        return Guard(
            name,
            account=account,
            clock=self.clock,
            metrics=self.metrics,
            limits=self.limits,
            rate=limits.parse(rate) if rate else None,
            most=most,
            draw=lambda: self.draw,
            paced=paced,
            loop_time=self.loop_time,
        )

    async def work(self, seconds: float) -> str:
        self.began.append(self.clock.monotonic())
        self.given.append(seconds)
        self.out += 1
        self.most_out = max(self.most_out, self.out)
        end = self.ends.pop(0) if self.ends else "ok"
        try:
            if isinstance(end, BrokerError):
                raise end.again()
            if isinstance(end, float) and end < seconds:
                await self.clock.sleep(end)
            elif end != "ok":
                await self.clock.sleep(seconds)
                raise LOST.again()
            return "done"
        finally:
            self.out -= 1

    async def call(
        self,
        again: Callable[[BrokerError], bool] = never,
        *,
        within: float = 10.0,
        priority: Priority = Priority.PERSON,
    ) -> str:
        return await self.guard.call(
            self.work,
            deadline=self.clock.monotonic() + within,
            priority=priority,
            operation="session",
            again=again,
        )

    async def ended(self, call: Coroutine[Any, Any, str]) -> Any:
        """What it gave or raised, with as much time as it takes."""
        task = asyncio.ensure_future(call)
        for _ in range(400):
            await settle()
            if task.done():
                return task.exception() or task.result()
            await self.clock.advance(0.05)
        raise AssertionError("it did not end")

    def sample(self, name: str, **labels: str) -> float:
        found = self.metrics.registry.get_sample_value(name, {"upstream": "acme", **labels})
        return found or 0.0

    def shed(self, reason: str) -> float:
        return self.sample("broker_upstream_shed_total", reason=reason)

    def retried(self) -> float:
        return self.sample("broker_upstream_retries_total", operation="session")

    @property
    def in_flight(self) -> float:
        return self.sample("broker_upstream_requests_in_flight")

    @property
    def circuit(self) -> float:
        return self.sample("broker_circuit_state")


def told(call: Coroutine[Any, Any, str]) -> tuple[str, str, float | None]:
    """How a call ended that does not wait for anything."""
    try:
        call.send(None)
    except StopIteration as done:
        return done.value, "", None
    except BrokerError as exc:
        return type(exc).__name__, exc.cause, exc.retry_after
    raise AssertionError("it waits")


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


# --- the way of a good call


def test_a_call_to_a_well_upstream_waits_for_nothing() -> None:
    """Neither lock nor task nor a turn of the loop comes between it and its work."""
    w = World()
    assert told(w.call()) == ("done", "", None)
    assert (w.given, w.in_flight, w.circuit) == ([10.0], 0, 0)


def test_it_is_counted_while_it_is_out() -> None:
    """In flight, and no more once it has ended in whichever way."""

    async def story() -> None:
        w = World()
        w.ends = [1.0, "hang", 5.0]
        calls = [asyncio.ensure_future(w.call(within=2)) for _ in range(3)]
        await settle()
        assert w.in_flight == 3
        await w.clock.advance(1)
        assert w.in_flight == 2
        calls[2].cancel()
        await w.clock.advance(1)
        await asyncio.gather(*calls, return_exceptions=True)
        assert w.in_flight == 0

    run(story())


def test_a_defect_frees_its_place() -> None:
    """What is no BrokerError says nothing of the upstream, and takes no place with it."""
    w = World(most=1)

    async def broken(_: float) -> str:
        raise KeyError("x")

    for _ in range(OPENS_AFTER + 1):
        with pytest.raises(KeyError):
            w.guard.call(broken, deadline=math.inf, operation="session", again=never).send(None)
    assert (told(w.call()), w.circuit) == (("done", "", None), 0)


# --- one budget of time


@pytest.mark.parametrize("within", [-1.0, 0.0, LEAST - 0.001])
def test_without_time_nothing_is_sent(within: float) -> None:
    """A call that could not end is not begun."""
    w = World()
    assert told(w.call(within=within)) == ("NotForThis", "no time left", 1.0)
    assert (w.began, w.shed("late")) == ([], 1)


def test_all_attempts_share_one_deadline() -> None:
    """One that hangs is cut off while there is time for another; the last gets what is left."""

    async def story() -> None:
        w = World(draw=0.0)
        w.ends = ["hang"] * 3
        error = await w.ended(w.call(always, within=8))
        assert type(error) is UpstreamTimeout
        assert w.given == pytest.approx([4, 3.95 / 2, 3.95 / 2 - 0.1])
        assert w.clock.monotonic() <= 1008 + 0.05

    run(story())


def test_what_may_not_be_repeated_has_all_the_time() -> None:
    """Half of it would make a slow mint a lost one."""

    async def story() -> None:
        w = World()
        w.ends = ["hang"]
        assert type(await w.ended(w.call(if_not_sent, within=4))) is UpstreamTimeout
        assert w.given == [4]

    run(story())


def test_no_attempt_is_begun_that_could_not_end() -> None:
    """A pause that would end after the deadline is not begun: the error comes at once."""

    async def story() -> None:
        w = World()
        w.ends = [DOWN, DOWN, DOWN]
        within = 0.2 + LEAST - 0.001
        assert told(w.call(always, within=within))[0] == "UpstreamUnavailable"
        w.ends = [DOWN, DOWN, DOWN]
        assert type(await w.ended(w.call(always, within=within + 0.01))) is UpstreamUnavailable
        assert len(w.began) == 3

    run(story())


# --- repetitions


@pytest.mark.parametrize(
    ("draw", "pauses"), [(0.0, [0.05, 0.1]), (0.5, [0.125, 0.25]), (1.0, [0.2, 0.4])]
)
def test_what_was_not_sent_is_tried_twice_more(draw: float, pauses: list[float]) -> None:
    """After 0.05 to 0.2 s, then 0.1 to 0.4 s, drawn; then it is told."""

    async def story() -> None:
        w = World(draw=draw)
        w.ends = [NotSent("x")] * 3
        task = asyncio.ensure_future(w.call(if_not_sent))
        for nth, pause in enumerate(pauses, 1):
            await w.clock.advance(pause - 0.001)
            assert len(w.began) == nth
            await w.clock.advance(0.0011)
            assert len(w.began) == nth + 1
        with pytest.raises(NotSent):
            await task
        assert w.retried() == 2

    run(story())


def test_a_repetition_that_is_good_is_the_answer() -> None:
    """Nobody sees the first attempt but the metrics."""

    async def story() -> None:
        w = World()
        w.ends = [NotSent("x")]
        assert await w.ended(w.call(if_not_sent)) == "done"
        assert (len(w.began), w.retried(), w.circuit) == (2, 1, 0)

    run(story())


@pytest.mark.parametrize("error", [LOST, DOWN, UpstreamNonsense("x"), UpstreamRefused("x")])
def test_what_is_not_said_to_be_safe_is_not_repeated(error: BrokerError) -> None:
    """What may have happened is told, at once."""
    w = World()
    w.ends = [error]
    assert told(w.call(if_not_sent))[0] == type(error).__name__
    assert (len(w.began), w.retried()) == (1, 0)


def test_a_429_is_never_repeated_within_a_request() -> None:
    """Also where everything else is: it would make the ban longer."""
    w = World()
    w.ends = [Throttled("x", cause="status 429", retry_after=0.5)]
    assert told(w.call(always)) == ("Throttled", "status 429", 0.5)
    assert len(w.began) == 1


@pytest.mark.parametrize(
    ("wait", "attempts", "at"),
    [(0.0, 2, 0.2), (0.1, 2, 0.2), (1.0, 2, 1.1), (2.0, 2, 2.2), (2.1, 1, 0.0), (900.0, 1, 0.0)],
)
def test_a_short_retry_after_is_waited_for(wait: float, attempts: int, at: float) -> None:
    """Up to two seconds and within the deadline, never less than is asked for; a longer one is the
    caller's to wait for."""

    async def story() -> None:
        w = World()
        w.ends = [UpstreamUnavailable("x", retry_after=wait)]
        found = await w.ended(w.call(always))
        assert len(w.began) == attempts
        assert w.began[-1] - w.began[0] == pytest.approx(at)
        assert (found == "done") is (attempts == 2)

    run(story())


def test_a_short_retry_after_beyond_the_deadline_is_not_waited_for() -> None:
    """Nobody is left to hear what would come of it."""
    w = World()
    w.ends = [UpstreamUnavailable("x", retry_after=1.5)]
    assert told(w.call(always, within=1.0)) == ("UpstreamUnavailable", "", 1.5)


def test_what_befell_a_call_is_told_though_its_repetition_is_refused() -> None:
    """A call that may have happened does not become one that was not sent because a pause was asked
    for meanwhile."""

    async def story() -> None:
        w = World()
        w.ends = [LOST, Throttled("x", retry_after=20.0)]
        task = asyncio.ensure_future(w.call(always))
        await settle()
        assert told(w.call())[0] == "Throttled"
        await w.clock.advance(0.3)
        with pytest.raises(UpstreamTimeout, match="lost"):
            await task
        assert (w.retried(), len(w.began)) == (0, 2)

    run(story())


def test_no_repetition_goes_out_to_an_upstream_that_was_found_dead_meanwhile() -> None:
    """Of hundreds that fail together most would come back, twice, after it is known. What befell
    each is told."""

    async def story() -> None:
        w = World()
        w.ends = [LOST, *[DOWN] * OPENS_AFTER]
        task = asyncio.ensure_future(w.call(always))
        await settle()
        for _ in range(OPENS_AFTER):
            assert told(w.call())[0] == "UpstreamUnavailable"
        assert w.circuit == 2
        await w.clock.advance(0.3)
        with pytest.raises(UpstreamTimeout, match="lost"):
            await task
        assert w.retried() == 0

    run(story())


# --- the pause that an upstream asks for


@pytest.mark.parametrize(
    ("error", "wait"),
    [
        (Throttled("x", retry_after=20.0), 22.0),
        (Throttled("x", retry_after=900.0), 66.0),
        (UpstreamUnavailable("x", retry_after=20.0), 22.0),
        (Throttled("x"), 1.1),
        (Throttled("x", retry_after=0.0), 1.1),
    ],
)
def test_whoever_asks_for_a_pause_gets_it(error: BrokerError, wait: float) -> None:
    """All calls to the account fail at once and are told when to come again; a minute and a tenth
    at the most. Each failure is one call."""
    w = World()
    w.ends = [error]
    told(w.call())
    for passed in (0.0, wait - 0.01):
        w.clock.pass_(passed)
        kind, cause, left = told(w.call(always))
        assert (kind, cause) == ("NotForThis", "cooling down")
    assert left == pytest.approx(0.01)
    assert (len(w.began), w.shed("cooldown")) == (1, 2)
    w.clock.pass_(0.011)
    assert told(w.call()) == ("done", "", None)


def test_an_upstream_that_throttles_without_a_word_is_left_alone_for_longer_each_time() -> None:
    """1, 2, 4 seconds, and a good answer begins anew: a 429 is no failure, but no invitation."""
    w = World()
    waits = []
    for end in (Throttled("x"), Throttled("x"), Throttled("x"), None, Throttled("x")):
        if end is None:
            assert told(w.call())[0] == "done"
            continue
        w.ends = [end]
        told(w.call())
        left = told(w.call())[2]
        assert left is not None
        waits.append(left)
        w.clock.pass_(left + 0.001)
    assert waits == pytest.approx([1.1, 2.2, 4.4, 1.1])
    assert w.circuit == 0


@pytest.mark.parametrize(
    "error", [DOWN, NotForThis("x", retry_after=30.0), UpstreamRefused("x", retry_after=30.0)]
)
def test_nobody_else_shuts_the_gate(error: BrokerError) -> None:
    """A 5xx without Retry-After, and what is about one request only."""
    w = World()
    w.ends = [error]
    told(w.call())
    assert told(w.call()) == ("done", "", None)


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    """Two calls that were out together: the longer wish counts."""

    async def story() -> None:
        w = World()

        async def late(_: float) -> str:
            await w.clock.sleep(1)
            raise Throttled("x", retry_after=2.0)

        task = asyncio.ensure_future(
            w.guard.call(late, deadline=2000, operation="session", again=never)
        )
        await settle()
        w.ends = [Throttled("x", retry_after=40.0)]
        told(w.call())
        await w.clock.advance(1)
        with pytest.raises(Throttled):
            await task
        assert told(w.call())[2] == pytest.approx(43)

    run(story())


# --- the breaker


def test_a_dead_upstream_is_left_alone() -> None:
    """After five failures nothing is sent; then one probe; when it is good, all."""
    w = World()
    w.ends = [DOWN] * OPENS_AFTER
    for _ in range(OPENS_AFTER):
        told(w.call())
    assert told(w.call(always)) == ("UpstreamUnavailable", "circuit open", 1.0)
    assert (len(w.began), w.shed("circuit"), w.in_flight) == (OPENS_AFTER, 1, 0)
    w.clock.pass_(1)
    assert told(w.call()) == ("done", "", None)
    assert (w.circuit, told(w.call())) == (0, ("done", "", None))


@pytest.mark.parametrize(
    ("error", "opens"),
    [
        (LOST, True), (UpstreamNonsense("x"), True), (NotSent("x"), True),
        (CredentialRefused("x"), True), (UpstreamRefused("x"), False),
        (InvalidParameters("x"), False), (NotForThis("x"), False),
    ],
)  # fmt: skip
def test_what_opens_the_circuit(error: BrokerError, opens: bool) -> None:
    """What says that other calls would fail too; not what one caller's request brings about."""
    w = World()
    w.ends = [error] * 20
    for _ in range(20):
        told(w.call())
    assert (w.circuit == 2) is opens


def test_refused_credentials_are_told_once_for_several_calls() -> None:
    """`failed` counts like a call's end; a request's own fault does not."""
    w = World()
    for _ in range(OPENS_AFTER):
        w.guard.failed(UpstreamRefused("x"))
    assert w.circuit == 0
    for _ in range(OPENS_AFTER):
        w.guard.failed(CredentialRefused("x"))
    assert told(w.call())[:2] == ("UpstreamRefused", "circuit open")


def test_a_cancelled_probe_frees_its_place() -> None:
    """Its caller left: that is no news of the upstream, and the next call probes."""

    async def story() -> None:
        w = World()
        w.ends = [*[DOWN] * OPENS_AFTER, "hang"]
        for _ in range(OPENS_AFTER):
            told(w.call())
        w.clock.pass_(1)
        probe = asyncio.ensure_future(w.call())
        await settle()
        assert told(w.call())[:2] == ("UpstreamUnavailable", "circuit open")
        probe.cancel()
        await settle()
        assert (w.circuit, w.in_flight) == (1, 0)
        assert told(w.call()) == ("done", "", None)

    run(story())


@pytest.mark.parametrize(("at", "opens"), [(9.0, False), (10.0, True)])
def test_a_call_that_is_cut_off_at_its_deadline_did_hang(at: float, opens: bool) -> None:
    """The request's own deadline may end before the transport's: else an upstream that hangs would
    never be found out. A caller who leaves earlier is no failure."""

    async def story() -> None:
        w = World()
        w.ends = [20.0] * OPENS_AFTER
        w.work = lambda _: w.clock.sleep(100)  # type: ignore[method-assign,assignment]
        calls = [asyncio.ensure_future(w.call()) for _ in range(OPENS_AFTER)]
        await w.clock.advance(at)
        for call in calls:
            call.cancel()
        await settle()
        assert (w.circuit == 2) is opens

    run(story())


@pytest.mark.parametrize(
    ("stalled", "opens"), [(0.0, True), (0.5, True), (2.4, True), (2.6, False), (9.9, False)]
)
def test_a_call_that_we_slept_through_is_not_held_against_its_upstream(
    stalled: float, opens: bool
) -> None:
    """Where our own loop stood still for more than a quarter of the call's time, its end at the
    request's deadline says nothing of the upstream, however often; where it did not, the upstream
    has had its time."""

    async def story() -> None:
        w = World()
        w.loop_time.seconds = 1000.0  # before, which is not counted
        w.work = lambda _: w.clock.sleep(100)  # type: ignore[method-assign,assignment]
        calls = [asyncio.ensure_future(w.call()) for _ in range(OPENS_AFTER)]
        await settle()
        w.loop_time.seconds += stalled
        await w.clock.advance(10)
        for call in calls:
            call.cancel()
        await settle()
        assert (w.circuit == 2) is opens
        assert w.in_flight == 0

    run(story())


def test_a_time_out_of_the_call_itself_is_held_against_the_upstream_though_we_stumbled() -> None:
    """The transport counts running seconds: what it calls a time-out the upstream has had."""

    async def story() -> None:
        w = World()
        w.ends = ["hang"] * OPENS_AFTER
        calls = [asyncio.ensure_future(w.ended(w.call())) for _ in range(OPENS_AFTER)]
        w.loop_time.seconds += 9
        found = await asyncio.gather(*calls)
        assert {type(end) for end in found} == {UpstreamTimeout}
        assert w.circuit == 2

    run(story())


def test_a_budget_that_ends_while_the_loop_stands_still_opens_no_circuit() -> None:
    """On the real clock: calls cut off by the request's budget in the turn in which our loop wakes
    are not the upstream's failures; those that it kept for the whole budget are."""

    async def told_by(stall: float) -> float:
        clock, metrics = SystemClock(), Metrics()
        loop_time = LoopTime()
        if stall:  # else all seconds count, also those that a busy machine takes
            loop_time.start()
            await asyncio.sleep(0.1)
        guard = Guard(
            "acme",
            account="acme",
            clock=clock,
            metrics=metrics,
            limits=RateLimits(clock),
            rate=None,
            most=100,
            loop_time=loop_time,
        )

        async def asks() -> None:
            async with asyncio.timeout(1.0):
                await guard.call(
                    lambda _: asyncio.sleep(60),
                    deadline=clock.monotonic() + 1.0,
                    operation="session",
                    again=never,
                )

        calls = [asyncio.ensure_future(asks()) for _ in range(OPENS_AFTER)]
        await asyncio.sleep(0.1)
        time.sleep(stall)
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(end) for end in ends} == {TimeoutError}
        loop_time.stop()
        state = metrics.registry.get_sample_value("broker_circuit_state", {"upstream": "acme"})
        assert state is not None
        return state

    async def story() -> None:
        assert await told_by(3.0) == 0
        assert await told_by(0.0) == 2

    run(story())


def test_a_replaced_credential_is_tried_at_once() -> None:
    """Where refused credentials opened the circuit, a secret that changed lets one probe out there
    and then, and all calls once that is good; a dead upstream is no livelier for it."""
    for error, expected in ((CredentialRefused("x"), "done"), (DOWN, "UpstreamUnavailable")):
        w = World()
        for _ in range(OPENS_AFTER):
            w.guard.failed(error)
        assert told(w.call())[1] == "circuit open"
        w.guard.hope()
        assert [told(w.call())[0] for _ in range(2)] == [expected] * 2


@pytest.mark.parametrize(
    ("found", "after"),
    [("status 422", 0), ("the caller's", 0), ("one key's", 2), ("for one request", 2)],
)
def test_only_a_whole_answer_ends_a_row_of_failures(found: str, after: float) -> None:
    """A refusal of what a caller sent is one: five bad moments on five days are no outage of an
    upstream that gives a thousand such answers between them. It closes a circuit as the probe, too.
    What tells nothing of the upstream does neither."""
    error: BrokerError = {
        "status 422": InvalidParameters("x"),
        "the caller's": HandleExpired("x"),
        "one key's": UpstreamRefused("x"),
        "for one request": NotForThis("x"),
    }[found]
    w = World()
    for _ in range(OPENS_AFTER):
        w.ends = [DOWN, error]
        told(w.call())
        told(w.call())
    assert w.circuit == after
    w.ends = [DOWN] * OPENS_AFTER
    while w.ends and w.circuit != 2:
        told(w.call())
    w.clock.pass_(1)
    w.ends = [error]
    told(w.call())
    assert w.circuit == (1 if after else 0)


def test_a_call_is_one_failure_however_often_it_was_made() -> None:
    """A reading is made three times: or two of one browser would shut everybody out."""

    async def story() -> None:
        w = World(draw=0.0)
        w.ends = [DOWN] * 3 * OPENS_AFTER
        for nth in range(1, OPENS_AFTER + 1):
            assert w.circuit == 0
            await w.ended(w.call(always))
            assert len(w.began) == 3 * nth
        assert w.circuit == 2

    run(story())


def test_a_probe_keeps_its_place_between_two_attempts() -> None:
    """In the pause before its repetition nobody else is let out beside it."""

    async def story() -> None:
        w = World()
        for _ in range(OPENS_AFTER):
            w.guard.failed(DOWN)
        w.clock.pass_(1)
        w.ends = [DOWN]
        probe = asyncio.ensure_future(w.call(always))
        await settle()
        assert (len(w.began), w.out, w.circuit) == (1, 0, 1)
        assert told(w.call())[1] == "circuit open"
        assert (await w.ended(probe), w.circuit) == ("done", 0)  # type: ignore[arg-type]

    run(story())


def test_calls_that_make_pauses_of_their_own_are_let_out() -> None:
    """A token endpoint is asked by one that backs off itself: no opening is added to its pauses,
    or each would be the longer of the two; the metric tells of it all the same."""
    w = World()
    w.guard = w.another(None, paced=True)
    w.ends = [DOWN] * 9
    for nth in range(1, 10):
        assert told(w.call())[1] == "status 500"
        assert w.circuit == (2 if nth >= OPENS_AFTER else 0)
    assert (told(w.call()), w.circuit, w.shed("circuit")) == (("done", "", None), 0, 0)


# --- places


@pytest.mark.parametrize(
    ("most", "places"), [(8, (8, 6, 4)), (1, (1, 1, 1)), (2, (2, 1, 1)), (10, (10, 7, 5))]
)
def test_places_are_kept_for_people(most: int, places: tuple[int, int, int]) -> None:
    """A refresh gets one while under three quarters are taken, a prefetch under half; full is
    "overloaded", at once, with when to come again."""

    async def story() -> None:
        for priority, expected in zip(Priority, places, strict=True):
            w = World(most=most)
            w.ends = [5.0] * 20
            calls = [asyncio.ensure_future(w.call(priority=priority)) for _ in range(12)]
            await w.clock.advance(6)
            found = await asyncio.gather(*calls, return_exceptions=True)
            assert found.count("done") == w.most_out == expected
            refused = [one for one in found if isinstance(one, Overloaded)]
            assert len(refused) == 12 - expected == w.shed("full")
            assert {(one.status, one.cause, one.retry_after) for one in refused} == {
                (503, "upstream full", 2.0)
            }

    run(story())


def test_a_full_house_takes_no_probes_place() -> None:
    """Who is refused for want of a place leaves the probe to another."""

    async def story() -> None:
        w = World(most=1)
        for _ in range(OPENS_AFTER):
            w.guard.failed(DOWN)
        w.clock.pass_(1)
        w.guard._in_flight = 1  # one that began before it opened is still out
        assert told(w.call())[0] == "Overloaded"
        w.guard._in_flight = 0
        assert told(w.call()) == ("done", "", None)

    run(story())


def test_who_waits_for_a_credential_is_one_of_so_many() -> None:
    """Over as many as there are places: "overloaded", with when to come again, for what is waited
    for together hangs together. Calls have their own places, and whoever leaves frees theirs."""
    w = World(most=2)

    def one_more() -> None:
        with w.guard.waiting():
            raise KeyError("x")

    with w.guard.waiting():
        with w.guard.waiting():
            with pytest.raises(Overloaded) as caught:
                one_more()
            assert (caught.value.cause, caught.value.retry_after) == ("upstream full", 2.0)
            assert (w.shed("full"), told(w.call())) == (1, ("done", "", None))
        for _ in range(3):
            with pytest.raises(KeyError):
                one_more()


# --- the budget of calls


def test_the_budget_is_the_accounts() -> None:
    """Two guards of one account share it, as two replicas have them, by whatever names they call
    it; over it nothing is sent."""
    w = World(rate="4/hour")
    other = w.another("4/hour", name="renamed")
    for _ in range(2):
        assert told(w.call()) == ("done", "", None)
        w.guard, other = other, w.guard
        assert told(w.call()) == ("done", "", None)
    kind, cause, wait = told(w.call())
    assert (kind, cause, w.shed("budget"), len(w.began)) == ("Overloaded", "upstream budget", 1, 4)
    assert wait is not None
    assert 0 < wait <= 7200
    assert w.in_flight == 0


def test_two_accounts_of_one_name_have_two_budgets() -> None:
    """A credential may be called as a profile is: a token request spends nothing of the calls'."""
    w = World(rate="2/hour")
    guards = w.guard, w.another("2/hour", account="credential acme")
    for w.guard in guards:
        ends = [told(w.call())[:2] for _ in range(3)]
        assert ends == [("done", "")] * 2 + [("Overloaded", "upstream budget")]


def test_another_budget_is_in_force_at_once_and_resets_nothing() -> None:
    """It is edited while an upstream is angry: the pause that was asked for stays, and so does what
    was counted; none at all is a budget too."""
    w = World(rate="2/hour")
    w.ends = [Throttled("x", retry_after=20.0)]
    told(w.call())
    w.guard.rate = limits.parse("3/hour")
    assert told(w.call())[1] == "cooling down"
    w.clock.pass_(30)
    assert [told(w.call())[0] for _ in range(4)] == ["done"] * 3 + ["Overloaded"]
    w.guard.rate = None
    assert told(w.call()) == ("done", "", None)


def test_the_budget_is_kept_for_people() -> None:
    """Of eight calls a prefetch may make the first four, a refresh six, a person all."""
    for priority, expected in zip(Priority, (8, 6, 4), strict=True):
        w = World(rate="8/hour")
        ends = [told(w.call(priority=priority))[0] for _ in range(12)]
        assert ends.count("done") == expected


def test_each_attempt_counts_in_the_budget() -> None:
    """A repetition is a call: without room for it, what befell the first is told."""

    async def story() -> None:
        w = World(rate="2/hour")
        w.ends = [NotSent("x", cause="refused")] * 9
        error = await w.ended(w.call(always))
        assert (type(error), error.cause, len(w.began)) == (NotSent, "refused", 2)

    run(story())


@pytest.mark.parametrize(
    ("priority", "within", "waits"),
    [
        (Priority.PERSON, 10.0, True),
        (Priority.PERSON, 1.0, False),
        (Priority.REFRESH, 10.0, False),
        (Priority.PREFETCH, 10.0, False),
    ],
)
def test_a_person_waits_a_moment_for_room(priority: Priority, within: float, waits: bool) -> None:
    """Where that is short and fits well within the deadline; whom nobody waits for does not."""

    async def story() -> None:
        w = World(rate="20/second")
        while told(w.call())[0] == "done":
            w.clock.pass_(0.02)
            if len(w.began) >= 20:
                break
        began = w.clock.monotonic()
        found = await w.ended(w.call(priority=priority, within=within))
        assert (found == "done") is waits
        if waits:
            assert 0 < w.began[-1] - began <= 1

    run(story())


def test_who_leaves_while_waiting_for_room_takes_nothing_along() -> None:
    """Neither a place nor the probe's."""

    async def story() -> None:
        w = World(rate="1/second", most=1)
        told(w.call())
        w.clock.pass_(1.2)
        for _ in range(OPENS_AFTER):
            w.guard.failed(DOWN)
        w.clock.pass_(1)
        assert told(w.call())[0] in ("done", "Overloaded")
        waiting = asyncio.ensure_future(w.call())
        await settle()
        waiting.cancel()
        await settle()
        assert w.in_flight == 0
        w.clock.pass_(5)
        assert told(w.call()) == ("done", "", None)

    run(story())


def test_room_that_comes_too_late_is_not_used() -> None:
    """The store that keeps the budget may be slow: the deadline is looked at again."""
    w = World(rate="9/second")

    class Slow(RateLimits):
        async def room(self, item: Any, *who: str, share: float = 1.0) -> float:
            w.clock.pass_(1)
            return await super().room(item, *who, share=share)

    w.limits = Slow(w.clock)
    w.guard = w.another("9/second")
    assert told(w.call(within=1.01))[:2] == ("NotForThis", "no time left")
    assert (w.began, w.in_flight) == ([], 0)


# --- laws


ENDS: st.SearchStrategy[BrokerError | float | str] = st.one_of(
    st.sampled_from(
        [
            "ok", "hang", DOWN, LOST, NotSent("x"), UpstreamNonsense("x"), UpstreamRefused("x"),
            CredentialRefused("x"), Throttled("x"), Throttled("x", retry_after=3.0),
            UpstreamUnavailable("x", retry_after=0.5),
        ]
    ),
    st.floats(0.0, 6.0),
)  # fmt: skip
CALLS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0, 4.0]),  # seconds before it
        st.sampled_from([0.0, 0.03, 0.5, 2.0, 5.0]),  # its deadline
        st.sampled_from(list(Priority)),
        st.sampled_from([never, always, if_not_sent]),
        st.one_of(st.none(), st.floats(0, 3)),  # after which its caller leaves
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(
    CALLS,
    st.lists(ENDS, max_size=40),
    st.integers(1, 4),
    st.sampled_from([None, "3/second", "5/minute"]),
    st.floats(0, 1),
)
def test_whatever_happens_no_limit_is_passed(
    calls: Iterable[Any], ends: list[Any], most: int, rate: str | None, draw: float
) -> None:
    """Never more than `most` are out; never one begins, or is given time, beyond its deadline;
    never more than three attempts; all that is taken is given back."""

    async def story() -> None:
        w = World(rate=rate, most=most, draw=draw)
        w.ends = list(ends)
        tasks: list[asyncio.Future[Any]] = []
        for before, within, priority, again, leaves in calls:
            await w.clock.advance(before)
            tasks.append(asyncio.ensure_future(one(w, within, priority, again)))
            if leaves is not None:
                tasks.append(asyncio.ensure_future(leave(w, tasks[-1], leaves)))
            await settle(3)
        await w.clock.advance(20)
        for found in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(found, BrokerError | asyncio.CancelledError | str | None), found
        assert w.most_out <= most
        assert (w.out, w.in_flight, w.guard._in_flight) == (0, 0, 0)
        await w.clock.advance(3600)
        w.ends = []
        assert told(w.call()) == ("done", "", None)

    async def one(w: World, within: float, priority: Priority, again: Any) -> str:
        deadline = w.clock.monotonic() + within
        attempts = 0

        async def work(seconds: float) -> str:
            nonlocal attempts
            attempts += 1
            assert w.clock.monotonic() + LEAST / 2 <= deadline
            assert 0 < seconds <= deadline - w.clock.monotonic() + 1e-9
            return await w.work(seconds)

        try:
            return await w.guard.call(
                work, deadline=deadline, priority=priority, operation="session", again=again
            )
        finally:
            assert attempts <= 3
            assert w.clock.monotonic() <= deadline + 1e-6 or not attempts

    async def leave(w: World, task: asyncio.Future[Any], after: float) -> None:
        await w.clock.sleep(after)
        task.cancel()

    run(story())
