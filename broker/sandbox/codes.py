"""Authorisation codes: what a browser carries from the login page back to the page that asked.

Each is good once, for a minute, and only together with what it was asked with (RFC 6749 section
4.1, RFC 7636).  A code must never be worth anything to someone who has only read an address.
"""

import base64
import hashlib
import hmac
import re
import secrets
from typing import Final, NamedTuple

from broker.sandbox.clock import SandboxClock

CODE_SECONDS: Final = 60
_KEPT: Final = 1000
"""Codes under way; the oldest goes first, as no person logs in that often in a minute."""

_CHALLENGE: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_VERIFIER: Final = re.compile(r"[A-Za-z0-9._~-]{43,128}")


class Asked(NamedTuple):
    """What an authorisation request binds its code to."""

    client_id: str
    redirect_uri: str
    challenge: str


class Codes:
    """Those that were handed out and have not come back yet."""

    def __init__(self, clock: SandboxClock) -> None:
        self._clock = clock
        self._under_way: dict[str, tuple[Asked, str, float]] = {}

    def issue(self, asked: Asked, user: str) -> str:
        while len(self._under_way) >= _KEPT:
            del self._under_way[next(iter(self._under_way))]
        code = secrets.token_urlsafe(24)
        self._under_way[code] = (asked, user, self._clock.now() + CODE_SECONDS)
        return code

    def redeem(
        self, unverified_code: str, client_id: str, redirect_uri: str, verifier: str
    ) -> str | None:
        """The user that the code stands for; whatever is wrong with it, it is spent."""
        found = self._under_way.pop(unverified_code, None)
        if found is None:
            return None
        asked, user, until = found
        same = (asked.client_id, asked.redirect_uri) == (client_id, redirect_uri)
        good = same and _proves(verifier, asked.challenge) and self._clock.now() < until
        return user if good else None


def is_challenge(value: str) -> bool:
    return _CHALLENGE.fullmatch(value) is not None


def _proves(verifier: str, challenge: str) -> bool:
    if not _VERIFIER.fullmatch(verifier):
        return False
    digest = hashlib.sha256(verifier.encode()).digest()
    made = base64.urlsafe_b64encode(digest).rstrip(b"=")
    return hmac.compare_digest(made, challenge.encode())
