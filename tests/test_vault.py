"""The vault: what is sealed opens under its own name and with a key of the ring, and else is not
there; digests and names say nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.model import Secret
from broker.state.vault import Vault

NEW, OLD, OTHER = Secret("n" * 32), Secret("o" * 40), Secret("x" * 32)
VAULT = Vault([NEW, OLD])
LAW = settings(max_examples=150, deadline=None, derandomize=True)
TEXTS = st.text(alphabet='ab":,[]\\\0\x1f é\ud800', max_size=6)
PARTS = st.lists(TEXTS, max_size=4).map(tuple)


@LAW
@given(TEXTS, st.binary(max_size=200))
def test_what_was_sealed_opens(name: str, plain: bytes) -> None:
    """Anything comes back, and no two seals of it are alike."""
    assert VAULT.open(name, VAULT.seal(name, plain)) == plain
    assert VAULT.seal(name, plain) != VAULT.seal(name, plain)


@LAW
@given(TEXTS, TEXTS)
@example("token:a", "token:b")
def test_it_opens_under_its_own_name_only(name: str, other: str) -> None:
    """Moved to another name, a sealed value is not there."""
    opened = VAULT.open(other, VAULT.seal(name, b"plain"))
    assert opened == (b"plain" if name == other else None)


@LAW
@given(st.integers(0, 36), st.integers(1, 255))
def test_a_flipped_bit_anywhere_is_noticed(position: int, mask: int) -> None:
    """No byte of it, the version and the key's id included, may be changed."""
    sealed = bytearray(VAULT.seal("name", b""))
    assert len(sealed) == 37
    sealed[position] ^= mask
    assert VAULT.open("name", bytes(sealed)) is None


@LAW
@given(st.binary(max_size=80), st.integers(0, 60))
def test_nothing_makes_it_raise(noise: bytes, length: int) -> None:
    """Noise, and a seal cut short or made longer, are not there."""
    sealed = VAULT.seal("name", b"some plain text")
    assert VAULT.open("name", noise) is None
    assert VAULT.open("name", sealed[: min(length, len(sealed) - 1)]) is None
    assert VAULT.open("name", sealed + b"\0") is None
    assert VAULT.open("name", sealed[:9] + noise) is None


def test_the_ring() -> None:
    """The newest seals, all of them open, a retired one does not; rings in another order agree."""
    by_old = Vault([OLD]).seal("name", b"plain")
    by_new = VAULT.seal("name", b"plain")
    assert by_old[1:9] != by_new[1:9]
    assert VAULT.open("name", by_old) == b"plain"
    assert Vault([NEW]).open("name", by_old) is None
    assert Vault([OLD, NEW]).open("name", by_new) == b"plain"
    assert Vault([OLD]).open("name", by_new) is None


def test_a_ring_is_replaced_in_one_piece() -> None:
    """A ring with an unusable key changes nothing; a good one takes over."""
    vault = Vault([OLD])
    sealed = vault.seal("name", b"plain")
    with pytest.raises(ValueError, match="32 bytes"):
        vault.replace([NEW, Secret("short")])
    assert vault.seal("name", b"")[1:9] == sealed[1:9]
    vault.replace([NEW, OLD])
    assert vault.seal("name", b"")[1:9] == VAULT.seal("name", b"")[1:9]
    assert vault.open("name", sealed) == b"plain"
    vault.replace([NEW])
    assert vault.open("name", sealed) is None


def test_without_a_ring_each_process_reads_itself() -> None:
    """An empty ring is a random key: two of them share nothing, one keeps it through reloads."""
    one, two = Vault([]), Vault([])
    sealed = one.seal("name", b"plain")
    assert one.open("name", sealed) == b"plain"
    assert two.open("name", sealed) is None
    assert one.name_of("a") != two.name_of("a")
    assert two.same(one.digest("a"), "a") is None
    one.replace([])
    assert one.open("name", sealed) == b"plain"
    one.replace([NEW])
    assert one.open("name", sealed) is None


@LAW
@given(PARTS, PARTS)
@example(("ab", "c"), ("a", "bc"))
@example(("a", ""), ("a",))
@example((), ("",))
@example(('a","b',), ("a", "b"))
def test_other_parts_have_another_digest_and_name(
    one: tuple[str, ...], two: tuple[str, ...]
) -> None:
    """Digests and names tell sequences apart, wherever one text ends and the next begins."""
    assert VAULT.same(VAULT.digest(*one), *two) is (one == two)
    assert (VAULT.name_of(*one) == VAULT.name_of(*two)) is (one == two)


def test_a_digest_outlives_its_key_s_reign() -> None:
    """It names its key: known again while that is in the ring, afterwards neither yes nor no."""
    digest = Vault([OLD]).digest("a", "b")
    assert VAULT.same(digest, "a", "b") is True
    assert VAULT.same(digest, "a", "c") is False
    assert Vault([NEW]).same(digest, "a", "b") is None
    kid, _, rest = digest.partition(":")
    assert (len(kid), len(rest)) == (16, 64)


@LAW
@given(st.text(max_size=90))
@example("")
@example(":")
@example("é:é")
@example("\ud800")
def test_a_digest_that_is_none(noise: str) -> None:
    """What is no digest is nobody's, without an error; nor is one with something else behind."""
    assert VAULT.same(noise, "a") is None
    kid = VAULT.digest("a").partition(":")[0]
    assert VAULT.same(f"{kid}:{noise}", "a") is False
    assert VAULT.same(VAULT.digest("a") + "0", "a") is False


def test_each_purpose_has_its_own_key() -> None:
    """Name, digest and tag of the same parts have no bytes in common, nor with those of another
    ring, and show nothing of the parts."""
    name, digest = VAULT.name_of("canary"), VAULT.digest("canary")
    (newest, older) = VAULT.tags("n", b"canary")
    texts = [
        name,
        digest.partition(":")[2],
        newest.hex(),
        older.hex(),
        Vault([OTHER]).name_of("canary"),
    ]
    assert len({text[:16] for text in texts}) == 5
    assert "canary" not in json.dumps(texts)
    assert newest == Vault([NEW]).tags("n", b"canary")[0]
    assert older == Vault([OLD]).tags("n", b"canary")[0]


@LAW
@given(TEXTS, st.binary(max_size=4), TEXTS, st.binary(max_size=4))
def test_a_tag_is_of_one_value_under_one_name(a: str, x: bytes, b: str, y: bytes) -> None:
    """The same name and value have the same tags, any others have others."""
    assert (VAULT.tags(a, x) == VAULT.tags(b, y)) is ((a, x) == (b, y))


def test_a_short_key_is_refused() -> None:
    """Under 32 bytes nothing is sealed; bytes count, not characters."""
    with pytest.raises(ValueError, match="32 bytes or more"):
        Vault([Secret("k" * 31)])
    Vault([Secret("ö" * 16)])
