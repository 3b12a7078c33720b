"""The public endpoints: parse, call one use case, render. All in one file, to keep each short.

Endpoints are ASGI callables under Starlette routes. Whatever goes wrong is a `BrokerError` and
leaves as problem+json; what is no BrokerError is a defect, and leaves as one that says nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from broker.audit import Record
from broker.authn import Door, Presented
from broker.callbacks import Callbacks
from broker.chains import Chains
from broker.errors import (
    BrokerError,
    InternalError,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    OriginNotAllowed,
    Overloaded,
    UnsupportedMediaType,
    UpstreamTimeout,
)
from broker.gate import note
from broker.minting import Minting, Served, rotate_in
from broker.model import Caller, Facts, fingerprint
from broker.schedule import Clock, rfc3339
from broker.shapes import ActBody, HandleBody, MintBody
from broker.static import Static
from broker.wire import (
    NO_STORE,
    B,
    Reply,
    is_json,
    json_reply,
    min_fresh_of,
    new_uuid,
    parse_body,
    problem,
    read_body,
    text,
)

_log = structlog.get_logger("api")
_CALLBACK_SECONDS = 1.0
"""For the body of a callback, whose sender is not known before it is there."""
_REPEATABLE = frozenset({"rotate", "check", "end", "access_token"})
Handler = Callable[[Scope, Receive, Record], Awaitable[Reply]]


class Endpoint:
    """One route: runs its handler within the time budget, and turns errors into problems."""

    def __init__(
        self, operation: str, handler: Handler, budget: float, method: str | None = None
    ) -> None:
        """method: the one that is answered, a GET also without its body (HEAD); None: any."""
        self._operation = operation
        self._handler = handler
        self._budget = budget
        self._methods = ("GET", "HEAD") if method == "GET" else (method,)
        self._any = method is None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record: Record = scope["record"]
        try:
            if not (self._any or scope["method"] in self._methods):
                raise MethodNotAllowed(allow=", ".join(filter(None, self._methods)))
            record.operation = self._operation
            async with asyncio.timeout(self._budget):
                reply = await self._handler(scope, receive, record)
        except BrokerError as exc:
            note(record, exc)
            reply = problem(exc, record.request_id)
        except TimeoutError:
            late = self._late()
            note(record, late)
            reply = problem(late, record.request_id)
        except Exception:  # noqa: BLE001  (the border: a defect must still be answered)
            _log.exception("defect", request_id=record.request_id, operation=self._operation)
            defect = InternalError()
            note(record, defect)
            reply = problem(defect, record.request_id)
        await reply.send(send)

    def _late(self) -> BrokerError:
        """A mint or an action may have happened upstream, and a repetition would make another. All
        else brings the same when it is asked for again, so nobody needs to be in doubt."""
        if self._operation in _REPEATABLE:
            return Overloaded("There was not enough time.", cause="budget", retry_after=1.0)
        return UpstreamTimeout("The time for this request is spent.", cause="budget")


class ByPath:
    """What has no parameters in its path: found whole, or not at all."""

    def __init__(self, endpoints: Mapping[str, Endpoint], lost: Endpoint) -> None:
        """lost: answers for every other path."""
        self.endpoints = endpoints
        self._lost = lost

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.endpoints.get(scope["path"], self._lost)(scope, receive, send)


class Api:
    """The handlers, on one snapshot's use cases."""

    def __init__(
        self,
        *,
        door: Door,
        minting: Minting,
        chains: Chains,
        callbacks: Callbacks,
        clock: Clock,
        budget: float,
        profiles: Mapping[str, str],
        credentials: frozenset[str],
        max_body: int,
        document: bytes,
    ) -> None:
        """budget: seconds for one request. profiles: by name, whether a token may be handed out
        again; these names, and credentials', may be metric labels. document: of OpenAPI."""
        self._door = door
        self._minting = minting
        self._chains = chains
        self._callbacks = callbacks
        self._clock = clock
        self._budget = budget
        self._profiles = profiles
        self._credentials = credentials
        self._max_body = max_body
        self._document = document

    async def mint(self, scope: Scope, receive: Receive, record: Record) -> Reply:
        name: str = scope["path_params"]["profile"]
        if name in self._profiles:
            record.profile = name
        caller = await self._caller(scope, record)
        body = await self._body(scope, receive, MintBody)
        fields = scope["fields"]
        key = text(fields.get(b"idempotency-key"))
        if b"idempotency-key" in fields and not (0 < len(key) <= 255 and key.isprintable()):
            raise MalformedRequest("An Idempotency-Key has 1 to 255 printable characters.")
        served = await self._minting.mint(
            name,
            caller,
            body.parameters,
            self._facts(scope, record),
            idempotency_key=key,
            min_fresh=min_fresh_of(fields),
        )
        return self._session(served, record)

    async def rotate(self, scope: Scope, receive: Receive, record: Record) -> Reply:
        caller = await self._caller(scope, record)
        body = await self._body(scope, receive, HandleBody)
        served = await self._chains.rotate(
            body.handle, caller, self._facts(scope, record), min_fresh=min_fresh_of(scope["fields"])
        )
        return self._session(served, record)

    async def check(self, scope: Scope, receive: Receive, record: Record) -> Reply:
        caller = await self._caller(scope, record)
        body = await self._body(scope, receive, HandleBody)
        handle, left = await self._chains.check(body.handle, caller, self._facts(scope, record))
        record.profile, record.chain = handle.profile, handle.chain
        return json_reply(200, {"expires_in": int(left)}, NO_STORE)

    async def end(self, scope: Scope, receive: Receive, record: Record) -> Reply:
        caller = await self._caller(scope, record)
        body = await self._body(scope, receive, HandleBody)
        record.profile, record.chain = await self._chains.end(
            body.handle, caller, self._facts(scope, record)
        )
        return Reply(204, headers=[NO_STORE])

    async def act(self, scope: Scope, receive: Receive, record: Record) -> Reply:
        caller = await self._caller(scope, record)
        body = await self._body(scope, receive, ActBody)
        action: str = scope["path_params"]["action"]
        handle, status, answer = await self._chains.act(
            action,
            body.handle,
            body.data,
            caller,
            self._facts(scope, record),
            session_token=body.session_token,
        )
        record.profile, record.chain, record.action = handle.profile, handle.chain, action
        if status == 204 or not answer:
            return Reply(204, headers=[NO_STORE])
        return json_reply(status, answer, NO_STORE)

    async def callback(self, scope: Scope, receive: Receive, record: Record) -> Reply:
        """What an upstream posts: proven by its signature, or not believed."""
        name: str = scope["path_params"]["profile"]
        fields = scope["fields"]
        if name in self._profiles:
            record.profile = name
        with self._callbacks.place(name):
            if not is_json(fields):
                raise UnsupportedMediaType("The body must be application/json.")
            raw = await read_body(fields, receive, self._max_body, _CALLBACK_SECONDS)
            record.callback = await self._callbacks.receive(name, fields, raw)
        return Reply(204, headers=[NO_STORE])

    async def access_token(self, scope: Scope, receive: Receive, record: Record) -> Reply:
        name: str = scope["path_params"]["credential"]
        fields = scope["fields"]
        if b"origin" in fields or b"cookie" in fields:
            raise OriginNotAllowed("Access tokens are for services only.")
        if name in self._credentials:
            record.profile = name
        caller = await self._caller(scope, record)
        token, remaining, held = await self._minting.access_token(
            name, caller, min_fresh=min_fresh_of(fields)
        )
        value = token.value.reveal()
        record.fingerprint, record.remaining = token.value.fingerprint, remaining
        record.source = "cache" if held else "fetched"
        body = {
            "access_token": value,
            "token_type": token.token_type,
            "expires_in": int(remaining),
            "scope": token.scope,
        }
        how = _cache_status("hit" if held else "fwd=miss", remaining, record.source)
        return json_reply(200, body, NO_STORE, how)

    async def openapi(self, _scope: Scope, _receive: Receive, _record: Record) -> Reply:
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"max-age=300")]
        return Reply(200, self._document, headers)

    async def _body(self, scope: Scope, receive: Receive, model: type[B]) -> B:
        fields = scope["fields"]
        return parse_body(fields, await read_body(fields, receive, self._max_body), model)

    async def _caller(self, scope: Scope, record: Record) -> Caller:
        fields = scope["fields"]
        presented = Presented(text(fields.get(b"authorization")), text(fields.get(b"cookie")))
        caller = await self._door.authenticate(presented)
        record.caller, record.subject = caller.name, caller.subject
        return caller

    def _facts(self, scope: Scope, record: Record) -> Facts:
        fields = scope["fields"]
        return Facts(
            now=self._clock.now(),
            # The request id serves, unless the caller chose it.
            unique=new_uuid() if b"x-request-id" in fields else record.request_id,
            origin=record.origin,
            ip=scope["peer"],
            user_agent=text(fields.get(b"user-agent"))[:2048],
            accept=text(fields.get(b"accept"))[:2048],
            deadline=record.began + self._budget,
        )

    def _session(self, served: Served, record: Record) -> Reply:
        minted = served.minted
        session = minted.session
        token = session.token.reveal()
        record.profile, record.chain = minted.profile, minted.chain
        record.source, record.remaining = served.source, served.remaining
        record.fingerprint = fingerprint(token)
        body: dict[str, Any] = {
            "profile": minted.profile,
            "session_token": token,
            "issued_at": rfc3339(session.life.expires_at - session.life.lifetime),
            "expires_at": rfc3339(session.life.expires_at),
            "expires_in": int(served.remaining),
            "reuse": self._profiles[minted.profile],
            "output": session.output,
        }
        if minted.rotates:
            body["rotate_in"] = rotate_in(served)
        if minted.handle:
            body["handle"] = minted.handle
        fresh = served.source in ("minted", "rotated")
        how = _cache_status("fwd=miss" if fresh else "hit", served.remaining, served.source)
        return json_reply(202 if session.accepted else 201, body, NO_STORE, how)


def _cache_status(how: str, remaining: float, detail: str) -> tuple[bytes, bytes]:
    """RFC 9211: where a token came from, and what is left of it."""
    return b"cache-status", f"token-broker; {how}; ttl={int(remaining)}; detail={detail}".encode()


def public_app(
    api: Api, budget: float, client: Mapping[str, Static], pages: Mapping[str, Static]
) -> Router:
    """The public endpoints, each under its route, and files by their whole paths. budget: seconds
    for one request.

    A bare Router: a Starlette application would add two middlewares, for exceptions that do not
    leave an `Endpoint` (7 % of a mint)."""

    def route(path: str, method: str, operation: str, handler: Handler) -> Route:
        return Route(path, Endpoint(operation, handler, budget, method))

    return Router(
        routes=[
            route("/v1/profiles/{profile}/sessions", "POST", "mint", api.mint),
            route("/v1/sessions/rotate", "POST", "rotate", api.rotate),
            route("/v1/access-tokens/{credential}", "GET", "access_token", api.access_token),
            route("/v1/sessions/check", "POST", "check", api.check),
            route("/v1/sessions/end", "POST", "end", api.end),
            route("/v1/sessions/actions/{action}", "POST", "act", api.act),
            route("/v1/callbacks/{profile}", "POST", "callback", api.callback),
            route("/v1/openapi.json", "GET", "openapi", api.openapi),
        ],
        default=_by_path(api, budget, client, pages),
        redirect_slashes=False,
    )


def _by_path(
    api: Api, budget: float, client: Mapping[str, Static], pages: Mapping[str, Static]
) -> ByPath:
    async def nowhere(_scope: Scope, _receive: Receive, _record: Record) -> Reply:
        raise NotFound

    def got(operation: str, handler: Handler) -> Endpoint:
        return Endpoint(operation, handler, budget, "GET")

    return ByPath(
        {
            **{path: got("page", file.answer) for path, file in pages.items()},
            **{path: got("client", file.answer) for path, file in client.items()},
        },
        lost=Endpoint("other", nowhere, budget),
    )
