"""Two listeners in one process, signals, drain.

uvicorn stops accepting as soon as it is told to stop, which loses requests wherever endpoints are
withdrawn later than pods are stopped; so the drain is ours: on SIGTERM readiness fails at once,
serving goes on for the drain delay with connections closed as they answer, running requests finish,
and the exit status is 0. SIGINT (Ctrl-C) and a second signal skip the delay.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from broker.app import App
from broker.file import Listener

_log = structlog.get_logger("serving")


class _Server(uvicorn.Server):
    """uvicorn without hands on the process's signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Joined:
    """A transport that writes what one turn of the loop brings at once, in the order it came."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._call_soon = loop.call_soon
        self._parts: list[bytes] = []
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._call_soon(self._flush)
        self._parts.append(data)

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))

    def close(self) -> None:
        self._flush()
        self._transport.close()


class OneWrite(HttpToolsProtocol):
    """uvicorn's protocol, sending head and body of an answer in one write and not in two: a fifth
    of a short answer's cost."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Joined(transport, self.loop))  # type: ignore[arg-type]


def bind(listener: Listener) -> socket.socket:
    """A bound socket. Raises OSError.

    The protocol is named, as asyncio leaves Nagle's algorithm on otherwise (40 ms an answer)."""
    family = socket.AF_INET6 if ":" in listener.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((listener.host, listener.port))
    except OSError:
        sock.close()
        raise
    sock.set_inheritable(False)
    return sock


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _server(app: Any, *, keep_alive: float, grace: float) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            http=OneWrite,
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=round(keep_alive),
            timeout_graceful_shutdown=max(1, round(grace)),
        )
    )


@contextlib.asynccontextmanager
async def _running(server: _Server, sock: socket.socket) -> AsyncIterator[None]:
    """Serves until the block ends; then stops accepting and lets running requests finish."""
    task = asyncio.create_task(server.serve(sockets=[sock]))
    while not server.started and not task.done():  # noqa: ASYNC110  (uvicorn has no event for it)
        await asyncio.sleep(0.005)
    try:
        yield
    finally:
        server.should_exit = True
        await task


class Stop:
    """Why and how urgently to stop; set by signals, or by `ask`."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._at_once = asyncio.Event()

    def ask(self, *, at_once: bool) -> None:
        if at_once or self._asked.is_set():
            self._at_once.set()
        self._asked.set()

    async def asked(self) -> None:
        await self._asked.wait()

    async def urgent(self, patience: float) -> None:
        """Waits for `patience` seconds, or until asked to stop at once."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._at_once.wait()


@contextlib.contextmanager
def on_signals(stop: Stop) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: stop.ask(at_once=False))
    loop.add_signal_handler(signal.SIGINT, lambda: stop.ask(at_once=True))
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        loop.remove_signal_handler(signal.SIGINT)


async def serve(
    app: App,
    public: socket.socket,
    ops: socket.socket,
    stop: Stop,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serves both listeners until `stop` is asked, then drains. Closes `app`.

    ready: called once requests are accepted.
    """
    settings = app.snapshot.server
    keep_alive = settings.keep_alive.total_seconds()
    grace = settings.shutdown_grace.total_seconds()
    try:
        async with _running(_server(app.ops, keep_alive=5, grace=1), ops):
            async with _running(_server(app.public, keep_alive=keep_alive, grace=grace), public):
                app.warm()
                # What has been made so far lives as long as the process: the collector need not
                # walk it again (a full walk held the loop for 40 ms).
                gc.collect()
                gc.freeze()
                app.starting = False
                _log.info("ready", public=url_of(public), ops=url_of(ops))
                ready()
                await stop.asked()
                app.load.draining = True
                _log.info("draining", seconds=settings.drain_delay.total_seconds())
                await stop.urgent(settings.drain_delay.total_seconds())
            _log.info("stopped")
    finally:
        await app.close()
