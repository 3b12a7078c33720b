"""What is remembered, as bytes that another replica, or this one after a restart, can read.

Lives are the difficulty: one process's monotonic clock means nothing to another, and wall clocks
are set. So a record says what was left when it was written, and the store's own count says how long
ago that was; the wall clock is believed too, where it says less. A life is late only if both err.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, Protocol, TypeVar

import orjson

from broker.model import JSON, AccessToken, Acted, ComponentSession, Life, Minted, Secret
from broker.schedule import Clock
from broker.strict import Unreadable, read_json

V = TypeVar("V")


class Codec(Protocol[V]):
    """A value as bytes and back, wherever it was written."""

    def write(self, value: V, seconds: float) -> bytes:
        """seconds: for which it will be kept."""
        ...

    def read(self, raw: bytes, seconds: float) -> V:
        """seconds: for which it will still be kept. Raises Unreadable."""
        ...

    def weight(self, value: V) -> int:
        """About what it takes to remember, in the unit of the memory's bound."""
        ...


@dataclass(frozen=True, slots=True)
class Answered(Generic[V]):
    """An answer given under an Idempotency-Key, and the digest of the body that asked for it."""

    body: str
    answer: V


class Plain(Generic[V]):
    """Values that are JSON as they are."""

    def __init__(self, made: Callable[[Any], V]) -> None:
        """made: checks it; raises Unreadable."""
        self._made = made

    def write(self, value: V, seconds: float) -> bytes:
        return orjson.dumps(value)

    def read(self, raw: bytes, seconds: float) -> V:
        return self._made(read_json(raw))

    def weight(self, value: V) -> int:
        return 1


class Timed(Generic[V]):
    """What the records with lives have in common."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def write(self, value: V, seconds: float) -> bytes:
        return orjson.dumps([seconds, self._fields(value)])

    def read(self, raw: bytes, seconds: float) -> V:
        try:
            kept, fields = read_json(raw)
            return self._made(fields, max(0.0, kept - seconds))
        except (ValueError, TypeError, KeyError, OverflowError) as exc:
            raise Unreadable("written by another version") from exc

    def _fields(self, value: V) -> JSON:
        raise NotImplementedError

    def _made(self, fields: Any, age: float) -> V:
        """age: seconds since it was written."""
        raise NotImplementedError

    def _written_life(self, life: Life) -> JSON:
        left = life.remaining(self._clock.monotonic())
        return [life.expires_at.timestamp(), life.lifetime.total_seconds(), left]

    def _read_life(self, fields: Any, age: float) -> Life:
        expires, lifetime, left = fields
        expires_at = datetime.fromtimestamp(expires, UTC)
        by_wall = (expires_at - self._clock.now()).total_seconds()
        remaining = min(left - age, by_wall, lifetime)
        return Life(expires_at, timedelta(seconds=lifetime), self._clock.monotonic() + remaining)


class Tokens(Timed[AccessToken]):
    def _fields(self, value: AccessToken) -> JSON:
        secret = value.value.reveal()
        return [secret, value.token_type, value.scope, self._written_life(value.life)]

    def _made(self, fields: Any, age: float) -> AccessToken:
        secret, kind, scope, life = fields
        now = self._clock.monotonic()
        lives = self._read_life(life, age)
        return AccessToken(Secret(text(secret)), text(kind), text(scope), lives, now)

    def weight(self, value: AccessToken) -> int:
        return 1


class Sessions(Timed[Minted]):
    def _fields(self, value: Minted) -> JSON:
        session = value.session
        return [
            value.profile,
            [
                session.token.reveal(),
                session.id,
                self._written_life(session.life),
                _written(session.output),
                session.accepted,
            ],
            value.handle,
            value.chain,
            value.rotates,
            value.floor,
        ]

    def _made(self, fields: Any, age: float) -> Minted:
        profile, (token, name, life, output, accepted), handle, chain, rotates, floor = fields
        session = ComponentSession(
            Secret(text(token)),
            None if name is None else text(name),
            self._read_life(life, age),
            _read(output),
            flag(accepted),
        )
        return Minted(text(profile), session, text(handle), text(chain), flag(rotates), 0.0 + floor)

    def weight(self, value: Minted) -> int:
        return 4096 + 4 * len(value.handle) + 8 * len(orjson.dumps(value.session.output))


class Answers(Timed[Answered[Minted]]):
    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._sessions = Sessions(clock)

    def _fields(self, value: Answered[Minted]) -> JSON:
        return [value.body, self._sessions._fields(value.answer)]

    def _made(self, fields: Any, age: float) -> Answered[Minted]:
        body, answer = fields
        return Answered(text(body), self._sessions._made(answer, age))  # noqa: SLF001  (one record in another)

    def weight(self, value: Answered[Minted]) -> int:
        return self._sessions.weight(value.answer)


class Endings:
    """How a session ended: has no life of its own."""

    def write(self, value: Acted, seconds: float) -> bytes:
        fields = [value.status, value.id, _written(value.output), _written(value.trusted)]
        return orjson.dumps([*fields, value.final])

    def read(self, raw: bytes, seconds: float) -> Acted:
        try:
            status, name, output, trusted, final = read_json(raw)
            name = None if name is None else text(name)
            return Acted(0 + status, name, _read(output), _read(trusted), text(final))
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise Unreadable("written by another version") from exc

    def weight(self, value: Acted) -> int:
        return 512 + 8 * len(orjson.dumps([value.output, value.trusted]))


def _written(tree: JSON) -> JSON:
    """A tree as it is, and an upstream's own bytes as text, to be told apart when read."""
    if isinstance(tree, orjson.Fragment):
        return {"verbatim": orjson.dumps(tree).decode()}
    return {"tree": tree}


def _read(told: Any) -> JSON:
    return orjson.Fragment(told["verbatim"].encode()) if "verbatim" in told else told["tree"]


def text(value: Any) -> str:
    """Raises Unreadable."""
    if not isinstance(value, str):
        raise Unreadable("is no text")
    return value


def flag(value: Any) -> bool:
    """Raises Unreadable."""
    if not isinstance(value, bool):
        raise Unreadable("is no flag")
    return value


def pair(value: Any) -> tuple[str, str]:
    """Raises Unreadable."""
    if not (isinstance(value, list) and len(value) == 2):
        raise Unreadable("is no pair")
    return text(value[0]), text(value[1])
