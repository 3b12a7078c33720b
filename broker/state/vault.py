"""Sealing and naming for what lies in the shared store, so that reading the store gives nothing.

Keys are made from the ring that seals handles (HKDF, RFC 5869), one for each purpose; the newest
one seals and names, all of them open. A value is bound to the name it lies under. Nothing here may
raise on what the store gives back: that is a stranger's text, and what does not open is not there.

Nonces are random, for which NIST SP 800-38D §8.3 allows 2^32 sealings under one key (a collision is
then under 2^-32). At a thousand sealings a second, by all replicas together, that is 49 days: put a
new key at the head of the ring every month, where so much is kept.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from broker.model import Secret

_KEY_BYTES = 32
_VERSION = b"\x01"
_KID_BYTES = 8
_NONCE_BYTES = 12
_HEAD_BYTES = 1 + _KID_BYTES + _NONCE_BYTES
TAG_BYTES = 16
"""Of `Vault.tags`: two different values under one name share one by a chance of 2^-128."""


@dataclass(frozen=True, slots=True, repr=False)
class _Key:
    """What one key of the ring is stretched to."""

    id: bytes
    seal: AESGCM
    digest: bytes
    name: bytes
    tag: bytes


class Vault:
    """A ring of keys, newest first. Without any, a random key: this process alone reads itself."""

    def __init__(self, ring: Sequence[Secret]) -> None:
        """Raises ValueError for a key under 32 bytes."""
        self._alone = _stretched(secrets.token_bytes(_KEY_BYTES))
        self.replace(ring)

    def replace(self, ring: Sequence[Secret]) -> None:
        """The ring from now on. Raises ValueError for a key under 32 bytes; nothing changes then.

        Whoever is without any has the same random key for as long as the process lives."""
        keys = [_stretched(secret.reveal().encode()) for secret in ring] or [self._alone]
        self._newest = keys[0]
        self._keys = {key.id: key for key in keys}

    def seal(self, name: str, plain: bytes) -> bytes:
        """A version byte, the key's id, a nonce, and `plain` encrypted (AES-256-GCM), which opens
        under this name only."""
        head = _VERSION + self._newest.id
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return head + nonce + self._newest.seal.encrypt(nonce, plain, _bound(head, name))

    def open(self, name: str, sealed: bytes) -> bytes | None:
        """What was sealed; None where no key of the ring opens it under this name."""
        head, nonce = sealed[: 1 + _KID_BYTES], sealed[1 + _KID_BYTES : _HEAD_BYTES]
        key = self._keys.get(head[1:])
        if key is None or head[:1] != _VERSION or len(nonce) < _NONCE_BYTES:
            return None
        try:
            return key.seal.decrypt(nonce, sealed[_HEAD_BYTES:], _bound(head, name))
        except InvalidTag:
            return None

    def tags(self, name: str, plain: bytes) -> list[bytes]:
        """What tells, without opening it, that `plain` lies under a name: a short keyed digest for
        each key of the ring, newest first, as another replica may have another one for newest."""
        said = _encoded((name,)) + b"\0" + plain  # JSON has no NUL
        return [_mac(key.tag, said).digest()[:TAG_BYTES] for key in self._keys.values()]

    def digest(self, *parts: str) -> str:
        """`kid:hex`, by which `same` knows these parts again and nobody else learns them."""
        return _digest(self._newest, parts)

    def same(self, digest: str, *parts: str) -> bool | None:
        """Is this the digest of these parts? None where the ring has not the key it was made with:
        then nobody knows."""
        try:
            key = self._keys.get(bytes.fromhex(digest.partition(":")[0]))
        except ValueError:
            return None
        if key is None:
            return None
        return hmac.compare_digest(_digest(key, parts).encode(), digest.encode(errors="replace"))

    def name_of(self, *parts: str) -> str:
        """A name to keep something under that is everything these parts are, and tells none of
        it. With a new key at the head of the ring, other names: what was kept is made again."""
        return _mac(self._newest.name, _encoded(parts)).hexdigest()


def _stretched(raw: bytes) -> _Key:
    if len(raw) < _KEY_BYTES:
        raise ValueError("a sealing key has 32 bytes or more")

    def derive(purpose: str, length: int = _KEY_BYTES) -> bytes:
        info = f"token-broker store {purpose} 1".encode()
        return HKDF(SHA256(), length, salt=None, info=info).derive(raw)

    return _Key(
        derive("id", _KID_BYTES),
        AESGCM(derive("seal")),
        derive("digest"),
        derive("name"),
        derive("tag"),
    )


def _bound(head: bytes, name: str) -> bytes:
    """The associated data: everything that is not encrypted, and where it lies."""
    return head + _encoded((name,))


def _encoded(parts: Sequence[str]) -> bytes:
    """One text for one sequence of texts, whatever is in them, lone surrogates included."""
    return json.dumps(parts).encode()


def _mac(key: bytes, said: bytes) -> hmac.HMAC:
    return hmac.new(key, said, hashlib.sha256)


def _digest(key: _Key, parts: Sequence[str]) -> str:
    return f"{key.id.hex()}:{_mac(key.digest, _encoded(parts)).hexdigest()}"
