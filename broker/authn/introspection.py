"""Bearer tokens that only their authorisation server can judge (RFC 7662).

Answers are believed for a while, bad ones a shorter while and in a place of their own, so that a
flood of bad tokens pushes no good one out; however many ask about one token, one question is
under way. Must never put a token into a log, a cause, a URL or a cache's key.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote_plus, urlencode

from authlib.oauth2.auth import ClientAuth
from cachetools import TTLCache

from broker.authn.proof import (
    Asking,
    Proofs,
    Proven,
    moment_in,
    read_object,
    subject_in,
    texts_of,
    unavailable,
)
from broker.errors import Unauthenticated
from broker.file import IntrospectionCaller
from broker.flights import Flights, Spawn
from broker.keyring import Keyring
from broker.model import JSON, Caller, Secret
from broker.schedule import Clock
from broker.strict import Unreadable

MOST_REFUSED = 10_000
"""Refusals remembered: digests of 32 bytes, 1 to 2 MiB in all."""
REFUSED_SECONDS = 5.0
"""A token may become good (replication at the issuer): not long, but longer than a retry loop."""


class Introspector:
    """One entry of `callers` with `type: introspection`."""

    def __init__(
        self,
        name: str,
        entry: IntrospectionCaller,
        keyring: Keyring,
        asking: Asking,
        clock: Clock,
        proofs: Proofs,
        spawn: Spawn,
    ) -> None:
        self.name = name
        self._entry = entry
        self._audience = frozenset(entry.audience) if entry.audience else None
        self._scope = frozenset((entry.scope or "").split())
        self._cache = entry.cache.total_seconds()
        self._asking = asking
        self._clock = clock
        self._proofs = proofs
        self._flights: Flights[bytes, Caller] = Flights(spawn)
        self._refused: TTLCache[bytes, str] = TTLCache(
            MOST_REFUSED, min(self._cache, REFUSED_SECONDS), timer=clock.monotonic
        )
        self._proof = _basic(keyring.get(entry.client_id), keyring.get(entry.client_secret))

    async def authenticate(self, token: str, digest: bytes) -> Caller:
        """Raises Unauthenticated, UpstreamUnavailable, UpstreamTimeout."""
        cause = self._refused.get(digest)
        if cause is not None:
            raise Unauthenticated(cause=cause)
        caller, _ = await self._flights.join(digest, lambda: self._ask(token, digest))
        return caller

    async def _ask(self, token: str, digest: bytes) -> Caller:
        form = urlencode({"token": token, "token_type_hint": "access_token"})
        headers = {
            "Accept": "application/json",
            "Content-Type": "application/x-www-form-urlencoded",
            "Authorization": self._proof.reveal(),
        }
        answer = await self._asking.ask(
            "introspect", "POST", self._entry.url, headers, body=form.encode()
        )
        if answer.status != 200:
            raise unavailable(f"introspection: HTTP status {answer.status}")
        try:
            claims = read_object(answer.body)
        except Unreadable as exc:
            raise unavailable(f"introspection: {exc.reason}") from None
        try:
            proven = self._judged(claims)
        except Unauthenticated as exc:
            self._refused[digest] = exc.cause
            raise
        self._proofs.put(digest, proven)
        return proven.caller

    def _judged(self, claims: Mapping[str, JSON]) -> Proven:
        """What the answer proves. Raises Unauthenticated."""
        entry = self._entry
        now = self._clock.now().timestamp()
        if claims.get("active") is not True:
            raise Unauthenticated(cause="not active")
        expires, starts = moment_in(claims, "exp"), moment_in(claims, "nbf")
        if expires is not None and now >= expires:
            raise Unauthenticated(cause="expired")
        if starts is not None and starts > now:
            raise Unauthenticated(cause="nbf is in the future")
        if entry.issuer is not None and claims.get("iss", entry.issuer) != entry.issuer:
            raise Unauthenticated(cause="iss is another one")
        if self._audience is not None and self._audience.isdisjoint(texts_of(claims.get("aud"))):
            raise Unauthenticated(cause="aud is another one")
        if not self._scope <= _scopes_of(claims.get("scope")):
            raise Unauthenticated(cause="scope is missing")
        caller = Caller(self.name, subject_in(claims, entry.subject_claim), claims)
        until = self._clock.monotonic()
        if expires is None:
            return Proven(caller, until + self._cache)
        return Proven(caller, until + min(self._cache, expires - now), expires)


def _scopes_of(value: JSON) -> frozenset[str]:
    """RFC 7662 has one text with spaces; some servers send a list."""
    return frozenset(value.split()) if isinstance(value, str) else texts_of(value)


def _basic(client_id: Secret, client_secret: Secret) -> Secret:
    """The Authorization field (RFC 6749 §2.3.1), made once.

    Form-encoded here, as Authlib does not; it also makes the halves ASCII, all that Authlib takes.
    """
    auth = ClientAuth(quote_plus(client_id.reveal()), quote_plus(client_secret.reveal()))
    _, headers, _ = auth.prepare("POST", "", {}, "")
    return Secret(headers["Authorization"])
