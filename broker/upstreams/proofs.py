"""How an OAuth 2 client proves itself: by showing its secret, or by an assertion it signs.

Exists so that `oauth` can try one version of a credential after another without knowing what a
proof is. Authlib does the work (RFC 6749 §2.3.1, RFC 7523). Must never guess a method, which would
send the secret twice, nor let a word of a key into an exception.
"""

from __future__ import annotations

import base64
import uuid
import warnings
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote_plus, urlencode

from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from cachetools import LRUCache
from joserfc import jwk
from joserfc.errors import SecurityWarning

from broker.file import CredentialEntry
from broker.model import Secret
from broker.schedule import Clock
from broker.strict import read_json

ASSERTION_LIFE = 300
"""Seconds: longer than clocks are apart, short enough for servers that refuse long assertions."""
_KEPT = 8
_KEY_TYPES = {"RS256": "RSA", "PS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}

Prove = Callable[[dict[str, str], str], tuple[dict[str, str], str]]
"""Headers and form to headers and form with which the client has proven itself."""


class Unusable(Exception):
    """A private key that cannot sign what is configured."""


class Proofs:
    """The proofs of one credential, each made once for its values: reading an RSA key takes long
    enough for others to notice."""

    def __init__(self, entry: CredentialEntry, clock: Clock) -> None:
        self._entry = entry
        self._clock = clock
        self._made: LRUCache[tuple[Secret, ...], Prove] = LRUCache(_KEPT)

    def of(self, values: Mapping[str, Secret]) -> Prove:
        """values: client_id, and client_secret or private_key. Raises Unusable."""
        key = tuple(values.values())
        found = self._made.get(key)
        if found is None:
            client_id = values["client_id"].reveal()
            if "private_key" in values:
                found = self._signed(client_id, values["private_key"])
            else:
                found = self._shown(client_id, values["client_secret"])
            self._made[key] = found
        return found

    def _shown(self, client_id: str, secret: Secret) -> Prove:
        """Proof by showing the secret, in the form or by HTTP Basic."""
        method: Any = self._entry.client_auth
        encode: Callable[[str], str] = str
        if method == "client_secret_basic":
            # Authlib's Basic does neither RFC 6749's form encoding nor any text beyond Latin-1.
            encode = quote_plus if self._entry.basic_encoding == "form" else str
            method = _basic

        def prove(headers: dict[str, str], form: str) -> tuple[dict[str, str], str]:
            auth = ClientAuth(encode(client_id), encode(secret.reveal()), method)
            _, proven, body = auth.prepare("POST", self._entry.token_url, headers, form)
            return proven, body

        return prove

    def _signed(self, client_id: str, pem: Secret) -> Prove:
        try:
            prove = self._signed_with(client_id, _key_of(pem.reveal(), self._entry.assertion_alg))
            prove({}, "")
        except Exception:  # noqa: BLE001  (a dozen kinds, whose texts may quote the key)
            alg = self._entry.assertion_alg
            raise Unusable(f"is no private key, PEM or JWK, that {alg} can use") from None
        return prove

    def _signed_with(self, client_id: str, key: jwk.Key) -> Prove:
        """Proof by an assertion of our own, each with a new `jti`: servers refuse a second use."""
        entry = self._entry
        kid = entry.assertion_kid or key.kid

        def prove(headers: dict[str, str], form: str) -> tuple[dict[str, str], str]:
            now = int(self._clock.now().timestamp())
            method = PrivateKeyJWT(
                entry.assertion_audience or entry.token_url,
                claims={"jti": str(uuid.uuid4()), "iat": now, "exp": now + ASSERTION_LIFE},
                headers={"kid": kid} if kid else {},
                alg=entry.assertion_alg,
            )
            form += "&" + urlencode({"client_id": client_id})
            auth = ClientAuth(client_id, key, method)
            with warnings.catch_warnings():
                # RFC 9864 renames EdDSA to Ed25519; servers do not know the new name yet.
                warnings.simplefilter("ignore", SecurityWarning)
                _, proven, body = auth.prepare("POST", entry.token_url, headers, form)
            return proven, body

        return prove


def _basic(
    client: ClientAuth, _method: str, uri: str, headers: dict[str, str], body: str
) -> tuple[str, dict[str, str], str]:
    """HTTP Basic in UTF-8 (RFC 7617 §2.1), as an Authlib authentication method."""
    pair = f"{client.client_id}:{client.client_secret}".encode()
    headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    return uri, headers, body


def _key_of(text: str, alg: str) -> jwk.Key:
    """A private key for `alg`. Raises whatever the libraries raise."""
    tree: Any = read_json(text) if text.lstrip().startswith("{") else text
    with warnings.catch_warnings():
        warnings.simplefilter("error", SecurityWarning)  # an RSA key under 2048 bits
        return jwk.import_key(tree, _KEY_TYPES[alg])  # type: ignore[call-overload,no-any-return]
