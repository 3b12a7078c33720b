"""A declared upstream: makes the calls that a preset's data file describes.

A `SessionSource` that keeps no session: one grant, one call, with one time budget, however often
the guard lets it be repeated. Nothing of an upstream's answer leaves but what the preset lets out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

import structlog

from broker.errors import (
    BrokerError,
    HandleExpired,
    InvalidParameters,
    UpstreamNonsense,
    UpstreamRefused,
)
from broker.guard import Guard
from broker.holes import ABSENT, value_at
from broker.metrics import Metrics
from broker.model import JSON, Acted, ComponentSession, Grant, Priority, TokenSource, observed
from broker.presets.vocabulary import VERBATIM
from broker.rollover import Rollover
from broker.schedule import Clock, rfc3339
from broker.snapshot import Profile
from broker.upstreams.answers import SKEW, first_at, reference, session_of, shown, tree_of
from broker.upstreams.refusals import Busy, Done, refusal_of
from broker.upstreams.sending import Attempt, Call, Sender
from broker.upstreams.transport import Answer, Transport

_log = structlog.get_logger("upstream")
V = TypeVar("V")
_BUSY_WAITS = (0.2, 0.4, 0.8)
"""Seconds before another try where somebody else works on the session: other callers of the
upstream, as our own calls about one session take turns."""


class Upstream:
    """One profile's upstream."""

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
        timeout: float,
    ) -> None:
        """rollover: the versions of the profile's secrets, where the preset sends one. tokens: of
        its credential, where that sends an access token. guard: of the upstream account.
        timeout: seconds that one call may take, its repetitions included."""
        file = profile.preset.file
        self._file = file
        self._name = profile.name
        self._fixed = profile.fixed
        self._clock = clock
        self._metrics = metrics
        self._sender = Sender(
            profile,
            rollover=rollover,
            transport=transport,
            tokens=tokens,
            guard=guard,
            clock=clock,
            metrics=metrics,
        )
        self._timeout = timeout
        self._ahead = timedelta(0)
        """What the upstream's clock said lately beyond ours, where that was more than seconds."""

    def _deadline(self, grant: Grant) -> float:
        return min(grant.facts.deadline, self._clock.monotonic() + self._timeout)

    async def session(self, grant: Grant) -> ComponentSession:
        """A new session. Raises UpstreamError, Overloaded."""
        values = _settings_values(grant.settings)
        values["uuid4"] = grant.facts.unique
        sent = self._clock.monotonic()
        wall = self._clock.now()
        lifetime = self._lifetime(grant, wall)

        def parse(answer: Answer) -> ComponentSession:
            now = self._clock.now()
            self._ahead = reference(answer, now) - now
            self._expect(answer, self._file.answer.statuses, None)
            return session_of(self._file, answer, sent, wall, lifetime)

        attempt, deadline = Attempt(), self._deadline(grant)
        call = Call("session", self._file.request, values, parse, deadline, attempt)
        try:
            if lifetime is None:
                return await self._sender.send(call)
            return await self._send_with_end(call, wall + lifetime)
        except (BrokerError, asyncio.CancelledError):
            if attempt.sent:
                self._metrics.mint_unknown(self._name)  # a session may have been made
            raise

    async def _send_with_end(self, call: Call[V], end: datetime) -> V:
        """Tells the end that is asked for by the upstream's clock; once more where it was refused
        and one of the clocks proved to have been set, as that end may lie in its past."""

        def ending() -> Call[V]:
            return replace(call, values={**call.values, "expires_at": rfc3339(end + self._ahead)})

        ahead = self._ahead
        try:
            return await self._sender.send(ending())
        except (UpstreamRefused, InvalidParameters):
            if abs(self._ahead - ahead) <= SKEW:
                raise
            return await self._sender.send(ending())

    def _lifetime(self, grant: Grant, wall: datetime) -> timedelta | None:
        """The life that the profile gives a session, to a whole second as it is told upstream."""
        setting = self._file.answer.expiry.lifetime
        if setting is None:
            return None
        end = wall + timedelta(seconds=grant.settings[setting])
        return end.replace(microsecond=0) - wall

    async def act(
        self,
        name: str,
        grant: Grant,
        session_id: str | None,
        data: Mapping[str, JSON],
        session_token: str | None = None,
    ) -> Acted:
        """A follow-up call. session_token: makes it in place of our own credential.

        Raises ActionNotAllowed, HandleExpired or InvalidParameters where the upstream says so,
        UpstreamError, Overloaded."""
        values = _settings_values(grant.settings) | {
            "uuid4": grant.facts.unique,
            "session.id": session_id if session_id is not None else ABSENT,
            "data": dict(data),
            **observed(grant.facts),
        }
        values |= {f"data.{key}": value for key, value in data.items()}
        deadline = self._deadline(grant)
        return await self._follow_up(f"action_{name}", name, values, deadline, session_token)

    async def reread(
        self, session_id: str, operation: str, *, priority: Priority = Priority.PERSON
    ) -> Acted:
        """What the upstream says of a session, asked for on our own account.

        operation: the metrics' word for it. Raises UpstreamError, Overloaded, and HandleExpired for
        a session that the upstream does not know."""
        callbacks = self._file.callbacks
        assert callbacks is not None  # noqa: S101  (nobody asks for another)
        values = _settings_values(self._fixed) | {"session.id": session_id}
        deadline = self._clock.monotonic() + self._timeout
        acted = await self._follow_up(
            operation, callbacks.read, values, deadline, priority=priority
        )
        if acted.id not in (None, session_id):
            raise UpstreamNonsense("The upstream's answer is about another session.")
        return acted

    async def _follow_up(
        self,
        operation: str,
        name: str,
        values: Mapping[str, Any],
        deadline: float,
        session_token: str | None = None,
        priority: Priority = Priority.PERSON,
    ) -> Acted:
        """An action's call, again after a moment where somebody else works on the session."""

        def parse(answer: Answer) -> Acted:
            if session_token is not None and answer.status == 401:
                raise HandleExpired("The session token is not good any more.", cause="status 401")
            return self._acted(name, answer)

        request, attempt = self._file.actions[name].request, Attempt()
        call = Call(operation, request, values, parse, deadline, attempt, priority, session_token)
        for wait in _BUSY_WAITS:
            try:
                return await self._sender.send(call)
            except Busy:
                if self._clock.monotonic() + wait >= deadline:
                    raise
                await self._clock.sleep(wait)
        return await self._sender.send(call)

    def _acted(self, name: str, answer: Answer) -> Acted:
        """What the caller may see of an answer. Raises what its refusal means."""
        file = self._file
        action = file.actions[name]
        try:
            self._expect(answer, action.statuses, action.conflict)
        except Done as exc:
            _log.warning("done_but", profile=self._name, action=name, cause=exc.cause)
            return Acted(204, None, {}, None, "")
        tree: JSON = {}
        if answer.status != 204 and (answer.body or action.output != VERBATIM):
            tree = tree_of(answer, verbatim=action.output == VERBATIM)
        output: JSON
        if isinstance(action.output, str):
            output = shown(file, action.output, tree, answer) if answer.body else {}
        else:
            found = {label: value_at(tree, pointer) for label, pointer in action.output.items()}
            output = {k: v for k, v in found.items() if v is not ABSENT}
        trusted = shown(file, action.trusted.output, tree, answer) if action.trusted else None
        found_id = first_at(tree, [file.answer.id] if file.answer.id else [])
        told = found_id if isinstance(found_id, str) else None
        return Acted(answer.status, told, output, trusted, self._final(name, tree))

    def _final(self, name: str, tree: JSON) -> str:
        """The state in which a session is over, where this reading says so."""
        callbacks = self._file.callbacks
        if callbacks is None or callbacks.read != name:
            return ""
        state = value_at(tree, callbacks.final_at)
        if callbacks.unless and value_at(tree, callbacks.unless) not in (ABSENT, None, []):
            return ""
        return state if state in callbacks.final else ""

    async def revoke(self, grant: Grant, session_id: str | None) -> bool:
        """Ends a session upstream, where the preset says how. Whether that was done."""
        if self._file.revoke is None or session_id is None:
            return False
        values = _settings_values(grant.settings)
        values |= {"session.id": session_id, "uuid4": grant.facts.unique}

        def parse(answer: Answer) -> bool:
            self._expect(answer, [200, 202, 204, 404, 410], [])
            return True

        # with time of its own: what is ended here was made by a call that may have used all of its
        deadline = self._clock.monotonic() + self._timeout
        call = Call("revoke", self._file.revoke, values, parse, deadline, Attempt())
        try:
            return await self._sender.send(call)
        except BrokerError as exc:
            _log.warning("not_revoked", profile=self._name, problem=exc.slug, cause=exc.cause)
            return False

    def _expect(self, answer: Answer, good: list[int], conflict: list[int] | None) -> None:
        if answer.status not in good:
            raise refusal_of(self._file, answer, conflict, self._clock.now())


def _settings_values(settings: Mapping[str, JSON]) -> dict[str, Any]:
    return {f"settings.{name}": value for name, value in settings.items()}
