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
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import structlog
import uvicorn

from broker.app import App
from broker.connections import MOST_HEAD, BoundedProtocol, bounded, most_connections
from broker.file import Listener

_log = structlog.get_logger("serving")
_OPS_CONNECTIONS = 64
"""Probes and scrapers: a listener of their own, so that a crowd outside does not hide them."""


class _Server(uvicorn.Server):
    """uvicorn without hands on the process's signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(listener: Listener) -> socket.socket:
    """A bound socket. Raises OSError.

    The protocol is named, as asyncio leaves Nagle's algorithm on otherwise (40 ms an answer)."""
    family = socket.AF_INET6 if ":" in listener.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((listener.host, listener.port))
        sock.listen(2048)  # here, as two may bind one port while neither listens
    except OSError:
        sock.close()
        raise
    sock.set_inheritable(False)
    return sock


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Listening:
    """One listener: serves while `opened`, and lets running requests finish at its end."""

    def __init__(
        self,
        app: Any,
        sock: socket.socket,
        protocol: type[BoundedProtocol],
        *,
        idle: float,
        grace: float,
    ) -> None:
        """idle, grace: seconds an unused connection is kept, and running requests may take."""
        self._sock = sock
        self._server = _Server(
            uvicorn.Config(
                app,
                http=protocol,
                interface="asgi3",
                ws="none",
                loop="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=round(idle),
                timeout_graceful_shutdown=max(1, round(grace)),
            )
        )

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[asyncio.Task[None]]:
        """Gives the task that serves: it ends early only where something broke."""
        server = self._server
        task = asyncio.create_task(server.serve(sockets=[self._sock]))
        while not (server.started or task.done()):  # noqa: ASYNC110  (uvicorn has no event for it)
            await asyncio.sleep(0.005)
        if task.done():
            await task
            raise ListenerEnded
        try:
            yield task
        finally:
            server.should_exit = True
            await task


class ListenerEnded(RuntimeError):
    """A listener stopped though nobody asked it to."""


class Stop:
    """Why and how urgently to stop; set by signals, or by `ask`."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._at_once = asyncio.Event()

    def ask(self, *, at_once: bool) -> None:
        if at_once or self._asked.is_set():
            self._at_once.set()
        self._asked.set()

    @property
    def is_asked(self) -> bool:
        return self._asked.is_set()

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

    ready: called once requests are accepted. Raises ListenerEnded where one stops by itself.
    """
    outer, inner = _listeners(app, public, ops)
    try:
        async with inner.opened() as ops_task, outer.opened() as public_task:
            await _any(app.warm(), stop.asked(), ops_task, public_task)
            _still_there(ops_task, public_task)
            # What has been made so far lives as long as the process: the collector need not walk
            # it again (a full walk held the loop for 40 ms).
            gc.collect()
            gc.freeze()
            if not stop.is_asked:
                app.starting = False
                app.watch()
                _log.info("ready", public=url_of(public), ops=url_of(ops))
                ready()
            await _any(stop.asked(), ops_task, public_task)
            _still_there(ops_task, public_task)
            app.load.draining = True
            delay = app.snapshot.server.drain_delay.total_seconds()
            _log.info("draining", seconds=delay)
            await stop.urgent(delay)
        _log.info("stopped")
    finally:
        await app.close()


def _listeners(app: App, public: socket.socket, ops: socket.socket) -> tuple[Listening, Listening]:
    settings = app.snapshot.server
    grace = settings.shutdown_grace.total_seconds()
    idle = settings.keep_alive.total_seconds()
    most = most_connections(settings.max_connections, app.snapshot.max_connections)
    refused = app.metrics.connection_refused
    outside = bounded(most, 4 * settings.max_body_bytes + MOST_HEAD, refused, app.refusal)
    inside = bounded(_OPS_CONNECTIONS, MOST_HEAD, refused)
    return (
        Listening(app.public, public, outside, idle=idle, grace=grace),
        Listening(app.ops, ops, inside, idle=5, grace=1),
    )


def _still_there(*listeners: asyncio.Task[None]) -> None:
    if any(task.done() for task in listeners):
        raise ListenerEnded


async def _any(*waits: Coroutine[Any, Any, None] | asyncio.Task[None]) -> None:
    """Waits for the first of these. Tasks are left alone, what was begun here is not."""
    tasks = {wait: asyncio.ensure_future(wait) for wait in waits}
    try:
        await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait, task in tasks.items():
            if wait is not task:
                task.cancel()
