"""Which pages' scripts may call an endpoint and read its answer: CORS, one route at a time.

Wrapped around a route and not around the app, so that what is not meant for browsers pays
nothing.  It must never let a page from elsewhere than this machine give orders to the sandbox.
"""

import re
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.sandbox.clock import SandboxClock
from broker.sandbox.exchange import Reply, send_reply, text

_LOOPBACK: Final = re.compile(rb"http://(?:127\.0\.0\.1|localhost)(?::[0-9]{1,5})?")
_PREFLIGHT_KEPT: Final = b"600"
"""Seconds for which a browser need not ask again: a component polls every few seconds."""

Headers = tuple[tuple[bytes, bytes], ...]
Leave = Callable[[bytes | None], Headers | None]
"""The headers that let a page of an origin read the answer; None turns it away."""


def any_origin(origin: bytes | None) -> Headers | None:
    """For every page there is, as a vendor's API for browsers has it."""
    return ((b"access-control-allow-origin", b"*"),)


def loopback_only(origin: bytes | None) -> Headers | None:
    """For pages of this machine, and for what is no page; others are refused."""
    vary = (b"vary", b"origin")
    if origin is None:
        return (vary,)
    if not _LOOPBACK.fullmatch(origin):
        # A form or a request without preflight would be acted on, readable or not.
        return None
    return ((b"access-control-allow-origin", origin), vary)


class Cors:
    """A route for those pages that `leave` is given to."""

    def __init__(self, app: ASGIApp, leave: Leave, methods: str, clock: SandboxClock) -> None:
        self._app = app
        self._leave = leave
        self._allowed = b", ".join(methods.encode().split())
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = dict(scope["headers"])
        granted = self._leave(asked.get(b"origin"))
        if granted is None:
            await send_reply(send, text(403, "not for pages of this origin"), self._clock)
        elif scope["method"] == "OPTIONS" and b"access-control-request-method" in asked:
            await send_reply(send, Reply(204, headers=(*granted, *self._preflight())), self._clock)
        else:
            await self._app(scope, receive, _adding(granted, send))

    def _preflight(self) -> Headers:
        return (
            (b"access-control-allow-methods", self._allowed),
            (b"access-control-allow-headers", b"authorization, content-type"),
            (b"access-control-max-age", _PREFLIGHT_KEPT),
        )


def _adding(headers: Headers, send: Send) -> Send:
    """A `send` that adds to whatever is answered, faults included."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return sending
