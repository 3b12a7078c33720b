"""A `TokenSource` around another: one access token, kept warm for everybody who needs it.

Exists so that a request finds a token without waiting and an upstream's token endpoint sees one
request where there are ten thousand callers. Must never hand out a token at or under its floor,
let one caller's leaving end another's wait, ask again while it backs off, keep a token warm that
nobody uses, or take a lock: all of this runs on one event loop, and nothing here awaits between a
look and the deed.

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
    Overloaded,
    UpstreamNonsense,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from broker.flights import Spawn
from broker.guard import MOST_COOLING
from broker.metrics import Metrics
from broker.model import AccessToken, Priority, TokenSource
from broker.schedule import Clock, Freshness, backoff, floor_of, freshness, refresh_point

REFUSED_WAIT = 60.0
"""Seconds after a refusal: a wrong secret costs one request a minute, and no ban of our address."""
TOO_YOUNG = 0.1
"""Share of its life under which a token is not replaced for `min_fresh`: the next would hardly have
more, and a caller who always asks for the whole life would cause a token request each time."""
WITHIN_REST = 3
"""Of what is left of a good token, a failed refresh is let be for a third at the most: an outage
of nine tenths of the rest is then followed by a try while a fifteenth of it is left."""
SOONEST = 0.25
"""Seconds between tries at the least, where hardly anything is left."""
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
        self._used = self._retired = False
        self._renewer: asyncio.Task[None] | None = None
        self._flight: asyncio.Task[AccessToken | BrokerError] | None = None
        self._hurried = False
        self._forgotten = float("-inf")
        self._failures = 0
        self._error: BrokerError | None = None
        self._retry_at = float("-inf")

    def peek(self) -> AccessToken | None:
        """The token while it is fresh, for the hottest path; None calls for `token()`."""
        if self._monotonic() < self._fresh_until and self._held is not None:
            self._used = True
            return self._held.token
        return None

    async def token(
        self, *, min_fresh: float = 0.0, priority: Priority = Priority.PERSON
    ) -> AccessToken:
        """priority: of a request that is made because nothing is held; one made behind a good
        token is a REFRESH, whoever asks."""
        now, held = self._monotonic(), self._held
        self._used |= priority is Priority.PERSON
        if held is None:
            return await self._next(min_fresh, priority)
        token = held.token
        enough = token.life.until - now >= min_fresh
        if enough and now < self._fresh_until:
            return token
        state = held.freshness(now)
        if state is Freshness.EXPIRED:
            return await self._next(min_fresh, priority)
        if not enough:
            life = token.life.lifetime.total_seconds()
            if life < min_fresh or token.life.remaining(now) > life * (1 - TOO_YOUNG):
                raise _too_short()
            return await self._next(min_fresh, priority)
        if state is Freshness.STALE and now >= self._retry_at:
            _ = self._aloft(now, min_fresh, Priority.REFRESH)
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

    def retire(self) -> None:
        """A newer configuration has another in its place: nothing is fetched behind any more but
        for calls that are under way."""
        if self._renewer is not None:
            self._renewer.cancel()
        self._used, self._retired = False, True

    def hope(self) -> None:
        """A secret was replaced: what was refused may be taken now."""
        if isinstance(self._error, UpstreamRefused):
            self._retry_at = float("-inf")

    async def warm(self) -> None:
        """Fetches ahead of the first caller. Never raises: it is logged, and callers ask anew."""
        try:
            await self.token(priority=Priority.PREFETCH)
        except BrokerError as error:
            _log.warning("access_token_not_warm", credential=self._name, problem=error.slug)

    async def _next(self, min_fresh: float, priority: Priority) -> AccessToken:
        """The token of the flight under way, or of a new one. Raises a copy of its error."""
        for _ in range(ROUNDS):
            found = await asyncio.shield(self._aloft(self._monotonic(), min_fresh, priority))
            if isinstance(found, BrokerError):
                if self._hurried and priority is Priority.PERSON:
                    continue
                raise found.again()
            remaining = found.life.remaining(self._monotonic())
            if found.obtained >= self._forgotten and remaining > self._floor(found):
                if remaining < min_fresh:
                    raise _too_short()
                self._used |= priority is Priority.PERSON
                return found
        raise UpstreamUnavailable("No access token stayed good.", retry_after=1.0)

    def _aloft(
        self, now: float, min_fresh: float, priority: Priority
    ) -> asyncio.Task[AccessToken | BrokerError]:
        """The one flight, begun where there is none. Raises the last failure while backing off, but
        for a person where that was of a request in a hurry: theirs has more time.

        A flight returns its error, as a task that raises with nobody waiting complains.
        """
        if self._flight is None or self._flight.done():
            patient = self._hurried and priority is Priority.PERSON
            if self._error is not None and now < self._retry_at and not patient:
                raise self._error.again(retry_after=self._retry_at - now)
            self._flight = self._spawn(self._refresh(min_fresh, priority))
        return self._flight

    async def _refresh(self, min_fresh: float, priority: Priority) -> AccessToken | BrokerError:
        try:
            token = await self._source.token(min_fresh=min_fresh, priority=priority)
            if token.life.remaining(self._monotonic()) <= self._floor(token):
                raise UpstreamNonsense("The access token ends too soon to be used.")
        except BrokerError as error:
            late = isinstance(error, UpstreamTimeout | Overloaded)  # a person has more of both
            self._hurried = late and priority is not Priority.PERSON
            return self._failed(error)
        except Exception as exc:  # noqa: BLE001  (a flight must land, whatever befalls it)
            _log.exception("defect", credential=self._name)
            self._hurried = False
            return self._failed(InternalError(cause=type(exc).__name__))
        self._failures, self._error, self._retry_at = 0, None, float("-inf")
        self._hurried = False
        if token.obtained >= self._forgotten:
            self._hold(token, used=priority is Priority.PERSON)
        return token

    async def _renew(self, held: _Held) -> None:
        """Refreshes behind when it is time to, though nobody asks just then: where calls are few,
        each would else find an expired token. Ends with a token that nobody has used."""
        while self._held is held:
            now = self._monotonic()
            wait = max(held.token.life.until - held.refresh_below, self._retry_at) - now
            if wait > 0:
                await self._clock.sleep(wait)
            elif not self._used or held.freshness(now) is Freshness.EXPIRED:
                return
            else:
                landed = await asyncio.shield(self._aloft(now, 0.0, Priority.REFRESH))
                if not isinstance(landed, BrokerError):
                    return

    def _hold(self, token: AccessToken, used: bool) -> None:
        floor = self._floor(token)
        below = refresh_below(token, self._min_remaining, self._draw)
        self._held = _Held(token, floor, below)
        self._fresh_until = token.life.until - below
        self._used = used
        if self._renewer is not None:
            self._renewer.cancel()
        if not self._retired:
            self._renewer = self._spawn(self._renew(self._held))
        expires = token.life.expires_at.timestamp()
        self._metrics.access_token_held(self._name, expires, expires - below)

    def _floor(self, token: AccessToken) -> float:
        return floor_for(token, self._min_remaining)

    def _failed(self, error: BrokerError) -> BrokerError:
        """Remembers the failure and until when to let the source be."""
        self._failures += 1
        wait = backoff(self._failures, self._draw)
        now = self._monotonic()
        if self._held is not None:
            rest = self._held.token.life.remaining(now) - self._held.floor
            wait = max(SOONEST, min(wait, rest / WITHIN_REST)) if rest > 0 else wait
        if isinstance(error, UpstreamRefused):
            wait = REFUSED_WAIT * (1 + self._draw() / 10)
        wait = max(wait, min(error.retry_after or 0.0, MOST_COOLING))
        self._retry_at = now + wait
        self._error = error = error.again(retry_after=wait)
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


def floor_for(token: AccessToken, min_remaining: float | None) -> float:
    """Seconds of life at and under which it is not handed out."""
    if min_remaining is not None:
        return min_remaining
    return floor_of(token.life.lifetime.total_seconds())


def refresh_below(
    token: AccessToken, min_remaining: float | None, draw: Callable[[], float]
) -> float:
    """Seconds of life left at which it is replaced. With a floor of its own, the share is of what
    is above it: else a high floor would leave no time between the refresh and the end."""
    life = token.life.lifetime.total_seconds()
    below = refresh_point(life, draw)
    if min_remaining is None:
        return below
    return min_remaining + below * (1 - min_remaining / life)


def _too_short() -> MinFreshNotMet:
    return MinFreshNotMet("No access token has as much life left as is asked for.")
