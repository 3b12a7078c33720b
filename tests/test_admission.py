"""What is let in, on a loop whose time and work are played: turns, queues, refusals, and calm."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.admission import (
    BURST_SECONDS,
    CALM_SECONDS,
    MOST_WAITING,
    OLDEST_SECONDS,
    STANDING_SECONDS,
    Admission,
    Urgency,
)
from broker.errors import Overloaded
from tests.played_loop import PlayedLoop, played
from tests.support import settle

FIRST, LAST = Urgency.HELD, Urgency.MINT


def stays() -> bool:
    return False


@dataclass
class World:
    """A way in, and who came through it, in their order. cost: seconds of work that each brings, as
    soon as it begins."""

    loop: PlayedLoop
    cost: float = 0.0
    began: list[Any] = field(default_factory=list)
    refused: list[Any] = field(default_factory=list)
    errors: list[Overloaded] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.admission = Admission(monotonic=self.loop.time)

    async def _ask(self, name: Any, urgency: Urgency, is_gone: Callable[[], bool]) -> None:
        try:
            await self.admission.enter(urgency, is_gone)
        except Overloaded as exc:
            self.refused.append(name)
            self.errors.append(exc)
        else:
            self.began.append(name)
            self.loop.work(self.cost)

    def ask(
        self, name: Any, urgency: Urgency = LAST, is_gone: Callable[[], bool] = stays
    ) -> asyncio.Task[None]:
        return asyncio.ensure_future(self._ask(name, urgency, is_gone))

    def crowd(self, count: int, urgency: Urgency = LAST) -> list[asyncio.Task[None]]:
        return [self.ask(number, urgency) for number in range(count)]

    def full_turn(self) -> None:
        """One begins in the next turn, so that who is asked for now must wait."""
        self.filling = asyncio.ensure_future(self.admission.enter(LAST, stays))


# --- turns


def test_one_who_comes_alone_does_not_wait() -> None:
    """The way in costs neither a turn of the loop nor a future where nobody else comes."""

    async def story(loop: PlayedLoop) -> None:
        w = World(loop)
        for _ in range(10):
            with pytest.raises(StopIteration):
                w.admission.enter(LAST, stays).send(None)
            await settle(3)

    played(story)


def test_one_begins_in_a_turn() -> None:
    """The others begin in the next turns, in the order in which they came."""

    async def story(loop: PlayedLoop) -> None:
        w = World(loop)
        w.crowd(60)
        seen = []
        for _ in range(70):
            await asyncio.sleep(0)
            seen.append(len(w.began))
        steps = [after - before for before, after in zip([0, *seen], seen, strict=False)]
        assert max(steps) == 1
        assert w.began == list(range(60))

    played(story)


def test_other_work_of_the_loop_starves_nobody() -> None:
    """Turns that are long for whatever other reason let one begin each, all the same."""

    async def story(loop: PlayedLoop) -> None:
        w = World(loop)

        async def busy() -> None:
            while True:
                loop.work(0.01)
                await asyncio.sleep(0)

        working = asyncio.ensure_future(busy())
        began = loop.time()
        await asyncio.gather(*w.crowd(50))
        assert (len(w.began), w.refused) == (50, [])
        assert loop.time() - began < 60 * 0.01
        working.cancel()

    played(story)


def test_calls_that_hang_do_not_count() -> None:
    """Thousands that wait for an upstream take no place: whoever comes next begins at once."""

    async def story(loop: PlayedLoop) -> None:
        w = World(loop)

        async def hangs() -> None:
            await w.admission.enter(LAST, stays)
            await asyncio.sleep(100)

        waiting = []
        for _ in range(100):
            waiting += [asyncio.ensure_future(hangs()) for _ in range(50)]
            await asyncio.sleep(0.1)
        with pytest.raises(StopIteration):
            w.admission.enter(LAST, stays).send(None)
        assert not w.admission.is_full(LAST)
        for task in waiting:
            task.cancel()

    played(story)


# --- the queue


def test_a_crowd_that_comes_together_waits_and_is_served() -> None:
    """What is half a second of work is let in whole, though it comes in one moment."""

    async def story(loop: PlayedLoop) -> None:
        w = World(loop, cost=0.003)
        count = 100
        began = loop.time()
        await asyncio.gather(*w.crowd(count))
        assert (w.refused, len(w.began)) == ([], count)
        assert loop.time() - began < 2 * count * w.cost

    played(story)


def test_a_crowd_beyond_that_is_refused_at_once() -> None:
    """Whoever would have to wait for longer than a burst's time hears it in the turn they come."""

    async def story(loop: PlayedLoop) -> None:
        w = World(loop, cost=0.003)
        w.crowd(5000)
        await asyncio.sleep(0)
        assert len(w.refused) > 4000
        assert min(w.refused) > 150 > MOST_WAITING

    played(story)


@pytest.mark.parametrize("urgency", Urgency)
def test_a_queue_that_stands_is_cut_short(urgency: Urgency) -> None:
    """After half a second in which it never was empty, only as much may wait as is done within its
    short bound; those who are in it are not thrown out."""

    async def story(loop: PlayedLoop) -> None:
        w = World(loop, cost=0.002)

        async def comes() -> None:
            began = loop.time()
            for number in range(100_000):
                w.ask(number, urgency)
                wait = began + number * w.cost / 2 - loop.time()
                if wait > 0 or number % 64 == 0:
                    await asyncio.sleep(max(0.0, wait))

        coming = asyncio.ensure_future(comes())
        await asyncio.sleep(4)
        w.began.clear()
        w.refused.clear()
        waited = []
        for _ in range(100):
            await asyncio.sleep(0.03)
            waited.append(sum(map(len, w.admission._queues)))
        coming.cancel()
        most = STANDING_SECONDS[urgency]
        assert len(w.began) / (len(w.began) + len(w.refused)) == pytest.approx(0.5, abs=0.1)
        assert max(waited) <= max(MOST_WAITING, 1.5 * most / w.cost)
        assert max(waited) > 0

    played(story)


def test_a_session_goes_before_a_first_mint() -> None:
    """Of those who wait, all of FIRST begin before any of LAST, each in the order they came."""

    async def story(loop: PlayedLoop) -> None:
        w = World(loop)
        w.full_turn()
        for number in range(20):
            w.ask(("last", number), LAST)
            w.ask(("first", number), FIRST)
        await settle(60)
        assert w.began == [(name, n) for name in ("first", "last") for n in range(20)]

    played(story)


def test_first_mints_do_not_fill_the_way_of_sessions() -> None:
    """A queue of LAST is no reason to refuse a FIRST; behind a queue of FIRST, a few of LAST may wait
    as they are let in, and no dozens."""

    async def story(loop: PlayedLoop) -> None:
        w = World(loop)
        w.full_turn()
        w.crowd(1000, LAST)
        await asyncio.sleep(0)
        assert (w.admission.is_full(LAST), w.admission.is_full(FIRST)) == (True, False)
        w = World(loop, cost=0.003)
        w.full_turn()
        w.crowd(1000, FIRST)
        await asyncio.sleep(0)
        assert (w.admission.is_full(LAST), w.admission.is_full(FIRST)) == (False, True)
        await settle(70)  # by now the rate of LAST is that of none
        w.refused.clear()
        w.crowd(MOST_WAITING - 10, LAST)
        await asyncio.sleep(0)
        assert len(w.refused) > 20
        assert w.admission.is_full(LAST)

    played(story)


def test_a_first_mint_that_was_overtaken_for_too_long_is_refused() -> None:
    """Nobody may count on its caller any more: it is told to come again, those behind it who came
    later are not; sooner where sessions take its turns."""

    async def story(loop: PlayedLoop) -> None:
        for is_contended, seconds in enumerate(OLDEST_SECONDS):
            w = World(loop)
            w.full_turn()
            w.ask("old")
            if is_contended:
                w.ask("session", FIRST)
            await asyncio.sleep(0)
            loop.stand_still(seconds + 0.01)
            w.ask("young")
            await settle()
            assert w.refused == ["old"]
            assert set(w.began) == {"young", "session"} if is_contended else {"young"}

    played(story)


def test_who_has_left_takes_no_place() -> None:
    """A caller whose connection is closed is passed over, and the places are for others."""

    async def story(loop: PlayedLoop) -> None:
        w = World(loop)
        w.full_turn()
        for number in range(20):
            w.ask(("gone", number), is_gone=lambda: True)
        w.ask(0)
        await asyncio.sleep(0)  # they come
        await asyncio.sleep(0)  # one is let in
        await asyncio.sleep(0)  # it begins
        assert w.began == [0]

    played(story)


def test_who_was_cancelled_takes_no_place() -> None:
    """Waiters that are cancelled, also in the moment they were let in, leave all places to others,
    and nothing of theirs is kept."""

    async def story(loop: PlayedLoop) -> None:
        w = World(loop)
        kept: list[weakref.ref[Any]] = []

        class Asked:
            def __call__(self) -> bool:
                return False

        for moment in range(3):
            w.full_turn()
            w.admission._begun_lately = [1e6] * len(Urgency)
            tasks = []
            for number in range(5000):
                is_gone = Asked()
                kept.append(weakref.ref(is_gone))
                tasks.append(w.ask(number, is_gone=is_gone))
            del is_gone
            await settle(moment + 1)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            w.ask("next")
            await settle(3)
            assert w.began[-1] == "next"
            assert w.refused == []
            assert not any(w.admission._queues)
            tasks.clear()
            del task
        gc.collect()
        assert [ref for ref in kept if ref() is not None] == []
        await settle()
        with pytest.raises(StopIteration):
            w.admission.enter(LAST, stays).send(None)

    played(story)


def test_nothing_turns_while_nobody_comes() -> None:
    """When the last has begun, the loop sleeps: no callback is left that comes back for ever."""

    async def story(loop: PlayedLoop) -> None:
        w = World(loop, cost=0.003)
        await asyncio.gather(*w.crowd(2000))
        assert w.refused
        await settle(5)
        before = loop.turns
        await asyncio.sleep(1000)
        assert loop.turns - before <= 3  # one of them tells of the refusals

    played(story)


# --- refusals


def test_a_refusal_says_when_to_come_again() -> None:
    """In up to four seconds, told in whole ones from one, and not all at one moment."""

    async def story(loop: PlayedLoop) -> None:
        w = World(loop)
        waits = [w.admission.refused().retry_after or 0.0 for _ in range(500)]
        assert 0 < min(waits) < 0.3
        assert 3.7 < max(waits) <= 4
        for part in range(8):
            low = part / 2
            assert sum(low <= wait < low + 0.5 for wait in waits) > 25

    played(story)


def test_one_line_a_second_tells_how_many() -> None:
    """However many were refused; none where nobody was."""

    async def story(loop: PlayedLoop) -> None:
        w = World(loop)
        with capture_logs() as lines:
            for count in (1, 700, 0, 50):
                for _ in range(count):
                    _ = w.admission.refused()
                await asyncio.sleep(1.01)
            await asyncio.sleep(10)
        told = [line["count"] for line in lines if line["event"] == "requests_refused"]
        assert told == [1, 700, 50]

    played(story)


def test_each_who_is_refused_is_told_and_counted() -> None:
    """Those who found the queue full, and those who were too old: the lines tell of all of them."""

    async def story(loop: PlayedLoop) -> None:
        w = World(loop)
        with capture_logs() as lines:
            w.crowd(1000)
            await asyncio.sleep(0)
            loop.stand_still(max(OLDEST_SECONDS) + 0.1)
            await asyncio.sleep(3)
        assert sum(line["count"] for line in lines) == len(w.refused)
        assert len(w.refused) + len(w.began) == 1000
        assert len(w.began) == 1

    played(story)


# --- a loop under load


@dataclass
class Load:
    """What came of some seconds in which `times` as much was asked for as can be done."""

    asked: int = 0
    done: list[float] = field(default_factory=list)
    """Seconds that each took that was done."""
    refused: list[float] = field(default_factory=list)
    """Seconds until each heard that it is refused."""


@dataclass
class Server:
    """Requests of `cost` seconds of work in ten turns each, with a wait for an upstream in between;
    a refusal costs a fiftieth where the queue is full, a fifth where it was waited for."""

    loop: PlayedLoop
    cost: float
    upstream: float = 0.05
    seed: int = 1
    finished: list[float] = field(default_factory=list)
    """When each was done."""

    def __post_init__(self) -> None:
        self.admission = Admission(monotonic=self.loop.time)
        self.random = random.Random(self.seed)

    async def _serve(self, came: float, urgency: Urgency, load: Load) -> None:
        if self.admission.is_full(urgency):
            _ = self.admission.refused()
            self.loop.work(self.cost / 50)
            load.refused.append(self.loop.time() - came)
            return
        try:
            await self.admission.enter(urgency, stays)
        except Overloaded:
            self.loop.work(self.cost / 5)
            load.refused.append(self.loop.time() - came)
            return
        for part in range(10):
            self.loop.work(self.cost / 10)
            await asyncio.sleep(self.upstream if part == 5 else 0)
        load.done.append(self.loop.time() - came)
        self.finished.append(self.loop.time())

    async def under(self, times: float, seconds: float, *, first: float = 0.0) -> Load:
        """As many come at random as are `times` what can be done. first: the share of FIRST."""
        load = Load()
        tasks = []
        came, until = self.loop.time(), self.loop.time() + seconds
        while (came := came + self.random.expovariate(times / self.cost)) < until:
            if came > self.loop.time():
                await asyncio.sleep(came - self.loop.time())
            urgency = FIRST if self.random.random() < first else LAST
            tasks.append(asyncio.ensure_future(self._serve(came, urgency, load)))
            load.asked += 1
        if self.loop.time() < until:
            await asyncio.sleep(until - self.loop.time())
        self.late = [task for task in tasks if not task.done()]
        return load


def at(sorted_: list[float], share: float) -> float:
    return sorted(sorted_)[int(len(sorted_) * share)]


@pytest.mark.parametrize("cost", [0.0025, 0.01])
@pytest.mark.parametrize("times", [1.2, 2.0, 3.0])
def test_what_can_be_done_is_done(times: float, cost: float) -> None:
    """With more asked for than can be done, nine tenths of what can be is, in bounded time, and who
    is refused hears so soon."""

    async def story(loop: PlayedLoop) -> None:
        server = Server(loop, cost)
        await server.under(times, 3)
        seconds, began = 4, loop.time()
        load = await server.under(times, seconds)
        done = sum(when >= began for when in server.finished)
        # A refusal is work too: what it takes is not there for others.
        refusals = len(load.refused) * cost / 50
        assert done * cost >= 0.9 * (seconds - refusals)
        assert at(load.done, 0.99) < 1
        assert at(load.refused, 0.99) < 0.2

    played(story)


@pytest.mark.parametrize("cost", [0.0025, 0.01])
def test_with_half_of_that_nobody_is_refused(cost: float) -> None:
    """Nor does anybody wait for long."""

    async def story(loop: PlayedLoop) -> None:
        server = Server(loop, cost)
        load = await server.under(0.5, 5)
        assert load.refused == []
        assert at(load.done, 0.99) < server.upstream + 0.1

    played(story)


def test_sessions_are_served_while_first_mints_are_refused() -> None:
    """Where a third is about sessions, and three times as much is asked for as can be done, nearly
    all of the sessions are served."""

    async def story(loop: PlayedLoop) -> None:
        server = Server(loop, 0.0025)
        sessions, mints = Load(), Load()
        serve = server._serve

        async def sorted_(came: float, urgency: Urgency, _load: Load) -> None:
            load = sessions if urgency is FIRST else mints
            load.asked += 1
            await serve(came, urgency, load)

        server._serve = sorted_  # type: ignore[method-assign]
        await server.under(3, 5, first=0.25)
        assert len(sessions.refused) < 0.05 * sessions.asked
        assert len(mints.refused) > 0.5 * mints.asked
        assert at(sessions.done, 0.99) < 0.5

    played(story)


def test_after_a_crowd_it_is_calm_again() -> None:
    """When the load is gone nobody is refused any more, and after a second without a refusal a crowd
    may come again."""

    async def story(loop: PlayedLoop) -> None:
        server = Server(loop, 0.0025)
        await server.under(3, 3)
        assert server.admission._stands()
        await server.under(0.5, 0.5)  # what waits is done
        calm = await server.under(0.5, CALM_SECONDS + BURST_SECONDS)
        assert len(calm.refused) <= 0.01 * calm.asked
        assert not server.admission._stands()
        burst = Load()
        await asyncio.gather(
            *(server._serve(loop.time(), LAST, burst) for _ in range(MOST_WAITING + 60))
        )
        assert burst.refused == []

    played(story)
