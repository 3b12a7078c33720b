"""The composition root: builds everything from a snapshot, in an order that is data flow.

Nothing else knows the concrete classes. Read it from top to bottom to know what the service is:
secrets, the way out, access tokens, upstreams, use cases, the way in.
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from broker import __version__, openapi
from broker.api import Api, public_app
from broker.audit import AuditLog
from broker.authn import Door
from broker.callbacks import Callbacks
from broker.chains import Chains
from broker.errors import ConfigError, Fault
from broker.faults import pointer
from broker.file import ForwardAuthCaller
from broker.flights import Tasks
from broker.gate import Gate, Load, Origins
from broker.handles import Seal
from broker.keyring import Keyring
from broker.limits import RateLimits
from broker.metrics import Metrics
from broker.minting import Minting
from broker.ops import ops_app
from broker.presets import environment_of
from broker.results import Results
from broker.schedule import Clock, SystemClock
from broker.snapshot import Profile, Snapshot, secret_refs
from broker.state import State
from broker.tokens import Cached
from broker.upstreams.oauth import OAuth
from broker.upstreams.preset import Upstream
from broker.upstreams.transport import AiohttpTransport, Transport, tls_context

_SEAL_BYTES = 32
_SIGNATURE_BYTES = 16


class App:
    """A running broker without its listeners: two ASGI applications, and what they stand on."""

    def __init__(
        self,
        snapshot: Snapshot,
        base: Path,
        *,
        transport: Transport | None = None,
        clock: Clock | None = None,
        audit: AuditLog | None = None,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        """Needs a running event loop; `close()` it there. base: where relative secret files are.

        Raises ConfigError for secrets that are missing or unusable. Makes no network call.
        """
        server = snapshot.server
        budget = server.request_budget.total_seconds()
        self.snapshot = snapshot
        self.clock = clock = clock or SystemClock()
        self.metrics = metrics = Metrics()
        self.load = load = Load(server.max_in_flight)
        metrics.in_flight.set_function(lambda: load.in_flight)
        self.starting = True
        self._audit = audit if audit is not None else AuditLog()
        metrics.lines_lost.set_function(lambda: self._audit.lost)
        self._tasks = tasks = Tasks()
        keyring = Keyring(secret_refs(snapshot), base, env)
        _check_keys(snapshot, keyring)
        seal = Seal([keyring.get(ref) for ref in snapshot.keys])
        self._transport = transport = transport or AiohttpTransport(
            tls=_tls(snapshot, base),
            max_connections=snapshot.max_connections,
            idle_seconds=snapshot.idle_seconds,
        )
        self._tokens = tokens = {
            name: Cached(
                OAuth(name, entry, keyring, transport, clock, metrics),
                clock,
                metrics,
                name,
                min_remaining=entry.min_remaining.total_seconds() if entry.min_remaining else None,
                spawn=tasks.spawn,
            )
            for name, entry in snapshot.credentials.items()
        }
        sources = {
            name: Upstream(
                profile,
                keyring=keyring,
                transport=transport,
                tokens=tokens.get(profile.credential or ""),
                clock=clock,
                metrics=metrics,
                timeout=budget,
            )
            for name, profile in snapshot.profiles.items()
        }
        state = State(clock)
        results = Results(state, self._audit, tasks.spawn)
        rates = RateLimits(clock)
        minting = Minting(
            snapshot,
            sources=sources,
            tokens=tokens,
            seal=seal,
            state=state,
            limits=rates,
            results=results,
            clock=clock,
            metrics=metrics,
            spawn=tasks.spawn,
        )
        chains = Chains(
            snapshot,
            minting,
            sources=sources,
            seal=seal,
            state=state,
            results=results,
            limits=rates,
            clock=clock,
            metrics=metrics,
            spawn=tasks.spawn,
        )
        callbacks = Callbacks(
            snapshot,
            sources=sources,
            keyring=keyring,
            results=results,
            state=state,
            limits=rates,
            clock=clock,
            metrics=metrics,
            spawn=tasks.spawn,
        )
        self._door = door = Door(
            snapshot.callers,
            anonymous=snapshot.anonymous,
            keyring=keyring,
            transport=transport,
            clock=clock,
            metrics=metrics,
            budget=budget,
            spawn=tasks.spawn,
        )
        api = Api(
            door=door,
            minting=minting,
            chains=chains,
            callbacks=callbacks,
            clock=clock,
            known=frozenset(snapshot.profiles),
            credentials=frozenset(snapshot.credentials),
            max_body=server.max_body_bytes,
            document=orjson.dumps(openapi.document()),
        )
        self.public = Gate(
            public_app(api, budget),
            origins=_origins(snapshot),
            load=load,
            trusted_proxies=server.trusted_proxies,
            clock=clock,
            metrics=metrics,
            audit=self._audit,
        )
        self.ops = ops_app(metrics, snapshot.digest, self.why_not_ready)
        self._announce(keyring)

    def _announce(self, keyring: Keyring) -> None:
        now = self.clock.now().timestamp()
        metrics, snapshot = self.metrics, self.snapshot
        metrics.started(__version__, platform.python_version(), snapshot.digest, now)
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

    def warm(self) -> None:
        """Starts fetching access tokens and key sets, so that the first mint need not wait."""
        self._door.warm()
        for tokens in self._tokens.values():
            _ = self._tasks.spawn(tokens.warm())

    async def close(self) -> None:
        await self._tasks.close()
        await self._transport.close()
        await asyncio.to_thread(self._audit.close)


def _check_keys(snapshot: Snapshot, keyring: Keyring) -> None:
    """What only the secrets themselves can show. Raises ConfigError with every fault."""
    faults = [
        Fault(f"/keys/{index}", f"{ref.source}: a sealing key has {_SEAL_BYTES} bytes or more")
        for index, ref in enumerate(snapshot.keys)
        if len(keyring.get(ref).reveal().encode()) < _SEAL_BYTES
    ]
    for profile in snapshot.profiles.values():
        for setting, reason in _unfit_secrets(profile, keyring):
            at = pointer("profiles", profile.name, setting)
            faults.append(Fault(at, f"{profile.secrets[setting].source}: {reason}"))
    if faults:
        raise ConfigError(faults)


def _unfit_secrets(profile: Profile, keyring: Keyring) -> Iterator[tuple[str, str]]:
    """Keys of another environment than base_url's, and signature keys that can be guessed."""
    file = profile.preset.file
    found = environment_of(file, profile.base_url)
    for setting, pattern in (file.environments[found[0]].secrets if found else {}).items():
        ref = profile.secrets.get(setting)
        if found and ref and not re.search(pattern, keyring.get(ref).reveal()):
            yield setting, f"is no key of {found[0]}, where base_url leads"
    if file.callbacks and file.callbacks.signature:
        setting = file.callbacks.signature.secret
        ref = profile.secrets.get(setting)
        if ref and len(keyring.get(ref).reveal().encode()) < _SIGNATURE_BYTES:
            yield setting, f"a signature key has {_SIGNATURE_BYTES} bytes or more"


def _tls(snapshot: Snapshot, base: Path) -> Any:
    try:
        return tls_context(str(base / snapshot.outbound_ca) if snapshot.outbound_ca else None)
    except OSError as exc:
        fault = Fault("/outbound/ca_file", f"is no PEM file of certificates ({exc.strerror})")
        raise ConfigError([fault]) from None


def _origins(snapshot: Snapshot) -> Origins:
    def uses_cookies(profile: Profile) -> bool:
        entries = [snapshot.callers.get(name) for name in profile.callers]
        return any(isinstance(e, ForwardAuthCaller) and "cookie" in e.headers for e in entries)

    by_profile = {
        name: dict.fromkeys(profile.origins, uses_cookies(profile))
        for name, profile in snapshot.profiles.items()
    }
    together: dict[str, bool] = {}
    for origins in by_profile.values():
        for origin, credentials in origins.items():
            together[origin] = together.get(origin, False) or credentials
    return Origins(by_profile, together)
