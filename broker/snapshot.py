"""One loaded configuration as values: what requests carry inward, whatever is loaded since.

Frozen; made by `config` only. Secrets are references here, resolved by `keyring`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from limits import RateLimitItem

from broker.declared import Checked
from broker.faults import pointer
from broker.file import CallerEntry, CredentialEntry, Rotation, Server, StateEntry
from broker.kinds import SecretRef
from broker.model import JSON
from broker.presets import Preset

ANONYMOUS = "anonymous"
"""The caller's name where `insecure_anonymous` lets everybody in."""


@dataclass(frozen=True, slots=True)
class OpenSetting:
    """A setting with holes: their names, found once, and the checker of what it becomes.

    not_for_pages: of the holes, those that a page may not leave without a value, as what fills them
    is a trusted caller's to say.
    """

    name: str
    template: JSON
    holes: tuple[str, ...]
    not_for_pages: tuple[str, ...]
    checker: Checked


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """A reviewed description of what may be minted, by whom, from which origins; ready to use.

    account: one for all profiles that call the same address of the same preset with the same
    credential: whose sessions the upstream names are.
    fixed: settings without holes. open_settings: those with.
    secrets: by setting, newest first.
    instants: what `${now+…}` holes add, by hole. min_remaining: seconds; None is a share of life.
    keeps_parameters: does a handle need them, for a successor or a follow-up call?
    """

    name: str
    preset: Preset
    base_url: str
    account: str
    fixed: Mapping[str, JSON]
    open_settings: tuple[OpenSetting, ...]
    instants: Mapping[str, timedelta]
    secrets: Mapping[str, tuple[SecretRef, ...]]
    credential: str | None
    callers: frozenset[str]
    trusted: frozenset[str]
    origins: frozenset[str]
    require: Mapping[str, frozenset[str]]
    parameters: Checked
    trusted_parameters: frozenset[str]
    keeps_parameters: bool
    rotation: Rotation | None
    min_remaining: float | None
    rate_limit: RateLimitItem | None
    action_limit: RateLimitItem
    upstream_limit: RateLimitItem | None

    def key_of(self, session_id: str) -> str:
        """A name for an upstream's session that no session of another account has."""
        return f"{self.account} {session_id}"

    @property
    def longest(self) -> float:
        """Seconds that a session can live at the most."""
        expiry = self.preset.file.answer.expiry
        return self.fixed[expiry.lifetime] if expiry.lifetime else expiry.most.total_seconds()

    @property
    def gives_handles(self) -> bool:
        """Is there anything that a caller could do with a session later?"""
        file = self.preset.file
        return bool(self.rotation or file.actions or file.revoke)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """One loaded configuration. A request keeps the one it began with.

    files: what it was read from besides its own file and its secrets."""

    digest: str
    server: Server
    outbound_ca: str | None
    max_connections: int
    idle_seconds: float
    calls_at_once: int
    state: StateEntry | None
    keys: tuple[SecretRef, ...]
    callers: Mapping[str, CallerEntry]
    anonymous: bool
    credentials: Mapping[str, CredentialEntry]
    profiles: Mapping[str, Profile]
    files: tuple[Path, ...]


def secret_refs(snapshot: Snapshot) -> Iterator[tuple[str, SecretRef]]:
    """Every secret that the configuration refers to, with where it does."""
    if snapshot.state is not None:
        yield "/state/url", snapshot.state.url
    for index, ref in enumerate(snapshot.keys):
        yield pointer("keys", index), ref
    for section, entries in (("callers", snapshot.callers), ("credentials", snapshot.credentials)):
        for name, entry in entries.items():
            for key in type(entry).model_fields:
                value = getattr(entry, key)
                for ref in value if isinstance(value, list) else [value]:
                    if isinstance(ref, SecretRef):
                        yield pointer(section, name, key), ref
    for name, profile in snapshot.profiles.items():
        for key, refs in profile.secrets.items():
            for ref in refs:
                yield pointer("profiles", name, key), ref
