"""The strict readers: what the lenient ones forgive is refused, and nothing else is ever raised."""

from __future__ import annotations

import json
import math
import time

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.model import JSON
from broker.strict import Unreadable, read_json, read_yaml

LAW = settings(max_examples=250, deadline=None, derandomize=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**16), 10**16) | TEXTS
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@LAW
@given(TREES)
def test_json_that_is_written_is_read_again(tree: JSON) -> None:
    """Whatever another writer makes of a tree, the tree comes back."""
    assert read_json(json.dumps(tree)) == tree
    assert read_json(orjson.dumps(tree)) == tree


JSONISH = st.lists(
    st.sampled_from([*'{}[]:,"\\u0d8ecEa1-.', "null", "true", '"a"', "NaN"]), max_size=30
).map("".join)


@LAW
@given(st.binary() | st.text() | JSONISH | JSONISH.map(str.encode))
@example(b'"\xed\xa0\x80"')
@example("[" * 100_000)
@example('{"a":' * 5_000)
@example("9" * 5_000)
@example("1e999")
@example('"\ud800"')
def test_json_of_anything_is_a_tree_or_unreadable(raw: bytes | str) -> None:
    """No other error, and what is read any encoder can write."""
    try:
        tree = read_json(raw)
    except Unreadable:
        return
    assert read_json(orjson.dumps(tree)) == tree


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"\xef\xbb\xbf{}",
        b"{} {}",
        b"{}x",
        b"\xff",
        b'{"a":1,"a":1}',
        b'{"a":1,"\\u0061":2}',
        b'[{"b":{"a":1,"a":2}}]',
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e400",
        b"-1e400",
        b"1234567890123456789",
        b"9" * 5000,
        b"01",
        b"+1",
        b".5",
        b"'a'",
        b'"a\nb"',
        b'"\\ud800"',
        b'{"\\uDC00":1}',
        b'["\\ud83d"]',
        b"[1,]",
        b"// x\n1",
        b'{"a":' * 101 + b"1" + b"}" * 101,
        b"[" * 101 + b"]" * 101,
        b"[" * 100_000 + b"]" * 100_000,
        "{}".encode("utf-16"),
    ],
    ids=lambda raw: repr(raw[:24]),
)
def test_json_that_is_refused(raw: bytes) -> None:
    """Duplicates at any depth, numbers beyond 64 bits, NaN, lone surrogates, a BOM, trailing text,
    more than a hundred levels: refused."""
    with pytest.raises(Unreadable):
        read_json(raw)


def test_json_that_is_taken() -> None:
    """Pairs of surrogates are text, NUL is, and a hundred levels are."""
    assert read_json('"\\ud83d\\ude00"') == "😀"
    assert read_json(b'{"a":"\\u0000"}') == {"a": "\0"}
    assert read_json("[" * 100 + "]" * 100)
    assert read_json(b" [999999999999999999] ") == [10**18 - 1]


@pytest.mark.parametrize(
    "word", ["no", "yes", "on", "off", "y", "NO", "True", "TRUE", "Null", "0o17", "017", "0x1F",
             "0b1", "1_000", "190:20:30", "2026-11-20", "12:30:45", "1e3", ".5", "5.", "+1", ".inf",
             ".nan", "=", "<<", "0.0.0.0", "-", "00"],
)  # fmt: skip
def test_yaml_words_that_stay_text(word: str) -> None:
    """What YAML 1.1 turns into truths, dates, octal and base-60 numbers stays what was written."""
    expected: JSON = [None] if word == "-" else word
    assert read_yaml(f"a: {word}" if word != "-" else "a:\n  -") == {"a": expected}


def test_yaml_that_is_more_than_text() -> None:
    """The core schema: true, false, null, whole and decimal numbers; nothing is null."""
    text = "{a: true, b: false, c: null, d: ~, e: -12, f: 0, g: 1.50, h: -0.5, i: , j: '1'}"
    assert read_yaml(text) == {
        "a": True, "b": False, "c": None, "d": None, "e": -12, "f": 0, "g": 1.5, "h": -0.5,
        "i": None, "j": "1",
    }  # fmt: skip


LAUGHS = "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3", 3),
        ("a: 1\n'a': 3", 2),
        ("x:\n  - {b: 1, b: 1}", 2),
        (LAUGHS, 2),
        ("&a [*a]", 1),
        ("a: !!python/object/apply:os.system [id]", 1),
        ("a: !!bool foo", 1),
        ('a: !!int ""', 1),
        ("a: !!timestamp foo", 1),
        ("a: !!float .nan", 1),
        ("a: !!binary aGk=", 1),
        ("a: !!set {x}", 1),
        ("a: !!str 1", 1),
        ("!!merge <<: {a: 1}", 1),
        ("a: 1\nb: !mine 1", 2),
        ("1: a", 1),
        ("true: a", 1),
        ("null: a", 1),
        ("[a]: b", 1),
        ("{a: b}: c", 1),
        ("a: b: c", 1),
        ("a:\n\t- b", 2),
        ("a: 'b", 1),
        ("---\na\n---\nb", 3),
        ('a: "\\ud800"', None),
        ('a: "\\U00110000"', None),
        ("a: \x07", None),
        ("a: " + "9" * 19, None),
        ("a: " + "9" * 5000, None),
        ("a: 1" + "0" * 400 + ".0", None),
        ("[" * 101 + "]" * 101, None),
        ("[" * 3000, None),
        ("- " * 3000, None),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_yaml_that_is_refused(text: str, line: int | None) -> None:
    """Duplicate keys, aliases, tags of any kind, keys that are not text, several documents, numbers
    and depths that nothing could write: refused, with the line where there is one."""
    with pytest.raises(Unreadable) as caught:
        read_yaml(text)
    assert caught.value.line == line


@pytest.mark.parametrize(
    "text",
    [
        "key: !s3cret",
        "key: !s3cret!x y",
        "key: *s3cret",
        "key: &s3cret a\nb: &s3cret c\nd: *s3cret",
        "key: %s3cret",
        "key: @s3cret",
        "key: `s3cret",
        "key: 's3cret",
        "key: s3cret: x",
        "key: [s3cret",
        "%TAG !s3cret! x\n%TAG !s3cret! y\n--- a",
        'key: "s3cret\\q"',
    ],
)
def test_a_refusal_does_not_quote(text: str) -> None:
    """An inline secret that YAML happens to stumble over is in no message."""
    with pytest.raises(Unreadable) as caught:
        read_yaml(text)
    assert "3cret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__cause__ is None


YAMLISH = st.lists(
    st.sampled_from(
        [*"abn:-?,[]{}#&*!|>'\"%@` \n\t0123.~\\", "a: ", "- ", "\n  ", "!!int ", "<<: "]
    ),
    max_size=30,
).map("".join)


@LAW
@given(st.text() | YAMLISH)
@example("a: !!bool foo")
@example("a: !!int ''")
@example("&a [*a]")
def test_yaml_of_anything_is_a_tree_or_unreadable(text: str) -> None:
    """No other error, and what is read is a JSON tree."""
    try:
        tree = read_yaml(text)
    except Unreadable:
        return
    assert read_json(orjson.dumps(tree)) == tree


BMP = st.text(st.characters(max_codepoint=0xD7FF), max_size=8)


@LAW
@given(st.dictionaries(BMP, BMP | st.integers(-(10**16), 10**16) | st.none() | st.lists(BMP)))
def test_json_is_yaml(tree: JSON) -> None:
    """A file that is written as JSON means the same (but for pairs of escaped surrogates)."""
    assert read_yaml(json.dumps(tree)) == tree


def test_large_texts_are_read_in_proportion() -> None:
    """A megabyte of JSON, and a long YAML list, are a matter of a second or two."""
    began = time.process_time()
    assert len(read_json("[" + "0," * 500_000 + "0]")) == 500_001
    assert len(read_yaml("- a\n" * 5_000)) == 5_000
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("raw", "tree"),
    [
        (b"[1, -2, 3.5]", [1, -2, 3.5]),
        (b"999999999999999999", 10**18 - 1),
        (b"12345678901234567890", math.inf),
        (b"-12345678901234567890", math.inf),
        (b"1e400", math.inf),
        (b"-1e400", -math.inf),
        (b"9" * 5000, math.inf),
        (b'{"a": 1.50}', {"a": 1.5}),
        (b'{"a": "1"}', {"a": "1"}),
    ],
)
def test_numbers_of_any_size_where_nobody_writes_them_again(raw: bytes, tree: JSON) -> None:
    """They stay numbers: none becomes text, which could be taken for a token."""
    assert read_json(raw, any_number=True) == tree


@pytest.mark.parametrize(
    "raw",
    [b"", b"NaN", b"Infinity", b'{"a":1,"a":1}', b'"\\ud800"', b"\xff", b"[1,]", b"[" * 101 + b"]" * 101,
     b"01", b"1" * 5000 + b"x"],
    ids=lambda raw: repr(raw[:16]),
)  # fmt: skip
def test_any_number_is_no_less_strict_otherwise(raw: bytes) -> None:
    """Duplicates, depth, lone surrogates and what is no JSON are refused all the same."""
    with pytest.raises(Unreadable):
        read_json(raw, any_number=True)


@pytest.mark.parametrize("any_number", [False, True])
def test_no_error_holds_the_text(any_number: bool) -> None:
    """Also not the one behind it: the decoder's own has the whole of it."""
    for raw in (
        b'{"c4nary": "c4nary", ',
        b'"c4nary',
        b'{"c4nary":1,"c4nary":1}',
        b'["c4nary"] x',
        b"\xffc4nary",
    ):
        with pytest.raises(Unreadable) as caught:
            read_json(raw, any_number=any_number)
        error: BaseException | None = caught.value
        while error is not None:
            assert "c4nary" not in f"{error!r} {error} {vars(error)} {error.args}"
            error = error.__cause__ or error.__context__
