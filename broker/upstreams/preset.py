"""A declared upstream: makes the calls that a preset's data file describes.

A `SessionSource` without memory: one grant, one call (two where our access token turned out to be
revoked). The secret goes in last, into a copy, so that templates, logs and errors only ever hold
the request without it. Nothing of an upstream's answer leaves but what the preset lets out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import orjson
import structlog

from broker.errors import (
    ActionNotAllowed,
    BrokerError,
    InternalError,
    InvalidParameters,
    UpstreamNonsense,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
    outcome_of,
)
from broker.holes import ABSENT, Template, fill_tree, value_at
from broker.keyring import Keyring
from broker.metrics import Metrics
from broker.model import (
    JSON,
    AccessToken,
    ComponentSession,
    Grant,
    Outcome,
    Secret,
    TokenSource,
)
from broker.presets import Request
from broker.schedule import Clock, parse_retry_after
from broker.snapshot import Profile
from broker.upstreams.answers import session_of, tree_of
from broker.upstreams.transport import Answer, Transport

_log = structlog.get_logger("upstream")
V = TypeVar("V")
_REFUSED_WAIT = 60.0
"""Seconds after a new access token was refused too: it is not the token's age, and asking for more
of them would only hammer the token endpoint."""


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
        self._base = profile.base_url
        self._transport = transport
        self._tokens = tokens if file.authorization.access_token else None
        self._clock = clock
        self._metrics = metrics
        self._timeout = timeout
        self._refused_until = float("-inf")
        self._key: Secret | None = None
        if file.authorization.secret is not None:
            self._key = keyring.get(profile.secrets[file.authorization.secret])

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
            parsed = parse(await self._authorised(request, values))
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

    async def _authorised(self, request: Request, values: Mapping[str, Any]) -> Answer:
        """The call with our credential; once more where the access token proved dead."""
        if self._tokens is None:
            return await self._send(request, values, None)
        token = await self._tokens.token()
        sent = self._clock.monotonic()
        answer = await self._send(request, values, token)
        if answer.status != 401 or sent < self._refused_until:
            return answer
        self._tokens.forget(older_than=sent)
        renewed = await self._tokens.token()
        if renewed is not token:
            answer = await self._send(request, values, renewed)
        if answer.status == 401:
            self._refused_until = self._clock.monotonic() + _REFUSED_WAIT
        return answer

    async def _send(
        self, request: Request, values: Mapping[str, Any], token: AccessToken | None
    ) -> Answer:
        headers = {"accept": "application/json", "user-agent": "token-broker"}
        for name, text in _texts(request.headers, values).items():
            headers[name.lower()] = _header(text)
        tree = fill_tree(request.json_, values) if request.json_ is not None else None
        form = _texts(request.form, values) if request.form is not None else None
        url = self._base + _path(request.path, values)
        tree = self._authorise(headers, tree, values, token)
        body: bytes | None = None
        if form is not None:
            body = urlencode(form).encode()
            headers["content-type"] = "application/x-www-form-urlencoded"
        elif tree is not None:
            body = orjson.dumps(tree)
            headers["content-type"] = "application/json"
        return await self._transport.send(
            request.method, url, headers=headers, body=body, timeout=self._timeout
        )

    def _authorise(
        self,
        headers: dict[str, str],
        tree: JSON,
        values: Mapping[str, Any],
        token: AccessToken | None,
    ) -> JSON:
        """Puts the credential in last: into the headers, or into a copy of the body."""
        how = self._file.authorization
        if token is not None:
            headers["authorization"] = f"Bearer {token.value.reveal()}"
            return tree
        assert self._key is not None  # noqa: S101  (Authorization has exactly one of the two)
        if _filled(how.place, values) == "body":
            for pointer in how.members:
                tree = _with_member(tree, pointer.split("/")[1:], self._key.reveal())
            return tree
        name = str(_filled(how.header, values)).lower()
        prefix = how.prefix if how.prefix is not None else "Bearer " * (name == "authorization")
        headers[name] = prefix + self._key.reveal()
        return tree

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
