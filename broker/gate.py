"""What every public request passes first and last: identity, origin, load, and its one log line.

Pure ASGI. CORS headers alone are not access control, as a disallowed origin's request would still
be carried out; so the origin is judged here, before anything else is done. `null` and `*` are never
origins; nothing is reflected that is not on a list. Must not know what the endpoints do.
"""

from __future__ import annotations

import functools
import ipaddress
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.admission import MOST_RETRY_SECONDS, Admission, Urgency
from broker.audit import AuditLog, Record
from broker.errors import (
    BrokerError,
    MalformedRequest,
    OriginNotAllowed,
    Overloaded,
    outcome_of,
)
from broker.metrics import Metrics
from broker.model import Outcome
from broker.schedule import Clock
from broker.wire import Header, Reply, headers_of, problem, request_id_of, text, uuid_of

_PROFILES = "/v1/profiles/"
_SESSIONS = "/v1/sessions/"
_ACCESS_TOKENS = "/v1/access-tokens/"
_CALLBACKS = "/v1/callbacks/"
_URGENCY = (
    (_PROFILES, Urgency.MINT),
    (_SESSIONS, Urgency.HELD),
    (_ACCESS_TOKENS, Urgency.HELD),
    (_CALLBACKS, Urgency.CALLBACK),
)
"""What can be shed, and what goes first. All else is answered from memory, for less than a refusal
costs, and a browser that was once refused a module does not ask for it again until the page is
loaded anew."""
_NOT_REFUSED_EARLY = (b"OPTIONS", b"HEAD")
"""A preflight is answered from memory; an answer to HEAD has no body behind its head."""
_PLACE = "00000000-0000-4000-8000-000000000000"
_ALLOWED_HEADERS = b"authorization, cache-control, content-type, idempotency-key, x-request-id"
_EXPOSED_HEADERS = b"cache-status, ratelimit, ratelimit-policy, retry-after, x-request-id"


@dataclass(frozen=True, slots=True)
class Origins:
    """Which origins may ask, and whether with cookies: by profile, and for all of them together."""

    by_profile: Mapping[str, Mapping[str, bool]]
    any_profile: Mapping[str, bool]

    def allowed(self, path: str, origin: str) -> bool | None:
        """Whether cookies are in use, or None where the origin is not listed for this path."""
        if path.startswith(_PROFILES):
            name = path[len(_PROFILES) :].partition("/")[0]
            return self.by_profile.get(name, self.any_profile).get(origin)
        return self.any_profile.get(origin) if path.startswith(_SESSIONS) else None


@dataclass(slots=True)
class Load:
    """How much is let in and how much is in. max_in_flight: the last wall, behind `admission`.
    draining: connections are closed as they answer."""

    max_in_flight: int
    in_flight: int = 0
    draining: bool = False
    admission: Admission = field(default_factory=Admission)


def urgency_of(path: str) -> Urgency | None:
    """None for what is answered always."""
    return next((urgency for prefix, urgency in _URGENCY if path.startswith(prefix)), None)


class Gate:
    """The outermost middleware of the public app."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        origins: Origins,
        load: Load,
        trusted_proxies: Sequence[str],
        clock: Clock,
        metrics: Metrics,
        audit: AuditLog,
    ) -> None:
        """trusted_proxies: networks whose X-Forwarded-For is believed."""
        self._app = app
        self._origins = origins
        self._load = load
        self._proxies = [ipaddress.ip_network(network) for network in trusted_proxies]
        self._clock = clock
        self._metrics = metrics
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = headers_of(scope)
            fault: BrokerError | None = None
        except MalformedRequest as exc:
            headers, fault = {}, exc
        record = Record(request_id_of(headers), self._clock.monotonic())
        extra = self._always(record)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                if record.outcome is Outcome.INTERNAL and record.status < 500:
                    record.outcome = Outcome.OK  # else, whoever answered has noted it
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        scope["record"], scope["fields"] = record, headers
        self._load.in_flight += 1
        try:
            reply = self._judge(scope, headers, record, extra, fault)
            if reply is None:
                reply = await self._admit(scope, record)
            if reply is not None:
                await reply.send(answer)
            else:
                await self._app(scope, receive, answer)
        finally:
            self._load.in_flight -= 1
            seconds = self._clock.monotonic() - record.began
            self._metrics.request_answered(
                record.operation, record.profile, record.outcome, seconds, record.problem
            )
            self._audit.write(record, seconds)

    def _always(self, record: Record) -> list[Header]:
        """The fields that every answer has; the judges below add to them."""
        extra = _always(record.request_id)
        if self._load.draining:
            extra.append((b"connection", b"close"))
        return extra

    def _judge(
        self,
        scope: Scope,
        headers: dict[bytes, bytes],
        record: Record,
        extra: list[Header],
        fault: BrokerError | None,
    ) -> Reply | None:
        """The answer to what may not go on, or to a preflight; None lets the request through."""
        try:
            if fault is not None:
                raise fault
            scope["peer"] = record.peer = self._peer(scope, headers)
            return self._origin(scope, headers, record, extra)
        except BrokerError as exc:
            note(record, exc)
            return problem(exc, record.request_id)

    async def _admit(self, scope: Scope, record: Record) -> Reply | None:
        """Waits until there is time for this request, or gives the answer that there is none."""
        urgency = urgency_of(scope["path"])
        if urgency is None:
            return None
        try:
            if self._load.in_flight > self._load.max_in_flight:
                raise Overloaded("Too many requests are being worked on.", retry_after=1.0)
            await self._load.admission.enter(urgency, scope.get("is_gone", _stays))
        except Overloaded as exc:
            self._metrics.shed.inc()
            note(record, exc)
            return problem(exc, record.request_id)
        return None

    def refusal(self, method: bytes, url: bytes, headers: list[Header]) -> bytes | None:
        """A whole answer to a request of which only the head is there, where it would not be
        admitted; else None. For a fortieth of what a mint costs, as it is told to many at once.

        It has no access-log line of its own: the metrics count it, and one line a second tells how
        many there were."""
        path = url.partition(b"?")[0].decode("latin-1")
        urgency = urgency_of(path)
        admission = self._load.admission
        if urgency is None or method in _NOT_REFUSED_EARLY or not admission.is_full(urgency):
            return None
        error = admission.refused()
        self._metrics.refused_early()
        fields = dict(headers)
        request_id = request_id_of(fields).encode()
        before, between, after = _refusals()[math.ceil(error.retry_after or 0.0) - 1]
        return b"".join(
            (before, request_id, between, self._cors(path, fields), after % uuid_of(request_id))
        )

    def _cors(self, path: str, fields: dict[bytes, bytes]) -> bytes:
        """What lets a page of a listed origin read the answer, as it is on the wire."""
        origin = fields.get(b"origin", b"")
        credentials = self._origins.allowed(path, text(origin))
        if credentials is None:
            return b""
        with_cookies = b"access-control-allow-credentials: true\r\n" if credentials else b""
        return b"access-control-allow-origin: %b\r\naccess-control-expose-headers: %b\r\n%b" % (
            origin, _EXPOSED_HEADERS, with_cookies,
        )  # fmt: skip

    def _origin(
        self, scope: Scope, headers: dict[bytes, bytes], record: Record, extra: list[Header]
    ) -> Reply | None:
        path: str = scope["path"]
        if path.startswith(_CALLBACKS) and (b"origin" in headers or b"sec-fetch-site" in headers):
            raise OriginNotAllowed("This is for upstreams, not for pages.")
        if not path.startswith((_PROFILES, _SESSIONS, _ACCESS_TOKENS)):
            return None
        extra.append((b"vary", b"Origin"))
        origin = headers.get(b"origin")
        site = headers.get(b"sec-fetch-site", b"none")
        if origin is None:
            foreign = site not in (b"none", b"same-origin")
            secret_to_a_browser = path.startswith(_ACCESS_TOKENS) and b"sec-fetch-site" in headers
            if foreign or secret_to_a_browser or headers.get(b"sec-fetch-mode") == b"navigate":
                raise OriginNotAllowed(
                    "This is not for pages of other origins.", cause="fetch metadata, no origin"
                )
            return None
        record.origin = text(origin)[:255]
        credentials = self._origins.allowed(path, text(origin))
        if credentials is None:
            raise OriginNotAllowed("This origin is not on the list.", cause="not listed")
        extra.append((b"access-control-allow-origin", origin))
        if credentials:
            extra.append((b"access-control-allow-credentials", b"true"))
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            record.operation = "preflight"
            extra.append((b"access-control-allow-methods", b"POST"))
            extra.append((b"access-control-allow-headers", _ALLOWED_HEADERS))
            extra.append((b"access-control-max-age", b"600"))
            return Reply(204)
        extra.append((b"access-control-expose-headers", _EXPOSED_HEADERS))
        return None

    def _peer(self, scope: Scope, headers: dict[bytes, bytes]) -> str:
        """The client's address: the rightmost hop that is not a proxy we trust (ASVS 15.3.4)."""
        host: str = (scope.get("client") or ("",))[0]
        forwarded = headers.get(b"x-forwarded-for")
        if not self._proxies or forwarded is None:
            return _plain_address(host)
        for hop in [host, *(part.strip() for part in reversed(text(forwarded).split(",")))]:
            try:
                address = ipaddress.ip_address(hop)
            except ValueError:
                return _plain_address(host)
            address = getattr(address, "ipv4_mapped", None) or address
            host = str(address)
            if not any(address in network for network in self._proxies):
                break
        return host


@functools.cache
def _refusals() -> list[tuple[bytes, bytes, bytes]]:
    """An early refusal for each number of seconds it may tell: what stands before the request's id,
    between it and the fields for pages, and after those, with a place for the id as a UUID."""
    found = []
    for seconds in range(1, MOST_RETRY_SECONDS + 1):
        reply = problem(Admission.refusal(seconds), _PLACE)
        extra = [(b"vary", b"Origin"), *_always(_PLACE)[::-1]]
        head, body = reply.raw(extra).split(b"\r\ncontent-length", 1)
        before, between = head.split(_PLACE.encode())
        after = (b"content-length" + body).replace(_PLACE.encode(), b"%b")
        found.append((before, between + b"\r\n", after))
    return found


def _always(request_id: str) -> list[Header]:
    """The fields that every answer has."""
    return [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]


def _stays() -> bool:
    return False


def _plain_address(host: str) -> str:
    """An IPv4 address as one, though a dual-stack socket writes it as IPv6 (RFC 4291 §2.5.5.2)."""
    return host.removeprefix("::ffff:") if "." in host else host


def note(record: Record, error: BrokerError) -> None:
    """Writes an error into the request's record."""
    record.problem = error.slug
    record.cause = error.cause
    record.faults = [fault.pointer for fault in error.faults[:20]]
    record.profile = record.profile or error.profile
    record.outcome = outcome_of(error)
