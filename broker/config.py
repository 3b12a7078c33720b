"""Bytes to one frozen `Snapshot`, or every fault at once. No network, and no secret is read here.

The file is checked whole before anything is used, so that a configuration error always beats the
connectivity failure that would otherwise mask it. Unknown keys are refused, because a typo could
widen access. What the file says is told by `file.py`; what it means, across its parts, is here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from broker.errors import ConfigError, Fault
from broker.faults import faults_of, pointer, secret_hint
from broker.file import (
    CALLERS,
    CallerEntry,
    ConfigFile,
    CredentialEntry,
    ProfileEntry,
)
from broker.files import bytes_of
from broker.presets import Preset, load_preset
from broker.presets.shorthand import spelt_out
from broker.profiles import make_profile, read_settings
from broker.snapshot import ANONYMOUS, Profile, Snapshot
from broker.strict import Unreadable, read_yaml
from broker.together import Together
from broker.urls import plain_http

M = TypeVar("M", bound=BaseModel)


def load(path: Path) -> Snapshot:
    """The file at `path`. Raises ConfigError with every fault."""
    try:
        raw = bytes_of(path)
    except ValueError as exc:
        raise ConfigError([Fault("", str(exc))]) from None
    return parse(raw, path.parent)


def parse(raw: bytes, base: Path) -> Snapshot:
    """A configuration's bytes; relative preset files are looked up from `base`.

    Raises ConfigError with every fault.
    """
    try:
        tree = read_yaml(raw.decode())
    except UnicodeDecodeError:
        raise ConfigError([Fault("", "is not UTF-8")]) from None
    except Unreadable as exc:
        where = f"line {exc.line}: " if exc.line else ""
        raise ConfigError([Fault("", where + exc.reason)]) from None
    if not isinstance(tree, dict):
        raise ConfigError([Fault("", "must be a mapping with `callers` and `profiles`")])
    return _Reading(tree, base).snapshot(raw)


def digest_of_config(raw: bytes, presets: Iterable[str]) -> str:
    """The identity of a configuration, as metrics and `/version` tell it: of its file, and of the
    texts of the presets beside it."""
    found = hashlib.sha256(raw)
    for text in presets:
        found.update(hashlib.sha256(text.encode()).digest())
    return found.hexdigest()[:12]


class _Reading:
    """One pass over one file: collects faults, and gives a Snapshot if there were none."""

    def __init__(self, tree: dict[str, Any], base: Path) -> None:
        self.tree = tree
        self.base = base
        self.presets: dict[str, Preset] = {}
        self.faults: list[Fault] = []

    def snapshot(self, raw: bytes) -> Snapshot:
        sections = ("callers", "credentials", "profiles")
        rest = {name: value for name, value in self.tree.items() if name not in sections}
        top = self._model(ConfigFile, rest, "") or ConfigFile()
        callers = dict(self._callers())
        credentials = dict(self._each("credentials", CredentialEntry))
        profiles = dict(self._profiles())
        self._people(top)
        self._plain_http(top)
        Together(self.tree, callers, credentials, profiles, self.faults).check(top)
        if self.faults:
            raise ConfigError(self.faults)
        own = [(n, one) for n, one in self.presets.items() if n.startswith((".", "/"))]
        return Snapshot(
            digest=digest_of_config(raw, [one.text for _, one in own]),
            server=top.server,
            outbound_ca=top.outbound.ca_file,
            max_connections=top.outbound.max_connections,
            idle_seconds=top.outbound.idle_timeout.total_seconds(),
            calls_at_once=top.outbound.max_in_flight,
            state=top.state,
            keys=tuple(top.keys),
            callers=callers,
            anonymous=top.insecure_anonymous,
            credentials=credentials,
            profiles=profiles,
            files=tuple(self.base / name for name, _ in own),
        )

    def fault(self, at: str, reason: str) -> None:
        self.faults.append(Fault(at, reason))

    def _model(self, kind: type[M], tree: Any, at: str) -> M | None:
        try:
            return kind.model_validate(tree)
        except ValidationError as exc:
            names = [n for n, f in kind.model_fields.items() if "SecretRef" in str(f.annotation)]
            self.faults += secret_hint(faults_of(exc, at), names)
            return None

    def _names(self, section: str) -> set[str]:
        tree = self.tree.get(section)
        return set(tree) if isinstance(tree, dict) else set()

    def _named(self, section: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """The section's entries as they stand, without complaint."""
        tree = self.tree.get(section)
        for name, entry in tree.items() if isinstance(tree, dict) else ():
            if isinstance(entry, dict):
                yield name, pointer(section, name), entry

    def _mapping(self, section: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        tree = self.tree.get(section)
        if tree is None:
            return
        if not isinstance(tree, dict):
            self.fault(f"/{section}", "must be a mapping from names to entries")
            return
        for name, entry in tree.items():
            at = pointer(section, name)
            if not (name.isascii() and name.replace("-", "").isalnum() and len(name) <= 63):
                self.fault(at, "a name has letters, digits and hyphens, 63 at the most")
            elif name == ANONYMOUS:
                self.fault(at, "this name is taken")
            elif not isinstance(entry, dict):
                self.fault(at, "must be a mapping")
            else:
                yield name, at, entry

    def _each(self, section: str, kind: type[M]) -> Iterator[tuple[str, M]]:
        for name, at, entry in self._mapping(section):
            if (found := self._model(kind, entry, at)) is not None:
                yield name, found

    def _callers(self) -> Iterator[tuple[str, CallerEntry]]:
        for name, at, entry in self._mapping("callers"):
            kind = CALLERS.get(str(entry.get("type")))
            if kind is None:
                self.fault(f"{at}/type", f"must be one of {', '.join(CALLERS)}")
            elif (found := self._model(kind, entry, at)) is not None:
                yield name, found

    def _profiles(self) -> Iterator[tuple[str, Profile]]:
        for name, at, entry in self._mapping("profiles"):
            common = {k: v for k, v in entry.items() if k in ProfileEntry.model_fields}
            settings = {k: v for k, v in entry.items() if k not in common}
            preset = self._preset(at, entry.get("preset"))
            parameters = common.get("parameters")
            if preset is not None and isinstance(parameters, dict):
                common["parameters"] = self._spelt_out(at, parameters, preset)
            found = self._model(ProfileEntry, common, at)
            if preset is None:
                continue
            read, faults = read_settings(at, preset, settings)
            self.faults += faults
            if found is not None and not faults:
                yield name, make_profile(name, at, found, preset, read, self.fault)

    def _spelt_out(self, at: str, parameters: dict[str, Any], preset: Preset) -> dict[str, Any]:
        """The parameters with `like: SETTING` as that setting's declaration."""
        declared = preset.file.settings
        known = {name: one.model_dump(exclude_unset=True) for name, one in declared.items()}
        found = {}
        for name, one in parameters.items():
            like = one.get("like") if isinstance(one, dict) else None
            if like is not None and not (isinstance(like, str) and like in known):
                self.fault(at + pointer("parameters", name, "like"), "is no setting of the preset")
            elif _observes(one):
                self.fault(
                    at + pointer("parameters", name), "what is observed is a preset's to say"
                )
            else:
                found[name] = spelt_out(one, known)
        return found

    def _preset(self, at: str, name: Any) -> Preset | None:
        if not isinstance(name, str):
            return None
        if name in self.presets:
            return self.presets[name]
        try:
            preset = load_preset(name, self.base)
        except ConfigError as exc:
            self.faults += [Fault(f"{at}/preset{f.pointer}", f.reason) for f in exc.faults]
            return None
        for taken in sorted(preset.file.settings.keys() & ProfileEntry.model_fields.keys()):
            self.fault(f"{at}/preset", f"its setting {taken!r} has the name of a profile's own key")
        self.presets[name] = preset
        return preset

    def _people(self, top: ConfigFile) -> None:
        """Somebody may ask, for something, and only people that there are."""
        anonymous = bool(self.tree.get("insecure_anonymous"))
        if not self.tree.get("callers") and not anonymous:
            self.fault(
                "/callers",
                "nobody could ask for anything; add a caller, or insecure_anonymous: true to let "
                "everybody who can reach the port mint",
            )
        if not self.tree.get("profiles"):
            self.fault("/profiles", "there is nothing to mint; add a profile")
        known = self._names("callers") | ({ANONYMOUS} if top.insecure_anonymous else set())
        for name, at, entry in self._named("profiles"):
            allow = entry.get("allow")
            callers = allow.get("callers") if isinstance(allow, dict) else None
            for one in callers if isinstance(callers, list) else []:
                if isinstance(one, str) and one not in known:
                    self.fault(f"{at}/allow/callers", f"there is no caller {one!r} under callers")
            used = entry.get("credential")
            if isinstance(used, str) and used not in self._names("credentials"):
                self.fault(f"{at}/credential", f"there is no {used!r} under credentials ({name})")

    def _plain_http(self, top: ConfigFile) -> None:
        keys = ("url", "jwks_url", "issuer", "token_url", "base_url")
        for section in ("callers", "credentials", "profiles"):
            for _, at, entry in self._named(section):
                for key in keys:
                    url = entry.get(key)
                    if isinstance(url, str) and plain_http(url, top.outbound.insecure_http_hosts):
                        self.fault(
                            f"{at}/{key}",
                            "a secret or token would go over plain http; use https, or name the "
                            "host in outbound.insecure_http_hosts",
                        )


def _observes(declared: Any) -> bool:
    """Does a declaration as it stands say `observed`, at any depth?"""
    if not isinstance(declared, dict):
        return False
    variants = declared.get("variants")
    groups = [
        declared.get("properties"),
        *(variants.values() if isinstance(variants, dict) else ()),
    ]
    inner = [one for group in groups if isinstance(group, dict) for one in group.values()]
    return "observed" in declared or any(map(_observes, [*inner, declared.get("items")]))
