"""The door: inbound credentials to a `Caller`. Says who, never may.

All refusals look the same outside; why goes to the log as `cause`, without a word of the
credential. Where somebody who would know cannot be asked, that is the answer (503, 504): an outage
must log nobody out. A credential that was shown and is bad never becomes `anonymous`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

from broker.authn.discovery import KeyFetch
from broker.authn.forward_auth import ForwardAuth
from broker.authn.introspection import Introspector
from broker.authn.jwt_caller import JwtVerifier, unverified_jwt
from broker.authn.keysets import HeldKeys, KeySource, LoadedKeys, read_keys, shared_key
from broker.authn.proof import MOST_TOKEN, Asking, Proofs
from broker.errors import ConfigError, Fault, Unauthenticated, UpstreamError
from broker.faults import pointer
from broker.file import CallerEntry, IntrospectionCaller, JwtCaller
from broker.flights import Spawn, Tasks
from broker.keyring import Keyring
from broker.metrics import Metrics
from broker.model import Caller
from broker.schedule import Clock
from broker.upstreams.transport import Transport

__all__ = ["Door", "Presented"]

ANONYMOUS = Caller("anonymous", "anonymous", {})
NOBODY = "none"
"""The metric's label for a credential that no entry of `callers` takes."""
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
"""RFC 6750 §2.1."""

_Attempt = tuple[str, Callable[[], Awaitable[tuple[Caller, bool]]]]


@dataclass(frozen=True, slots=True)
class Presented:
    """What a request shows: field values, empty where there is none."""

    authorization: str
    cookie: str


class Door:
    """Every entry of `callers`, behind one question. One for each configuration in force."""

    def __init__(
        self,
        callers: Mapping[str, CallerEntry],
        *,
        anonymous: bool,
        keyring: Keyring,
        transport: Transport,
        clock: Clock,
        metrics: Metrics,
        budget: float,
        spawn: Spawn | None = None,
        before: Door | None = None,
    ) -> None:
        """budget: seconds for one question to others. spawn: the app's, that ends with it.
        before: a door whose loaded key sets are taken over, where they are of the same place.

        Raises ConfigError with every secret and key set that does not do. Makes no network call.
        """
        self._anonymous = anonymous
        self._metrics = metrics
        self._clock = clock
        self._spawn = spawn or Tasks().spawn
        self._proofs = Proofs(clock)
        self._by_issuer: dict[str, list[JwtVerifier]] = {}
        self._introspectors: list[Introspector] = []
        self._forwards: list[ForwardAuth] = []
        self.loaded: dict[Hashable, LoadedKeys] = {}
        """By place: what a later door may take over."""
        self._loaded_before = before.loaded if before else {}
        faults: list[Fault] = []
        for name, entry in callers.items():
            asking = Asking(name, transport, clock, metrics, budget)
            try:
                self._add(name, entry, keyring, asking)
            except ConfigError as exc:
                faults.extend(exc.faults)
        if faults:
            raise ConfigError(faults)
        self._loaded_before = {}

    def _add(self, name: str, entry: CallerEntry, keyring: Keyring, asking: Asking) -> None:
        clock, proofs, spawn = self._clock, self._proofs, self._spawn
        if isinstance(entry, JwtCaller):
            source = self._source(name, entry, keyring, asking)
            verifier = JwtVerifier(name, entry, source, clock, proofs)
            self._by_issuer.setdefault(entry.issuer, []).append(verifier)
        elif isinstance(entry, IntrospectionCaller):
            self._introspectors.append(
                Introspector(name, entry, keyring, asking, clock, proofs, spawn)
            )
        else:
            self._forwards.append(ForwardAuth(name, entry, asking, clock, proofs, spawn))

    def _source(self, name: str, entry: JwtCaller, keyring: Keyring, asking: Asking) -> KeySource:
        at = "issuer"
        try:
            if entry.shared_secret is not None:
                at = "shared_secret"
                return HeldKeys(shared_key(keyring.get(entry.shared_secret)))
            if entry.jwks is not None:
                at = "jwks"
                return HeldKeys(read_keys(keyring.get(entry.jwks).reveal().encode()))
            load = KeyFetch(entry.issuer, entry.jwks_url, asking, self._clock)
        except ValueError as exc:
            reason = "is no URL to discover keys from" if at == "issuer" else str(exc)
            raise ConfigError([Fault(pointer("callers", name, at), reason)]) from None
        place = (name, entry.issuer, entry.jwks_url, entry.jwks_max_age, entry.jwks_cooldown)
        self.loaded[place] = self._loaded_before.get(place) or LoadedKeys(
            name,
            load,
            max_age=entry.jwks_max_age,
            cooldown=entry.jwks_cooldown,
            clock=self._clock,
            metrics=self._metrics,
            spawn=self._spawn,
        )
        return self.loaded[place]

    async def warm(self) -> None:
        """Loads every key set, so that the first caller need not wait. Never raises."""
        for source in self.loaded.values():
            source.warm()
        for source in self.loaded.values():
            await source.landed()

    async def authenticate(self, presented: Presented) -> Caller:
        """Who is asking. A bearer that was proven lately costs a digest and a look-up, no await.

        Raises Unauthenticated, UpstreamUnavailable, UpstreamTimeout.
        """
        token = _bearer(presented.authorization)
        digest = b""
        if token:
            digest = sha256(token.encode()).digest()
            caller = self._proofs.get(digest)
            if caller is not None:
                self._metrics.authenticated(caller.name, "cached")
                return caller
        return await self._judge(presented, token, digest)

    async def _judge(self, presented: Presented, token: str, digest: bytes) -> Caller:
        """Asks those concerned, one after the other, until one vouches."""
        refusals: list[tuple[str, str]] = []
        outage: UpstreamError | None = None
        for name, attempt in self._attempts(presented, token, digest):
            try:
                caller, known = await attempt()
            except Unauthenticated as exc:
                refusals.append((name, exc.cause))
            except UpstreamError as exc:
                self._metrics.authenticated(name, "unavailable")
                outage = outage or exc
            else:
                self._metrics.authenticated(name, "cached" if known else "ok")
                return caller
        if not refusals and outage is None:
            return self._unclaimed(presented)
        for name, _ in refusals:
            self._metrics.authenticated(name, "refused")
        if outage is not None:
            raise outage
        raise Unauthenticated(cause="; ".join(f"{name}: {why}" for name, why in refusals))

    def _attempts(self, presented: Presented, token: str, digest: bytes) -> Iterator[_Attempt]:
        """Those whom the credentials concern, in the order in which they are asked."""
        if token and _TOKEN.fullmatch(token):
            jwt = unverified_jwt(token)
            verifiers = self._by_issuer.get(jwt.unverified_issuer) if jwt else None
            if jwt and verifiers:
                meant = [one for one in verifiers if one.is_meant(jwt)] or verifiers[:1]
                for verifier in meant:
                    yield verifier.name, partial(_fresh, verifier.authenticate, jwt, digest)
            else:
                for introspector in self._introspectors:
                    ask = partial(_fresh, introspector.authenticate, token, digest)
                    yield introspector.name, ask
        for forward in self._forwards:
            sent = forward.passes_on(presented.authorization, presented.cookie)
            if sent:
                yield forward.name, partial(forward.authenticate, sent)

    def _unclaimed(self, presented: Presented) -> Caller:
        """Nobody took the credentials, or there are none."""
        if presented.authorization:
            self._metrics.authenticated(NOBODY, "refused")
            raise Unauthenticated(cause="no caller takes this credential")
        if not self._anonymous:
            raise Unauthenticated(cause="no credentials")
        self._metrics.authenticated(ANONYMOUS.name, "ok")
        return ANONYMOUS


async def _fresh(
    authenticate: Callable[..., Awaitable[Caller]], *given: object
) -> tuple[Caller, bool]:
    return await authenticate(*given), False


def _bearer(authorization: str) -> str:
    """The bearer token of an Authorization field (RFC 6750); empty where there is none to judge."""
    if authorization[:7].lower() != "bearer " or not authorization.isascii():
        return ""
    token = authorization[7:].strip(" ")
    return token if len(token) <= MOST_TOKEN else ""
