"""The vocabulary in which an upstream is declared: what may stand in a preset file, and no more.

What it cannot say gets a Python file in `upstreams/`. Shapes only: nothing here knows a request.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from broker.declared import Declared, Duration, Parameter, Strict, Url
from broker.holes import Template, compile_tree, holes_in, is_template
from broker.model import Reuse

Pointer = Annotated[str, StringConstraints(pattern=r"^(/[^/]+)+$")]
Tree = Annotated[Any, BeforeValidator(compile_tree)]
Text = Annotated[str | Template, BeforeValidator(lambda v: Template(v) if is_template(v) else v)]


def _path(value: str | Template) -> str | Template:
    """Without the slash, it would go on with the host's name: another host gets our key."""
    if not (value.parts[0] if isinstance(value, Template) else value).startswith("/"):
        raise ValueError("a path begins with /")
    return value


SESSION_HOLES = frozenset(
    {"session.id", "session.token", "session.expires_at", "session.expires_at_ms"}
)


class Request(Strict):
    """One call: `path` is put after the base URL; holes in it are percent-encoded."""

    method: Literal["GET", "POST", "PUT", "DELETE"] = "POST"
    path: Annotated[Text, AfterValidator(_path)]
    headers: dict[str, Text] = {}
    json_: Tree = Field(default=None, alias="json")
    form: dict[str, Text] | None = None

    @model_validator(mode="after")
    def _one_body(self) -> Self:
        if self.json_ is not None and self.form is not None:
            raise ValueError("give json or form, not both")
        return self


class Authorization(Strict):
    """How our credential travels. access_token: the bearer of the profile's credential.

    secret: the setting that holds it. place: header or body. prefix: before it in the header; by
    default "Bearer " for Authorization. members: where in the JSON body; each with a parent there.
    """

    secret: str | None = None
    access_token: bool = False
    place: Text = "header"
    header: Text = "Authorization"
    prefix: str | None = None
    members: list[Pointer] = []

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.secret is not None) == self.access_token:
            raise ValueError("give exactly one of secret and access_token")
        return self


class Expiry(Strict):
    """Where the answer says when the token ends. `default`: if it does not say; else nonsense.

    most: a longer life is cut to this. A life that is over or unreadable is always nonsense.
    """

    at: Pointer | None = None
    kind: Literal["rfc3339", "epoch_s", "epoch_ms", "seconds"] = Field(
        default="rfc3339", alias="as"
    )
    default: Duration | None = None
    most: Duration = timedelta(hours=24)


class Answer(Strict):
    """What a good answer looks like."""

    statuses: list[int] = Field(default=[200, 201], min_length=1)
    token: Pointer
    id: Pointer | None = None
    expiry: Expiry


class Action(Strict):
    """A follow-up call about a live session. `data`: what the caller may send along.

    output: members of the upstream's answer (pointers) that the caller gets.
    conflict: statuses of the upstream that mean "not in this state".
    """

    request: Request
    data: dict[str, Parameter] = {}
    statuses: list[int] = Field(default=[200, 204], min_length=1)
    conflict: list[int] = []
    output: dict[str, Pointer] = {}


class PresetFile(Strict):
    """One upstream, declared."""

    summary: str
    documentation: str = ""
    reuse: Reuse = Field(strict=False)
    base_url: Url | None = None
    settings: dict[str, Declared] = {}
    exactly_one: list[list[str]] = []
    merchant: list[str] = Field(default=[], description="settings that say whose account it is")
    authorization: Authorization
    request: Request
    answer: Answer
    output: Tree = Field(description="a template, or `verbatim` for the upstream's own answer")
    actions: dict[str, Action] = {}
    revoke: Request | None = None

    @model_validator(mode="after")
    def _names(self) -> Self:
        named = {*self.merchant, *(name for group in self.exactly_one for name in group)}
        if self.authorization.secret:
            named.add(self.authorization.secret)
        if unknown := named - self.settings.keys():
            raise ValueError(f"names settings that are not declared: {', '.join(sorted(unknown))}")
        secrets = {name for name, one in self.settings.items() if one.type == "secret"}
        held = self.authorization.secret
        if held and not (held in secrets and self.settings[held].required):
            raise ValueError("authorization.secret names a required setting of type secret")
        sent = frozenset(
            {"uuid4", *(f"settings.{name}" for name in self.settings.keys() - secrets)}
        )
        for hole, allowed in self._holes(sent):
            if hole not in allowed:
                raise ValueError(f"${{{hole}}} is not known here")
        return self

    def _holes(self, sent: frozenset[str]) -> Iterable[tuple[str, frozenset[str]]]:
        """Every hole, with those that `upstreams` fills there."""
        auth = (self.authorization.place, self.authorization.header)
        for tree in (auth, *_parts(self.request)):
            yield from ((hole, sent) for hole in holes_in(tree))
        yield from ((hole, SESSION_HOLES) for hole in holes_in(self.output))
        request = {"request.ip", "request.user_agent", "request.accept"}
        for action in self.actions.values():
            data = {"data", *(f"data.{name}" for name in action.data)}
            follow_up = sent | {"session.id"} | request | data
            yield from ((hole, follow_up) for hole in holes_in(_parts(action.request)))
        if self.revoke:
            yield from ((hole, sent | {"session.id"}) for hole in holes_in(_parts(self.revoke)))


def _parts(request: Request) -> tuple[Any, ...]:
    return request.path, request.headers, request.json_, request.form
