"""Secrets from files and the environment: every one that is missing is told, none is shown."""

from __future__ import annotations

import os
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
        Fault("/keys/2", "file:dir: cannot be read (Is a directory)"),
        *(locked if os.geteuid() else []),  # root reads it
        Fault("/keys/4", "file:empty: is empty"),
        Fault("/keys/5", "file:newline: is empty"),
        Fault("/keys/6", "file:binary: is not UTF-8 text; encode binary keys with base64"),
        Fault("/keys/7", "file:huge: is longer than a secret can be"),
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


def test_it_is_read_once(tmp_path: Path) -> None:
    """A secret does not change under a running configuration."""
    (tmp_path / "a").write_text("first")
    ring = Keyring([("/0", _file("a"))], tmp_path, {})
    (tmp_path / "a").write_text("second")
    assert ring.get(_file("a")) == Secret("first")
    assert "first" not in repr(vars(ring))
