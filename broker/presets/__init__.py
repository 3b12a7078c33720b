"""Presets: one data file for each upstream, and what reads it.

A new upstream is a new file, in the words of `vocabulary`. Nothing here talks to the network or
knows a request.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from broker.declared import Checked
from broker.errors import ConfigError, Fault
from broker.faults import faults_of
from broker.files import bytes_of
from broker.presets.vocabulary import PresetFile
from broker.strict import Unreadable, read_yaml
from broker.urls import server_of


class Preset:
    """A preset file with its checkers built: what `config` and `upstreams` work with."""

    __slots__ = ("actions", "file", "name", "settings", "text")

    def __init__(self, name: str, file: PresetFile, text: str = "") -> None:
        self.name = name
        self.text = text
        self.file = file
        self.settings = Checked(file.settings, holes=True)
        self.actions = {label: Checked(action.data) for label, action in file.actions.items()}


def parse_preset(name: str, text: str) -> Preset:
    """Raises ConfigError with every fault."""
    try:
        return Preset(name, PresetFile.model_validate(read_yaml(text)), text)
    except Unreadable as exc:
        raise ConfigError([Fault("", exc.reason)]) from None
    except ValidationError as exc:
        raise ConfigError(faults_of(exc)) from None


def packaged() -> list[str]:
    """The names of the presets that come with the package: `nmi`, `checkout/3ds`."""
    root = Path(str(resources.files(__package__)))
    return sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml"))


def load_preset(name: str, base: Path) -> Preset:
    """A packaged preset, or, for a name that begins with `.` or `/`, a file (relative to `base`).

    Raises ConfigError.
    """
    if name.startswith((".", "/")):
        path = base / name
    elif name in packaged():
        path = Path(str(resources.files(__package__))) / f"{name}.yaml"
    else:
        known = ", ".join(packaged())
        raise ConfigError([Fault("", f"no such preset; there are: {known}, or ./FILE.yaml")])
    try:
        return parse_preset(name, bytes_of(path).decode())
    except ValueError:  # not UTF-8, or a path that cannot be one
        raise ConfigError([Fault("", "the preset file cannot be read")]) from None


def environment_of(file: PresetFile, url: str, kind: str = "base_url") -> tuple[str, str] | None:
    """The environment that an address belongs to, and the account prefix in it ("" where there is
    none); None for an address of ours. kind: base_url or token_url."""
    for name, environment in file.environments.items():
        pattern = environment.base_url if kind == "base_url" else environment.token_url
        if found := re.fullmatch(pattern, server_of(url)):
            return name, found.groupdict().get("prefix") or ""
    return None
