"""Refusals that are told before a request is made: real sockets, the real app, and clients who would
make one request pass for another."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import h11
import pytest

from broker import connections
from broker.admission import Urgency
from broker.connections import bounded
from broker.file import Listener
from broker.serving import Listening, bind
from tests.harness import CONFIG, ORIGIN, Broker, broker
from tests.test_connections import close, run

MOST_BODY = 65536
REQUEST_ID = "0190163d-8694-739b-aea5-966c26f8ad91"
MINT = b"/v1/profiles/transactions/sessions"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def slug(self) -> str:
        return str(json.loads(self.body)["type"]).rsplit(":", 1)[1]


class Front:
    """The public listener of a real broker. full: whether everybody is refused."""

    def __init__(self, told: Broker, port: int, protocol: Any, refused: list[str]) -> None:
        self.told = told
        self.port = port
        self.protocol = protocol
        self.refused = refused
        """Connections, and why."""
        self.full = True

    def mint(self, *fields: bytes, body: bytes = b"{}", url: bytes = MINT) -> bytes:
        """A good request."""
        token = self.told.jwt().encode()
        head = b"POST %b HTTP/1.1\r\nhost: b\r\nauthorization: Bearer %b\r\n" % (url, token)
        head += b"content-type: application/json\r\n"
        if not any(field.lower().startswith(b"transfer-encoding") for field in fields):
            head += b"content-length: %d\r\n" % len(body)
        return head + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body

    def counted(self) -> tuple[float, float, float]:
        """Refusals; requests refused before they were made; all requests."""
        metrics = self.told.app.metrics.registry
        shed = metrics.get_sample_value("broker_requests_shed_total") or 0.0
        early = every = 0.0
        for family in metrics.collect():
            for sample in family.samples:
                if sample.name == "broker_requests_total":
                    every += sample.value
                    if sample.labels["operation"] == "shed":
                        assert sample.labels["problem"] == "overloaded"
                        early += sample.value
        return shed, early, every

    @property
    def minted(self) -> int:
        return len(self.told.nmi.bodies)


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, *, bare: bool = False) -> Answer:
        """The next one. bare: to a HEAD, so that nothing is behind its head."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head[:-4].split("\r\n")
        found = re.fullmatch(r"HTTP/1\.1 (\d{3}) [ -~]*", line)
        assert found is not None, line
        headers = {}
        for field in fields:
            name, _, value = field.partition(": ")
            assert name not in headers
            headers[name] = value
        status = int(found[1])
        body = b""
        if not bare and status not in (100, 204, 304):
            if headers.get("transfer-encoding") == "chunked":
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    body += await self.reader.readexactly(size)
                    await self.reader.readexactly(2)
                await self.reader.readexactly(2)
            else:
                body = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(status, headers, body)

    async def refused(self) -> Answer:
        answer = await self.answer()
        assert (answer.status, answer.slug) == (503, "overloaded")
        return answer

    async def ends(self) -> bytes:
        """What is still said until the other end closes."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""

    async def silent(self) -> bool:
        """Is nothing said for a while?"""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                return not await self.reader.read(1)
        return True


Story = Callable[[Front, Client], Coroutine[Any, Any, None]]


@contextlib.asynccontextmanager
async def client(front: Front) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    try:
        yield Client(reader, writer)
    finally:
        await close(writer)


def played(story: Story, config: str = CONFIG, idle: float = 5) -> None:
    """The story, on one connection to a broker that has no time for anybody."""

    async def whole() -> None:
        async with broker(config) as told:
            sock = bind(Listener(host="127.0.0.1", port=0))
            refused: list[str] = []
            protocol = bounded(100, MOST_BODY, refused.append, told.app.refusal)
            front = Front(told, sock.getsockname()[1], protocol, refused)

            def is_full(_urgency: Urgency) -> bool:
                return front.full

            admission = told.app.load.admission
            enter = admission.enter

            async def way(urgency: Urgency, is_gone: Callable[[], bool]) -> None:
                if front.full:
                    raise admission.refused()
                await enter(urgency, is_gone)

            admission.is_full, admission.enter = is_full, way  # type: ignore[method-assign]
            listening = Listening(told.app.public, sock, protocol, idle=idle, grace=1)
            async with listening.opened(), client(front) as one:
                await story(front, one)

    run(whole())


# --- the answer


def test_a_refusal_is_an_answer() -> None:
    """A problem with all that says when to come again, whole by the letter of HTTP/1.1, and the
    connection stays."""

    async def story(front: Front, one: Client) -> None:
        for _ in range(3):
            theirs = h11.Connection(h11.CLIENT)
            one.send(front.mint(b"x-request-id: " + REQUEST_ID.encode()))
            head = [("host", "b"), ("content-length", "0")]
            theirs.send(h11.Request(method="POST", target=MINT, headers=head))
            theirs.send(h11.EndOfMessage())
            events = []
            while not events or type(events[-1]) is not h11.EndOfMessage:
                event = theirs.next_event()
                if event is h11.NEED_DATA:
                    theirs.receive_data(await one.reader.read(65536))
                else:
                    events.append(event)
            assert theirs.their_state is h11.DONE
            assert theirs.trailing_data == (b"", False)
            start = events[0]
            assert isinstance(start, h11.Response)
            assert (start.status_code, start.http_version) == (503, b"1.1")
            headers = dict(start.headers)
            assert headers[b"content-type"] == b"application/problem+json"
            assert headers[b"cache-control"] == b"no-store"
            assert headers[b"x-request-id"].decode() == REQUEST_ID
            assert headers[b"vary"] == b"Origin"
            assert re.fullmatch(rb"[1-4]", headers[b"retry-after"])
            body = json.loads(b"".join(bytes(part.data) for part in events[1:-1]))  # type: ignore[union-attr]
            assert body["type"] == "urn:token-broker:problem:overloaded"
            assert body["status"] == 503
            assert body["instance"] == f"urn:uuid:{REQUEST_ID}"
            assert body["retry_after"] == int(headers[b"retry-after"])
        assert front.minted == 0

    played(story)


@pytest.mark.parametrize("given", [b"x", b"a" * 36, b"", REQUEST_ID.encode() + b"0", b"\xff" * 16])
def test_a_request_id_that_is_none_is_not_repeated(given: bytes) -> None:
    """What is no UUID gets a new one: nothing of the request that was not judged comes back."""

    async def story(front: Front, one: Client) -> None:
        one.send(front.mint(b"x-request-id: " + given))
        answer = await one.refused()
        assert answer.headers["x-request-id"].encode("latin-1") != given
        assert re.fullmatch(
            r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", answer.headers["x-request-id"]
        )

    played(story)


@pytest.mark.parametrize("cookies", [False, True])
def test_only_a_listed_origin_may_read_it(cookies: bool) -> None:
    """A page of a listed origin sees why it is refused; with credentials only where cookies are in
    use. Others get no field of CORS, whatever they call themselves, and so does who names two."""
    mine = CONFIG
    if cookies:
        mine = CONFIG.replace(
            "  others:",
            """  by-cookie:
    {type: forward_auth, url: "https://app.shop.example/me", cookies: [sid]}
  others:""",
        ).replace("callers: [shop-users]", "callers: [shop-users, by-cookie]")

    async def story(front: Front, one: Client) -> None:
        one.send(front.mint(b"origin: " + ORIGIN.encode()))
        answer = await one.refused()
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "retry-after" in answer.headers["access-control-expose-headers"]
        assert answer.headers.get("access-control-allow-credentials") == (
            "true" if cookies else None
        )
        others = [
            b"https://evil.example",
            b"null",
            b"*",
            b"",
            ORIGIN.upper().encode(),
            ORIGIN.encode() + b".evil",
            b"\xff",
        ]
        for origin in others:
            one.send(front.mint(b"origin: " + origin))
            answer = await one.refused()
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert answer.headers["vary"] == "Origin"

    played(story, mine)


@pytest.mark.parametrize(
    "ask",
    [
        b"GET /v1/client.js HTTP/1.1\r\nhost: b\r\n\r\n",
        b"GET /v1/openapi.json HTTP/1.1\r\nhost: b\r\n\r\n",
        b"GET /nowhere HTTP/1.1\r\nhost: b\r\n\r\n",
        b"OPTIONS %b HTTP/1.1\r\nhost: b\r\norigin: %b\r\naccess-control-request-method: POST\r\n\r\n"
        % (MINT, ORIGIN.encode()),
    ],
    ids=["client", "openapi", "nothing", "preflight"],
)
def test_what_costs_less_than_a_refusal_is_answered_always(ask: bytes) -> None:
    """The browser's module, the API's description, preflights, and paths that lead nowhere."""

    async def story(front: Front, one: Client) -> None:
        one.send(ask)
        assert (await one.answer()).status in (200, 204, 404) if b"OPTIONS" not in ask else True
        assert front.counted()[:2] == (0, 0)

    async def preflight(front: Front, one: Client) -> None:
        one.send(ask)
        answer = await one.answer(bare=True)
        assert answer.status == 204
        assert answer.headers["access-control-allow-methods"] == "POST"
        assert front.counted()[:2] == (0, 0)

    played(preflight if ask.startswith(b"OPTIONS") else story)


def test_while_it_drains_nobody_is_refused_early() -> None:
    """Whoever still comes then goes the ordinary way, and is told that the connection ends."""

    async def story(front: Front, one: Client) -> None:
        front.told.app.load.draining = True
        one.send(front.mint())
        answer = await one.answer()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert await one.ends() == b""
        assert front.counted() == (1, 0, 1)

    played(story)


def test_each_refusal_is_counted_once() -> None:
    """In both counters, whether its connection goes on, is pipelined, or breaks off in the body."""

    async def story(front: Front, one: Client) -> None:
        for _ in range(3):
            one.send(front.mint())
            await one.refused()
        assert front.counted() == (3, 3, 3)
        one.send(front.mint() * 4)
        for _ in range(4):
            await one.refused()
        assert front.counted()[0] == front.counted()[2] == 7
        one.send(front.mint(body=b"{" + b" " * 1000)[:-500])
        await one.refused()
        one.writer.close()
        await asyncio.sleep(0.1)
        assert front.counted()[0] == front.counted()[2] == 8
        assert front.minted == 0

    played(story)


# --- the connection


CHUNKED = b"transfer-encoding: chunked"
BODIES = {
    "a length": ((), b"{}"),
    "no body": ((), b""),
    "a long body": ((), b"{" + b" " * 60_000 + b"}"),
    "chunks": ((CHUNKED,), b"1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n"),
    "a trailer": ((CHUNKED,), b"2\r\n{}\r\n0\r\nx-a: b\r\n\r\n"),
    "no chunk": ((CHUNKED,), b"0\r\n\r\n"),
}


@pytest.mark.parametrize("pieces", [1, 2, 7])
@pytest.mark.parametrize("name", BODIES)
def test_the_next_request_is_served(name: str, pieces: int) -> None:
    """The body of a refused request is passed over, however it comes, and what comes behind it on
    the connection is judged anew: refused or, when there is time, served with its own body."""
    fields, body = BODIES[name]

    async def story(front: Front, one: Client) -> None:
        for _ in range(2):
            whole = front.mint(*fields, body=body)
            size = -(-len(whole) // pieces)
            for start in range(0, len(whole), size):
                one.send(whole[start : start + size])
                await one.writer.drain()
                await asyncio.sleep(0.01 if pieces > 1 else 0)
            await one.refused()
            assert front.minted == 0
        front.full = False
        one.send(front.mint())
        assert (await one.answer()).status == 201
        front.full = True
        one.send(front.mint())
        await one.refused()
        assert front.counted() == (3, 3, 4)
        assert front.refused == []

    played(story)


def test_a_refusal_comes_before_the_body() -> None:
    """It is told as soon as the head is there."""

    async def story(front: Front, one: Client) -> None:
        whole = front.mint(body=b"{" + b" " * 5000 + b"}")
        one.send(whole[:-4000])
        await one.refused()
        one.send(whole[-4000:] + b"GET /v1/client.js HTTP/1.1\r\nhost: b\r\n\r\n")
        assert (await one.answer()).headers["content-type"].startswith("text/javascript")

    played(story)


def test_pipelined_requests_are_answered_in_their_order() -> None:
    """A refusal does not overtake the answer that is still awaited before it, nor is it overtaken."""

    async def story(front: Front, one: Client) -> None:
        gate = asyncio.Event()
        transport: Any = front.told.app._transport
        transport.before = gate.wait
        front.full = False
        one.send(front.mint(b"x-request-id: " + REQUEST_ID.encode()))
        while not transport.calls:
            await asyncio.sleep(0.01)
        front.full = True
        file = b"GET /v1/client.js HTTP/1.1\r\nhost: b\r\n\r\n"
        one.send(front.mint() + file + front.mint())
        assert await one.silent()
        gate.set()
        assert (await one.answer()).headers["x-request-id"] == REQUEST_ID
        assert [(await one.answer()).status for _ in range(3)] == [503, 200, 503]
        one.send(front.mint() + file + front.mint() + file)
        assert [(await one.answer()).status for _ in range(4)] == [503, 200, 503, 200]

    played(story)


def test_a_client_that_waits_for_100_gets_the_refusal_instead() -> None:
    """Who sends `Expect: 100-continue` need not send the body. The framing stays what the head said:
    what comes next is the body, and never a request."""

    async def story(front: Front, one: Client) -> None:
        inner = b"GET /v1/client.js HTTP/1.1\r\nhost: b\r\n\r\n"
        whole = front.mint(b"expect: 100-continue", body=inner)
        one.send(whole[: -len(inner)])
        await one.refused()
        one.send(inner)
        assert await one.silent()
        front.full = False
        one.send(front.mint())
        assert (await one.answer()).status == 201

    played(story)


@pytest.mark.parametrize(
    ("change", "version"),
    [
        (lambda raw: raw.replace(b"HTTP/1.1", b"HTTP/1.0", 1), "1.0"),
        (lambda raw: raw.replace(b"host:", b"connection: close\r\nhost:", 1), "1.1"),
    ],
    ids=["HTTP/1.0", "connection: close"],
)
def test_a_connection_that_ends_with_its_answer_is_not_refused_early(
    change: Callable[[bytes], bytes], version: str
) -> None:
    """It goes the ordinary way, where the way in decides, and ends with its whole answer."""

    async def story(front: Front, one: Client) -> None:
        one.send(change(front.mint()))
        answer = await one.refused()
        assert answer.headers["connection"] == "close"
        assert await one.ends() == b""
        shed, early, every = front.counted()
        assert (shed, early, every) == (1, 0, 1)

    played(story)


@pytest.mark.parametrize(
    "method", [b"HEAD", b"GET", b"PUT", b"DELETE", b"PATCH", b"FOO", b"CONNECT"]
)
def test_an_answer_has_the_length_that_its_method_allows(method: bytes) -> None:
    """Behind the answer to a HEAD there is no body, which a client would take for its next answer."""

    async def story(front: Front, one: Client) -> None:
        if method in (b"FOO", b"CONNECT"):
            one.send(front.mint().replace(b"POST", method, 1))
            assert (await one.answer()).status == 400
            return
        one.send(method + b" " + MINT + b" HTTP/1.1\r\nhost: b\r\n\r\n")
        assert (await one.answer(bare=method == b"HEAD")).status in (405, 503)
        one.send(b"GET /v1/client.js HTTP/1.1\r\nhost: b\r\n\r\n")
        assert (await one.answer()).status == 200

    played(story)


@pytest.mark.parametrize(
    ("url", "early"),
    [
        (MINT + b"?a=b&c=%20", True),
        (b"/v1/profiles/%2e%2e/%00/%ff", True),
        (b"/v1/profiles/\xc3\xa4", True),
        (b"/v1/%70rofiles/transactions/sessions", False),
        (b"http://b" + MINT, False),
        (b"/v1//profiles/x", False),
        (b"/v1/profiles", False),
    ],
)
def test_however_a_path_is_written_it_gets_one_answer(url: bytes, early: bool) -> None:
    """A query, escapes, an absolute form: refused early or not, the connection goes on."""

    async def story(front: Front, one: Client) -> None:
        one.send(front.mint(b"origin: " + ORIGIN.encode(), url=url))
        answer = await one.answer()
        if b"\xc3" in url and answer.status == 400:
            return  # no URL
        assert answer.status in (503, 404)
        assert front.counted()[1] == early
        one.send(front.mint())
        await one.refused()
        assert front.counted()[1] == 1 + early

    played(story)


def test_an_idle_connection_ends_after_a_refusal_too() -> None:
    """The keep-alive time runs from the refused request's end, and not while its body comes."""

    async def story(front: Front, one: Client) -> None:
        whole = front.mint(body=b"{" + b" " * 100 + b"}")
        one.send(whole[:-50])
        await one.refused()
        await asyncio.sleep(1.5)
        one.send(whole[-50:] + front.mint())
        await one.refused()
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await one.ends() == b""
        assert loop.time() - began > 0.9
        assert front.refused == []

    played(story, idle=1)


# --- attacks


def test_who_does_not_finish_a_refused_body_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline for a whole request runs on after its refusal; so it does for drops."""
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.5)

    async def story(front: Front, one: Client) -> None:
        one.send(front.mint(body=b"{" + b" " * 1000 + b"}")[:-900])
        await one.refused()

        async def drips() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    one.send(b" ")
                    await one.writer.drain()
                    await asyncio.sleep(0.05)

        dripping = asyncio.ensure_future(drips())
        assert await one.ends() == b""
        dripping.cancel()
        assert front.refused == ["slow"]

    played(story)


@pytest.mark.parametrize("fields", [(), (CHUNKED,)], ids=["length", "chunks"])
def test_a_refused_body_is_bounded(fields: tuple[bytes, ...]) -> None:
    """Who sends more than any request may have loses the connection, though nothing is kept of it."""

    async def story(front: Front, one: Client) -> None:
        body = b" " * (20 * MOST_BODY)
        whole = front.mint(*fields, body=(b"%x\r\n" % len(body) if fields else b"") + body)
        one.send(whole)
        answer = await one.ends()
        assert answer.count(b"HTTP/1.1") <= 1
        assert front.refused == ["oversized"]

    played(story)


SMUGGLED = b"POST %b HTTP/1.1\r\nhost: b\r\ncontent-length: 2\r\n\r\n{}" % MINT
DOUBTFUL = {
    "length and chunks": b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"content-length: 0\r\ncontent-length: 60\r\n\r\n",
    "a list of lengths": b"content-length: 0, 0\r\n\r\n",
    "a signed length": b"content-length: +0\r\n\r\n",
    "no number": b"content-length: 0x10\r\n\r\n",
    "a huge length": b"content-length: 18446744073709551616\r\n\r\n",
    "chunked is not last": b"transfer-encoding: chunked, identity\r\n\r\n",
    "chunked twice": b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "another coding": b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"content-length : 0\r\n\r\n",
    "a folded field": b"x: y\r\n content-length: 60\r\n\r\n",
    "bare line feeds": b"content-length: 0\n\n",
    "a bare carriage return": b"x: y\rcontent-length: 60\r\n\r\n",
    "no chunk size": b"transfer-encoding: chunked\r\n\r\n\r\n\r\n",
    "a chunk size that is none": b"transfer-encoding: chunked\r\n\r\n0x0\r\n\r\n",
    "a chunk without its end": b"transfer-encoding: chunked\r\n\r\n1\r\nab0\r\n\r\n",
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_a_refused_request_of_doubtful_length_ends_its_connection(name: str) -> None:
    """Where two readers could differ in where it ends, what comes behind it is not read as a
    request: at most one refusal, a 400, and the end."""

    async def story(front: Front, one: Client) -> None:
        one.send(b"POST %b HTTP/1.1\r\nhost: b\r\n" % MINT + DOUBTFUL[name])
        await asyncio.sleep(0.05)
        one.send(SMUGGLED * 3)
        said = await one.ends()
        statuses = re.findall(rb"HTTP/1\.1 (\d{3})", said)
        assert statuses in ([b"400"], [b"503", b"400"])
        assert front.minted == 0
        assert front.counted()[0] == statuses.count(b"503")

    played(story)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_request_within_a_refused_body_is_no_request(chunked: bool) -> None:
    """Neither refused nor served, though there is time for it when it comes."""

    async def story(front: Front, one: Client) -> None:
        inner = front.mint()
        fields = (CHUNKED,) if chunked else ()
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner) if chunked else inner
        whole = front.mint(*fields, body=body)
        cut = len(whole) - len(body)
        one.send(whole[: cut + 5])
        await one.refused()
        front.full = False
        one.send(whole[cut + 5 :])
        assert await one.silent()
        assert front.minted == 0
        one.send(front.mint())
        assert (await one.answer()).status == 201
        assert front.counted() == (1, 1, 2)

    played(story)


@pytest.mark.parametrize("offer", [b"h2c", b"websocket", b"TLS/1.0"])
def test_an_offer_to_upgrade_brings_no_second_answer(offer: bytes) -> None:
    """Refused like any other, and the connection goes on as HTTP/1.1, or ends."""

    async def story(front: Front, one: Client) -> None:
        fields = b"connection: upgrade\r\nupgrade: " + offer
        one.send(b"POST %b HTTP/1.1\r\nhost: b\r\n%b\r\n\r\n" % (MINT, fields))
        await one.refused()
        one.send(b"GET /v1/client.js HTTP/1.1\r\nhost: b\r\n\r\n")
        assert (await one.answer()).status == 200
        one.send(
            b"POST %b HTTP/1.1\r\nhost: b\r\n%b\r\ncontent-length: 2\r\n\r\n{}" % (MINT, fields)
        )
        assert (await one.answer()).status == 400

    played(story)


def test_who_asks_and_does_not_read_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals that nobody reads wait for their reader as other answers do: what is kept for one
    connection is bounded, and its requests are not read meanwhile."""
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 3)
    ask = b"POST /v1/profiles/x HTTP/1.1\r\nhost: b\r\n\r\n"
    most = 0
    made: list[Any] = []
    begun = connections.BoundedProtocol.connection_made

    def notes(self: Any, transport: Any) -> None:
        begun(self, transport)
        made.append(self)

    monkeypatch.setattr(connections.BoundedProtocol, "connection_made", notes)

    async def story(front: Front, one: Client) -> None:
        nonlocal most

        async def asks() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    one.send(ask * 500)
                    await one.writer.drain()

        one.reader._transport.pause_reading()  # type: ignore[attr-defined]
        asking = asyncio.ensure_future(asks())
        protocol = made[0]
        for _ in range(400):
            if front.refused:
                break
            most = max(most, protocol.transport.get_write_buffer_size())
            await asyncio.sleep(0.01)
        asking.cancel()
        assert front.refused in (["stalled"], ["slow"], ["oversized"])

    played(story)
    assert most < 4 << 20


def test_refusals_in_a_row_are_bounded() -> None:
    """A packet of thousands of requests is not refused at once and whole, which would hold the loop
    for as long as it takes: more in a row than others may send end their connection too."""

    async def story(front: Front, one: Client) -> None:
        ask = b"POST %b HTTP/1.1\r\nhost: b\r\n\r\n" % MINT
        one.send(ask * (connections.MOST_PIPELINED // 2))
        for _ in range(connections.MOST_PIPELINED // 2):
            await one.refused()
        one.send(ask * 5000)
        await one.ends()
        assert front.refused == ["oversized"]
        assert front.counted()[0] <= 2 * connections.MOST_PIPELINED

    played(story)


def test_thousands_of_refusals_leave_nothing_behind() -> None:
    """A connection that is refused again and again keeps nothing of it."""

    async def story(front: Front, one: Client) -> None:
        async def row(count: int) -> None:
            for _ in range(count):
                one.send(front.mint(b"x-padding: " + b"a" * 500))
                await one.refused()

        await row(200)
        tracemalloc.start()
        try:
            await row(50)
            before, _ = tracemalloc.get_traced_memory()
            await row(500)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 500 * 100
        assert front.counted()[0] == 750

    played(story)
