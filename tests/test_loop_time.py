"""Time as our own event loop had it: stalls are nobody's fault, and nothing that came is missed."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.loop_time import LAST_LOOK_SECONDS, TICK_SECONDS, UNNOTICED_SECONDS, LoopTime
from tests.played_loop import PlayedLoop, played

NEVER_SEEN = TICK_SECONDS + UNNOTICED_SECONDS
"""Of a stall: what lies before the tick that it delays, or is too short to be one."""
LOOPS = pytest.mark.parametrize(
    "factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
Factory = Callable[[], asyncio.AbstractEventLoop]


def run(factory: Factory, story: Callable[[LoopTime], Coroutine[Any, Any, None]]) -> None:
    """The story on a real loop, with time that has begun to tick."""

    async def main() -> None:
        told = LoopTime()
        told.start()
        await asyncio.sleep(3 * TICK_SECONDS)
        try:
            async with asyncio.timeout(20):
                await story(told)
        finally:
            told.stop()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


# --- what is counted


@LOOPS
def test_a_stall_is_counted(factory: Factory) -> None:
    """Seconds in which the loop did nothing are known as soon as it runs again, and stay known."""

    async def story(told: LoopTime) -> None:
        before, began = told.stalled, told.running()
        start = time.monotonic()
        time.sleep(0.4)
        at_once = told.stalled - before
        assert at_once >= 0.4 - NEVER_SEEN
        await asyncio.sleep(3 * TICK_SECONDS)
        later = told.stalled - before
        assert later >= at_once
        assert told.running() - began <= time.monotonic() - start - at_once
        assert told.lag >= 0.4 - NEVER_SEEN

    run(factory, story)


def test_whoever_is_told_hears_of_every_second() -> None:
    """The sum of what is told is what `stalled` says; a tick that is a little late is on time."""

    async def story(loop: PlayedLoop) -> None:
        heard: list[float] = []
        told = LoopTime(heard.append)
        told.start()
        for seconds in (0.5, UNNOTICED_SECONDS - 0.001, 0.1):
            await asyncio.sleep(TICK_SECONDS * 1.5)
            loop.stand_still(seconds)
            await asyncio.sleep(TICK_SECONDS * 1.5)
        assert heard == pytest.approx([0.48, 0.08], abs=0.002)
        assert told.stalled == pytest.approx(sum(heard), abs=1e-3)
        assert told.running() == pytest.approx(loop.time() - sum(heard), abs=1e-3)

    played(story)


@given(
    st.lists(st.tuples(st.floats(0, 0.3), st.one_of(st.just(0.0), st.floats(0, 1.0))), max_size=30)
)
@settings(max_examples=150, deadline=None)
@example([(0.15625, 0.0078125), (0.0, 1.0)])
def test_running_time_does_not_go_back(story_of: list[tuple[float, float]]) -> None:
    """But for a delay that was too short to notice and is then a part of one that is not. Stalled
    time only grows, no second of it was not, and no stall is overlooked but for what lies between
    two ticks."""

    async def story(loop: PlayedLoop) -> None:
        told = LoopTime()
        told.start()
        stood = least = 0.0
        before = (told.running(), told.stalled)
        for runs, stands in story_of:
            await asyncio.sleep(runs)
            loop.stand_still(stands)
            stood += stands
            least += max(0.0, stands - NEVER_SEEN)
            now = (told.running(), told.stalled)
            assert now[0] >= before[0] - UNNOTICED_SECONDS - 1e-3
            assert now[1] >= before[1] - 1e-3
            assert least - 1e-3 <= now[1] <= stood + 1e-3
            before = now

    played(story)


def test_the_lag_is_told_for_five_to_ten_seconds() -> None:
    """The longest delay stays to be seen for a scrape that comes later, and is then forgotten."""

    async def story(loop: PlayedLoop) -> None:
        told = LoopTime()
        told.start()
        await asyncio.sleep(1)
        assert told.lag == 0
        loop.stand_still(2)
        assert told.lag == pytest.approx(2, abs=NEVER_SEEN)
        await asyncio.sleep(1)
        loop.stand_still(0.5)
        for _ in range(3):
            await asyncio.sleep(1)
            assert told.lag == pytest.approx(2, abs=NEVER_SEEN)
        await asyncio.sleep(8)
        assert told.lag == 0

    played(story)


def test_before_the_start_all_seconds_count() -> None:
    """So they do after the stop: who has no running loop of their own gets plain seconds."""

    async def story(loop: PlayedLoop) -> None:
        told = LoopTime()
        for prepare in (lambda: None, told.start, told.stop):
            prepare()
            if prepare == told.start:
                continue
            before = told.stalled
            loop.stand_still(3)
            assert (told.stalled, told.lag) == (before, 0)
            assert told.running() == pytest.approx(loop.time() - before, abs=1e-3)
            began = loop.time()

            async def block() -> None:
                async with told.limit(0.5):
                    loop.stand_still(0.6)
                    await asyncio.sleep(LAST_LOOK_SECONDS / 2)

            with pytest.raises(TimeoutError):
                await block()
            assert loop.time() - began == pytest.approx(0.6, abs=1e-3)

    played(story)


# --- a stall and what came meanwhile


@LOOPS
@pytest.mark.parametrize("how", ["limit", "finished"])
def test_what_came_during_a_stall_is_read(factory: Factory, how: str) -> None:
    """An answer that lay in the socket when the time was over by the clock is had, though it takes
    some turns of the loop; also one that came while the time ran out."""

    async def story(told: LoopTime) -> None:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)

        async def answer() -> bytes:
            line = await reader.readline()
            for _ in range(5):
                await asyncio.sleep(0)
            return line

        async def limited() -> bytes:
            async with told.limit(0.3):
                return await answer()

        async def watched() -> bytes:
            task = asyncio.ensure_future(answer())
            try:
                assert await told.finished(task, 0.3)
                return task.result()
            finally:
                task.cancel()

        wait = asyncio.ensure_future(limited() if how == "limit" else watched())
        await asyncio.sleep(0.1)
        theirs.sendall(b"in time\n")
        time.sleep(1)
        assert await wait == b"in time\n"
        theirs.close()
        writer.close()

    run(factory, story)


@LOOPS
def test_a_stall_leaves_the_time_that_was_left(factory: Factory) -> None:
    """After a stall that was longer than the whole limit, an answer that comes later, though within
    the running seconds, is still waited for."""

    async def story(told: LoopTime) -> None:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        asyncio.get_running_loop().call_soon(time.sleep, 1.2)

        async def answers() -> None:
            await asyncio.sleep(0.2)
            theirs.sendall(b"late\n")

        async with told.limit(1):
            task = asyncio.ensure_future(answers())
            assert await reader.readline() == b"late\n"
        await task
        theirs.close()
        writer.close()

    run(factory, story)


RHYTHM = st.lists(
    st.one_of(
        st.tuples(st.floats(0.01, 0.2), st.floats(0, 0.5)),
        st.tuples(st.just(0.0), st.floats(0.005, 0.5)),
    ),
    min_size=1,
    max_size=8,
)
"""Seconds in which the loop runs, and in which it then stands still."""


@given(st.floats(0, 2), RHYTHM)
@settings(max_examples=150, deadline=None)
def test_stalls_do_not_extend_a_wait_for_ever(
    seconds: float, rhythm: list[tuple[float, float]]
) -> None:
    """However often the loop stands still, also in every turn: whoever waits for what never comes
    waits for their running seconds at least, and for one last look more at the most."""
    most = seconds + LAST_LOOK_SECONDS + 3 * NEVER_SEEN

    async def story(loop: PlayedLoop) -> None:
        told = LoopTime()
        told.start()

        async def stumbles() -> None:
            while True:
                for runs, stands in rhythm:
                    loop.stand_still(stands)
                    await asyncio.sleep(runs)

        async def limited() -> float:
            began = told.running()
            with pytest.raises(TimeoutError):
                async with told.limit(seconds):
                    await asyncio.get_running_loop().create_future()
            return told.running() - began

        async def finished() -> float:
            began = told.running()
            never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            assert not await told.finished(never, seconds)
            assert not never.cancelled()
            return told.running() - began

        stumbling = asyncio.ensure_future(stumbles())
        for wait in (limited, finished):
            assert seconds - 1e-3 <= await asyncio.ensure_future(wait()) <= most
        stumbling.cancel()

    played(story)


def test_a_loop_that_stands_still_in_each_turn_gets_to_an_end() -> None:
    """No second seems to be left between two stalls, and the wait ends all the same."""

    async def story(loop: PlayedLoop) -> None:
        told = LoopTime()
        told.start()

        async def stumbles() -> None:
            while True:
                loop.stand_still(0.1)
                await asyncio.sleep(0)

        stumbling = asyncio.ensure_future(stumbles())
        began = loop.turns
        with pytest.raises(TimeoutError):
            async with told.limit(1):
                await asyncio.get_running_loop().create_future()
        assert loop.turns - began < 200
        stumbling.cancel()

    played(story)


# --- a limit


def test_a_limit_passes_on_what_its_block_gives_or_raises() -> None:
    """A value in time, an error of the block, and afterwards no timer that could hit somebody."""

    async def story(loop: PlayedLoop) -> None:
        told = LoopTime()
        told.start()

        async def value() -> str:
            async with told.limit(1):
                await asyncio.sleep(0.9)
                return "done"

        assert await value() == "done"
        with pytest.raises(KeyError):
            async with told.limit(1):
                raise KeyError("x")
        await asyncio.sleep(5)

    played(story)


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_no_time_is_no_time(seconds: float) -> None:
    """A block that waits at all is cut off at its first wait; one that does not is whole."""

    async def story(loop: PlayedLoop) -> None:
        told = LoopTime()
        told.start()
        with pytest.raises(TimeoutError):
            async with told.limit(seconds):
                await asyncio.sleep(1)
        async with told.limit(seconds):
            pass
        task = asyncio.ensure_future(asyncio.sleep(1))
        assert not await told.finished(task, seconds)
        assert await told.finished(task, 2)

    played(story)


def test_a_limit_cancels_its_block_and_nothing_more() -> None:
    """What the block waited for is cancelled; the task itself goes on, and is not being cancelled
    any more."""

    async def story(loop: PlayedLoop) -> None:
        told = LoopTime()
        told.start()
        inner = asyncio.ensure_future(asyncio.sleep(10))
        with pytest.raises(TimeoutError):
            async with told.limit(1):
                await inner
        assert inner.cancelled()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(5)

    played(story)


def test_who_is_cancelled_is_not_told_of_a_timeout() -> None:
    """A caller who leaves before the limit leaves as cancelled, and the limit is gone with them."""

    async def story(loop: PlayedLoop) -> None:
        told = LoopTime()
        told.start()

        async def waits() -> None:
            async with told.limit(1):
                await asyncio.sleep(10)

        task = asyncio.ensure_future(waits())
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(5)

    played(story)


def test_the_inner_of_two_limits_ends_the_inner_block_only() -> None:
    """Limits may stand in one another; each ends its own block."""

    async def story(loop: PlayedLoop) -> None:
        told = LoopTime()
        told.start()
        began = loop.time()
        async with told.limit(2):
            with pytest.raises(TimeoutError):
                async with told.limit(1):
                    await asyncio.sleep(10)
        with pytest.raises(TimeoutError):
            async with told.limit(1), told.limit(2):
                await asyncio.sleep(10)
        assert loop.time() - began == pytest.approx(2, abs=1e-3)

    played(story)


def test_a_limit_can_be_moved() -> None:
    """`extend` adds seconds to the end, before or after a part of the time has passed."""

    async def story(loop: PlayedLoop) -> None:
        told = LoopTime()
        told.start()
        began = loop.time()

        async def block() -> None:
            async with told.limit(1) as limit:
                limit.extend(1)
                await asyncio.sleep(1.5)
                limit.extend(2)
                await asyncio.sleep(10)

        with pytest.raises(TimeoutError):
            await block()
        assert loop.time() - began == pytest.approx(4, abs=1e-3)

    played(story)


def test_a_limit_that_was_moved_has_a_last_look_of_its_own() -> None:
    """A stall at the end of a connection's time does not use up the look at the answer."""

    async def story(loop: PlayedLoop) -> None:
        told = LoopTime()
        told.start()
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)

        async def line() -> bytes:
            found = await reader.readline()
            for _ in range(5):
                await asyncio.sleep(0)
            return found

        async def exchange() -> bytes:
            async with told.limit(0.3) as limit:
                connected = await line()
                limit.extend(0.49)
                return connected + await line()

        wait = asyncio.ensure_future(exchange())
        for seconds, word in ((0.299, b"connected\n"), (0.46, b"answered\n")):
            await asyncio.sleep(seconds)
            theirs.sendall(word)
            loop.stand_still(1)
        assert await wait == b"connected\nanswered\n"
        theirs.close()
        writer.close()

    played(story)


def test_who_waits_for_a_task_never_cancels_it() -> None:
    """Neither when the time is over nor when whoever waits is cancelled."""

    async def story(loop: PlayedLoop) -> None:
        told = LoopTime()
        told.start()
        task = asyncio.ensure_future(asyncio.sleep(3, "done"))
        assert not await told.finished(task, 1)
        waits = asyncio.ensure_future(told.finished(task, 10))
        await asyncio.sleep(0.5)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        assert await told.finished(task, 10)
        assert task.result() == "done"

    played(story)
