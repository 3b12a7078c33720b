"""The small vocabulary in which settings, parameters and action data are declared, and its checks.

A preset declares what a profile may set, a profile what a request may carry, both in the same
words; pydantic does the checking, built once at load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NotRequired, Required, Self, Union, get_args

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import SchemaError
from typing_extensions import TypedDict

from broker.errors import Fault
from broker.faults import UNTOLD, faults_of, pointer
from broker.holes import Template
from broker.kinds import Duration, Holes, OneOrMany, SecretRef, Strict
from broker.model import JSON
from broker.urls import Url, plain_http

Observed = Literal["request.ip", "request.user_agent", "request.accept"]
OBSERVED: tuple[Observed, ...] = get_args(Observed)


class Declared(Strict):
    """One declared value: its type and bounds, in the words of JSON Schema.

    An object may come in variants, told apart by one member, with `properties` common to all.
    `observed`: not the sender's to say; a member of an object that stands at the top.
    """

    type: Literal[
        "string", "integer", "number", "boolean", "object", "array", "secret", "url", "duration"
    ]
    description: str = ""
    required: bool = False
    default: Any = None
    enum: list[str | int] | None = Field(default=None, min_length=1)
    pattern: str | None = None
    min_length: int | None = Field(default=None, ge=0)
    max_length: int = Field(default=1024, ge=0)
    minimum: int | float | None = None
    maximum: int | float | None = None
    items: Declared | None = None
    max_items: int = Field(default=64, ge=0)
    properties: dict[str, Declared] = {}
    open: bool = Field(default=False, description="an object may have further members")
    by: str | None = Field(default=None, description="the member that says which variant it is")
    variants: dict[str, dict[str, Declared]] = {}
    observed: Observed | None = Field(
        default=None, description="filled in from the request; whoever sends it is refused"
    )

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        if self.type == "array" and self.items is None:
            raise ValueError("an array says what its items are")
        words = self.model_fields_set - _ALWAYS - _WORDS_OF.get(self.type, set())
        if words or (self.enum and self.model_fields_set & _BOUNDS):
            raise ValueError("has a bound that a value of this kind is not checked against")
        inner = list(_within(self))
        if any(one.type in ("secret", "duration") or one.default is not None for one in inner):
            raise ValueError("secrets, durations and defaults do not stand within another value")
        if any(two.observed for one in inner for two in _within(one)) or (
            self.observed and self.type != "string"
        ):
            raise ValueError("what is observed is text, and a member of an object at the top")
        if (self.by is None) != (not self.variants) or len(self.variants) == 1:
            raise ValueError("variants are two or more, and `by` names what tells them apart")
        if any(self.by in members for members in [self.properties, *self.variants.values()]):
            raise ValueError("the member that tells variants apart is not declared in them")
        if self.type == "secret" and self.default is not None:
            raise ValueError("a secret has no default")
        try:
            checked: TypeAdapter[Any] = TypeAdapter(_annotation(self, holes=True))
        except SchemaError:
            raise ValueError("the pattern is not a regular expression") from None
        if self.default is not None:
            try:
                checked.validate_python(self.default)
            except ValidationError:
                raise ValueError("the default does not fit") from None
        return self


_ALWAYS = {"type", "description", "required", "default", "observed", "trusted"}
_BOUNDS = {"pattern", "min_length", "max_length", "minimum", "maximum"}
_WORDS_OF = {
    "string": {"enum", "pattern", "min_length", "max_length"},
    "integer": {"enum", "minimum", "maximum"},
    "number": {"enum", "minimum", "maximum"},
    "array": {"items", "max_items"},
    "object": {"properties", "open", "by", "variants"},
}


def _within(declared: Declared) -> Iterator[Declared]:
    """Everything that stands directly in it."""
    if declared.items is not None:
        yield declared.items
    for members in (declared.properties, *declared.variants.values()):
        yield from members.values()


def _of_a_request(declared: Declared) -> Declared:
    if declared.type in ("secret", "duration"):
        raise ValueError("a request carries JSON types: no secret, no duration")
    for one in _within(declared):
        _of_a_request(one)
    return declared


Parameter = Annotated[Declared, AfterValidator(_of_a_request)]
"""What a request may carry: JSON values only."""


class OfProfile(Declared):
    """A profile's parameter."""

    trusted: bool = Field(default=False, description="only callers in allow.trusted may send it")


ProfileParameter = Annotated[OfProfile, AfterValidator(_of_a_request)]


_SECRETS = Annotated[list[SecretRef], OneOrMany(), Field(min_length=1)]
"""A rollover names both its keys, newest first."""


def _scalar(declared: Declared) -> Any:
    if declared.enum:
        return Literal[tuple(declared.enum)]
    if declared.type == "string":
        return Annotated[
            str,
            StringConstraints(
                strict=True,
                min_length=declared.min_length,
                max_length=declared.max_length,
                pattern=declared.pattern,
            ),
        ]
    bounds = Field(strict=True, ge=declared.minimum, le=declared.maximum, allow_inf_nan=False)
    number: Any = int if declared.type == "integer" else float
    return Annotated[
        number,
        bounds if number is float else Field(strict=True, ge=declared.minimum, le=declared.maximum),
    ]


def _annotation(declared: Declared, holes: bool) -> Any:
    kind: Any
    match declared.type:
        case "string" | "integer" | "number":
            kind = _scalar(declared)
        case "boolean":
            kind = Annotated[bool, Field(strict=True)]
        case "array":
            assert declared.items is not None  # noqa: S101  (checked by Declared)
            items: Any = list.__class_getitem__(_annotation(declared.items, holes))
            kind = Annotated[items, Field(strict=True, max_length=declared.max_items)]
        case "object":
            kind = _object(declared, holes)
        case "secret":
            return _SECRETS
        case "url":
            address = Annotated[Url, Holes()] if holes else Url
            return Annotated[address, AfterValidator(_encrypted)]
        case "duration":
            return Duration
    return Annotated[kind, Holes()] if holes else kind


def _encrypted(url: str | Template) -> str | Template:
    """For addresses that are given to others: what they post or append there is secret too. Of one
    with holes, its beginning is judged now and the whole when it is filled."""
    if plain_http(f"{url.parts[0]}x" if isinstance(url, Template) else url, []):
        raise ValueError("an address on a network begins with https://")
    return url


def _object(declared: Declared, holes: bool) -> Any:
    if not declared.variants:
        return _members(declared.properties, declared.open, holes)
    by = declared.by
    assert by is not None  # noqa: S101  (checked by Declared)

    def which(value: Any) -> str | None:
        tag = value.get(by) if isinstance(value, dict) else None
        return UNTOLD + tag if isinstance(tag, str) else None

    choices = []
    for tag, own in declared.variants.items():
        said = Declared(type="string", required=True, enum=[tag])
        members = {by: said, **declared.properties, **own}
        choices.append(Annotated[_members(members, declared.open, holes), Tag(UNTOLD + tag)])
    union: Any = Union.__getitem__(tuple(choices))
    return Annotated[union, Discriminator(which)]


def _members(declared: Mapping[str, Declared], open_: bool, holes: bool) -> Any:
    fields: dict[str, Any] = {}
    for name, one in declared.items():
        if one.observed:
            continue
        needed: Any = Required if one.required else NotRequired
        fields[name] = needed[_annotation(one, holes)]
    make: Any = TypedDict  # mypy knows the class syntax only; the names are known at run time
    shape = make("Members", fields)
    shape.__pydantic_config__ = ConfigDict(extra="allow" if open_ else "forbid", strict=True)
    return shape


class Checked:
    """A reader of one declared set of members: `read` gives a plain dict, or the faults.

    holes: the input is an operator's, whose texts may have holes and whose keys may be named;
    without, it is a request's.
    """

    def __init__(self, declared: Mapping[str, Declared], *, holes: bool = False) -> None:
        self.declared = declared
        self._stranger = not holes
        self._adapter: TypeAdapter[dict[str, JSON]] = TypeAdapter(_members(declared, False, holes))
        self._defaults = {
            n: TypeAdapter(_annotation(d, holes)).validate_python(d.default)
            for n, d in declared.items()
            if d.default is not None
        }
        self._observed = tuple(_observations(declared))
        self._telling = self._adapter
        if self._observed:
            told = {name: _told(one) for name, one in declared.items()}
            self._telling = TypeAdapter(_members(told, False, holes))

    @property
    def observes(self) -> bool:
        """Is there anything that only `observe` fills in?"""
        return bool(self._observed)

    def observe(self, found: dict[str, JSON], values: Mapping[str, str]) -> None:
        """Fills in what is not the sender's to say. values: by the names of `OBSERVED`; what is
        not known is left out."""
        for name, by, tag, member, hole in self._observed:
            one = found.get(name)
            if isinstance(one, dict) and (by is None or one.get(by) == tag) and values[hole]:
                one[member] = values[hole]

    def read(
        self, tree: JSON, at: str = "", *, tells: bool = False
    ) -> tuple[dict[str, JSON], list[Fault]]:
        """The members with defaults filled in, and no fault; or whatever, and every fault.

        tells: whoever sends it may say what is else observed."""
        try:
            found = (self._telling if tells else self._adapter).validate_python(tree)
        except ValidationError as exc:
            faults = faults_of(exc, at, self.declared if self._stranger else None)
            return {}, [self._as_written(fault, tree, at) for fault in faults]
        return ({**self._defaults, **found} if self._defaults else found), []

    def _as_written(self, fault: Fault, tree: JSON, at: str) -> Fault:
        """A secret written as the only item of its list has no items, as its author knows it."""
        for name, one in self.declared.items():
            item = at + pointer(name, 0)
            within = one.type == "secret" and f"{fault.pointer}/".startswith(f"{item}/")
            if within and not isinstance(tree[name], list):
                rest = fault.pointer.removeprefix(item)
                return Fault(at + pointer(name) + rest, fault.reason)
        return fault

    def json_schema(self, prefix: str = "") -> dict[str, Any]:
        """prefix: makes the names of definitions unlike those of another schema."""
        marked = prefix.replace("/", ".")
        schema = self._adapter.json_schema(ref_template=f"#/$defs/{marked}{{model}}")
        if "$defs" in schema:
            schema["$defs"] = {marked + name: one for name, one in schema["$defs"].items()}
        return schema


def _told(declared: Declared) -> Declared:
    """The same, with what is observed as ordinary members, for who knows better than we."""

    def plain(members: dict[str, Declared]) -> dict[str, Declared]:
        return {n: one.model_copy(update={"observed": None}) for n, one in members.items()}

    variants = {tag: plain(members) for tag, members in declared.variants.items()}
    return declared.model_copy(
        update={"properties": plain(declared.properties), "variants": variants}
    )


def _observations(
    declared: Mapping[str, Declared],
) -> Iterator[tuple[str, str | None, str, str, Observed]]:
    """Name, variant (by, tag), member and what fills it, for each member that is observed."""
    for name, one in declared.items():
        for member, inner in one.properties.items():
            if inner.observed:
                yield name, None, "", member, inner.observed
        for tag, members in one.variants.items():
            for member, inner in members.items():
                if inner.observed:
                    yield name, one.by, tag, member, inner.observed
