"""Rate limits: what a sliding window counter guarantees, on a clock that is played."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import limits
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.errors import RateLimited
from broker.limits import MOST_KEYS, RateLimits
from broker.schedule import SystemClock
from tests.redis_server import RedisServer, redis_server
from tests.stores import Retold, Seen, quicken, store_at, until
from tests.support import VirtualClock


class Gate:
    """A limiter on a played clock, asked without a loop: it never waits for anything."""

    def __init__(self, rate: str) -> None:
        self.clock = VirtualClock()
        self.limits = RateLimits(self.clock)
        self.item = limits.parse(rate)
        self.accepted: list[float] = []

    def hit(self, *who: str) -> RateLimited | None:
        asked = self.limits.hit(self.item, *(who or ("profile", "caller", "ada")))
        try:
            asked.send(None)
        except StopIteration:
            self.accepted.append(self.clock.monotonic())
            return None
        except RateLimited as exc:
            return exc
        raise AssertionError("a limiter does not wait")

    def fill(self, *who: str) -> int:
        count = 0
        while self.hit(*who) is None:
            count += 1
        return count


RATES = st.tuples(st.integers(1, 20), st.sampled_from([1, 7, 60, 3600]))
STEPS = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.floats(0, 1.2), st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.5])),
        st.integers(1, 25),
    ),
    max_size=40,
)
WHOLE_SECONDS = st.lists(st.tuples(st.integers(0, 150), st.integers(1, 25)), max_size=40)


def rate_of(amount: int, seconds: int) -> str:
    return f"{amount} per {seconds} second"


@given(st.integers(1, 20), st.sampled_from([7, 60, 90]), WHOLE_SECONDS)
@example(10, 60, [(0, 1), (59, 9), (59, 20), (1, 20)])
@settings(max_examples=200, deadline=None, derandomize=True)
def test_what_a_sliding_window_counter_guarantees(
    amount: int, window: int, steps: list[tuple[int, int]]
) -> None:
    """At `N per W`, whatever the pattern of requests: at most N in any window that is counted
    (they begin with the first request), hence at most 2N in any W seconds wherever they begin, and
    at most (k + 1) N in any k W seconds, so N per W in the long run."""
    gate = Gate(rate_of(amount, window))
    for passing, burst in steps:
        gate.clock.pass_(passing)
        for _ in range(burst):
            gate.hit()
    counted = Counter((at - gate.accepted[0]) // window for at in gate.accepted)
    assert max(counted.values(), default=0) <= amount
    for start in sorted(set(gate.accepted)):
        for length in (1, 2, 3):
            within = sum(start <= at < start + length * window for at in gate.accepted)
            assert within <= (length + 1) * amount


def test_the_worst_burst_there_is() -> None:
    """2N in one W is really possible (N at the end of a window, N through the next), which is why
    no less is promised; from then on it is N per W."""
    gate = Gate("10/minute")
    assert gate.hit() is None
    gate.clock.pass_(59)
    assert gate.fill() == 9
    taken = 0
    for _ in range(58):
        gate.clock.pass_(1)
        taken += gate.fill()
    assert taken == 10
    for _ in range(10):
        taken = 0
        for _ in range(60):
            gate.clock.pass_(1)
            taken += gate.fill()
        assert taken <= 10


def test_the_last_window_slides_out() -> None:
    """What was let through in the last window counts by the share of it that is still within the
    last W seconds."""
    gate = Gate("10/minute")
    assert gate.fill() == 10
    gate.clock.pass_(60)
    assert gate.fill() == 0
    gate.clock.pass_(30)
    assert gate.fill() == 5
    gate.clock.pass_(30)
    assert gate.fill() == 5
    gate.clock.pass_(119)
    assert gate.fill() == 10


def test_an_idle_caller_has_all_of_it_again() -> None:
    """After two windows without a request nothing is held against a caller."""
    gate = Gate("10/minute")
    for _ in range(3):
        assert gate.fill() == 10
        gate.clock.pass_(120)


@given(RATES, STEPS)
@example((1, 1), [(0.0, 2)])
@example((3, 60), [(0.0, 3), (1.0, 1), (0.3, 3)])
@settings(max_examples=300, deadline=None, derandomize=True)
def test_retry_after_is_honest(rate: tuple[int, int], steps: list[tuple[float, int]]) -> None:
    """Who waits exactly `retry_after` is let through, it is never more than two windows, and a good
    bit earlier they would not have been."""
    amount, window = rate
    gate = Gate(rate_of(amount, window))
    for passing, burst in steps:
        gate.clock.pass_(passing * window)
        for _ in range(burst):
            refused = gate.hit()
            if refused is None:
                continue
            wait = refused.retry_after
            assert wait is not None
            assert 0 <= wait <= 2 * window + 0.01
            if wait > 0.01:
                gate.clock.pass_(wait - 0.005)
                assert gate.hit() is not None
                gate.clock.pass_(0.005)
            else:
                gate.clock.pass_(wait)
            assert gate.hit() is None
            break


def test_a_refusal_says_which_limit() -> None:
    """The error carries the policy for the RateLimit-Policy field, and no name of the caller."""
    gate = Gate("2 per 5 minute")
    assert gate.fill("p", "c", "ada-canary") == 2
    refused = gate.hit("p", "c", "ada-canary")
    assert refused is not None
    assert refused.policy == '"mint";q=2;w=300'
    assert "canary" not in f"{refused!r}{refused.detail}{refused.policy}"


def test_refusals_do_not_count() -> None:
    """Knocking on a shut gate does not keep it shut."""
    gate = Gate("2/minute")
    gate.fill()
    for _ in range(1000):
        assert gate.hit() is not None
    gate.clock.pass_(120)
    assert gate.fill() == 2


def test_a_step_of_the_wall_clock_changes_nothing() -> None:
    """Setting the clock by a year, either way, neither opens nor shuts the gate."""
    for seconds in (-31536000, -61, 61, 31536000):
        gate = Gate("5/minute")
        assert gate.fill() == 5
        before = gate.hit()
        gate.clock.step(seconds)
        after = gate.hit()
        assert before is not None
        assert after is not None
        assert after.retry_after == before.retry_after
        gate.clock.pass_(120)
        assert gate.fill() == 5


NAMES = st.text(alphabet='ab/,"\\\0|:[] %é\ud800', max_size=6)
WHO = st.tuples(NAMES, NAMES, NAMES)


@given(WHO, WHO)
@example(("a/b", "c", "d"), ("a", "b/c", "d"))
@example(("a", "b", "c/d"), ("a", "b/c", "d"))
@example(("a", "b", ""), ("a", "", "b"))
@example(("a", "b,c", "d"), ("a,b", "c", "d"))
@example(("a", "b", "c"), ("a", "b", "c/1/1/minute"))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_who_is_another_has_another_count(one: tuple[str, str, str], other: Any) -> None:
    """Two different (profile, caller, subject) never share a count, whatever is in the names; the
    same have one count."""
    gate = Gate("1/minute")
    assert gate.hit(*one) is None
    assert (gate.hit(*other) is None) == (one != other)
    assert gate.hit(*one) is not None


def test_profiles_with_other_rates_do_not_meet() -> None:
    """One caller's count in one profile is not their count in another."""
    gate = Gate("3/minute")
    assert [gate.fill(profile, "c", "ada") for profile in ("p", "q")] == [3, 3]


def test_memory_is_bounded() -> None:
    """200 000 callers with subjects of 1 KiB leave the last 100 000 under short keys; who was there
    last is still counted."""
    gate = Gate("1/minute")
    for number in range(2 * MOST_KEYS):
        gate.hit("p", "c", f"{number:01024}")
    windows = gate.limits._storage._windows
    assert len(windows) == MOST_KEYS
    assert max(map(len, windows)) < 100
    assert gate.hit("p", "c", f"{2 * MOST_KEYS - 1:01024}") is not None


def test_a_hit_is_one_step() -> None:
    """A thousand hits at once let through exactly the limit."""

    async def story() -> None:
        clock = VirtualClock()
        limiter = RateLimits(clock)
        item = limits.parse("7/minute")
        hits = (limiter.hit(item, "p", "c", "ada") for _ in range(1000))
        results = await asyncio.gather(*hits, return_exceptions=True)
        assert results.count(None) == 7
        assert sum(isinstance(result, RateLimited) for result in results) == 993

    asyncio.run(story())


def test_only_sliding_windows_are_kept() -> None:
    """The storage does not pretend to be good for the library's other strategies."""
    storage = RateLimits(VirtualClock())._storage
    with pytest.raises(NotImplementedError):
        asyncio.run(storage.incr("k", 1))


class Room:
    """A budget on a played clock, asked without a loop."""

    def __init__(self, rate: str) -> None:
        self.clock = VirtualClock()
        self.limits = RateLimits(self.clock)
        self.item = limits.parse(rate)

    def ask(self, share: float = 1.0) -> float:
        asked = self.limits.room(self.item, "upstream", "nmi", share=share)
        try:
            asked.send(None)
        except StopIteration as exc:
            return float(exc.value)
        raise AssertionError("a limiter does not wait")


def test_a_share_leaves_the_rest_to_others() -> None:
    """Who asks for half of a budget gets half of it, whoever asks for all of it the rest; a refusal
    counts nothing."""
    room = Room("10/minute")
    assert [room.ask(0.5) > 0 for _ in range(8)] == [False] * 5 + [True] * 3
    assert [room.ask(0.8) > 0 for _ in range(5)] == [False] * 3 + [True] * 2
    assert [room.ask() > 0 for _ in range(4)] == [False] * 2 + [True] * 2


@given(RATES, st.sampled_from([0.1, 0.5, 0.75, 1.0]), STEPS)
@example((1, 1), 0.1, [(0.0, 2)])
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_budget_s_wait_is_honest(
    rate: tuple[int, int], share: float, steps: list[tuple[float, int]]
) -> None:
    """Who asks again after the seconds that were told gets one, if nobody else asked meanwhile;
    they are more than nought, and never more than two windows."""
    amount, window = rate
    room = Room(rate_of(amount, window))
    for passing, burst in steps:
        room.clock.pass_(passing * window)
        for _ in range(burst):
            wait = room.ask(share)
            assert 0 <= wait <= 2 * window + 0.01
            if wait > 0:
                room.clock.pass_(wait)
                assert room.ask(share) == 0.0
                break


def test_another_name_for_the_policy() -> None:
    """A refusal names the policy that it was asked under."""
    gate = Gate("1 per 5 minute")
    assert gate.hit() is None
    with pytest.raises(RateLimited) as refused:
        gate.limits.hit(gate.item, "profile", "caller", "ada", policy_name="act").send(None)
    assert refused.value.policy == '"act";q=1;w=300'


def test_replicas_share_one_count() -> None:
    """Two replicas with one store let through what one would, and shares hold over both; the wait
    that is told is honest there too."""

    async def story(url: str) -> None:
        async with store_at(url) as here, store_at(url) as there:
            one, two = RateLimits(SystemClock(), here), RateLimits(SystemClock(), there)
            item = limits.parse("7/minute")
            hits = ((one, two)[n % 2].hit(item, "p", "c", "ada") for n in range(100))
            results = await asyncio.gather(*hits, return_exceptions=True)
            assert results.count(None) == 7
            refused = [result for result in results if isinstance(result, RateLimited)]
            assert len(refused) == 93
            assert all(59 < (one.retry_after or 0) < 60.1 for one in refused)
            budget = limits.parse("10/minute")
            waits = [await (one, two)[n % 2].room(budget, "u", share=0.5) for n in range(7)]
            assert [wait > 0 for wait in waits] == [False] * 5 + [True] * 2
            assert [await two.room(budget, "u") > 0 for _ in range(6)] == [False] * 5 + [True]
            quick = limits.parse("2/second")
            assert [await one.room(quick, "q") for _ in range(2)] == [0.0, 0.0]
            wait = await two.room(quick, "q")
            assert 0.9 < wait <= 1.01
            await asyncio.sleep(wait)
            assert await two.room(quick, "q") == 0.0

    with redis_server() as url:
        asyncio.run(story(url))


def test_alone_while_the_store_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the store each replica counts by itself: nobody is refused for the outage, and nobody
    let through without end; afterwards they share again."""

    quicken(monkeypatch)

    async def story(server: RedisServer) -> None:
        seen = Seen(), Seen()
        async with store_at(server, seen=seen[0]) as here, store_at(server, seen=seen[1]) as there:
            one, two = RateLimits(SystemClock(), here), RateLimits(SystemClock(), there)
            item = limits.parse("5/hour")
            await one.hit(item, "ada")
            beats = [Retold(store).calls for store in (here, there)]
            await until(lambda: all(beats))
            server.kill()
            for limiter in (one, two):
                hits = (limiter.hit(item, "ada") for _ in range(30))
                results = await asyncio.gather(*hits, return_exceptions=True)
                assert results.count(None) == 5
                assert sum(isinstance(result, RateLimited) for result in results) == 25
                assert await limiter.room(item, "u", share=0.5) == 0.0
            server.restart()
            await until(lambda: all(one.ups == [True, False, True] for one in seen))
            waits = [await (one, two)[n % 2].room(item, "ada") for n in range(7)]
            assert [wait > 0 for wait in waits] == [False] * 5 + [True] * 2

    with redis_server() as server:
        asyncio.run(story(server))
