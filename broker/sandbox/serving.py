"""Runs the sandbox as a real HTTP server inside a running event loop.

It must never touch what belongs to the process: no signal handlers, no logging configuration, no
access log (its URLs and headers are full of tokens).  It stops at once, whatever a fault holds.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from broker.sandbox.app import build
from broker.sandbox.settings import SandboxSettings
from broker.sandbox.wire import EXTENSION

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 75
"""Longer than the client pools keep theirs, so that no test meets a connection just closed."""

_CANCEL_AFTER_SECONDS = 1.0
"""A cut connection ends every wait of ours at once; this is for what we did not foresee."""


@dataclass(frozen=True, slots=True)
class RunningSandbox:
    """Where it listens: `url` has no trailing slash."""

    url: str
    host: str
    port: int


class _Protocol(HttpToolsProtocol):
    """uvicorn's own, with the transport handed down for the faults that cut the line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Here and not in Config: there it would silence the logger of the whole process.
        self.access_log = False

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: {"transport": self.transport}}


class _Server(uvicorn.Server):
    """A server that belongs to a context manager instead of to a process."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self.stop = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # Signals are the host's business.

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.up.set()

    async def main_loop(self) -> None:
        # The base wakes ten times a second to look; nothing here changes without being told.
        await self.stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in self.servers:
            listener.close()
        for connection in list(self.server_state.connections):
            # Cutting the line is what ends hangs and streams: their `receive` says disconnect.
            connection.transport.abort()
        # Each leaves the set when its transport has told it so, a turn of the loop later; uvicorn
        # has no event for that, hence the loop.
        while self.server_state.connections:  # noqa: ASYNC110  (uvicorn has no event for it)
            await asyncio.sleep(0)
        tasks = set(self.server_state.tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_CANCEL_AFTER_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self.lifespan.shutdown()


@contextlib.asynccontextmanager
async def serve(
    settings: SandboxSettings | None = None, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[RunningSandbox]:
    """The sandbox, listening for as long as the context lasts; port 0 takes a free one."""
    listener = _bind(host, port)
    config = uvicorn.Config(
        build(settings or SandboxSettings()),
        http=_Protocol,
        ws="none",
        # What is still being delivered ends with the server.
        lifespan="on",
        log_config=None,
        server_header=False,
        # The sandbox's own clock writes it, so that a skew shows.
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        backlog=_BACKLOG,
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]), name="sandbox")
    try:
        await _until_up(server, running)
        bound = listener.getsockname()[1]
        name = f"[{host}]" if ":" in host else host
        yield RunningSandbox(f"http://{name}:{bound}", host, bound)
    finally:
        server.stop.set()
        await running
        listener.close()


async def _until_up(server: _Server, running: asyncio.Task[None]) -> None:
    waiting = asyncio.create_task(server.up.wait())
    try:
        await asyncio.wait({waiting, running}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if running.done():
        # It failed before it listened: say why, here and now.
        running.result()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol must be named: asyncio turns Nagle off only on sockets that say they are TCP,
    # and with it on every answer (two writes) waits some 40 ms for the client's delayed ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener
