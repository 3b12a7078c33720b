"""Connections are bounded before there is a request: real sockets against a real listener."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker import connections
from broker.connections import MOST_FIELDS, MOST_HEAD, MOST_PIPELINED, bounded, most_connections
from broker.file import Listener
from broker.serving import Listening, bind


class Served:
    """A listener of one tiny app; what it refused, and how many requests the app saw."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.refused: list[str] = []
        self.requests = 0
        self.body = b"hello " * 1000

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.requests += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": self.body})

    async def say(self, *parts: bytes) -> bytes:
        """Sends the parts and reads until the other end closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        with contextlib.suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.05)  # so that parts come as parts
        try:
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            await close(writer)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def served(most: int = 100) -> AsyncIterator[Served]:
    sock = bind(Listener(host="127.0.0.1", port=0))
    told = Served(sock.getsockname()[1])
    protocol = bounded(most, 65536, told.refused.append)
    async with Listening(told.app, sock, protocol, idle=5, grace=1).opened():
        yield told


def run(story: Any) -> None:
    async def bounded_story() -> None:
        async with asyncio.timeout(20):
            await story

    asyncio.run(bounded_story())


GET = b"GET / HTTP/1.1\r\nhost: x\r\n"


def test_an_answer_is_whole() -> None:
    """Head and body arrive complete, also where the connection is closed with the answer, and for
    requests that come one behind the other on one connection."""

    async def story() -> None:
        async with served() as told:
            answer = await told.say(GET + b"\r\n", GET + b"connection: close\r\n\r\n")
            assert answer.count(b"HTTP/1.1 200 OK") == 2
            assert answer.count(b"hello ") == 2000
            assert told.refused == []

    run(story())


@pytest.mark.parametrize(
    "head",
    [
        b"x-a: " + b"a" * (2 * MOST_HEAD) + b"\r\n\r\n",
        b"x-a: " + b"a" * (5 << 20),
        b"".join(b"x-%d: 1\r\n" % number for number in range(MOST_FIELDS + 5)) + b"\r\n",
        b"".join(b"x-%d: %s\r\n" % (number, b"a" * 2000) for number in range(90)) + b"\r\n",
    ],
    ids=["one field", "one field without end", "many fields", "many long fields"],
)
def test_a_head_that_is_too_large_is_refused(head: bytes) -> None:
    """431 as a problem, the connection ended, no request made of it, and counted."""

    async def story() -> None:
        async with served() as told:
            answer = await told.say(GET, head)
            assert told.requests == 0
            assert told.refused == ["oversized"]
            if answer:  # a reset may overtake it while we still send
                assert answer.startswith(b"HTTP/1.1 431 ")
                assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == 431

    run(story())


def test_requests_in_a_row_are_bounded() -> None:
    """What waits behind a request of its connection is held in memory: 64 of them, and no more."""

    async def story() -> None:
        async with served() as told:
            answer = await told.say(
                (GET + b"\r\n") * MOST_PIPELINED + GET + b"connection: close\r\n\r\n"
            )
            assert answer.count(b"HTTP/1.1 200 OK") == MOST_PIPELINED + 1
            assert told.refused == []
            await told.say((GET + b"\r\n") * 5000)
            assert told.refused == ["oversized"]

    run(story())


def test_a_large_head_within_bounds_is_served() -> None:
    """A JWT and cookies of 16 KiB each are no reason to refuse."""

    async def story() -> None:
        async with served() as told:
            fields = b"authorization: %s\r\ncookie: %s\r\n" % (b"a" * 16384, b"b" * 16384)
            answer = await told.say(GET + fields + b"connection: close\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")

    run(story())


@pytest.mark.parametrize("said", [b"", b"GET / HT", GET, b"\x16\x03\x01"[:0]])
def test_who_does_not_finish_the_head_is_closed(
    said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing, half a line, half a head: after the deadline the connection is closed."""
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.2)

    async def story() -> None:
        async with served() as told:
            assert await told.say(said) == b""
            assert told.refused == ["slow"]

    run(story())


def test_a_second_request_has_the_same_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kept connection may be idle, but once it begins a request it must finish the head."""
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.2)

    async def story() -> None:
        async with served() as told:
            answer = await told.say(GET + b"\r\n", GET)
            assert answer.count(b"HTTP/1.1 200 OK") == 1
            assert told.refused == ["slow"]

    run(story())


@pytest.mark.parametrize(
    "said",
    [
        b"\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nha",
    ],
    ids=["line breaks", "half a body", "half a chunk"],
)
@pytest.mark.parametrize("before", [b"", GET + b"\r\n"], ids=["first", "later"])
def test_who_does_not_finish_a_request_is_closed(
    before: bytes, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line breaks instead of a request, or a body without its end: closed after the deadline, on a
    new connection as on one that was used."""
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.3)

    async def story() -> None:
        async with served() as told:
            await told.say(*([before, said] if before else [said]))
            assert told.refused == ["slow"]

    run(story())


def test_a_kept_connection_may_be_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is said, the deadline does not run: the keep-alive time does."""
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.1)

    async def story() -> None:
        async with served() as told:
            reader, writer = await asyncio.open_connection("127.0.0.1", told.port)
            for _ in range(2):
                writer.write(GET + b"\r\n")
                assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200")
                await asyncio.sleep(0.3)
            await close(writer)
            assert told.refused == []

    run(story())


@pytest.mark.parametrize(
    "behind",
    [b"5\r\nhello\r\n0\r\nx-a: " + b"a" * (5 << 20), b"fffff\r\n" + b"a" * (5 << 20)],
    ids=["an endless trailer", "a large chunk"],
)
def test_what_comes_behind_a_head_is_bounded(behind: bytes) -> None:
    """Trailers and chunks beyond the bound end the connection, whatever the app does with them."""

    async def story() -> None:
        async with served() as told:
            head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            await told.say(head, behind)
            assert told.refused == ["oversized"]

    run(story())


@pytest.mark.parametrize("size", [100, 50_000, 100_000, 200_000])
def test_a_body_is_not_counted_as_head(size: int) -> None:
    """However head and body fall into packets, a body within its bound is served."""

    async def story() -> None:
        async with served() as told:
            body = b"a" * min(size, 65536)
            head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            answer = await told.say(head + b"content-length: %d\r\n\r\n" % len(body) + body)
            assert answer.startswith(b"HTTP/1.1 200 ")

    run(story())


def test_who_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that pile up unread end their connection, and give their places back."""
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.3)

    async def story() -> None:
        async with served() as told:
            told.body = b"a" * (50 << 20)
            _, writer = await asyncio.open_connection("127.0.0.1", told.port, limit=1024)
            writer.write(GET + b"\r\n")
            for _ in range(100):
                if told.refused:
                    break
                await asyncio.sleep(0.05)
            assert told.refused == ["stalled"]
            await close(writer)

    run(story())


def test_a_body_behind_an_upgrade_is_not_lost() -> None:
    """A request that offers h2c with a body is refused, not served as though it had none; one
    without a body is served."""

    async def story() -> None:
        async with served() as told:
            offer = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
            answer = await told.say(
                b"POST / HTTP/1.1\r\nhost: x\r\n" + offer + b"content-length: 2\r\n\r\n{}"
            )
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert told.requests == 0

    run(story())


def test_more_connections_than_allowed_are_turned_away() -> None:
    """The third of two is closed at once; when one goes, another may come."""

    async def story() -> None:
        async with served(most=2) as told:
            kept = [await asyncio.open_connection("127.0.0.1", told.port) for _ in range(2)]
            for reader, writer in kept:
                writer.write(GET + b"\r\n")
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            assert await told.say(GET + b"\r\n") == b""
            assert told.refused == ["full"]
            await close(kept[0][1])
            for _ in range(100):
                answer = await told.say(GET + b"connection: close\r\n\r\n")
                if answer:
                    break
                await asyncio.sleep(0.01)
            assert answer.startswith(b"HTTP/1.1 200")
            await close(kept[1][1])

    run(story())


@pytest.mark.parametrize("said", [b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"HELLO\r\n\r\n"])
def test_what_is_no_request_gets_a_problem(said: bytes) -> None:
    """TLS on a plain port, or no HTTP at all: 400 as a problem, counted, closed."""

    async def story() -> None:
        async with served() as told:
            answer = await told.say(said)
            assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
            body = json.loads(answer.partition(b"\r\n\r\n")[2])
            assert body["type"] == "urn:token-broker:problem:malformed-request"
            assert told.refused == ["malformed"]

    run(story())


def test_descriptors_are_left_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many connections are wanted, some descriptors stay for upstreams, probes and logs."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    assert most_connections(4096, 512) == 256 - 64 - 64
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 20, 1 << 20))
    assert most_connections(4096, 512) == 4096
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, 0))
    assert most_connections(4096, 512) == 4096
