"""What one process remembers: bounded, each item for its own time."""

from __future__ import annotations

import asyncio
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.flights import Tasks
from broker.state import MOST_BYTES, State, Vault
from broker.state.remembered import MOST_ITEMS, Remembered
from tests.support import VirtualClock


def test_each_item_has_its_own_time() -> None:
    """An item is there until its seconds are over, to the second, whatever the others have."""
    clock = VirtualClock()
    memory: Remembered[str] = Remembered(clock)
    for key, seconds in (("long", 60.0), ("short", 5.0), ("shortest", 0.5)):
        memory.put(key, key, seconds)
    clock.pass_(0.499)
    assert memory.get("shortest") == "shortest"
    clock.pass_(0.001)
    assert (memory.get("shortest"), memory.get("short")) == (None, "short")
    clock.pass_(4.5)
    assert (memory.get("short"), memory.get("long")) == (None, "long")
    assert len(memory) == 1


def test_no_time_is_no_memory() -> None:
    """What has no time left is not remembered, and does not replace what is."""
    memory: Remembered[int] = Remembered(VirtualClock())
    memory.put("k", 1, 10)
    for seconds in (0, -1, float("-inf"), float("nan")):
        memory.put("k", 2, seconds)
        memory.put("other", 2, seconds)
    assert (memory.get("k"), memory.get("other"), len(memory)) == (1, None, 1)


def test_falsy_values_are_values() -> None:
    """False, 0 and "" are told from nothing."""
    memory: Remembered[object] = Remembered(VirtualClock())
    for value in (False, 0, "", ()):
        memory.put("k", value, 1)
        assert memory.get("k") is value


def test_the_wall_clock_has_no_say() -> None:
    """A year forward or back forgets nothing and keeps nothing longer."""
    for seconds in (-31536000, 31536000):
        clock = VirtualClock()
        memory: Remembered[int] = Remembered(clock)
        memory.put("k", 1, 10)
        clock.step(seconds)
        clock.pass_(9.9)
        assert memory.get("k") == 1
        clock.pass_(0.1)
        assert memory.get("k") is None


def test_put_again_is_a_new_time() -> None:
    """The last `put` of a key decides value and time, also where that is sooner."""
    clock = VirtualClock()
    memory: Remembered[int] = Remembered(clock)
    memory.put("k", 1, 10)
    memory.put("k", 2, 20)
    clock.pass_(15)
    assert memory.get("k") == 2
    memory.put("k", 3, 1)
    clock.pass_(1)
    assert memory.get("k") is None


def test_a_full_memory_forgets_what_was_used_longest_ago() -> None:
    """Reading counts as use, time left does not; what is over goes before anything that is not."""
    clock = VirtualClock()
    memory: Remembered[int] = Remembered(clock, most=3)
    memory.put("a", 1, 1000)
    memory.put("b", 2, 10)
    memory.put("c", 3, 20)
    assert memory.get("a") == 1
    memory.put("d", 4, 5)
    assert [memory.get(key) for key in "abcd"] == [1, None, 3, 4]
    clock.pass_(5)  # d is over, though it was read last
    memory.put("e", 5, 1)
    assert [memory.get(key) for key in "ace"] == [1, 3, 5]


def test_it_is_bounded() -> None:
    """Ten times as many items as fit, and one key put again for ever, take no more room."""
    clock = VirtualClock()
    memory: Remembered[int] = Remembered(clock, most=1000)
    tracemalloc.start()
    try:
        for number in range(10_000):
            memory.put(f"k{number}", number, 3600)
        full = tracemalloc.get_traced_memory()[0]
        for number in range(50_000):
            memory.put("same", number, 3600)
        assert tracemalloc.get_traced_memory()[0] < 2 * full
    finally:
        tracemalloc.stop()
    assert len(memory) == 1000


def test_sizes_count() -> None:
    """Where items have sizes, their sum is bounded; what fits nowhere is not remembered and pushes
    nothing out."""
    memory: Remembered[int] = Remembered(VirtualClock(), most=10)
    memory.put("a", 1, 60, size=6)
    memory.put("b", 2, 60, size=4)
    memory.put("huge", 3, 60, size=11)
    assert [memory.get(key) for key in ("a", "b", "huge")] == [1, 2, None]
    memory.put("c", 4, 60, size=1)
    assert [memory.get(key) for key in "abc"] == [None, 2, 4]


def test_the_kinds_do_not_push_each_other_out() -> None:
    """Each kind has a memory of its own, of the size that is documented."""
    state = State(VirtualClock(), Tasks().spawn, Vault([]))
    large, small = [state.successors, state.answers], [state.spent, state.ended, state.newest]
    assert len({id(kind) for kind in [*large, *small]}) == 5
    assert {kind.here._items.maxsize for kind in large} == {MOST_BYTES}
    assert {kind.here._items.maxsize for kind in small} == {MOST_ITEMS}

    async def story() -> list[object]:
        await state.ended.put("k", True, 1)
        return [await kind.get("k") for kind in [*large, *small]]

    assert asyncio.run(story()) == [None, None, None, True, None]


PUT = st.tuples(st.just("put"), st.sampled_from("abcdef"), st.integers(-2, 30))
GET = st.tuples(st.just("get"), st.sampled_from("abcdef"), st.just(0))
PASS = st.tuples(st.just("pass"), st.just(""), st.integers(0, 12))


@given(st.lists(st.one_of(PUT, GET, PASS), max_size=60))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_it_behaves_as_its_model(steps: list[tuple[str, str, int]]) -> None:
    """Whatever is done to it, a memory of four is a list in order of use, of what is not over."""
    clock = VirtualClock()
    memory: Remembered[int] = Remembered(clock, most=4)
    model: list[tuple[str, int, float]] = []
    for count, (verb, key, number) in enumerate(steps):
        now = clock.monotonic()
        model = [item for item in model if item[2] > now]
        if verb == "pass":
            clock.pass_(number)
        elif verb == "put":
            memory.put(key, count, number)
            if number > 0:
                model = [item for item in model if item[0] != key][-4:]
                model = [*model, (key, count, now + number)][-4:]
        else:
            found = next((item for item in model if item[0] == key), None)
            assert memory.get(key) == (None if found is None else found[1])
            if found is not None:
                model = [*(item for item in model if item is not found), found]
