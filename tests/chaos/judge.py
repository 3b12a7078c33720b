"""Judges every answer from outside, and keeps the figures of a row.

Knows the contract (statuses, problems, headers, what a token must be) and what the row allows just
now. Must never forgive what no row allows: a 500, a 401 for a good credential, a token under its
floor or of another merchant.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.chaos import config

PROBLEMS = {
    "handle-expired": 410,
    "internal-error": 500,
    "invalid-parameters": 422,
    "malformed-request": 400,
    "min-fresh-not-met": 412,
    "not-permitted": 403,
    "overloaded": 503,
    "rate-limited": 429,
    "request-timeout": 408,
    "unauthenticated": 401,
    "upstream-nonsense": 502,
    "upstream-refused": 502,
    "upstream-timeout": 504,
    "upstream-unavailable": 503,
}
"""What the README documents and the load could meet at all."""
CUT = "cut"
"""The connection was refused or ended without an answer."""
SILENT = "silent"
"""No answer at all, for as long as a client waits."""
GONE = "410 after an end"
"""What a caller who has ended a chain must get for its handle."""
LATE = config.BUDGET + 1.0
"""Seconds after which an answer is wrong, whatever it says."""
UPSTREAM_DOWN = frozenset({"upstream-unavailable", "upstream-timeout"})
BUSY = frozenset({"overloaded"})
ASKED = ("nmi", "flow", "rotate", "ended", "end", "access")
"""The kinds of requests that there are."""
_OF_THE_DEAD = UPSTREAM_DOWN | {CUT, SILENT, "request-timeout"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back to one request; status 0 is none."""

    kind: str
    subject: str
    sent: float
    seconds: float
    status: int
    outcome: str
    """`ok`, a problem's slug, CUT or SILENT."""
    body: dict[str, Any]
    headers: dict[str, str]
    target: str
    allowed: frozenset[str]
    """What was allowed at any time while it was under way."""

    @property
    def ok(self) -> bool:
        return self.outcome == "ok"


@dataclass(frozen=True, slots=True)
class _Allowance:
    """What a row allows by kind, up to a monotonic time."""

    outcomes: dict[str, frozenset[str] | set[str]]
    until: float


@dataclass
class Judge:
    """The figures of one row, and the wrong answers with their reasons.

    access_floor: seconds that an access token must have left when it is handed out.
    """

    access_floor: float = 30.0
    requests: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    slowest_refusal: float = 0.0
    """Of those that said 503 overloaded."""
    wrong: Counter[str] = field(default_factory=Counter)
    """What was wrong, in words, with how often."""
    under_floor: int = 0
    tokens: int = 0
    access_tokens: set[str] = field(default_factory=set)
    nmi_tokens: set[str] = field(default_factory=set)
    shared: bool = True
    """Do the replicas share a store that works? Else each may have a memory of its own."""
    epoch: int = 0
    """Grows when the store forgets: nothing of before can be expected after."""
    excused: set[str] = field(default_factory=set)
    """Brokers that the row has stopped or killed: of them silence may be expected."""
    is_starved: bool = False
    """Is everything short of the processor, so that 503 overloaded may be said to anybody?"""
    skew: float = 0.0
    """How far ahead the upstream's clock is."""
    skewed_at: float = 0.0
    """When that was set: of what was minted before nothing is said."""
    _owners: dict[str, tuple[str, float]] = field(default_factory=dict)
    late: float = LATE
    """Seconds after which an answer is wrong; more where the callers themselves are kept waiting."""
    _allowed: list[_Allowance] = field(default_factory=list)
    _recent: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=4000))

    # --- what a row says ----------------------------------------------------------------------

    @contextlib.contextmanager
    def allowing(
        self, *, seconds: float = math.inf, **outcomes: frozenset[str] | set[str]
    ) -> Iterator[None]:
        """Meanwhile answers of these kinds may be these problems; `every` is for all kinds of
        requests. seconds: how long at the most."""
        allowance = _Allowance(outcomes, time.monotonic() + seconds)
        self._allowed.append(allowance)
        try:
            yield
        finally:
            self._allowed.remove(allowance)

    def allowed(self, kind: str, target: str = "") -> frozenset[str]:
        # A token that the upstream does not know ("unknown") is no answer to a request.
        kinds = {kind, "every"} if kind in ASKED else {kind}
        now = time.monotonic()
        told = [
            problems
            for allowance in self._allowed
            if now < allowance.until
            for name, problems in allowance.outcomes.items()
            if name in kinds
        ]
        more = [_OF_THE_DEAD] if target in self.excused else []
        return frozenset().union(*told, *more, BUSY if self.is_starved and kind in ASKED else ())

    def skewing(self) -> None:
        """The upstream's clock is about to be set: nothing is said of lives until it was."""
        self.skewed_at = math.inf

    def skewed(self, seconds: float) -> None:
        self.skew, self.skewed_at = seconds, time.monotonic()

    def calm_for(self, seconds: float) -> bool:
        """Have all answers of the last `seconds` been good, and were there any?"""
        since = time.monotonic() - seconds
        last = [good for at, good in self._recent if at >= since]
        return bool(last) and all(last)

    @property
    def errors(self) -> int:
        """Answers that were neither a success nor the end that a caller had asked for."""
        return self.outcomes.total() - self.outcomes["ok"] - self.outcomes[GONE]

    @property
    def wrong_answers(self) -> int:
        """But for tokens under their floor, which are counted by themselves."""
        return self.wrong.total() - self.under_floor

    def complain(self, reason: str) -> None:
        self.wrong[reason] += 1

    # --- what comes back ----------------------------------------------------------------------

    def see(self, answer: Answer) -> None:
        """Counts an answer and judges all that can be judged of it alone."""
        self.requests += 1
        put_off = self.is_starved and answer.outcome in BUSY
        over = answer.kind == "ended" and answer.outcome == "handle-expired"
        expected = answer.ok or over or put_off
        self.outcomes[GONE if over else answer.outcome] += 1
        self.slowest = max(self.slowest, answer.seconds)
        if answer.outcome in BUSY:
            self.slowest_refusal = max(self.slowest_refusal, answer.seconds)
        self._recent.append((time.monotonic(), expected))
        for fault in self._faults(answer):
            self.complain(f"{answer.kind}: {fault}")

    def _faults(self, answer: Answer) -> Iterator[str]:
        silent = SILENT in answer.allowed
        if answer.seconds > self.late and answer.status and not silent:
            yield f"answered after more than {self.late:.0f} s ({answer.outcome})"
        if answer.status == 0:
            if answer.outcome not in answer.allowed:
                yield f"no answer: {answer.outcome}"
        elif answer.ok:
            yield from self._token_faults(answer)
        elif answer.outcome == "handle-expired" and answer.kind == "ended":
            return
        elif PROBLEMS.get(answer.outcome) != answer.status:
            yield f"undocumented: {answer.status} {answer.outcome}"
        elif answer.outcome not in answer.allowed:
            yield f"not allowed here: {answer.status} {answer.outcome}"
        elif answer.status in (429, 503) and not answer.headers.get("retry-after", "").isdigit():
            yield f"no Retry-After: {answer.status} {answer.outcome}"

    def _token_faults(self, answer: Answer) -> Iterator[str]:
        if answer.kind == "end":
            return
        if answer.headers.get("cache-control") != "no-store":
            yield "a token without no-store"
        if not answer.headers.get("cache-status", "").startswith("token-broker; "):
            yield "a token without Cache-Status"
        if answer.kind == "access":
            yield from self._access_faults(answer)
            return
        token = str(answer.body.get("session_token"))
        self.tokens += 1
        owner, since = self._owners.setdefault(token, (answer.subject, answer.sent))
        if owner != answer.subject:
            yield "a token of another caller"
        told = float(answer.body["expires_in"])
        if answer.kind == "flow":
            self._floor(told, 30.0)
            if not 0 < told <= config.FLOW_LIFE + 1:
                yield f"a Flow session of {told:.0f} s"
            return
        self.nmi_tokens.add(token)
        expires, merchant = opened(token)
        if merchant != merchant_of(answer.subject):
            yield "a token of another merchant"
        if since < self.skewed_at:
            return
        left = expires - time.time() - self.skew
        self._floor(min(left, told), config.NMI_FLOOR)
        if told > left + answer.seconds + 1.5:
            yield f"expires_in says {told:.0f} s, of which there are {left:.0f}"

    def _access_faults(self, answer: Answer) -> Iterator[str]:
        token, told = str(answer.body.get("access_token")), float(answer.body["expires_in"])
        self.access_tokens.add(token)
        self._floor(told, self.access_floor)
        claims = claims_in(token)
        # By what it was issued with: the upstream's clock may have been stepped since.
        left = claims["exp"] - (time.time() if not self.skewed_at else claims["iat"])
        if told > left + answer.seconds + 1.5:
            yield f"an access token said to have {told:.0f} s, of which there are {left:.0f}"

    def _floor(self, left: float, floor: float) -> None:
        # Whole seconds are told, and the answer took its time to come here.
        if left < floor - 1.5:
            self.under_floor += 1
            self.complain(f"{left:.1f} s left, the floor is {floor:.0f}")


def merchant_of(subject: str) -> str:
    return f"m-{subject}"


def opened(token: str) -> tuple[float, str]:
    """Expiry and merchant of an NMI session, as the sandbox itself wrote them into its token."""
    sealed = unpacked(token.removeprefix("st_"))
    expires, _variant, merchant = json.loads(sealed[24:])
    return float(expires), merchant


def claims_in(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = json.loads(unpacked(token.split(".")[1]))
    return claims


def unpacked(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
