"""Looks after the configuration and its secrets, and puts new versions of them in force.

By the digest of what the files hold, polled: notifications miss network file systems, and the swap
of a symbolic link by which Kubernetes replaces a whole directory. A version is read when two looks
have seen the same, so that a half-written file is none, and must still be the same afterwards. What
cannot be used is told once and counted, and the version in force stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any, Protocol

import structlog

from broker.config import digest_of_config, load
from broker.errors import ConfigError
from broker.keyring import Reading
from broker.metrics import Metrics
from broker.schedule import Clock
from broker.snapshot import Snapshot

_MOST = 4 << 20
"""Bytes of one file that are looked at: no configuration is as long."""
_AT_ONCE_SECONDS = 1.0
"""Between two looks that an upstream's refusal asks for, and for which whoever asked waits."""

_log = structlog.get_logger("reload")


class Running(Protocol):
    """What this needs of the app."""

    clock: Clock
    metrics: Metrics

    @property
    def snapshot(self) -> Snapshot: ...
    def watched(self) -> list[Path]: ...
    def read(self, snapshot: Snapshot) -> Reading: ...
    def adopt(self, snapshot: Snapshot, reading: Reading) -> bool: ...
    def spawn(self, work: Coroutine[Any, Any, bool]) -> asyncio.Task[bool]: ...


class Watch:
    """One configuration file, and what it refers to."""

    def __init__(self, path: Path, files: bytes, app: Running) -> None:
        """files: the digest of `app.watched()`, taken before they were read."""
        self._path = path
        self._app = app
        self._in_force = _joint(app.snapshot.digest, files)
        self._seen = self._refused = b""
        self._applying: asyncio.Task[bool] | None = None
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
        digest = await asyncio.to_thread(self._digest_now)
        settled, self._seen = digest == self._seen, digest
        self._app.metrics.stale(digest != self._in_force)
        if settled and digest not in (self._in_force, self._refused):
            await self._apply(digest)

    async def now(self) -> bool:
        """Looks at once, as an upstream refused what we showed it. Whether a secret changed."""
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
        digest = await asyncio.to_thread(self._digest_now)
        if digest in (self._in_force, self._refused):
            return False
        return await self._apply(digest)

    async def _apply(self, digest: bytes) -> bool:
        """Puts a version in force, unless one is being put already: then waits for that."""
        if self._applying is None or self._applying.done():
            self._applying = self._app.spawn(self._applied(digest))
        return await asyncio.shield(self._applying)

    async def _applied(self, digest: bytes) -> bool:
        """Loads the version, in another thread, and hands it to the app. Whether a secret is
        another one now."""
        app = self._app
        try:
            snapshot, reading = await asyncio.to_thread(self._load)
            if await asyncio.to_thread(self._digest_now) != digest:
                return False  # it is being written to: a later look will see it settled
            changed = app.adopt(snapshot, reading)
        except ConfigError as exc:
            self._refused = digest
            app.metrics.reloaded("refused")
            faults = [f"{fault.pointer or '/'}: {fault.reason}" for fault in exc.faults[:20]]
            _log.error("reload_refused", faults=faults, in_force=app.snapshot.digest)
            return False
        self._in_force = self._seen = await asyncio.to_thread(self._digest_now)
        self._refused = b""
        app.metrics.reloaded("ok")
        app.metrics.stale(is_stale=False)
        _log.info("reloaded", digest=app.snapshot.digest, secrets_changed=changed)
        return changed

    def _load(self) -> tuple[Snapshot, Reading]:
        snapshot = load(self._path)
        return snapshot, self._app.read(snapshot)

    def _digest_now(self) -> bytes:
        raw = _bytes_of(self._path)
        digest = "" if raw is None else digest_of_config(raw)
        return _joint(digest, digest_of(self._app.watched()))


def _joint(config: str, files: bytes) -> bytes:
    return config.encode() + files


def digest_of(paths: Iterable[Path]) -> bytes:
    """Of what the files hold, the missing ones as missing; whatever they are, without waiting."""
    found = hashlib.sha256()
    for path in paths:
        raw = _bytes_of(path)
        told = b"-" if raw is None else hashlib.sha256(raw).digest()
        found.update(os.fsencode(path) + b"\0" + told)
    return found.digest()


def _bytes_of(path: Path) -> bytes | None:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123  (of a descriptor)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return file.read(_MOST)
    return None
