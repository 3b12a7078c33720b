"""Looks after the configuration and its secrets, and puts new versions of them in force.

By what the files hold, polled: notifications miss network file systems, and the swap of a symbolic
link by which Kubernetes replaces a whole directory. What was read is compared with what is in
force, so that nothing can change between a look and the loading. A version is taken when two looks
have seen the same, so that a half-written file is none; only new secrets for upstreams, when one of
them was just refused, are taken at the first look, as what they replace stays at hand (`rollover`).
What cannot be used is told once and counted, looked at again, and the version in force stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from broker.config import digest_of_config, load
from broker.errors import ConfigError, Fault
from broker.files import bytes_of
from broker.keyring import Reading
from broker.metrics import Metrics
from broker.schedule import Clock
from broker.snapshot import Snapshot

_AGAIN_SECONDS = 10.0
"""Between two readings of a configuration that was refused: what it names may be there by now."""
_AT_ONCE_SECONDS = 1.0
"""Between two looks that an upstream's refusal asks for, and for which whoever asked waits."""

_log = structlog.get_logger("reload")


@dataclass(frozen=True, slots=True)
class _Look:
    """What the files hold. digest: of the configuration. version: None where it is in force, was
    refused a moment ago, or has faults."""

    digest: str
    in_force: bool = False
    version: tuple[Snapshot, Reading] | None = None
    faults: tuple[Fault, ...] = ()

    @property
    def key(self) -> object:
        """By which two looks are the same."""
        snapshot, reading = self.version or (None, None)
        return self.digest, snapshot and snapshot.digest, reading, self.faults


class Running(Protocol):
    """What this needs of the app."""

    clock: Clock
    metrics: Metrics

    @property
    def needs_restart(self) -> bool: ...
    @property
    def snapshot(self) -> Snapshot: ...
    def read(self, snapshot: Snapshot) -> Reading: ...
    def holds(self, reading: Reading) -> bool: ...
    def for_upstreams(self, reading: Reading) -> bool: ...
    def adopt(self, snapshot: Snapshot, reading: Reading) -> bool: ...
    def spawn(self, work: Coroutine[Any, Any, bool]) -> asyncio.Task[bool]: ...


class Watch:
    """One configuration file, and what it refers to."""

    def __init__(self, path: Path, app: Running) -> None:
        self._path = path
        self._app = app
        self._seen: object = None
        self._told: tuple[Fault, ...] = ()
        self._refused: tuple[str, object] | None = None
        self._again_at = float("-inf")
        self._looking: asyncio.Task[bool] | None = None
        self._looked = float("-inf")

    async def run(self) -> None:
        """Looks for as long as the app lives."""
        interval = self._app.snapshot.server.reload_interval.total_seconds()
        while True:
            await self._app.clock.sleep(interval)
            try:
                await self.look()
            except Exception:  # noqa: BLE001  (whatever befalls one look, the next one comes)
                _log.exception("defect")

    async def look(self) -> None:
        """One look; a version that was seen by the one before too is put in force."""
        found = await asyncio.to_thread(self._look)
        self._app.metrics.stale(self._app.needs_restart or not found.in_force)
        settled, self._seen = found.key == self._seen, found.key
        if found.in_force:
            self._told, self._refused = (), None
        elif settled and found.faults:
            self._refuse(found, found.faults)
        elif settled and found.version and not self._is_refused(found):
            self._take(found)

    async def now(self) -> bool:
        """Looks at once, as an upstream refused what we showed it, and takes new secrets of the
        configuration in force. Whether a secret changed."""
        if self._looking is None or self._looking.done():
            if self._app.clock.monotonic() - self._looked < _AT_ONCE_SECONDS:
                return False
            self._looked = self._app.clock.monotonic()
            self._looking = self._app.spawn(self._at_once())
        try:
            async with asyncio.timeout(_AT_ONCE_SECONDS):
                return await asyncio.shield(self._looking)
        except TimeoutError:
            return False

    async def _at_once(self) -> bool:
        try:
            return await self._taken_at_once()
        except Exception:  # noqa: BLE001  (whatever befalls it, the refusal is what the caller is told)
            _log.exception("defect")
            return False

    async def _taken_at_once(self) -> bool:
        found = await asyncio.to_thread(self._look)
        if found.version is None or self._is_refused(found):
            return False
        snapshot, reading = found.version
        if snapshot is not self._app.snapshot or not self._app.for_upstreams(reading):
            return False  # which two looks have to agree on
        return self._take(found)

    def _is_refused(self, found: _Look) -> bool:
        refused = self._refused is not None and found.key == self._refused[1]
        return refused and self._app.clock.monotonic() < self._again_at

    def _look(self) -> _Look:
        """For another thread: changes nothing."""
        current = self._app.snapshot
        digest = digest_of_files(self._path, current)
        refused = self._refused is not None and digest == self._refused[0] != current.digest
        if refused and self._app.clock.monotonic() < self._again_at:
            return _Look(digest)
        try:
            snapshot = current if digest == current.digest else load(self._path)
            reading = self._app.read(snapshot)
        except ConfigError as exc:
            return _Look(digest, faults=exc.faults)
        if snapshot is current and self._app.holds(reading):
            return _Look(digest, in_force=True)
        return _Look(digest, version=(snapshot, reading))

    def _take(self, found: _Look) -> bool:
        """Puts a version in force. Whether a secret is another one now."""
        app = self._app
        assert found.version is not None  # noqa: S101  (who calls has looked)
        try:
            changed = app.adopt(*found.version)
        except ConfigError as exc:
            self._refuse(found, exc.faults)
            return False
        self._seen, self._told, self._refused = None, (), None
        app.metrics.reloaded("ok")
        app.metrics.stale(app.needs_restart)
        _log.info("reloaded", digest=app.snapshot.digest, secrets_changed=changed)
        return changed

    def _refuse(self, found: _Look, faults: tuple[Fault, ...]) -> None:
        """Tells of it, unless it was told already; and lets that version be for a while."""
        app = self._app
        self._refused = found.digest, found.key
        self._again_at = app.clock.monotonic() + _AGAIN_SECONDS
        if faults == self._told:
            return
        self._told = faults
        app.metrics.reloaded("refused")
        told = [f"{fault.pointer or '/'}: {fault.reason}" for fault in faults[:20]]
        _log.error("reload_refused", faults=told, in_force=app.snapshot.digest)


def digest_of_files(path: Path, current: Snapshot) -> str:
    """Of what a configuration's file holds now, and the presets beside it that `current` has; ""
    where it cannot be read."""
    try:
        return digest_of_config(bytes_of(path), [bytes_of(one).decode() for one in current.files])
    except ValueError:
        return ""
