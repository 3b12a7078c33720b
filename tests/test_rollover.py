"""Which version of a secret is shown, and when: the new one takes over by itself, and costs little
until it does. Time is virtual, the upstream a set of secrets that it knows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from broker.keyring import Keyring
from broker.kinds import SecretRef
from broker.metrics import Metrics
from broker.rollover import COOL_DOWN, Rollover, Shown
from tests.support import VirtualClock


class Client:
    """A rollover over variables, and an upstream that knows some of their values."""

    def __init__(self, draw: float = 0.5, **groups: Sequence[str]) -> None:
        """groups: by setting, the names of its variables; a variable's first value is its name."""
        self.env = {name: name for names in groups.values() for name in names}
        self.refs = [("/x", SecretRef(env=name)) for name in self.env]
        self.keyring = Keyring(self.refs, Path(), self.env)
        self.clock = VirtualClock()
        self.metrics = Metrics()
        self.rollover = Rollover(
            {setting: [SecretRef(env=name) for name in names] for setting, names in groups.items()},
            self.keyring,
            self.clock,
            self.metrics,
            draw=lambda: draw,
        )
        self.good: set[str] = set()
        self.refusals: list[float] = []

    def replace(self, **values: str) -> None:
        self.env.update(values)
        self.keyring.adopt(self.keyring.read(self.refs))

    def order(self) -> list[str]:
        return [text_of(shown) for shown in self.rollover.order()]

    def call(self) -> str:
        """One call: what the upstream took, "" where it knew no version."""
        for shown in self.rollover.order():
            if text_of(shown) in self.good:
                self.rollover.worked(shown)
                return text_of(shown)
            self.refusals.append(self.clock.monotonic())
            self.rollover.refused(shown)
        return ""

    def sample(self, name: str, source: str, slot: str) -> float | None:
        labels = {"source": f"env:{source}", "slot": slot}
        return self.metrics.registry.get_sample_value(f"broker_secret_{name}", labels)


def text_of(shown: Shown) -> str:
    return "+".join(one.reveal() for one in shown.values.values())


def test_one_version_is_made_once() -> None:
    """Where there is nothing to choose, the order is the same tuple with every call, refused or
    not, until a value changes."""
    client = Client(key=["a"])
    order = client.rollover.order()
    (shown,) = order
    assert (shown.slot, shown.sources) == ("newest", ("env:a",))
    client.call()
    client.clock.pass_(1000)
    assert list(client.rollover.order()) == [shown]
    client.good = {"a"}
    client.call()
    assert client.rollover.order() is client.rollover.order()
    client.replace(a="a2")
    assert client.order() == ["a2", "a"]


def test_lists_are_read_side_by_side() -> None:
    """The n-th of one list belongs to the n-th of the other, the last of a shorter one to all that
    are left; slots are newest, older and previous."""
    client = Client(id=["id1", "id2"], secret=["s1", "s2", "s3"])
    found = [(text_of(one), one.slot, one.sources) for one in client.rollover.order()]
    assert found == [
        ("id1+s1", "newest", ("env:id1", "env:s1")),
        ("id2+s2", "older", ("env:id2", "env:s2")),
        ("id2+s3", "older", ("env:id2", "env:s3")),
    ]
    client.replace(s2="S2")
    slots = {text_of(one): one.slot for one in client.rollover.order()}
    assert slots == {
        "id1+s1": "newest", "id2+S2": "older", "id2+s3": "older", "id2+s2": "previous",
    }  # fmt: skip


def test_two_replaced_together() -> None:
    """Both as they are now, both as they were, and only then the mixtures: nothing says which
    earlier values belonged together."""
    client = Client(id=["id"], secret=["s"])
    client.replace(id="ID", secret="unused", s="S")
    assert client.order() == ["ID+S", "id+s", "ID+s", "id+S"]


def test_the_same_value_twice_is_shown_once() -> None:
    """An old key that is listed and is also what the first file said before is one version, by the
    slot that a restart would give it."""
    client = Client(key=["a", "b"])
    client.replace(b="old")
    client.order()
    client.replace(a="old")
    client.order()
    client.replace(a="new")
    found = [(text_of(one), one.slot) for one in client.rollover.order()]
    assert found[:2] == [("new", "newest"), ("old", "older")]
    assert len({text for text, _ in found}) == len(found)
    assert {slot for _, slot in found[2:]} == {"previous"}
    assert [text_of(one) for one in client.rollover.current()] == ["new", "old"]


def test_the_new_one_takes_over_by_itself() -> None:
    """While the upstream knows the old one only, that is shown; once a minute the new one is tried,
    and from when the upstream knows it, it is the one."""
    client = Client(key=["new", "old"])
    client.good = {"old"}
    for _ in range(600):
        assert client.call() == "old"
        client.clock.pass_(1)
    assert 9 <= len(client.refusals) <= 10
    client.good = {"new", "old"}
    client.clock.pass_(66)
    assert client.call() == "new"
    client.good = {"new"}
    client.clock.pass_(1000)
    assert [client.call() for _ in range(3)] == ["new"] * 3
    assert 9 <= len(client.refusals) <= 10


def test_of_a_thousand_calls_one_tries_the_new() -> None:
    """Whoever takes the try takes it alone, before anything is known of how it ends."""
    client = Client(key=["new", "old"])
    client.good = {"old"}
    client.call()
    client.clock.pass_(70)
    firsts = [client.order()[0] for _ in range(1000)]
    assert firsts.count("new") == 1


def test_a_replaced_value_is_tried_at_once() -> None:
    """A value that was not there before waits for no cool-down; once."""
    client = Client(key=["a"])
    client.good = {"a"}
    client.call()
    client.replace(a="a2")
    assert [client.order()[0] for _ in range(3)] == ["a2", "a", "a"]


def test_a_late_answer_to_the_old_takes_nothing_from_the_new() -> None:
    """A call that left with the old one before the new took over says nothing against the new,
    whether it worked or not."""
    client = Client(key=["new", "old"])
    new, old = client.rollover.order()
    client.rollover.worked(new)
    client.rollover.worked(old)
    assert client.order() == ["new", "old"]
    client.rollover.refused(old)
    assert client.order() == ["new", "old"]


def test_a_working_one_that_is_refused_gives_way() -> None:
    """Revoked, it goes behind those that were not refused; with all refused, newest first."""
    client = Client(key=["a", "b", "c"])
    client.good = {"a"}
    client.call()
    client.good = {"c"}
    assert client.call() == "c"
    assert client.order() == ["c", "a", "b"]
    client.good = set()
    assert client.call() == ""
    assert client.order() == ["a", "b", "c"]


def test_what_is_published() -> None:
    """The last success and the refusals of each version, by where it is from and its slot; a
    refusal is logged once until it works again, by fingerprint."""
    client = Client(key=["new", "old"])
    client.good = {"old"}
    began = client.clock.now().timestamp()
    with capture_logs() as lines:
        for _ in range(3):
            client.call()
            client.clock.pass_(100)
    assert client.sample("last_success_timestamp_seconds", "old", "older") == began + 200
    assert client.sample("last_success_timestamp_seconds", "new", "newest") is None
    assert client.sample("refusals_total", "new", "newest") == 3
    (line,) = lines
    assert line["fingerprints"] == {"key": client.rollover.current()[0].values["key"].fingerprint}
    assert (line["event"], line["slot"], line["sources"]) == (
        "secret_refused", "newest", ("env:new",),
    )  # fmt: skip


def test_reread_says_whether_there_is_something_to_try() -> None:
    """True for a version with values that were not there, and not for another reference's."""
    client = Client(key=["a"], other=["b"])
    rollover = Rollover({"key": [SecretRef(env="a")]}, client.keyring, client.clock, Metrics())
    values: dict[str, str] = {}

    async def reread() -> bool:
        client.replace(**values)
        return True

    client.keyring.reread = reread
    assert asyncio.run(rollover.reread()) is False
    values["b"] = "b2"
    assert asyncio.run(rollover.reread()) is False
    values["a"] = "a2"
    assert asyncio.run(rollover.reread()) is True
    assert [text_of(one) for one in rollover.order()] == ["a2", "a"]


def test_of_two_earlier_values_the_one_that_was_not_refused() -> None:
    """However often garbage is written over garbage, the value that worked before it is shown;
    one that works is not given up for one that nobody has tried."""
    client = Client(key=["a"])
    client.good = {"a"}
    for garbage in ("x", "y", "z"):
        client.replace(a=garbage)
        assert client.call() == "a"
        assert client.order() == ["a", garbage]
    client.good = {"a2"}
    client.replace(a="a2")
    assert client.call() == "a2"
    client.replace(a="a3")
    assert client.order() == ["a3", "a2"]
    client.replace(a="a4")  # though nobody has tried that one
    assert client.order() == ["a4", "a2"]


def test_what_was_never_read_here_was_never_there() -> None:
    """The earlier values are those that this rollover has read, not those that the keyring had
    before it, or between two readings: it shows nothing that was meant for another address."""
    client = Client(key=["a"])
    client.replace(a="b")
    later = Rollover({"key": [SecretRef(env="a")]}, client.keyring, client.clock, Metrics())
    assert [text_of(one) for one in later.order()] == ["b"]
    client.replace(a="c")
    client.replace(a="d")
    assert [text_of(one) for one in later.order()] == ["d", "b"]


def test_earlier_values_of_who_we_are_are_not_shown() -> None:
    """Of a setting under `same` the value now is the only one: with an earlier secret, the client
    of now is shown, and not the one before."""
    client = Client(id=["id"], secret=["s"])
    groups = {"id": [SecretRef(env="id")], "secret": [SecretRef(env="s")]}
    one = Rollover(groups, client.keyring, client.clock, Metrics(), same=("id",))
    client.replace(id="ID", s="S")
    assert [text_of(shown) for shown in one.order()] == ["ID+S", "ID+s"]
    assert [text_of(shown) for shown in one.current()] == ["ID+S"]


def test_frozen_it_stays_with_what_it_had() -> None:
    """Calls that began under the configuration before go on with the secrets of then: no new value
    is shown, by a reread neither, and a reference that is gone ends nothing."""
    client = Client(key=["a"], other=["b"])
    client.replace(b="b2")
    assert client.order() == ["a+b2", "a+b"]
    client.rollover.freeze()

    async def reread() -> bool:
        client.env["b"] = "b3"
        client.keyring.adopt(client.keyring.read(client.refs[1:]))
        return True

    client.keyring.reread = reread
    assert asyncio.run(client.rollover.reread()) is False
    assert client.order() == ["a+b2", "a+b"]
    assert [text_of(one) for one in client.rollover.current()] == ["a+b2"]


STEPS = st.lists(
    st.tuples(st.just("call"), st.integers(1, 20))
    | st.tuples(st.just("pass"), st.integers(0, 200))
    | st.tuples(st.just("good"), st.integers(0, 31))
    | st.tuples(st.just("replace"), st.integers(0, 2)),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(steps=STEPS, draw=st.floats(0.0, 1.0))
def test_a_rollover_costs_a_call_a_minute_and_fails_none(
    steps: list[tuple[str, Any]], draw: float
) -> None:
    """Whatever the upstream knows and whenever: a call finds a version that it knows, if there is
    one; nothing is shown twice in one call; and while nothing changes, refusals that come before a
    success are a minute apart."""
    client = Client(draw=draw, key=["a", "b", "c"])
    serial = 0
    for step, size in steps:
        if step == "pass":
            client.clock.pass_(size)
        elif step == "replace":
            serial += 1
            client.replace(**{"abc"[size]: f"v{serial}"})
        elif step == "good":
            versions = [text_of(one) for one in client.rollover.order()]
            client.good = {one for index, one in enumerate(versions) if size >> index & 1}
            client.call()
        else:
            client.call()  # what changed is found out once
            client.refusals.clear()
            for _ in range(size):
                versions = client.order()
                assert len(set(versions)) == len(versions)
                assert bool(client.call()) is bool(client.good & set(versions))
                client.clock.pass_(7)
            if client.good & set(client.order()):
                for one, other in zip(client.refusals, client.refusals[1:], strict=False):
                    assert other - one >= COOL_DOWN
