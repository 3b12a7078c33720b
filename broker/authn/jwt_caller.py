"""Bearer JWTs of one issuer (RFC 7519, with the advice of RFC 8725; RFC 9068's `typ` too).

joserfc checks the signature, with the configured algorithms and keys of the fitting type only;
this room checks everything else, before the signature to save work and after it to be sure. What
is read before it is `unverified_x`. Must never take an algorithm, key or key set's address from
the token, nor say in a cause what the token holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joserfc import jws
from joserfc.errors import UnsupportedAlgorithmError
from joserfc.util import urlsafe_b64decode
from typing_extensions import override

from broker.authn.keysets import Key, KeySource
from broker.authn.proof import (
    MOST_TOKEN,
    Proofs,
    Proven,
    moment_in,
    read_object,
    subject_in,
    texts_of,
)
from broker.errors import Unauthenticated
from broker.file import JwtCaller
from broker.model import JSON, Caller
from broker.schedule import Clock
from broker.strict import Unreadable

_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
"""`typ`, in lower case: a JWT for another purpose (logout, DPoP proof) says so (RFC 8725 §3.11)."""


@dataclass(frozen=True, slots=True)
class UnverifiedJwt:
    """A text that has the form of a signed JWT. Nothing in it is to be believed."""

    token: str
    unverified_header: Mapping[str, JSON]
    unverified_claims: Mapping[str, JSON]

    @property
    def unverified_issuer(self) -> str:
        issuer = self.unverified_claims.get("iss")
        return issuer if isinstance(issuer, str) else ""


def unverified_jwt(token: str) -> UnverifiedJwt | None:
    """The token's parts, or None where it is no signed JWT: an opaque token, perhaps."""
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii():
        return None
    try:
        header, claims = (read_object(urlsafe_b64decode(part.encode())) for part in parts[:2])
    except (Unreadable, ValueError, IndexError):
        return None
    return UnverifiedJwt(token, header, claims)


class _Algorithms(jws.JWSRegistry):
    """The allowed algorithms; joserfc's own registry warns of EdDSA, and limits headers to 512."""

    max_header_length = MOST_TOKEN
    max_signature_length = MOST_TOKEN

    @override
    def get_alg(self, name: str) -> Any:
        if name not in (self.allowed or ()):
            raise UnsupportedAlgorithmError("not allowed")
        return self.algorithms[name]


class JwtVerifier:
    """One entry of `callers` with `type: jwt`."""

    def __init__(
        self, name: str, entry: JwtCaller, source: KeySource, clock: Clock, proofs: Proofs
    ) -> None:
        self.name = name
        self.issuer = entry.issuer
        self.source = source
        self._audience = frozenset(entry.audience)
        self._algorithms = frozenset(["HS256"] if entry.shared_secret else entry.algorithms)
        self._registry = _Algorithms(algorithms=self._algorithms, strict_check_header=False)
        self._leeway = entry.leeway.total_seconds()
        self._subject_claim = entry.subject_claim
        self._cache = entry.cache.total_seconds()
        self._clock = clock
        self._proofs = proofs

    def is_meant(self, jwt: UnverifiedJwt) -> bool:
        """Is this the entry, among those of one issuer, that the token is for?"""
        return not self._audience.isdisjoint(texts_of(jwt.unverified_claims.get("aud")))

    async def authenticate(self, jwt: UnverifiedJwt, digest: bytes) -> Caller:
        """Raises Unauthenticated, UpstreamUnavailable."""
        alg, kid = self._how(jwt.unverified_header)
        self._check(jwt.unverified_claims)
        keys = await self.source.keys(alg, kid)
        if not keys:
            raise Unauthenticated(cause="no key for this kid and alg")
        held = self.source.current
        claims = self._verified(jwt.token, keys)
        expires = self._check(claims)
        caller = Caller(self.name, subject_in(claims, self._subject_claim), claims)
        # Not to the end of the leeway: that is for clocks that differ, not for longer trust.
        left = min(self._cache, expires - self._clock.now().timestamp())
        until = self._clock.monotonic() + left
        self._proofs.put(digest, Proven(caller, until, expires + self._leeway, self.source, held))
        return caller

    def _how(self, unverified_header: Mapping[str, JSON]) -> tuple[str, str | None]:
        """How the token says it is signed, where that is one of the ways we accept."""
        header = unverified_header
        if "crit" in header or "b64" in header:
            raise Unauthenticated(cause="crit is not understood")
        kind = header.get("typ", "JWT")
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            raise Unauthenticated(cause="typ is another one")
        alg, kid = header.get("alg"), header.get("kid")
        if not isinstance(alg, str) or alg not in self._algorithms:
            raise Unauthenticated(cause="alg is not allowed")
        if kid is not None and not isinstance(kid, str):
            raise Unauthenticated(cause="kid is no text")
        return alg, kid

    def _check(self, claims: Mapping[str, JSON]) -> float:
        """The `exp` of claims that are for us and for now. Raises Unauthenticated."""
        now = self._clock.now().timestamp()
        if claims.get("iss") != self.issuer:
            raise Unauthenticated(cause="iss is another one")
        if self._audience.isdisjoint(texts_of(claims.get("aud"))):
            raise Unauthenticated(cause="aud is another one")
        expires = moment_in(claims, "exp")
        if expires is None:
            raise Unauthenticated(cause="exp is missing")
        if now >= expires + self._leeway:
            raise Unauthenticated(cause="expired")
        for claim in ("nbf", "iat"):
            moment = moment_in(claims, claim)
            if moment is not None and moment > now + self._leeway:
                raise Unauthenticated(cause=f"{claim} is in the future")
        subject_in(claims, self._subject_claim)
        return expires

    def _verified(self, token: str, keys: Sequence[Key]) -> dict[str, JSON]:
        for key in keys:
            payload = self._proven_by(key, token)
            if payload is not None:
                try:
                    return read_object(payload)
                except Unreadable:
                    break
        raise Unauthenticated(cause="the signature is not that of a known key")

    def _proven_by(self, key: Key, token: str) -> bytes | None:
        try:
            return jws.deserialize_compact(token, key.material, registry=self._registry).payload
        except Exception:  # noqa: BLE001  (a dozen kinds; whichever it is, it is no proof)
            return None
