"""Time: laws of freshness and refreshing, and parsers that never raise what they should not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.schedule import (
    Freshness,
    SystemClock,
    backoff,
    floor_of,
    freshness,
    parse_duration,
    parse_retry_after,
    refresh_point,
    rfc3339,
)

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
LAW = settings(max_examples=200, deadline=None, derandomize=True)
seconds = st.floats(-1e6, 1e6)
draws = st.floats(0, 1, exclude_max=True)
RANK = [Freshness.EXPIRED, Freshness.STALE, Freshness.FRESH]


@LAW
@given(seconds, seconds, seconds, seconds)
def test_freshness_is_monotone(
    one: float, other: float, refresh_below: float, floor: float
) -> None:
    """A token with more of its life left is never less fresh."""
    less, more = sorted((one, other))
    assert RANK.index(freshness(less, refresh_below, floor)) <= RANK.index(
        freshness(more, refresh_below, floor)
    )


@LAW
@given(seconds, seconds, seconds)
def test_at_its_floor_a_token_is_expired(left: float, refresh_below: float, floor: float) -> None:
    """EXPIRED is exactly: at or under the floor; whatever the refresh point says."""
    assert (freshness(left, refresh_below, floor) is Freshness.EXPIRED) is (left <= floor)


def test_freshness_has_three_answers() -> None:
    """Over the refresh point fresh, at it stale, at the floor expired."""
    assert [freshness(left, 100, 30) for left in (101, 100, 31, 30, 0, -1)] == [
        Freshness.FRESH,
        Freshness.STALE,
        Freshness.STALE,
        Freshness.EXPIRED,
        Freshness.EXPIRED,
        Freshness.EXPIRED,
    ]


@LAW
@given(st.floats(1, 1e6), draws)
def test_a_token_is_replaced_with_17_to_33_percent_left(lifetime: float, draw: float) -> None:
    """The refresh point stays within its spread, and over the floor of the same token."""
    point = refresh_point(lifetime, lambda: draw)
    assert 0.1699 * lifetime <= point <= 0.3301 * lifetime
    assert floor_of(lifetime) < point


def test_a_floor_is_a_tenth_of_life_30s_at_the_most() -> None:
    """So that even a ten-second token has nine seconds of use."""
    assert [floor_of(life) for life in (10.0, 300.0, 900.0, 86400.0)] == [1.0, 30.0, 30.0, 30.0]


@LAW
@given(st.integers(-5, 10**6), draws)
def test_waits_after_failures_are_bounded(failures: int, draw: float) -> None:
    """At least half a second, never more than a minute, and never too large a number to compute."""
    assert 0.5 <= backoff(failures, lambda: draw) <= 60.0


def test_waits_double() -> None:
    """1, 2, 4 … 60 seconds, of which at least half."""
    assert [backoff(n, lambda: 0.0) for n in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


@LAW
@given(st.text() | st.from_regex(r"\w{3}, \d+ \w{3} \d+ \d+:\d+:\d+ [+-]?\w+", fullmatch=True))
@example("Mon, 20 Nov 1995 19:12:08 +99999999999999999999")
@example("Mon, 20 Nov 99999999999999999999 19:12:08 +0000")
@example("9" * 8000)
@example("²")
@example("-1")
@example("nan")
def test_retry_after_of_any_text_is_capped_or_none(text: str) -> None:
    """An upstream cannot crash us with it, nor make us wait for longer than the cap."""
    found = parse_retry_after(text, NOW)
    assert found is None or 0.0 <= found <= 900.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("120", 120.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("000000000000000120", 120.0),
        ("901", 900.0),
        ("9" * 400, 900.0),
        (format_datetime(NOW + timedelta(seconds=30), usegmt=True), 30.0),
        (format_datetime(NOW - timedelta(seconds=30), usegmt=True), 0.0),
        ("Fri, 20 Nov 2026 12:00:30", 30.0),
        ("Thu, 31 Dec 2099 23:59:59 GMT", 900.0),
        ("1.5", None),
        ("-1", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after(value: str | None, expected: float | None) -> None:
    """Seconds or a date (RFC 9110 §10.2.3); a date that is past is no wait; else unknown."""
    assert parse_retry_after(value, NOW) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("250ms", timedelta(milliseconds=250)),
        ("90s", timedelta(seconds=90)),
        ("1.5m", timedelta(seconds=90)),
        ("8h", timedelta(hours=8)),
        ("7d", timedelta(days=7)),
        ("0s", timedelta(0)),
        ("36525d", timedelta(days=36525)),
    ],
)
def test_durations(text: str, expected: timedelta) -> None:
    """A number with a unit."""
    assert parse_duration(text) == expected


@pytest.mark.parametrize(
    "text", ["", "90", "s", "-1s", "+1s", "1 s", "1e3s", "1y", "1S", "٣s", "1h30m", "inf s", "1s\0",
             "36526d", "999999999d"],
)  # fmt: skip
def test_what_is_no_duration(text: str) -> None:
    """Without a unit, negative, in other digits, or longer than a century: refused."""
    with pytest.raises(ValueError):
        parse_duration(text)


@LAW
@given(st.text() | st.from_regex(r"\d{1,12}(\.\d{1,5})?(ms|s|m|h|d)", fullmatch=True))
def test_a_duration_can_always_be_added_to_now(text: str) -> None:
    """Any text is a duration that an instant can take, or a ValueError."""
    try:
        duration = parse_duration(text)
    except ValueError:
        return
    assert duration >= timedelta(0)
    assert NOW + duration < datetime(2200, 1, 1, tzinfo=UTC)


def test_instants_are_told_in_utc_to_the_second() -> None:
    """Another zone is converted, fractions are cut, early years keep their four digits."""
    east = datetime(2026, 11, 20, 12, 0, 0, 999999, tzinfo=timezone(timedelta(hours=2)))
    assert rfc3339(east) == "2026-11-20T10:00:00Z"
    assert rfc3339(datetime(33, 1, 2, tzinfo=UTC)) == "0033-01-02T00:00:00Z"


def test_the_machines_clocks() -> None:
    """The wall clock is aware and UTC; the other one does not go back."""
    clock = SystemClock()
    assert clock.now().utcoffset() == timedelta(0)
    assert clock.monotonic() <= clock.monotonic()
