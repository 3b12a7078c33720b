"""What a fault does to the connection itself: cut it, drop it, sit on it.

ASGI has no word for a reset, so `serving` hands the transport down in the scope; the faults that
need it must refuse to run without it rather than pretend.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator

from starlette.types import Receive, Scope

EXTENSION = "token-broker.sandbox.transport"


def transport_of(scope: Scope) -> asyncio.Transport:
    try:
        transport: asyncio.Transport = scope["extensions"][EXTENSION]["transport"]
    except KeyError:
        raise RuntimeError("this fault needs the server of broker.sandbox.serving") from None
    return transport


def reset(transport: asyncio.Transport) -> None:
    """A real TCP RST: closing with a linger time of nought discards instead of finishing."""
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def until_gone(receive: Receive) -> None:
    """Returns when the client has left or the server has cut the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def gone_within(receive: Receive, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await until_gone(receive)
    except TimeoutError:
        return False
    return True


@contextlib.asynccontextmanager
async def watching(receive: Receive) -> AsyncIterator[asyncio.Task[None]]:
    """A task that is done as soon as nobody listens: uvicorn swallows what is sent after that."""
    gone = asyncio.create_task(until_gone(receive))
    try:
        yield gone
    finally:
        gone.cancel()
