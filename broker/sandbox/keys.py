"""Signing keys of the sandbox's issuers, and JWTs made with them.

Written straight on `cryptography`, not on the JOSE library that the broker verifies with: two
halves that share a library can share a bug and agree.  Private keys live and die in memory;
nothing here may write or log one.
"""

import base64
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_P256_BYTES = 32

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

_GENERATE: Mapping[str, Callable[[], PrivateKey]] = {
    "RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}

ALGORITHMS = tuple(_GENERATE)


class SigningKey:
    """One private key with its algorithm and key id."""

    __slots__ = ("_private", "algorithm", "kid")

    def __init__(self, algorithm: str, kid: str) -> None:
        self.algorithm = algorithm
        self.kid = kid
        self._private = _GENERATE[algorithm]()

    def sign(self, data: bytes) -> bytes:
        key = self._private
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(data, padding.PKCS1v15(), SHA256())
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return key.sign(data)
        # JWS wants r and s side by side (RFC 7518 section 3.4), not the ASN.1 of X.509.
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256())))
        return r.to_bytes(_P256_BYTES, "big") + s.to_bytes(_P256_BYTES, "big")

    def verify(self, signature: bytes, data: bytes) -> bool:
        key = self._private
        try:
            if isinstance(key, rsa.RSAPrivateKey):
                key.public_key().verify(signature, data, padding.PKCS1v15(), SHA256())
            elif isinstance(key, ed25519.Ed25519PrivateKey):
                key.public_key().verify(signature, data)
            else:
                r = int.from_bytes(signature[:_P256_BYTES], "big")
                s = int.from_bytes(signature[_P256_BYTES:], "big")
                der = encode_dss_signature(r, s)
                key.public_key().verify(der, data, ec.ECDSA(SHA256()))
        except InvalidSignature:
            return False
        return True

    def public_jwk(self) -> dict[str, str]:
        common = {"use": "sig", "alg": self.algorithm, "kid": self.kid}
        key = self._private
        if isinstance(key, rsa.RSAPrivateKey):
            numbers = key.public_key().public_numbers()
            return {"kty": "RSA", "n": _b64_int(numbers.n), "e": _b64_int(numbers.e), **common}
        if isinstance(key, ed25519.Ed25519PrivateKey):
            raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            return {"kty": "OKP", "crv": "Ed25519", "x": b64(raw), **common}
        point = key.public_key().public_numbers()
        x, y = (b64(n.to_bytes(_P256_BYTES, "big")) for n in (point.x, point.y))
        return {"kty": "EC", "crv": "P-256", "x": x, "y": y, **common}


class SigningKeys:
    """The current key of each algorithm, and those of before that are still published.

    Keys are made on first use: an RSA key takes some tens of milliseconds, which a test that
    never asks for a JWT should not pay.
    """

    def __init__(self, algorithms: tuple[str, ...]) -> None:
        self._algorithms = algorithms
        self._current: dict[str, SigningKey] = {}
        self._previous: dict[str, SigningKey] = {}

    def rotate(self, *, keep_previous: bool) -> list[str]:
        """New keys for everything; the outgoing ones stay published or vanish at once."""
        outgoing = [self._key(a) for a in self._algorithms] if keep_previous else []
        self._previous = {key.kid: key for key in outgoing}
        self._current = {}
        return [self._key(algorithm).kid for algorithm in self._algorithms]

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        keys = [*(self._key(a) for a in self._algorithms), *self._previous.values()]
        return {"keys": [key.public_jwk() for key in keys]}

    def encode(self, algorithm: str, typ: str, claims: Mapping[str, Any]) -> str:
        key = self._key(algorithm)
        header = {"alg": algorithm, "typ": typ, "kid": key.kid}
        signed = f"{_part(header)}.{_part(claims)}"
        return f"{signed}.{b64(key.sign(signed.encode()))}"

    def verified_claims(self, unverified_token: str) -> dict[str, Any] | None:
        """Claims of a JWT that one of our published keys signed; times are not looked at."""
        signed, _, signature = unverified_token.rpartition(".")
        try:
            header = json.loads(unb64(signed.partition(".")[0]))
            key = self._published(header["kid"])
            if key is None or not key.verify(unb64(signature), signed.encode()):
                return None
            claims = json.loads(unb64(signed.partition(".")[2]))
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        return claims if isinstance(claims, dict) else None

    def _published(self, kid: str) -> SigningKey | None:
        for key in self._current.values():
            if key.kid == kid:
                return key
        return self._previous.get(kid)

    def _key(self, algorithm: str) -> SigningKey:
        if algorithm not in self._current:
            # Not from the seed: no cache may take a new server's key for an old one.
            kid = f"{algorithm.lower()}-{secrets.token_hex(6)}"
            self._current[algorithm] = SigningKey(algorithm, kid)
        return self._current[algorithm]


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def unb64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)


def _part(value: Mapping[str, Any]) -> str:
    return b64(json.dumps(value, separators=(",", ":")).encode())


def _b64_int(number: int) -> str:
    return b64(number.to_bytes((number.bit_length() + 7) // 8, "big"))
