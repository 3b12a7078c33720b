"""The composition root: what lives as long as the process, and the configuration in force on it.

Nothing but this and `assembly` knows the concrete classes. A request is answered by the assembly
that was in force when it came; a new one takes its place in one assignment.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Coroutine, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import structlog
from starlette.types import Receive, Scope, Send

from broker import __version__
from broker.assembly import Assembly, Ground
from broker.audit import AuditLog
from broker.errors import ConfigError, Fault
from broker.fitness import check_keys
from broker.flights import Tasks
from broker.gate import Load
from broker.keyring import Keyring, Reading
from broker.limits import RateLimits
from broker.loop_time import LoopTime
from broker.metrics import Metrics
from broker.ops import ops_app
from broker.reload import Watch
from broker.results import Results
from broker.schedule import Clock, SystemClock
from broker.snapshot import Snapshot, secret_refs
from broker.state import State, Store, Vault
from broker.static import Static, client_files
from broker.upstreams.transport import AiohttpTransport, Transport, tls_context
from broker.wire import Header

_log = structlog.get_logger("app")


class App:
    """A running broker without its listeners: two ASGI applications, and what they stand on."""

    def __init__(
        self,
        snapshot: Snapshot,
        base: Path,
        *,
        path: Path | None = None,
        transport: Transport | None = None,
        store: Store | None = None,
        clock: Clock | None = None,
        audit: AuditLog | None = None,
        env: Mapping[str, str] = os.environ,
        pages: Mapping[str, Static] = MappingProxyType({}),
    ) -> None:
        """Needs a running event loop; `close()` it there. base: where relative secret files are.
        path: the configuration's own file, to be watched. pages: what else is served, by path.

        Raises ConfigError for secrets that are missing or unusable. Makes no network call.
        """
        self.clock = clock = clock or SystemClock()
        self.metrics = metrics = Metrics()
        self.load = load = Load(snapshot.server.max_in_flight)
        metrics.in_flight.set_function(lambda: load.in_flight)
        self.loop_time = loop_time = LoopTime(metrics.loop_stalled.inc)
        metrics.loop_lag.set_function(lambda: loop_time.lag)
        loop_time.start()
        self.starting = True
        self._base = base
        self._audit = audit if audit is not None else AuditLog()
        metrics.lines_lost.set_function(lambda: self._audit.lost)
        self._tasks = tasks = Tasks()
        self._keyring = keyring = Keyring(secret_refs(snapshot), base, env)
        check_keys(snapshot, keyring)
        self._connected = keyring.get(snapshot.state.url) if snapshot.state else None
        vault = Vault([keyring.get(ref) for ref in snapshot.keys])
        self._store = store = store or self._shared_store(snapshot, vault)
        self._transport = transport = transport or AiohttpTransport(
            tls=_tls(snapshot, base),
            max_connections=snapshot.max_connections,
            idle_seconds=snapshot.idle_seconds,
            loop_time=loop_time,
        )
        state = State(clock, tasks.spawn, vault, store)
        state.patience.fit(snapshot.server.request_budget.total_seconds())
        self._ground = Ground(
            clock=clock,
            metrics=metrics,
            loop_time=loop_time,
            audit=self._audit,
            tasks=tasks,
            load=load,
            transport=transport,
            keyring=keyring,
            state=state,
            rates=RateLimits(clock, store),
            results=Results(state, self._audit, tasks.spawn),
            client=client_files(),
            pages=pages,
        )
        try:
            self._assembly = Assembly(snapshot, self._ground)
        except BaseException:
            if isinstance(transport, AiohttpTransport):
                transport.abandon()
            raise
        self.ops = ops_app(metrics, lambda: self.snapshot.digest, self.why_not_ready)
        metrics.started(__version__, platform.python_version())
        self._announce()
        self._watch = Watch(path, self) if path and snapshot.server.reload_interval else None
        if self._watch is not None:
            keyring.reread = self._watch.now

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that ends with the app."""
        return self._tasks.spawn(work)

    @property
    def snapshot(self) -> Snapshot:
        """The configuration in force."""
        return self._assembly.snapshot

    @property
    def needs_restart(self) -> bool:
        """Is there something in the files that only a restart can put in force?"""
        state = self.snapshot.state
        return state is not None and self._keyring.get(state.url) != self._connected

    async def public(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The public ASGI application."""
        await self._assembly.public(scope, receive, send)

    def refusal(self, method: bytes, url: bytes, headers: list[Header]) -> bytes | None:
        """See `Gate.refusal`. A process that drains answers all that still comes."""
        return None if self.load.draining else self._assembly.public.refusal(method, url, headers)

    def read(self, snapshot: Snapshot) -> Reading:
        """The secrets of a new version; may run in another thread. Raises ConfigError."""
        return self._keyring.read(secret_refs(snapshot))

    def holds(self, reading: Reading) -> bool:
        """Are these the secrets in force?"""
        return self._keyring.held == reading.values

    def for_upstreams(self, reading: Reading) -> bool:
        """Are the secrets that changed such that what they were is still shown, should the upstream
        refuse what they are?"""
        held = self._keyring.held
        changed = {ref for ref, value in reading.values.items() if value != held.get(ref)}
        return changed <= self._assembly.rolled_over

    def adopt(self, snapshot: Snapshot, reading: Reading) -> bool:
        """Puts a new version in force, in one piece or not at all. Whether a secret changed.

        Raises ConfigError for secrets that are unusable, and what takes a restart."""
        _changeable(self.snapshot, snapshot)
        held = self._keyring.held
        changed = self._keyring.adopt(reading)
        try:
            check_keys(snapshot, self._keyring)
            assembly = Assembly(snapshot, self._ground, self._assembly)
        except BaseException:
            self._keyring.restore(held)
            raise
        self._ground.state.vault.replace([self._keyring.get(ref) for ref in snapshot.keys])
        self._assembly.retire(assembly, hope=bool(changed))
        self.load.max_in_flight = snapshot.server.max_in_flight
        self._ground.state.patience.fit(snapshot.server.request_budget.total_seconds())
        self._assembly = assembly
        self._announce()
        if self.needs_restart and snapshot.state and snapshot.state.url in changed:
            _log.error("takes_a_restart", setting="/state/url", why="the store stays connected")
        return bool(changed)

    def _announce(self) -> None:
        now = self.clock.now().timestamp()
        metrics, snapshot = self.metrics, self.snapshot
        metrics.configured(snapshot.digest, now)
        for _, ref in secret_refs(snapshot):
            metrics.secret_read(ref.source, now)
        for name in snapshot.profiles:
            metrics.serves("session", name)
        for name in snapshot.credentials:
            metrics.serves("access_token", name)

    def why_not_ready(self) -> str:
        """Empty while requests may be sent here. Speaks of this process only."""
        if self.starting:
            return "starting"
        return "draining" if self.load.draining else ""

    async def warm(self) -> None:
        """Fetches access tokens and key sets, so that the first mint need not wait. Gives up in
        silence when the time for it is over: whoever asks then waits, or is told."""
        jobs = [self._assembly.door.warm(), *(one.warm() for one in self._assembly.tokens.values())]
        tasks = [self._tasks.spawn(job) for job in jobs]
        if tasks:
            await asyncio.wait(tasks, timeout=self.snapshot.server.warm_up.total_seconds())

    def watch(self) -> None:
        """Begins to look after the files."""
        if self._watch is not None:
            _ = self._tasks.spawn(self._watch.run())

    async def close(self) -> None:
        self.loop_time.stop()
        await self._tasks.close()  # which give their claims back
        if self._store is not None:
            await self._store.close()
        await self._tasks.close()
        await self._transport.close()
        await asyncio.to_thread(self._audit.close)

    def _shared_store(self, snapshot: Snapshot, vault: Vault) -> Store | None:
        if snapshot.state is None:
            return None
        from broker.state.redis_store import RedisStore  # noqa: PLC0415  (needs the extra `redis`)

        entry = snapshot.state
        return RedisStore(
            self._keyring.get(entry.url),
            vault,
            self.clock,
            self.metrics,
            self._tasks.spawn,
            loop_time=self.loop_time,
            timeout=entry.timeout.total_seconds(),
            prefix=entry.prefix,
            ca_file=str(self._base / entry.ca_file) if entry.ca_file else None,
        )


def _changeable(old: Snapshot, new: Snapshot) -> None:
    """Raises ConfigError for changes of what is bound, opened or dimensioned at start."""

    def fixed(snapshot: Snapshot) -> dict[str, Any]:
        server = snapshot.server
        return {
            "/server/public": server.public,
            "/server/ops": server.ops,
            "/server/max_connections": server.max_connections,
            "/server/max_body_bytes": server.max_body_bytes,
            "/server/keep_alive": server.keep_alive,
            "/server/shutdown_grace": server.shutdown_grace,
            "/server/reload_interval": server.reload_interval,
            "/outbound": (
                snapshot.outbound_ca,
                snapshot.max_connections,
                snapshot.idle_seconds,
                snapshot.calls_at_once,
            ),
            "/state": snapshot.state,
        }

    before = fixed(old)
    changed = [at for at, value in fixed(new).items() if value != before[at]]
    if changed:
        raise ConfigError([Fault(at, "is different now, which takes a restart") for at in changed])


def _tls(snapshot: Snapshot, base: Path) -> Any:
    try:
        return tls_context(str(base / snapshot.outbound_ca) if snapshot.outbound_ca else None)
    except OSError as exc:
        fault = Fault("/outbound/ca_file", f"is no PEM file of certificates ({exc.strerror})")
        raise ConfigError([fault]) from None
