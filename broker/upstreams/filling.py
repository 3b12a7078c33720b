"""One declared request as bytes, with the credential put in last, into a copy.

So templates, logs and errors only ever hold the request without it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import orjson

from broker.errors import ActionNotAllowed, InternalError, InvalidParameters
from broker.holes import ABSENT, Template, fill_tree, steps_of
from broker.model import JSON, AccessToken, Secret
from broker.presets.vocabulary import Request
from broker.rollover import Shown
from broker.snapshot import Profile


class Filled(NamedTuple):
    """Ready to send. url: percent-encoded."""

    url: str
    headers: dict[str, str]
    body: bytes | None


class Filling:
    """How a profile's requests are filled, and where its credential goes."""

    def __init__(self, profile: Profile) -> None:
        self._how = profile.preset.file.authorization
        self._base = profile.base_url
        self._of_session = profile.preset.file.session_authorization

    def of(
        self,
        request: Request,
        values: Mapping[str, Any],
        proof: AccessToken | Shown | None,
        session_token: str | None,
    ) -> Filled:
        """session_token: goes in place of our credential. Raises InvalidParameters and
        ActionNotAllowed for values that have no place in a request."""
        headers = {"accept": "application/json", "user-agent": "token-broker"}
        for name, text in _texts(request.headers, values).items():
            headers[name.lower()] = _header(text)
        tree = fill_tree(request.json_, values) if request.json_ is not None else None
        form = _texts(request.form, values) if request.form is not None else None
        url = self._base + _path(request.path, values)
        if session_token is not None and self._of_session is not None:
            value = self._of_session.prefix + _header(session_token)
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
        return Filled(url, headers, body)

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
