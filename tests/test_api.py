"""HTTP in and out: the gate, bodies, problems, the OpenAPI document, the audit line."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from typing import Any

import httpx2
import pytest
from blockbuster import BlockingError, blockbuster_ctx
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator

from broker.errors import problem_types
from broker.shapes import CheckAnswer, Problem, SessionAnswer
from tests.harness import CONFIG, ENV, ORIGIN, Broker, broker, problem
from tests.support import settle
from tests.test_minting import with_broker

MINT = "/v1/profiles/transactions/sessions"


@with_broker
async def test_listed_origins_are_answered_with_cors(told: Broker) -> None:
    """A listed origin gets exactly itself back, with Vary, and no credentials mode."""
    answer = await told.mint(origin=ORIGIN)
    assert answer.status_code == 201
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-credentials" not in answer.headers
    assert "retry-after" in answer.headers["access-control-expose-headers"]
    assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "*",
        "https://app.shop.example.evil.example",
        "https://app.shop.example:443",
        "http://app.shop.example",
        "https://APP.shop.example",
        "https://app.shop.example/",
        "",
        "https://é.example",
    ],
)
@pytest.mark.parametrize("path", [MINT, "/v1/sessions/rotate", "/v1/sessions/end"])
def test_other_origins_are_refused_before_anything_is_done(origin: str, path: str) -> None:
    """An origin that is not listed, to the letter, gets 403 without CORS headers, without
    authentication and without an upstream call; a form post of a foreign page is such a one."""

    async def story() -> None:
        async with broker() as told:
            for body in ({"json": {}}, {"data": {"a": "b"}}):
                raw = {"origin": origin.encode("latin-1", "replace")}
                answer = await told.client.post(path, headers=raw, **body)
                assert (answer.status_code, problem(answer)) == (403, "origin-not-allowed")
                assert "access-control-allow-origin" not in answer.headers
            assert told.nmi.bodies == []
            assert all(line["operation"] == "other" for line in told.audit)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "none", "sec-fetch-mode": "navigate"}, 403),
        ({"sec-fetch-site": "same-origin"}, 201),
        ({"sec-fetch-site": "cross-site", "origin": ORIGIN}, 201),
        ({}, 201),
    ],
)
def test_fetch_metadata_without_an_origin(headers: dict[str, str], status: int) -> None:
    """A browser's request from elsewhere, or a navigation, is refused also without an Origin."""

    async def story() -> None:
        async with broker() as told:
            sent = {"authorization": f"Bearer {told.jwt()}", **headers}
            assert (await told.client.post(MINT, headers=sent)).status_code == status

    asyncio.run(story())


@with_broker
async def test_preflights_are_answered_for_listed_origins_only(told: Broker) -> None:
    """A preflight of a listed origin gets 204 and what it may send; of another, 403."""

    async def ask(path: str, origin: str) -> httpx2.Response:
        headers = {"origin": origin, "access-control-request-method": "POST"}
        return await told.client.options(path, headers=headers)

    for path in (MINT, "/v1/sessions/rotate", "/v1/sessions/actions/status"):
        answer = await ask(path, ORIGIN)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert answer.headers["access-control-allow-methods"] == "POST"
        assert "content-type" in answer.headers["access-control-allow-headers"]
        refused = await ask(path, "https://evil.example")
        assert (refused.status_code, problem(refused)) == (403, "origin-not-allowed")
    assert (await ask("/v1/access-tokens/x", ORIGIN)).status_code == 403
    assert told.nmi.bodies == []


COOKIES = CONFIG.replace(
    "callers:\n",
    "callers:\n  legacy: {type: forward_auth, url: 'https://shop.example/whoami'}\n",
    1,
).replace("callers: [shop-users]", "callers: [shop-users, legacy]")


def test_cookies_mean_credentials_mode() -> None:
    """Where a profile takes forward-auth callers, its origins may send cookies; the cookie
    authenticates, and a foreign page with the same cookie does not get in."""

    def upstreams(request: httpx2.Request) -> httpx2.Response:
        if request.url.host == "shop.example":
            assert request.headers["cookie"] == "shop=1"
            claims = {"role": "owner", "merchant_id": "7"}
            return httpx2.Response(200, json={"subject": "ada", "claims": claims})
        return httpx2.Response(200, json={"session_token": "st_by_cookie"})

    async def story() -> None:
        async with broker(COOKIES, upstreams) as told:
            answer = await told.mint(token="", cookie="shop=1", origin=ORIGIN)
            assert answer.status_code == 201
            assert answer.headers["access-control-allow-credentials"] == "true"
            foreign = await told.mint(token="", cookie="shop=1", origin="https://evil.example")
            assert problem(foreign) == "origin-not-allowed"

    asyncio.run(story())


@pytest.mark.parametrize(
    ("content", "kind", "status", "slug"),
    [
        (b'{"parameters": {}}', "text/plain", 415, "unsupported-media-type"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "unsupported-media-type"),
        (b'{"a": 1}', "application/json; charset=utf-8", 400, "malformed-request"),
        (b"{", "application/json", 400, "malformed-request"),
        (b"[]", "application/json", 400, "malformed-request"),
        (b'"x"', "application/json", 400, "malformed-request"),
        (b'{"parameters": []}', "application/json", 400, "malformed-request"),
        (b'{"parameters": {}, "parameters": {}}', "application/json", 400, "malformed-request"),
        (b'{"parameters": {"a": NaN}}', "application/json", 400, "malformed-request"),
        (b"\xff\xfe", "application/json", 400, "malformed-request"),
        (b"[" * 10000, "application/json", 400, "malformed-request"),
        (b'{"parameters": {"a": "' + b"x" * 20000 + b'"}}', "application/json", 413, "request-too-large"),
        (b'{"parameters": {"a": 1}}', "application/json", 422, "invalid-parameters"),
    ],
)  # fmt: skip
def test_bodies_that_are_not_read(content: bytes, kind: str, status: int, slug: str) -> None:
    """Only small, strict JSON objects of the right form are read, each fault by its type."""

    async def story() -> None:
        async with broker() as told:
            headers = {"content-type": kind, "authorization": f"Bearer {told.jwt()}"}
            answer = await told.client.post(MINT, content=content, headers=headers)
            assert (answer.status_code, problem(answer)) == (status, slug)
            assert told.nmi.bodies == []

    asyncio.run(story())


@with_broker
async def test_a_body_is_read_only_from_who_is_known(told: Broker) -> None:
    """Without good credentials not one byte of the body is asked for."""
    asked = 0

    async def receive() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return {"type": "http.request", "body": b"{}", "more_body": True}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": MINT, "headers": [], "root_path": "",
        "query_string": b"", "client": ("192.0.2.1", 1), "scheme": "http", "server": ("x", 80),
    }  # fmt: skip
    await told.app.public(scope, receive, send)
    assert (sent[0]["status"], asked) == (401, 0)


@with_broker
async def test_an_endless_body_stops_at_the_limit(told: Broker) -> None:
    """A body without declared length is cut off at the limit, not collected."""
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while sent < 1000:
            sent += 1
            yield b"x" * 1024

    headers = {"content-type": "application/json", "authorization": f"Bearer {told.jwt()}"}
    answer = await told.client.post(MINT, content=endless(), headers=headers)
    assert problem(answer) == "request-too-large"


@with_broker
async def test_an_empty_body_is_a_mint_without_parameters(told: Broker) -> None:
    """`curl -X POST` without a body mints."""
    headers = {"authorization": f"Bearer {told.jwt()}"}
    assert (await told.client.post(MINT, headers=headers)).status_code == 201


@pytest.mark.parametrize("name", ["authorization", "content-type", "origin", "idempotency-key"])
def test_fields_that_must_be_single(name: str) -> None:
    """Two of a field that decides are refused, as proxies differ in which one counts."""

    async def story() -> None:
        async with broker() as told:
            headers = [(name, "a"), (name, "b")]
            answer = await told.client.post(MINT, headers=headers)
            assert (answer.status_code, problem(answer)) == (400, "malformed-request")

    asyncio.run(story())


@with_broker
async def test_401_has_one_face(told: Broker) -> None:
    """Nothing, garbage, a stranger's token, an expired one: the same body but for the id, with
    WWW-Authenticate; the reason is in the audit line only."""
    bad = ["", "garbage", told.jwt(issuer="nobody"), told.jwt(exp=1), told.jwt(aud="x")]
    answers = [await told.mint(token=token) for token in bad]
    faces = set()
    for answer in answers:
        assert (answer.status_code, problem(answer)) == (401, "unauthenticated")
        assert answer.headers["www-authenticate"] == 'Bearer realm="token-broker"'
        body = answer.json()
        del body["instance"]
        faces.add(json.dumps(body))
    assert len(faces) == 1
    assert len({line["cause"] for line in told.audit}) > 2


@pytest.mark.parametrize(
    ("given_id", "taken"),
    [
        ("3b1c1a52-7a2b-4c1e-9d5e-1f2a3b4c5d6e", True),
        ("3b1c1a527a2b4c1e9d5e1f2a3b4c5d6e", True),
        ("hello", False),
        ("3b1c1a52-7a2b-4c1e-9d5e-1f2a3b4c5d6e-more", False),
        ("x" * 5000, False),
    ],
)
def test_request_ids(given_id: str, taken: bool) -> None:
    """A well-formed X-Request-Id is taken over, any other replaced; problems name it."""

    async def story() -> None:
        async with broker() as told:
            for answer in (
                await told.mint(x_request_id=given_id),
                await told.mint(token="", x_request_id=given_id),
            ):
                found = answer.headers["x-request-id"]
                assert (found == given_id) is taken
                if answer.status_code == 401:
                    assert answer.json()["instance"] == f"urn:uuid:{uuid.UUID(found)}"
            assert told.audit[0]["request_id"] == found if taken else True

    asyncio.run(story())


@with_broker
async def test_unknown_paths_and_methods_are_problems_too(told: Broker) -> None:
    """404 and 405 are problem+json, 405 with Allow; nothing redirects."""
    listed = ("/", "/v1", "/metrics", "/livez", "/readyz", MINT + "/", "/v1/client.mjs", "/3ds")
    for path in listed:
        answer = await told.client.get(path)
        assert (answer.status_code, problem(answer)) == (404, "not-found")
    answer = await told.client.get(MINT)
    assert (answer.status_code, problem(answer)) == (405, "method-not-allowed")
    assert answer.headers["allow"] == "POST"


@with_broker
async def test_a_defect_says_nothing(told: Broker) -> None:
    """An exception that is not ours becomes a 500 problem without a word of it."""

    def broken(_: httpx2.Request) -> httpx2.Response:
        raise ZeroDivisionError("a canary in the text")

    told.nmi.answer = broken
    answer = await told.mint()
    assert (answer.status_code, problem(answer)) == (500, "internal-error")
    assert "canary" not in answer.text


def test_load_is_shed() -> None:
    """Over `max_in_flight` requests get 503 at once, with Retry-After and CORS headers; but not the
    browser's module, which no page would ask for again."""

    async def story() -> None:
        async with broker("server: {max_in_flight: 2}\n" + CONFIG) as told:
            gate = asyncio.Event()
            transport: Any = told.app._transport
            transport.before = gate.wait
            waiting = [asyncio.create_task(told.mint()) for _ in range(2)]
            await settle()
            answer = await told.mint(origin=ORIGIN)
            assert (answer.status_code, problem(answer)) == (503, "overloaded")
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            assert (await told.client.get("/v1/client.js")).status_code == 200
            gate.set()
            assert [(await task).status_code for task in waiting] == [201, 201]
            assert (await told.mint()).status_code == 201
            assert told.sample("broker_requests_shed_total") == 1
            assert told.sample("broker_requests_in_flight") == 0

    asyncio.run(story())


def test_the_time_budget_is_absolute() -> None:
    """An upstream that hangs costs the caller the budget, not more, and a 504."""

    async def story() -> None:
        async with broker("server: {request_budget: 50ms}\n" + CONFIG) as told:
            transport: Any = told.app._transport
            transport.before = lambda: asyncio.sleep(30)
            answer = await told.mint()
            assert (answer.status_code, problem(answer)) == (504, "upstream-timeout")

    asyncio.run(story())


@pytest.mark.parametrize(
    ("forwarded", "seen"),
    [
        (None, "192.0.2.1"),
        ("203.0.113.9", "203.0.113.9"),
        ("1.2.3.4, 203.0.113.9", "203.0.113.9"),
        ("1.2.3.4, 203.0.113.9, 10.0.0.7", "203.0.113.9"),
        ("garbage, 10.0.0.7", "10.0.0.7"),
        ("10.0.0.9, 10.0.0.7", "10.0.0.9"),
    ],
)
@pytest.mark.parametrize("trusting", [True, False])
def test_forwarded_addresses_are_believed_from_trusted_proxies_only(
    forwarded: str | None, seen: str, trusting: bool
) -> None:
    """The client is the rightmost hop that is not a trusted proxy; a spoofed left end is not."""
    config = CONFIG.replace("${claims.merchant_id}", "a${request.ip}z")
    if trusting:
        config = "server: {trusted_proxies: [192.0.2.0/24, 10.0.0.0/8]}\n" + config

    async def story() -> None:
        async with broker(config) as told:
            headers = {"x_forwarded_for": forwarded} if forwarded else {}
            assert (await told.mint(**headers)).status_code == 201
            expected = seen if trusting else "192.0.2.1"
            assert told.nmi.bodies[0]["gateway"]["merchant_id"] == f"a{expected}z"

    asyncio.run(story())


@with_broker
async def test_the_openapi_document_is_valid_and_true(told: Broker) -> None:
    """/v1/openapi.json is OpenAPI 3.1, knows every path, and real answers fit its models."""
    answer = await told.client.get("/v1/openapi.json")
    document = answer.json()
    OpenAPIV31SpecValidator(document).validate()
    inner: Any = told.app._assembly.public
    routes = {route.path for route in inner._app.routes} | inner._app.default.endpoints.keys()
    assert set(document["paths"]) == routes
    minted = (await told.mint()).json()
    SessionAnswer.model_validate(minted, extra="forbid")
    checked = await told.post("/v1/sessions/check", {"handle": minted["handle"]})
    CheckAnswer.model_validate(checked.json(), extra="forbid")
    Problem.model_validate((await told.mint(token="")).json(), extra="forbid")
    described = document["components"]["responses"]["Problem"]["description"]
    assert all(kind.slug in described for kind in problem_types())


@with_broker
async def test_one_audit_line_for_each_request(told: Broker) -> None:
    """Each request leaves one line: who, what, how it ended, and a fingerprint for the token."""
    minted = (await told.mint(origin=ORIGIN)).json()
    await told.rotate(minted["handle"], token=told.jwt("bob"))
    first, second = told.audit
    first.pop("timestamp")
    assert first.pop("duration") >= 0
    uuid.UUID(first.pop("request_id"))
    assert uuid.UUID(first.pop("chain"))
    assert first == {
        "event": "request",
        "operation": "mint",
        "status": 201,
        "outcome": "ok",
        "profile": "transactions",
        "caller": "shop-users",
        "subject": "ada",
        "origin": ORIGIN,
        "source": "minted",
        "peer": "192.0.2.1",
        "fingerprint": hashlib.sha256(minted["session_token"].encode()).hexdigest()[:16],
        "remaining": 900.0,
    }
    assert second["problem"] == "not-permitted"
    assert second["outcome"] == "client_error"


def test_canaries_appear_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    """Keys, session tokens, handles and callers' JWTs are in no audit line, log, metric, problem
    or representation, whatever goes wrong upstream."""

    async def story() -> None:
        async with broker() as told:
            told.nmi.answer = lambda _: told.nmi.session(900)
            minted = (await told.mint()).json()
            jwt = told.jwt()
            outputs: list[str] = []
            for status in (200, 401, 422, 429, 500):
                text = f"{ENV['NMI_KEY']} {minted['session_token']}"
                told.nmi.answer = lambda _, s=status, t=text: httpx2.Response(s, text=t)  # type: ignore[misc]
                outputs.append((await told.mint(token=jwt)).text)
                outputs.append((await told.rotate(minted["handle"] + "x", token=jwt)).text)
            outputs.append((await told.mint(token=jwt[:-2])).text)
            outputs.append((await told.ops.get("/metrics")).text)
            outputs.append((await told.ops.get("/version")).text)
            outputs += [json.dumps(told.audit), repr(told.app.snapshot), repr(vars(told.app))]
            captured = capfd.readouterr()
            outputs += [captured.out, captured.err]
            canaries = [
                ENV["NMI_KEY"], ENV["SEAL"], ENV["ISSUER_KEY"], minted["session_token"],
                minted["handle"], jwt,
            ]  # fmt: skip
            for canary in canaries:
                assert not any(canary in output for output in outputs)

    asyncio.run(story())


@with_broker
async def test_metric_labels_do_not_come_from_requests(told: Broker) -> None:
    """Ten thousand made-up paths, profiles, origins and tokens add no series but a bounded few."""

    def series() -> int:
        return sum(len(list(family.samples)) for family in told.app.metrics.registry.collect())

    async def stray(name: str) -> None:
        await told.mint(profile=name)
        await told.client.get(f"/{name}")
        await told.mint(origin=f"https://{name}.example")
        await told.post(f"/v1/sessions/actions/{name}", {"handle": name})
        await told.client.get(f"/v1/access-tokens/{name}")

    await stray("x0")
    before = series()
    for number in range(1, 2000):
        await stray(f"x{number}")
    assert series() == before


@with_broker
async def test_the_ops_listener(told: Broker) -> None:
    """Probes, version and metrics in both formats, and only here."""
    assert (await told.ops.get("/livez")).text == "ok\n"
    assert (await told.ops.get("/readyz")).status_code == 200
    told.app.load.draining = True
    draining = await told.ops.get("/readyz")
    assert (draining.status_code, draining.text) == (503, "draining\n")
    assert (await told.ops.get("/livez")).status_code == 200
    assert (await told.mint()).headers["connection"] == "close"
    told.app.load.draining = False
    version = (await told.ops.get("/version")).json()
    assert version["config"] == told.app.snapshot.digest
    plain = await told.ops.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain")
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    fancy = await told.ops.get("/metrics", headers=accept)
    assert fancy.headers["content-type"].startswith("application/openmetrics-text")
    assert fancy.text.endswith("# EOF\n")


@with_broker
async def test_what_is_measured_of_a_mint(told: Broker) -> None:
    """A mint counts as a request, an upstream call, and a token served with its life left."""
    await told.mint()
    labels = {"operation": "mint", "profile": "transactions"}
    assert told.sample("broker_requests_total", outcome="ok", problem="", **labels) == 1
    assert told.sample("broker_request_duration_seconds_count", **labels) == 1
    call = {"upstream": "transactions", "operation": "session", "outcome": "ok"}
    assert told.sample("broker_upstream_requests_total", **call) == 1
    token = {"kind": "session", "source": "transactions"}
    assert told.sample("broker_token_remaining_seconds_sum", **token) == 900
    assert told.sample("broker_tokens_served_below_floor_total", **token) == 0


_HEADER_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.sampled_from([MINT, "/v1/sessions/rotate", "/v1/sessions/end", "/v1/sessions/actions/x"]),
    st.binary(max_size=80),
    st.dictionaries(
        st.sampled_from(
            ["content-type", "content-length", "idempotency-key", "cache-control", "x-request-id",
             "x-forwarded-for", "sec-fetch-site", "origin", "cookie", "user-agent", "accept"]
        ),
        _HEADER_TEXT,
        max_size=4,
    ),
)  # fmt: skip
def test_no_request_is_a_defect(path: str, content: bytes, headers: dict[str, str]) -> None:
    """Whatever is sent by somebody who is known, the answer is never a 500."""

    async def story() -> None:
        async with broker() as told:
            raw = {name: value.encode("latin-1") for name, value in headers.items()}
            raw.setdefault("content-type", b"application/json")
            raw["authorization"] = f"Bearer {told.jwt()}".encode()
            answer = await told.client.post(path, content=content, headers=raw)
            assert answer.status_code < 500

    asyncio.run(story())


@with_broker
async def test_nothing_blocks_the_loop(told: Broker) -> None:
    """Minting, rotating, ending and refusing make no blocking call (a scrape reads /proc, which is
    no disk)."""
    with blockbuster_ctx(scanned_modules=["broker"]):
        handle = (await told.mint(idempotency_key="k")).json()["handle"]
        for answer in (
            await told.rotate(handle),
            await told.end(handle),
            await told.mint(token="bad"),
            await told.mint(origin="https://evil.example"),
            await told.ops.get("/readyz"),
        ):
            assert answer.status_code < 500


def test_a_blocking_call_would_be_seen() -> None:
    """The test above can fail."""

    async def story() -> None:
        with blockbuster_ctx(), pytest.raises(BlockingError):
            time.sleep(0.001)

    asyncio.run(story())
