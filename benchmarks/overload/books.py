"""The generator's own books: which answers are right, which refuse properly, which are wrong.

Knows the contract and no more of the broker. Must never forgive: what is not right, and no 503 with
Retry-After, is wrong and has a name.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.overload.lines import Line


class Kind(StrEnum):
    """What one request is for. GONE rotates a handle whose end was answered; TAB is one of two that
    rotate one handle; REPEAT is one of two mints under one Idempotency-Key."""

    MINT = "mint"
    ROTATE = "rotate"
    END = "end"
    GONE = "gone"
    TAB = "tab"
    REPEAT = "repeat"


HELD = frozenset({Kind.ROTATE, Kind.END, Kind.GONE, Kind.TAB})
"""Asked by those who hold a session; the others ask for a first one."""


class Outcome(StrEnum):
    """RIGHT: as the contract says. REFUSED: 503 with Retry-After. LOST: cut off with a replica that
    was killed. GAVE_UP: nothing came for as long as a client waits."""

    RIGHT = "right"
    REFUSED = "refused"
    WRONG = "wrong"
    LOST = "lost"
    GAVE_UP = "gave_up"


@dataclass(slots=True, eq=False)
class Asked:
    """One request. due: when it was to be sent. phase: whose figures it belongs to.
    pair: shared by two requests that must get one token."""

    kind: Kind
    subject: int
    data: bytes
    handle: str = ""
    pair: Pair | None = None
    due: float = 0.0
    phase: int = 0
    line: Line | None = None
    done: bool = False


@dataclass(slots=True, eq=False)
class Pair:
    """Two requests that must get one token. again: the second, where it waits for the first.
    spoilt: one was answered wrongly, so that nothing can be said of their handle."""

    token: str = ""
    open: int = 2
    handle: str = ""
    spoilt: bool = False
    again: Asked | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the books look at. token, handle: empty where the body has none."""

    status: int
    retry_after: bool = False
    token: str = ""
    handle: str = ""


CUT = "a cut connection"
ROTATED = "an ended chain rotated"
TWO = "two tabs got two successors"
OTHER = "an idempotent repeat brought another token"
STRANGER = "a token of another caller"
BARE = "a 503 without Retry-After"

_GOOD = {Kind.END: 204, Kind.GONE: 410}


@dataclass
class Books:
    """Of one generator, over all of its phases."""

    wrong: Counter[str] = field(default_factory=Counter)
    """Since it was last emptied: in words, with how often."""
    _owners: dict[int, int] = field(default_factory=dict)
    """Who got a token, by the token's hash: the tokens themselves would fill the memory."""

    def judge(self, asked: Asked, answer: Answer) -> Outcome:
        if answer.status == 503 and answer.retry_after:
            return Outcome.REFUSED
        if why := self._wrong(asked, answer):
            self.wrong[why] += 1
            return Outcome.WRONG
        return Outcome.RIGHT

    def cut(self, *, excused: bool) -> Outcome:
        """The connection ended before the answer did. excused: its replica was killed."""
        if excused:
            return Outcome.LOST
        self.wrong[CUT] += 1
        return Outcome.WRONG

    def _wrong(self, asked: Asked, answer: Answer) -> str:
        """Why, in words; empty where the answer is right."""
        status, kind = answer.status, asked.kind
        if kind is Kind.GONE and 200 <= status < 300:
            return ROTATED
        if status == 503:
            return BARE
        if status >= 500:
            return f"status {status}"
        good = _GOOD.get(kind)
        if (status != good) if good else not 200 <= status < 300:
            return f"{status} to {kind}"
        if good:
            return ""
        if not (answer.token and answer.handle):
            return f"no token or no handle in the answer to {kind}"
        if self._owners.setdefault(hash(answer.token), asked.subject) != asked.subject:
            return STRANGER
        return self._pair(asked, answer)

    def _pair(self, asked: Asked, answer: Answer) -> str:
        pair = asked.pair
        if pair is None:
            return ""
        if not pair.token:
            pair.token, pair.handle = answer.token, answer.handle
        elif pair.token != answer.token:
            return TWO if asked.kind is Kind.TAB else OTHER
        return ""
