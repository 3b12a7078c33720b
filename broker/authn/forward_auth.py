"""Asks the application's own "who is this" endpoint, with the request's own credentials.

For applications whose sessions only they understand. Must never pass on more than the configured
headers and cookies, nor take an answer that is not plainly yes or no for either.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

from broker.authn.proof import (
    MOST_SUBJECT,
    MOST_TOKEN,
    Asking,
    Proofs,
    Proven,
    is_subject,
    read_object,
    unavailable,
)
from broker.errors import Unauthenticated
from broker.file import ForwardAuthCaller
from broker.flights import Flights, Spawn
from broker.holes import ABSENT, value_at
from broker.model import JSON, Caller
from broker.schedule import Clock
from broker.strict import Unreadable

_SENDABLE = re.compile(r"[\x20-\x7e]+")
"""A header value that cannot break a request's lines or change on its way through encodings."""


class ForwardAuth:
    """One entry of `callers` with `type: forward_auth`."""

    def __init__(
        self,
        name: str,
        entry: ForwardAuthCaller,
        asking: Asking,
        clock: Clock,
        proofs: Proofs,
        spawn: Spawn,
    ) -> None:
        self.name = name
        self._entry = entry
        self._cookies = frozenset(entry.cookies)
        self._cache = entry.cache.total_seconds()
        self._asking = asking
        self._clock = clock
        self._proofs = proofs
        self._flights: Flights[bytes, Caller] = Flights(spawn)

    def passes_on(self, authorization: str, cookie: str) -> dict[str, str]:
        """The headers to send, as yet unchecked; none where this request is not for this entry."""
        found = {}
        if "cookie" in self._entry.headers:
            found["Cookie"] = self._filtered(cookie)
        if "authorization" in self._entry.headers:
            found["Authorization"] = authorization
        return {name: value for name, value in found.items() if value}

    async def authenticate(self, sent: Mapping[str, str]) -> tuple[Caller, bool]:
        """The caller, and whether that was known already. sent: what `passes_on` said.

        Raises Unauthenticated, UpstreamUnavailable, UpstreamTimeout.
        """
        if any(len(one) > MOST_TOKEN or not _SENDABLE.fullmatch(one) for one in sent.values()):
            raise Unauthenticated(cause="a credential that cannot be passed on")
        shape = json.dumps([self.name, sorted(sent.items())])
        digest = b"forward" + hashlib.sha256(shape.encode()).digest()
        known = self._proofs.get(digest)
        if known is not None:
            return known, True
        caller, _ = await self._flights.join(digest, lambda: self._ask(sent, digest))
        return caller, False

    async def _ask(self, sent: Mapping[str, str], digest: bytes) -> Caller:
        headers = {"Accept": "application/json", **sent}
        answer = await self._asking.ask("whoami", "GET", self._entry.url, headers)
        if answer.status in (401, 403):
            raise Unauthenticated(cause=f"HTTP status {answer.status}")
        if not 200 <= answer.status < 300:
            raise unavailable(f"forward_auth: HTTP status {answer.status}")
        try:
            caller = self._caller(read_object(answer.body))
        except Unreadable as exc:
            raise unavailable(f"forward_auth: {exc.reason}") from None
        self._proofs.put(digest, Proven(caller, self._clock.monotonic() + self._cache))
        return caller

    def _caller(self, tree: JSON) -> Caller:
        subject = value_at(tree, self._entry.subject)
        if not is_subject(subject):
            raise Unreadable(f"subject is no text of 1 to {MOST_SUBJECT} printable characters")
        claims = value_at(tree, self._entry.claims)
        claims = None if claims is ABSENT else claims
        if claims is not None and not isinstance(claims, dict):
            raise Unreadable("claims is no object")
        return Caller(self.name, subject, claims or {})

    def _filtered(self, cookie: str) -> str:
        """The configured cookies; where none are, all that can be sent.

        Left out, not repaired: an advertiser's odd cookie must lock nobody out.
        """
        if len(cookie) > MOST_TOKEN:
            return cookie
        pairs = [pair.strip(" \t") for pair in cookie.split(";")]
        if self._cookies:
            return "; ".join(p for p in pairs if p.split("=", 1)[0].rstrip() in self._cookies)
        return "; ".join(p for p in pairs if _SENDABLE.fullmatch(p))
