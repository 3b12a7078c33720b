"""A `TokenSource` around another: replicas that ask for the same tokens ask once for all.

Exists because some issuers meter, limit or bill each token request, and a fleet that is started
together would send one for each replica. Stands between `tokens.Cached`, which holds what is in use
here, and the source. Must never adopt a token that was refused here, that is no better than the
one to be replaced, or that has too little left; and never let the store's failure become an outage:
without it each replica asks for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from broker.flights import Spawn
from broker.metrics import Metrics
from broker.model import AccessToken, Priority, TokenSource
from broker.schedule import Clock
from broker.state import Memory
from broker.tokens import floor_for, refresh_below

_MOST_REFUSED = 64


class KeyedSource(TokenSource, Protocol):
    """A source that says what shapes its requests."""

    def request_key(self) -> str:
        """Who has the same may have the same tokens."""
        ...


class Shared:
    """Adopts the token that another replica has got, or gets one and lets the others have it."""

    def __init__(
        self,
        source: KeyedSource,
        memory: Memory[AccessToken],
        clock: Clock,
        metrics: Metrics,
        name: str,
        timeout: float,
        *,
        min_remaining: float | None,
        spawn: Spawn,
    ) -> None:
        """timeout: of one request of the source, in seconds. min_remaining: the floor of whoever
        holds the token, in seconds, else a tenth of each life."""
        self._source = source
        self._memory = memory
        self._clock = clock
        self._metrics = metrics
        self._name = name
        self._timeout = timeout
        self._min_remaining = min_remaining
        self._spawn = spawn
        self._given: tuple[str, AccessToken] | None = None
        self._refused: dict[str, float] = {}
        """By fingerprint, until when they would have lived."""

    async def token(
        self, *, min_fresh: float = 0.0, priority: Priority = Priority.PERSON
    ) -> AccessToken:
        key = self._source.request_key()
        fits = self._judge(min_fresh, priority)

        def work() -> Coroutine[Any, Any, AccessToken]:
            return self._source.token(min_fresh=min_fresh, priority=priority)

        token, made = await self._memory.once(
            key,
            work,
            keep=lambda token: token.life.remaining(self._clock.monotonic()),
            patience=self._timeout,  # of the request that the other one is making
            fits=fits,
            alone=True,
        )
        if not made and not fits(token):
            # It was fetched for another credential of ours with the same key, or refused meanwhile.
            token, made = await work(), True
        self._metrics.access_token_shared(self._name, "made" if made else "adopted")
        self._given = (key, token)
        return token

    def forget(self, *, older_than: float) -> None:
        """The token given out last was refused, if it was had before the refused call was sent.
        Other replicas lose it too, but no newer one that has taken its place."""
        self._source.forget(older_than=older_than)
        if self._given is None:
            return
        key, token = self._given
        if token.obtained >= older_than or token.value.fingerprint in self._refused:
            return
        self._refuse(token)
        _ = self._spawn(self._memory.forget(key, token))

    def _refuse(self, token: AccessToken) -> None:
        now = self._clock.monotonic()
        alive = {one: until for one, until in self._refused.items() if until > now}
        while len(alive) >= _MOST_REFUSED:
            del alive[min(alive, key=alive.__getitem__)]
        self._refused = {**alive, token.value.fingerprint: token.life.until}

    def _judge(self, min_fresh: float, priority: Priority) -> Callable[[AccessToken], bool]:
        """Is a token of the store worth having? To replace one that is still good it must be
        another, with enough left that it need not be replaced at once, whatever is drawn."""
        before = self._given[1].value if self._given is not None else None
        replaces = priority is Priority.REFRESH

        def fits(token: AccessToken) -> bool:
            least = floor_for(token, self._min_remaining)
            if replaces:
                least = max(least, refresh_below(token, self._min_remaining, lambda: 1.0))
            remaining = token.life.remaining(self._clock.monotonic())
            return (
                remaining > least
                and remaining >= min_fresh
                and token.value.fingerprint not in self._refused
                and not (replaces and token.value == before)
            )

        return fits
