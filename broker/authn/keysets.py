"""The public keys that an issuer signs with: read, loaded, kept, replaced.

Exists so that judging a token seldom waits for a network, and an issuer's outage harms nobody
whose keys are held. A set that was once good stays in use until a better one has come. Must never
let a stranger's tokens cause more than one load per cool-down, use a key for anything it is not
meant for, or keep a private part of a key.
"""

from __future__ import annotations

import asyncio
import math
import warnings
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import structlog
from joserfc import jwk
from joserfc.errors import SecurityWarning

from broker.authn.proof import read_object, unavailable
from broker.errors import BrokerError, UpstreamUnavailable
from broker.flights import Spawn
from broker.metrics import Metrics
from broker.model import JSON, Secret
from broker.schedule import Clock, backoff
from broker.strict import Unreadable

MOST_KEYS = 64
"""A token without `kid` is tried with every fitting key, at 50 to 100 µs each."""
MOST_MEMBER = 1400
"""Characters of a key's member: 8192 bits of RSA modulus have 1366; more only burns time."""
LEAST_SECRET = 32
"""Bytes of an HS256 secret (RFC 7518 §3.2: no less than the hash's size)."""

_MEMBERS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_KINDS = {
    "RS256": {("RSA", "")},
    "PS256": {("RSA", "")},
    "ES256": {("EC", "P-256")},
    "EdDSA": {("OKP", "Ed25519"), ("OKP", "Ed448")},
    "HS256": {("oct", "")},
}
_USABLE = set().union(*_KINDS.values())
_log = structlog.get_logger("authn")


@dataclass(frozen=True, slots=True)
class Key:
    """One key and what it may be used for. alg: the only algorithm, where the set says so."""

    kid: str | None
    kind: tuple[str, str]
    alg: str | None
    material: jwk.Key = field(repr=False)

    def fits(self, alg: str, kid: str | None) -> bool:
        """The key's type decides, not the token: an RSA key never checks an HMAC (RFC 8725)."""
        if self.kind not in _KINDS.get(alg, ()) or self.alg not in (None, alg):
            return False
        return kid is None or self.kid == kid or self.kind[0] == "oct"


@dataclass(frozen=True, slots=True)
class KeySet:
    """The usable keys of a set; `marks` tell whether another one is the same."""

    keys: tuple[Key, ...]
    marks: frozenset[tuple[str | None, str | None, str]]

    def fitting(self, alg: str, kid: str | None) -> list[Key]:
        return [key for key in self.keys if key.fits(alg, kid)]

    def knows(self, kid: str | None) -> bool:
        return kid is None or any(key.kid == kid for key in self.keys)


class KeySource(Protocol):
    current: KeySet | None

    async def keys(self, alg: str, kid: str | None) -> Sequence[Key]:
        """The keys to try; none is a refusal. Raises UpstreamUnavailable."""
        ...


class HeldKeys:
    """A `KeySource` of keys that came with the configuration."""

    def __init__(self, held: KeySet) -> None:
        self.current: KeySet | None = held
        self._held = held

    async def keys(self, alg: str, kid: str | None) -> Sequence[Key]:
        return self._held.fitting(alg, kid)


class LoadedKeys:
    """A `KeySource` that loads, and loads again behind the requests that it can answer."""

    def __init__(
        self,
        name: str,
        load: Callable[[], Awaitable[KeySet]],
        *,
        max_age: timedelta,
        cooldown: timedelta,
        clock: Clock,
        metrics: Metrics,
        spawn: Spawn,
    ) -> None:
        """load: raises BrokerError. spawn: a load's task is nobody's who waits for it."""
        self.current: KeySet | None = None
        self._name = name
        self._load_from = load
        self._max_age = max_age.total_seconds()
        self._cooldown = cooldown.total_seconds()
        self._clock = clock
        self._metrics = metrics
        self._spawn = spawn
        self._flight: asyncio.Task[None] | None = None
        self._asked = self._loaded = -math.inf
        self._failure = ""
        self._failures = 0

    async def keys(self, alg: str, kid: str | None) -> Sequence[Key]:
        held = self.current
        if held is None:
            held = await self._first()
        elif self._clock.monotonic() - self._loaded >= self._max_age and self._may_load():
            _ = self._start()
        found = held.fitting(alg, kid)
        if found or held.knows(kid):
            return found
        return await self._unknown(alg, kid)

    def warm(self) -> None:
        """Starts the first load, so that the first caller need not wait for it."""
        if self.current is None and self._may_load():
            _ = self._start()

    async def landed(self) -> None:
        """Waits for the load under way, if there is one."""
        if self._flight is not None:
            await asyncio.shield(self._flight)

    async def _first(self) -> KeySet:
        if self._under_way() or self._may_load():
            await asyncio.shield(self._start())
        if self.current is None:
            raise self._down()
        return self.current

    async def _unknown(self, alg: str, kid: str | None) -> Sequence[Key]:
        """A new key or a stranger's invention: one load tells, and holds for the cool-down."""
        if self._under_way() or self._may_load():
            await asyncio.shield(self._start())
        found = self.current.fitting(alg, kid) if self.current else []
        if not found and self._failure:
            raise self._down()  # the key may be there by now: not to be known is no refusal
        return found

    def _under_way(self) -> bool:
        return self._flight is not None and not self._flight.done()

    def _may_load(self) -> bool:
        """After a good load once a cool-down; after failures sooner at first, then no oftener."""
        wait = self._cooldown
        if self._failures:
            wait = min(wait, backoff(self._failures))
        return self._clock.monotonic() - self._asked >= wait

    def _start(self) -> asyncio.Task[None]:
        if self._flight is None or self._flight.done():
            self._asked = self._clock.monotonic()
            self._flight = self._spawn(self._load())
        return self._flight

    async def _load(self) -> None:
        """Never raises what waiters would then all share; `_failure` says what went wrong."""
        try:
            found = await self._load_from()
        except BrokerError as exc:
            self._failure = exc.cause or type(exc).__name__
            self._failures += 1
            self._metrics.keys_loaded(self._name, ok=False)
            _log.warning("keys_not_loaded", caller=self._name, cause=self._failure)
            return
        self._failure, self._failures = "", 0
        self._loaded = self._clock.monotonic()
        self._metrics.keys_loaded(self._name, ok=True)
        if self.current is None or self.current.marks != found.marks:
            self.current = found  # and every proof made with the old set is void

    def _down(self) -> UpstreamUnavailable:
        left = self._cooldown - (self._clock.monotonic() - self._asked)
        return unavailable(f"keys: {self._failure}", retry_after=max(1.0, left))


def read_keys(raw: bytes) -> KeySet:
    """The usable keys of a JWK set (RFC 7517 §5: others are ignored). Raises `Unreadable` only."""
    listed = read_object(raw).get("keys")
    if not isinstance(listed, list):
        raise Unreadable("not a key set")
    found = [key for one in listed[:MOST_KEYS] if (key := _usable(one)) is not None]
    if not found:
        raise Unreadable("no usable key in the set")
    return _set_of(found)


def shared_key(secret: Secret) -> KeySet:
    """A set of the one HS256 secret. Raises ValueError, with a text that may be shown."""
    value = secret.reveal().encode()
    if len(value) < LEAST_SECRET:
        raise ValueError(f"a shared secret has {LEAST_SECRET} bytes or more")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SecurityWarning)  # looks like a PEM or SSH key
            material = jwk.OctKey.import_key(value)
    except (ValueError, SecurityWarning):
        raise ValueError("a public key is no shared secret") from None
    return _set_of([Key(None, ("oct", ""), "HS256", material)])


def _set_of(keys: Sequence[Key]) -> KeySet:
    marks = frozenset((key.kid, key.alg, key.material.thumbprint()) for key in keys)
    return KeySet(tuple(keys), marks)


def _usable(tree: JSON) -> Key | None:
    """A key that can check signatures, from its public members only."""
    if not isinstance(tree, dict):
        return None
    kty, kid, alg, operations = (tree.get(name) for name in ("kty", "kid", "alg", "key_ops"))
    if not isinstance(kty, str) or kty not in _MEMBERS or tree.get("use", "sig") != "sig":
        return None
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        return None
    members: dict[str, Any] = {name: tree.get(name) for name in _MEMBERS[kty]}
    if not all(isinstance(one, str) and len(one) <= MOST_MEMBER for one in members.values()):
        return None
    kind = (kty, str(members.get("crv", "")))
    if kind not in _USABLE or not all(one is None or isinstance(one, str) for one in (kid, alg)):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SecurityWarning)  # RSA under 2048 bits
            return Key(kid, kind, alg, jwk.JWKRegistry.import_key({"kty": kty, **members}))
    except Exception:  # noqa: BLE001  (whatever ails a key, the others are still good)
        return None
