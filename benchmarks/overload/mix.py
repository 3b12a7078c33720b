"""What is asked: an endless row of requests, with what becomes of the handles that come back.

Every request takes one place in the row, also the second tab, the repeat and the rotation after an
end: so the rate is one of requests, whatever the mix. A follow-up goes before everything new.
"""

from __future__ import annotations

import base64
import hmac
import itertools
import json
import random
import secrets
import time
from collections import deque

from benchmarks.overload.books import Answer, Asked, Kind, Outcome, Pair

PEOPLE = 1000
ORIGIN = "https://shop.example"
ISSUER, AUDIENCE = "pages", "token-broker"
SHARES = {Kind.MINT: 60, Kind.ROTATE: 25, Kind.END: 5, Kind.TAB: 5, Kind.REPEAT: 5}
"""Of what is begun; three of them are two requests, so 100 are 115 requests."""
FEWEST, MOST = 50, 2000
"""Handles: with fewer nobody rotates; of more, some are forgotten, so that none grows old."""
_MINT, _ROTATE, _END = "/v1/profiles/nmi/sessions", "/v1/sessions/rotate", "/v1/sessions/end"


def jwt(key: str, subject: int) -> str:
    """HS256, good for a day: longer than any run."""
    claims = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": f"user-{subject}", "exp": int(time.time()) + 86_400,
        "role": "owner", "merchant_id": str(100_000_000 + subject),
    }  # fmt: skip
    parts = [{"alg": "HS256", "typ": "JWT"}, claims]
    signed = b".".join(_packed(json.dumps(part).encode()) for part in parts)
    return (signed + b"." + _packed(hmac.digest(key.encode(), signed, "sha256"))).decode()


def _packed(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _head(path: str, token: str) -> bytes:
    """A request up to where its own fields begin, as a browser would send it."""
    lines = [
        f"POST {path} HTTP/1.1",
        "host: 127.0.0.1",
        f"authorization: Bearer {token}",
        f"origin: {ORIGIN}",
        "sec-fetch-site: same-site",
        "user-agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        "accept: application/json",
        "content-type: application/json",
        "",
    ]
    return "\r\n".join(lines).encode()


class Mix:
    """Gives the next request, and is told what came of each."""

    def __init__(self, key: str, seed: int, people: int = PEOPLE) -> None:
        """key: what the callers' JWTs are signed with."""
        tokens = [jwt(key, subject) for subject in range(people)]
        self._mints = [_head(_MINT, token) for token in tokens]
        self._rotates = [_head(_ROTATE, token) for token in tokens]
        self._ends = [_head(_END, token) for token in tokens]
        self._random = random.Random(seed)
        self._kinds, weights = list(SHARES), list(SHARES.values())
        self._weights = list(itertools.accumulate(weights))
        self._handles: list[tuple[int, str]] = []
        self._follow: deque[Asked] = deque()
        self._keys = (f"{secrets.token_hex(8)}-{n}" for n in itertools.count())

    def next(self) -> Asked:
        if self._follow:
            return self._follow.popleft()
        kind = self._random.choices(self._kinds, cum_weights=self._weights)[0]
        if kind not in (Kind.MINT, Kind.REPEAT) and len(self._handles) < FEWEST:
            kind = Kind.MINT
        if kind is Kind.MINT:
            return self._mint(Kind.MINT)
        if kind is Kind.REPEAT:
            return self._repeat()
        subject, handle = self._taken()
        if kind is Kind.TAB:
            return self._tabs(subject, handle)
        return self._held(kind, subject, handle)

    def came(self, asked: Asked, outcome: Outcome, answer: Answer | None) -> None:
        """Keeps the handle that a client would go on with, and adds what follows from the answer.

        After an end that was not answered nobody knows whether it was done: that handle is dropped.
        """
        right = outcome is Outcome.RIGHT and answer is not None
        if asked.pair is not None:
            self._came_of_pair(asked, asked.pair, outcome)
        elif asked.kind is Kind.END:
            if right:
                self._follow.append(self._held(Kind.GONE, asked.subject, asked.handle))
        elif right and answer is not None and answer.handle:
            self._keep(asked.subject, answer.handle)
        elif asked.kind is Kind.ROTATE and outcome is not Outcome.WRONG:
            self._keep(asked.subject, asked.handle)

    def _came_of_pair(self, asked: Asked, pair: Pair, outcome: Outcome) -> None:
        pair.open -= 1
        pair.spoilt |= outcome is Outcome.WRONG
        if pair.again is not None:
            again, pair.again = pair.again, None
            if outcome is Outcome.RIGHT:
                self._follow.append(again)
            else:
                pair.open -= 1
        handle = pair.handle or asked.handle
        if handle and pair.open == 0 and not pair.spoilt:
            self._keep(asked.subject, handle)

    def _mint(self, kind: Kind, subject: int = -1, key: str = "") -> Asked:
        subject = self._random.randrange(len(self._mints)) if subject < 0 else subject
        key = key or next(self._keys)
        fields = f"idempotency-key: {key}\r\ncontent-length: 2\r\n\r\n{{}}"
        return Asked(kind, subject, self._mints[subject] + fields.encode())

    def _repeat(self) -> Asked:
        """Half of the repeats come while the first is under way, half after its answer."""
        first = self._mint(Kind.REPEAT)
        again = Asked(Kind.REPEAT, first.subject, first.data)
        first.pair = again.pair = pair = Pair()
        if self._random.random() < 0.5:
            self._follow.append(again)
        else:
            pair.again = again
        return first

    def _tabs(self, subject: int, handle: str) -> Asked:
        one, other = (self._held(Kind.TAB, subject, handle) for _ in range(2))
        one.pair = other.pair = Pair()
        self._follow.append(other)
        return one

    def _held(self, kind: Kind, subject: int, handle: str) -> Asked:
        head = (self._ends if kind is Kind.END else self._rotates)[subject]
        body = b'{"handle":"%s"}' % handle.encode()
        data = b"%scontent-length: %d\r\n\r\n%s" % (head, len(body), body)
        return Asked(kind, subject, data, handle)

    def _keep(self, subject: int, handle: str) -> None:
        if len(self._handles) < MOST:
            self._handles.append((subject, handle))
        else:
            self._handles[self._random.randrange(MOST)] = (subject, handle)

    def _taken(self) -> tuple[int, str]:
        """Any handle, which then is nobody else's."""
        index = self._random.randrange(len(self._handles))
        self._handles[index], last = self._handles[-1], self._handles[index]
        self._handles.pop()
        return last
