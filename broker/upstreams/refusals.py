"""What it means when an upstream says no: one of our errors, with what the log may know of it, and
whether to ask again.

Pure. No text of an upstream is passed on, and of a refusal the log is told only what has the form
of a code or an id: an upstream that repeats what it was sent must not get it into our log.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

from broker.breaker import CredentialRefused, NotForThis
from broker.errors import (
    ActionNotAllowed,
    BrokerError,
    HandleExpired,
    InvalidParameters,
    Throttled,
    UpstreamNonsense,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from broker.holes import ABSENT, value_at
from broker.model import JSON, Priority
from broker.presets.vocabulary import PresetFile, Refusal, Request
from broker.schedule import parse_retry_after
from broker.strict import Unreadable, read_json
from broker.upstreams.answers import first_at
from broker.upstreams.transport import Answer, BrokenOff, NotSent

_CODE = re.compile(r"[a-z][a-z0-9_]{1,63}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{3,63}")
_CARD = re.compile(r"(?:\d[-_]?){13}")
"""Digits in a row, be they in groups, that may be a card's number; few ids have so many."""
_MOST_CODES = 5
_PASSING = (408, 425, 429)
"""Statuses under 500 that pass by themselves."""
_OF_SESSIONS = {"action-not-allowed", "busy", "done", "handle-expired"}


class Busy(NotForThis):
    """The session is being worked on by another call: worth another try in a moment."""


class Done(BrokerError):
    """It has happened all the same. Never leaves `upstreams`."""


def refusal_of(
    file: PresetFile, answer: Answer, conflict: list[int] | None, now: datetime
) -> BrokerError:
    """The error for an answer that is not a good one.

    conflict: statuses that mean a session's wrong state; None where there is no session yet, of
    which a refusal could tell."""
    tree = _tree(answer)
    told = _diagnosis(file, answer, tree)
    cause = f"status {answer.status}{told}"
    for rule in file.refusals:
        if conflict is None and rule.means in _OF_SESSIONS:
            continue
        if _fits(rule, answer.status, tree):
            return _meaning(rule.means, cause, answer.status, _wait(answer, now))
    if answer.status in (conflict or ()):
        return _meaning("action-not-allowed", cause, answer.status, None)
    if answer.status in _PASSING or answer.status >= 500:
        return _meaning("upstream-unavailable", cause, answer.status, _wait(answer, now))
    if answer.status == 401:
        return CredentialRefused("The upstream refused the request.", cause=cause)
    if 400 <= answer.status < 500:
        return UpstreamRefused("The upstream refused the request.", cause=cause)
    return UpstreamNonsense("The upstream's answer is not one that is known.", cause=cause)


def repeats(request: Request, priority: Priority) -> Callable[[BrokerError], bool]:
    """After which errors a call may be made again within its deadline. Whom nobody waits for has
    another time of their own, and leaves the upstream's budget to those who wait."""
    if priority is not Priority.PERSON:
        return _never
    return _if_safe if request.may_repeat else _if_not_sent


def _never(_: BrokerError) -> bool:
    return False


def _if_not_sent(error: BrokerError) -> bool:
    return isinstance(error, NotSent)


def _if_safe(error: BrokerError) -> bool:
    """Whatever passes by itself. A whole answer that is nonsense would be the same again."""
    return isinstance(error, UpstreamUnavailable | UpstreamTimeout | BrokenOff) and not isinstance(
        error, Throttled | NotForThis
    )


def _meaning(means: str, cause: str, status: int, wait: float | None) -> BrokerError:
    match means:
        case "action-not-allowed":
            return ActionNotAllowed("The session is not in a state for this.", cause=cause)
        case "handle-expired":
            return HandleExpired("The upstream does not know this session any more.", cause=cause)
        case "invalid-parameters":
            return InvalidParameters("The upstream does not take these values.", cause=cause)
        case "done":
            return Done(cause=cause)
        case "busy":
            return Busy("The session is being worked on.", cause=cause, retry_after=wait)
    kind: type[UpstreamUnavailable] = (
        NotForThis  # a preset's word for another status: what is down is not the upstream
    )
    if status == 429:
        kind = Throttled
    elif status in _PASSING or status >= 500:
        kind = UpstreamUnavailable
    return kind("The upstream cannot answer now.", cause=cause, retry_after=wait)


def _wait(answer: Answer, now: datetime) -> float | None:
    """With a status that asks for a pause of all: another, one odd request may have met with."""
    if answer.status not in (429, 503):
        return None
    return parse_retry_after(answer.headers.get("retry-after"), now)


def _tree(answer: Answer) -> JSON:
    """The body where it is JSON: an error page is as good as none."""
    try:
        return read_json(answer.body, any_number=True)
    except Unreadable:
        return None


def _fits(rule: Refusal, status: int, tree: JSON) -> bool:
    if rule.status not in (None, status):
        return False
    if rule.at is None:
        return True
    found = value_at(tree, rule.at)
    texts = found if isinstance(found, list) else [found]
    return any(isinstance(text, str) and re.search(rule.pattern, text[:256]) for text in texts)


def _diagnosis(file: PresetFile, answer: Answer, tree: JSON) -> str:
    """`: code, code (upstream request req-…)`, as far as the preset says where they are."""
    where = file.diagnosis
    if where is None:
        return ""
    found: list[JSON] = []
    for place in where.codes:
        value = value_at(tree, place)
        found += value if isinstance(value, list) else [value]
    codes = [code for code in found[:_MOST_CODES] if _safe(code, _CODE)]
    request_id = first_at(tree, [where.request_id]) if where.request_id else ABSENT
    if not _safe(request_id, _ID):
        request_id = answer.headers.get(where.request_id_header.lower())
    told = f": {', '.join(codes)}" if codes else ""
    return told + (f" (upstream request {request_id})" if _safe(request_id, _ID) else "")


def _safe(value: JSON, form: re.Pattern[str]) -> bool:
    return isinstance(value, str) and bool(form.fullmatch(value)) and not _CARD.search(value)
