"""The vocabulary in which an upstream is declared: what may stand in a preset file, and no more.

What it cannot say gets a Python file in `upstreams/`. Shapes only: nothing here knows a request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from broker.declared import OBSERVED, Declared, Parameter
from broker.holes import Template, compile_tree, holes_in, steps_of
from broker.kinds import Duration, Holes, OneOrMany, Strict
from broker.model import Reuse
from broker.presets.shorthand import long_form
from broker.urls import Url

Pointer = Annotated[str, StringConstraints(pattern=r"^(/[^/]+)+$")]
Pointers = Annotated[list[Pointer], OneOrMany(), Field(min_length=1)]
"""Where a value may be; the first place that has one counts."""
Tree = Annotated[Any, BeforeValidator(compile_tree)]
Text = Annotated[str | Template, Holes()]
View = list[Pointers]
"""What of an answer is let out: these members, each in its place (of several, the first's)."""
VERBATIM = "verbatim"


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error:
        raise ValueError("the pattern is not a regular expression") from None
    return value


Pattern = Annotated[str, AfterValidator(_pattern)]


def _path(value: str | Template) -> str | Template:
    """Without the slash, it would go on with the host's name: another host gets our key."""
    if not (value.parts[0] if isinstance(value, Template) else value).startswith("/"):
        raise ValueError("a path begins with /")
    return value


SESSION_HOLES = frozenset(
    {"session.id", "session.token", "session.expires_at", "session.expires_at_ms"}
)


class Request(Strict):
    """One call: `path` is put after the base URL; holes in it are percent-encoded.

    repeat: `safe`, where a call whose answer was lost may be made again, as by a GET or with an
    idempotency key; `never`, where that could do twice what is asked for once. By default a GET is
    safe. A call that was certainly not sent is made again in either case.
    """

    method: Literal["GET", "POST", "PUT", "DELETE"] = "POST"
    repeat: Literal["never", "safe"] | None = None
    path: Annotated[Text, AfterValidator(_path)]
    headers: dict[str, Text] = {}
    json_: Tree = Field(default=None, alias="json")
    form: dict[str, Text] | None = None

    @model_validator(mode="after")
    def _one_body(self) -> Self:
        if self.json_ is not None and self.form is not None:
            raise ValueError("give json or form, not both")
        return self

    @property
    def may_repeat(self) -> bool:
        """Whether it is safe to make this call twice."""
        return (self.repeat or ("safe" if self.method == "GET" else "never")) == "safe"


class Authorization(Strict):
    """How our credential travels. access_token: the bearer of the profile's credential.

    secret: the setting that holds it. place: header or body. prefix: before it in the header; by
    default "Bearer " for Authorization. members: where in the JSON body; each with a parent there.
    form: secret settings by the form field that carries them. Of secret and access_token a preset
    may name both; a profile then sets one. scopes: the credential asks for one of these, or none.
    """

    secret: str | None = None
    access_token: bool = False
    place: Text = "header"
    header: Text = "Authorization"
    prefix: str | None = None
    members: list[Pointer] = []
    form: dict[str, str] = {}
    scopes: list[str] = []

    @model_validator(mode="after")
    def _one(self) -> Self:
        if not (self.secret is not None or self.access_token) != bool(self.form):
            raise ValueError("give secret, access_token or both; or else form")
        return self

    @property
    def secrets(self) -> list[str]:
        """The settings that hold them."""
        return [*([self.secret] if self.secret else []), *self.form.values()]


class SessionAuthorization(Strict):
    """How a session's own token authorises a follow-up call, in place of our credential."""

    header: str = "Authorization"
    prefix: str = "Bearer "


class Expiry(Strict):
    """Where the answer says when the token ends. `default`: if it does not say; else nonsense.

    lifetime: the setting with the life that we ask for (`${expires_at}` in the request), or that is
    our own policy where the upstream tells of none; it takes the place of `default`.
    most: a longer life is cut to this. A life that is over or unreadable is always nonsense.
    """

    at: Pointer | None = None
    kind: Literal["rfc3339", "epoch_s", "epoch_ms", "seconds"] = Field(
        default="rfc3339", alias="as"
    )
    default: Duration | None = None
    lifetime: str | None = None
    most: Duration = timedelta(hours=24)


class Answer(Strict):
    """What a good answer looks like."""

    statuses: list[int] = Field(default=[200, 201], min_length=1)
    token: Pointers
    id: Pointer | None = None
    expiry: Expiry


class Refusal(Strict):
    """What a refusal means where its status alone does not say it; the first that fits counts.

    status: absent, it is any.
    at, pattern: a text of the answer, or one of a list of texts, in which the pattern is found.
    busy: the session is being worked on by another call; it is tried again after a moment.
    done: what was asked for has happened, though something else of it failed; the log is told.
    """

    status: int | None = None
    at: Pointer | None = None
    pattern: Pattern = ""
    means: Literal[
        "action-not-allowed",
        "busy",
        "done",
        "handle-expired",
        "invalid-parameters",
        "upstream-unavailable",
    ]


class Diagnosis(Strict):
    """What of a refusal is told to the log: names of causes, and the upstream's request id."""

    codes: Pointers
    request_id: Pointer | None = None
    request_id_header: str = "x-request-id"


class Trusted(Strict):
    """What a caller whom the profile trusts gets of an action, also with a handle made for others.

    within: how long after the session was made, though its own life be over.
    """

    output: str
    within: Duration


class Action(Strict):
    """A follow-up call about a live session. `data`: what the caller may send along.

    output: members of the upstream's answer (pointers) that the caller gets, or a view's name, or
    `verbatim`. conflict: statuses of the upstream that mean "not in this state".
    """

    request: Request
    data: dict[str, Parameter] = {}
    statuses: list[int] = Field(default=[200, 204], min_length=1)
    conflict: list[int] = []
    output: dict[str, Pointer] | str = {}
    trusted: Trusted | None = None


class Signature(Strict):
    """An HMAC-SHA256 over the raw body, in hex, in a header; `secret`: the setting with its key."""

    secret: str
    header: str


class Callbacks(Strict):
    """What the upstream posts about a session. Never believed: `read` is the action that asks.

    session: where a body names its session, and `pattern` how such names look. event: where a
    signed one has its own name. final: texts at `final_at` with which a session is over, `unless`
    a list still has something in it.
    """

    read: str
    session: Pointers
    pattern: Pattern
    event: Pointer | None = None
    signature: Signature | None = None
    final_at: Pointer
    final: list[str] = Field(min_length=1)
    unless: Pointer | None = None


class OptIn(Strict):
    """A value, in a setting or in an action's data of that name, that is refused unless the profile
    says yes to it, by `needs`."""

    needs: str
    at: Pointer
    equals: str


class Environment(Strict):
    """What belongs together, so that a key for one is not sent to the other. base_url, token_url:
    patterns of scheme and host, whatever the path; their `prefix` groups name an account."""

    base_url: Pattern
    token_url: Pattern = ""
    secrets: dict[str, Pattern] = {}


class PresetFile(Strict):
    """One upstream, declared.

    merchant: settings that say whose account it is. guarded: those that say what is owed, and where
    people are sent; a browser's parameters reach neither.
    """

    summary: str
    documentation: str = ""
    reuse: Reuse = Field(strict=False)
    base_url: Url | None = None
    settings: dict[str, Declared] = {}
    exactly_one: list[list[str]] = []
    merchant: list[str] = []
    guarded: list[str] = []
    opt_in: list[OptIn] = []
    environments: dict[str, Environment] = {}
    authorization: Authorization
    session_authorization: SessionAuthorization | None = None
    request: Request
    answer: Answer
    views: dict[str, View] = {}
    output: Tree = Field(description="a template, a view's name, or `verbatim`")
    refusals: list[Refusal] = []
    diagnosis: Diagnosis | None = None
    actions: dict[str, Action] = {}
    callbacks: Callbacks | None = None
    revoke: Request | None = None

    @model_validator(mode="before")
    @classmethod
    def _long_form(cls, tree: Any) -> Any:
        return long_form(tree)

    @model_validator(mode="after")
    def _names(self) -> Self:
        named = {*self._settings_named(), *self.authorization.secrets}
        if unknown := named - self.settings.keys():
            raise ValueError(f"names settings that are not declared: {', '.join(sorted(unknown))}")
        secrets = {name for name, one in self.settings.items() if one.type == "secret"}
        either = self.authorization.access_token
        for held in self.authorization.secrets:
            if held not in secrets or self.settings[held].required == either:
                other = ", or an optional one beside access_token" if either else ""
                raise ValueError(
                    "authorization.secret names a required setting of type secret" + other
                )
        views = [self.output, *(a.output for a in self.actions.values())]
        views += [a.trusted.output for a in self.actions.values() if a.trusted]
        if unknown := {v for v in views if isinstance(v, str)} - {VERBATIM, *self.views}:
            raise ValueError(f"names views that are not declared: {', '.join(sorted(unknown))}")
        if self.callbacks and self.callbacks.read not in self.actions:
            raise ValueError("callbacks.read names an action")
        requests = [self.request, *(action.request for action in self.actions.values())]
        requests += [self.revoke] if self.revoke else []
        if self.authorization.form and any(one.form is None for one in requests):
            raise ValueError("authorization.form needs requests that send a form")
        lifetime = self.settings.get(self.answer.expiry.lifetime or "")
        if lifetime and (lifetime.type != "duration" or lifetime.default is None):
            raise ValueError("expiry.lifetime names a setting of type duration with a default")
        sent = frozenset(
            {"uuid4", *(f"settings.{name}" for name in self.settings.keys() - secrets)}
        )
        for hole, allowed in self._holes(sent):
            if hole not in allowed:
                raise ValueError(f"${{{hole}}} is not known here")
        return self

    def _settings_named(self) -> Iterator[str]:
        """Settings that other parts of the file name."""
        yield from (*self.merchant, *self.guarded)
        yield from (name for group in self.exactly_one for name in group)
        for rule in self.opt_in:
            yield from (rule.needs, steps_of(rule.at)[0])
        for environment in self.environments.values():
            yield from environment.secrets
        if self.callbacks and self.callbacks.signature:
            yield self.callbacks.signature.secret
        if self.answer.expiry.lifetime:
            yield self.answer.expiry.lifetime

    def _holes(self, sent: frozenset[str]) -> Iterable[tuple[str, frozenset[str]]]:
        """Every hole, with those that `upstreams` fills there."""
        auth = (self.authorization.place, self.authorization.header)
        first = sent | {"expires_at"} if self.answer.expiry.lifetime else sent
        yield from ((hole, sent) for hole in holes_in(auth))
        yield from ((hole, first) for hole in holes_in(parts_of(self.request)))
        yield from ((hole, SESSION_HOLES) for hole in holes_in(self.output))
        for action in self.actions.values():
            data = {"data", *(f"data.{name}" for name in action.data)}
            follow_up = sent | {"session.id", *OBSERVED} | data
            if self.callbacks and self.actions.get(self.callbacks.read) is action:
                follow_up = (sent - {"uuid4"}) | {"session.id"}
            yield from ((hole, follow_up) for hole in holes_in(parts_of(action.request)))
        if self.revoke:
            yield from ((hole, sent | {"session.id"}) for hole in holes_in(parts_of(self.revoke)))


def parts_of(request: Request) -> tuple[Any, ...]:
    """Where a request may have holes."""
    return request.path, request.headers, request.json_, request.form
