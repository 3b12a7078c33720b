"""Opaque tokens that carry their own contents, so that the sandbox has nothing to remember.

A benchmark mints millions of sessions; a table of them would outgrow the machine.  The token
is a keyed digest over its contents: no one else can make one, and nobody may read meaning
into one from outside.
"""

import base64
import binascii
import hmac
import json
from collections.abc import Callable

from broker.sandbox.clock import SandboxClock

_NONCE = 9
_DIGEST = 15
"""Nonce and digest together are 24 bytes: 32 characters of base64 with nothing to pad."""


class OpaqueTokens:
    """Makes and opens the tokens of one kind; other kinds have another key and prefix."""

    def __init__(
        self, prefix: str, clock: SandboxClock, random_bytes: Callable[[int], bytes]
    ) -> None:
        self._prefix = prefix
        self._clock = clock
        self._random_bytes = random_bytes
        self._key = random_bytes(32)

    def mint(self, expires_at: int, *fields: str) -> str:
        contents = self._random_bytes(_NONCE) + json.dumps([expires_at, *fields]).encode()
        sealed = hmac.digest(self._key, contents, "sha256")[:_DIGEST] + contents
        return self._prefix + base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()

    def revoke_everything(self) -> None:
        self._key = self._random_bytes(32)

    def open(self, unverified_token: str) -> tuple[int, list[str]] | None:
        """Expiry and fields of a live token of ours, else None."""
        encoded = unverified_token.removeprefix(self._prefix)
        if encoded == unverified_token:
            return None
        try:
            sealed = base64.b64decode(encoded + "=" * (-len(encoded) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        digest, contents = sealed[:_DIGEST], sealed[_DIGEST:]
        expected = hmac.digest(self._key, contents, "sha256")[:_DIGEST]
        if not hmac.compare_digest(digest, expected):
            return None
        expires_at, *fields = json.loads(contents[_NONCE:])
        return (expires_at, fields) if expires_at > self._clock.now() else None
