"""Checkout.com's Sessions as the sandbox plays them: over real sockets, with a shop that listens."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from aiohttp import web

from broker.sandbox.deliveries import is_here
from broker.sandbox.serving import serve
from broker.sandbox.settings import SandboxSettings
from broker.sandbox.threeds_outcomes import CARDS
from broker.sandbox.threeds_rules import is_card_number, is_url
from tests import checkout
from tests.checkout import APP, MERCHANT

SESSIONS = "/checkout/api/sessions"
NOON = 1_795_176_000.0
QUICK = (0.01, 0.01, 0.01)
BROWSER = {
    **checkout.BROWSER,
    "accept_header": "text/html",
    "user_agent": "Mozilla/5.0",
    "ip_address": "192.0.2.7",
}
HOSTED = {
    "type": "hosted",
    "success_url": "https://shop.example.test/paid?order=1",
    "failure_url": "https://shop.example.test/failed",
}
ONLY_THE_MERCHANT = {"session_secret", "cryptogram", "eci", "certificates"}


def request(token: str = "tok_frictionless", **members: Any) -> dict[str, Any]:
    body = {
        "source": {"type": "token", "token": token},
        "amount": 6540,
        "currency": "USD",
        "reference": "ORD-1",
        "completion": {"type": "non_hosted"},
        **members,
    }
    return {name: value for name, value in body.items() if value is not None}


@dataclass
class World:
    """A sandbox, a client that has a bearer token, and a hand on the clock."""

    url: str
    http: httpx2.AsyncClient
    bearer: dict[str, str] = field(default_factory=dict)

    async def authorise(self, scope: str = "") -> dict[str, str]:
        form = {
            "grant_type": "client_credentials",
            "client_id": "ack_sandbox",
            "client_secret": "sandbox+secret/with=chars==",
            "scope": scope,
        }
        answer = await self.http.post("/checkout/access/connect/token", data=form)
        return {"authorization": f"Bearer {answer.json()['access_token']}"}

    async def post(self, body: Any, **options: Any) -> httpx2.Response:
        options.setdefault("headers", self.bearer)
        return await self.http.post(SESSIONS, json=body, **options)

    async def create(self, token: str = "tok_frictionless", **members: Any) -> dict[str, Any]:
        answer = await self.post(request(token, **members))
        assert answer.status_code in (201, 202), answer.text
        return dict(answer.json())

    async def put(self, session: dict[str, Any], what: str, body: Any, **options: Any) -> Any:
        options.setdefault("headers", self.bearer)
        return await self.http.put(f"{SESSIONS}/{session['id']}/{what}", json=body, **options)

    async def collect(self, session: dict[str, Any], **options: Any) -> Any:
        return await self.put(session, "collect-data", BROWSER, **options)

    async def fingerprint(self, session: dict[str, Any], say: str = "Y", **options: Any) -> Any:
        body = {"three_ds_method_completion": say}
        return await self.put(session, "issuer-fingerprint", body, **options)

    async def complete(self, session: dict[str, Any], **options: Any) -> httpx2.Response:
        options.setdefault("headers", self.bearer)
        return await self.http.post(f"{SESSIONS}/{session['id']}/complete", **options)

    async def read(self, session: dict[str, Any], **options: Any) -> dict[str, Any]:
        options.setdefault("headers", self.bearer)
        answer = await self.http.get(f"{SESSIONS}/{session['id']}", **options)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def skew(self, seconds: float) -> None:
        answer = await self.http.post("/_sandbox/clock", json={"skew_seconds": seconds})
        assert answer.status_code == 200

    async def deliveries(self) -> list[dict[str, Any]]:
        return list((await self.http.get("/_sandbox/deliveries")).json()["deliveries"])


@contextlib.asynccontextmanager
async def world(**settings: Any) -> AsyncIterator[World]:
    settings.setdefault("checkout_delivery_retries", QUICK)
    async with (
        serve(SandboxSettings(**settings)) as running,
        httpx2.AsyncClient(base_url=running.url, verify=False, trust_env=False, timeout=10) as http,
    ):
        there = World(running.url, http)
        there.bearer = await there.authorise()
        yield there


def run(scene: Callable[[World], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(10), world(**settings) as there:
            await scene(there)

    asyncio.run(main())


class Shop:
    """A server of somebody else: keeps what it is sent, answers as it was told to."""

    def __init__(self) -> None:
        self.url = ""
        self.received: list[tuple[str, dict[str, str], bytes]] = []
        self.statuses: list[int] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def handle(self, message: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in message.headers.items()}
        self.received.append((message.path, headers, await message.read()))
        await self.go_on.wait()
        status = self.statuses.pop(0) if self.statuses else 200
        return web.Response(status=status, headers={"location": "/elsewhere"})

    async def until(self, count: int) -> None:
        while len(self.received) < count:
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def shop() -> AsyncIterator[Shop]:
    there = Shop()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", there.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    there.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield there
    finally:
        there.go_on.set()
        await runner.cleanup()


def error(answer: httpx2.Response) -> tuple[int, str, list[str]]:
    """Status, type and codes of a refusal, after checking that it is a proper one."""
    body = answer.json()
    assert set(body) == {"request_id", "error_type", "error_codes"}
    assert answer.headers["cko-request-id"] == body["request_id"]
    return answer.status_code, body["error_type"], body["error_codes"]


WRONG_STATE = (403, "operation_not_allowed", ["update_not_allowed_due_to_state"])
WRONG_SCOPE = (403, "operation_not_allowed", ["operation_not_allowed_for_scope"])


def state(session: dict[str, Any]) -> tuple[str, list[str]]:
    return session["status"], session["next_actions"]


def decoded(encoded: str) -> dict[str, Any]:
    assert not re.search("[+/=]", encoded), "EMV 3DS wants base64url without padding"
    return dict(json.loads(base64.urlsafe_b64decode(encoded + "==")))


def encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


class Form(HTMLParser):
    """The one form of a page, as a browser without JavaScript sees it."""

    def __init__(self, page: httpx2.Response) -> None:
        super().__init__()
        self.action = str(page.url)
        self.fields: dict[str, str] = {}
        self.buttons: list[tuple[str, str]] = []
        self.feed(page.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attrs}
        if tag == "form":
            assert told["method"] == "post"
            self.action = told.get("action", self.action)
        elif tag == "input":
            self.fields[told["name"]] = told["value"]
        elif tag == "button" and "name" in told:
            self.buttons.append((told["name"], told["value"]))


def assert_harmless(page: httpx2.Response) -> None:
    """A policy that runs only what it names by digest; no way for anything else to load."""
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; base-uri 'none'; form-action 'self'")
    assert "unsafe" not in policy
    assert page.headers["cache-control"] == "no-store"
    for script in re.findall("<script>(.*?)</script>", page.text, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in policy
    assert "sek_" not in page.text
    assert not re.search(r" on\w+=", page.text)


# The shapes of things


def test_a_new_session_has_the_documented_shape() -> None:
    """202 with well-formed ids, a secret of 48 characters, and no expiry anywhere."""

    async def scene(w: World) -> None:
        answer = await w.post(request())
        session = answer.json()
        assert answer.status_code == 202
        assert re.fullmatch(r"sid_\w{26}", session["id"])
        assert re.fullmatch(r"sek_.{44}", session["session_secret"])
        base64.b64decode(session["session_secret"][4:], validate=True)
        assert re.fullmatch("[0-9a-f-]{36}", session["transaction_id"])
        assert state(session) == ("pending", ["collect_channel_data"])
        assert session["completed"] is False
        # There from the start in what live tests of the .NET SDK read.
        assert session["certificates"]["ds_public"]
        assert session["ds"]["transaction_id"]
        assert "acs" not in session
        assert (session["amount"], session["currency"]) == (6540, "USD")
        assert session["authentication_category"] == "payment"
        assert not [name for name in session if "expir" in name]
        own = f"{w.url}{SESSIONS}/{session['id']}"
        assert session["_links"] == {
            "self": {"href": own},
            "collect_channel_data": {"href": f"{own}/collect-data"},
        }
        assert answer.headers["cko-request-id"]
        assert answer.headers["cko-version"]
        assert answer.headers["cache-control"] == "no-store"

    run(scene)


def test_a_session_without_an_amount_is_no_payment() -> None:
    """Omitted amount: category non_payment."""

    async def scene(w: World) -> None:
        assert (await w.create(amount=None))["authentication_category"] == "non_payment"

    run(scene)


def test_a_seed_makes_sessions_repeatable() -> None:
    """The same seed gives the same ids and secrets, another seed others."""
    made: list[str] = []

    async def scene(w: World) -> None:
        session = await w.create()
        made.append(session["id"] + session["session_secret"])

    for seed in (1, 1, 2):
        run(scene, seed=seed)
    assert made[0] == made[1] != made[2]


# Each way through


@pytest.mark.parametrize(
    ("outcome", "status", "code", "approved"),
    [
        ("frictionless", "approved", "Y", True),
        ("attempt", "attempted", "A", True),
        ("decline", "declined", "N", False),
        ("reject", "rejected", "R", False),
        ("unavailable", "unavailable", "U", False),
    ],
)
def test_an_outcome_is_chosen_by_token_or_stored_card(
    outcome: str, status: str, code: str, approved: bool
) -> None:
    """With browser data up front the session is decided at once: 201, then complete."""

    async def scene(w: World) -> None:
        sources = (
            {"type": "token", "token": f"tok_{outcome}"},
            {"type": "token", "token": f"tok_{outcome}aaaaaaaaaa"},
            {"type": "id", "id": f"src_{outcome}"},
        )
        for source in sources:
            answer = await w.post(request(source=source, channel_data=BROWSER))
            session = answer.json()
            assert answer.status_code == 201
            assert state(session) == (status, ["complete"])
            assert (session["response_code"], session["approved"]) == (code, approved)
            assert ("cryptogram" in session) == ("eci" in session) == approved
            assert ("status_reason" in session) == (not approved)
            assert (session["challenged"], session["flow_type"]) == (False, "frictionless")
            assert session["_links"]["complete"]["href"].endswith("/complete")
        assert session["card"]["instrument_id"] == f"src_{outcome}"

    run(scene)


@pytest.mark.parametrize("number", CARDS)
@pytest.mark.parametrize("kind", ["card", "network_token"])
def test_an_outcome_is_chosen_by_card_number_and_the_number_is_never_repeated(
    number: str, kind: str
) -> None:
    """Every number of the table is a possible card, leads where it says, and is not told."""
    plan = CARDS[number]
    assert is_card_number(number)

    async def scene(w: World) -> None:
        name = "number" if kind == "card" else "token"
        source = {"type": kind, name: number, "expiry_month": 12, "expiry_year": 2030}
        answer = await w.post(request(source=source, channel_data=BROWSER))
        assert number not in answer.text
        session = answer.json()
        assert session["scheme"] == ("visa" if number[0] == "4" else "mastercard")
        if plan.has_method:
            assert state(session) == ("pending", ["issuer_fingerprint"])
            answer = await w.fingerprint(session)
            session = answer.json()
        expected = {
            "frictionless": "approved", "challenge": "challenged", "decline": "declined",
            "reject": "rejected", "attempt": "attempted", "unavailable": "unavailable",
        }  # fmt: skip
        assert session["status"] == expected[plan.outcome]
        if session["status"] == "approved":
            assert session["eci"] == ("05" if session["scheme"] == "visa" else "02")
        assert number not in answer.text

    run(scene)


@pytest.mark.parametrize("number", ["4242424242424243", "42424242", "4242 4242 4242 4242"])
def test_a_card_number_must_be_one(number: str) -> None:
    """Check digit, length and digits: source_number_invalid."""

    async def scene(w: World) -> None:
        source = {"type": "card", "number": number, "expiry_month": 1, "expiry_year": 2030}
        answer = await w.post(request(source=source))
        assert error(answer) == (422, "unprocessable_entity", ["source_number_invalid"])

    run(scene)


def test_collecting_then_fingerprinting_leads_to_the_issuer() -> None:
    """With a 3DS method both are to be done, in either order, and only then is it decided."""

    async def scene(w: World) -> None:
        session = await w.create("tok_frictionless_method")
        assert state(session) == ("pending", ["collect_channel_data", "issuer_fingerprint"])
        assert session["_links"]["three_ds_method_url"]["href"] == f"{w.url}/checkout/acs/method"
        collected = (await w.collect(session)).json()
        assert state(collected) == ("pending", ["issuer_fingerprint"])
        assert set(collected["_links"]) == {"self", "issuer_fingerprint", "three_ds_method_url"}
        assert state((await w.fingerprint(session)).json()) == ("approved", ["complete"])

        session = await w.create("tok_challenge_method")
        assert state((await w.fingerprint(session, "U")).json()) == (
            "pending",
            ["collect_channel_data"],
        )
        assert state((await w.collect(session)).json()) == ("challenged", ["challenge_cardholder"])

    run(scene)


@pytest.mark.parametrize("said", ["Y", "N", "U"])
def test_channel_data_may_say_how_the_method_went(said: str) -> None:
    """Y or N in the data itself needs no second call; U is the default and answers nothing."""

    async def scene(w: World) -> None:
        session = await w.create("tok_frictionless_method")
        data = {**BROWSER, "three_ds_method_completion": said}
        answer = await w.put(session, "collect-data", data)
        waiting = ("pending", ["issuer_fingerprint"])
        assert state(answer.json()) == (waiting if said == "U" else ("approved", ["complete"]))

    run(scene)


def test_a_challenge_up_front_is_201() -> None:
    """Challenged with response code C, an ACS address and a challenge request for it."""

    async def scene(w: World) -> None:
        answer = await w.post(request("tok_challenge", channel_data=BROWSER))
        session = answer.json()
        assert answer.status_code == 201
        assert state(session) == ("challenged", ["challenge_cardholder"])
        assert (session["response_code"], session["challenged"]) == ("C", True)
        assert "approved" not in session
        assert "cryptogram" not in session
        assert session["acs"]["url"] == f"{w.url}/checkout/acs/challenge"
        creq = decoded(session["3ds"]["challenge_request"])
        assert creq["messageType"] == "CReq"
        assert creq["threeDSServerTransID"] == session["transaction_id"]
        assert creq["acsTransID"] == session["acs"]["transaction_id"]

    run(scene)


def test_an_app_has_no_method() -> None:
    """App data skips the 3DS method; fingerprinting it is refused by name."""

    async def scene(w: World) -> None:
        session = await w.create("tok_frictionless_method")
        answer = await w.put(session, "collect-data", APP)
        assert state(answer.json()) == ("approved", ["complete"])
        code = "three_ds_method_not_supported_for_app"
        assert error(await w.fingerprint(session)) == (403, "operation_not_allowed", [code])

    run(scene)


def test_a_merchant_initiated_session_needs_no_cardholder() -> None:
    """3RI is decided at once, and what only a challenge could approve is unavailable."""

    async def scene(w: World) -> None:
        answer = await w.post(request("tok_frictionless_method", channel_data=MERCHANT))
        assert (answer.status_code, *state(answer.json())) == (201, "approved", ["complete"])
        answer = await w.post(request("tok_challenge", channel_data=MERCHANT))
        assert state(answer.json()) == ("unavailable", ["complete"])
        assert answer.json()["response_status_reason"] == "21"
        assert "acs" not in answer.json()

    run(scene)


def test_the_channel_header_filters_next_actions_and_their_links() -> None:
    """An app cannot fingerprint, a merchant alone not even challenge; other values are refused."""

    async def scene(w: World) -> None:
        session = await w.create("tok_frictionless_method")
        seen = await w.read(session, headers={**w.bearer, "channel": "app"})
        assert seen["next_actions"] == ["collect_channel_data"]
        assert "three_ds_method_url" not in seen["_links"]
        seen = await w.read(session, headers={**w.bearer, "channel": "browser"})
        assert seen["next_actions"] == ["collect_channel_data", "issuer_fingerprint"]
        challenged = await w.create("tok_challenge", channel_data=BROWSER)
        seen = await w.read(challenged, headers={**w.bearer, "channel": "merchant_initiated"})
        assert state(seen) == ("challenged", [])
        answer = await w.http.get(
            f"{SESSIONS}/{session['id']}", headers={**w.bearer, "channel": "fax"}
        )
        assert error(answer) == (422, "unprocessable_entity", ["channel_invalid"])

    run(scene)


def test_a_step_out_of_turn_is_refused() -> None:
    """Wrong state: collecting twice, fingerprinting twice, completing early or twice."""

    async def scene(w: World) -> None:
        session = await w.create("tok_frictionless_method")
        assert error(await w.complete(session)) == WRONG_STATE
        await w.collect(session)
        assert error(await w.collect(session)) == WRONG_STATE
        await w.fingerprint(session)
        assert error(await w.fingerprint(session)) == WRONG_STATE
        assert error(await w.collect(session)) == WRONG_STATE
        assert (await w.complete(session)).status_code == 204
        assert error(await w.complete(session)) == WRONG_STATE
        assert error(await w.complete(await w.create("tok_challenge", channel_data=BROWSER))) == (
            WRONG_STATE
        )
        plain = await w.create()
        code = "three_ds_method_not_supported_without_url"
        assert error(await w.fingerprint(plain)) == (403, "operation_not_allowed", [code])

    run(scene)


# Who may


def test_the_secret_opens_its_session_and_hides_what_is_the_merchants() -> None:
    """Raw in Authorization; no secret, cryptogram, eci or certificates in any of its answers."""

    async def scene(w: World) -> None:
        session = await w.create("tok_frictionless_method")
        mine = {"authorization": session["session_secret"]}
        answers = [
            await w.http.get(f"{SESSIONS}/{session['id']}", headers=mine),
            await w.fingerprint(session, headers=mine),
            await w.collect(session, headers=mine),
            await w.http.get(f"{SESSIONS}/{session['id']}", headers=mine),
        ]
        for answer in answers:
            assert answer.status_code == 200
            assert not ONLY_THE_MERCHANT & set(answer.json())
        assert answer.json()["status"] == "approved"
        whole = await w.read(session)
        assert set(whole) > ONLY_THE_MERCHANT
        assert whole["session_secret"] == session["session_secret"]
        assert whole["cryptogram"] not in answer.text
        assert (await w.complete(session, headers=mine)).status_code == 204

    run(scene)


def test_no_other_use_of_a_secret_opens_anything() -> None:
    """As a bearer, for another session, for none, for creating, too late: 401 and no body."""

    async def scene(w: World) -> None:
        session, other = await w.create(), await w.create()
        secret = session["session_secret"]
        get = w.http.get
        mine = {"authorization": secret}
        refused = [
            await get(f"{SESSIONS}/{session['id']}", headers={"authorization": f"Bearer {secret}"}),
            await get(f"{SESSIONS}/{other['id']}", headers=mine),
            await get(f"{SESSIONS}/sid_aaaaaaaaaaaaaaaaaaaaaaaaaa", headers=mine),
            await get(f"{SESSIONS}/{session['id']}", headers={"authorization": secret[:-1]}),
            await get(f"{SESSIONS}/{session['id']}"),
            await get(f"{SESSIONS}/{session['id']}", headers={"authorization": "Bearer nonsense"}),
            await w.post(request(), headers=mine),
            await w.post(request(), headers={}),
        ]
        await w.skew(3600)
        refused.append(await get(f"{SESSIONS}/{session['id']}", headers=mine))
        for answer in refused:
            assert (answer.status_code, answer.content) == (401, b"")
            assert answer.headers["cko-request-id"]

    run(scene)


@pytest.mark.parametrize(
    ("scope", "channel_data", "allowed"),
    [
        ("sessions", BROWSER, True),
        ("sessions:browser", BROWSER, True),
        ("sessions:app", BROWSER, False),
        ("sessions:browser", APP, False),
        ("sessions:app", APP, True),
        ("sessions:app", MERCHANT, True),
        ("gateway flow", None, False),
        ("sessions:app", None, True),
    ],
)
def test_the_scope_must_fit_the_channel(scope: str, channel_data: Any, allowed: bool) -> None:
    """On create as on collect-data; another scope altogether is refused for everything."""

    async def scene(w: World) -> None:
        headers = await w.authorise(scope)
        answer = await w.post(request(channel_data=channel_data), headers=headers)
        assert (answer.status_code in (201, 202)) == allowed
        if not allowed:
            assert error(answer) == WRONG_SCOPE
        if channel_data is not None:
            session = await w.create()
            answer = await w.put(session, "collect-data", channel_data, headers=headers)
            assert (answer.status_code == 200) == allowed

    run(scene)


def test_fingerprinting_by_bearer_is_for_browser_scopes() -> None:
    """sessions:app is not enough; sessions:browser is."""

    async def scene(w: World) -> None:
        session = await w.create("tok_frictionless_method")
        app = await w.authorise("sessions:app")
        assert error(await w.fingerprint(session, headers=app)) == WRONG_SCOPE
        browser = await w.authorise("sessions:browser")
        assert (await w.fingerprint(session, headers=browser)).status_code == 200

    run(scene)


def test_an_unknown_session_is_404_for_a_bearer() -> None:
    """not_found with a body, for all four calls; but not before the bearer is checked."""

    async def scene(w: World) -> None:
        nobody = {"id": "sid_aaaaaaaaaaaaaaaaaaaaaaaaaa"}
        answers = [
            await w.http.get(f"{SESSIONS}/{nobody['id']}", headers=w.bearer),
            await w.collect(nobody),
            await w.fingerprint(nobody),
            await w.complete(nobody),
        ]
        for answer in answers:
            assert error(answer) == (404, "not_found", ["session_not_found"])
        assert (await w.collect(nobody, headers={})).status_code == 401

    run(scene)


# What is asked


@pytest.mark.parametrize(
    ("body", "codes"),
    [
        ({}, ["currency_required", "source_required", "completion_required"]),
        (request(currency="usd"), ["currency_invalid"]),
        (request(currency=None, amount=-1), ["currency_required", "amount_invalid"]),
        (request(amount="6540"), ["amount_invalid"]),
        (request(amount=True), ["amount_invalid"]),
        (request(amount=1.5), ["amount_invalid"]),
        (request(authentication_type="recurring", amount=0), ["amount_invalid"]),
        (request(authentication_type="installment", amount=None), ["amount_required"]),
        (request(authentication_type="sometimes"), ["authentication_type_invalid"]),
        (request(challenge_indicator="never"), ["challenge_indicator_invalid"]),
        (request(processing_channel_id="pc_short"), ["processing_channel_id_invalid"]),
        (request(reference="r" * 101), ["reference_invalid"]),
        (request(source=[]), ["source_invalid"]),
        (request(source={}), ["source_type_required"]),
        (request(source={"type": "cash"}), ["source_type_invalid"]),
        (request(source={"type": "token"}), ["source_token_required"]),
        (request("tok_invalid"), ["source_token_invalid"]),
        (request("4242424242424242"), ["source_token_invalid"]),
        (request("tok_" + "a" * 97), ["source_token_invalid"]),
        (request(source={"type": "id", "id": "src_invalid"}), ["source_id_invalid"]),
        (
            request(source={"type": "network_token", "token": "1", "expiry_month": 13}),
            ["source_token_invalid", "source_expiry_month_invalid", "source_expiry_year_required"],
        ),
        (
            request(source={"type": "token", "token": "tok_a", "email": "e" * 255}),
            ["source_email_invalid"],
        ),
        (
            request(source={"type": "token", "token": "tok_a", "home_phone": {"number": "x"}}),
            ["source_home_phone_country_code_required", "source_home_phone_number_invalid"],
        ),
        (request(completion={"type": "non-hosted"}), ["completion_type_invalid"]),
        (
            request(completion={"type": "hosted", "success_url": "ftp://shop.example"}),
            ["completion_success_url_invalid", "completion_failure_url_required"],
        ),
        (
            request(completion={"type": "non_hosted", "callback_url": "here"}),
            ["completion_callback_url_invalid"],
        ),
        (request(completion=HOSTED, channel_data=APP), ["hosted_not_supported_for_app"]),
        (request(completion=HOSTED, channel_data=MERCHANT), ["channel_data_invalid"]),
        (request(channel_data={"channel": "fax"}), ["channel_data_channel_invalid"]),
        (request(channel_data="browser"), ["channel_data_invalid"]),
        (
            request(channel_data={**BROWSER, "language": None, "java_enabled": "no"}),
            ["channel_data_java_enabled_invalid", "channel_data_language_required"],
        ),
    ],
)
def test_a_faulty_session_request_is_422_with_a_code_for_each_fault(
    body: Any, codes: list[str]
) -> None:
    """Codes name the member by its path, several at once, and never repeat a value."""

    async def scene(w: World) -> None:
        answer = await w.post(body)
        assert error(answer) == (422, "unprocessable_entity", codes)

    run(scene)


@pytest.mark.parametrize("channel_data", [BROWSER, APP, MERCHANT], ids=lambda d: d["channel"])
def test_every_member_of_channel_data_is_required(channel_data: dict[str, Any]) -> None:
    """Each left out alone is named alone, and the session stays as it was."""

    async def scene(w: World) -> None:
        session = await w.create()
        for name in channel_data:
            rest = {key: value for key, value in channel_data.items() if key != name}
            answer = await w.put(session, "collect-data", rest)
            assert error(answer) == (422, "unprocessable_entity", [f"{name}_required"])
        assert state(await w.read(session)) == ("pending", ["collect_channel_data"])

    run(scene)


def test_an_app_must_give_the_cardholder_five_minutes() -> None:
    """EMV's minimum of sdk_max_timeout."""

    async def scene(w: World) -> None:
        answer = await w.put(await w.create(), "collect-data", {**APP, "sdk_max_timeout": 4})
        assert error(answer) == (422, "unprocessable_entity", ["sdk_max_timeout_invalid"])

    run(scene)


@pytest.mark.parametrize(
    ("said", "code"),
    [({}, "required"), ({"three_ds_method_completion": "y"}, "invalid")],
)
def test_a_fingerprint_is_y_n_or_u(said: dict[str, str], code: str) -> None:
    """Anything else is 422 and leaves the method to be done."""

    async def scene(w: World) -> None:
        session = await w.create("tok_frictionless_method")
        answer = await w.put(session, "issuer-fingerprint", said)
        expected = f"three_ds_method_completion_{code}"
        assert error(answer) == (422, "unprocessable_entity", [expected])
        assert "issuer_fingerprint" in (await w.read(session))["next_actions"]

    run(scene)


def test_a_body_must_be_a_json_object_and_say_so() -> None:
    """415 without the media type; 422 for what is no object; 405 for another method."""

    async def scene(w: World) -> None:
        headers = {**w.bearer, "content-type": "text/plain"}
        answer = await w.http.post(SESSIONS, content=b"{}", headers=headers)
        assert (answer.status_code, answer.content) == (415, b"")
        headers = {**w.bearer, "content-type": "application/json"}
        for content in (b"", b"{", b"[]", b"[" * 5000, b"\xff"):
            answer = await w.http.post(SESSIONS, content=content, headers=headers)
            assert error(answer) == (422, "unprocessable_entity", ["request_body_malformed"])
        assert (await w.http.delete(SESSIONS, headers=w.bearer)).status_code == 405
        session = await w.create()
        answer = await w.http.get(f"{SESSIONS}/{session['id']}/complete", headers=w.bearer)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")

    run(scene)


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "https://",
        "https://shop.example/a b",
        'https://shop.example/"><script>',
        "https://user@shop.example/",
        "https://shop.example;script-src/",
        "https://[",
        "https://shop.example/\r\nx: y",
        f"https://shop.example/{'a' * 300}",
        None,
    ],
)
def test_a_url_that_could_break_a_header_or_a_page_is_none(url: Any) -> None:
    """Only http(s), a plain host, no spaces, quotes or user names, at most 256 characters."""
    assert not is_url(url)
    assert is_url("https://shop.example:8443/paid?order=1#x")


# The end of it


def test_complete_tells_the_callback_and_then_the_caller() -> None:
    """The callback gets the documented body, cryptogram and all, unsigned; then 204."""

    async def scene(w: World) -> None:
        async with shop() as there:
            completion = {"type": "non_hosted", "callback_url": f"{there.url}/callback?k=secret"}
            session = await w.create(completion=completion, channel_data=BROWSER)
            assert session["_links"]["callback_url"]["href"] == completion["callback_url"]
            answer = await w.complete(session)
            assert (answer.status_code, answer.content) == (204, b"")
            [(path, headers, body)] = there.received
            told = json.loads(body)
            seen = await w.read(session)
            assert path == "/callback"
            assert headers["content-type"] == "application/json"
            assert "cko-signature" not in headers
            assert told["session_id"] == session["id"]
            for name in ("amount", "currency", "status", "approved", "cryptogram", "eci", "xid"):
                assert told[name] == seen[name]
            assert state(seen) == ("approved", [])
            assert seen["completed"] is True
            [attempt] = await w.deliveries()
            assert (attempt["path"], attempt["kind"], attempt["status"]) == (
                "/callback",
                "callback",
                200,
            )

    run(scene)


def test_a_callback_is_tried_again_until_it_is_accepted() -> None:
    """Two failures and then success: 204, three attempts; a redirect is a failure like others."""

    async def scene(w: World) -> None:
        async with shop() as there:
            there.statuses = [500, 302, 204]
            completion = {"type": "non_hosted", "callback_url": there.url}
            session = await w.create(completion=completion, channel_data=BROWSER)
            assert (await w.complete(session)).status_code == 204
            assert [a["status"] for a in await w.deliveries()] == [500, 302, 204]
            assert {path for path, _, _ in there.received} == {"/"}

    run(scene)


@pytest.mark.parametrize("why", ["it says no", "nobody is there", "it is elsewhere"])
def test_a_callback_that_fails_is_an_error_and_the_session_is_complete(why: str) -> None:
    """callback_failed after all retries; nothing beyond this machine is even tried."""

    async def scene(w: World) -> None:
        async with shop() as there:
            there.statuses = [503] * 10
            url = {
                "it says no": there.url,
                "nobody is there": "http://127.0.0.1:1/",
                "it is elsewhere": "https://shop.example.test/callback",
            }[why]
            completion = {"type": "non_hosted", "callback_url": url}
            session = await w.create(completion=completion, channel_data=BROWSER)
            answer = await w.complete(session)
            assert error(answer) == (502, "callback_failed", ["session_callback_failed"])
            seen = await w.read(session)
            assert (seen["completed"], seen["next_actions"]) == (True, [])
            assert error(await w.complete(session)) == WRONG_STATE
            attempts = await w.deliveries()
            assert len(attempts) == (1 if why == "it is elsewhere" else 4)

    run(scene)


def test_only_this_machine_is_contacted() -> None:
    """Loopback by name or number; nothing that only looks like it."""
    for url in ("http://localhost:1/", "https://127.0.0.2/", "http://[::1]:80/"):
        assert is_here(url)
    for url in (
        "http://127.0.0.1.example.test/",
        "http://localhost@shop.example/",
        "http://192.0.2.1/",
        "http://0.0.0.0/",
        "file:///etc/passwd",
        "http://[",
        "",
    ):
        assert not is_here(url)


def test_actions_on_a_session_in_use_are_refused_and_reading_is_not() -> None:
    """While complete waits for its callback: 409 for every action, 200 for a look."""

    async def scene(w: World) -> None:
        async with shop() as there:
            there.go_on.clear()
            completion = {"type": "non_hosted", "callback_url": there.url}
            session = await w.create(completion=completion, channel_data=BROWSER)
            completing = asyncio.create_task(w.complete(session))
            await there.until(1)
            in_use = (409, "duplicate_requests_detected", ["session_already_in_use"])
            assert error(await w.complete(session)) == in_use
            assert error(await w.collect(session)) == in_use
            assert error(await w.fingerprint(session)) == in_use
            assert (await w.read(session))["completed"] is False
            there.go_on.set()
            assert (await completing).status_code == 204
            assert len(there.received) == 1

    run(scene)


def test_a_sandbox_that_stops_lets_go_of_a_callback() -> None:
    """A shop that never answers holds neither the request nor the server."""

    async def main() -> None:
        async with asyncio.timeout(5), shop() as there:
            there.go_on.clear()
            async with world(checkout_webhooks={f"{there.url}/hook": "k"}) as w:
                completion = {"type": "non_hosted", "callback_url": there.url}
                session = await w.create(completion=completion, channel_data=BROWSER)
                completing = asyncio.create_task(w.complete(session))
                await there.until(3)
            with pytest.raises(httpx2.HTTPError):
                await completing
            left = {task for task in asyncio.all_tasks() if "_deliver" in repr(task)}
            assert not left

    asyncio.run(main())


def test_sessions_expire_by_the_sandbox_clock() -> None:
    """Pending after 900 s, challenged 300 s after the challenge began; a result never."""

    async def scene(w: World) -> None:
        pending = await w.create("tok_challenge")
        waiting = await w.create("tok_challenge", channel_data=BROWSER)
        done = await w.create(channel_data=BROWSER)
        await w.skew(299)
        assert (await w.read(waiting))["status"] == "challenged"
        await w.skew(300)
        seen = await w.read(waiting)
        assert state(seen) == ("expired", [])
        assert (seen["response_status_reason"], seen["approved"]) == ("14", False)
        assert seen["acs"]["challenge_cancel_reason"] == "challenge_timed_out"
        await w.skew(899)
        assert (await w.read(pending))["status"] == "pending"
        await w.collect(pending)
        assert (await w.read(pending))["status"] == "challenged"
        other = await w.create()
        await w.skew(899 + 900)
        assert state(await w.read(other)) == ("expired", [])
        assert "response_code" not in await w.read(other)
        assert error(await w.collect(other)) == WRONG_STATE
        assert error(await w.complete(other)) == WRONG_STATE
        assert state(await w.read(done)) == ("approved", ["complete"])

    run(scene, clock=lambda: NOON)


def test_the_cryptogram_is_told_for_a_day() -> None:
    """After 24 hours the rest is still there."""

    async def scene(w: World) -> None:
        session = await w.create(channel_data=BROWSER)
        await w.skew(86_399)
        late = {"headers": await w.authorise()}
        assert (await w.read(session, **late))["cryptogram"] == session["cryptogram"]
        await w.skew(86_400)
        seen = await w.read(session, **late)
        assert "cryptogram" not in seen
        assert seen["status"] == "approved"

    run(scene, clock=lambda: NOON)


def test_the_oldest_sessions_are_forgotten() -> None:
    """Memory is bounded: of three, two are kept, pages and all."""

    async def scene(w: World) -> None:
        sessions = [await w.create(completion=HOSTED) for _ in range(3)]
        pages = [s["_links"]["redirect_url"]["href"] for s in sessions]
        found = [
            (await w.http.get(f"{SESSIONS}/{s['id']}", headers=w.bearer)).status_code
            for s in sessions
        ]
        assert found == [404, 200, 200]
        assert [(await w.http.get(page)).status_code for page in pages] == [404, 200, 200]

    run(scene, checkout_sessions_kept=2)


# Pages


async def challenged(w: World, **completion: Any) -> dict[str, Any]:
    return await w.create(
        "tok_challenge",
        channel_data=BROWSER,
        completion={"type": "non_hosted", **completion},
        billing_descriptor={"name": "Ada's <Shop>"},
    )


@pytest.mark.parametrize(
    ("answer", "status", "response", "trans"),
    [
        ("approve", "approved", "Y", "Y"),
        ("fail", "declined", "N", "N"),
        ("cancel", "challenge_abandoned", "N", "N"),
    ],
)
def test_a_challenge_is_answered_by_plain_forms(
    answer: str, status: str, response: str, trans: str
) -> None:
    """CReq posted, a button pressed, CRes carried to the shop; then complete is next."""

    async def scene(w: World) -> None:
        url = "https://shop.example.test/notify"
        session = await challenged(w, challenge_notification_url=url)
        sent = {"creq": session["3ds"]["challenge_request"], "threeDSSessionData": "b3JkZXI"}
        page = await w.http.post(session["acs"]["url"], data=sent)
        assert page.status_code == 200
        assert_harmless(page)
        assert "65.40 USD" in page.text
        assert "Ada&#x27;s &lt;Shop&gt;" in page.text
        form = Form(page)
        assert [value for _, value in form.buttons] == ["approve", "fail", "cancel"]
        page = await w.http.post(form.action, data={**form.fields, "answer": answer})
        assert_harmless(page)
        assert (
            "form-action 'self' https://shop.example.test;"
            in (page.headers["content-security-policy"])
        )
        form = Form(page)
        cres = decoded(form.fields["cres"])
        assert (form.action, form.fields["threeDSSessionData"]) == (url, "b3JkZXI")
        assert (cres["messageType"], cres["transStatus"]) == ("CRes", trans)
        seen = await w.read(session)
        assert state(seen) == (status, ["complete"])
        assert (seen["response_code"], seen["challenged"]) == (response, True)
        assert seen["flow_type"] == "challenged"
        assert (await w.complete(session)).status_code == 204

    run(scene)


def test_a_challenge_is_answered_once() -> None:
    """A second answer changes nothing and leads where the first did; no URL: close the window."""

    async def scene(w: World) -> None:
        session = await challenged(w)
        sent = {"creq": session["3ds"]["challenge_request"]}
        form = Form(await w.http.post(session["acs"]["url"], data=sent))
        for answer in ("fail", "approve"):
            page = await w.http.post(form.action, data={**form.fields, "answer": answer})
            assert "You may close this window" in page.text
        assert (await w.read(session))["status"] == "declined"
        page = await w.http.post(session["acs"]["url"], data=sent)
        assert "You may close this window" in page.text

    run(scene)


def test_a_challenge_cannot_be_guessed_or_forged() -> None:
    """Wrong transaction ids, another message, a challenge that is not yet one: 400."""

    async def scene(w: World) -> None:
        session = await challenged(w)
        creq = decoded(session["3ds"]["challenge_request"])
        other = await w.create("tok_challenge")
        for wrong in (
            encoded({**creq, "threeDSServerTransID": other["transaction_id"]}),
            encoded({**creq, "acsTransID": session["id"]}),
            encoded([]),
            "!!!",
            "",
        ):
            page = await w.http.post("/checkout/acs/challenge", data={"creq": wrong})
            assert page.status_code == 400
            assert_harmless(page)
        for fields in (
            {"acsTransID": session["transaction_id"], "answer": "approve"},
            {"acsTransID": creq["acsTransID"], "answer": "maybe"},
            {},
        ):
            page = await w.http.post("/checkout/acs/challenge/answer", data=fields)
            assert page.status_code == 400
        assert (await w.read(session))["status"] == "challenged"

    run(scene)


def test_a_challenge_that_took_too_long_is_over() -> None:
    """The page itself notices: expired, and CRes says N."""

    async def scene(w: World) -> None:
        session = await challenged(w, challenge_notification_url="https://shop.example.test/")
        await w.skew(300)
        sent = {"creq": session["3ds"]["challenge_request"]}
        page = await w.http.post(session["acs"]["url"], data=sent)
        assert decoded(Form(page).fields["cres"])["transStatus"] == "N"

    run(scene)


def test_the_3ds_method_is_seen_and_the_shop_is_told() -> None:
    """The page posts on to the notification URL, when there is one that is a URL."""

    async def scene(w: World) -> None:
        session = await w.create("tok_frictionless_method")
        where = session["_links"]["three_ds_method_url"]["href"]
        told = {"threeDSServerTransID": session["transaction_id"]}
        control = f"/_sandbox/sessions/{session['id']}"
        assert (await w.http.get(control)).json()["method_seen"] is False
        data = {**told, "threeDSMethodNotificationURL": "https://shop.example.test/method"}
        page = await w.http.post(where, data={"threeDSMethodData": encoded(data)})
        assert_harmless(page)
        form = Form(page)
        assert form.action == "https://shop.example.test/method"
        assert decoded(form.fields["threeDSMethodData"]) == told
        assert (await w.http.get(control)).json()["method_seen"] is True
        page = await w.http.post(where, data={"threeDSMethodData": encoded(told)})
        assert page.status_code == 200
        bad = {**told, "threeDSMethodNotificationURL": "javascript:alert(1)"}
        for wrong in (encoded(bad), encoded({}), "nonsense"):
            page = await w.http.post(where, data={"threeDSMethodData": wrong})
            assert page.status_code == 400
        # Having been seen is not yet having been told.
        assert "issuer_fingerprint" in (await w.read(session))["next_actions"]

    run(scene)


@pytest.mark.parametrize("spelling", ["redirect_url", "redirect"])
def test_a_hosted_session_redirects_to_an_unguessable_page(spelling: str) -> None:
    """202 with both of the shop's URLs and the redirect under the spelling that was set."""

    async def scene(w: World) -> None:
        answer = await w.post(request(completion=HOSTED, channel_data=BROWSER))
        session = answer.json()
        assert (answer.status_code, *state(session)) == (202, "pending", ["redirect_cardholder"])
        assert set(session["_links"]) == {"self", "success_url", "failure_url", spelling}
        where = session["_links"][spelling]["href"]
        assert session["id"] not in where
        assert len(urlsplit(where).path.rpartition("/")[2]) == 32
        for wrong in (session["id"], session["transaction_id"]):
            assert (await w.http.get(f"/checkout/pay/{wrong}")).status_code == 404

    run(scene, checkout_redirect_link=spelling)


@pytest.mark.parametrize(
    ("outcome", "status", "goes_to"),
    [
        ("frictionless", "approved", "success"),
        ("frictionless_method", "approved", "success"),
        ("attempt", "attempted", "success"),
        ("decline", "declined", "failure"),
    ],
)
def test_a_hosted_page_authenticates_by_a_plain_form(
    outcome: str, status: str, goes_to: str
) -> None:
    """Shown, posted, 303 with the session's id; then complete, and nothing more to do."""

    async def scene(w: World) -> None:
        session = await w.create(f"tok_{outcome}", completion=HOSTED)
        where = session["_links"]["redirect_url"]["href"]
        page = await w.http.get(where)
        assert page.status_code == 200
        assert_harmless(page)
        assert page.headers["referrer-policy"] == "no-referrer"
        policy = page.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        # A browser holds the redirect that follows a form to its policy, too.
        assert "form-action 'self' https://shop.example.test;" in policy
        form = Form(page)
        assert form.action == where
        gone = await w.http.post(form.action, data=form.fields)
        expected = {
            "success": f"https://shop.example.test/paid?order=1&cko-session-id={session['id']}",
            "failure": f"https://shop.example.test/failed?cko-session-id={session['id']}",
        }
        assert (gone.status_code, gone.headers["location"]) == (303, expected[goes_to])
        seen = await w.read(session)
        assert state(seen) == (status, [])
        assert seen["completed"] is True
        assert set(seen["_links"]) == {"self", "success_url", "failure_url"}
        again = await w.http.get(where)
        assert (again.status_code, again.headers["location"]) == (303, expected[goes_to])
        assert error(await w.complete(session)) == WRONG_STATE

    run(scene)


def test_a_hosted_page_shows_the_challenge() -> None:
    """After the form the bank's buttons, and after them the shop; the callback is told as well."""

    async def scene(w: World) -> None:
        async with shop() as there:
            completion = {**HOSTED, "callback_url": f"{there.url}/callback"}
            session = await w.create("tok_challenge_method", completion=completion)
            where = session["_links"]["redirect_url"]["href"]
            page = await w.http.post(where, data={"timezone": "-120"})
            assert_harmless(page)
            assert (await w.read(session))["next_actions"] == ["challenge_cardholder"]
            reloaded = await w.http.get(where)
            form = Form(reloaded)
            assert form.fields == Form(page).fields
            gone = await w.http.post(form.action, data={**form.fields, "answer": "approve"})
            assert gone.status_code == 303
            assert gone.headers["location"].startswith("https://shop.example.test/paid?")
            await there.until(1)
            assert json.loads(there.received[0][2])["status"] == "approved"
            assert (await w.read(session))["completed"] is True

    run(scene)


def test_a_hosted_page_refuses_nonsense_and_stays() -> None:
    """400 for data no browser sends; the session waits on."""

    async def scene(w: World) -> None:
        session = await w.create(completion=HOSTED)
        where = session["_links"]["redirect_url"]["href"]
        assert (await w.http.post(where, data={"color_depth": "many"})).status_code == 400
        assert (await w.read(session))["status"] == "pending"

    run(scene)


def test_a_hosted_session_takes_data_by_the_api_as_well() -> None:
    """What live tests of the .NET SDK saw: browser data decide it and the redirect is gone, app
    data make it unavailable, a fingerprint is accepted and changes nothing."""

    async def scene(w: World) -> None:
        session = await w.create("tok_frictionless", completion=HOSTED)
        answer = await w.fingerprint(session)
        assert (answer.status_code, *state(answer.json())) == (
            200,
            "pending",
            ["redirect_cardholder"],
        )
        answer = await w.put(session, "collect-data", MERCHANT)
        assert error(answer) == (422, "unprocessable_entity", ["channel_invalid"])
        answer = await w.collect(session)
        assert state(answer.json()) == ("approved", [])
        assert "redirect_url" not in answer.json()["_links"]
        assert error(await w.fingerprint(session)) == WRONG_STATE
        other = await w.create("tok_frictionless", completion=HOSTED)
        answer = await w.put(other, "collect-data", APP)
        assert state(answer.json()) == ("unavailable", [])

    run(scene)


# Webhooks


def signed(key: str, headers: dict[str, str], body: bytes) -> bool:
    expected = hmac.new(key.encode(), body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(headers["cko-signature"], expected)


def test_webhooks_are_signed_over_the_raw_body() -> None:
    """started, then approved, failed or expired; another body or key has another signature."""

    async def scene(w: World) -> None:
        async with shop() as there:
            order = {"url": f"{there.url}/hook", "key": "key-of-the-workflow"}
            answer = await w.http.post("/_sandbox/webhooks", json=order)
            assert (answer.status_code, answer.json()) == (201, {"urls": [order["url"]]})
            session = await w.create(channel_data=BROWSER)
            await there.until(2)
            await w.create("tok_decline", channel_data=BROWSER)
            await there.until(4)
            late = await challenged(w)
            await w.skew(300)
            await w.read(late)
            await there.until(6)
            events = []
            for _, headers, body in there.received:
                assert signed("key-of-the-workflow", headers, body)
                assert not signed("another", headers, body)
                assert not signed("key-of-the-workflow", headers, body + b" ")
                events.append(json.loads(body))
            assert sorted(event["type"] for event in events) == [
                "authentication_approved",
                "authentication_expired",
                "authentication_failed",
                *["authentication_started"] * 3,
            ]
            assert len({event["id"] for event in events}) == 6
            [approved] = [e for e in events if e["type"] == "authentication_approved"]
            assert approved["data"]["session_id"] == session["id"]
            assert (approved["data"]["amount"], approved["data"]["eci"]) == ("6540", "05")
            assert "cryptogram" not in approved["data"]
            [expired] = [e for e in events if e["type"] == "authentication_expired"]
            assert expired["data"]["reason"] == "ChallengeExpired"

    run(scene)


def test_webhooks_come_at_least_once() -> None:
    """Tried again until accepted, sent again on request under the same id; then no more."""

    async def scene(w: World) -> None:
        async with shop() as there:
            there.statuses = [500, 404, 200]
            await w.http.post("/_sandbox/webhooks", json={"url": f"{there.url}/h?q", "key": "k"})
            await w.create()
            await there.until(3)
            while len(attempts := await w.deliveries()) < 3:
                await asyncio.sleep(0.002)
            assert [a["status"] for a in attempts] == [500, 404, 200]
            assert {a["path"] for a in attempts} == {"/h"}
            [event_id] = {a["event_id"] for a in attempts}
            again = await w.http.post("/_sandbox/redeliver", json={"event_id": event_id})
            assert again.status_code == 202
            await there.until(4)
            assert len({body for _, _, body in there.received}) == 1
            assert json.loads(there.received[3][2])["id"] == event_id
            assert (await w.http.delete("/_sandbox/webhooks")).status_code == 204
            assert (await w.http.get("/_sandbox/webhooks")).json() == {"urls": []}
            await w.create()
            unknown = await w.http.post("/_sandbox/redeliver", json={"event_id": "evt_x"})
            assert unknown.status_code == 400
            assert len(there.received) == 4

    run(scene)


def test_a_webhook_that_nobody_takes_torments_nobody() -> None:
    """A dead target delays no answer, is given up after its retries, and says so in the list."""

    async def scene(w: World) -> None:
        session = await w.create(channel_data=BROWSER)
        assert session["status"] == "approved"
        while len(attempts := await w.deliveries()) < 8:
            await asyncio.sleep(0.002)
        assert {a["status"] for a in attempts} == {"ConnectError"}
        assert "secret-key" not in json.dumps(attempts)

    run(scene, checkout_webhooks={"http://127.0.0.1:1/hook": "secret-key"})


# Control


@pytest.mark.parametrize(
    ("path", "order"),
    [
        ("webhooks", {"url": "https://shop.example.test/", "key": "k"}),
        ("webhooks", {"url": "http://127.0.0.1/"}),
        ("webhooks", {"url": "http://127.0.0.1/", "key": ""}),
        ("redeliver", {}),
    ],
)
def test_a_faulty_order_is_refused(path: str, order: Any) -> None:
    """400 with a reason."""

    async def scene(w: World) -> None:
        answer = await w.http.post(f"/_sandbox/{path}", json=order)
        assert answer.status_code == 400
        assert answer.json()["error"]

    run(scene)


def test_any_status_can_be_forced() -> None:
    """What is final after a challenge can be completed; expired and unfinished cannot."""

    async def scene(w: World) -> None:
        session = await w.create()
        control = f"/_sandbox/sessions/{session['id']}"
        for status, actions in (
            ("expired", []),
            ("challenge_abandoned", ["complete"]),
            ("processing", []),
            ("challenged", ["challenge_cardholder"]),
            ("rejected", ["complete"]),
            ("pending", ["collect_channel_data"]),
        ):
            answer = await w.http.post(control, json={"status": status})
            assert (answer.status_code, answer.json()["status"]) == (200, status)
            assert state(await w.read(session)) == (status, actions)
        assert session["session_secret"] not in answer.text
        assert (await w.http.post(control, json={"status": "gone"})).status_code == 400
        assert (await w.http.get("/_sandbox/sessions/sid_x")).status_code == 404

    run(scene)


def test_calls_are_counted_and_faults_happen_to_each_operation() -> None:
    """Also to the one that waits: a fault spoils its reply, or keeps it from running at all."""

    async def scene(w: World) -> None:
        session = await w.create(channel_data=BROWSER)

        async def fault(operation: str, **options: Any) -> None:
            order = {"operation": operation, "times": 1, **options}
            assert (await w.http.post("/_sandbox/faults", json=order)).status_code == 201

        await fault("checkout.complete", kind="status", code=503, body={"broken": True})
        answer = await w.complete(session)
        assert (answer.status_code, answer.json()) == (503, {"broken": True})
        # The spoiler ran the honest endpoint first: it did happen.
        assert (await w.read(session))["completed"] is True
        other = await w.create(channel_data=BROWSER)
        await fault("checkout.complete", kind="latency", seconds=0.01)
        assert (await w.complete(other)).status_code == 204
        await fault("checkout.session-read", kind="set-fields", fields={"status": "declined"})
        assert (await w.read(session))["status"] == "declined"
        assert (await w.read(session))["status"] == "approved"
        calls = (await w.http.get("/_sandbox/calls")).json()
        assert (calls["checkout.session"], calls["checkout.complete"]) == (2, 2)
        assert calls["checkout.session-read"] == 3

    run(scene)


def test_what_is_unknown_is_still_the_406_of_a_wrong_prefix() -> None:
    """Anything else under /checkout/ answers with the HTML page."""

    async def scene(w: World) -> None:
        for path in ("/checkout/api/sessionz", f"{SESSIONS}/x/y", "/checkout/pay"):
            answer = await w.http.get(path, headers=w.bearer)
            assert answer.status_code == 406
            assert answer.headers["content-type"].startswith("text/html")

    run(scene)


@pytest.mark.parametrize(
    ("outcome", "status"), [("success", 200), ("failure", 200), ("3ds-return", 200), ("x", 404)]
)
def test_the_shop_believes_nothing_of_its_address(outcome: str, status: int) -> None:
    """Where hosted pages, challenges and 3DS methods lead back to shows no value of the query, nor
    of what is posted."""

    async def scene(world: World) -> None:
        back = f"/shop/{outcome}?cko-session-id=c4nary"
        for page in [
            await world.http.get(back),
            await world.http.post(back, data={"cres": "c4nary"}),
        ]:
            assert page.status_code == status
            assert_harmless(page)
            assert "c4nary" not in page.text

    run(scene)
