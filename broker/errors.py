"""Everything that can go wrong, as one tree; each leaf is one problem type (RFC 9457).

    BrokerError
    ├── CallerError                     the caller's to mend
    │   ├── MalformedRequest        400
    │   ├── Unauthenticated         401
    │   ├── NotPermitted            403
    │   ├── OriginNotAllowed        403
    │   ├── NotFound                404  no such path
    │   ├── UnknownProfile          404
    │   ├── MethodNotAllowed        405
    │   ├── RequestTimeout          408
    │   ├── RotationNotSupported    409
    │   ├── ActionNotAllowed        409
    │   ├── HandleExpired           410
    │   ├── MinFreshNotMet          412
    │   ├── RequestTooLarge         413
    │   ├── UnsupportedMediaType    415
    │   ├── InvalidParameters       422
    │   └── RateLimited             429
    ├── UpstreamError                   the third party's, or our contract with it
    │   ├── UpstreamRefused         502
    │   ├── UpstreamNonsense        502
    │   ├── UpstreamUnavailable     503
    │   │   └── Throttled           503  a 429: the same to callers, another outcome
    │   └── UpstreamTimeout         504
    ├── Overloaded                  503
    └── InternalError               500

An error has a public face (slug, title, `detail`, which is text written here) and a private cause
(`cause`, and `__cause__`) that goes to the log only. Neither ever holds a secret, a value of the
request or a body of an upstream. `ConfigError` is apart: it ends a start, never a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from broker.model import Outcome


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong, and where: `pointer` is a JSON Pointer (RFC 6901)."""

    pointer: str
    reason: str


class BrokerError(Exception):
    """The root. `detail` is shown to the caller, `cause` is for the log."""

    slug: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"
    status: ClassVar[int] = 500

    def __init__(
        self,
        detail: str = "",
        *,
        cause: str = "",
        retry_after: float | None = None,
        faults: Sequence[Fault] = (),
    ) -> None:
        super().__init__(cause or detail or self.title)
        self.detail = detail
        self.cause = cause
        self.retry_after = retry_after
        self.faults = tuple(faults)
        self.profile = ""  # which profile it befell, where that is not in the path

    def again(self, **changes: object) -> Self:
        """A copy to raise elsewhere: one that thousands raise gathers all their tracebacks."""
        copy = type(self).__new__(type(self), *self.args)
        vars(copy).update(vars(self), **changes)
        return copy


class InternalError(BrokerError):
    """A defect of ours; the log has the traceback."""


class CallerError(BrokerError):
    """The caller's to mend."""


class MalformedRequest(CallerError):
    slug, title, status = "malformed-request", "Malformed request", 400


class Unauthenticated(CallerError):
    """One text for every cause: a difference would make the answer an oracle."""

    slug, title, status = "unauthenticated", "Authentication required", 401

    def __init__(self, *, cause: str = "") -> None:
        super().__init__("Valid credentials are required.", cause=cause)


class NotPermitted(CallerError):
    slug, title, status = "not-permitted", "Not permitted", 403


class OriginNotAllowed(CallerError):
    slug, title, status = "origin-not-allowed", "Origin not allowed", 403


class NotFound(CallerError):
    slug, title, status = "not-found", "Not found", 404


class UnknownProfile(CallerError):
    slug, title, status = "unknown-profile", "Unknown profile", 404


class MethodNotAllowed(CallerError):
    """`allow` is the Allow field (RFC 9110 §15.5.6)."""

    slug, title, status = "method-not-allowed", "Method not allowed", 405

    def __init__(self, *, allow: str) -> None:
        super().__init__(f"This answers to {allow} only.")
        self.allow = allow


class RequestTimeout(CallerError):
    slug, title, status = "request-timeout", "Request timed out", 408


class RotationNotSupported(CallerError):
    slug, title, status = "rotation-not-supported", "Rotation not supported", 409


class ActionNotAllowed(CallerError):
    slug, title, status = "action-not-allowed", "Action not allowed", 409


class HandleExpired(CallerError):
    slug, title, status = "handle-expired", "Handle expired", 410


class MinFreshNotMet(CallerError):
    slug, title, status = "min-fresh-not-met", "Requested lifetime not available", 412


class RequestTooLarge(CallerError):
    slug, title, status = "request-too-large", "Request too large", 413


class UnsupportedMediaType(CallerError):
    slug, title, status = "unsupported-media-type", "Unsupported media type", 415


class InvalidParameters(CallerError):
    slug, title, status = "invalid-parameters", "Invalid parameters", 422


class RateLimited(CallerError):
    """`policy` and `remaining` feed the RateLimit fields (draft-ietf-httpapi-ratelimit-headers)."""

    slug, title, status = "rate-limited", "Rate limited", 429

    def __init__(self, detail: str = "", *, retry_after: float, policy: str = "") -> None:
        super().__init__(detail, retry_after=retry_after)
        self.policy = policy


class UpstreamError(BrokerError):
    """The third party's fault, or a disagreement with it."""


class UpstreamRefused(UpstreamError):
    """Our own credential or request was refused: no retry helps; page someone."""

    slug, title, status = "upstream-refused", "Upstream refused the request", 502


class UpstreamNonsense(UpstreamError):
    slug, title, status = "upstream-nonsense", "Upstream answered nonsense", 502


class UpstreamUnavailable(UpstreamError):
    slug, title, status = "upstream-unavailable", "Upstream unavailable", 503


class Throttled(UpstreamUnavailable):
    """429: the same to callers, another outcome to metrics. Never repeated within a request."""


class UpstreamTimeout(UpstreamError):
    """The time is spent and nothing is known of the outcome: the call may have happened."""

    slug, title, status = "upstream-timeout", "Upstream timed out", 504


class Overloaded(BrokerError):
    slug, title, status = "overloaded", "Overloaded", 503


class ConfigError(Exception):
    """The configuration cannot be used: every fault at once. Ends a start with exit status 78."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(f"{fault.pointer or '/'}: {fault.reason}" for fault in faults))
        self.faults = tuple(faults)


def outcome_of(error: BrokerError) -> Outcome:
    """How a request or a call ended that ended in this error."""
    if error.status == 429:
        return Outcome.THROTTLED
    special = {
        UpstreamRefused: Outcome.REFUSED,
        UpstreamNonsense: Outcome.NONSENSE,
        Throttled: Outcome.THROTTLED,
        UpstreamUnavailable: Outcome.UNAVAILABLE,
        UpstreamTimeout: Outcome.TIMEOUT,
        Overloaded: Outcome.UNAVAILABLE,
    }
    usual = Outcome.CLIENT_ERROR if error.status < 500 else Outcome.INTERNAL
    return next((special[kind] for kind in type(error).__mro__ if kind in special), usual)


def problem_types() -> list[type[BrokerError]]:
    """Every problem a caller can be shown: for the OpenAPI document and the README's test."""
    found: dict[str, type[BrokerError]] = {}
    todo: list[type[BrokerError]] = [BrokerError]
    while todo:
        kind = todo.pop()
        todo.extend(kind.__subclasses__())
        found.setdefault(kind.slug, kind)
    return sorted(found.values(), key=lambda kind: (kind.status, kind.slug))
