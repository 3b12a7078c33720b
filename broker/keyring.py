"""Secrets from files and the environment: read once at load, handed out as `Secret`s.

The only room that reads a secret. A secret that cannot be read is a fault of the configuration,
found before anything listens. Values are stripped of the newline that editors leave at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from broker.errors import ConfigError, Fault
from broker.kinds import SecretRef
from broker.model import Secret

_MOST = 1 << 20
"""Bytes: a key set may be long, a whole disk is a mistake."""


class Keyring:
    """Every secret that a configuration refers to, by reference."""

    def __init__(
        self, refs: Iterable[tuple[str, SecretRef]], base: Path, env: Mapping[str, str] = os.environ
    ) -> None:
        """refs: pairs of where in the configuration, and the reference; relative files are looked
        up from `base`. Raises ConfigError with every secret that cannot be read."""
        self._base = base
        self._env = env
        self._held: dict[SecretRef, Secret] = {}
        faults: list[Fault] = []
        for at, ref in refs:
            try:
                self._held[ref] = self._read(ref)
            except ValueError as exc:
                faults.append(Fault(at, f"{ref.source}: {exc}"))
        if faults:
            raise ConfigError(faults)

    def get(self, ref: SecretRef) -> Secret:
        """The secret behind a reference that the configuration has."""
        return self._held[ref]

    def _read(self, ref: SecretRef) -> Secret:
        if ref.env is not None:
            text = self._env.get(ref.env)
            if text is None:
                raise ValueError("this variable is not set")
            if not _is_unicode(text):
                raise ValueError("is not UTF-8 text; encode binary keys with base64")
        else:
            assert ref.file is not None  # noqa: S101  (SecretRef has exactly one)
            text = _text_of(self._base / ref.file)
        text = text.rstrip("\r\n")
        if not text:
            raise ValueError("is empty")
        return Secret(text)


def _is_unicode(text: str) -> bool:
    """No bytes that the environment could only hand over as lone surrogates (PEP 383)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST + 1)
    except OSError as exc:
        raise ValueError(f"cannot be read ({exc.strerror})") from None
    if len(raw) > _MOST:
        raise ValueError("is longer than a secret can be")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text; encode binary keys with base64") from None
