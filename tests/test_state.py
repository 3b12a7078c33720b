"""What one process remembers: bounded, each item for its own time."""

from __future__ import annotations

import asyncio
import copy
import functools
import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from broker.flights import Tasks
from broker.state import MOST_BYTES, State, Vault
from broker.state.memory import Memory
from broker.state.remembered import MOST_ITEMS, Remembered
from tests.support import DictStore, VirtualClock


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


LIFE = [1795176900.0, 900.0, 800.0]
SESSION = ["p", ["t", "id", LIFE, {"tree": {"a": 1}}, False], "handle", "chain", True, 30.0]
RECORDS: dict[str, Any] = {
    "successors": [60.0, SESSION],
    "answers": [60.0, ["d", SESSION]],
    "tokens": [60.0, ["s", "Bearer", "a", LIFE]],
    "results": [200, "x", {"tree": {}}, {"verbatim": "{}"}, "approved"],
    "expected": ["p", "c"],
    "ended": True,
    "newest": "x",
}
TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "x", "d", 1e18, -1e18, 253402300800, 1e308]),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(st.sampled_from(["tree", "verbatim", "x"]), inner, max_size=2)
    ),
    max_leaves=8,
)


@functools.singledispatch
def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every place in a tree: what holds it, and under what."""
    return []


@_places.register(list)
@_places.register(dict)
def _(tree: Any) -> list[tuple[Any, Any]]:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [place for key, one in pairs for place in [(tree, key), *_places(one)]]


@st.composite
def _records(draw: st.DrawFn) -> tuple[str, bytes]:
    """A kind, and what another version may have written of it: anything, or a record with
    something else in one place, or with a field more or less."""
    kind = draw(st.sampled_from(sorted(RECORDS)))
    root = [copy.deepcopy(RECORDS[kind])]
    holder, key = draw(st.sampled_from(_places(root)))
    how = draw(st.sampled_from(["other", "less", "more"]))
    if how == "less" and holder is not root:
        del holder[key]
    elif how == "more" and isinstance(holder, list) and holder is not root:
        holder.insert(key, draw(TREES))
    else:
        holder[key] = draw(TREES)
    return kind, orjson.dumps(root[0])


@settings(max_examples=400, deadline=None)
@given(written=_records(), flip=st.integers(0, 400))
def test_what_another_version_wrote_is_there_or_is_not(
    written: tuple[str, bytes], flip: int
) -> None:
    """Whatever the store has under a name, asking for it, making it anew and forgetting it raise
    nothing; and what is found can be used."""
    kind, raw = written
    if flip < len(raw):
        raw = raw[:flip] + bytes([raw[flip] ^ 4]) + raw[flip + 1 :]

    async def story() -> None:
        clock = VirtualClock()
        store = DictStore(clock)
        tasks = Tasks()
        good = State(clock, tasks.spawn, Vault([]), store)
        memory: Memory[Any] = getattr(good, kind)
        name = memory.name("k")
        store.kept[name] = (orjson.dumps(RECORDS[kind]), clock.monotonic() + 30)
        value = await memory.get("k")
        assert value is not None

        async def made() -> Any:
            return value

        for what in ("get", "look", "once", "forget"):
            state = State(clock, tasks.spawn, Vault([]), store)
            memory = getattr(state, kind)
            store.kept[name] = (raw, clock.monotonic() + 30)
            if what == "get":
                found = await memory.get("k")
            elif what == "look":
                (found,) = await state.look((memory, "k"))
            elif what == "once":
                found, _ = await memory.once("k", made, keep=lambda _: 9.0, patience=1)
                assert found is not None
            else:
                found = await memory.forget("k", value)
            if found is not None:
                memory.noted("other", found, 10)
                _use(kind, found, clock.monotonic())
        await tasks.close()

    asyncio.run(story())


def _use(kind: str, found: Any, now: float) -> None:
    """As whoever asked for it does."""
    if kind in ("answers", "successors"):
        minted = found.answer if kind == "answers" else found
        assert isinstance(minted.session.life.remaining(now) - minted.floor, float)
        assert isinstance(minted.handle + minted.chain + minted.session.token.reveal(), str)
    elif kind == "tokens":
        assert found.value.fingerprint
        assert f"{found.token_type} " + found.value.reveal() + found.scope
    elif kind == "expected":
        profile, chain = found
        assert isinstance(profile + chain, str)


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        ("successors", [60.0, ["p", ["t", "id", [1e18, 900.0, 800.0], {"tree": 1}, False]]]),
        ("results", [200, "x", {}, {}, "approved"]),
        ("results", [200, "x", {"verbatim": 5}, {"tree": 1}, "approved"]),
        ("tokens", "x"),
        ("expected", 5),
    ],
)
def test_what_does_not_decode_is_told_by_its_kind(kind: str, raw: Any) -> None:
    """One line for the log, without a word of what was read; and nothing is there."""

    async def story() -> None:
        clock = VirtualClock()
        store = DictStore(clock)
        memory = getattr(State(clock, Tasks().spawn, Vault([]), store), kind)
        store.kept[memory.name("k")] = (orjson.dumps(raw), clock.monotonic() + 30)
        with capture_logs() as lines:
            assert await memory.get("k") is None
        (line,) = lines
        assert (line["event"], line["log_level"]) == ("unreadable", "warning")
        assert set(line) == {"event", "log_level", "kind", "cause"}

    asyncio.run(story())
