"""A declared upstream: makes the calls that a preset's data file describes.

A `SessionSource` without memory: one grant, one call (two where our access token turned out to be
revoked). Nothing of an upstream's answer leaves but what the preset lets out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import structlog

from broker.errors import BrokerError, HandleExpired, UpstreamNonsense, UpstreamTimeout, outcome_of
from broker.holes import ABSENT, value_at
from broker.keyring import Keyring
from broker.metrics import Metrics
from broker.model import JSON, ComponentSession, Grant, Outcome, TokenSource, observed
from broker.presets.vocabulary import VERBATIM, Request
from broker.schedule import Clock, rfc3339
from broker.snapshot import Profile
from broker.upstreams.answers import first_at, session_of, shown, tree_of
from broker.upstreams.refusals import Busy, Done, refusal_of
from broker.upstreams.sending import Attempt, Sender
from broker.upstreams.transport import Answer, Transport

_log = structlog.get_logger("upstream")
V = TypeVar("V")
_BUSY_WAITS = (0.2, 0.4, 0.8)
"""Seconds before another try where somebody else works on the session: other callers of the
upstream, as our own calls about one session take turns."""


@dataclass(frozen=True, slots=True)
class Acted:
    """What a follow-up call gave. output: for the caller; trusted: for one whom the profile trusts,
    None where there is nothing more. final: the state in which the session is over, else "".
    id: of the session, where the answer says it."""

    status: int
    id: str | None
    output: JSON
    trusted: JSON
    final: str


class Upstream:
    """One profile's upstream."""

    def __init__(
        self,
        profile: Profile,
        *,
        keyring: Keyring,
        transport: Transport,
        tokens: TokenSource | None,
        clock: Clock,
        metrics: Metrics,
        timeout: float,
    ) -> None:
        """tokens: of the profile's credential, where the preset sends an access token.
        timeout: seconds one call may take."""
        file = profile.preset.file
        self._file = file
        self._name = profile.name
        self._fixed = profile.fixed
        self._clock = clock
        self._metrics = metrics
        self._sender = Sender(
            profile,
            keyring=keyring,
            transport=transport,
            tokens=tokens,
            clock=clock,
            timeout=timeout,
        )

    async def session(self, grant: Grant) -> ComponentSession:
        """A new session. Raises UpstreamError."""
        values = _settings_values(grant.settings)
        values["uuid4"] = grant.facts.unique
        sent = self._clock.monotonic()
        wall = self._clock.now()
        lifetime = self._lifetime(grant, wall)
        if lifetime is not None:
            values["expires_at"] = rfc3339(wall + lifetime)

        def parse(answer: Answer) -> ComponentSession:
            self._expect(answer, self._file.answer.statuses, None)
            return session_of(self._file, answer, sent, wall, lifetime)

        attempt = Attempt()
        try:
            return await self._call("session", self._file.request, values, parse, attempt)
        except (UpstreamTimeout, UpstreamNonsense, asyncio.CancelledError):
            if attempt.sent:
                self._metrics.mint_unknown(self._name)  # a session may have been made
            raise

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
        UpstreamError."""
        values = _settings_values(grant.settings) | {
            "uuid4": grant.facts.unique,
            "session.id": session_id if session_id is not None else ABSENT,
            "data": dict(data),
            **observed(grant.facts),
        }
        values |= {f"data.{key}": value for key, value in data.items()}
        return await self._follow_up(f"action_{name}", name, values, session_token)

    async def reread(self, session_id: str, operation: str) -> Acted:
        """What the upstream says of a session, asked for on our own account.

        operation: the metrics' word for it. Raises UpstreamError, and HandleExpired for a session
        that the upstream does not know."""
        callbacks = self._file.callbacks
        assert callbacks is not None  # noqa: S101  (nobody asks for another)
        values = _settings_values(self._fixed) | {"session.id": session_id}
        acted = await self._follow_up(operation, callbacks.read, values)
        if acted.id not in (None, session_id):
            raise UpstreamNonsense("The upstream's answer is about another session.")
        return acted

    async def _follow_up(
        self,
        operation: str,
        name: str,
        values: Mapping[str, Any],
        session_token: str | None = None,
    ) -> Acted:
        """An action's call, again after a moment where somebody else works on the session."""

        def parse(answer: Answer) -> Acted:
            if session_token is not None and answer.status == 401:
                raise HandleExpired("The session token is not good any more.", cause="status 401")
            return self._acted(name, answer)

        request = self._file.actions[name].request
        for wait in _BUSY_WAITS:
            try:
                return await self._call(
                    operation, request, values, parse, session_token=session_token
                )
            except Busy:
                await self._clock.sleep(wait)
        return await self._call(operation, request, values, parse, session_token=session_token)

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

        try:
            return await self._call("revoke", self._file.revoke, values, parse)
        except BrokerError as exc:
            _log.warning("not_revoked", profile=self._name, problem=exc.slug, cause=exc.cause)
            return False

    async def _call(
        self,
        operation: str,
        request: Request,
        values: Mapping[str, Any],
        parse: Callable[[Answer], V],
        attempt: Attempt | None = None,
        session_token: str | None = None,
    ) -> V:
        """One call, counted by how it ended, what its answer meant included."""
        attempt = attempt or Attempt()
        began = self._clock.monotonic()
        outcome = Outcome.INTERNAL
        try:
            parsed = parse(await self._sender.send(request, values, attempt, session_token))
            outcome = Outcome.OK
            return parsed
        except BrokerError as exc:
            outcome = outcome_of(exc)
            raise
        except asyncio.CancelledError:  # the request's own time was spent first
            outcome = Outcome.TIMEOUT
            raise
        finally:
            self._metrics.upstream_answered(
                self._name, operation, outcome, self._clock.monotonic() - began
            )

    def _expect(self, answer: Answer, good: list[int], conflict: list[int] | None) -> None:
        if answer.status not in good:
            raise refusal_of(self._file, answer, conflict, self._clock.now())


def _settings_values(settings: Mapping[str, JSON]) -> dict[str, Any]:
    return {f"settings.{name}": value for name, value in settings.items()}
