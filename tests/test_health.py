"""When a store counts as away: a table, and what holds whatever comes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.state.health import AWAY_AFTER_SECONDS, KINDS, Health, kind_of

OPERATIONS = ["get", "put", "claim", "extend", "release", "delete", "hit", "beat"]
W, F = "worked", "failed"


@pytest.mark.parametrize(
    ("story", "away"),
    [
        ([], []),
        ([(0, F, "get")], []),
        ([(0, F, "get"), (1.9, F, "get")], []),
        ([(0, F, "get"), (2, F, "get")], ["read"]),
        ([(0, F, "get"), (1, W, "get"), (2.9, F, "get")], []),
        ([(0, F, "get"), (1, W, "get"), (2.9, F, "get"), (4.9, F, "get")], ["read"]),
        ([(0, F, "put"), (1, W, "get"), (2, F, "put")], ["write"]),
        ([(0, F, "put"), (1, W, "claim"), (2, F, "put")], ["write"]),
        ([(0, F, "get"), (1, F, "put"), (2, F, "hit")], []),
        ([(0, F, "hit"), (2, F, "hit"), (2, W, "get"), (2, W, "put")], ["count"]),
        ([(0, F, "release"), (2, F, "release"), (2, W, "release")], ["write"]),
        ([(0, F, op) for op in ("get", "beat", "hit")]
         + [(2, F, op) for op in ("get", "beat", "hit")], ["count", "read", "write"]),
    ],
)  # fmt: skip
def test_when_an_operation_is_away(story: list[tuple[float, str, str]], away: list[str]) -> None:
    """After two seconds of its own failures without a success between, and not before; the success
    of another operation changes nothing; a success of its own, once it is away, neither."""
    health = Health()
    for now, what, operation in story:
        if what == W:
            health.worked(operation)
        else:
            health.failed(operation, 1000 + now)
    assert health.away == away
    assert {kind_of(one) for one in OPERATIONS if health.is_away(one)} == set(away)


def test_what_an_operation_needs() -> None:
    """Reading, counting and writing fail apart: all that takes, keeps or gives back is writing."""
    assert {one: kind_of(one) for one in ("get", "hit")} == {"get": "read", "hit": "count"} == KINDS
    assert {kind_of(one) for one in OPERATIONS if one not in KINDS} == {"write"}


def test_a_probe_that_succeeds_ends_it_all() -> None:
    """`back` forgets failures that have just begun too; what is withheld again is away at once."""
    health = Health()
    assert not health.failed("put", 0)
    assert not health.failed("get", 1)
    assert health.failed("put", 2)
    assert not health.failed("claim", 2)
    assert not health.is_well
    health.back()
    assert (health.is_well, health.away) == (True, [])
    assert not health.failed("get", 3)
    health.back()
    health.withhold(["write"])
    assert (health.is_well, health.away) == (False, ["write"])
    assert health.is_away("claim")
    assert not health.is_away("get")


EVENTS = st.lists(
    st.tuples(
        st.sampled_from([W, F, F, F, "back"]),
        st.sampled_from(OPERATIONS),
        st.sampled_from([0.0, 0.1, 0.4, 1.0, 2.0, 5.0]),
    ),
    max_size=60,
)


@given(EVENTS)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_it_is_judged_by_each_operation(events: list[tuple[str, str, float]]) -> None:
    """Whatever comes: a kind is away if and only if, since the last `back`, one of its operations
    has failed for two seconds without having worked in between; `failed` says so once."""
    health, now = Health(), 0.0
    since: dict[str, float] = {}
    away: set[str] = set()
    for what, operation, passing in events:
        now += passing
        if what == "back":
            health.back()
            since, away = {}, set()
        elif what == W:
            health.worked(operation)
            since.pop(operation, None)
        else:
            first = since.setdefault(operation, now)
            is_new = now - first >= AWAY_AFTER_SECONDS and kind_of(operation) not in away
            assert health.failed(operation, now) == is_new
            away |= {kind_of(operation)} if is_new else set()
        assert health.away == sorted(away)
        assert health.is_well == (not since and not away)
        assert {one for one in OPERATIONS if health.is_away(one)} == {
            one for one in OPERATIONS if kind_of(one) in away
        }
