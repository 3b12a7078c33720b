"""The nouns: above all, that a `Secret` cannot give itself away."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.model import Caller, Life, Secret, fingerprint

CANARY = "c4nary-ünd+/=%s{0}"


@dataclass
class _Holder:
    key: Secret


SHOWN: dict[str, Callable[[Secret], str]] = {
    "str": str,
    "repr": repr,
    "ascii": ascii,
    "f-string": lambda s: f"{s}",
    "f-string with repr": lambda s: f"{s!r}",
    "f-string with a width": lambda s: f"{s:>40}",
    "format": "{0} {0!s} {0!r} {0:s}".format,
    "percent": lambda s: "%s %r" % (s, s),  # noqa: UP031
    "in a list": lambda s: str([s, (s,), {"key": s}]),
    "a dataclass": lambda s: repr(_Holder(s)),
    "json with default=str": lambda s: json.dumps({"key": s}, default=str),
    "orjson with default=str": lambda s: orjson.dumps({"key": s}, default=str).decode(),
    "structlog": lambda s: str(structlog.processors.JSONRenderer()(None, "info", {"key": s})),
    "an exception": lambda s: "".join(traceback.format_exception(ValueError(s))),
    "dir": lambda s: str(dir(s)),
    "vars": lambda s: str(getattr(s, "__dict__", {})),
}


@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN)
def test_a_secret_is_not_shown(shown: Callable[[Secret], str]) -> None:
    """No way of making text of a secret gives any of its value away."""
    assert "c4nary" not in shown(Secret(CANARY))


def test_a_secret_is_masked_the_same_whatever_it_is() -> None:
    """Not even its length or first letters show."""
    assert {(str(s), repr(s), f"{s:>9}") for s in (Secret(""), Secret("x" * 99))} == {
        ("***", "Secret(***)", "***")
    }


def test_a_secret_in_a_log_record_is_masked(caplog: pytest.LogCaptureFixture) -> None:
    """Nor does logging, with the secret as message, argument or extra."""
    secret = Secret(CANARY)
    logging.getLogger("x").warning("key %s %r", secret, secret)
    logging.getLogger("x").warning(secret)
    assert caplog.messages == ["key *** Secret(***)", "***"]


WAYS_OUT: dict[str, Callable[[Secret], Any]] = {
    **{
        f"pickle {n}": lambda s, n=n: pickle.dumps(s, n) for n in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "asdict": lambda s: asdict(_Holder(s)),
    "json": json.dumps,
    "orjson": orjson.dumps,
    "bytes": bytes,
    "concatenation": lambda s: "key " + s,
    "join": lambda s: str.join("", [s]),
    "iteration": list,
    "len": len,
    "index": lambda s: s[0],
    "new attribute": lambda s: setattr(s, "other", 1),
}


@pytest.mark.parametrize("way", WAYS_OUT.values(), ids=WAYS_OUT)
def test_a_secret_does_not_travel(way: Callable[[Secret], Any]) -> None:
    """It is not copied, pickled, encoded or used as a text; and the refusal is silent about it."""
    with pytest.raises((TypeError, AttributeError)) as caught:
        way(Secret(CANARY))
    assert "c4nary" not in str(caught.value)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.text("ab+/=%"))
def test_secrets_compare_by_value(one: str, other: str) -> None:
    """`reveal` gives exactly what went in; equality and hash follow it; no text equals a secret."""
    assert Secret(one).reveal() == one
    assert (Secret(one) == Secret(other)) is (one == other)
    assert hash(Secret(one)) == hash(Secret(one))
    assert Secret(one) != one


def test_a_fingerprint_finds_but_is_not_the_value() -> None:
    """It is the first sixteen hex digits of SHA-256: anybody can compute it from the value."""
    assert Secret("abc").fingerprint == fingerprint("abc") == "ba7816bf8f01cfea"


def test_values_do_not_change() -> None:
    """What flows is frozen and slotted."""
    caller = Caller("shop-users", "ada", {})
    with pytest.raises(FrozenInstanceError):
        caller.subject = "bob"  # type: ignore[misc]
    assert not hasattr(caller, "__dict__")


def test_a_life_is_measured_on_the_monotonic_clock() -> None:
    """What is left is `until` minus now, and negative when it is over; the wall clock is not asked."""
    life = Life(datetime(2026, 1, 1, tzinfo=UTC), timedelta(seconds=900), 1900.0)
    assert [life.remaining(at) for at in (1000.0, 1900.0, 1901.5)] == [900.0, 0.0, -1.5]
