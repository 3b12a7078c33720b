"""Checkout.com through the broker: authentications from mint to result, by real pages over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker.sandbox.app import build
from broker.sandbox.settings import SandboxSettings
from tests.checkout import APP, BROWSER, MERCHANT
from tests.harness import broker, problem
from tests.pages import Browser, Sight, packed, unpacked
from tests.test_serving import DEADLINE, Process, process

NOT_FOR_PAGES = {
    "cryptogram", "eci", "xid", "card", "source", "number", "instrument_id", "expiry_month",
    "callback_url", "response_code", "amount", "reference", "approved",
}  # fmt: skip
"""Members that no answer to a page may have, at any depth."""


def until(said: Callable[[], Any]) -> Any:
    """Asks until the answer is true, for a bounded time."""
    last = time.monotonic() + DEADLINE
    while not (answer := said()):
        assert time.monotonic() < last
        time.sleep(0.01)
    return answer


class Running:
    """A broker process, the sandbox that it calls, and what can be seen of both from outside."""

    def __init__(self, told: Process, public: str, ops: str, sandbox: str) -> None:
        self.told = told
        self.public = public
        self.ops = ops
        self.sandbox = sandbox
        self.client = httpx2.Client(trust_env=False, timeout=DEADLINE)
        self._tokens: dict[str, str] = {}

    def token(self, who: str) -> str:
        """`user=…` or `client=…`: a credential of the development identity provider."""
        if who not in self._tokens:
            asked = f"{self.sandbox}/idp/token?{who}&lifetime=86400&format=text"
            self._tokens[who] = self.client.get(asked).text
        return self._tokens[who]

    def ask(self, who: str, path: str, body: Any, **fields: str) -> httpx2.Response:
        headers = {"authorization": f"Bearer {self.token(who)}", **fields}
        return self.client.post(f"{self.public}{path}", json=body, headers=headers)

    def order(self, path: str, body: Any = None) -> httpx2.Response:
        """Something said to the sandbox that no upstream understands."""
        answer = self.client.post(f"{self.sandbox}/_sandbox/{path}", json=body)
        assert answer.status_code < 300, answer.text
        return answer

    def calls(self) -> dict[str, int]:
        told: dict[str, int] = self.client.get(f"{self.sandbox}/_sandbox/calls").json()
        return told

    @contextlib.contextmanager
    def counted(self) -> Iterator[dict[str, int]]:
        """What was asked of Checkout.com meanwhile; nought is left out, and so are readings of
        sessions, which webhooks set off at any time (see `asked`)."""
        before, found = self.calls(), {}
        yield found
        for name, count in self.calls().items():
            if name.startswith("checkout.") and name != "checkout.session-read":
                found |= {name: count - before[name]} if count > before[name] else {}

    def asked(self, action: str) -> float:
        """How often an action was passed on to the upstream."""
        return self.samples("broker_upstream_requests_total", operation=f"action_{action}")

    @contextlib.contextmanager
    def fault(self, operation: str, kind: str, **options: Any) -> Iterator[None]:
        self.order("faults", {"operation": operation, "kind": kind, **options})
        try:
            yield
        finally:
            self.client.delete(f"{self.sandbox}/_sandbox/faults")

    @contextlib.contextmanager
    def later(self, seconds: float) -> Iterator[None]:
        """The sandbox's clock is ahead meanwhile."""
        self.order("clock", {"skew_seconds": seconds})
        try:
            yield
        finally:
            self.order("clock", {"skew_seconds": 0})

    def samples(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        text = self.client.get(f"{self.ops}/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def lines(self, event: str, **members: Any) -> list[dict[str, Any]]:
        """Lines of the process's output, up to now: a request is asked, and its own awaited."""
        mark = str(uuid.uuid4())
        self.client.get(f"{self.public}/nowhere", headers={"x-request-id": mark})
        self.told.line_with(mark)
        trees = [json.loads(line) for line in list(self.told.lines) if line.startswith('{"')]
        wanted = {"event": event, **members}.items()
        return [tree for tree in trees if all(tree.get(key) == value for key, value in wanted)]


@contextlib.contextmanager
def _browser() -> Iterator[Browser]:
    told = Browser()
    with told.client:
        yield told


class Page:
    """The shop's page of one signed-in person: what it is told is examined at every step."""

    def __init__(self, running: Running, browser: Browser, user: str = "ada") -> None:
        self.running = running
        self.browser = browser
        self.minted: dict[str, Any] = {}
        self._fields = {
            "authorization": f"Bearer {running.token(f'user={user}')}",
            "origin": running.public,
        }

    def _post(self, path: str, body: Any) -> httpx2.Response:
        url = f"{self.running.public}{path}"
        answer = self.browser.client.post(url, json=body, headers=self._fields)
        if answer.content and "flow" not in path:
            assert not NOT_FOR_PAGES & set(names(answer.json())), answer.text
            assert "/v1/callbacks" not in answer.text
        return answer

    def mint(self, profile: str, **parameters: Any) -> httpx2.Response:
        answer = self._post(f"/v1/profiles/{profile}/sessions", {"parameters": parameters})
        if answer.status_code in (201, 202):
            self.minted = answer.json()
        return answer

    def asks(self, action: str, data: Any = None, **members: Any) -> httpx2.Response:
        shown = {"handle": self.minted["handle"], **({"data": data} if data else {}), **members}
        return self._post(f"/v1/sessions/actions/{action}", shown)

    def act(self, action: str, data: Any = None, **members: Any) -> Any:
        answer = self.asks(action, data, **members)
        assert answer.status_code in (200, 204), answer.text
        return answer.json() if answer.content else None


def names(tree: Any) -> Iterator[str]:
    """Every member's name, however deep."""
    if isinstance(tree, dict):
        yield from tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for one in tree:
            yield from names(one)


@pytest.fixture(name="demo", scope="module")
def _demo() -> Iterator[Running]:
    ports = ("--port", "0", "--ops-port", "0", "--sandbox-port", "0")
    with process("demo", *ports, "--ready-fd", "1") as told:
        where = json.loads(told.line_with('"sandbox": '))
        running = Running(told, where["public"], where["ops"], where["sandbox"])
        with running.client:
            yield running
        assert told.end() == 0


@pytest.fixture(name="page")
def _page(demo: Running) -> Iterator[Page]:
    with _browser() as browser:
        yield Page(demo, browser)


# --- from mint to result ------------------------------------------------------------------------

Step = tuple[str, ...]
"""A status, and the next actions that came with it."""


@dataclass(frozen=True)
class Ending:
    """How an authentication goes. pressed: the button of the bank's page, if it is shown one;
    late: only after the challenge is over."""

    source: str
    steps: list[Step]
    hosted_steps: list[Step]
    pressed: str = ""
    late: bool = False
    told: dict[str, Any] = field(default_factory=dict)
    """What the page is told at the end, beside what it always is."""
    result: dict[str, Any] = field(default_factory=dict)
    """What the shop's own server is told besides."""
    acs: dict[str, Any] = field(default_factory=dict)

    @property
    def challenged(self) -> bool:
        return bool(self.pressed)

    @property
    def approved(self) -> bool:
        return self.steps[-1][0] == "approved"


ASKED = ("pending", "redirect_cardholder")
COLLECT = ("pending", "collect_channel_data")
CHALLENGE = ("challenged", "challenge_cardholder")
BOTH = (*COLLECT, "issuer_fingerprint")
METHOD = ("pending", "issuer_fingerprint")
PROVEN = {"response_code": "Y", "eci": "05", "cryptogram": ANY, "xid": ANY}
ENDINGS = {
    "frictionless": Ending(
        "tok_frictionless_method",
        [BOTH, METHOD, ("approved", "complete"), ("approved",)],
        [ASKED, ("approved",)],
        result=PROVEN,
    ),
    "challenged": Ending(
        "tok_challenge_method",
        [BOTH, METHOD, CHALLENGE, ("approved", "complete"), ("approved",)],
        [ASKED, ("approved",)],
        pressed="Approve",
        result=PROVEN,
    ),
    "declined": Ending(
        "tok_decline",
        [COLLECT, ("declined", "complete"), ("declined",)],
        [ASKED, ("declined",)],
        told={"status_reason": "ares_status", "cardholder_info": "Please contact your bank."},
        result={"response_code": "N", "response_status_reason": "01"},
    ),
    "abandoned": Ending(
        "tok_challenge",
        [COLLECT, CHALLENGE, ("challenge_abandoned", "complete"), ("challenge_abandoned",)],
        [ASKED, ("challenge_abandoned",)],
        pressed="Cancel",
        told={"status_reason": "rreq_status"},
        result={"response_code": "N", "response_status_reason": "26"},
        acs={"challenge_cancel_reason": "cardholder_cancel"},
    ),
    "expired": Ending(
        "tok_challenge",
        [COLLECT, CHALLENGE, ("expired",)],
        [ASKED, ("expired",)],
        pressed="Approve",
        late=True,
        told={"status_reason": "rreq_status"},
        result={"response_code": "N", "response_status_reason": "14"},
        acs={"challenge_cancel_reason": "challenge_timed_out"},
    ),
}


def _is_seen(page: Page, told: dict[str, Any]) -> None:
    """The 3DS method, as a page runs it in a hidden frame."""
    back = f"{page.running.public}/3ds-method"
    data = {"threeDSServerTransID": told["transaction_id"]}
    sight = page.browser.post(
        told["_links"]["three_ds_method_url"]["href"],
        {"threeDSMethodData": packed({**data, "threeDSMethodNotificationURL": back})},
    )
    assert (sight.status, sight.form.action) == (200, back)
    assert unpacked(sight.form.fields["threeDSMethodData"]) == data


def _is_challenged(page: Page, told: dict[str, Any]) -> Sight:
    """The bank's page, opened as EMV 3-D Secure says."""
    creq = {"creq": told["3ds"]["challenge_request"], "threeDSSessionData": "cart 5"}
    return page.browser.post(told["acs"]["url"], creq)


def _answers(page: Page, sight: Sight, ending: Ending) -> Sight:
    assert (sight.status, sight.title) == (200, "Confirm your payment")
    assert sight.form.buttons.keys() == {"Approve", "Fail", "Cancel"}
    with page.running.later(301) if ending.late else contextlib.nullcontext():
        return page.browser.submit(sight, ending.pressed)


def _is_redirected(page: Page, told: dict[str, Any], ending: Ending) -> None:
    """The hosted page from one end to the other, and back in the shop."""
    sight = page.browser.get(told["_links"]["redirect_url"]["href"])
    assert (sight.status, sight.title) == (200, "Authenticate your payment")
    sight = page.browser.submit(sight)
    if ending.challenged:
        sight = _answers(page, sight, ending)
    outcome = "success" if ending.approved else "failure"
    shop = f"{page.running.sandbox}/shop/{outcome}?to={page.running.public}"
    back = f"{shop}&cko-session-id={told['id']}"
    assert (sight.status, sight.location) == (303, back)
    assert page.browser.get(back).status == 200


def _goes_on(page: Page, told: dict[str, Any], ending: Ending) -> Any:
    """Does what the answer says is next. Gives what the page is told then."""
    match told["next_actions"][0]:
        case "collect_channel_data":
            return page.act("collect-data", {"channel_data": BROWSER})
        case "issuer_fingerprint":
            _is_seen(page, told)
            return page.act("issuer-fingerprint", {"three_ds_method_completion": "Y"})
        case "challenge_cardholder":
            onward = _answers(page, _is_challenged(page, told), ending)
            back = f"{page.running.sandbox}/shop/3ds-return?to={page.running.public}"
            assert (onward.status, onward.form.action) == (200, back)
            assert unpacked(onward.form.fields["cres"])["messageType"] == "CRes"
            assert page.browser.submit(onward).status == 200
        case "redirect_cardholder":
            _is_redirected(page, told, ending)
        case "complete":
            assert page.act("complete") is None
    return page.act("status")


def _seen_by_the_page(ending: Ending, *, hosted: bool) -> dict[str, Any]:
    """All that it is told at the end."""
    seen = {
        "id": ANY,
        "transaction_id": ANY,
        "status": ending.steps[-1][0],
        "next_actions": [],
        "completed": hosted or not ending.late,
        "challenged": ending.challenged,
        "protocol_version": "2.2.0",
        "scheme": "visa",
        "experience": "3ds",
        "acs": {"reference_number": "SANDBOX.ACS 17 0001", "transaction_id": ANY},
        "ds": {
            "ds_id": "A000000003",
            "reference_number": "SANDBOX.DS 17 0001",
            "transaction_id": ANY,
        },
        **ending.told,
    }
    if ending.challenged:
        seen["acs"]["url"] = ANY
        seen["3ds"] = {"challenge_request": ANY, "interaction_counter": "01"}
    if not hosted:
        seen["certificates"] = {"ds_public": ANY, "ca_public": ANY, "ca_public_all": [ANY]}
    return seen


def _seen_by_the_shop(ending: Ending, *, hosted: bool) -> dict[str, Any]:
    """All that a server is told that may know how it went."""
    seen = _seen_by_the_page(ending, hosted=hosted)
    return {
        **seen,
        **ending.result,
        "approved": ending.approved,
        "amount": 6540,
        "currency": "GBP",
        "reference": ANY,
        "authentication_type": "regular",
        "authentication_category": "payment",
        "authentication_date": ANY,
        "challenge_indicator": "no_preference",
        "flow_type": "challenged" if ending.challenged else "frictionless",
        "scheme_info": {"name": "visa", "score": "12"},
        "card": {"instrument_id": ANY},
        "acs": {**seen["acs"], "challenge_mandated": ending.challenged, **ending.acs},
    }


@pytest.mark.parametrize("hosted", [False, True], ids=["by-actions", "hosted"])
@pytest.mark.parametrize("name", ENDINGS)
def test_an_authentication_from_mint_to_result(page: Page, name: str, hosted: bool) -> None:
    """A page that does what it is told is next gets to the end, and is told the status there. At
    no step does it see, by itself or through the pages it opens, what only the shop's own server
    may: which shows the same handle and is told all of it."""
    ending, running = ENDINGS[name], page.running
    minted = page.mint(
        "checkout-3ds-hosted" if hosted else "checkout-3ds",
        source={"type": "token", "token": ending.source},
    )
    assert minted.status_code == 202
    told = minted.json()["output"]
    session, secret = told["id"], told.pop("session_secret")
    assert secret == minted.json()["session_token"]
    steps = [(told["status"], *told["next_actions"])]
    while told["next_actions"] and len(steps) < 9:
        told = _goes_on(page, told, ending)
        steps.append((told["status"], *told["next_actions"]))
    assert steps == (ending.hosted_steps if hosted else ending.steps)
    assert told == _seen_by_the_page(ending, hosted=hosted)
    assert told["id"] == session
    assert page.act("status", session_token=secret) == told
    shown = {"handle": page.minted["handle"]}
    result = running.ask("client=shop-backend", "/v1/sessions/actions/status", shown)
    assert result.status_code == 200
    known = result.json()
    assert known == _seen_by_the_shop(ending, hosted=hosted)
    assert {**known, **told, "acs": known["acs"]} == known
    hidden = [known[name] for name in ("cryptogram", "xid") if name in known]
    hidden.append(known["card"]["instrument_id"])
    assert len(hidden) == (3 if ending.approved else 1)
    assert len(page.browser.heard) >= len(steps) + 2
    for one in [*hidden, ending.source]:
        assert not [told for told in page.browser.heard if one in told]
    (line,) = running.lines("result", session=session)
    assert (line["state"], line["profile"]) == (steps[-1][0], minted.json()["profile"])
    for one in [*hidden, secret, page.minted["handle"]]:
        assert not [line for line in running.told.lines if one in line]


@pytest.mark.parametrize("spelling", ["redirect", "redirect_url"])
def test_the_redirect_in_either_spelling(page: Page, spelling: str) -> None:
    """The page finds it in one place, whichever of the two the upstream's answer has."""
    minted = page.mint("checkout-3ds-hosted", source={"type": "token", "token": "tok_challenge"})
    told = minted.json()["output"]["_links"]
    assert told == {"redirect_url": {"href": ANY}}
    links = {spelling: told["redirect_url"], "callback_url": {"href": "https://shop.example/v1"}}
    with page.running.fault("checkout.session-read", "set-fields", fields={"_links": links}):
        assert page.act("status")["_links"] == told


# --- what is asked for, and what is answered ----------------------------------------------------


@pytest.mark.parametrize(
    ("source", "channel", "status", "step"),
    [
        ({"type": "token", "token": "tok_frictionless"}, None, 202, COLLECT),
        ({"type": "token", "token": "tok_frictionless"}, BROWSER, 201, ("approved", "complete")),
        ({"type": "token", "token": "tok_challenge_method"}, BROWSER, 202, METHOD),
        ({"type": "id", "id": "src_challenge"}, BROWSER, 201, CHALLENGE),
        ({"type": "id", "id": "src_frictionless_method"}, None, 202, BOTH),
        (
            {"type": "network_token", "token": "4000000000003030", "expiry_month": 1, "expiry_year": 2030},
            BROWSER,
            201,
            ("declined", "complete"),
        ),
        ({"type": "token", "token": "tok_challenge"}, APP, 201, CHALLENGE),
    ],
)  # fmt: skip
def test_created_or_accepted(
    page: Page, source: dict[str, Any], channel: Any, status: int, step: Step
) -> None:
    """The page sees which of the two the upstream said: 201 for a session that is decided or
    challenged, 202 for one that waits. Three kinds of source may come from a page."""
    given = {"channel_data": channel} if channel else {}
    answer = page.mint("checkout-3ds", source=source, **given)
    assert answer.status_code == status
    told = answer.json()["output"]
    assert (told["status"], *told["next_actions"]) == step


@pytest.mark.parametrize(
    ("channel", "source", "step"),
    [
        (BROWSER, "tok_challenge", CHALLENGE),
        (APP, "tok_challenge", CHALLENGE),
    ],
)
def test_each_channel(page: Page, channel: dict[str, Any], source: str, step: Step) -> None:
    """Browser and app: whoever is there can be told of after the mint."""
    page.mint("checkout-3ds", source={"type": "token", "token": source})
    told = page.act("collect-data", {"channel_data": channel})
    assert (told["status"], *told["next_actions"]) == step
    if step == CHALLENGE:  # without which an app's SDK can do nothing
        assert ("signed_content" in told["acs"]) == (channel is APP)


@pytest.mark.parametrize(
    ("parameters", "at"),
    [
        ({"source": {"type": "card", "number": "4242424242424242", "expiry_month": 1, "expiry_year": 2030}}, "/parameters"),
        ({"source": {"type": "token", "token": "tok_frictionless"}, "amount": 1}, "/parameters"),
        ({"source": {"type": "token", "token": "tok_frictionless"}, "channel_data": {**BROWSER, "ip_address": "192.0.2.7"}}, "/parameters/channel_data"),
        ({}, "/parameters/source"),
    ],
)  # fmt: skip
def test_what_a_page_may_not_say(page: Page, parameters: dict[str, Any], at: str) -> None:
    """A card's number, the amount, where it is: refused before anything is asked of the upstream,
    and what it said is in no line of the process's output."""
    with page.running.counted() as calls:
        answer = page.mint("checkout-3ds", **parameters)
    assert (answer.status_code, problem(answer)) == (422, "invalid-parameters")
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [at]
    assert calls == {}
    assert page.running.lines("request", problem="invalid-parameters")
    for line in page.running.told.lines:
        assert "4242424242424242" not in line


def test_a_page_cannot_say_that_nobody_is_there(page: Page) -> None:
    """With the merchant-initiated channel nobody would be challenged: it needs a yes in words, at
    the mint and at collect-data."""
    source = {"type": "token", "token": "tok_challenge"}
    with page.running.counted() as calls:
        answer = page.mint("checkout-3ds", source=source, channel_data=MERCHANT)
    assert (answer.status_code, problem(answer), calls) == (422, "invalid-parameters", {})
    assert answer.json()["errors"][0]["pointer"] == "/parameters"
    page.mint("checkout-3ds", source=source)
    answer = page.asks("collect-data", {"channel_data": MERCHANT})
    assert (answer.status_code, problem(answer)) == (422, "invalid-parameters")
    assert answer.json()["errors"][0]["pointer"] == "/data"


def test_a_token_that_was_good_again_may_be_revoked_again(page: Page) -> None:
    """Two refusals in a row keep the token endpoint from being hammered only until a token is
    taken: what is revoked after that is renewed as ever."""
    source = {"type": "token", "token": "tok_challenge"}
    with page.running.fault("checkout.session", "status", code=401, times=2):
        assert page.mint("checkout-3ds", source=source).status_code == 502
    assert page.mint("checkout-3ds", source=source).status_code == 202
    page.running.order("revoke")
    assert page.mint("checkout-3ds", source=source).status_code == 202


def test_an_action_has_no_ear_for_what_the_broker_sees_itself(page: Page) -> None:
    """Address, browser and Accept field of the cardholder are not the page's to say."""
    page.mint("checkout-3ds", source={"type": "token", "token": "tok_frictionless"})
    with page.running.counted() as calls:
        for name in ("ip_address", "user_agent", "accept_header"):
            answer = page.asks("collect-data", {"channel_data": {**BROWSER, name: "192.0.2.7"}})
            assert (answer.status_code, problem(answer)) == (422, "invalid-parameters")
            assert answer.json()["errors"][0]["pointer"] == "/data/channel_data"
    assert calls == {}


# --- in this process: what passes between broker and upstream ------------------------------------

IN_HERE = """
keys: {env: SEAL}
callers:
  shop-users:
    {type: jwt, issuer: shop-backend, audience: token-broker, shared_secret: {env: ISSUER_KEY}}
credentials:
  checkout:
    token_url: http://127.0.0.1:1/checkout/access/connect/token
    client_id: {env: ID}
    client_secret: {env: SECRET}
    scope: ["sessions:browser", payment-sessions]
profiles:
  authentication:
    preset: checkout/3ds
    credential: checkout
    base_url: http://127.0.0.1:1/checkout/api
    currency: GBP
    source: {type: token, token: tok_frictionless}
    channel_data: ${parameters.channel_data}
    completion: {type: non_hosted}
    parameters: {channel_data: {like: channel_data}}
    allow: {callers: [shop-users]}
  embedded:
    preset: checkout/flow
    credential: checkout
    base_url: http://127.0.0.1:1/checkout/api
    amount: 6540
    currency: GBP
    billing: {address: {country: GB}}
    success_url: https://shop.example/paid
    failure_url: https://shop.example/not-paid
    ip_address: ${request.ip}
    session_lifetime: 20m
    allow: {callers: [shop-users]}
"""
IN_HERE_ENV = {"ID": "ack_sandbox", "SECRET": "sandbox+secret/with=chars=="}


class Recording:
    """The sandbox, in this process, with all that passes written down. awkward: what it says of
    Flow in place of its own."""

    def __init__(self, awkward: bytes | None = None) -> None:
        noon = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
        app = build(SandboxSettings(clock=lambda: noon))
        self._client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app))  # type: ignore[arg-type]
        self._awkward = awkward
        self.passed: list[tuple[str, httpx2.Request, bytes]] = []

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        answer = await self._client.send(request)
        body = answer.content
        if self._awkward is not None and "/payment-sessions" in str(request.url):
            body = self._awkward
        self.passed.append((request.url.path, request, body))
        kept = {name: answer.headers[name] for name in ("content-type", "date")}
        return httpx2.Response(answer.status_code, content=body, headers=kept)

    def to(self, end: str) -> list[tuple[httpx2.Request, bytes]]:
        return [(request, body) for path, request, body in self.passed if path.endswith(end)]


def test_what_only_the_broker_sees_of_a_browser() -> None:
    """Its address, its name and what it accepts are put in as they were observed, in a mint and in
    `collect-data`; and nothing else is."""

    async def run() -> None:
        upstream = Recording()
        seen = {"user_agent": "Mozilla/5.0 (a phone)", "accept": "text/html, */*;q=0.8"}
        observed = {
            **BROWSER,
            "ip_address": "192.0.2.1",
            "user_agent": seen["user_agent"],
            "accept_header": seen["accept"],
        }
        async with broker(IN_HERE, upstream, env=IN_HERE_ENV) as app:  # type: ignore[arg-type]
            given = {"parameters": {"channel_data": BROWSER}}
            assert (await app.mint(given, "authentication", **seen)).status_code == 201
            minted = await app.mint({}, "authentication")
            act = {"handle": minted.json()["handle"], "data": {"channel_data": BROWSER}}
            path = "/v1/sessions/actions/collect-data"
            assert (await app.post(path, act, **seen)).status_code == 200
        (created, _), (bare, _) = upstream.to("/sessions")
        assert json.loads(created.content)["channel_data"] == observed
        assert "channel_data" not in json.loads(bare.content)
        ((collected, _),) = upstream.to("/collect-data")
        assert json.loads(collected.content) == observed

    asyncio.run(run())


AWKWARD = (
    rb' { "id":"ps_1", "payment_session_token" : "tok", "n":[1.10,-0.0,1E400,0.1e-7,'
    rb'123456789012345678901234567890, 1.0000000000000000000001], "":{"a\/b~":null,"b":[[],{}]},'
    rb'"\u00e9\/":"\ud83d\ude00 \u0000", "session_token":"<\/script>", "expires_on":"never" }'
    b"\r\n"
)


def exactly(text: str | bytes) -> Any:
    """JSON with numbers as they are spelt and members in their order."""
    return json.loads(text, parse_int=str, parse_float=str, object_pairs_hook=list)


@pytest.mark.parametrize("awkward", [None, AWKWARD], ids=["the-sandbox", "awkward"])
def test_the_answer_of_flow_is_passed_on(awkward: bytes | None) -> None:
    """Mint and `submit` give the upstream's answer itself: members that nobody knows, their order
    and the spelling of every number included; and the session's end is asked for."""

    async def run() -> None:
        upstream = Recording(awkward)
        async with broker(IN_HERE, upstream, env=IN_HERE_ENV) as app:  # type: ignore[arg-type]
            minted = await app.mint({}, "embedded")
            act = {"handle": minted.json()["handle"], "data": {"session_data": "sandbox-approved"}}
            submitted = await app.post("/v1/sessions/actions/submit", act)
        ((request, said),) = upstream.to("/payment-sessions")
        assert minted.status_code == 201
        assert dict(exactly(minted.content))["output"] == exactly(said)
        assert len(exactly(said)) >= 7
        assert json.loads(request.content) == {
            "amount": 6540,
            "currency": "GBP",
            "billing": {"address": {"country": "GB"}},
            "success_url": "https://shop.example/paid",
            "failure_url": "https://shop.example/not-paid",
            "ip_address": "192.0.2.1",
            "expires_on": "2026-11-20T12:20:00Z",
        }
        assert minted.json()["expires_at"] == "2026-11-20T12:20:00Z"
        if awkward is not None:  # the sandbox knows no session of that name
            return
        ((request, said),) = upstream.to("/submit")
        assert submitted.status_code == 201
        assert submitted.content == said
        told = {"session_data": "sandbox-approved", "ip_address": "192.0.2.1"}
        assert json.loads(request.content) == told

    asyncio.run(run())


# --- Flow over HTTP -----------------------------------------------------------------------------


def test_flow_between_processes(page: Page) -> None:
    """The component gets the session whole over HTTP, too; what it submits is answered 201 or 202
    with the upstream's own words."""
    minted = page.mint("checkout-flow")
    assert minted.status_code == 201
    told = minted.json()["output"]
    assert told["id"].startswith("ps_")
    assert told["payment_session_secret"].startswith("pss_")
    assert told["payment_session_token"] == minted.json()["session_token"]
    spelt = dict(dict(exactly(minted.content))["output"])
    assert [spelt[name] for name in ("amount_display", "ledger_sequence", "tiny", "precise")] == [
        "1.10", "36893488147419103233", "-0.0", "1.0E+2",
    ]  # fmt: skip
    assert spelt["x-flow.experiments/ab~test"] == [
        ("arm-1", []),
        ("weights", ["0.10", [], None, True]),
    ]
    data = {
        "sandbox-approved": (201, "Approved"),
        "sandbox-action-required": (202, "Action Required"),
    }
    for said, (status, outcome) in data.items():
        answer = page.asks("submit", {"session_data": said})
        assert (answer.status_code, answer.json()["status"]) == (status, outcome)
        assert answer.json()["type"] == "card"
    wrong = page.asks("submit", {"session_data": "made up"})
    assert (wrong.status_code, problem(wrong)) == (422, "invalid-parameters")


def test_flow_ends_when_it_was_said_to(page: Page) -> None:
    """The upstream was told the end that the broker tells: a second before it takes a payment, at
    it no more."""
    minted = page.mint("checkout-flow").json()
    assert 1790 < minted["expires_in"] <= 1800
    ends = datetime.fromisoformat(minted["expires_at"]).timestamp() - time.time()
    with page.running.later(ends - 20):
        assert page.asks("submit", {"session_data": "sandbox-declined"}).status_code == 201
    with page.running.later(ends + 1):
        answer = page.asks("submit", {"session_data": "sandbox-approved"})
        assert (answer.status_code, problem(answer)) == (410, "handle-expired")


# --- a revoked token ----------------------------------------------------------------------------


def test_a_revoked_access_token_costs_one_token_request_and_no_mint(demo: Running) -> None:
    """Forty pages mint without a pause while the upstream forgets every token it gave: each mint is
    answered with its session, and the token endpoint is asked once more."""
    url = f"{demo.public}/v1/profiles/checkout-3ds/sessions"
    headers = {"authorization": f"Bearer {demo.token('user=ada')}"}
    body = {"parameters": {"source": {"type": "token", "token": "tok_frictionless"}}}

    async def run() -> list[int]:
        statuses: list[int] = []
        revoked_at: list[int] = []
        limits = httpx2.Limits(max_connections=100, max_keepalive_connections=100)
        async with httpx2.AsyncClient(trust_env=False, timeout=DEADLINE, limits=limits) as client:

            async def mints() -> None:
                while not revoked_at or len(statuses) < revoked_at[0] + 160:
                    answer = await client.post(url, json=body, headers=headers)
                    statuses.append(answer.status_code)

            async def revokes() -> None:
                while len(statuses) < 40:
                    await asyncio.sleep(0.001)
                await client.post(f"{demo.sandbox}/_sandbox/revoke")
                revoked_at.append(len(statuses))

            await asyncio.gather(revokes(), *(mints() for _ in range(40)))
        return statuses

    demo.ask("user=ada", "/v1/profiles/checkout-3ds/sessions", body)  # so that a token is held
    with demo.counted() as calls:
        statuses = asyncio.run(run())
    assert set(statuses) == {202}
    assert calls["checkout.token"] == 1
    # What was refused was asked again, and the revocation did meet some.
    assert len(statuses) < calls["checkout.session"] <= len(statuses) + 40


def test_a_revoked_access_token_costs_no_action_either(page: Page) -> None:
    """In the middle of an authentication: the page notices nothing."""
    page.mint("checkout-3ds", source={"type": "token", "token": "tok_challenge_method"})
    page.running.order("revoke")
    told = page.act("collect-data", {"channel_data": BROWSER})
    page.running.order("revoke")
    told = page.act("issuer-fingerprint", {"three_ds_method_completion": "Y"})
    assert told["status"] == "challenged"
    page.running.order("revoke")
    assert page.act("status") == told


# --- several at once, in the wrong order, by the wrong one ---------------------------------------


def test_actions_side_by_side(page: Page) -> None:
    """Two clicks and a poll at the same time: each is answered, none with a conflict."""
    page.mint("checkout-3ds", source={"type": "token", "token": "tok_challenge_method"})
    todo: list[tuple[str, Any]] = [("status", None)] * 5
    todo.insert(2, ("collect-data", {"channel_data": BROWSER}))
    with ThreadPoolExecutor(len(todo)) as pool:
        answers = list(pool.map(lambda one: page.asks(*one), todo))
    assert {answer.status_code for answer in answers} == {200}
    assert page.act("status")["next_actions"] == ["issuer_fingerprint"]


def test_the_wrong_moment(page: Page) -> None:
    """What the session's state does not allow is told as that, and changes nothing."""
    page.mint("checkout-3ds", source={"type": "token", "token": "tok_challenge"})
    for action, data in [
        ("complete", None),
        ("issuer-fingerprint", {"three_ds_method_completion": "N"}),
    ]:
        answer = page.asks(action, data)
        assert (answer.status_code, problem(answer)) == (409, "action-not-allowed")
    page.act("collect-data", {"channel_data": BROWSER})
    again = page.asks("collect-data", {"channel_data": BROWSER})
    assert (again.status_code, problem(again)) == (409, "action-not-allowed")
    assert page.act("status")["status"] == "challenged"
    unknown = page.asks("refund")
    assert (unknown.status_code, problem(unknown)) == (409, "action-not-allowed")


def test_complete_is_done_though_the_callback_failed(page: Page) -> None:
    """The upstream says that nobody took its callback: the session is completed all the same, and
    so the page is told."""
    page.mint("checkout-3ds", source={"type": "token", "token": "tok_frictionless"})
    page.act("collect-data", {"channel_data": BROWSER})
    body = {"error_type": "callback_failed", "error_codes": ["session_callback_failed"]}
    with page.running.fault("checkout.complete", "status", code=502, body=body):
        assert page.act("complete") is None
    told = page.act("status")
    assert (told["completed"], told["next_actions"]) == (True, [])


def test_a_session_that_somebody_else_works_on(page: Page) -> None:
    """A conflict that is none of our doing is waited out; one that does not end is told as an
    upstream that cannot answer now, and not as a conflict."""
    page.mint("checkout-3ds", source={"type": "token", "token": "tok_challenge_method"})
    body = {"error_type": "duplicate_requests_detected", "error_codes": ["session_already_in_use"]}
    busy = {"code": 409, "body": body}
    asked = "broker_upstream_requests_total"
    labels = {"operation": "action_status", "outcome": "unavailable"}
    before = page.running.samples(asked, **labels)
    page.running.order("faults", {"operation": "checkout.session-read", "kind": "status", **busy})
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(page.act, "status")
        until(lambda: page.running.samples(asked, **labels) > before)
        page.running.client.delete(f"{page.running.sandbox}/_sandbox/faults")
        assert asking.result()["status"] == "pending"
    with page.running.fault("checkout.session-read", "status", **busy):
        answer = page.asks("status")
    assert (answer.status_code, problem(answer)) == (503, "upstream-unavailable")


def test_somebody_elses_handle(page: Page) -> None:
    """Another person may do nothing with it; the trusted server may read, and nothing else, and
    not from a browser."""
    page.mint("checkout-3ds", source={"type": "token", "token": "tok_frictionless"})
    shown = {"handle": page.minted["handle"]}
    running, asked = page.running, page.running.asked("status")
    with running.counted() as calls:
        for action in ("status", "complete"):
            answer = running.ask("user=bob", f"/v1/sessions/actions/{action}", shown)
            assert (answer.status_code, problem(answer)) == (403, "not-permitted")
        answer = running.ask("client=shop-backend", "/v1/sessions/actions/complete", shown)
        assert (answer.status_code, problem(answer)) == (409, "action-not-allowed")
        path = "/v1/sessions/actions/status"
        answer = running.ask("client=shop-backend", path, shown, origin=running.public)
        assert (answer.status_code, problem(answer)) == (403, "not-permitted")
    assert (calls, running.asked("status")) == ({}, asked)
    assert running.ask("client=shop-backend", path, shown).status_code == 200


def test_the_sessions_own_secret(page: Page) -> None:
    """It is sent raw in place of our token, opens its own session and no other, and is no use once
    wrong."""
    page.mint("checkout-3ds", source={"type": "token", "token": "tok_decline"})
    others = page.minted["session_token"]
    page.mint("checkout-3ds", source={"type": "token", "token": "tok_challenge"})
    mine = page.minted["session_token"]
    told = page.act("collect-data", {"channel_data": BROWSER}, session_token=mine)
    assert told["status"] == "challenged"
    assert "certificates" not in told  # which the upstream shows to our own token only
    assert "certificates" in page.act("status")
    for wrong in (others, f"Bearer {mine}", f"{mine[:-2]}x=", "sek_none"):
        answer = page.asks("status", session_token=wrong)
        assert (answer.status_code, problem(answer)) == (410, "handle-expired")
    assert page.act("status", session_token=mine)["status"] == "challenged"


# --- callbacks and webhooks ---------------------------------------------------------------------


def test_callbacks_and_webhooks_arrive(page: Page) -> None:
    """Nobody asks for the status: the upstream's callback sets off the reading, and the result is
    told to the audit log once, however often webhook, page and shop come back to it."""
    running = page.running

    def called(kind: str, outcome: str) -> float:
        name = "broker_callbacks_total"
        return running.samples(name, profile="checkout-3ds", kind=kind, outcome=outcome)

    page.mint("checkout-3ds", source={"type": "token", "token": "tok_frictionless"})
    session = page.minted["output"]["id"]
    page.act("collect-data", {"channel_data": BROWSER})
    verified, refused = called("hint", "verified"), called("event", "refused")
    page.act("complete")
    until(lambda: called("hint", "verified") > verified)
    (line,) = running.lines("result", session=session)
    assert (line["state"], line["source"]) == ("approved", "callback")
    asked = running.asked("status")
    assert page.act("status")["completed"] is True
    shown = {"handle": page.minted["handle"]}
    result = running.ask("client=shop-backend", "/v1/sessions/actions/status", shown)
    assert result.json()["response_code"] == "Y"
    assert len(result.json()["cryptogram"]) == 28
    assert running.asked("status") == asked  # it is final, and known
    sent = running.client.get(f"{running.sandbox}/_sandbox/deliveries").json()["deliveries"]
    assert [one["status"] for one in sent if one["event_id"] == session] == [204]
    approved = [one for one in sent if one["kind"] == "authentication_approved"]
    event = [one["event_id"] for one in approved if one["status"] == 204][-1]
    duplicates = called("event", "duplicate")
    running.order("redeliver", {"event_id": event})
    until(lambda: called("event", "duplicate") > duplicates)
    assert called("event", "refused") == refused
    assert len(running.lines("result", session=session)) == 1


def test_a_webhook_is_believed_by_its_signature_only(demo: Running) -> None:
    """Signed by somebody else it is refused."""
    url = f"{demo.public}/v1/callbacks/checkout-3ds"
    body = {"id": "evt_1", "data": {"session_id": "sid_" + "a" * 26}}
    with demo.counted() as calls:
        forged = demo.client.post(url, json=body, headers={"cko-signature": "0" * 64})
        assert (forged.status_code, problem(forged)) == (401, "unauthenticated")
    assert calls == {}


# --- a broker of our own on the same sandbox ----------------------------------------------------

OWN = """
server:
  public: {host: 127.0.0.1, port: 0}
  ops: {host: 127.0.0.1, port: 0}
keys: {env: SEAL}
callers:
  shop-users: {type: jwt, issuer: SANDBOX/idp, audience: token-broker}
credentials:
  checkout:
    token_url: SANDBOX/checkout/access/connect/token
    client_id: {env: ID}
    client_secret: {env: SECRET}
    scope: ["sessions:browser"]
profiles:
  slow:
    preset: checkout/3ds
    credential: checkout
    base_url: SANDBOX/checkout/api
    currency: GBP
    source: {type: token, token: tok_frictionless}
    completion: {type: non_hosted, callback_url: CALLBACK}
    allow: {callers: [shop-users]}
  unattended:
    preset: checkout/3ds
    credential: checkout
    base_url: SANDBOX/checkout/api
    amount: 100
    currency: GBP
    authentication_type: recurring
    source: ${parameters.source}
    allow_merchant_initiated: true
    channel_data: {channel: merchant_initiated, request_type: recurring_transaction}
    completion: {type: non_hosted}
    parameters: {source: {like: source, required: true}}
    allow: {callers: [shop-users]}
  cards:
    preset: checkout/issuing
    client_id: {env: ID}
    client_secret: {env: SECRET}
    base_url: SANDBOX/checkout/api
    cardholder_id: crh_${claims.merchant_id}aaaaaaaaaaaaaaaaa
    allow: {callers: [shop-users]}
"""


class Shop(http.server.ThreadingHTTPServer):
    """Takes callbacks, and lets whoever posts them wait until `go` is set."""

    def __init__(self) -> None:
        self.taken = threading.Event()
        self.go = threading.Event()
        super().__init__(("127.0.0.1", 0), _ShopHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/callback"


class _ShopHandler(http.server.BaseHTTPRequestHandler):
    server: Shop

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.taken.set()
        self.server.go.wait(DEADLINE)
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(name="shop", scope="module")
def _shop() -> Iterator[Shop]:
    with Shop() as shop:
        thread = threading.Thread(target=shop.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield shop
        shop.go.set()
        shop.shutdown()
        thread.join(DEADLINE)


@pytest.fixture(name="own", scope="module")
def _own(demo: Running, shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path: Path = tmp_path_factory.mktemp("own") / "broker.yaml"
    path.write_text(OWN.replace("SANDBOX", demo.sandbox).replace("CALLBACK", shop.url))
    env = {"SEAL": "s" * 32, **IN_HERE_ENV}
    with process("serve", "-c", str(path), env=env) as told:
        running = Running(told, *told.ready(), demo.sandbox)
        with running.client:
            yield running
        assert told.end() == 0


def test_what_comes_while_a_session_is_busy_waits(own: Running, shop: Shop) -> None:
    """While `complete` waits for the callback, which is when the upstream refuses other actions,
    these wait their turn: the upstream is asked each once, and says nothing of a session in use.
    Readings wait for nobody."""
    minted = own.ask("user=ada", "/v1/profiles/slow/sessions", {}).json()
    handle, session = minted["handle"], minted["output"]["id"]

    def act(action: str, **more: Any) -> tuple[int, str]:
        mark = str(uuid.uuid4())
        shown = {"handle": handle, **more}
        path = f"/v1/sessions/actions/{action}"
        return own.ask("user=ada", path, shown, **{"x-request-id": mark}).status_code, mark

    assert act("collect-data", data={"channel_data": BROWSER})[0] == 200
    with own.counted() as calls, ThreadPoolExecutor(8) as pool:
        first = pool.submit(act, "complete")
        assert shop.taken.wait(DEADLINE)
        busy = own.client.get(f"{own.sandbox}/_sandbox/sessions/{session}").json()
        assert busy["busy"] is True
        second = pool.submit(act, "complete")
        reads = [pool.submit(act, "status") for _ in range(5)]
        assert [read.result()[0] for read in reads] == [200] * 5
        until(lambda: own.samples("broker_requests_in_flight") == 2)
        shop.go.set()
        assert first.result()[0] == 204
        status, mark = second.result()
    # It was there first, and there is nothing left to complete.
    assert status == 409
    (line,) = own.lines("request", request_id=mark)
    assert line["problem"] == "action-not-allowed"
    assert line["cause"].startswith("status 403: update_not_allowed_due_to_state")
    assert calls["checkout.complete"] == 2
    assert not [line for line in own.told.lines if "session_already_in_use" in line]


def test_a_cardholder_gets_a_token_for_their_own_cards(own: Running) -> None:
    """The cardholder is who the claims say, the token is for one use; who has no such claim gets
    none, and nothing is asked for them."""
    with own.counted() as calls:
        answer = own.ask("user=ada", "/v1/profiles/cards/sessions", {})
    assert answer.status_code == 201
    told = answer.json()
    assert calls["checkout.cardholder-token"] == 1
    assert told["output"] == {"accessToken": told["session_token"], "expiresAt": ANY}
    claims = unpacked(told["session_token"].split(".")[1])
    assert claims["cardholder_id"] == "crh_100200300" + "a" * 17
    assert claims["single_use"] is True
    assert 890 < told["expires_in"] <= 900
    assert abs(told["output"]["expiresAt"] / 1000 - claims["exp"]) < 5
    bob = own.ask("user=bob", "/v1/profiles/cards/sessions", {}).json()["session_token"]
    assert unpacked(bob.split(".")[1])["cardholder_id"] == "crh_100200301" + "a" * 17
    with own.counted() as calls:
        nobody = own.ask("user=eve", "/v1/profiles/cards/sessions", {})
        assert (nobody.status_code, problem(nobody)) == (403, "not-permitted")
        chosen = {"parameters": {"cardholder_id": "crh_" + "b" * 26}}
        wished = own.ask("user=ada", "/v1/profiles/cards/sessions", chosen)
        assert (wished.status_code, problem(wished)) == (422, "invalid-parameters")
    assert "checkout.cardholder-token" not in calls


@pytest.mark.parametrize(
    ("source", "status"), [("src_frictionless", "approved"), ("src_challenge", "unavailable")]
)
def test_a_payment_without_its_cardholder(own: Running, source: str, status: str) -> None:
    """A profile that says so authenticates with nobody there: decided at once, never challenged."""
    said = {"parameters": {"source": {"type": "id", "id": source}}}
    answer = own.ask("user=ada", "/v1/profiles/unattended/sessions", said)
    assert answer.status_code == 201
    output = answer.json()["output"]
    assert (output["status"], output["next_actions"]) == (status, ["complete"])
