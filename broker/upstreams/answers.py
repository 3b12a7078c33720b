"""What an upstream said, as values; or as nonsense, whatever it is that cannot be made sense of.

Parsers of text from outside: they raise `UpstreamNonsense` and nothing else, and no text of an
upstream gets into an error. A token whose end is unknown, unreadable or past is no token.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import orjson

from broker.errors import UpstreamNonsense
from broker.holes import ABSENT, fill_tree, steps_of, value_at
from broker.model import JSON, ComponentSession, Life, Secret
from broker.presets.vocabulary import VERBATIM, Expiry, PresetFile
from broker.schedule import rfc3339
from broker.strict import Unreadable, read_json
from broker.upstreams.transport import Answer

SKEW = timedelta(seconds=30)
"""A Date field this far from our clock means that one is wrong; an absolute expiry then counts from
theirs, as it was made with it."""
_MOST_TOKEN = 16384
_MOST_NUMBER = 1e13
"""Over today in epoch milliseconds (1.8e12), under where `timedelta` ends (8.6e13 s)."""


def session_of(
    file: PresetFile,
    answer: Answer,
    sent: float,
    wall: datetime,
    lifetime: timedelta | None = None,
) -> ComponentSession:
    """What was minted.

    sent: monotonic seconds, and wall: the instant, when it was asked for. lifetime: what the answer
    need not tell. Raises UpstreamNonsense.
    """
    tree = tree_of(answer, verbatim=file.output == VERBATIM)
    shape = file.answer
    token = first_at(tree, shape.token)
    if not (isinstance(token, str) and 0 < len(token) <= _MOST_TOKEN and token.isprintable()):
        raise UpstreamNonsense("The upstream's answer has no token.")
    name = value_at(tree, shape.id) if shape.id else None
    if name is not None and not (isinstance(name, str) and 0 < len(name) <= 255):
        raise UpstreamNonsense("The upstream's answer has no session id.")
    life = _life(file.answer.expiry, tree, answer, sent, wall, lifetime)
    if isinstance(file.output, str):
        output = shown(file, file.output, tree, answer)
    else:
        output = fill_tree(
            file.output,
            {
                "session.token": token,
                "session.id": name if name is not None else ABSENT,
                "session.expires_at": rfc3339(life.expires_at),
                "session.expires_at_ms": int(life.expires_at.timestamp() * 1000),
            },
        )
    return ComponentSession(Secret(token), name, life, output, answer.status == 202)


def shown(file: PresetFile, view: str, tree: JSON, answer: Answer) -> JSON:
    """What a view lets out of an answer: listed members, each in its place, and nothing else; or
    the answer as it came, for encoders to put in as it stands."""
    if view == VERBATIM:
        return orjson.Fragment(answer.body)
    found: dict[str, JSON] = {}
    for places in file.views[view]:
        value = first_at(tree, places)
        if value is not ABSENT:
            _put(found, steps_of(places[0]), value)
    return found


def _put(tree: dict[str, JSON], steps: list[str], value: JSON) -> None:
    *parents, last = steps
    for step in parents:
        tree = tree.setdefault(step, {})
    tree[last] = value


def first_at(tree: JSON, places: Sequence[str]) -> JSON:
    """The first value that there is at these JSON Pointers, or ABSENT; null counts as none."""
    for place in places:
        value = value_at(tree, place)
        if value is not ABSENT and value is not None:
            return value
    return ABSENT


def _life(
    expiry: Expiry,
    tree: JSON,
    answer: Answer,
    sent: float,
    wall: datetime,
    assumed: timedelta | None,
) -> Life:
    """How long the session is good, counted from when it was asked for."""
    value = value_at(tree, expiry.at) if expiry.at else ABSENT
    if value is ABSENT or value is None:
        known = assumed if assumed is not None else expiry.default
        if known is None:
            raise UpstreamNonsense("The upstream's answer has no expiry.")
        lifetime = known
    elif expiry.kind == "seconds":
        lifetime = timedelta(seconds=_number(value))
    else:
        lifetime = _instant(value, expiry.kind) - reference(answer, wall)
    if lifetime <= timedelta(0):
        raise UpstreamNonsense("The upstream's session is over before it began.")
    lifetime = min(lifetime, expiry.most)
    return Life(wall + lifetime, lifetime, sent + lifetime.total_seconds())


def tree_of(answer: Answer, *, verbatim: bool = False) -> JSON:
    """verbatim: the body itself is passed on, so numbers that we could not write again may be."""
    try:
        tree = read_json(answer.body, any_number=verbatim)
    except Unreadable as exc:
        raise UpstreamNonsense("The upstream's answer is not JSON.", cause=exc.reason) from None
    if not isinstance(tree, dict):
        raise UpstreamNonsense("The upstream's answer is not a JSON object.")
    return tree


def _number(value: JSON) -> float:
    """Seconds, also as a numeric text, as some upstreams write them."""
    try:
        number = float(value) if isinstance(value, str | int | float) else float("nan")
    except (ValueError, OverflowError):
        number = float("nan")
    if isinstance(value, bool) or not -_MOST_NUMBER < number < _MOST_NUMBER:
        raise UpstreamNonsense("The upstream's expiry cannot be read.")
    return number


def _instant(value: JSON, kind: str) -> datetime:
    try:
        if kind == "rfc3339":
            if not isinstance(value, str):
                raise ValueError
            at = datetime.fromisoformat(value)
            return at if at.tzinfo else at.replace(tzinfo=UTC)
        seconds = _number(value) / (1000 if kind == "epoch_ms" else 1)
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        raise UpstreamNonsense("The upstream's expiry cannot be read.") from None


@functools.lru_cache(maxsize=16)
def _date(text: str) -> datetime:
    """A Date field, parsed once a second and not once a mint."""
    at = parsedate_to_datetime(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def reference(answer: Answer, wall: datetime) -> datetime:
    """The clock that an absolute expiry was made with: the upstream's where ours differs."""
    try:
        theirs = _date(answer.headers["date"])
    except (KeyError, ValueError, TypeError, IndexError, OverflowError):
        return wall
    return theirs if abs(theirs - wall) > SKEW else wall
