"""Everything about time: the clock, freshness, jitter, durations, instants.

Pure functions of numbers decide; the clock is a value that is passed in. Ages and deadlines are
measured on a clock that no administrator can set and that goes on while a machine is suspended;
the wall clock is only told to others. Nothing here may know what a token is for.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Protocol

ROTATE_AT = 0.75
"""Share of its life after which a token is replaced: a quarter of it is left for retries."""
ROTATE_SPREAD = 0.08
"""Plus or minus this share, so that a fleet that started together does not come back together."""


class Clock(Protocol):
    def now(self) -> datetime:
        """The wall clock, aware, UTC: for what others are told."""
        ...

    def monotonic(self) -> float:
        """Seconds that only grow, counting suspended time: for ages and deadlines."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's clocks. CLOCK_BOOTTIME, as CLOCK_MONOTONIC stands still in a suspended VM."""

    _source = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.clock_gettime(self._source)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Freshness(Enum):
    FRESH = "fresh"
    STALE = "stale"
    """Still good: hand it out and refresh behind."""
    EXPIRED = "expired"
    """At or under its floor: never hand it out."""


def freshness(remaining: float, refresh_below: float, floor: float) -> Freshness:
    """Where a token stands with `remaining` seconds left (all arguments in seconds)."""
    if remaining <= floor:
        return Freshness.EXPIRED
    return Freshness.STALE if remaining <= refresh_below else Freshness.FRESH


def refresh_point(lifetime: float, draw: Callable[[], float] = random.random) -> float:
    """Seconds of life left at which to replace a token. Draw once for each token and keep it.

    A fraction of life, so that a five-second token is not refreshed on every request and a day's
    token not left to its last minute; redrawing on each check would undo the spread.
    """
    return lifetime * (1 - ROTATE_AT + ROTATE_SPREAD * (2 * draw() - 1))


def floor_of(lifetime: float, most: float = 30.0) -> float:
    """Seconds of life under which a token is not handed out: a tenth of it, 30 s at the most."""
    return min(most, lifetime / 10)


def backoff(failures: int, draw: Callable[[], float] = random.random) -> float:
    """Seconds to wait after the n-th failure in a row: full jitter over 1, 2, 4 … 60 s."""
    ceiling = min(60.0, 2.0 ** max(0, min(failures, 7) - 1))
    return ceiling * (0.5 + draw() / 2)


def parse_retry_after(value: str | None, now: datetime, cap: float = 900.0) -> float | None:
    """Seconds of a Retry-After field (RFC 9110 §10.2.3: seconds or a date), capped; else None."""
    if not value:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(cap, float(text))
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    try:
        return min(cap, max(0.0, (at - now).total_seconds()))
    except OverflowError:
        return None


_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h|d)", re.ASCII)
_CENTURY = timedelta(days=36525)
"""So that an instant and a duration always have a sum (datetime ends with the year 9999)."""
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str) -> timedelta:
    """`90s`, `15m`, `8h`, `250ms`, `7d`. Raises ValueError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError("a number with a unit is wanted: 250ms, 90s, 15m, 8h, 7d")
    duration = timedelta(seconds=float(match[1]) * _UNITS[match[2]])
    if duration > _CENTURY:
        raise ValueError("is longer than a century")
    return duration


def rfc3339(instant: datetime) -> str:
    """`2026-11-20T12:00:00Z`, to the second."""
    return instant.astimezone(UTC).isoformat()[:19] + "Z"  # a tenth of what strftime costs
