"""Secrets from files and the environment: every one that is missing is told, none is shown."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.declared import SecretRef
from broker.errors import ConfigError, Fault
from broker.keyring import Keyring
from broker.model import Secret

CANARY = "c4nary"


def _file(path: str) -> SecretRef:
    return SecretRef(file=path)


def _held(base: Path, content: bytes) -> Secret:
    (base / "secret").write_bytes(content)
    return Keyring([("/keys/0", _file("secret"))], base, {}).get(_file("secret"))


def test_every_fault_at_once(tmp_path: Path) -> None:
    """Missing, a directory, not permitted, empty, binary, huge, a path that is none, unset, empty
    and undecodable variables: all are told with their places, no value is."""
    (tmp_path / "good").write_text(CANARY)
    (tmp_path / "dir").mkdir()
    (tmp_path / "locked").write_text(CANARY)
    (tmp_path / "locked").chmod(0)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "newline").write_bytes(b"\r\n\n")
    (tmp_path / "binary").write_bytes(CANARY.encode() + b"\xff\x00")
    (tmp_path / "huge").write_bytes(CANARY.encode() * 200_000)
    env = {"EMPTY": "", "BINARY": CANARY + "\udcff", "GOOD": CANARY}
    refs = [_file(name) for name in ("good", "gone", "dir", "locked", "empty", "newline", "binary")]
    refs += [_file("huge"), _file("a\0b")]
    refs += [SecretRef(env=name) for name in ("GOOD", "UNSET", "EMPTY", "BINARY")]
    with pytest.raises(ConfigError) as caught:
        Keyring([(f"/keys/{i}", ref) for i, ref in enumerate(refs)], tmp_path, env)
    locked = [Fault("/keys/3", "file:locked: cannot be read (Permission denied)")]
    assert list(caught.value.faults) == [
        Fault("/keys/1", "file:gone: cannot be read (No such file or directory)"),
        Fault("/keys/2", "file:dir: is no regular file"),
        *(locked if os.geteuid() else []),  # root reads it
        Fault("/keys/4", "file:empty: is empty"),
        Fault("/keys/5", "file:newline: is empty"),
        Fault("/keys/6", "file:binary: is not UTF-8 text; encode binary keys with base64"),
        Fault("/keys/7", "file:huge: is longer than 1048576 bytes"),
        Fault("/keys/8", "file:a\0b: embedded null byte"),
        Fault("/keys/10", "env:UNSET: this variable is not set"),
        Fault("/keys/11", "env:EMPTY: is empty"),
        Fault("/keys/12", "env:BINARY: is not UTF-8 text; encode binary keys with base64"),
    ]
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"abc", "abc"),
        (b"abc\n", "abc"),
        (b"abc\r\n", "abc"),
        (b" a b \n", " a b "),
        (b"a\nb\n", "a\nb"),
        (b"+/=%&?#:@ ;", "+/=%&?#:@ ;"),
        (b"%41+%2B", "%41+%2B"),
        ("pässwörd-日本-😀\n".encode(), "pässwörd-日本-😀"),
    ],
)
def test_a_secret_is_what_the_file_says(tmp_path: Path, content: bytes, expected: str) -> None:
    """To the byte, but for the newline that editors leave at the end."""
    assert _held(tmp_path, content) == Secret(expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1))
def test_files_and_variables_say_the_same(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    """Any text without line ends is taken whole from either."""
    base = tmp_path_factory.getbasetemp()
    assert _held(base, text.encode()).reveal() == text
    ref = SecretRef(env="KEY")
    assert Keyring([("/k", ref)], base, {"KEY": text}).get(ref).reveal() == text


def test_relative_paths_are_the_configurations(tmp_path: Path) -> None:
    """A relative file is looked up beside the configuration, an absolute one where it says."""
    (tmp_path / "a").write_text("beside")
    relative, absolute = _file("a"), _file(str(tmp_path / "a"))
    ring = Keyring([("/0", relative), ("/1", absolute)], tmp_path, {})
    assert ring.get(relative) == ring.get(absolute) == Secret("beside")


@pytest.mark.parametrize("kind", ["fifo", "device", "socket", "directory"])
def test_what_is_no_file_hangs_nobody(tmp_path: Path, kind: str) -> None:
    """A FIFO without a writer, a device that never ends and a socket are told at once, and nothing
    stays open."""
    path = tmp_path / "x"
    before = os.listdir("/proc/self/fd")
    with socket.socket(socket.AF_UNIX) as unix:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            unix.bind(str(path))
        elif kind == "directory":
            path.mkdir()
        else:
            path = Path("/dev/zero")
        with pytest.raises(ConfigError) as caught:
            Keyring([("/keys/0", _file(str(path)))], tmp_path, {})
    reason = "cannot be read (No such device or address)" if kind == "socket" else ""
    told = f"file:{path}: {reason or 'is no regular file'}"
    assert caught.value.faults == (Fault("/keys/0", told),)
    assert len(os.listdir("/proc/self/fd")) == len(before)


class Ring:
    """A keyring over two files, `a` and `b`, and a variable."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.env = {"V": "v1"}
        self.refs = {"a": _file("a"), "b": _file("b"), "v": SecretRef(env="V")}
        for name in ("a", "b"):
            self.write(name, f"{name}1")
        self.ring = Keyring(self.pairs(), base, self.env)

    def pairs(self, names: str = "abv") -> list[tuple[str, SecretRef]]:
        return [(f"/{name}", self.refs[name]) for name in names]

    def write(self, name: str, text: str) -> None:
        (self.base / name).write_text(text)

    def renew(self, names: str = "abv") -> list[SecretRef]:
        return self.ring.adopt(self.ring.read(self.pairs(names)))

    def held(self, name: str) -> str:
        return self.ring.get(self.refs[name]).reveal()


def test_a_replaced_value_is_new_when_it_is_adopted(tmp_path: Path) -> None:
    """Reading changes nothing; adopting gives what changed, lets it take the place of what was
    there, of which nothing is left, and lets the generation grow; where nothing changed, nothing
    does."""
    one = Ring(tmp_path)
    before = one.ring.generation
    assert (one.renew(), one.ring.generation) == ([], before)
    one.write("a", "a2\n")
    one.env["V"] = "v2"
    reading = one.ring.read(one.pairs())
    assert (one.held("a"), one.ring.generation) == ("a1", before)
    assert one.ring.held != reading.values
    assert one.ring.adopt(reading) == [one.refs["a"], one.refs["v"]]
    assert (one.ring.generation, one.ring.held) == (before + 1, reading.values)
    assert [one.held(name) for name in "abv"] == ["a2", "b1", "v2"]
    assert (one.renew(), one.ring.generation) == ([], before + 1)
    assert Secret("a1") not in one.ring.held.values()
    assert "a2" not in repr(vars(one.ring)) + repr(reading)


def test_an_unreadable_secret_changes_nothing(tmp_path: Path) -> None:
    """Every fault is told, and what was read before stays, whole."""
    one = Ring(tmp_path)
    one.write("a", "")
    (tmp_path / "b").unlink()
    one.env["V"] = "v2"
    with pytest.raises(ConfigError) as caught:
        one.renew()
    assert [fault.pointer for fault in caught.value.faults] == ["/a", "/b"]
    assert (one.held("a"), one.held("v"), one.ring.generation) == ("a1", "v1", 0)


def test_what_is_not_referred_to_is_forgotten(tmp_path: Path) -> None:
    """A reference that a new configuration does not have is gone, and new when it comes back."""
    one = Ring(tmp_path)
    assert one.renew("bv") == []
    with pytest.raises(KeyError):
        one.ring.get(one.refs["a"])
    one.write("a", "a2")
    assert (one.renew(), one.held("a")) == ([], "a2")


def test_what_was_adopted_can_be_taken_back(tmp_path: Path) -> None:
    """`restore` puts back what was in force, references included, and whoever remembers a
    generation looks again."""
    one = Ring(tmp_path)
    held = one.ring.held
    one.write("a", "a2")
    one.renew("a")
    seen = one.ring.generation
    one.ring.restore(held)
    assert (one.held("a"), one.held("b")) == ("a1", "b1")
    assert one.ring.generation > seen


def test_by_itself_it_rereads_nothing(tmp_path: Path) -> None:
    """Without an app that watches the files, `reread` says that nothing changed."""
    one = Ring(tmp_path)
    one.write("a", "a2")
    assert asyncio.run(_awaited(one.ring)) is False
    assert one.held("a") == "a1"


async def _awaited(ring: Keyring) -> bool:
    return await ring.reread()
