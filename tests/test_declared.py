"""What a request or a setting may be: checked to the letter, told without an echo."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from broker.declared import (
    Checked,
    Declared,
    Parameter,
    SecretRef,
    Strict,
)
from broker.errors import Fault
from broker.faults import faults_of, pointer, secret_hint
from broker.holes import Template
from broker.model import JSON
from broker.urls import Url, is_loopback, is_url, plain_http

CANARY = "c4nary"


def _read(declared: dict[str, Any], value: JSON) -> list[Fault]:
    return Checked({"x": Declared.model_validate(declared)}).read({"x": value}, "/parameters")[1]


TAKEN: list[tuple[dict[str, Any], JSON]] = [
    ({"type": "string"}, ""),
    ({"type": "string"}, "x" * 1024),
    ({"type": "string", "min_length": 2, "max_length": 3}, "ab"),
    ({"type": "string", "pattern": "^[a-z]+$"}, "abc"),
    ({"type": "string", "enum": ["a", "b"]}, "b"),
    ({"type": "integer"}, -5),
    ({"type": "integer", "minimum": 1, "maximum": 3}, 3),
    ({"type": "integer", "enum": [1, 2]}, 2),
    ({"type": "number"}, 1.5),
    ({"type": "number", "minimum": 0, "maximum": 1}, 0.5),
    ({"type": "boolean"}, False),
    ({"type": "url"}, "https://shop.example/back?a=b"),
    ({"type": "array", "items": {"type": "integer"}, "max_items": 2}, [1, 2]),
    ({"type": "object", "properties": {"a": {"type": "string"}}}, {}),
    ({"type": "object", "open": True}, {"any": [{"thing": None}]}),
]
REFUSED: list[tuple[dict[str, Any], JSON, str, str]] = [
    ({"type": "string"}, 5, "", "must be text"),
    ({"type": "string"}, None, "", "must be text"),
    ({"type": "string"}, ["a"], "", "must be text"),
    ({"type": "string"}, "x" * 1025, "", "must have at most 1024 characters"),
    ({"type": "string", "min_length": 2}, "a", "", "must have at least 2 characters"),
    ({"type": "string", "pattern": "^[a-z]+$"}, "../x", "", "does not have the form that is asked for"),
    ({"type": "string", "pattern": "^[a-z]+$"}, "a\n", "", "does not have the form that is asked for"),
    ({"type": "string", "enum": ["a", "b"]}, "c", "", "must be 'a' or 'b'"),
    ({"type": "integer"}, "5", "", "must be a whole number"),
    ({"type": "integer"}, 5.0, "", "must be a whole number"),
    ({"type": "integer"}, True, "", "must be a whole number"),
    ({"type": "integer", "minimum": 1}, 0, "", "must be greater than or equal to 1"),
    ({"type": "integer", "maximum": 1}, 2, "", "must be less than or equal to 1"),
    ({"type": "integer", "enum": [2, 3]}, 1, "", "must be 2 or 3"),
    ({"type": "number"}, "1.5", "", "must be a number"),
    ({"type": "number"}, True, "", "must be a number"),
    ({"type": "number"}, float("nan"), "", "must be a finite number"),
    ({"type": "number"}, float("inf"), "", "must be a finite number"),
    ({"type": "boolean"}, 1, "", "must be true or false"),
    ({"type": "boolean"}, "true", "", "must be true or false"),
    ({"type": "url"}, "javascript:alert(1)", "", "an absolute http(s) URL is wanted"),
    ({"type": "url"}, "https://u:p@shop.example", "", "a URL has no user, password or fragment here"),
    ({"type": "url"}, "https://shop.example/\n", "", "does not have the form that is asked for"),
    ({"type": "array", "items": {"type": "integer"}}, [1, "2"], "/1", "must be a whole number"),
    ({"type": "array", "items": {"type": "integer"}}, {"0": 1}, "", "must be a list"),
    ({"type": "object"}, [], "", "must be a mapping"),
    ({"type": "object", "properties": {"a": {"type": "string", "required": True}}}, {}, "/a", "is required"),
    ({"type": "object", "properties": {"a": {"type": "string"}}}, {"b": 1}, "", "has a member that is not declared"),
]  # fmt: skip


@pytest.mark.parametrize(("declared", "value"), TAKEN)
def test_what_fits_is_taken_as_it_is(declared: dict[str, Any], value: JSON) -> None:
    """At the bounds too, and with its type."""
    checked = Checked({"x": Declared.model_validate(declared)})
    assert checked.read({"x": value}) == ({"x": value}, [])


@pytest.mark.parametrize(("declared", "value", "at", "reason"), REFUSED)
def test_what_does_not_fit_is_refused(
    declared: dict[str, Any], value: JSON, at: str, reason: str
) -> None:
    """No coercion whatever; the place and the reason are told."""
    assert _read(declared, value) == [Fault(f"/parameters/x{at}", reason)]


def test_all_faults_at_once_without_an_echo() -> None:
    """Every wrong member is told; what was not declared is counted once, and neither its name nor
    any value is repeated."""
    checked = Checked(
        {
            "merchant": Declared(type="string", required=True, pattern="^m-"),
            "limit": Declared(type="integer"),
            "deep": Declared(type="object", properties={"a": Declared(type="string")}),
        }
    )
    tree = {"merchant": CANARY, "limit": CANARY, f"{CANARY}-1": 1, f"{CANARY}-2": CANARY}
    tree["deep"] = {CANARY: CANARY}
    _, faults = checked.read(tree, "/parameters")
    hint = "has a member that is not declared; declared: merchant, limit, deep"
    assert sorted(faults, key=lambda fault: fault.pointer) == [
        Fault("/parameters", hint),
        Fault("/parameters/deep", "has a member that is not declared"),
        Fault("/parameters/limit", "must be a whole number"),
        Fault("/parameters/merchant", "does not have the form that is asked for"),
    ]


def test_a_profile_without_parameters_says_so() -> None:
    """Nothing declared: nothing may be given, and the parameters must be an object."""
    none = Checked({})
    assert none.read({}) == ({}, [])
    assert none.read({CANARY: 1}) == (
        {}, [Fault("", "has a member that is not declared; none declared")],
    )  # fmt: skip
    assert none.read([CANARY]) == ({}, [Fault("", "must be a mapping")])


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_EVERYTHING = Checked({str(i): Declared.model_validate(d) for i, (d, _) in enumerate(TAKEN)})


@settings(max_examples=200, deadline=None, derandomize=True)
@given(JSONS | st.dictionaries(st.sampled_from([*_EVERYTHING.declared, "?"]), JSONS | st.text()))
def test_any_tree_is_read_or_refused(tree: JSON) -> None:
    """`read` never raises; what it gives is only what was declared."""
    found, faults = _EVERYTHING.read(tree, "/parameters")
    assert all(fault.pointer.startswith("/parameters") for fault in faults)
    assert found.keys() <= _EVERYTHING.declared.keys()
    assert faults or found == tree


def test_defaults_are_filled_in() -> None:
    """As values of their type; what is given goes before."""
    checked = Checked(
        {
            "a": Declared(type="string", default="x"),
            "b": Declared(type="duration", default="15m"),
            "c": Declared(type="boolean", default=False),
            "d": Declared(type="array", items=Declared(type="integer"), default=[1]),
        },
        holes=True,
    )
    found, faults = checked.read({"a": "y"})
    assert faults == []
    assert {**found, "b": found["b"].total_seconds()} == {
        "a": "y",
        "b": 900.0,
        "c": False,
        "d": [1],
    }


@pytest.mark.parametrize(
    "declared",
    [
        {"type": "array"},
        {"type": "wibble"},
        {"type": "string", "pattern": "("},
        {"type": "string", "pattern": "(?=a)"},
        {"type": "string", "default": 5},
        {"type": "string", "default": "b", "pattern": "^a$"},
        {"type": "boolean", "default": "no"},
        {"type": "duration", "default": "soon"},
        {"type": "url", "default": "nowhere"},
        {"type": "array", "items": {"type": "integer"}, "default": ["a"]},
        {"type": "secret", "default": {"file": "x"}},
        {"type": "string", "maximum": 5},
        {"type": "string", "items": {"type": "string"}},
        {"type": "integer", "pattern": "^1$"},
        {"type": "integer", "max_length": 1},
        {"type": "boolean", "enum": ["a"]},
        {"type": "object", "max_length": 3},
        {"type": "array", "items": {"type": "string"}, "min_length": 3},
        {"type": "url", "pattern": "^https://shop"},
        {"type": "string", "properties": {"a": {"type": "string"}}},
        {"type": "string", "open": True},
        {"type": "string", "enum": ["a"], "pattern": "^b$"},
        {"type": "string", "enum": []},
        {"type": "string", "min_length": -1},
        {"type": "string", "required": "yes"},
        {"type": "string", "unknown": 1},
        {"type": "object", "properties": {"a": {"type": "secret"}}},
        {"type": "object", "properties": {"a": {"type": "string", "default": "x"}}},
        {"type": "array", "items": {"type": "duration"}},
    ],
)
def test_a_declaration_that_would_not_be_kept_is_refused(declared: dict[str, Any]) -> None:
    """A bound of another type, a default that does not fit, a pattern that is none: an operator is
    told, rather than left with a bound that nobody checks."""
    with pytest.raises(ValidationError):
        Declared.model_validate(declared)


@pytest.mark.parametrize("kind", ["secret", "duration"])
def test_a_request_carries_json_only(kind: str) -> None:
    """A parameter of type secret would let a request name a file."""
    with pytest.raises(ValidationError):
        TypeAdapter(Parameter).validate_python({"type": kind})


def test_an_operators_setting_may_have_holes() -> None:
    """A text with holes stands in place of any type, at any depth; but not of a secret."""
    gateway = Declared(type="object", properties={"id": Declared(type="integer", required=True)})
    checked = Checked({"gateway": gateway, "key": Declared(type="secret")}, holes=True)
    assert checked.read({"gateway": "${parameters.g}"})[0] == {
        "gateway": Template("${parameters.g}")
    }
    assert checked.read({"gateway": {"id": "${claims.id}"}})[0] == {
        "gateway": {"id": Template("${claims.id}")}
    }
    assert checked.read({"key": "${claims.key}"})[1] == [Fault("/key", "must be a mapping")]
    assert checked.read({"nope": 1})[1] == [Fault("/nope", "is not a known key")]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({}, "give exactly one of file and env"),
        ({"file": "a", "env": "B"}, "give exactly one of file and env"),
        ({"file": ""}, None),
        ({"value": CANARY}, "is not a known key"),
        (CANARY, "must be a mapping"),
        ([CANARY], "must be a mapping"),
        ({"file": 5}, "must be text"),
    ],
)
def test_a_secret_is_a_reference(value: JSON, reason: str | None) -> None:
    """A file or a variable, exactly one; a value in its place is refused and not repeated."""
    with pytest.raises(ValidationError) as caught:
        SecretRef.model_validate(value)
    faults = faults_of(caught.value, "/key")
    assert reason is None or reason in {fault.reason for fault in faults}
    assert CANARY not in str(faults)


def test_an_inline_secret_is_told_what_to_write() -> None:
    """The hint stands at the secret's place only."""
    faults = [Fault("/a/key", "must be a mapping"), Fault("/a/other", "must be a mapping")]
    assert secret_hint(faults, ["key"]) == [
        Fault("/a/key", "a secret is given as {file: PATH} or {env: NAME}, never inline"),
        Fault("/a/other", "must be a mapping"),
    ]


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("https://a.example", True),
        ("http://a.example:8080/x?y=z", True),
        ("https://[::1]:1/", True),
        ("https://", False),
        ("//a.example", False),
        ("ftp://a.example", False),
        ("https:a.example", False),
        ("http://[", False),
        ("https://a:b", False),
        ("https://a:99999", False),
        ("", False),
    ],
)
def test_urls(url: str, good: bool) -> None:
    """Absolute, http or https, with a host and a port that is one."""
    assert is_url(url) is good


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text() | st.text("htps:/[]@.#?%$a1", max_size=20).map("https://".__add__))
def test_any_text_is_a_url_or_not(text: str) -> None:
    """Reading one never raises anything but the refusal, which does not repeat it."""
    is_url(text)
    plain_http(text, [])
    try:
        assert TypeAdapter(Url).validate_python(text) == text
    except ValidationError as exc:
        (fault, *_) = faults_of(exc)
        assert len(text) < 4 or text not in fault.reason


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("http://a.example", True),
        ("HTTP://a.example", True),
        ("http://10.0.0.1", True),
        ("http://localhost.evil.example", True),
        ("http://127.0.0.1.evil.example", True),
        ("http://0.0.0.0", True),
        ("http://127.1", True),
        ("http://exempt.example:80/x", False),
        ("http://localhost:1", False),
        ("http://idp.localhost", False),
        ("http://127.8.9.1", False),
        ("http://[::1]:5", False),
        ("https://a.example", False),
    ],
)
def test_plain_http(url: str, plain: bool) -> None:
    """Only loopback and hosts that are named are reached without TLS; lookalikes are not."""
    assert plain_http(url, ["exempt.example"]) is plain


def test_loopback_is_known_by_name_only() -> None:
    """No name server is asked."""
    assert [is_loopback(host) for host in ("localhost", "127.0.0.2", "::1", "shop", "")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_pointers_are_escaped() -> None:
    """RFC 6901: ~ is ~0 and / is ~1."""
    assert (pointer("a/b", "~", 0), pointer()) == ("/a~1b/~0/0", "")


def test_strict_models_do_not_change() -> None:
    """Frozen, closed, without coercion."""

    class Model(Strict):
        a: int = 1

    with pytest.raises(ValidationError):
        Model().a = 2
    for bad in ({"b": 1}, {"a": "1"}, {"a": 1.0}, {"a": True}):
        with pytest.raises(ValidationError):
            Model.model_validate(bad)


def test_the_schema_of_settings_is_json() -> None:
    """It can be printed for editors."""
    schema = Checked(
        {str(i): Declared.model_validate(d) for i, (d, _) in enumerate(TAKEN)}, holes=True
    )
    assert orjson.dumps(schema.json_schema())


VARIANTS: dict[str, Any] = {
    "type": "object",
    "by": "kind",
    "properties": {"seen": {"type": "string", "observed": "request.accept"}},
    "variants": {
        "a": {"ip": {"type": "string", "observed": "request.ip"}, "x": {"type": "integer"}},
        "b": {"ip": {"type": "string"}},
    },
}
SEEN = {"request.ip": "192.0.2.1", "request.user_agent": "me", "request.accept": "*/*"}


@pytest.mark.parametrize(
    ("value", "observed"),
    [
        ({"kind": "a"}, {"kind": "a", "ip": "192.0.2.1", "seen": "*/*"}),
        ({"kind": "a", "x": 1}, {"kind": "a", "x": 1, "ip": "192.0.2.1", "seen": "*/*"}),
        ({"kind": "b"}, {"kind": "b", "seen": "*/*"}),
        ({"kind": "b", "ip": "said"}, {"kind": "b", "ip": "said", "seen": "*/*"}),
    ],
)
def test_what_is_observed_is_filled_in_for_its_variant(
    value: dict[str, JSON], observed: dict[str, JSON]
) -> None:
    """For all variants, or for the one that has the member; what came is left as it is."""
    checked = Checked({"v": Declared.model_validate(VARIANTS)})
    found, faults = checked.read({"v": value})
    assert faults == []
    assert checked.observes
    checked.observe(found, SEEN)
    assert found == {"v": observed}


def test_what_is_not_known_is_not_observed() -> None:
    """An empty value is left out; so is everything where the object itself is not there."""
    checked = Checked({"v": Declared.model_validate(VARIANTS)})
    found, _ = checked.read({"v": {"kind": "a"}})
    checked.observe(found, SEEN | {"request.ip": ""})
    assert found == {"v": {"kind": "a", "seen": "*/*"}}
    nothing: dict[str, JSON] = {}
    checked.observe(nothing, SEEN)
    assert nothing == {}
    assert not Checked({"v": Declared(type="object")}).observes


@pytest.mark.parametrize("member", ["ip", "seen"])
def test_what_is_observed_is_not_said(member: str) -> None:
    """As any member that is not declared; an operator is told its name."""
    declared = {"v": Declared.model_validate(VARIANTS)}
    value = {"v": {"kind": "a", member: CANARY}}
    _, faults = Checked(declared).read(value, "/parameters")
    assert faults == [Fault("/parameters/v", "has a member that is not declared")]
    _, faults = Checked(declared, holes=True).read(value, "/p")
    assert faults == [Fault(f"/p/v/{member}", "is not a known key")]


TWO: dict[str, Any] = {"a": {}, "b": {}}


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ({"by": "kind"}, "variants are two or more, and `by` names what tells them apart"),
        ({"variants": TWO}, "variants are two or more, and `by` names what tells them apart"),
        ({"by": "kind", "variants": {"a": {}}}, "variants are two or more, and `by` names what tells them apart"),
        ({"by": "kind", "variants": {**TWO, "c": {"kind": {"type": "string"}}}}, "the member that tells variants apart is not declared in them"),
        ({"by": "kind", "variants": TWO, "properties": {"kind": {"type": "string"}}}, "the member that tells variants apart is not declared in them"),
        ({"by": "k", "variants": {**TWO, "c": {"s": {"type": "secret"}}}}, "secrets, durations and defaults do not stand within another value"),
        ({"by": "k", "variants": {**TWO, "c": {"s": {"type": "string", "default": "x"}}}}, "secrets, durations and defaults do not stand within another value"),
        ({"properties": {"n": {"type": "integer", "observed": "request.ip"}}}, "what is observed is text, and a member of an object at the top"),
        ({"properties": {"o": {"type": "object", "properties": {"n": {"type": "string", "observed": "request.ip"}}}}}, "what is observed is text, and a member of an object at the top"),
        ({"properties": {"l": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "string", "observed": "request.ip"}}}}}}, "what is observed is text, and a member of an object at the top"),
    ],
)  # fmt: skip
def test_variants_that_cannot_be_told_apart(declared: dict[str, Any], reason: str) -> None:
    """And what would be observed where nobody fills it in."""
    with pytest.raises(ValidationError) as caught:
        Declared.model_validate({"type": "object", **declared})
    assert reason in {fault.reason for fault in faults_of(caught.value)}


@pytest.mark.parametrize("observed", ["request.body", "claims.sub", "", 5])
def test_only_what_is_seen_is_observed(observed: Any) -> None:
    """Address, user agent, accept header."""
    with pytest.raises(ValidationError):
        Declared.model_validate({"type": "string", "observed": observed})


def test_urls_that_are_given_to_others_are_encrypted() -> None:
    """Plain http goes to this machine only."""
    declared = {"type": "url"}
    reason = "an address on a network begins with https://"
    assert _read(declared, "http://shop.example/x") == [Fault("/parameters/x", reason)]
    assert _read(declared, "http://127.0.0.1:8080/x") == []
