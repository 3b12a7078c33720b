"""One run for each key: joined, left, cancelled, broken and landed; and the app's own tasks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from broker.errors import Overloaded, UpstreamUnavailable
from broker.flights import Flights, Tasks, Turns
from tests.support import settle


class Work:
    """Counts its runs, and ends when it is told to."""

    def __init__(self) -> None:
        self.runs = 0
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.error: BaseException | None = None

    async def __call__(self) -> int:
        self.runs += 1
        number = self.runs
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return number


def run(story: Callable[[Flights[Any, Any], Tasks, Work], Awaitable[None]]) -> None:
    """Fails for everything that nobody awaited or caught, also what only the collector finds."""
    wrong: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: wrong.append(told))
        tasks = Tasks()
        flights: Flights[Any, Any] = Flights(tasks.spawn)
        async with asyncio.timeout(10):
            await story(flights, tasks, Work())
            await tasks.close()
        await settle()
        assert len(flights) == 0
        assert tasks._running == set()
        del flights, tasks
        gc.collect()
        await settle()

    asyncio.run(main())
    assert wrong == []


def test_many_callers_cost_one_run() -> None:
    """A thousand callers of one key share one run; exactly one is told that it was theirs."""

    async def story(flights: Flights[Any, Any], _tasks: Tasks, work: Work) -> None:
        callers = [asyncio.create_task(flights.join("k", work)) for _ in range(1000)]
        await settle()
        assert (work.runs, len(flights)) == (1, 1)
        work.gate.set()
        results = await asyncio.gather(*callers)
        assert [value for value, _ in results] == [1] * 1000
        assert [mine for _, mine in results] == [True] + [False] * 999

    run(story)


def test_keys_do_not_meet() -> None:
    """A thousand keys are a thousand runs, each caller gets their own, and nothing is left."""

    async def story(flights: Flights[Any, Any], _tasks: Tasks, _work: Work) -> None:
        gate = asyncio.Event()

        def work(number: int) -> Callable[[], Coroutine[Any, Any, int]]:
            async def one() -> int:
                await gate.wait()
                return number

            return one

        callers = [
            asyncio.create_task(flights.join(number % 1000, work(number % 1000)))
            for number in range(3000)
        ]
        await settle()
        assert len(flights) == 1000
        gate.set()
        results = await asyncio.gather(*callers)
        assert [value for value, _ in results] == [number % 1000 for number in range(3000)]
        assert sum(mine for _, mine in results) == 1000
        assert len(flights) == 0

    run(story)


def test_a_leader_who_leaves_costs_the_others_nothing() -> None:
    """The caller whose work runs is cancelled: the run goes on and the others get its result."""

    async def story(flights: Flights[Any, Any], _tasks: Tasks, work: Work) -> None:
        leader = asyncio.create_task(flights.join("k", work))
        await settle()
        follower = asyncio.create_task(flights.join("k", work))
        await settle()
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        work.gate.set()
        assert await follower == (1, False)
        assert (work.runs, work.cancelled) == (1, 0)

    run(story)


def test_a_run_without_waiters_still_lands() -> None:
    """All callers gone, the run ends, and a later caller who comes in time gets its result."""

    async def story(flights: Flights[Any, Any], _tasks: Tasks, work: Work) -> None:
        callers = [asyncio.create_task(flights.join("k", work)) for _ in range(5)]
        await settle()
        for caller in callers:
            caller.cancel()
        await settle()
        assert len(flights) == 1
        late = asyncio.create_task(flights.join("k", work))
        await settle()
        work.gate.set()
        assert await late == (1, False)
        assert work.runs == 1

    run(story)


def test_every_waiter_gets_the_exception() -> None:
    """A failing run fails each of its callers with the same error, and the next call runs anew."""

    async def story(flights: Flights[Any, Any], _tasks: Tasks, work: Work) -> None:
        work.error = KeyError("upstream")
        callers = [asyncio.create_task(flights.join("k", work)) for _ in range(50)]
        await settle()
        work.gate.set()
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert results == [work.error] * 50
        work.error = None
        assert await flights.join("k", work) == (2, True)

    run(story)


def test_errors_of_the_house_are_each_waiters_own() -> None:
    """A BrokerError reaches each caller as one of their own, of the same kind and content."""

    async def story(flights: Flights[Any, Any], _tasks: Tasks, work: Work) -> None:
        work.error = UpstreamUnavailable("public", cause="private", retry_after=3.0)
        callers = [asyncio.create_task(flights.join("k", work)) for _ in range(9)]
        await settle()
        work.gate.set()
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert len({id(error) for error in results}) == 9
        for error in results:
            assert type(error) is UpstreamUnavailable
            told = (error.detail, error.cause, error.retry_after, str(error))
            assert told == ("public", "private", 3.0, "private")

    run(story)


def test_an_exception_that_nobody_waits_for_is_no_noise() -> None:
    """A run that fails after everybody has left is not reported as "never retrieved"."""

    async def story(flights: Flights[Any, Any], _tasks: Tasks, work: Work) -> None:
        work.error = KeyError("upstream")
        callers = [asyncio.create_task(flights.join("k", work)) for _ in range(5)]
        await settle()
        for caller in callers:
            caller.cancel()
        await settle()
        work.gate.set()
        await settle()
        assert len(flights) == 0

    run(story)


def test_nothing_is_remembered_once_landed() -> None:
    """Also in the very turn in which the first result arrives, the next call is a run of its own;
    neither result nor work is kept alive."""

    async def story(flights: Flights[Any, Any], _tasks: Tasks, work: Work) -> None:
        work.gate.set()
        for number in (1, 2, 3):
            assert await flights.join("k", work) == (number, True)
            assert len(flights) == 0

        class Result:
            pass

        async def make() -> Result:
            return Result()

        kept = weakref.ref((await flights.join("k", make))[0])
        await settle()
        gc.collect()
        assert kept() is None

    run(story)


def test_a_run_may_join_another() -> None:
    """A run that needs the result of another key does not wait for itself."""

    async def story(flights: Flights[Any, Any], _tasks: Tasks, work: Work) -> None:
        async def outer() -> Any:
            return await flights.join("inner", work)

        caller = asyncio.create_task(flights.join("outer", outer))
        await settle()
        assert len(flights) == 2
        work.gate.set()
        assert await caller == ((1, True), True)

    run(story)


def test_closing_the_app_ends_every_run() -> None:
    """`Tasks.close` cancels what runs, waits for it, and no caller waits for ever."""

    async def story(flights: Flights[Any, Any], tasks: Tasks, work: Work) -> None:
        callers = [asyncio.create_task(flights.join(key, work)) for key in "aab"]
        await settle()
        await tasks.close()
        assert work.cancelled == 2
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 3

    run(story)


def test_close_waits_for_clean_ups_and_survives_their_errors() -> None:
    """A task that takes its time to end, or ends with an error, does neither stop nor outlive
    `close`; ended tasks are not held on to; closing twice is nothing."""

    async def story(_flights: Flights[Any, Any], tasks: Tasks, _work: Work) -> None:
        ended = []

        async def slow() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.get_running_loop().create_future()
            await settle(5)
            ended.append("slow")

        async def rude() -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                raise KeyError("at the end")

        async def quick() -> None:
            ended.append("quick")

        for work in (slow, rude, quick):
            tasks.spawn(work())
        await settle()
        assert len(tasks._running) == 2
        await tasks.close()
        assert ended == ["quick", "slow"]
        await tasks.close()

    run(story)


def test_a_turn_is_not_awaited_for_ever() -> None:
    """Who gets none in time is told so, and leaves nothing behind; the others go on."""

    async def story() -> None:
        turns: Turns[str] = Turns(most=2, seconds=0.01)
        async with turns.of("a"):
            with pytest.raises(Overloaded):
                async with turns.of("a"):
                    raise AssertionError("two at once")
            async with turns.of("b"):
                pass
        async with turns.of("a"):
            pass
        assert turns._held == {}

    asyncio.run(story())
