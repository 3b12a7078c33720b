"""Sealed handles: what was minted, for whom, until when, as text that only we can read or make.

A handle is a compact JWE (RFC 7516, `dir`, A256GCM) by joserfc. The key ring's newest key seals,
all of them open. A handle says who it is for but proves nobody: the caller is authenticated again.
It holds no credential and no session token. Whatever does not open is `HandleExpired`, with one
text: a stranger learns nothing, and a page does the right thing, which is to mint anew.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import orjson
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from joserfc import jwe
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from broker.errors import HandleExpired
from broker.model import JSON, Grant, Secret, fingerprint
from broker.strict import Unreadable, read_json

_REGISTRY = jwe.JWERegistry(algorithms=["dir", "A256GCM"])
MOST_PARAMETERS = 8192
"""Bytes of parameters in a handle: sealed and encoded they must fit a 16 KiB request again."""
MOST_HANDLE = 16384
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Handle:
    """One link of a chain. id: this link's own name, a UUID. chain: the name of its first link.
    caller, subject: whom it was made for.

    bound: digest of what the grant took from the caller. session_id: the upstream's name for the
    session, where it has one. Instants are aware UTC, whole seconds.
    """

    id: str
    chain: str
    profile: str
    caller: str
    subject: str
    chain_began: datetime
    issued_at: datetime
    expires_at: datetime
    bound: str
    session_id: str | None
    parameters: Mapping[str, JSON]


class Seal:
    """Seals and opens handles with a ring of keys, newest first."""

    def __init__(self, ring: Sequence[Secret]) -> None:
        """Raises ValueError for a key under 32 bytes. Each key is stretched (HKDF, RFC 5869), so
        that one file may serve several purposes."""
        self._keys: dict[str, OctKey] = {}
        self._headers: list[dict[str, str]] = []
        for secret in ring:
            raw = secret.reveal().encode()
            if len(raw) < _KEY_BYTES:
                raise ValueError("a sealing key has 32 bytes or more")
            key = HKDF(SHA256(), _KEY_BYTES, salt=None, info=b"token-broker handle 1").derive(raw)
            header = {"alg": "dir", "enc": "A256GCM", "kid": fingerprint(key.hex())[:8]}
            self._headers.append(header)
            self._keys.setdefault(_encoded(header), OctKey.import_key(key))

    def close(self, handle: Handle) -> str:
        """The handle as text. Raises IndexError on a ring without keys: see `Profile`."""
        header = self._headers[0]
        plain = orjson.dumps(
            [
                handle.id,
                handle.chain,
                handle.profile,
                handle.caller,
                handle.subject,
                int(handle.chain_began.timestamp()),
                int(handle.issued_at.timestamp()),
                int(handle.expires_at.timestamp()),
                handle.bound,
                handle.session_id,
                handle.parameters,
            ]
        )
        return jwe.encrypt_compact(header, plain, self._keys[_encoded(header)], registry=_REGISTRY)

    def open(self, text: str) -> Handle:
        """What was sealed. Raises HandleExpired, whatever is wrong with it."""
        key = self._keys.get(text.partition(".")[0]) if len(text) <= MOST_HANDLE else None
        if key is None:
            raise _unreadable("no key of the ring sealed it")
        try:
            plain = jwe.decrypt_compact(text, key, registry=_REGISTRY).plaintext
        except (JoseError, ValueError, TypeError, AssertionError) as exc:
            raise _unreadable(type(exc).__name__) from None
        return _read(plain or b"")


def _encoded(header: Mapping[str, str]) -> str:
    """The first part of every handle sealed under this header: joserfc writes it compactly."""
    raw = orjson.dumps(header)
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _unreadable(cause: str) -> HandleExpired:
    return HandleExpired("This handle is not valid any more; start a new session.", cause=cause)


def _read(plain: bytes) -> Handle:
    try:
        fields: list[Any] = read_json(plain)
        id_, chain, profile, caller, subject, *moments, bound, session_id, parameters = fields
        began, issued, expires = (datetime.fromtimestamp(moment, UTC) for moment in moments)
        return Handle(
            id_, chain, profile, caller, subject, began, issued, expires,
            bound, session_id, parameters,
        )  # fmt: skip
    except (Unreadable, ValueError, TypeError, OverflowError, OSError):
        raise _unreadable("sealed by another version") from None


def first_link(
    grant: Grant,
    session_id: str | None,
    parameters: Mapping[str, JSON],
    *,
    issued_at: datetime,
    expires_at: datetime,
) -> Handle:
    """The handle of a new chain's first session, after which the chain is named. parameters: those
    that are kept."""
    return Handle(
        id=grant.facts.unique,
        chain=grant.facts.unique,
        profile=grant.profile,
        caller=grant.caller.name,
        subject=grant.caller.subject,
        chain_began=issued_at,
        issued_at=issued_at,
        expires_at=expires_at,
        bound=bound_of(grant),
        session_id=session_id,
        parameters=parameters,
    )


def bound_of(grant: Grant) -> str:
    """Digest of what the grant took from its caller: the merchant, above all."""
    return fingerprint(orjson.dumps(grant.bound, option=orjson.OPT_SORT_KEYS).decode())


def next_link(
    before: Handle,
    grant: Grant,
    session_id: str | None,
    *,
    issued_at: datetime,
    expires_at: datetime,
) -> Handle:
    """The handle of the successor, in the same chain."""
    return replace(
        before,
        id=grant.facts.unique,
        issued_at=issued_at,
        expires_at=expires_at,
        session_id=session_id,
        parameters=grant.parameters,
    )
