"""One declared request, filled and sent with our credential.

The secret goes in last, into a copy, so that templates, logs and errors only ever hold the request
without it. What an answer means is not known here, but for one thing: a 401 to an access token that
was thought good costs one new token and one repetition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

import orjson

from broker.errors import ActionNotAllowed, InternalError, InvalidParameters
from broker.holes import ABSENT, Template, fill_tree, steps_of
from broker.keyring import Keyring
from broker.model import JSON, AccessToken, Secret, TokenSource
from broker.presets.vocabulary import Request
from broker.schedule import Clock
from broker.snapshot import Profile
from broker.upstreams.transport import Answer, Transport

_REFUSED_WAIT = 60.0
"""Seconds after a new access token was refused too by one kind of request, unless that takes one
meanwhile: it is not the token's age, and asking for more would only hammer the token endpoint."""


class Attempt:
    """Whether a call may have reached the upstream, and done there what it asks for."""

    __slots__ = ("sent",)

    def __init__(self) -> None:
        self.sent = False


class Sender:
    """Sends a profile's requests to its upstream."""

    def __init__(
        self,
        profile: Profile,
        *,
        keyring: Keyring,
        transport: Transport,
        tokens: TokenSource | None,
        clock: Clock,
        timeout: float,
    ) -> None:
        self._how = profile.preset.file.authorization
        self._base = profile.base_url
        self._transport = transport
        self._tokens = tokens if self._how.access_token and profile.credential else None
        self._clock = clock
        self._timeout = timeout
        self._refused_until: dict[int, float] = {}  # by identity: requests live with the preset
        self._of_session = profile.preset.file.session_authorization
        self._key: Secret | None = None
        if self._how.secret is not None and self._how.secret in profile.secrets:
            self._key = keyring.get(profile.secrets[self._how.secret])
        self._fields = {
            field: keyring.get(profile.secrets[name]) for field, name in self._how.form.items()
        }

    async def send(
        self,
        request: Request,
        values: Mapping[str, Any],
        attempt: Attempt,
        session_token: str | None = None,
    ) -> Answer:
        """The call with our credential, once more where the access token proved dead; or with the
        session's own token. `attempt` is kept up to date, for when this raises. Raises
        UpstreamError."""
        if session_token is not None or self._tokens is None:
            attempt.sent = True
            return await self._send(request, values, None, session_token)
        token = await self._tokens.token()
        sent = self._clock.monotonic()
        attempt.sent = True
        answer = await self._send(request, values, token)
        if answer.status != 401:
            self._refused_until.pop(id(request), None)
            return answer
        if sent < self._refused_until.get(id(request), float("-inf")):
            return answer
        attempt.sent = False  # it was refused
        self._tokens.forget(older_than=sent)
        renewed = await self._tokens.token()
        if renewed is not token:
            attempt.sent = True
            answer = await self._send(request, values, renewed)
        if answer.status == 401:
            self._refused_until[id(request)] = self._clock.monotonic() + _REFUSED_WAIT
        return answer

    async def _send(
        self,
        request: Request,
        values: Mapping[str, Any],
        token: AccessToken | None,
        session_token: str | None = None,
    ) -> Answer:
        headers = {"accept": "application/json", "user-agent": "token-broker"}
        for name, text in _texts(request.headers, values).items():
            headers[name.lower()] = _header(text)
        tree = fill_tree(request.json_, values) if request.json_ is not None else None
        form = _texts(request.form, values) if request.form is not None else None
        url = self._base + _path(request.path, values)
        if session_token is not None and self._of_session is not None:
            value = self._of_session.prefix + _header(session_token)
            headers[self._of_session.header.lower()] = value
        elif token is not None:
            headers["authorization"] = f"Bearer {token.value.reveal()}"
        elif form is not None and self._fields:
            form |= {field: secret.reveal() for field, secret in self._fields.items()}
        else:
            tree = self._authorise(headers, tree, values)
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

    def _authorise(self, headers: dict[str, str], tree: JSON, values: Mapping[str, Any]) -> JSON:
        """Puts the secret key in last: into the headers, or into a copy of the body."""
        how = self._how
        assert self._key is not None  # noqa: S101  (`config` saw to it that the profile has one)
        if _filled(how.place, values) == "body":
            for pointer in how.members:
                tree = _with_member(tree, steps_of(pointer), self._key.reveal())
            return tree
        name = str(_filled(how.header, values)).lower()
        prefix = how.prefix if how.prefix is not None else "Bearer " * (name == "authorization")
        headers[name] = prefix + self._key.reveal()
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
