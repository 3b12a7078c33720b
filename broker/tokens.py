"""A `TokenSource` around another: one access token, kept warm for everybody who needs it.

Exists so that a request finds a token without waiting and an upstream's token endpoint sees one
request where there are ten thousand callers. Must never hand out a token at or under its floor,
let one caller's leaving end another's wait, ask again while it backs off, or take a lock: all of
this runs on one event loop, and nothing here awaits between a look and the deed.

One value for each credential is held, for which an attribute is right. cachetools (TLRUCache) was
looked at: it bounds and expires many values by key, and knows neither "stale" nor a flight.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from broker.errors import (
    BrokerError,
    InternalError,
    MinFreshNotMet,
    UpstreamNonsense,
    UpstreamRefused,
    UpstreamUnavailable,
)
from broker.flights import Spawn
from broker.metrics import Metrics
from broker.model import AccessToken, TokenSource
from broker.schedule import Clock, Freshness, backoff, floor_of, freshness, refresh_point

REFUSED_WAIT = 60.0
"""Seconds after a refusal: a wrong secret costs one request a minute, and no ban of our address."""
TOO_YOUNG = 0.1
"""Share of its life under which a token is not replaced for `min_fresh`: the next would hardly have
more, and a caller who always asks for the whole life would cause a token request each time."""
ROUNDS = 3
"""Flights one caller waits for: the first may have begun before a `forget`, or bring a token that
a suspended machine slept away."""

_log = structlog.get_logger("tokens")


@dataclass(frozen=True, slots=True)
class _Held:
    token: AccessToken
    floor: float
    refresh_below: float
    """Seconds of life left; drawn once for each token, or the spread would be lost."""

    def freshness(self, monotonic: float) -> Freshness:
        return freshness(self.token.life.remaining(monotonic), self.refresh_below, self.floor)


class Cached:
    """Holds the token of one source: fresh, it is handed out; stale, handed out and refreshed
    behind; expired, waited for, by everybody in the same flight."""

    def __init__(
        self,
        source: TokenSource,
        clock: Clock,
        metrics: Metrics,
        name: str,
        *,
        min_remaining: float | None,
        spawn: Spawn,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """min_remaining: the floor in seconds, else a tenth of each life. spawn: starts a task that
        belongs to the app. draw: for jitter, from 0 to 1."""
        self._source = source
        self._clock = clock
        self._monotonic = clock.monotonic
        self._metrics = metrics
        self._name = name
        self._min_remaining = min_remaining
        self._spawn = spawn
        self._draw = draw
        self._held: _Held | None = None
        self._fresh_until = float("-inf")
        self._flight: asyncio.Task[AccessToken | BrokerError] | None = None
        self._forgotten = float("-inf")
        self._failures = 0
        self._error: BrokerError | None = None
        self._retry_at = float("-inf")

    def peek(self) -> AccessToken | None:
        """The token while it is fresh, for the hottest path; None calls for `token()`."""
        if self._monotonic() < self._fresh_until and self._held is not None:
            return self._held.token
        return None

    async def token(self, *, min_fresh: float = 0.0) -> AccessToken:
        now, held = self._monotonic(), self._held
        if held is None:
            return await self._next(min_fresh)
        token = held.token
        enough = token.life.until - now >= min_fresh
        if enough and now < self._fresh_until:
            return token
        state = held.freshness(now)
        if state is Freshness.EXPIRED:
            return await self._next(min_fresh)
        if not enough:
            life = token.life.lifetime.total_seconds()
            if life < min_fresh or now - token.obtained < life * TOO_YOUNG:
                raise _too_short()
            return await self._next(min_fresh)
        if state is Freshness.STALE and now >= self._retry_at:
            _ = self._aloft(now, min_fresh)
        return token

    def forget(self, *, older_than: float) -> None:
        """An upstream refused a call that was sent at monotonic `older_than`.

        That call's token was asked for before it was sent. So a token asked for later cannot be the
        refused one and stays; an older one may be, even where it came in after the call had left,
        as some servers give the same token to every request until it ends. So what a flight brings
        that is under way now is neither held nor handed out if its request was sent before the
        refused call: those who wait go on to the next. A burst of refused calls costs one token
        request, or two.
        """
        self._forgotten = max(self._forgotten, older_than)
        if self._held is not None and self._held.token.obtained < older_than:
            self._held = None
            self._fresh_until = float("-inf")
        self._source.forget(older_than=older_than)

    async def warm(self) -> None:
        """Fetches ahead of the first caller. Never raises: it is logged, and callers ask anew."""
        try:
            await self.token()
        except BrokerError as error:
            _log.warning("access_token_not_warm", credential=self._name, problem=error.slug)

    async def _next(self, min_fresh: float) -> AccessToken:
        """The token of the flight under way, or of a new one. Raises a copy of its error."""
        for _ in range(ROUNDS):
            found = await asyncio.shield(self._aloft(self._monotonic(), min_fresh))
            if isinstance(found, BrokerError):
                raise _again(found, found.retry_after)
            remaining = found.life.remaining(self._monotonic())
            if found.obtained >= self._forgotten and remaining > self._floor(found):
                if remaining < min_fresh:
                    raise _too_short()
                return found
        raise UpstreamUnavailable("No access token stayed good.", retry_after=1.0)

    def _aloft(self, now: float, min_fresh: float) -> asyncio.Task[AccessToken | BrokerError]:
        """The one flight, begun where there is none. Raises the last failure while backing off.

        A flight returns its error, as a task that raises with nobody waiting complains.
        """
        if self._flight is None or self._flight.done():
            if self._error is not None and now < self._retry_at:
                raise _again(self._error, self._retry_at - now)
            self._flight = self._spawn(self._refresh(min_fresh))
        return self._flight

    async def _refresh(self, min_fresh: float) -> AccessToken | BrokerError:
        try:
            token = await self._source.token(min_fresh=min_fresh)
            if token.life.remaining(self._monotonic()) <= self._floor(token):
                raise UpstreamNonsense("The access token ends too soon to be used.")
        except BrokerError as error:
            return self._failed(error)
        except Exception as exc:  # noqa: BLE001  (a flight must land, whatever befalls it)
            _log.exception("defect", credential=self._name)
            return self._failed(InternalError(cause=type(exc).__name__))
        self._failures, self._error, self._retry_at = 0, None, float("-inf")
        if token.obtained >= self._forgotten:
            self._hold(token)
        return token

    def _hold(self, token: AccessToken) -> None:
        life, floor = token.life.lifetime.total_seconds(), self._floor(token)
        # With a floor of its own, the share is of what is above it: else a high floor would leave
        # no time between the refresh and the end.
        below = refresh_point(life, self._draw)
        if self._min_remaining is not None:
            below = floor + below * (1 - floor / life)
        self._held = _Held(token, floor, below)
        self._fresh_until = token.life.until - below
        expires = token.life.expires_at.timestamp()
        self._metrics.access_token_held(self._name, expires, expires - below)

    def _floor(self, token: AccessToken) -> float:
        if self._min_remaining is not None:
            return self._min_remaining
        return floor_of(token.life.lifetime.total_seconds())

    def _failed(self, error: BrokerError) -> BrokerError:
        """Remembers the failure and until when to let the source be."""
        self._failures += 1
        wait = backoff(self._failures, self._draw)
        if isinstance(error, UpstreamRefused):
            wait = REFUSED_WAIT * (1 + self._draw() / 10)
        wait = max(wait, error.retry_after or 0.0)
        self._retry_at = self._monotonic() + wait
        self._error = error = _again(error, wait)
        _log.warning(
            "access_token_refresh_failed",
            credential=self._name,
            problem=error.slug,
            cause=error.cause,
            failures=self._failures,
            retry_in=round(wait, 1),
            held=self._held is not None,
        )
        return error


def _again(error: BrokerError, retry_after: float | None) -> BrokerError:
    """A copy to raise: one instance raised by thousands gathers all their tracebacks."""
    fresh = type(error).__new__(type(error), *error.args)
    vars(fresh).update(vars(error), retry_after=retry_after)
    return fresh


def _too_short() -> MinFreshNotMet:
    return MinFreshNotMet("No access token has as much life left as is asked for.")
