"""What the ways to authenticate share: proofs that are remembered, and how others are asked.

A proof is kept under a digest, never under the credential. It must never outlive what it stands
on: the credential's own end by the wall clock, the configured time by the monotonic one, and the
key set that proved it. Nothing here may decide whether a credential is good.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from cachetools import TLRUCache

from broker.errors import (
    BrokerError,
    Unauthenticated,
    UpstreamNonsense,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from broker.metrics import Metrics
from broker.model import JSON, Caller, Outcome
from broker.schedule import Clock
from broker.strict import Unreadable, read_json
from broker.upstreams.transport import Answer, Transport

MOST_TOKEN = 16384
"""Characters of a credential: more than any server's header limit lets through in one piece."""
MOST_SUBJECT = 255
"""OpenID Connect Core §2: `sub` does not exceed 255 characters."""
MOST_PROOFS = 50_000
"""At 2 KiB of claims each: 100 MiB, were they ever all in use."""
ANSWER_LIMIT = 256 << 10
"""Bytes: discovery documents have 10 KiB, key sets of a hundred certificates 200 KiB."""


class Holder(Protocol):
    """Where keys come from. `current` is replaced, never changed."""

    current: Any


@dataclass(frozen=True, slots=True)
class Proven:
    """A caller, and until when they are believed without asking again.

    until: monotonic seconds. expires: seconds since the epoch, infinite where none was told; the
    wall clock may be set, so both are checked. keys: what `holder` held when it proved the token.
    """

    caller: Caller
    until: float
    expires: float = math.inf
    holder: Holder | None = None
    keys: object = None


class Proofs:
    """Proven callers by digest: bounded, those over first to go, then the least recently used."""

    def __init__(self, clock: Clock, most: int = MOST_PROOFS) -> None:
        self._clock = clock
        self._held: TLRUCache[bytes, Proven] = TLRUCache(most, _until, timer=clock.monotonic)

    def __len__(self) -> int:
        return len(self._held)

    def get(self, digest: bytes) -> Caller | None:
        try:
            proven = self._held[digest]
        except KeyError:
            return None
        holder = proven.holder
        if self._clock.now().timestamp() >= proven.expires or (
            holder is not None and holder.current is not proven.keys
        ):
            with suppress(KeyError):  # over since it was looked up
                del self._held[digest]
            return None
        return proven.caller

    def put(self, digest: bytes, proven: Proven) -> None:
        """Nothing is kept of what is over already: a cache time of nought switches this off."""
        self._held[digest] = proven


def _until(_digest: bytes, proven: Proven, _now: float) -> float:
    return proven.until


class Asking:
    """One caller entry's way out: a deadline, a size limit and a metric for each call.

    What goes wrong is UpstreamUnavailable or UpstreamTimeout: that somebody could not be asked
    says nothing about the credential.
    """

    def __init__(
        self, name: str, transport: Transport, clock: Clock, metrics: Metrics, budget: float
    ) -> None:
        self.name = name
        self.budget = budget
        self._transport = transport
        self._clock = clock
        self._metrics = metrics

    async def ask(
        self,
        operation: str,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        body: bytes | None = None,
        within: float | None = None,
    ) -> Answer:
        """within: seconds, where less than the budget is left."""
        began = self._clock.monotonic()
        outcome = Outcome.INTERNAL
        try:
            answer = await self._transport.send(
                method,
                url,
                headers=headers,
                body=body,
                timeout=self.budget if within is None else within,
                limit=ANSWER_LIMIT,
            )
            outcome = _outcome_of_status(answer.status)
        except BrokerError as exc:
            outcome = _outcome_of_error(exc)
            if isinstance(exc, UpstreamTimeout | UpstreamUnavailable):
                raise
            raise unavailable(f"{operation}: {exc.cause or type(exc).__name__}") from exc
        finally:
            spent = self._clock.monotonic() - began
            self._metrics.upstream_answered(self.name, operation, outcome, spent)
        return answer


def _outcome_of_status(status: int) -> Outcome:
    if status == 429:
        return Outcome.THROTTLED
    return Outcome.UNAVAILABLE if status >= 500 else Outcome.OK


def _outcome_of_error(exc: BrokerError) -> Outcome:
    if isinstance(exc, UpstreamTimeout):
        return Outcome.TIMEOUT
    return Outcome.NONSENSE if isinstance(exc, UpstreamNonsense) else Outcome.UNAVAILABLE


def unavailable(cause: str, retry_after: float | None = None) -> UpstreamUnavailable:
    """The one public text for "whoever could say is not there"."""
    return UpstreamUnavailable(
        "Credentials cannot be checked at the moment.", cause=cause, retry_after=retry_after
    )


def read_object(raw: bytes) -> dict[str, JSON]:
    """A JSON object. Raises `Unreadable` only."""
    tree = read_json(raw)
    if not isinstance(tree, dict):
        raise Unreadable("not a JSON object")
    return tree


def is_subject(value: JSON) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MOST_SUBJECT and value.isprintable()


def subject_in(claims: Mapping[str, JSON], claim: str) -> str:
    """Who the claims speak of. Raises Unauthenticated."""
    value = claims.get(claim)
    if not is_subject(value):
        raise Unauthenticated(cause=f"{claim} is no subject")
    return str(value)


def moment_in(claims: Mapping[str, JSON], claim: str) -> float | None:
    """A NumericDate (RFC 7519 §2), None where the claim is absent. Raises Unauthenticated.

    `true` is an int to Python, and every comparison with NaN is false: neither may pass.
    """
    if claim not in claims:
        return None
    value = claims[claim]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unauthenticated(cause=f"{claim} is no time")
    return float(value)


def texts_of(value: JSON) -> frozenset[str]:
    """A text or a list of texts, as in `aud`; anything else is none."""
    values: Iterable[JSON] = value if isinstance(value, list) else [value]
    found = list(values)
    if not all(isinstance(one, str) for one in found):
        return frozenset()
    return frozenset(found)
