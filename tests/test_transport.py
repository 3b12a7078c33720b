"""The one door to the network, over real loopback sockets: sandbox faults and worse servers."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gc
import gzip
import ipaddress
import re
import socket
import ssl
import threading
import time
import traceback
import tracemalloc
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.app import App
from broker.audit import AuditLog
from broker.config import parse
from broker.errors import (
    BrokerError,
    UpstreamNonsense,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from broker.guard import Guard
from broker.limits import RateLimits
from broker.loop_time import LoopTime
from broker.metrics import Metrics
from broker.sandbox.serving import serve
from broker.schedule import SystemClock
from broker.upstreams.transport import (
    BODY_LIMIT,
    AiohttpTransport,
    Answer,
    BrokenOff,
    NotSent,
    tls_context,
)
from tests.harness import problem

SECRET = "sek_canary_0123456789"
SESSION = {"gateway": {"api_key": "sandbox-nmi-key", "merchant_id": "1", "environment": "sandbox"}}
LATE = 1.5
"""Seconds over a deadline that a busy machine may add."""
HEAD = b"HTTP/1.1 200 OK\r\n"


def run(
    story: Coroutine[Any, Any, None],
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> None:
    """Also fails for what nobody awaited or caught: asyncio only logs it."""
    wrong: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: wrong.append(told))
        async with asyncio.timeout(20):
            await story
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    assert wrong == []


class Peer:
    """A server that says byte for byte what it is told to, and notes what it hears."""

    def __init__(self, play: Callable[[Peer, asyncio.StreamWriter], Awaitable[bool]]) -> None:
        """play: answers one request; whether the connection stays open."""
        self._play = play
        self._tasks: set[asyncio.Task[Any]] = set()
        self.heard: list[bytes] = []
        self.accepted = 0
        self.open = 0
        self.most_open = 0
        self.port = 0
        self.news = asyncio.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def until(self, true: Callable[[], bool]) -> None:
        async with self.news, asyncio.timeout(5):
            await self.news.wait_for(true)

    async def _changed(self) -> None:
        async with self.news:
            self.news.notify_all()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        with contextlib.suppress(asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                self.heard.append(head + body)
                await self._changed()
                if not await self._play(self, writer):
                    break
                await writer.drain()
        self._tasks.discard(task)
        self.open -= 1
        writer.close()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await writer.wait_closed()
        await self._changed()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        while self._tasks:
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def peer(
    play: bytes | Callable[[Peer, asyncio.StreamWriter], Awaitable[bool]],
    *,
    keep: bool = False,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Peer]:
    """A server that plays, or that answers every request with the same bytes."""

    async def say(_peer: Peer, writer: asyncio.StreamWriter) -> bool:
        assert isinstance(play, bytes)
        writer.write(play)
        return keep

    there = Peer(say if isinstance(play, bytes) else play)
    server = await asyncio.start_server(there.serve, "127.0.0.1", 0, ssl=tls)
    there.port = server.sockets[0].getsockname()[1]
    try:
        yield there
    finally:
        server.close()
        await there.close()


@contextlib.asynccontextmanager
async def transport(**options: Any) -> AsyncIterator[AiohttpTransport]:
    made = AiohttpTransport(**{"tls": ssl.create_default_context(), **options})
    try:
        yield made
    finally:
        await made.close()


async def get(via: AiohttpTransport, url: str, timeout: float = 5.0, **options: Any) -> Answer:
    headers = {"authorization": f"Bearer {SECRET}"}
    return await via.send("POST", url, headers=headers, body=b"{}", timeout=timeout, **options)


async def fails(via: AiohttpTransport, url: str, timeout: float = 5.0) -> BrokerError:
    """The error, after seeing that it keeps the secret wherever one could look."""
    with pytest.raises(BrokerError) as caught:
        await get(via, url, timeout)
    error: BaseException | None = caught.value
    told = "".join(traceback.format_exception(caught.value))
    while error is not None:
        told += repr(error) + str(error) + repr(error.args)
        error = error.__cause__
    assert SECRET not in told
    return caught.value


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def hang(there: Peer, _writer: asyncio.StreamWriter) -> bool:
    await asyncio.get_running_loop().create_future()
    return False


# Nothing was sent: NotSent; or never can be: UpstreamUnavailable.


def test_nobody_listens() -> None:
    """A refused connection is "not sent", at once."""

    async def story() -> None:
        async with transport() as via:
            error = await fails(via, f"http://127.0.0.1:{free_port()}/")
            assert (type(error), error.cause) == (NotSent, "ClientConnectorError")

    run(story())


def test_no_such_name() -> None:
    """A name that does not resolve (RFC 6761: nothing under .invalid does) is "not sent"."""

    async def story() -> None:
        async with transport() as via:
            assert type(await fails(via, "http://upstream.invalid/", 15)) is NotSent

    run(story())


UNSENDABLE = {
    "label too long": f"http://{'a' * 70}.invalid/",
    "empty label": "http://a..b/",
    "half an address": "http://[::1/",
    "port too large": "http://127.0.0.1:99999/",
    "no scheme": "nonsense",
    "no host": "http:///x",
    "another scheme": "ftp://127.0.0.1/",
    "NUL in the host": "http://127.0.0.1\0/",
}


@pytest.mark.parametrize("name", UNSENDABLE)
def test_urls_that_cannot_be_sent(name: str) -> None:
    """What is no URL to anything is "unavailable" and no other exception, as nothing was sent."""

    async def story() -> None:
        async with transport() as via:
            assert type(await fails(via, UNSENDABLE[name])) in (UpstreamUnavailable, NotSent)

    run(story())


@pytest.mark.parametrize(
    "header", [("x", f"{SECRET}\r\nx: y"), ("x", f"{SECRET}\0"), (f"{SECRET}\n", "y")]
)
def test_headers_that_cannot_be_sent(header: tuple[str, str]) -> None:
    """A line break in a header (a secret with one in it) is refused before a byte is sent, told
    without the header, and costs no connection of the pool."""

    async def story() -> None:
        answer = HEAD + b"content-length: 2\r\n\r\nok"
        async with transport(max_connections=1) as via, peer(answer, keep=True) as there:
            with pytest.raises(UpstreamUnavailable) as caught:
                await via.send("GET", there.url, headers=dict([header]), timeout=2)
            assert SECRET not in "".join(traceback.format_exception(caught.value))
            assert (await get(via, there.url, 2)).body == b"ok"
            assert len(there.heard) == 1

    run(story())


def test_waiting_for_a_connection_is_not_waiting_for_an_answer() -> None:
    """Where the pool is full until the deadline nothing was sent, and that is what is said; the
    call that holds the connection may have happened."""

    async def story() -> None:
        async with transport(max_connections=1) as via, peer(hang) as there:
            first = asyncio.create_task(fails(via, there.url, 2.5))
            await there.until(lambda: len(there.heard) == 1)
            began = time.monotonic()
            assert type(await fails(via, there.url, 1.0)) is NotSent
            assert time.monotonic() - began < 1.0 + LATE
            assert type(await first) is UpstreamTimeout
            assert len(there.heard) == 1

    run(story())


# TLS.


def certificates(
    tmp_path: Path, name: str, days: int = 1
) -> tuple[ssl.SSLContext, ssl.SSLContext, str]:
    """A server's context, one of a self-signed server, and the CA file of the first."""
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a CA of this test")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server of this test")])
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip

    def signed(who: x509.Name, by: x509.Name, public: Any, signer: Any, ca: bool) -> Any:
        built = (
            x509.CertificateBuilder()
            .subject_name(who)
            .issuer_name(by)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=9))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
                critical=False,
            )
        )
        if ca:
            built = built.add_extension(usage, critical=True)
        else:
            names: list[x509.GeneralName] = [x509.DNSName(name)]
            with contextlib.suppress(ValueError):
                names = [x509.IPAddress(ipaddress.ip_address(name))]
            built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return built.sign(signer, hashes.SHA256())

    def context(certificate: Any) -> ssl.SSLContext:
        path = tmp_path / "server.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(path)
        return made

    ca = signed(issuer, issuer, ca_key.public_key(), ca_key, ca=True)
    (tmp_path / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    leaf = signed(subject, issuer, key.public_key(), ca_key, ca=False)
    alone = signed(subject, subject, key.public_key(), key, ca=False)
    return context(leaf), context(alone), str(tmp_path / "ca.pem")


OK = HEAD + b"content-length: 2\r\n\r\nok"


def test_a_certificate_of_ones_own_ca(tmp_path: Path) -> None:
    """A server whose CA is in `ca_file` is answered by; with the machine's CAs alone, or when it is
    self-signed, it is "not sent" and hears nothing of the request."""
    good, alone, ca_file = certificates(tmp_path, "127.0.0.1")

    async def story() -> None:
        async with peer(OK, tls=good) as there, transport(tls=tls_context(ca_file)) as via:
            url = there.url.replace("http:", "https:")
            assert (await get(via, url)).body == b"ok"
            assert len(there.heard) == 1
            async with transport(tls=tls_context(None)) as stranger:
                error = await fails(stranger, url)
                assert type(error) is NotSent
                assert error.cause == "ClientConnectorCertificateError"
            async with peer(OK, tls=alone) as impostor:
                error = await fails(via, impostor.url.replace("http:", "https:"))
                assert type(error) is NotSent
                assert impostor.heard == []
            assert len(there.heard) == 1

    run(story())


@pytest.mark.parametrize(("name", "days"), [("other.example", 1), ("127.0.0.1", -1)])
def test_a_certificate_for_another_name_or_day(tmp_path: Path, name: str, days: int) -> None:
    """The name and the validity of a certificate are checked, whoever signed it."""
    good, _, ca_file = certificates(tmp_path, name, days)

    async def story() -> None:
        async with peer(OK, tls=good) as there, transport(tls=tls_context(ca_file)) as via:
            error = await fails(via, there.url.replace("http:", "https:"))
            assert type(error) is NotSent
            assert there.heard == []

    run(story())


def test_a_server_that_speaks_no_tls() -> None:
    """Plain HTTP where TLS is asked for is "not sent": the request never left."""

    async def story() -> None:
        async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(OK)
            writer.close()

        server = await asyncio.start_server(plain, "127.0.0.1", 0)
        async with server, transport() as via:
            port = server.sockets[0].getsockname()[1]
            assert type(await fails(via, f"https://127.0.0.1:{port}/")) is NotSent

    run(story())


def test_a_handshake_that_stalls() -> None:
    """TLS that never gets ready costs `connect_seconds`, not the deadline, and is "not sent"."""

    async def story() -> None:
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(5)  # the kernel accepts; nobody answers
            async with transport(connect_seconds=0.3) as via:
                began = time.monotonic()
                error = await fails(via, f"https://127.0.0.1:{deaf.getsockname()[1]}/", 10)
                assert type(error) is NotSent
                assert 0.25 < time.monotonic() - began < 0.3 + LATE

    run(story())


def test_a_short_deadline_covers_the_handshake_too() -> None:
    """A deadline under `connect_seconds` that passes while connecting is "not sent" too."""

    async def story() -> None:
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(5)
            async with transport() as via:
                error = await fails(via, f"https://127.0.0.1:{deaf.getsockname()[1]}/", 1.0)
                assert type(error) is NotSent

    run(story())


# The request went out: what the sandbox does to the answer.

FAULTS: dict[str, tuple[type[BrokerError] | int, dict[str, Any], float]] = {
    "latency": (201, {"seconds": 0.05}, 5),
    "hang": (UpstreamTimeout, {}, 0.3),
    "slow-drip": (UpstreamTimeout, {"seconds": 0.05}, 0.3),
    "reset": (UpstreamTimeout, {}, 5),
    "close-midway": (BrokenOff, {}, 5),
    "huge-body": (UpstreamNonsense, {"bytes": 50_000_000, "declare_length": False}, 5),
    "huge-body declared": (UpstreamNonsense, {"bytes": 50_000_000, "declare_length": True}, 5),
    "endless-body": (UpstreamNonsense, {}, 5),
    "status": (503, {"code": 503}, 5),
    "html-200": (200, {}, 5),
    "truncated-json": (201, {}, 5),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_the_sandbox(name: str) -> None:
    """Each fault is its error or an answer, within the deadline, and the next call is good."""
    expected, options, deadline = FAULTS[name]
    body = b'{"gateway":{"api_key":"sandbox-nmi-key","merchant_id":"1","environment":"sandbox"}}'
    headers = {"content-type": "application/json", "accept": "application/json"}

    async def story() -> None:
        async with (
            serve() as sandbox,
            transport(max_connections=1) as via,
            httpx2.AsyncClient(base_url=sandbox.url, verify=False, trust_env=False) as http,
        ):
            fault = {
                "operation": "nmi.session",
                "kind": name.partition(" ")[0],
                "times": 1,
                **options,
            }
            assert (await http.post("/_sandbox/faults", json=fault)).status_code == 201
            url = f"{sandbox.url}/nmi/api/v1/sessions"

            async def mint(timeout: float) -> Answer:
                return await via.send("POST", url, headers=headers, body=body, timeout=timeout)

            began = time.monotonic()
            if isinstance(expected, int):
                assert (await mint(deadline)).status == expected
            else:
                with pytest.raises(BrokerError) as caught:
                    await mint(deadline)
                assert type(caught.value) is expected
                if expected is UpstreamTimeout and name != "reset":
                    assert time.monotonic() - began >= deadline * 0.99
            assert time.monotonic() - began < deadline + LATE
            assert (await mint(5)).status == 201

    run(story())


def test_a_declared_length_over_the_limit_is_not_read() -> None:
    """The limit is judged by Content-Length before a byte of the body, and is inclusive."""

    async def head_only(there: Peer, writer: asyncio.StreamWriter) -> bool:
        writer.write(HEAD + b"content-length: 11\r\n\r\n")
        return await hang(there, writer)

    async def story() -> None:
        async with transport() as via:
            async with peer(head_only) as there:
                with pytest.raises(UpstreamNonsense):
                    await get(via, there.url, limit=10)
            async with peer(HEAD + b"content-length: 10\r\n\r\n0123456789") as there:
                assert (await get(via, there.url, limit=10)).body == b"0123456789"

    run(story())


@pytest.mark.parametrize(("size", "good"), [(10, True), (11, False)])
def test_chunked_answers_have_the_same_limit(size: int, good: bool) -> None:
    """A body without length counts as it comes."""
    chunks = b"".join(b"1\r\nx\r\n" for _ in range(size))
    raw = HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"

    async def story() -> None:
        async with transport() as via, peer(raw) as there:
            if good:
                assert (await get(via, there.url, limit=10)).body == b"x" * size
            else:
                with pytest.raises(UpstreamNonsense):
                    await get(via, there.url, limit=10)

    run(story())


def test_a_gzip_bomb_is_not_unpacked() -> None:
    """100 MB in 100 KB are nonsense after a few MiB; an honest gzip answer is unpacked."""
    bomb = gzip.compress(bytes(100_000_000), 9)
    head = HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n"

    async def story() -> None:
        async with transport() as via:
            async with peer(head % len(bomb) + bomb) as there:
                tracemalloc.start()
                try:
                    assert type(await fails(via, there.url)) is UpstreamNonsense
                    assert tracemalloc.get_traced_memory()[1] < 16 * BODY_LIMIT
                finally:
                    tracemalloc.stop()
            small = gzip.compress(b"{}")
            async with peer(head % len(small) + small) as there:
                assert (await get(via, there.url)).body == b"{}"

    run(story())


BROKEN = {
    "not HTTP": b"SSH-2.0-OpenSSH_9.9\r\n",
    "no status": b"HTTP/1.1 \r\n\r\n",
    "status of letters": b"HTTP/1.1 abc OK\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "TLS alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "two lengths": HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "negative length": HEAD + b"content-length: -1\r\n\r\n",
    "length and chunks": HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "bad chunk": HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n",
    "chunks cut off": HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nab",
    "body cut off": HEAD + b"content-length: 5\r\n\r\nab",
    "no gzip": HEAD + b"content-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc",
    "huge header": HEAD + b"x: " + b"a" * 100_000 + b"\r\n\r\n",
    "header without colon": HEAD + b"nonsense\r\n\r\n",
    "NUL in a header": HEAD + b"x: a\0b\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_http_is_nonsense(name: str) -> None:
    """Bytes that are no HTTP answer are "nonsense"; not one of them gets into the error."""
    marked = BROKEN[name].replace(b"nonsense", b"upstream-canary").replace(b"abc", b"upstreamxyz")

    async def story() -> None:
        async with transport() as via, peer(marked) as there:
            error = await fails(via, there.url)
            assert type(error) is BrokenOff
            told = "".join(traceback.format_exception(error))
            assert "canary" not in told
            assert "upstreamxyz" not in told
            assert "OpenSSH" not in told

    run(story())


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 20", HEAD, HEAD + b"content-length: 2\r\n"])
def test_an_answer_that_ends_before_its_body_may_have_happened(raw: bytes) -> None:
    """A connection closed before the head of the answer is whole leaves open what was done."""

    async def story() -> None:
        async with transport() as via, peer(raw) as there:
            assert type(await fails(via, there.url)) is UpstreamTimeout

    run(story())


def test_endless_interim_answers_end_at_the_deadline() -> None:
    """100 Continue for ever is no way around the deadline."""

    async def chatter(_there: Peer, writer: asyncio.StreamWriter) -> bool:
        while True:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 10)
            await writer.drain()
            await asyncio.sleep(0.001)

    async def story() -> None:
        async with transport() as via, peer(chatter) as there:
            began = time.monotonic()
            assert type(await fails(via, there.url, 0.3)) is UpstreamTimeout
            assert time.monotonic() - began < 0.3 + LATE

    run(story())


LINES = st.one_of(
    st.sampled_from(
        [
            b"content-length: 2",
            b"content-length: 99999999999999999999",
            b"transfer-encoding: chunked",
            b"transfer-encoding: gzip, chunked",
            b"content-encoding: gzip",
            b"content-encoding: deflate",
            b"content-encoding: br",
            b"connection: upgrade",
            b"upgrade: websocket",
            b"set-cookie: a=b; expires=never",
            b"content-type: a/b; charset=\xff",
            b"location: http://127.0.0.1:1/",
            b" folded",
        ]
    ),
    st.binary(max_size=20),
)
RAW = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda status, lines, body: (
            b"HTTP/1.1 " + status + b"\r\n" + b"".join(x + b"\r\n" for x in lines) + b"\r\n" + body
        ),
        st.sampled_from([b"200 OK", b"201", b"204 x", b"304 x", b"101 x", b"103 x", b"302 F"]),
        st.lists(LINES, max_size=4),
        st.one_of(st.binary(max_size=60), st.just(b"2\r\nab\r\n0\r\n\r\n")),
    ),
)


def test_any_bytes_are_an_answer_or_a_broker_error() -> None:
    """Whatever a server says, nothing but an Answer or an error of the house comes out, and no
    callback of the loop fails."""
    wrong: list[dict[str, Any]] = []
    said = [b""]

    async def say(_there: Peer, writer: asyncio.StreamWriter) -> bool:
        writer.write(said[0])
        return False

    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(lambda _, told: wrong.append(told))
        stack = contextlib.AsyncExitStack()
        there = runner.run(stack.enter_async_context(peer(say)))
        via = runner.run(stack.enter_async_context(transport()))

        @given(RAW)
        @settings(max_examples=250, deadline=None, derandomize=True)
        def law(raw: bytes) -> None:
            said[0] = raw

            async def one() -> None:
                with contextlib.suppress(BrokerError):
                    assert isinstance(await get(via, there.url, 2), Answer)

            runner.run(one())
            assert wrong == []

        law()
        runner.run(stack.aclose())


# What is sent, and to whom.


def test_what_is_sent_is_what_was_given() -> None:
    """The request has the caller's headers and Host and Content-Length, and no other: no
    User-Agent, Accept or Accept-Encoding of a library."""

    async def story() -> None:
        async with transport() as via, peer(OK) as there:
            await via.send("POST", f"{there.url}/p", headers={"x-one": "1"}, body=b"{}", timeout=5)
            head, _, body = there.heard[0].partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            assert first == "POST /p HTTP/1.1"
            sent = {line.split(": ")[0].lower(): line.split(": ")[1] for line in lines}
            assert sent == {
                "host": f"127.0.0.1:{there.port}",
                "x-one": "1",
                "content-length": "2",
            }
            assert body == b"{}"

    run(story())


@pytest.mark.parametrize(
    "path",
    [
        "/a%2Fb/%2e%2E/c%20d",
        "/x?q=%C3%BC&r=a+b%2Bc&s=%3D",
        "/./a/../b//c",
        "/%41?",
        "/a;b=c@d:e!$&'()*,",
    ],
)
def test_urls_go_out_as_they_are(path: str) -> None:
    """Nothing is decoded, encoded or normalised in a path or query."""

    async def story() -> None:
        async with transport() as via, peer(OK) as there:
            await via.send("GET", there.url + path, headers={}, timeout=5)
            line = there.heard[0].split(b"\r\n")[0].decode()
            assert line == f"GET {path.removesuffix('?')} HTTP/1.1"

    run(story())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_answers(status: int) -> None:
    """A redirect comes back as it is; its target hears nothing, least of all the credential."""

    async def story() -> None:
        async with transport() as via, peer(OK) as target:
            answer = b"HTTP/1.1 %d x\r\nlocation: %s/x\r\ncontent-length: 0\r\n\r\n"
            async with peer(answer % (status, target.url.encode())) as there:
                got = await get(via, there.url)
                assert (got.status, got.headers["location"]) == (status, f"{target.url}/x")
            assert target.accepted == 0

    run(story())


def test_cookies_and_the_environment_are_not_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A Set-Cookie is forgotten; proxies and netrc of the environment are not used."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    cookie = HEAD + b"set-cookie: sid=1; path=/\r\ncontent-length: 0\r\n\r\n"

    async def story() -> None:
        async with transport() as via, peer(cookie, keep=True) as there:
            for _ in range(2):
                await via.send("GET", there.url, headers={}, timeout=5)
            assert there.heard[0] == there.heard[1]
            assert b"ookie" not in there.heard[1]
            assert b"uthorization" not in there.heard[1]

    run(story())


def test_headers_are_looked_up_in_any_case() -> None:
    """A header is found however the server writes its name; of equal ones the first counts."""
    raw = HEAD + b"X-A: 1\r\nx-a: 2\r\nContent-Length: 0\r\n\r\n"

    async def story() -> None:
        async with transport() as via, peer(raw) as there:
            got = await get(via, there.url)
            assert (got.headers["x-a"], got.headers["content-length"]) == ("1", "0")

    run(story())


# A loop of ours that stands still.


class Answering:
    """A server in a thread of its own, which answers also while our loop stands still. It accepts
    nothing before `accepts`, and does not answer before `answers`."""

    def __init__(self) -> None:
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}/"
        self.answers = threading.Event()
        self.heard = threading.Event()
        self.said = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            there, _ = self._sock.accept()
            with there:
                there.settimeout(20)
                said = b""
                while not said.endswith(b"\r\n\r\n{}"):
                    said += there.recv(65536)
                self.heard.set()
                self.answers.wait(20)
                there.sendall(HEAD + b"content-length: 2\r\n\r\nok")
                self.said.set()
                there.recv(1)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.answers.set()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._thread.join(20)


@contextlib.asynccontextmanager
async def ticking() -> AsyncIterator[LoopTime]:
    told = LoopTime()
    told.start()
    await asyncio.sleep(0.1)
    try:
        yield told
    finally:
        told.stop()


LOOPS = pytest.mark.parametrize(
    "factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


@LOOPS
def test_an_answer_that_came_while_we_stood_still_is_used(
    factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """When our loop runs again the call's time is over by the clock, and its answer in the socket:
    it is the answer. Nobody else's fault is made of our own."""

    async def story() -> None:
        with Answering() as there:
            async with ticking() as loop_time, transport(loop_time=loop_time) as via:
                call = asyncio.create_task(get(via, there.url, 1.5))
                while not there.heard.is_set():
                    await asyncio.sleep(0.01)
                there.answers.set()
                assert there.said.wait(20)  # on this thread: the loop stands still
                time.sleep(2)
                assert (await call).body == b"ok"

    run(story(), factory)


@LOOPS
def test_a_stall_while_a_connection_is_made_is_not_a_connection_that_cannot_be(
    factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Where our loop slept through the time for a connection, the call goes on when it wakes."""

    async def story() -> None:
        with Answering() as there:
            there.answers.set()
            options = {"connect_seconds": 0.3}
            async with ticking() as loop_time, transport(loop_time=loop_time, **options) as via:
                call = asyncio.create_task(get(via, there.url, 3.0))
                await asyncio.sleep(0)  # it has begun to connect
                time.sleep(1)
                assert (await call).body == b"ok"

    run(story(), factory)


@pytest.mark.parametrize("stall", [0.0, 1.0])
def test_what_has_no_connection_was_not_sent_and_what_has_may_have_been(stall: float) -> None:
    """At one deadline, with or without a stall: the call that waits for the pool's only connection
    is "not sent", and may be repeated; the one that holds it is not. No third thing."""

    async def story() -> None:
        async with (
            ticking() as loop_time,
            transport(loop_time=loop_time, max_connections=1) as via,
            peer(hang) as there,
        ):
            first = asyncio.create_task(fails(via, there.url, 1.0))
            await there.until(lambda: len(there.heard) == 1)
            second = asyncio.create_task(fails(via, there.url, 0.5))
            await asyncio.sleep(0.1)
            time.sleep(stall)
            assert type(await second) is NotSent
            assert type(await first) is UpstreamTimeout
            assert len(there.heard) == 1

    run(story())


def test_a_body_that_drips_ends_at_the_deadline_though_we_stumble() -> None:
    """Stalls do not give an upstream that never ends its answer more than the call's running time
    and one last look."""

    async def drips(_: Peer, writer: asyncio.StreamWriter) -> bool:
        writer.write(HEAD + b"content-length: 100000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async def story() -> None:
        async with (
            ticking() as loop_time,
            transport(loop_time=loop_time) as via,
            peer(drips) as there,
        ):
            began = loop_time.running()
            call = asyncio.create_task(fails(via, there.url, 0.5))
            while not call.done():
                time.sleep(0.1)
                await asyncio.sleep(0.03)
            assert type(await call) is UpstreamTimeout
            assert 0.45 < loop_time.running() - began < 0.5 + LATE

    run(story())


# Connections.


def test_a_connection_is_kept_and_used_again() -> None:
    """Fifty calls one after the other use one connection."""

    async def story() -> None:
        async with transport() as via, peer(OK, keep=True) as there:
            for _ in range(50):
                assert (await get(via, there.url)).body == b"ok"
            assert there.accepted == 1

    run(story())


def test_max_connections_is_a_limit() -> None:
    """Thirty calls at once are all answered over three connections."""

    async def slowly(there: Peer, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(0.005)
        writer.write(OK)
        return True

    async def story() -> None:
        async with transport(max_connections=3) as via, peer(slowly) as there:
            answers = await asyncio.gather(*(get(via, there.url) for _ in range(30)))
            assert {answer.body for answer in answers} == {b"ok"}
            assert there.most_open == there.accepted == 3

    run(story())


def test_a_cancelled_caller_frees_the_connection() -> None:
    """Who leaves closes their connection (its answer would be the next caller's) and the pool of
    one serves the next."""

    async def first_hangs(there: Peer, writer: asyncio.StreamWriter) -> bool:
        if len(there.heard) == 1:
            await hang(there, writer)
        writer.write(OK)
        return True

    async def story() -> None:
        async with transport(max_connections=1) as via, peer(first_hangs) as there:
            leaving = asyncio.create_task(get(via, there.url))
            await there.until(lambda: len(there.heard) == 1)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            assert (await get(via, there.url, 2)).body == b"ok"
            assert there.accepted == 2

    run(story())


def test_a_caller_who_leaves_the_queue_takes_nothing_along() -> None:
    """Cancelled while waiting for a connection, a caller does not cost the pool its place."""

    async def first_waits(there: Peer, writer: asyncio.StreamWriter) -> bool:
        if len(there.heard) == 1:
            await there.until(go.is_set)
        writer.write(OK)
        return True

    go = asyncio.Event()

    async def story() -> None:
        async with transport(max_connections=1) as via, peer(first_waits) as there:
            first = asyncio.create_task(get(via, there.url))
            await there.until(lambda: len(there.heard) == 1)
            queued = [asyncio.create_task(get(via, there.url)) for _ in range(5)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for task in queued[:4]:
                task.cancel()
            go.set()
            async with there.news:
                there.news.notify_all()
            assert (await first).body == b"ok"
            assert (await queued[4]).body == b"ok"
            await asyncio.gather(*queued[:4], return_exceptions=True)
            assert (await get(via, there.url, 2)).body == b"ok"

    run(story())


@pytest.mark.parametrize(
    "more", [b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nothers", b"left over"]
)
def test_bytes_after_an_answer_are_no_answer(more: bytes) -> None:
    """What follows an answer in its packet is never taken for the next caller's answer."""

    async def twice(_there: Peer, writer: asyncio.StreamWriter) -> bool:
        writer.write(OK + more)
        return True

    async def story() -> None:
        async with transport(max_connections=1) as via, peer(twice) as there:
            for _ in range(3):
                with contextlib.suppress(UpstreamNonsense):
                    assert (await get(via, there.url)).body == b"ok"

    run(story())


@pytest.mark.parametrize(
    "more",
    [
        b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 6\r\n\r\nothers",
        b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nothers",
        b"left over",
    ],
)
def test_bytes_that_nobody_asked_for_are_no_answer(more: bytes) -> None:
    """What a server says on an idle connection (a 408 of a balancer, or worse, an answer that was
    another's) is never taken for an answer to the next request."""
    writers: list[asyncio.StreamWriter] = []

    async def noted(_there: Peer, writer: asyncio.StreamWriter) -> bool:
        writers.append(writer)
        writer.write(OK)
        return True

    async def story() -> None:
        async with transport(max_connections=1) as via, peer(noted) as there:
            assert (await get(via, there.url)).body == b"ok"
            writers[0].write(more)
            await writers[0].drain()
            await asyncio.sleep(0.05)  # the loop reads it from loopback in the meantime
            assert (await get(via, there.url)).body == b"ok"

    run(story())


def test_an_answer_without_a_body_leaves_the_connection_good() -> None:
    """204 and HEAD answers do not upset the next call."""
    raw = b"HTTP/1.1 204 No Content\r\n\r\n"

    async def story() -> None:
        async with transport() as via, peer(raw, keep=True) as there:
            for _ in range(3):
                assert (await get(via, there.url)).status == 204
            assert there.accepted == 1

    run(story())


def test_a_post_on_a_dead_connection_is_not_sent_twice() -> None:
    """A kept connection that closes on a new request may have taken it: "timeout", not a retry,
    and never "not sent"."""

    async def once(there: Peer, writer: asyncio.StreamWriter) -> bool:
        if len(there.heard) == 2:
            return False  # taken, and no answer
        writer.write(OK)
        return True

    async def story() -> None:
        async with transport() as via, peer(once) as there:
            assert (await get(via, there.url)).body == b"ok"
            assert type(await fails(via, there.url)) is UpstreamTimeout
            assert len(there.heard) == 2

    run(story())


@pytest.mark.parametrize("end", ["closes", "resets"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST", "PATCH"])
def test_no_call_is_made_again_down_here(method: str, end: str) -> None:
    """A kept connection that dies with a request of any method: it was sent once, and what may be
    sent again is for the guard to say, which counts it."""

    async def once(there: Peer, writer: asyncio.StreamWriter) -> bool:
        if len(there.heard) == 2:
            if end == "resets":
                writer.transport.abort()
            return False
        writer.write(OK)
        return True

    async def story() -> None:
        async with transport() as via, peer(once) as there:
            assert (await get(via, there.url)).body == b"ok"
            with pytest.raises(UpstreamTimeout):
                await via.send(method, there.url, headers={}, timeout=2)
            assert [one.split()[0] for one in there.heard] == [b"POST", method.encode()]
            assert there.accepted == 1

    run(story())


@pytest.mark.parametrize("seconds", [0.0, -0.01, 1e-9])
def test_no_time_is_not_all_the_time(seconds: float) -> None:
    """An attempt that was begun a moment too late ends; it does not wait for ever."""

    async def story() -> None:
        async with transport() as via, peer(hang) as there:
            began = time.monotonic()
            await fails(via, there.url, timeout=seconds)
            assert time.monotonic() - began < LATE

    run(story())


def test_one_that_was_never_used_is_given_up_in_silence() -> None:
    """What a faulty configuration makes it useless for leaves no complaint behind its fault."""

    async def story() -> None:
        gc.collect()  # what others have left is theirs
        AiohttpTransport().abandon()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gc.collect()

    run(story())


# Over real sockets, through a guard.


def guarded(
    via: AiohttpTransport, url: str, *, seconds: float = 3.0
) -> Coroutine[Any, Any, Answer]:
    """A mint: made again only where it was certainly not sent."""
    clock, metrics = SystemClock(), Metrics()
    guard = Guard(
        "acme",
        account="acme",
        clock=clock,
        metrics=metrics,
        limits=RateLimits(clock),
        rate=None,
        most=4,
    )

    def work(left: float) -> Coroutine[Any, Any, Answer]:
        return via.send("POST", url, headers={}, body=b"{}", timeout=left)

    return guard.call(
        work,
        deadline=clock.monotonic() + seconds,
        operation="session",
        again=lambda error: isinstance(error, NotSent),
    )


def test_a_server_that_comes_up_between_two_attempts_hears_one() -> None:
    """A refused connection is tried again within the deadline, and what is sent is sent once."""

    async def story() -> None:
        async with transport() as via, peer(OK, keep=True) as there:
            port, heard = free_port(), there.heard
            asking = asyncio.create_task(guarded(via, f"http://127.0.0.1:{port}/"))
            await asyncio.sleep(0.03)
            server = await asyncio.start_server(there.serve, "127.0.0.1", port)
            async with server:
                assert (await asking).body == b"ok"
            assert len(heard) == 1

    run(story())


@pytest.mark.parametrize("end", ["closes", "hangs"])
def test_a_post_that_was_heard_is_never_sent_again(end: str) -> None:
    """A kept connection that dies with it, or an answer that does not come: "timeout" by the
    deadline, and the server has heard it once."""

    async def once(there: Peer, writer: asyncio.StreamWriter) -> bool:
        if len(there.heard) == 2:
            if end == "hangs":
                await asyncio.sleep(60)
            return False
        writer.write(OK)
        return True

    async def story() -> None:
        async with transport() as via, peer(once) as there:
            assert (await guarded(via, there.url)).body == b"ok"
            began = time.monotonic()
            with pytest.raises(UpstreamTimeout):
                await guarded(via, there.url, seconds=0.5)
            assert time.monotonic() - began < 0.5 + LATE
            assert len(there.heard) == 2

    run(story())


# The whole app over real HTTP.

APP = """
insecure_anonymous: true
server: {request_budget: 1s}
keys: {env: SEAL}
callers:
  backend: {type: jwt, issuer: b, audience: a, shared_secret: {env: SEAL}}
credentials:
  checkout:
    token_url: URL/checkout/access/connect/token
    client_id: {env: ID}
    client_secret: {env: SECRET}
    scope: [sessions:browser]
    timeout: 700ms
profiles:
  nmi:
    preset: nmi
    base_url: URL/nmi/api/v1
    api_key: {env: KEY}
    gateway: {merchant_id: "1", environment: sandbox}
    allow: {callers: [anonymous]}
    min_remaining: 5m
    rotation: {}
  pong:
    preset: ./pong.yaml
    base_url: URL/checkout/api
    credential: checkout
    allow: {callers: [anonymous]}
"""
PONG = """
summary: the sandbox's ping, as if its scope were a session
reuse: per_caller
authorization: {access_token: true}
request: {method: GET, path: /ping}
answer: {token: /scope, expiry: {default: 10m}}
output: verbatim
"""
ENV = {
    "SEAL": "s" * 32,
    "KEY": "sandbox-nmi-key",
    "ID": "ack_sandbox",
    "SECRET": "sandbox+secret/with=chars==",
}
KINDS: list[tuple[str, dict[str, Any], str, str]] = [
    # kind, options, what a mint at NMI is then, and a mint that needs an access token
    ("latency", {"seconds": 0.05}, "", ""),
    ("hang", {}, "upstream-timeout", "upstream-timeout"),
    ("slow-drip", {"seconds": 0.1}, "upstream-timeout", "upstream-timeout"),
    ("reset", {}, "upstream-timeout", "upstream-timeout"),
    ("close-midway", {}, "upstream-nonsense", "upstream-nonsense"),
    ("status", {"code": 500}, "upstream-unavailable", "upstream-unavailable"),
    ("status", {"code": 429, "retry_after": 7}, "upstream-unavailable", "upstream-unavailable"),
    ("status", {"code": 401}, "upstream-refused", "upstream-refused"),
    ("status", {"code": 400, "body": "no"}, "upstream-refused", "upstream-refused"),
    ("status", {"code": 302}, "upstream-nonsense", "upstream-nonsense"),
    ("html-200", {}, "upstream-nonsense", "upstream-nonsense"),
    ("truncated-json", {}, "upstream-nonsense", "upstream-nonsense"),
    ("huge-body", {}, "upstream-nonsense", "upstream-nonsense"),
    ("endless-body", {}, "upstream-nonsense", "upstream-nonsense"),
    ("duplicate-keys", {}, "upstream-nonsense", "upstream-nonsense"),
    ("missing-expiry", {}, "", "upstream-nonsense"),
    ("past-expiry", {}, "upstream-nonsense", "upstream-nonsense"),
    ("expires-in", {"value": "soon"}, "upstream-nonsense", "upstream-nonsense"),
    ("expires-in", {"value": -1}, "upstream-nonsense", "upstream-nonsense"),
    ("set-fields", {"fields": {"session_token": "", "access_token": ""}}, "upstream-nonsense",
     "upstream-nonsense"),
]  # fmt: skip


@contextlib.asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[tuple[App, httpx2.AsyncClient, Any]]:
    """A real app on its own transport, a client for it, and a function that sets a fault."""
    (tmp_path / "pong.yaml").write_text(PONG)
    async with (
        serve() as sandbox,
        httpx2.AsyncClient(base_url=sandbox.url, verify=False, trust_env=False) as control,
    ):
        text = APP.replace("URL", sandbox.url)
        with (tmp_path / "audit").open("wb") as lines:
            app = App(parse(text.encode(), tmp_path), tmp_path, audit=AuditLog(lines), env=ENV)
            over = httpx2.ASGITransport(app=app.public, client=("192.0.2.1", 1))

            async def fault(operation: str, kind: str, **options: Any) -> None:
                told = {"operation": operation, "kind": kind, **options}
                answer = await control.post("/_sandbox/faults", json=told)
                assert answer.status_code == 201, answer.text

            async with httpx2.AsyncClient(transport=over, base_url="https://b.example") as http:
                try:
                    yield app, http, fault
                finally:
                    await app.close()


@pytest.mark.parametrize(
    ("operation", "profile"), [("nmi.session", "nmi"), ("checkout.token", "pong")]
)
@pytest.mark.parametrize("row", range(len(KINDS)), ids=lambda i: f"{KINDS[i][0]}-{i}")
def test_a_mint_over_a_fault(tmp_path: Path, operation: str, profile: str, row: int) -> None:
    """Every fault of the upstream is a session or its typed problem, within the budget, with
    nothing of the upstream's in it."""
    kind, options, nmi, checkout = KINDS[row]
    expected = nmi if profile == "nmi" else checkout

    async def story() -> None:
        async with world(tmp_path) as (_, http, fault):
            await fault(operation, kind, times=9, **options)  # as often as it may be repeated
            began = time.monotonic()
            answer = await http.post(f"/v1/profiles/{profile}/sessions")
            assert time.monotonic() - began < 1 + LATE
            if expected:
                assert problem(answer) == expected
                assert "retry-after" in answer.headers or expected != "upstream-unavailable"
            else:
                assert answer.status_code == 201, answer.text
                assert answer.json()["expires_in"] > 300

    run(story())


def test_a_minted_session_is_one(tmp_path: Path) -> None:
    """Without faults both profiles mint over real HTTP, many at once, for one access token."""

    async def story() -> None:
        async with world(tmp_path) as (app, http, _):
            for profile in ("nmi", "pong"):
                url = f"/v1/profiles/{profile}/sessions"
                answers = await asyncio.gather(*(http.post(url) for _ in range(20)))
                assert {answer.status_code for answer in answers} == {201}
            told = app.metrics.registry.get_sample_value(
                "broker_access_token_refreshes_total", {"credential": "checkout", "outcome": "ok"}
            )
            assert told == 1

    run(story())
