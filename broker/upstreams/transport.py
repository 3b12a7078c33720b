"""The one door to the network: send a request with a deadline and a size limit, follow nothing.

Everything the service sends goes through `Transport.send`: mints, token requests, discovery, JWKS,
introspection. So time-outs, body limits, TLS and redirects are settled in one place, foreign
exceptions are translated once, and tests and other clients (pyreqwest) need one small class.
aiohttp, as it costs a third of httpx2 on this path (`make bench`).
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from aiohttp.client_reqrep import ClientRequest, ConnectionKey
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

from broker.errors import BrokerError, UpstreamNonsense, UpstreamTimeout, UpstreamUnavailable
from broker.loop_time import Limit, LoopTime

BODY_LIMIT = 1 << 20
"""Bytes: tokens and key sets are a few KiB; anything near this is a fault or an attack."""
_UNLIMITED = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
"""The library's own timers fire before what lies in the socket is read: the limit is ours."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. headers: looked up in any case; the first of equal names counts."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NotSent(UpstreamUnavailable):
    """There was no connection to send it on: certainly nothing has happened."""


class BrokenOff(UpstreamNonsense):
    """An answer began and is not whole, or not HTTP: the call has happened, or may have."""


class Transport(Protocol):
    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        timeout: float,  # noqa: ASYNC109  (a deadline for one exchange, not for a scope)
        limit: int = BODY_LIMIT,
    ) -> Answer:
        """One request, one whole answer, within `timeout` seconds of running time (`loop_time`) and
        `limit` bytes of body.

        url is sent as it is (already percent-encoded). Raises NotSent when it was certainly not
        sent, UpstreamUnavailable when it never can be, UpstreamTimeout when it may have happened,
        BrokenOff when the answer is not whole or not HTTP, UpstreamNonsense when it is too large.
        """
        ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class _Exchange:
    """One request on its way. is_connected: it has a connection, so that it may be sent."""

    limit: Limit
    more: float
    is_connected: bool = False

    def connected(self) -> None:
        """From now on the answer is waited for, `more` seconds longer than a connection."""
        self.is_connected = True
        self.limit.extend(self.more)


_under_way: ContextVar[_Exchange] = ContextVar("exchange")


class _Connector(aiohttp.TCPConnector):
    """A pool that tells when a request gets its connection, and does not use a connection again on
    which something was said while it was idle.

    aiohttp would take that for the answer to the next request: a balancer's 408, or after a slip of
    the upstream a session token that is another caller's. `_get` is not public; a test notices.
    """

    async def connect(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  (the library's signature)
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        _under_way.get().connected()
        return connection

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        while (found := await super()._get(key, traces)) is not None:
            if found.protocol is not None and not found.protocol.should_close:
                return found
            found.close()
        return None


class AiohttpTransport:
    """`Transport` on aiohttp. Make it inside the running loop; one for the life of the process.

    max_connections: to one host; one that hangs takes none from the others. idle_seconds: how
    long an unused connection is kept, best just under the upstream's own limit: a new TLS
    connection costs more than everything else a mint does.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        max_connections: int = 512,
        idle_seconds: float = 55.0,
        connect_seconds: float = 3.0,
        loop_time: LoopTime | None = None,
    ) -> None:
        self._connect = connect_seconds
        self._loop_time = loop_time or LoopTime()
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                limit=0,
                limit_per_host=max_connections,
                keepalive_timeout=idle_seconds,
                ttl_dns_cache=30,
                ssl=tls if tls is not None else True,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Content-Type", "Accept"),
        )
        # It would send a GET, PUT or DELETE once more where a kept connection died. What may be
        # sent twice is not for it to say. Not public; a test notices.
        self._session._retry_connection = False  # noqa: SLF001  (see above)

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        timeout: float,  # noqa: ASYNC109  (a deadline for one exchange, not for a caller's scope)
        limit: int = BODY_LIMIT,
    ) -> Answer:
        first = min(timeout, self._connect)
        limit_of_time = self._loop_time.limit(first)
        exchange = _Exchange(limit_of_time, timeout - first)
        _ = _under_way.set(exchange)
        try:
            async with (
                limit_of_time,
                self._session.request(
                    method,
                    _url(url),
                    headers=headers,
                    data=body,
                    allow_redirects=False,
                    timeout=_UNLIMITED,
                ) as response,
            ):
                return Answer(response.status, response.headers, await self._read(response, limit))
        except TimeoutError as exc:
            if not exchange.is_connected:
                raise NotSent("The upstream cannot be reached.", cause="no connection") from exc
            raise _translated(exc) from exc
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise _translated(exc) from (exc if isinstance(exc, _TELLS_NOTHING) else None)

    @staticmethod
    async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
        if (response.content_length or 0) > limit:
            response.close()
            raise UpstreamNonsense("The upstream's answer is too large.")
        chunks: list[bytes] = []
        size = 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > limit:
                response.close()
                raise UpstreamNonsense("The upstream's answer is too large.")
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def close(self) -> None:
        await self._session.close()
        await asyncio.sleep(0)

    def abandon(self) -> None:
        """In place of `close`, where nothing was sent yet."""
        self._session.detach()


_NOT_SENT = (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError)
_NOT_HTTP = (aiohttp.ClientResponseError, aiohttp.ClientPayloadError)
_NOT_SENDABLE = (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, ValueError)
_TELLS_NOTHING = (*_NOT_SENT, TimeoutError, aiohttp.ClientConnectionError, OSError)
"""May stay as `__cause__`. The others hold the request's headers, quote what was answered, or quote
the URL or header that cannot be sent."""


def _translated(exc: Exception) -> BrokerError:
    """What aiohttp raised, by what is known of the request: not sent, or perhaps."""
    cause = type(exc).__name__
    if isinstance(exc, _NOT_SENT):
        return NotSent("The upstream cannot be reached.", cause=cause)
    if isinstance(exc, _NOT_HTTP):
        return BrokenOff("The upstream's answer broke off or is not HTTP.", cause=cause)
    if isinstance(exc, _NOT_SENDABLE):
        return UpstreamUnavailable("The request cannot be sent.", cause=cause)
    return UpstreamTimeout("The upstream did not answer; the call may have happened.", cause=cause)


@functools.lru_cache(maxsize=256)
def _url(text: str) -> URL:
    """Parsed once: most calls go to a few addresses."""
    return URL(text, encoded=True)


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """The client's TLS settings: made once, as loading the trust store costs 20 ms."""
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
