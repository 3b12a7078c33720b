"""Handles: what was sealed comes back, and whatever else is shown is one and the same refusal."""

from __future__ import annotations

import base64
import string
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from joserfc import jwe
from joserfc.jwk import OctKey

from broker.errors import HandleExpired
from broker.handles import (
    MOST_HANDLE,
    MOST_PARAMETERS,
    Handle,
    Seal,
    bound_of,
    first_link,
    next_link,
)
from broker.model import JSON, Caller, Facts, Grant, Secret

LAW = settings(max_examples=120, deadline=None, derandomize=True)
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
NEW, OLD, OTHER = Secret("n" * 32), Secret("ö" * 16), Secret("x" * 64)
SEAL = Seal([NEW, OLD])

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INSTANTS = st.integers(0, 4_102_444_800).map(lambda s: datetime.fromtimestamp(s, UTC))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**16), 10**16) | TEXTS
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
TREES = st.dictionaries(TEXTS, VALUES, max_size=4)
HANDLES = st.builds(
    Handle, id=TEXTS, chain=TEXTS, profile=TEXTS, caller=TEXTS, subject=TEXTS,
    chain_began=INSTANTS, issued_at=INSTANTS, expires_at=INSTANTS,
    bound=TEXTS, session_id=st.none() | TEXTS, parameters=TREES,
)  # fmt: skip


def _handle(**changes: Any) -> Handle:
    fields: dict[str, Any] = {
        "id": "link", "chain": "chain", "profile": "transactions", "caller": "shop-users",
        "subject": "zoë@shop.example", "chain_began": NOW, "issued_at": NOW,
        "expires_at": NOW + timedelta(minutes=15), "bound": "bound", "session_id": None,
        "parameters": {"gateway": {"merchant_id": "m-4711"}},
    }  # fmt: skip
    return Handle(**fields | changes)


def _refused(text: str, seal: Seal = SEAL) -> None:
    with pytest.raises(HandleExpired) as caught:
        seal.open(text)
    assert caught.value.detail == "This handle is not valid any more; start a new session."


@LAW
@given(HANDLES)
def test_what_is_sealed_comes_back(handle: Handle) -> None:
    """Every field, non-ASCII subjects and nested parameters included."""
    text = SEAL.close(handle)
    assert SEAL.open(text) == handle
    assert text.isascii()


def test_the_newest_key_seals_all_open_and_a_dropped_one_does_not() -> None:
    """A rollover: prepend the new key, later drop the old one; at no time does a handle made by a
    listed key stop working."""
    before, during, after = Seal([OLD]), Seal([NEW, OLD]), Seal([NEW])
    old, new = before.close(_handle()), during.close(_handle())
    assert during.open(old) == during.open(new) == after.open(new) == _handle()
    _refused(new, before)
    _refused(old, after)
    _refused(new, Seal([OTHER]))
    _refused(new, Seal([]))


@LAW
@given(st.data())
def test_any_bit_flipped_is_refused(data: st.DataObject) -> None:
    """Wherever it is, also in bits that base64 decoders ignore: a handle has one text."""
    text = SEAL.close(_handle())
    at = data.draw(st.integers(0, len(text) - 1))
    bit = data.draw(st.integers(0, 6))
    _refused(text[:at] + chr(ord(text[at]) ^ (1 << bit)) + text[at + 1 :])


def test_every_character_counts() -> None:
    """Replacing any one character by another of the same alphabet is refused, everywhere; at the
    end of a part by each, as some of its bits are outside the bytes (joserfc sees to that)."""
    text = SEAL.close(_handle())
    alphabet = string.ascii_letters + string.digits + "-_"
    for at, character in enumerate(text):
        others = alphabet if text[at + 1 : at + 2] in {"", "."} else "AB_."
        for other in others:
            if other != character:
                _refused(text[:at] + other + text[at + 1 :])


def test_stray_characters_are_refused() -> None:
    """What lenient base64 decoders skip or trim makes another text, hence no handle."""
    text = SEAL.close(_handle())
    for stray in ("=", "==", " ", "\n", "!", "+", "é", "\0", "\ud800"):
        _refused(text + stray)
        _refused(stray + text)
        _refused(text.replace(".", stray + ".", 3))
        for dot in [i for i, c in enumerate(text) if c == "."]:
            _refused(text[: dot + 1] + stray + text[dot + 1 :])


def test_truncated_at_any_place_is_refused() -> None:
    """No beginning and no end of a handle opens."""
    text = SEAL.close(_handle())
    for at in range(len(text)):
        _refused(text[:at])
        _refused(text[at + 1 :])


@LAW
@given(st.permutations(range(5)), st.lists(st.integers(0, 4), max_size=7))
def test_swapped_segments_are_refused(order: list[int], picked: list[int]) -> None:
    """The five parts in any other order, number, or repetition; and parts of two handles mixed."""
    one, two = (SEAL.close(_handle(id=name)).split(".") for name in ("one", "two"))
    for arrangement in (order, picked):
        mixed = ".".join(one[i] for i in arrangement)
        assume(mixed != ".".join(one))
        _refused(mixed)
    for at in (2, 3, 4):
        _refused(".".join([*one[:at], two[at], *one[at + 1 :]]))


_HEADER = SEAL.close(_handle()).partition(".")[0]
GARBAGE = st.text() | st.text(".AZaz09_-=", max_size=60)


@LAW
@given(GARBAGE | GARBAGE.map(lambda rest: f"{_HEADER}.{rest}") | GARBAGE.map(lambda r: _HEADER + r))
@example("")
@example(f"{_HEADER}....")
@example(f"{_HEADER}..AAAA.AAAA.AAAA")
@example(f"{_HEADER}.AAAA.AAAAAAAAAAAAAAAA.AAAA.AAAAAAAAAAAAAAAAAAAAAA")
@example(f"{_HEADER}." + "A" * MOST_HANDLE)
def test_garbage_is_refused(text: str) -> None:
    """Any text, also behind a genuine header, is `HandleExpired` and nothing else."""
    _refused(text)


def _foreign(header: dict[str, Any], key: bytes = b"k" * 32) -> str:
    algorithms = [header["alg"], header["enc"], "DEF"]
    registry = jwe.JWERegistry(algorithms=algorithms)
    return jwe.encrypt_compact(header, b"[]", OctKey.import_key(key), registry=registry)


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "dir", "enc": "A256GCM"},
        {"alg": "A256KW", "enc": "A256GCM"},
        {"alg": "dir", "enc": "A256GCM", "zip": "DEF"},
        {"alg": "dir", "enc": "A256GCM", "kid": "00000000"},
    ],
)
def test_another_header_is_refused(header: dict[str, Any]) -> None:
    """Only the very headers of the ring are looked at: no other algorithm, no compression."""
    _refused(_foreign(header))


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        b"null",
        b"{}",
        b"[]",
        b"not json",
        b"\xff",
        orjson.dumps([""] * 11),
        orjson.dumps(["i", "c", "p", "c", "s", 1e300, 1, 1, "b", None, {}]),
        orjson.dumps(["i", "c", "p", "c", "s", 10**17, 1, 1, "b", None, {}]),
        orjson.dumps(["i", "c", "p", "c", "s", 1, 1, "b", None, {}]),
        orjson.dumps(["i", "c", "p", "c", "s", 1, 1, 1, 1, "b", None, {}]),
    ],
    ids=lambda plain: repr(plain[:40]),
)
def test_what_another_version_sealed_is_refused(plain: bytes) -> None:
    """Genuinely sealed with our key, but not of this shape: mint anew."""
    header = SEAL._headers[0]
    key = SEAL._keys[_HEADER]
    registry = jwe.JWERegistry(algorithms=["dir", "A256GCM"])
    _refused(jwe.encrypt_compact(header, plain, key, registry=registry))


@LAW
@given(st.text("abcdefgh0123456789@", min_size=6, max_size=30))
def test_a_handle_shows_nothing(word: str) -> None:
    """Neither its text nor the bytes of its parts hold subject, parameters or session id."""
    text = SEAL.close(_handle(subject=word, session_id=word, parameters={word: word}))
    raw = [base64.urlsafe_b64decode(part + "==") for part in text.split(".")]
    assert word not in text
    assert all(word.encode() not in part for part in raw)
    assert set(orjson.loads(raw[0])) == {"alg", "enc", "kid"}
    assert NEW.reveal() not in repr(SEAL)


def test_no_two_handles_are_alike() -> None:
    """The same statement is sealed to another text each time (a fresh nonce)."""
    assert len({SEAL.close(_handle()).split(".")[2] for _ in range(200)}) == 200


@pytest.mark.parametrize("short", ["", "k", "k" * 31, "ö" * 15 + "k"])
def test_short_keys_are_refused(short: str) -> None:
    """Under 32 bytes, whichever place of the ring; and the message is silent about the key."""
    for ring in ([Secret(short)], [NEW, Secret(short)]):
        with pytest.raises(ValueError, match=r"^a sealing key has 32 bytes or more$"):
            Seal(ring)


def test_keys_of_32_bytes_do() -> None:
    """Bytes are counted, not characters."""
    seal = Seal([OLD])
    assert seal.open(seal.close(_handle())) == _handle()


def test_the_largest_handle_fits_a_request() -> None:
    """The most parameters that a mint admits can be shown again."""
    size = MOST_PARAMETERS - len(orjson.dumps({"x": ""}))
    text = SEAL.close(_handle(parameters={"x": "y" * size}))
    assert len(text) <= MOST_HANDLE - 2048
    assert SEAL.open(text).parameters == {"x": "y" * size}


def _grant(bound: dict[str, JSON], parameters: dict[str, JSON], unique: str = "u") -> Grant:
    return Grant(
        profile="transactions",
        caller=Caller("shop-users", "zoë@shop.example", {}),
        parameters=parameters,
        settings={},
        bound=bound,
        facts=Facts(NOW, unique, "", "", "", ""),
    )


def test_a_chain_keeps_its_name_beginning_and_person() -> None:
    """The first link says what the grant says, and its chain is named after it; the next has a
    name of its own, new instants, and all else the same."""
    grant = _grant({"claims.merchant_id": "m-1"}, {"a": 1})
    soon, later = NOW + timedelta(minutes=15), NOW + timedelta(minutes=25)
    first = first_link(grant, "s1", {"a": 1}, issued_at=NOW, expires_at=soon)
    again = _grant({"claims.merchant_id": "m-1"}, {"a": 1}, unique="v")
    second = next_link(first, again, "s2", issued_at=soon, expires_at=later)
    said = {"bound": bound_of(grant), "parameters": {"a": 1}}
    assert first == _handle(id="u", chain="u", session_id="s1", **said)
    assert second == _handle(
        id="v", chain="u", issued_at=soon, expires_at=later, session_id="s2", **said
    )


def test_what_binds_a_chain_is_what_the_caller_gave() -> None:
    """Another value, hole or type is another digest; the order of the holes is none."""
    bounds: list[dict[str, JSON]] = [{}, {"claims.m": "1"}, {"claims.m": 1}, {"claims.n": "1"}]
    assert len({bound_of(_grant(bound, {})) for bound in bounds}) == len(bounds)
    assert bound_of(_grant({"a": 1, "b": 2}, {})) == bound_of(_grant({"b": 2, "a": 1}, {}))
