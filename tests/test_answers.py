"""What an upstream said, as a session or as nonsense: the parser alone, against everything."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.errors import UpstreamNonsense
from broker.holes import value_at
from broker.model import ComponentSession, Secret
from broker.presets import parse_preset
from broker.upstreams.answers import session_of, shown, tree_of
from broker.upstreams.transport import Answer

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
PRESET = """
summary: an upstream
reuse: per_caller
settings: {key: {type: secret, required: true}}
authorization: {secret: key}
request: {path: /sessions}
answer:
  token: /data/token
  id: /id
  expiry: {at: /end, as: KIND, most: 24h, DEFAULT}
output: {t: "${session.token}", i: "${session.id}", e: "${session.expires_at}", ms: "${session.expires_at_ms}"}
"""
KINDS = ("rfc3339", "epoch_s", "epoch_ms", "seconds")


def preset(kind: str = "rfc3339", default: str = "") -> Any:
    filled = PRESET.replace("KIND", kind)
    filled = filled.replace(", DEFAULT", f", default: {default}" if default else "")
    return parse_preset("test", filled).file


FILES = {kind: preset(kind) for kind in KINDS}
WITH_DEFAULT = preset(default="15m")


def parsed(file: Any, body: Any, date: str | None = None) -> ComponentSession:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {} if date is None else {"date": date}
    return session_of(file, Answer(201, headers, raw), 1000.0, NOON)


def body(end: Any, **more: Any) -> dict[str, Any]:
    return {"data": {"token": "tok"}, "id": "i1", "end": end, **more}


GOOD: list[tuple[str, Any, float]] = [
    ("rfc3339", "2026-11-20T12:15:00Z", 900),
    ("rfc3339", "2026-11-20T12:15:00.250Z", 900.25),
    ("rfc3339", "2026-11-20T13:15:00+01:00", 900),
    ("rfc3339", "2026-11-20T12:15:00", 900),
    ("rfc3339", "2026-11-20 12:15:00Z", 900),
    ("epoch_s", NOON.timestamp() + 900, 900),
    ("epoch_s", str(int(NOON.timestamp()) + 900), 900),
    ("epoch_ms", int(NOON.timestamp() + 900) * 1000, 900),
    ("seconds", 900, 900),
    ("seconds", "900", 900),
    ("seconds", 0.5, 0.5),
    ("seconds", 86401, 86400),
    ("rfc3339", "9999-12-31T23:59:59-23:59", 86400),
]


@pytest.mark.parametrize(("kind", "end", "seconds"), GOOD)
def test_an_expiry_is_counted_from_the_request(kind: str, end: Any, seconds: float) -> None:
    """Each notation gives the same life, by both clocks from when the session was asked for, cut
    to what the preset allows."""
    found = parsed(FILES[kind], body(end))
    lifetime = timedelta(seconds=seconds)
    assert found.life.lifetime == lifetime
    assert found.life.expires_at == NOON + lifetime
    assert found.life.until == 1000.0 + seconds
    assert found.token == Secret("tok")
    assert found.output == {
        "t": "tok",
        "i": "i1",
        "e": (NOON + lifetime).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "ms": int((NOON + lifetime).timestamp() * 1000),
    }


BAD: list[tuple[str, Any]] = [
    ("rfc3339", "2026-11-20T12:00:00Z"),  # now is over
    ("rfc3339", "2026-11-20T11:59:59Z"),
    ("rfc3339", "0001-01-01T00:00:00+23:59"),
    ("rfc3339", "soon"),
    ("rfc3339", ""),
    ("rfc3339", 1795176900),
    ("rfc3339", ["2026-11-20T12:15:00Z"]),
    ("rfc3339", "2026-02-30T00:00:00Z"),
    ("rfc3339", "2026-11-20T24:15:00Z"),
    ("epoch_s", True),
    ("epoch_s", "nan"),
    ("epoch_s", "inf"),
    ("epoch_s", 1e11 + 1e12),
    ("epoch_s", 999_999_999_999),  # the year 33658
    ("epoch_s", {}),
    ("epoch_ms", -1),
    ("seconds", 0),
    ("seconds", -1),
    ("seconds", "1e99"),
    ("seconds", False),
    ("seconds", None),
    ("seconds", "9" * 5000),
]


@pytest.mark.parametrize(("kind", "end"), BAD)
def test_an_end_that_is_none(kind: str, end: Any) -> None:
    """A token whose end is over, unreadable or missing is no token; the error has no word of it."""
    with pytest.raises(UpstreamNonsense) as caught:
        parsed(FILES[kind], body(end, data={"token": "canary"}))
    assert "canary" not in f"{caught.value!r}{caught.value.detail}{caught.value.__cause__!r}"
    assert caught.value.__cause__ is None


def test_a_default_is_for_what_is_missing_only() -> None:
    """`default` stands in where the answer has no expiry, never where it has a bad one."""
    quarter = timedelta(minutes=15)
    assert parsed(WITH_DEFAULT, {"data": {"token": "t"}, "id": "i"}).life.lifetime == quarter
    assert parsed(WITH_DEFAULT, body(None)).life.lifetime == quarter
    for bad in ("soon", "", 0, False, "2026-11-20T11:00:00Z"):
        with pytest.raises(UpstreamNonsense):
            parsed(WITH_DEFAULT, body(bad))


@pytest.mark.parametrize("skew", [-7200, -31, 31, 7200])
def test_an_upstream_whose_clock_is_wrong(skew: int) -> None:
    """An expiry by a clock that is off, as its Date field tells, still gives the life it meant."""
    theirs = NOON + timedelta(seconds=skew)
    end = (theirs + timedelta(seconds=900)).isoformat()
    found = parsed(FILES["rfc3339"], body(end), format_datetime(theirs, usegmt=True))
    assert found.life.lifetime == timedelta(seconds=900)
    assert found.life.expires_at == NOON + timedelta(seconds=900)


@pytest.mark.parametrize("skew", [-30, -1, 0, 1, 30])
def test_a_small_difference_is_not_a_wrong_clock(skew: int) -> None:
    """Within 30 seconds, a whole-second Date and the way of the answer explain it."""
    date = format_datetime(NOON + timedelta(seconds=skew), usegmt=True)
    end = (NOON + timedelta(seconds=900)).isoformat()
    assert parsed(FILES["rfc3339"], body(end), date).life.lifetime == timedelta(seconds=900)


@pytest.mark.parametrize(
    "date",
    [
        "", "nonsense", "0", "Fri, 20 Nov 2026 12:00:00 +2500", "Fri, 31 Feb 2026 12:00:00 GMT",
        "Fri, 20 Nov 2026 12:00:00 +99999999999999999999",
        "Fri, 20 Nov 99999999999999 12:00:00 GMT",
        "Fri, 20 Nov 2026 99:99:99 GMT",
    ],
)  # fmt: skip
def test_a_date_that_is_none_is_ignored(date: str) -> None:
    """An unreadable Date field is as good as none."""
    end = (NOON + timedelta(seconds=900)).isoformat()
    assert parsed(FILES["rfc3339"], body(end), date).life.lifetime == timedelta(seconds=900)


BODIES: list[Any] = [
    b"", b"[]", b"null", b'"x"', b"{", b"\xff", b"{}", b'{"a":1,"a":2}', b"[" * 100_000,
    b'{"data":{"token":"\\ud800"},"id":"i","end":"2026-11-20T12:15:00Z"}',
    body("2026-11-20T12:15:00Z", data=None),
    body("2026-11-20T12:15:00Z", data=["token"]),
    body("2026-11-20T12:15:00Z", data={"token": 5}),
    body("2026-11-20T12:15:00Z", data={"token": ""}),
    body("2026-11-20T12:15:00Z", data={"token": "a\nb"}),
    body("2026-11-20T12:15:00Z", data={"token": "a" * 16385}),
    body("2026-11-20T12:15:00Z", id=5),
    body("2026-11-20T12:15:00Z", id=""),
    body("2026-11-20T12:15:00Z", id="i" * 256),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(BODIES)))
def test_bodies_that_are_no_session(index: int) -> None:
    """Not JSON, not strict JSON, no object, or no usable token or id: nonsense."""
    with pytest.raises(UpstreamNonsense):
        parsed(FILES["rfc3339"], BODIES[index])


def test_a_pointer_goes_through_objects_only() -> None:
    """A list or text on the way, or a missing step, is "not there"; null is a value."""
    tree = {"a": {"b": None, "": 1}, "l": [1], "s": "text"}
    assert value_at(tree, "/a/b") is None
    assert value_at(tree, "/a/") == 1
    missing = value_at(tree, "/nothing")
    for pointer in ("/l/0", "/s/0", "/a/b/c", "/a/x"):
        assert value_at(tree, pointer) is missing


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["data", "token", "id", "end"]), inner, max_size=4)
    ),
    max_leaves=8,
)
ENDS = st.one_of(
    st.integers(),
    st.floats(),
    st.datetimes(timezones=st.timezones() | st.none()).map(lambda at: at.isoformat()),
    st.text(alphabet="0123456789-:TZ+. eE_", max_size=30),
    JSON,
)
DATES = st.one_of(
    st.none(),
    st.text(max_size=40),
    st.datetimes(min_value=datetime(1000, 1, 1)).map(format_datetime),
    st.from_regex(r"Fri, [0-9]{1,12} Nov [0-9]{1,20} [0-9]{1,9}:00:00 [+-][0-9]{1,30}"),
)


@given(st.sampled_from(KINDS), ENDS, DATES, st.one_of(st.none(), JSON))
@example("rfc3339", "9999-12-31T23:59:59Z", "Mon, 01 Jan 0001 00:00:00 +2359", None)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_anything_is_a_live_session_or_nonsense(
    kind: str, end: Any, date: str | None, whole: Any
) -> None:
    """Whatever body and Date say, out comes a session that lives for more than nought and at most
    the preset's `most` seconds, or UpstreamNonsense; nothing else."""
    try:
        found = parsed(FILES[kind], body(end) if whole is None else whole, date)
    except UpstreamNonsense:
        return
    assert timedelta(0) < found.life.lifetime <= timedelta(hours=24)
    assert found.life.expires_at - NOON == found.life.lifetime
    json.dumps(found.output, ensure_ascii=False).encode()


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_bytes_are_nonsense(raw: bytes) -> None:
    """Bytes of no meaning never get further than UpstreamNonsense."""
    with pytest.raises(UpstreamNonsense):
        parsed(FILES["rfc3339"], raw)


VIEWS = parse_preset(
    "views",
    PRESET.replace("KIND", "seconds").replace(", DEFAULT", "")
    + """
views:
  v: [/id, [/new/name, /old], /a~1b/c~0d, /deep/er/x, /deep/er/y]
  all: ["@v", /secret]
""",
).file


@pytest.mark.parametrize(
    ("tree", "out"),
    [
        ({}, {}),
        ([], {}),
        ("x", {}),
        ({"id": 0, "other": 1}, {"id": 0}),
        ({"id": False}, {"id": False}),
        ({"id": None}, {}),
        ({"id": ""}, {"id": ""}),
        ({"new": {"name": 1}, "old": 2}, {"new": {"name": 1}}),
        ({"old": 2}, {"new": {"name": 2}}),
        ({"new": {"name": None}, "old": 2}, {"new": {"name": 2}}),
        ({"new": "text", "old": 2}, {"new": {"name": 2}}),
        ({"a/b": {"c~d": 1, "e": 2}}, {"a/b": {"c~d": 1}}),
        (
            {"deep": {"er": {"x": 1, "y": [2], "z": 3}, "w": 4}},
            {"deep": {"er": {"x": 1, "y": [2]}}},
        ),
        ({"secret": 1}, {}),
    ],
)
def test_a_view_lets_out_what_it_lists(tree: Any, out: Any) -> None:
    """Each in its place; of several places, the first that has a value, in the first's place."""
    assert shown(VIEWS, "v", tree, Answer(200, {}, b"")) == out
    more = {"secret": tree["secret"]} if isinstance(tree, dict) and "secret" in tree else {}
    assert shown(VIEWS, "all", tree, Answer(200, {}, b"")) == {**out, **more}


@pytest.mark.parametrize("raw", [b'{"a": 1.50}', b' {"n":1e999}', b"{}"])
def test_verbatim_is_the_body_as_it_came(raw: bytes) -> None:
    """For an encoder to put in as it stands."""
    told = shown(VIEWS, "verbatim", {}, Answer(200, {}, raw))
    assert orjson.dumps([told]) == b"[" + raw + b"]"
    tree_of(Answer(200, {}, raw), verbatim=True)


def lived(wall: datetime, assumed: timedelta | None) -> ComponentSession:
    raw = b'{"data":{"token":"t"},"id":"i"}'
    return session_of(FILES["seconds"], Answer(201, {}, raw), 1000.0, wall, assumed)


@pytest.mark.parametrize("seconds", [1, 899.5, 86400])
def test_a_life_that_we_set_ourselves(seconds: float) -> None:
    """Taken where the answer tells none, before any default; by both clocks."""
    life = lived(NOON, timedelta(seconds=seconds)).life
    assert (life.lifetime, life.until) == (timedelta(seconds=seconds), 1000.0 + seconds)
    with pytest.raises(UpstreamNonsense):
        lived(NOON, None)
    with pytest.raises(UpstreamNonsense):
        lived(NOON, timedelta(0))


def test_what_an_answer_tells_goes_before_what_we_set() -> None:
    """An upstream that gives less life is believed."""
    raw = b'{"data":{"token":"t"},"id":"i","end":60}'
    told = session_of(FILES["seconds"], Answer(201, {}, raw), 1000.0, NOON, timedelta(hours=1))
    assert told.life.lifetime == timedelta(seconds=60)
