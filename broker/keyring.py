"""Secrets from files and the environment, read when a configuration loads and again while it runs.

The only room that reads a secret. A secret that cannot be read is a fault of the configuration,
found before anything listens, or a reason to stay with what was read before. Values are stripped of
the newline that editors leave at the end. Must never hang on what is no file.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from broker.errors import ConfigError, Fault
from broker.files import bytes_of
from broker.kinds import SecretRef
from broker.model import Secret

_MOST = 1 << 20
"""Bytes: a key set may be long, a whole disk is a mistake."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What all references said at one time; nothing is changed by it until it is adopted."""

    values: Mapping[SecretRef, Secret]


async def _nothing() -> bool:
    return False


class Keyring:
    """Every secret that a configuration refers to, by reference; lives as long as the process."""

    def __init__(
        self, refs: Iterable[tuple[str, SecretRef]], base: Path, env: Mapping[str, str] = os.environ
    ) -> None:
        """refs: pairs of where in the configuration, and the reference; relative files are looked
        up from `base`. Raises ConfigError with every secret that cannot be read."""
        self._base = base
        self._env = env
        self._held: Mapping[SecretRef, Secret] = {}
        self.generation = 0
        """Grows when the value behind a reference changed, or was taken back."""
        self.reread: Callable[[], Awaitable[bool]] = _nothing
        """Looks at once whether anything changed, and says so. The app's to set, and to bound."""
        _ = self.adopt(self.read(refs))

    def get(self, ref: SecretRef) -> Secret:
        """The value behind a reference that the configuration has."""
        return self._held[ref]

    def read(self, refs: Iterable[tuple[str, SecretRef]]) -> Reading:
        """What all of them say now. Changes nothing, so that it may run in a thread of its own.
        Raises ConfigError with every secret that cannot be read."""
        values: dict[SecretRef, Secret] = {}
        faults: list[Fault] = []
        for at, ref in refs:
            try:
                values[ref] = self._read(ref)
            except ValueError as exc:
                faults.append(Fault(at, f"{ref.source}: {exc}"))
        if faults:
            raise ConfigError(faults)
        return Reading(values)

    def adopt(self, reading: Reading) -> list[SecretRef]:
        """From now on these are the secrets; those whose value changed. What the reading does not
        have is forgotten."""
        before, self._held = self._held, reading.values
        changed = [ref for ref, value in self._held.items() if before.get(ref, value) != value]
        self.generation += bool(changed)
        return changed

    @property
    def held(self) -> Mapping[SecretRef, Secret]:
        """What is in force, for `restore`."""
        return self._held

    def restore(self, held: Mapping[SecretRef, Secret]) -> None:
        """Takes back what was adopted since."""
        self._held = held
        self.generation += 1

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
    raw = bytes_of(path, _MOST)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text; encode binary keys with base64") from None
