"""What only the secrets themselves can show: too short to keep anything, or of another environment.

Asked when a configuration is loaded, before anything is made of it; every fault is told at once,
with its place and without a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from broker.errors import ConfigError, Fault
from broker.faults import pointer
from broker.keyring import Keyring
from broker.model import Secret
from broker.presets import environment_of
from broker.snapshot import Profile, Snapshot

_SEAL_BYTES = 32
_SIGNATURE_BYTES = 16


def check_keys(snapshot: Snapshot, keyring: Keyring) -> None:
    """What only the secrets themselves can show. Raises ConfigError with every fault."""
    faults = [
        Fault(f"/keys/{index}", f"{ref.source}: a sealing key has {_SEAL_BYTES} bytes or more")
        for index, ref in enumerate(snapshot.keys)
        if _length(keyring.get(ref)) < _SEAL_BYTES
    ]
    for profile in snapshot.profiles.values():
        for setting, source, reason in _unfit_secrets(profile, keyring):
            at = pointer("profiles", profile.name, setting)
            faults.append(Fault(at, f"{source}: {reason}"))
    if faults:
        raise ConfigError(faults)


def _unfit_secrets(profile: Profile, keyring: Keyring) -> Iterator[tuple[str, str, str]]:
    """Keys of another environment than base_url's, and signature keys that can be guessed."""
    file = profile.preset.file
    found = environment_of(file, profile.base_url)
    for setting, pattern in (file.environments[found[0]].secrets if found else {}).items():
        for ref in profile.secrets.get(setting, ()):
            if found and not re.search(pattern, keyring.get(ref).reveal()):
                yield setting, ref.source, f"is no key of {found[0]}, where base_url leads"
    if file.callbacks and file.callbacks.signature:
        setting = file.callbacks.signature.secret
        for ref in profile.secrets.get(setting, ()):
            if _length(keyring.get(ref)) < _SIGNATURE_BYTES:
                reason = f"a signature key has {_SIGNATURE_BYTES} bytes or more"
                yield setting, ref.source, reason


def _length(secret: Secret) -> int:
    return len(secret.reveal().encode())
