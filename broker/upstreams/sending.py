"""One declared request, sent with our credential, through the guard of its account.

What an answer means is not known here, but for one thing: a credential that is refused may be an
old one. A 401 to an access token that was thought good costs one new token and one repetition; a
401 or 403 to a key costs a try of each other version of it. The upstream has done nothing then, so
that this is safe, and all of it has the time of the one call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Self, TypeVar

from broker.errors import (
    BrokerError,
    InternalError,
    UpstreamNonsense,
    UpstreamRefused,
    UpstreamTimeout,
    outcome_of,
)
from broker.guard import Guard
from broker.metrics import Metrics
from broker.model import AccessToken, Outcome, Priority, Secret, TokenSource
from broker.presets.vocabulary import Request
from broker.rollover import Rollover, Shown
from broker.schedule import Clock
from broker.snapshot import Profile
from broker.tokens import Cached
from broker.upstreams.filling import Filled, Filling
from broker.upstreams.refusals import repeats
from broker.upstreams.transport import Answer, Transport

V = TypeVar("V")
_REFUSED_WAIT = 60.0
"""Seconds after every credential was refused by one kind of request, unless that takes one
meanwhile: it is not the credential's age, and asking for more would only hammer the token endpoint,
or send each call as often as a key has versions."""
_FIRST_WAIT = 2.0
"""The same, the first time within that: the new credential may have been revoked in its turn, or
been adopted from another replica when it was dead. With one more, three tokens go in a minute."""
_MOST_MISTAKEN = 3
"""Times within that, after which a token that is good for others is not thrown away any more for
one request's sake: one caller's odd ones shall not cost a token each."""
_LOST = (500, 502, 504)
"""Statuses after which the call may have happened: a gateway's, above all, whose upstream's answer
did not come. A 503 says that it was not taken up."""


class Attempt:
    """Whether a call may have reached the upstream, and done there what it asks for, unheard."""

    __slots__ = ("sent",)

    def __init__(self) -> None:
        self.sent = False


@dataclass(frozen=True, slots=True)
class Call(Generic[V]):
    """What is asked of an upstream. parse: what an answer means; raises BrokerError.

    operation: the metrics' word. deadline: monotonic seconds. session_token: goes in place of our
    credential. attempt: is kept up to date, for when this raises.
    """

    operation: str
    request: Request
    values: Mapping[str, Any]
    parse: Callable[[Answer], V]
    deadline: float
    attempt: Attempt
    priority: Priority = Priority.PERSON
    session_token: str | None = None


class _GivenUp(NamedTuple):
    """No new credential is looked for until then. proof: the token that was refused last. times:
    when it came to this lately."""

    until: float
    proof: AccessToken | None
    times: tuple[float, ...]


class _Refused(UpstreamRefused):
    """The credential that was shown was refused; another may be the right one. Never leaves here.

    Of the guard's breaker it is no business: after a rollover each call under way comes to this.
    """

    meaning: BrokerError
    said: int

    @classmethod
    def by(cls, meaning: BrokerError, status: int) -> Self:
        refused = cls(cause=meaning.cause)
        refused.meaning, refused.said = meaning, status
        return refused


def _nothing() -> None:
    """No token is at hand without asking."""


class Sender:
    """Sends a profile's requests to its upstream."""

    def __init__(
        self,
        profile: Profile,
        *,
        rollover: Rollover | None,
        transport: Transport,
        tokens: TokenSource | None,
        guard: Guard,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        """rollover: the versions of the profile's own secrets; None where it sends a token."""
        how = profile.preset.file.authorization
        self._filling = Filling(profile)
        self._name = profile.name
        self._transport = transport
        self._tokens = tokens if how.access_token and profile.credential else None
        self._peek = tokens.peek if isinstance(tokens, Cached) else _nothing
        self._rollover = rollover
        self._guard = guard
        self._clock = clock
        self._metrics = metrics
        self._given: dict[int, _GivenUp] = {}  # by identity: requests live with the preset

    async def send(self, call: Call[V]) -> V:
        """What the answer means. Raises what that, or `parse`, says; UpstreamError; Overloaded."""
        if call.session_token is not None:
            return await self._guarded(call, None)
        if self._tokens is not None:
            return await self._with_token(call, self._tokens)
        if self._rollover is not None:
            return await self._with_secret(call, self._rollover)
        raise InternalError(cause="no credential")

    async def _with_token(self, call: Call[V], tokens: TokenSource) -> V:
        """Once more with a new token where the held one proved dead."""
        token = await self._token(call, tokens)
        sent = self._clock.monotonic()
        try:
            return await self._guarded(call, token)
        except _Refused as refused:
            if self._gave_up(call, sent):
                raise self._meaning_of(refused) from None
            tokens.forget(older_than=sent)
            renewed = await self._token(call, tokens)
            last = refused
        if renewed is not token:
            try:
                return await self._guarded(call, renewed)
            except _Refused as refused:
                last = refused
        self._give_up(call, renewed)
        raise self._meaning_of(last) from None

    async def _token(self, call: Call[V], tokens: TokenSource) -> AccessToken:
        held = self._peek()
        if held is not None:
            return held
        try:
            with self._guard.waiting():
                async with asyncio.timeout(call.deadline - self._clock.monotonic()):
                    return await tokens.token(priority=call.priority)
        except TimeoutError:
            raise UpstreamTimeout("No access token came in time.", cause="no token") from None

    async def _with_secret(self, call: Call[V], rollover: Rollover) -> V:
        """With each version of our key, also those that come to light meanwhile.

        A 403 may be about what was asked for: it speaks against a version only once another one
        was taken, and where each was refused so, the others are not tried for a while."""
        began = self._clock.monotonic()
        tried: list[Mapping[str, Secret]] = []
        doubted: list[Shown] = []
        for anew in (False, True):
            if anew:
                _ = await rollover.reread()  # another call's look may have found one, if not this
            for shown in [one for one in rollover.order() if one.values not in tried]:
                try:
                    found = await self._guarded(call, shown)
                except _Refused as refused:
                    last = refused
                else:
                    for one in doubted:
                        rollover.refused(one)
                    return found
                if last.said == 401:
                    rollover.refused(shown)
                elif self._gave_up(call, began):
                    raise self._meaning_of(last) from None
                else:
                    doubted.append(shown)
                tried.append(shown.values)
        self._give_up(call, None)
        raise self._meaning_of(last) from None

    def _give_up(self, call: Call[Any], proof: AccessToken | None) -> None:
        now = self._clock.monotonic()
        before = self._given.get(id(call.request))
        times = (
            *(one for one in (before.times if before else ()) if now - one < _REFUSED_WAIT),
            now,
        )
        wait = _FIRST_WAIT if len(times) == 1 else _REFUSED_WAIT
        self._given[id(call.request)] = _GivenUp(now + wait, proof, times)

    def _gave_up(self, call: Call[Any], began: float) -> bool:
        given = self._given.get(id(call.request))
        return given is not None and began < given.until

    def _accepted(self, call: Call[Any], proof: AccessToken | Shown) -> None:
        """One credential works, so there is one to look for again. Not so where it is the very one
        that was refused, time and again: then the refusals are about something else."""
        given = self._given.get(id(call.request))
        if given is None or (proof == given.proof and len(given.times) >= _MOST_MISTAKEN):
            return
        times = given.times if proof == given.proof else ()
        self._given[id(call.request)] = _GivenUp(float("-inf"), None, times)

    def _meaning_of(self, refused: _Refused) -> BrokerError:
        """What the refusal of the last credential means, told to the guard."""
        self._guard.failed(refused.meaning)
        return refused.meaning.again()

    async def _guarded(self, call: Call[V], proof: AccessToken | Shown | None) -> V:
        # Before a place is taken, as what cannot be filled tells nothing of the upstream.
        filled = self._filling.of(call.request, call.values, proof, call.session_token)

        async def once(seconds: float) -> V:
            return await self._once(call, proof, filled, seconds)

        return await self._guard.call(
            once,
            deadline=call.deadline,
            priority=call.priority,
            operation=call.operation,
            again=repeats(call.request, call.priority),
        )

    async def _once(
        self, call: Call[V], proof: AccessToken | Shown | None, filled: Filled, seconds: float
    ) -> V:
        """One attempt, counted by how it ended, what its answer meant included."""
        attempt, unheard = call.attempt, call.attempt.sent
        began = self._clock.monotonic()
        outcome = Outcome.INTERNAL
        attempt.sent = True
        try:
            answer = await self._transport.send(
                call.request.method,
                filled.url,
                headers=filled.headers,
                body=filled.body,
                timeout=seconds,
            )
            if answer.status in _LOST:
                unheard = True
            value = self._meant(call, proof, answer)
            attempt.sent, outcome = unheard, Outcome.OK
            return value
        except BrokerError as exc:
            if not isinstance(exc, UpstreamTimeout | UpstreamNonsense):
                attempt.sent = unheard
            outcome = outcome_of(exc)
            raise
        except asyncio.CancelledError:  # the request's own time was spent first
            outcome = Outcome.TIMEOUT
            raise
        finally:
            self._metrics.upstream_answered(
                self._name, call.operation, outcome, self._clock.monotonic() - began
            )

    def _meant(self, call: Call[V], proof: AccessToken | Shown | None, answer: Answer) -> V:
        """Raises _Refused where another credential may be taken."""
        if proof is not None and answer.status not in (401, 403):
            self._accepted(call, proof)
        try:
            value = call.parse(answer)
            if self._rollover is not None and isinstance(proof, Shown):
                self._rollover.worked(proof)  # nothing less than what was asked for shows that
            return value
        except BrokerError as exc:
            may_be_key = answer.status == 403 and isinstance(exc, UpstreamRefused)
            if (proof is not None and answer.status == 401) or (
                isinstance(proof, Shown) and may_be_key
            ):
                raise _Refused.by(exc, answer.status) from exc
            raise
