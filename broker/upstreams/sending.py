"""One declared request, filled and sent with our credential, through the guard of its account.

The secret goes in last, into a copy, so that templates, logs and errors only ever hold the request
without it. What an answer means is not known here, but for one thing: a credential that is refused
may be an old one. A 401 to an access token that was thought good costs one new token and one
repetition; a 401 or 403 to a key costs a try of each other version of it. The upstream has done
nothing then, so that this is safe, and all of it has the time of the one call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar
from urllib.parse import quote, urlencode

import orjson

from broker.errors import (
    ActionNotAllowed,
    BrokerError,
    InternalError,
    InvalidParameters,
    UpstreamNonsense,
    UpstreamRefused,
    UpstreamTimeout,
    outcome_of,
)
from broker.guard import Guard
from broker.holes import ABSENT, Template, fill_tree, steps_of
from broker.metrics import Metrics
from broker.model import JSON, AccessToken, Outcome, Priority, Secret, TokenSource
from broker.presets.vocabulary import Request
from broker.rollover import Rollover, Shown
from broker.schedule import Clock
from broker.snapshot import Profile
from broker.upstreams.refusals import repeats
from broker.upstreams.transport import Answer, Transport

V = TypeVar("V")
_REFUSED_WAIT = 60.0
"""Seconds after every credential was refused by one kind of request, unless that takes one
meanwhile: it is not the credential's age, and asking for more would only hammer the token endpoint,
or send each call as often as a key has versions."""


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
        self._how = profile.preset.file.authorization
        self._name = profile.name
        self._base = profile.base_url
        self._transport = transport
        self._tokens = tokens if self._how.access_token and profile.credential else None
        self._rollover = rollover
        self._guard = guard
        self._clock = clock
        self._metrics = metrics
        self._refused_until: dict[int, float] = {}  # by identity: requests live with the preset
        self._of_session = profile.preset.file.session_authorization

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
            if sent < self._refused_until.get(id(call.request), float("-inf")):
                raise self._given_up(refused) from None
            tokens.forget(older_than=sent)
            renewed = await self._token(call, tokens)
            last = refused
        if renewed is not token:
            try:
                return await self._guarded(call, renewed)
            except _Refused as refused:
                last = refused
        self._refused_until[id(call.request)] = self._clock.monotonic() + _REFUSED_WAIT
        raise self._given_up(last) from None

    async def _token(self, call: Call[V], tokens: TokenSource) -> AccessToken:
        try:
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
                elif began < self._refused_until.get(id(call.request), float("-inf")):
                    raise self._given_up(last) from None
                else:
                    doubted.append(shown)
                tried.append(shown.values)
        self._refused_until[id(call.request)] = self._clock.monotonic() + _REFUSED_WAIT
        raise self._given_up(last) from None

    def _given_up(self, refused: _Refused) -> BrokerError:
        """What the refusal of the last credential means, told to the guard."""
        self._guard.failed(refused.meaning)
        return refused.meaning.again()

    async def _guarded(self, call: Call[V], proof: AccessToken | Shown | None) -> V:
        async def once(seconds: float) -> V:
            return await self._once(call, proof, seconds)

        return await self._guard.call(
            once,
            deadline=call.deadline,
            priority=call.priority,
            operation=call.operation,
            again=repeats(call.request, call.priority),
        )

    async def _once(self, call: Call[V], proof: AccessToken | Shown | None, seconds: float) -> V:
        """One attempt, counted by how it ended, what its answer meant included."""
        attempt, unheard = call.attempt, call.attempt.sent
        began = self._clock.monotonic()
        outcome = Outcome.INTERNAL
        attempt.sent = True
        try:
            answer = await self._send(call, proof, seconds)
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
            self._refused_until.pop(id(call.request), None)
            if self._rollover is not None and isinstance(proof, Shown):
                self._rollover.worked(proof)
        try:
            return call.parse(answer)
        except BrokerError as exc:
            may_be_key = answer.status == 403 and isinstance(exc, UpstreamRefused)
            if (proof is not None and answer.status == 401) or (
                isinstance(proof, Shown) and may_be_key
            ):
                raise _Refused.by(exc, answer.status) from exc
            raise

    async def _send(
        self, call: Call[V], proof: AccessToken | Shown | None, seconds: float
    ) -> Answer:
        request, values = call.request, call.values
        headers = {"accept": "application/json", "user-agent": "token-broker"}
        for name, text in _texts(request.headers, values).items():
            headers[name.lower()] = _header(text)
        tree = fill_tree(request.json_, values) if request.json_ is not None else None
        form = _texts(request.form, values) if request.form is not None else None
        url = self._base + _path(request.path, values)
        if call.session_token is not None and self._of_session is not None:
            value = self._of_session.prefix + _header(call.session_token)
            headers[self._of_session.header.lower()] = value
        elif isinstance(proof, AccessToken):
            headers["authorization"] = f"Bearer {proof.value.reveal()}"
        elif proof is not None and form is not None and self._how.form:
            for field, setting in self._how.form.items():
                form[field] = proof.values[setting].reveal()
        elif proof is not None and self._how.secret is not None:
            tree = self._authorise(proof.values[self._how.secret], headers, tree, values)
        body: bytes | None = None
        if form is not None:
            body = urlencode(form).encode()
            headers["content-type"] = "application/x-www-form-urlencoded"
        elif tree is not None:
            body = orjson.dumps(tree)
            headers["content-type"] = "application/json"
        return await self._transport.send(
            request.method, url, headers=headers, body=body, timeout=seconds
        )

    def _authorise(
        self, key: Secret, headers: dict[str, str], tree: JSON, values: Mapping[str, Any]
    ) -> JSON:
        """Puts the secret key in last: into the headers, or into a copy of the body."""
        how = self._how
        if _filled(how.place, values) == "body":
            for pointer in how.members:
                tree = _with_member(tree, steps_of(pointer), key.reveal())
            return tree
        name = str(_filled(how.header, values)).lower()
        prefix = how.prefix if how.prefix is not None else "Bearer " * (name == "authorization")
        headers[name] = prefix + key.reveal()
        return tree


def _texts(members: Mapping[str, str | Template], values: Mapping[str, Any]) -> dict[str, str]:
    """Header or form fields; one whose whole hole has no value is left out."""
    filled = {name: _filled(text, values) for name, text in members.items()}
    return {name: text for name, text in filled.items() if text is not None}


def _filled(text: str | Template, values: Mapping[str, Any]) -> str | None:
    """Text for a header, a form field or a path; None for a whole hole without a value."""
    found = text.fill(values) if isinstance(text, Template) else text
    if found is ABSENT:
        return None
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, int | float):
        return str(found)
    if not isinstance(found, str):
        raise InternalError(cause=f"{text!r} is no text")
    return found


def _header(value: str) -> str:
    if not (value.isascii() and value.isprintable()):
        raise InvalidParameters("A value of this request cannot be sent upstream.", cause="header")
    return value


def _path(path: str | Template, values: Mapping[str, Any]) -> str:
    """The path with its holes percent-encoded: each stays one segment, whatever it holds."""
    if not isinstance(path, Template):
        return path
    coded: dict[str, str] = {}
    for hole in path.holes:
        value = values.get(hole, ABSENT)
        if not isinstance(value, str | int) or str(value) in ("", ".", ".."):
            raise ActionNotAllowed("This session cannot be named upstream.", cause=f"no {hole}")
        coded[hole] = quote(str(value), safe="")
    return str(path.fill(coded))


def _with_member(tree: JSON, steps: list[str], value: str) -> JSON:
    """A copy of `tree` with one member more; `tree` itself where the place is not there."""
    if not isinstance(tree, dict):
        return tree
    step, *rest = steps
    if not rest:
        return {**tree, step: value}
    return {**tree, step: _with_member(tree[step], rest, value)} if step in tree else tree
