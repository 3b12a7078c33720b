"""The nouns that flow between the rooms: frozen, slotted, without behaviour of their own.

They exist so that trust can be read from a type: only `authn` makes a `Caller`, only `policy` a
`Grant`, and a `Secret` stays one until the line that sends it. Nothing here may do I/O.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from typing import Any, NoReturn, Protocol

JSON = Any
"""A tree of dict, list, str, int, float, bool and None."""


def fingerprint(value: str) -> str:
    """Sixteen hex digits of SHA-256: enough to find a token in a log, too few to be one."""
    return hashlib.sha256(value.encode()).hexdigest()[:16]


class Secret:
    """A value that cannot print itself. `reveal()` belongs on the line that sends it.

    Not a `str`: f-strings, `repr`, logging, pickling and JSON all fail to give it away.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    @property
    def fingerprint(self) -> str:
        return fingerprint(self._value)

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __format__(self, _spec: str) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(
            self._value.encode(), other._value.encode()
        )

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")


class Outcome(StrEnum):
    """How a request or an upstream call ended: one vocabulary for metrics and audit."""

    OK = "ok"
    REFUSED = "refused"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    NONSENSE = "nonsense"
    THROTTLED = "throttled"
    CLIENT_ERROR = "client_error"
    INTERNAL = "internal"


class Priority(IntEnum):
    """For whom an upstream is called: who comes first where calls are scarce."""

    PERSON = 0
    """Somebody waits for the answer."""
    REFRESH = 1
    """Something that is still good is replaced behind."""
    PREFETCH = 2
    """Nobody has asked yet."""


class Reuse(StrEnum):
    """Which tokens may be shared: the one word that cache, pool, store and client obey."""

    SHARED = "shared"
    PER_CALLER = "per_caller"
    SINGLE_USE = "single_use"


@dataclass(frozen=True, slots=True)
class Life:
    """From when until when a token is good, by both clocks.

    `until` is in seconds of this process's monotonic clock and decides; `expires_at` is what is
    told to others. A step of the wall clock therefore changes neither hand-outs nor refreshes.
    """

    expires_at: datetime
    lifetime: timedelta
    until: float

    def remaining(self, monotonic: float) -> float:
        """Seconds left; negative when over."""
        return self.until - monotonic


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking, proven. Made by `authn` only.

    name: the entry under `callers` that vouched. subject: who, to that entry. claims: verified.
    """

    name: str
    subject: str
    claims: Mapping[str, JSON]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a request besides its body: values for `${request.x}`, `${now}`, `${uuid4}`.

    unique: one UUID a request, so that a repeated upstream call carries the same key.
    origin: the browser's, "" where there is none. deadline: monotonic seconds at which its time is
    spent.
    """

    now: datetime
    unique: str
    origin: str
    ip: str
    user_agent: str
    accept: str
    deadline: float = math.inf


def observed(facts: Facts) -> dict[str, str]:
    """What we saw of the request ourselves, by the names that holes have for it."""
    return {
        "request.ip": facts.ip,
        "request.user_agent": facts.user_agent,
        "request.accept": facts.accept,
    }


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer of policy: exactly what may be minted now. Made by `policy` only; no defaults.

    parameters: what the request carried, checked. settings: the profile's, every hole filled.
    bound: what the caller, and parameters that handles keep, put into them, by hole; a successor
    must have the same.
    """

    profile: str
    caller: Caller
    parameters: Mapping[str, JSON]
    settings: Mapping[str, JSON]
    bound: Mapping[str, JSON]
    facts: Facts


@dataclass(frozen=True, slots=True)
class AccessToken:
    """An OAuth 2 bearer that we use towards an upstream (RFC 6749 §5.1). Never for a browser.

    The same token is equal wherever it was read, though each process has its own clock."""

    value: Secret
    token_type: str
    scope: str
    life: Life = field(compare=False)
    obtained: float = field(compare=False)
    """Monotonic seconds when its request was *sent*: what a later 401 is compared with."""


@dataclass(frozen=True, slots=True)
class ComponentSession:
    """What an upstream minted for a browser component.

    id: the upstream's own name for it, where it has one. output: the answer that the component
    itself wants, in its own field names. accepted: 202 rather than 201, where that means something.
    """

    token: Secret
    id: str | None
    life: Life
    output: JSON
    accepted: bool = False


@dataclass(frozen=True, slots=True)
class Minted:
    """A session for the browser. handle: "" where there is nothing to do with one.

    floor: seconds of life under which it may not be handed out.
    """

    profile: str
    session: ComponentSession
    handle: str
    chain: str
    rotates: bool
    floor: float


@dataclass(frozen=True, slots=True)
class Acted:
    """What a follow-up call gave. output: for the caller; trusted: for one whom the profile trusts,
    None where there is nothing more. final: the state in which the session is over, else "".
    id: of the session, where the answer says it."""

    status: int
    id: str | None
    output: JSON
    trusted: JSON
    final: str


class SessionSource(Protocol):
    """One method: a new component session for a grant, or an error. Wrappers add the rest."""

    async def session(self, grant: Grant) -> ComponentSession: ...


class TokenSource(Protocol):
    """One method: an access token that is above its floor, or an error. Wrappers add the rest."""

    async def token(
        self, *, min_fresh: float = 0.0, priority: Priority = Priority.PERSON
    ) -> AccessToken:
        """A token with at least its floor, and `min_fresh` seconds, left. Raises BrokerError.

        priority: PERSON where nobody has a token to go on with."""
        ...

    def forget(self, *, older_than: float) -> None:
        """Drop the held token if it was asked for before monotonic `older_than` (a 401's news)."""
        ...
