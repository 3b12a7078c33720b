"""A declared upstream: makes the calls that a preset's data file describes.

A `SessionSource` without memory: one grant, one call (two where our access token turned out to be
revoked). The secret goes in last, into a copy, so that templates, logs and errors only ever hold
the request without it. Nothing of an upstream's answer leaves but what the preset lets out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import structlog

from broker.errors import (
    ActionNotAllowed,
    BrokerError,
    UpstreamNonsense,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
    outcome_of,
)
from broker.holes import ABSENT, value_at
from broker.keyring import Keyring
from broker.metrics import Metrics
from broker.model import (
    JSON,
    ComponentSession,
    Grant,
    Outcome,
    TokenSource,
)
from broker.presets.vocabulary import Request
from broker.schedule import Clock, parse_retry_after
from broker.snapshot import Profile
from broker.upstreams.answers import session_of, tree_of
from broker.upstreams.sending import Sender
from broker.upstreams.transport import Answer, Transport

_log = structlog.get_logger("upstream")
V = TypeVar("V")


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

        def parse(answer: Answer) -> ComponentSession:
            self._expect(answer, self._file.answer.statuses, ())
            return session_of(self._file, answer, sent, wall)

        try:
            return await self._call("session", self._file.request, values, parse)
        except (UpstreamTimeout, UpstreamNonsense, asyncio.CancelledError):
            self._metrics.mint_unknown(self._name)  # a session may have been made
            raise

    async def act(
        self, name: str, grant: Grant, session_id: str | None, data: Mapping[str, JSON]
    ) -> tuple[int, dict[str, JSON]]:
        """A follow-up call: the upstream's status and what the preset lets out of its answer.

        Raises ActionNotAllowed where the upstream says so, UpstreamError."""
        action = self._file.actions[name]
        values = _settings_values(grant.settings) | {
            "uuid4": grant.facts.unique,
            "session.id": session_id if session_id is not None else ABSENT,
            "data": dict(data),
            "request.ip": grant.facts.ip,
            "request.user_agent": grant.facts.user_agent,
            "request.accept": grant.facts.accept,
        }
        values |= {f"data.{key}": value for key, value in data.items()}

        def parse(answer: Answer) -> tuple[int, dict[str, JSON]]:
            self._expect(answer, action.statuses, action.conflict)
            tree = tree_of(answer) if action.output else {}
            found = {label: value_at(tree, pointer) for label, pointer in action.output.items()}
            return answer.status, {k: v for k, v in found.items() if v is not ABSENT}

        return await self._call(f"action_{name}", action.request, values, parse)

    async def revoke(self, grant: Grant, session_id: str | None) -> bool:
        """Ends a session upstream, where the preset says how. Whether that was done."""
        if self._file.revoke is None or session_id is None:
            return False
        values = _settings_values(grant.settings)
        values |= {"session.id": session_id, "uuid4": grant.facts.unique}

        def parse(answer: Answer) -> bool:
            self._expect(answer, [200, 202, 204, 404, 410], ())
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
    ) -> V:
        """One call, counted by how it ended, what its answer meant included."""
        began = self._clock.monotonic()
        outcome = Outcome.INTERNAL
        try:
            parsed = parse(await self._sender.send(request, values))
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

    def _expect(
        self, answer: Answer, good: list[int], conflict: tuple[int, ...] | list[int]
    ) -> None:
        status = answer.status
        if status in good:
            return
        cause = f"status {status}"
        if status in conflict:
            raise ActionNotAllowed("The session is not in a state for this.", cause=cause)
        if status in (408, 425, 429) or status >= 500:
            wait = parse_retry_after(answer.headers.get("retry-after"), self._clock.now())
            raise UpstreamUnavailable(
                "The upstream cannot answer now.", cause=cause, retry_after=wait
            )
        if 400 <= status < 500:
            raise UpstreamRefused("The upstream refused the request.", cause=cause)
        raise UpstreamNonsense("The upstream's answer is not one that is known.", cause=cause)


def _settings_values(settings: Mapping[str, JSON]) -> dict[str, Any]:
    return {f"settings.{name}": value for name, value in settings.items()}
