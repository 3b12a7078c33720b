"""How a request is filled and sent: whose credential it carries, and what may stand where."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx2
import pytest

from broker.errors import BrokerError, Fault, UpstreamNonsense, UpstreamTimeout
from broker.presets import load_preset, packaged
from broker.presets.vocabulary import Request
from broker.snapshot import secret_refs
from broker.upstreams.transport import Answer, BrokenOff, NotSent
from tests.checkout import BROWSER, SID, Shop, config, faults, progress, refusal, shop, tree
from tests.harness import ORIGIN, problem
from tests.support import settle


def run(story: Any, text: str | None = None, **options: Any) -> None:
    async def whole() -> None:
        async with shop(text, **options) as s:
            await story(s)

    asyncio.run(whole())


# --- the session's own token


def test_the_sessions_own_token_goes_raw() -> None:
    """In place of our credential, without `Bearer`, and no access token is asked for."""

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        await s.told.clock.advance(400)
        tokens = s.upstream.tokens
        answer = await s.act("status", handle, session_token="sek_raw+/=")
        assert answer.json() == progress(sid, "pending", "collect_channel_data")
        (request,) = s.upstream.requests
        assert request.headers.get_list("authorization") == ["sek_raw+/="]
        assert s.upstream.tokens == tokens
        assert "sek_raw" not in json.dumps(s.told.audit)

    run(story)


@pytest.mark.parametrize("action", ["status", "collect-data", "issuer-fingerprint", "complete"])
def test_a_refused_session_token_is_the_end_of_the_session(action: str) -> None:
    """401 with it is `handle-expired`: our own credential is not tried, nor renewed."""
    data = {
        "collect-data": {"channel_data": BROWSER},
        "issuer-fingerprint": {"three_ds_method_completion": "N"},
    }

    async def story(s: Shop) -> None:
        handle, _ = await s.minted()
        s.upstream.answer = lambda _: httpx2.Response(401)
        answer = await s.act(action, handle, data.get(action, {}), session_token="sek_x")
        assert (answer.status_code, problem(answer)) == (410, "handle-expired")
        assert (len(s.upstream.calls), s.upstream.tokens) == (1, 1)

    run(story)


@pytest.mark.parametrize(
    "token",
    ["a\r\nx-injected: 1", "a\nb", "a\r", "\0", "a\tb", "é", "sek_😀", "\x7f", "a\x85b", "\u2028"],
)
def test_a_session_token_that_is_no_header_is_refused(token: str) -> None:
    """A line of its own, or what is not ASCII: 422, without a call and without an echo."""

    async def story(s: Shop) -> None:
        handle, _ = await s.minted()
        answer = await s.act("status", handle, session_token=token)
        assert (answer.status_code, problem(answer)) == (422, "invalid-parameters")
        assert s.upstream.requests == []
        assert s.told.audit[-1]["cause"] == "header"

    run(story)


@pytest.mark.parametrize(
    ("token", "status"),
    [("", 400), (None, 200), (5, 400), ("s" * 10_000, 200), ("s" * 16_384, 413)],
)
def test_how_long_a_session_token_may_be(token: Any, status: int) -> None:
    """As long as a request may be; never empty."""

    async def story(s: Shop) -> None:
        handle, _ = await s.minted()
        answer = await s.act("status", handle, session_token=token)
        assert answer.status_code == status
        assert len(s.upstream.requests) == (status == 200)
        if token and status == 200:
            assert s.upstream.requests[0].headers["authorization"] == token

    run(story)


FLOW = {
    "source": None, "channel_data": None, "completion": None, "webhook_key": None,
    "parameters": {}, "billing": {"address": {"country": "GB"}},
    "success_url": "https://shop.example/a", "failure_url": "https://shop.example/b",
}  # fmt: skip


def test_where_a_preset_knows_no_session_token() -> None:
    """422 with its place, before any call."""

    async def story(s: Shop) -> None:
        s.upstream.answer = lambda _: httpx2.Response(201, json={"id": "ps_1"})
        handle = (await s.told.mint({}, "p", token=s.token())).json()["handle"]
        s.upstream.requests.clear()
        data = {"session_data": "x"}
        answer = await s.act("submit", handle, data, session_token="sek_x")
        assert (answer.status_code, problem(answer)) == (422, "invalid-parameters")
        assert answer.json()["errors"] == [
            {"pointer": "/session_token", "reason": "this profile's actions are not made with one"}
        ]
        assert s.upstream.requests == []

    run(story, config("checkout/flow", **FLOW))


# --- our own credential


def test_a_revoked_access_token_costs_one_token_and_no_mint() -> None:
    """401 in the middle of traffic: one new token, one repetition with the same body."""

    async def story(s: Shop) -> None:
        assert (await s.mint()).status_code == 202
        await s.told.clock.advance(1)
        s.upstream.answer = lambda request: (
            httpx2.Response(401) if request.headers["authorization"] == "Bearer at-1" else None
        )
        assert (await s.mint()).status_code == 202
        bearers = [one.headers["authorization"] for one in s.upstream.requests]
        assert bearers == ["Bearer at-1", "Bearer at-1", "Bearer at-2"]
        assert len({one.content for one in s.upstream.requests}) == 1
        assert s.upstream.tokens == 2

    run(story)


def test_a_secret_key_or_a_credential() -> None:
    """Flow takes either: the key as a bearer, without any token request."""
    key = {"secret_key": {"env": "SK"}, "credential": None, **FLOW}

    async def story(s: Shop) -> None:
        s.upstream.answer = lambda _: httpx2.Response(201, json={"id": "ps_1"})
        assert (await s.told.mint({}, "p", token=s.token())).status_code == 201
        (request,) = s.upstream.requests
        assert request.headers["authorization"] == "Bearer sk_sbox_1"
        assert b"sk_sbox" not in request.content
        assert s.upstream.tokens == 0

    run(story, config("checkout/flow", **key), env={"SK": "sk_sbox_1"})


@pytest.mark.parametrize(
    ("preset", "changes", "reason"),
    [
        ("checkout/flow", {**FLOW, "secret_key": {"env": "SK"}}, "give exactly one of credential and secret_key"),
        ("checkout/flow", {**FLOW, "credential": None}, "give exactly one of credential and secret_key"),
        ("checkout/3ds", {"credential": None}, "is required: the preset sends an access token"),
    ],
)  # fmt: skip
def test_exactly_one_credential(preset: str, changes: dict[str, Any], reason: str) -> None:
    """Both or neither is a fault."""
    assert faults(config(preset, **changes)) == [Fault("/profiles/p/credential", reason)]


ISSUING = {
    "source": None, "channel_data": None, "completion": None, "webhook_key": None, "amount": None,
    "currency": None, "parameters": {}, "credential": None, "client_id": {"env": "ID"},
    "client_secret": {"env": "KEY"}, "cardholder_id": "${claims.cardholder}",
}  # fmt: skip
HOLDER = "crh_" + "d" * 26


def test_secrets_travel_in_the_form() -> None:
    """Beside the grant, encoded as forms are; in no header, and our answer has neither."""

    async def story(s: Shop) -> None:
        s.upstream.answer = lambda _: httpx2.Response(
            200, json={"access_token": "at_holder", "expires_in": 300, "scope": "x"}
        )
        answer = await s.told.mint({}, "p", token=s.token(cardholder=HOLDER))
        assert answer.status_code == 201
        assert answer.json()["output"] == {
            "accessToken": "at_holder",
            "expiresAt": int(s.told.clock.now().timestamp() + 300) * 1000,
        }
        (request,) = s.upstream.requests
        assert str(request.url).endswith("/issuing/access/connect/token")
        assert request.headers["content-type"] == "application/x-www-form-urlencoded"
        assert "authorization" not in request.headers
        assert parse_qsl(request.content.decode(), strict_parsing=True) == [
            ("grant_type", "client_credentials"),
            ("cardholder_id", HOLDER),
            ("single_use", "true"),
            ("client_id", "ack_&=+"),
            ("client_secret", "sëcret &"),
        ]
        assert "secret" not in answer.text

    run(story, config("checkout/issuing", **ISSUING), env={"ID": "ack_&=+", "KEY": "sëcret &"})


@pytest.mark.parametrize("holder", ["crh_x", HOLDER + "&x=1", HOLDER.upper(), 5, None, [HOLDER]])
def test_whose_cards_comes_from_a_claim_that_fits(holder: Any) -> None:
    """Anything else is 403 without a call."""

    async def story(s: Shop) -> None:
        answer = await s.told.mint({}, "p", token=s.token(cardholder=holder))
        assert (answer.status_code, problem(answer)) == (403, "not-permitted")
        assert s.upstream.requests == []

    run(story, config("checkout/issuing", **ISSUING), env={"ID": "i", "KEY": "k"})


# --- what is observed


@pytest.mark.parametrize("way", ["mint", "action"])
def test_what_is_observed_is_filled_in(way: str) -> None:
    """Address, user agent and accept header of a browser: as seen here."""

    async def story(s: Shop) -> None:
        seen = {"user_agent": "Mozilla/5.0 (é)", "accept": "text/html;q=0.9"}
        sent = {k: v.encode("latin-1") for k, v in seen.items()}
        if way == "mint":
            answer = await s.mint(parameters={"channel_data": BROWSER}, origin=ORIGIN, **sent)
        else:
            handle, _ = await s.minted()
            answer = await s.act("collect-data", handle, {"channel_data": BROWSER}, headers=sent)
        assert answer.status_code in (200, 202)
        body = s.upstream.body["channel_data"] if way == "mint" else s.upstream.body
        assert body == {
            **BROWSER, "user_agent": "Mozilla/5.0 (é)", "accept_header": "text/html;q=0.9",
            "ip_address": "192.0.2.1",
        }  # fmt: skip

    run(story)


@pytest.mark.parametrize("member", ["ip_address", "user_agent", "accept_header"])
def test_what_is_observed_is_not_the_pages_to_say(member: str) -> None:
    """A page that sends it is refused, at the mint and later. A trusted server, which is not the
    browser itself, says it; and of what it does not say, nothing is made up from its own request."""

    async def story(s: Shop) -> None:
        said = {"channel_data": {**BROWSER, member: "203.0.113.7"}}
        answer = await s.mint(parameters=said)
        assert (answer.status_code, problem(answer)) == (422, "invalid-parameters")
        assert [one["pointer"] for one in answer.json()["errors"]] == ["/parameters/channel_data"]
        assert s.upstream.requests == []
        assert (await s.mint(parameters=said, token=s.backend)).status_code in (201, 202)
        assert s.upstream.body["channel_data"] == said["channel_data"]
        s.upstream.requests.clear()
        handle, _ = await s.minted()
        answer = await s.act("collect-data", handle, said)
        assert [one["pointer"] for one in answer.json()["errors"]] == ["/data/channel_data"]
        assert s.upstream.requests == []

    run(story)


@pytest.mark.parametrize(
    "channel_data",
    [
        {"channel": "merchant_initiated", "request_type": "add_card"},
        {
            "channel": "app", "sdk_app_id": "a", "sdk_max_timeout": 5, "sdk_reference_number": "r",
            "sdk_encrypted_data": "e", "sdk_transaction_id": "t",
            "sdk_ephem_pub_key": {"kty": "EC", "crv": "P-256", "x": "x", "y": "y"},
        },
    ],
)  # fmt: skip
def test_only_browsers_are_observed(channel_data: dict[str, Any]) -> None:
    """An app's or a merchant's channel goes as it was sent."""

    async def story(s: Shop) -> None:
        assert (await s.mint(parameters={"channel_data": channel_data})).status_code == 202
        assert s.upstream.body["channel_data"] == channel_data

    run(story, config(allow_merchant_initiated=True))


def test_no_page_leaves_the_cardholder_out() -> None:
    """A session where nobody is asked needs a yes of the profile, at the mint and later."""
    said = {"channel_data": {"channel": "merchant_initiated"}}
    reason = "merchant_initiated as /channel_data/channel is refused by this profile"

    async def story(s: Shop) -> None:
        handle, _ = await s.minted()
        for answer, at in (
            (await s.mint(parameters=said), "/parameters"),
            (await s.mint(parameters=said, token=s.backend), "/parameters"),
            (await s.act("collect-data", handle, said), "/data"),
        ):
            assert (answer.status_code, problem(answer)) == (422, "invalid-parameters")
            assert answer.json()["errors"] == [{"pointer": at, "reason": reason}]
        assert s.upstream.requests == []

    run(story)


def test_what_is_not_known_is_left_out() -> None:
    """A browser without a user agent: no empty text is sent."""

    async def story(s: Shop) -> None:
        empty = {"user_agent": "", "accept": ""}
        assert (await s.mint(parameters={"channel_data": BROWSER}, **empty)).status_code == 202
        assert s.upstream.body["channel_data"] == {**BROWSER, "ip_address": "192.0.2.1"}

    run(story)


def test_what_the_file_says_of_a_browser_is_completed_for_each_request() -> None:
    """A setting without holes is observed too, and no request leaves anything in the next."""

    async def story(s: Shop) -> None:
        for agent in ("one", "two"):
            await s.mint(user_agent=agent, accept="")
            assert s.upstream.body["channel_data"] == {
                **BROWSER, "user_agent": agent, "ip_address": "192.0.2.1",
            }  # fmt: skip

    run(story, config(channel_data=BROWSER, parameters={"source": {"like": "source"}}))


# --- how long it lives


@pytest.mark.parametrize(
    ("fraction", "life"), [(0.0, 1800), (0.25, 1799.75), (0.999999, 1799.000001)]
)
def test_no_more_life_is_claimed_than_was_asked_for(fraction: float, life: float) -> None:
    """`expires_on` is told to the second: what we count on ends with it, never after."""

    async def story(s: Shop) -> None:
        s.told.clock.pass_(fraction)
        s.upstream.answer = lambda _: httpx2.Response(201, json={"id": "ps_1"})
        answer = (await s.told.mint({}, "p", token=s.token())).json()
        assert s.upstream.body["expires_on"] == "2026-11-20T12:30:00Z"
        assert answer["expires_at"] == "2026-11-20T12:30:00Z"
        assert answer["expires_in"] == int(life)

    run(story, config("checkout/flow", **FLOW))


@pytest.mark.parametrize("hours", [-1, 1])
def test_an_end_is_told_by_the_clock_that_judges_it(hours: int) -> None:
    """Where the upstream's clock or ours was set by an hour, an end that lay in its past is told
    once more by what its `Date` says, and from then on at once; the page's count is not touched."""

    async def story(s: Shop) -> None:
        ends: list[str] = []

        def answer(request: httpx2.Request) -> httpx2.Response:
            there = s.told.clock.now() + timedelta(hours=hours)
            date = {"date": format_datetime(there, usegmt=True)}
            ends.append(s.upstream.body["expires_on"])
            life = datetime.fromisoformat(ends[-1]) - there
            good = timedelta(0) < life <= timedelta(minutes=30)
            return httpx2.Response(201 if good else 422, json={"id": "ps_1"}, headers=date)

        s.upstream.answer = answer
        for _ in range(2):
            minted = await s.told.mint({}, "p", token=s.token())
            assert (minted.status_code, minted.json()["expires_in"]) == (201, 1800)
        theirs = "2026-11-20T11:30:00Z" if hours < 0 else "2026-11-20T13:30:00Z"
        assert ends == ["2026-11-20T12:30:00Z", theirs, theirs]

    run(story, config("checkout/flow", **FLOW))


def test_a_refusal_of_something_else_is_not_repeated() -> None:
    """The same clocks, or a clock that was known to differ: one call."""

    async def story(s: Shop) -> None:
        there = s.told.clock.now() + timedelta(hours=1)
        date = {"date": format_datetime(there, usegmt=True)}
        s.upstream.answer = lambda _: httpx2.Response(201, json={"id": "ps_1"}, headers=date)
        assert (await s.told.mint({}, "p", token=s.token())).status_code == 201
        s.upstream.answer = lambda _: httpx2.Response(422, json={}, headers=date)
        s.upstream.requests.clear()
        assert (await s.told.mint({}, "p", token=s.token())).status_code >= 400
        assert len(s.upstream.requests) == 1

    run(story, config("checkout/flow", **FLOW))


def test_a_life_that_is_our_own_policy_is_not_sent() -> None:
    """Sessions are told of no end; ours is kept."""

    async def story(s: Shop) -> None:
        answer = await s.mint()
        assert answer.json()["expires_in"] == 300
        assert not {"expires_on", "session_lifetime", "allow_card_numbers"} & s.upstream.body.keys()

    run(story, config(session_lifetime="5m"))


def test_a_wish_over_the_life_costs_no_session() -> None:
    """Known before one is made."""

    async def story(s: Shop) -> None:
        answer = await s.mint(cache_control="min-fresh=901")
        assert (answer.status_code, problem(answer)) == (412, "min-fresh-not-met")
        assert s.upstream.requests == []

    run(story)


# --- whole answers


VERBATIM = [
    b'{"id":"ps_1","n":1.50,"big":123456789012345678901234567890,"e":1e400,"u":"\\u00e9","x":{"y":[null]}}',
    b' {\n "id" : "ps_1" , "payment_session_token":"t" }\n',
    '{"id":"ps_1","ü":"😀"}'.encode(),
]


@pytest.mark.parametrize("body", VERBATIM)
def test_a_verbatim_answer_is_passed_on_byte_for_byte(body: bytes) -> None:
    """Numbers that nobody could write again included."""

    async def story(s: Shop) -> None:
        s.upstream.answer = lambda _: httpx2.Response(201, content=body)
        answer = await s.told.mint({}, "p", token=s.token(), idempotency_key="k")
        assert answer.status_code == 201
        assert b'"output":' + body in answer.content
        again = await s.told.mint({}, "p", token=s.token(), idempotency_key="k")
        assert b'"output":' + body in again.content
        s.upstream.answer = lambda _: httpx2.Response(202, content=body)
        submitted = await s.act("submit", answer.json()["handle"], {"session_data": "x"})
        assert (submitted.status_code, submitted.content) == (202, body)
        assert s.upstream.body == {"session_data": "x", "ip_address": "192.0.2.1"}

    run(story, config("checkout/flow", **FLOW))


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"null", b'{"id":5}', b'{"id":1.5}', b'{"payment_session_token":12345}',
        b'{"id":"a","id":"b"}', b'{"id":"ps_1","x":NaN}', b'{"id":"ps_1","x":"\\ud800"}',
        b'{"id":"ps_1"} x', b'{"id":""}', b'{"id":null}', b'{"payment_session_token":"t","id":5}',
        b'{"id":"ps_1\xff"}', b'{"id":' + b"[" * 200 + b"]" * 200 + b"}", b'{"id":true}',
        b'{"payment_session_token":["t"],"id":"ps_1"}', b'{"payment_session_token":"a\\nb"}',
    ],
)  # fmt: skip
def test_a_verbatim_answer_must_be_one(body: bytes) -> None:
    """What a strict reader does not take, or what has no text for a token, is nonsense."""

    async def story(s: Shop) -> None:
        s.upstream.answer = lambda _: httpx2.Response(201, content=body)
        answer = await s.told.mint({}, "p", token=s.token())
        assert (answer.status_code, problem(answer)) == (502, "upstream-nonsense")

    run(story, config("checkout/flow", **FLOW))


@pytest.mark.parametrize("status", [201, 202])
def test_201_and_202_are_told_apart(status: int) -> None:
    """A page sees whether more is needed."""

    async def story(s: Shop) -> None:
        told = {"id": "sid_1", "session_secret": "sek_1"}
        s.upstream.answer = lambda _: httpx2.Response(status, json=told)
        assert (await s.mint()).status_code == status

    run(story)


def test_a_profile_that_knows_no_amount_sends_none() -> None:
    """Members without a value are left out."""

    async def story(s: Shop) -> None:
        assert (await s.mint()).status_code == 202
        assert s.upstream.body == {
            "source": {"type": "token", "token": "tok_1"},
            "currency": "GBP",
            "completion": {"type": "non_hosted"},
        }

    run(story, config(amount=None))


def test_whoever_refuses_a_repetition_is_not_asked_again() -> None:
    """A 422 is not tried again."""

    async def story(s: Shop) -> None:
        s.upstream.answer = lambda _: refusal(422, "source_invalid")
        assert (await s.mint()).status_code == 422
        assert len(s.upstream.calls) == 1

    run(story)


# --- through the guard


def calls_counted(s: Shop, operation: str, outcome: str) -> float:
    labels = {"upstream": "p", "operation": operation, "outcome": outcome}
    return s.told.sample("broker_upstream_requests_total", **labels) or 0.0


def unknown(s: Shop) -> float | None:
    return s.told.sample("broker_unknown_mints_total", profile="p")


async def with_time(s: Shop, asking: Any, seconds: float = 2.0) -> Any:
    """The answer, with as much of the clock's time as repetitions may take."""
    task = asyncio.ensure_future(asking)
    await s.told.clock.advance(seconds)
    return await task


def test_a_reading_is_made_again_where_its_answer_was_lost() -> None:
    """A GET is safe: two bad moments of the upstream are no page's; each attempt is counted."""

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        bad = [httpx2.Response(502), httpx2.Response(503)]
        s.upstream.answer = lambda _: bad.pop() if bad else None
        answer = await with_time(s, s.act("status", handle))
        assert answer.json() == progress(sid, "pending", "collect_channel_data")
        assert s.upstream.calls == [f"GET /sessions/{sid}"] * 3
        assert calls_counted(s, "action_status", "unavailable") == 2
        assert calls_counted(s, "action_status", "ok") == 1

    run(story)


@pytest.mark.parametrize(
    ("status", "lost"), [(500, 1), (502, 1), (503, 0), (504, 1), (408, 0), (429, 0)]
)
def test_what_does_something_is_not_made_again(status: int, lost: int) -> None:
    """No mint and no action that could happen twice, whatever the upstream says. Where what came
    may be a gateway's word for an answer that was lost, a mint counts as unknown."""

    async def story(s: Shop) -> None:
        handle, _ = await s.minted()
        s.upstream.answer = lambda _: httpx2.Response(status)
        assert (await s.act("complete", handle)).status_code == 503
        assert unknown(s) == 0
        s.told.clock.pass_(2)
        assert (await s.mint()).status_code == 503
        assert len(s.upstream.calls) == 2
        assert unknown(s) == lost

    run(story)


@pytest.mark.parametrize("status", [500, 502, 504, 408, 425, 423])
def test_one_odd_requests_pause_is_nobody_elses(status: int) -> None:
    """Retry-After shuts the gate with 429 and 503 only: else one caller, whose request meets with
    another, could shut everybody out with one call a minute."""

    async def story(s: Shop) -> None:
        odd = [httpx2.Response(status, headers={"retry-after": "60"})]
        s.upstream.answer = lambda _: odd.pop() if odd else None
        assert (await s.mint()).status_code >= 500
        assert (await s.mint()).status_code == 202

    run(story)


class Via:
    """Stands in the way of a shop's calls: raises what is listed, in turn, before they are sent."""

    def __init__(self, s: Shop, *ends: BrokerError) -> None:
        self.ends = list(ends)
        self.given: list[float] = []
        self.takes = 0.0
        self._clock = s.told.clock
        self._inner = s.told.app._ground.transport
        self._send = self._inner.send
        self._inner.send = self.send  # type: ignore[method-assign]

    async def send(self, method: str, url: str, **how: Any) -> Answer:
        if url.endswith("/connect/token"):
            return await self._send(method, url, **how)
        self.given.append(how["timeout"])
        if self.takes:
            await settle()
            self._clock.pass_(self.takes)
        if self.ends:
            raise self.ends.pop(0)
        return await self._send(method, url, **how)


def test_what_was_certainly_not_sent_is_sent_again() -> None:
    """A mint too; and if it is never sent, no session may exist that nobody knows."""

    async def story(s: Shop) -> None:
        via = Via(s, *[NotSent("x")] * 2)
        assert (await with_time(s, s.mint())).status_code == 202
        assert len(s.upstream.calls) == 1
        via.ends = [NotSent("x")] * 3
        answer = await with_time(s, s.mint())
        assert (answer.status_code, problem(answer)) == (503, "upstream-unavailable")
        assert (len(via.given), unknown(s)) == (6, 0)

    run(story)


@pytest.mark.parametrize("lost", [UpstreamTimeout("x"), BrokenOff("x"), UpstreamNonsense("x")])
def test_a_mint_whose_answer_was_lost_is_unknown_once(lost: BrokerError) -> None:
    """Also where it took two attempts to be sent; and it is not made again."""

    async def story(s: Shop) -> None:
        via = Via(s, NotSent("x"), lost)
        answer = await with_time(s, s.mint())
        assert answer.status_code == lost.status
        assert (len(via.given), unknown(s)) == (2, 1)

    run(story)


def test_what_the_guard_refuses_is_not_unknown() -> None:
    """An open circuit, a pause that was asked for: nothing was sent, and 503 says when to come."""

    async def story(s: Shop) -> None:
        s.upstream.answer = lambda _: httpx2.Response(429, headers={"retry-after": "30"})
        await s.mint()
        answer = await s.mint()
        assert (answer.status_code, problem(answer)) == (503, "upstream-unavailable")
        assert answer.headers["retry-after"] == "30" or int(answer.headers["retry-after"]) <= 33
        assert len(s.upstream.calls) == 1
        assert calls_counted(s, "session", "throttled") == 1
        s.told.clock.pass_(33)
        s.upstream.answer = lambda _: httpx2.Response(503)
        for _ in range(9):
            await s.mint()
        assert len(s.upstream.calls) == 6
        assert unknown(s) == 0
        assert s.told.audit[-1]["cause"] == "circuit open"
        s.upstream.answer = None
        s.told.clock.pass_(1)
        assert (await s.mint()).status_code == 202

    run(story)


def test_one_deadline_for_all_of_a_call() -> None:
    """The request's: what authentication or a busy session took of it is gone; a reading's first
    attempt gets half of what is left."""

    async def story(s: Shop) -> None:
        via = Via(s)
        handle, _ = await s.minted()
        assert via.given == [10]
        busy = [refusal(409, "session_already_in_use")]
        s.upstream.answer = lambda _: busy.pop() if busy else None
        await with_time(s, s.act("status", handle))
        assert via.given[1:] == [5, pytest.approx(4.9)]
        via.takes = 4.0
        await asyncio.gather(s.act("complete", handle), s.act("complete", handle))
        assert via.given[3:] == pytest.approx([10, 6])

    run(story)


def test_a_session_that_stays_busy_until_the_deadline_is_told_at_once() -> None:
    """Nobody sleeps past it."""

    async def story(s: Shop) -> None:
        handle, _ = await s.minted()
        s.upstream.answer = lambda _: refusal(409, "session_already_in_use")
        answer = await with_time(s, s.act("complete", handle), 0.25)
        assert (answer.status_code, len(s.upstream.calls)) == (503, 2)

    run(story, json.dumps({**tree(), "server": {"request_budget": "500ms"}}))


REPEATABLE = """
summary: an upstream with an idempotency key
reuse: per_caller
base_url: https://api.example
settings: {key: {type: secret, required: true}}
authorization: {secret: key}
request: {path: /sessions, repeat: REPEAT, headers: {Idempotency-Key: "${uuid4}"}}
answer: {token: /token, expiry: {default: 10m}}
output: {t: "${session.token}"}
"""


@pytest.mark.parametrize(("repeat", "attempts"), [("safe", 3), ("never", 1)])
def test_a_preset_says_what_is_safe(tmp_path: Path, repeat: str, attempts: int) -> None:
    """With an idempotency key, the same in each attempt; a lost answer after them is unknown."""
    (tmp_path / "x.yaml").write_text(REPEATABLE.replace("REPEAT", repeat))
    allow = {"callers": ["backend"]}
    profile = {"preset": "./x.yaml", "key": {"env": "SK"}, "allow": allow}
    text = {**tree(), "profiles": {"p": profile}}
    del text["credentials"]

    async def story(s: Shop) -> None:
        via = Via(s, UpstreamTimeout("x"))
        s.upstream.answer = lambda _: httpx2.Response(500)
        answer = await with_time(s, s.told.mint({}, "p", token=s.backend))
        assert answer.status_code == (503 if attempts > 1 else 504)
        assert len(via.given) == attempts
        assert len({one.headers["idempotency-key"] for one in s.upstream.requests}) <= 1
        assert unknown(s) == 1
        via.ends, s.upstream.answer = [], lambda _: httpx2.Response(201, json={"token": "t"})
        assert (await s.told.mint({}, "p", token=s.backend)).status_code == 201

    run(story, json.dumps(text), base=tmp_path, env={"SK": "sk_1"})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"method": "GET"}, True), ({}, False), ({"method": "PUT"}, False),
        ({"method": "DELETE"}, False), ({"repeat": "safe"}, True),
        ({"method": "GET", "repeat": "never"}, False),
    ],
)  # fmt: skip
def test_by_default_only_a_reading_is_safe(given: dict[str, Any], expected: bool) -> None:
    """A GET, unless the preset says otherwise."""
    assert Request.model_validate({"path": "/x", **given}).may_repeat is expected


def test_no_packaged_preset_repeats_what_does_something() -> None:
    """None of their upstreams has an idempotency key for it."""
    for name in packaged():
        file = load_preset(name, Path()).file
        requests = [file.request, *(action.request for action in file.actions.values())]
        assert [one.method for one in requests if one.may_repeat] in ([], ["GET"])


# --- credentials that are refused


async def together(s: Shop, count: int) -> None:
    """Holds calls back until so many are under way."""
    arrived, all_there = 0, asyncio.Event()

    async def arrive() -> None:
        nonlocal arrived
        arrived += 1
        if arrived >= count:
            all_there.set()
        await all_there.wait()

    s.told.app._ground.transport.before = arrive  # type: ignore[attr-defined]


def test_a_revoked_token_is_no_outage() -> None:
    """Each of twenty mints under way gets a 401 to it, and each a session after one new token:
    that is no sign of an upstream that is unwell."""

    async def story(s: Shop) -> None:
        await s.mint()
        await s.told.clock.advance(1)
        s.upstream.answer = lambda request: (
            httpx2.Response(401) if request.headers["authorization"] == "Bearer at-1" else None
        )
        await together(s, 20)
        answers = await asyncio.gather(*(s.mint() for _ in range(20)))
        assert {answer.status_code for answer in answers} == {202}
        assert s.upstream.tokens == 2
        assert calls_counted(s, "session", "refused") == 20

    run(story)


@pytest.mark.parametrize("probe", [False, True])
def test_what_is_refused_here_tells_nothing_of_the_upstream(probe: bool) -> None:
    """A session token that is no header, say: nothing was sent, so it neither ends a row of
    failures nor closes the circuit of an upstream that is dead."""

    async def story(s: Shop) -> None:
        handle, _ = await s.minted()
        s.upstream.answer = lambda _: httpx2.Response(503)
        for _ in range(5 if probe else 4):
            await s.mint()
        s.told.clock.pass_(2)
        assert (await s.act("status", handle, session_token="a\nb")).status_code == 422
        await s.mint()
        assert (await s.mint()).status_code == 503
        assert s.told.audit[-1]["cause"] == "circuit open"
        assert len(s.upstream.calls) == (6 if probe else 5)

    run(story)


def odd(body: Any) -> bool:
    return body["source"] == {"type": "token", "token": "tok_odd"}


def test_odd_requests_cost_three_tokens_a_minute_at_the_most() -> None:
    """A 401 that is about the request comes to a token that is good for all others: they shall not
    lose it with each such request, nor the token endpoint be asked for another."""

    async def story(s: Shop) -> None:
        await s.minted()
        s.upstream.answer = lambda _: httpx2.Response(401) if odd(s.upstream.body) else None
        for _ in range(180):
            await s.told.clock.advance(1)
            assert (await s.mint({"type": "token", "token": "tok_odd"})).status_code == 502
            assert (await s.mint()).status_code == 202
        assert 2 <= s.upstream.tokens <= 1 + 3 * 3 + 1

    run(story)


def test_a_token_that_is_revoked_after_an_odd_request_is_replaced_at_once() -> None:
    """One refusal that was about something else does not hide the next, which is about the token."""

    async def story(s: Shop) -> None:
        await s.minted()
        s.upstream.answer = lambda _: httpx2.Response(401) if odd(s.upstream.body) else None
        await s.told.clock.advance(1)
        await s.mint({"type": "token", "token": "tok_odd"})
        assert (await s.mint()).status_code == 202
        dead = {f"Bearer at-{s.upstream.tokens}"}
        s.upstream.answer = lambda one: (
            httpx2.Response(401) if one.headers["authorization"] in dead else None
        )
        await s.told.clock.advance(1)
        assert (await s.mint()).status_code == 202

    run(story)


def test_two_revocations_in_a_row_cost_two_seconds_and_no_minute() -> None:
    """Where the token that was fetched in place of a revoked one is revoked in its turn, it is not
    shown for a minute: after two seconds the next is fetched, and after that one a minute."""

    async def story(s: Shop) -> None:
        await s.minted()
        shown = s.upstream.tokens
        dead = {f"Bearer at-{shown}", f"Bearer at-{shown + 1}"}
        s.upstream.answer = lambda one: (
            httpx2.Response(401) if one.headers["authorization"] in dead else None
        )
        await s.told.clock.advance(1)
        assert (await s.mint()).status_code == 502
        await s.told.clock.advance(1.9)
        assert (await s.mint()).status_code == 502
        await s.told.clock.advance(0.2)
        assert (await s.mint()).status_code == 202
        assert s.upstream.tokens == shown + 2

    run(story)


def test_another_token_that_works_makes_the_next_refusal_one_of_a_token() -> None:
    """Within the minute in which no new token is asked for: one that came by another way and is
    good shows that tokens are what it was about, so the next that is revoked is replaced at once."""

    async def story(s: Shop) -> None:
        handle, _ = await s.minted()
        good: set[str] = set()
        s.upstream.answer = lambda one: (
            None if one.headers["authorization"] in good else httpx2.Response(401)
        )
        await s.told.clock.advance(1)
        assert (await s.mint()).status_code == 502
        assert (await s.mint()).status_code == 502
        assert s.upstream.tokens == 2
        for token in ("at-3", "at-4"):
            good.clear()
            good.add(f"Bearer {token}")
            await s.told.clock.advance(1)
            if token == "at-3":
                assert (await s.act("status", handle)).status_code == 200
            assert (await s.mint()).status_code == 202
        assert s.upstream.tokens == 4

    run(story)


def test_those_who_wait_for_a_token_are_not_everybody() -> None:
    """A token endpoint that hangs holds as many as an upstream that does; the others are told at
    once, and nothing of theirs was sent."""

    async def story(s: Shop) -> None:
        back = asyncio.Event()
        s.told.app._ground.transport.before = back.wait  # type: ignore[attr-defined]
        asking = [asyncio.ensure_future(s.mint()) for _ in range(5)]
        await settle(200)
        told_at_once = [one.result() for one in asking if one.done()]
        assert [problem(one) for one in told_at_once] == ["overloaded"] * 2
        assert all(one.headers["retry-after"] for one in told_at_once)
        back.set()
        found = sorted(one.status_code for one in await asyncio.gather(*asking))
        assert found == [202] * 3 + [503] * 2
        assert (s.upstream.tokens, unknown(s)) == (1, 0)
        assert (await s.mint()).status_code == 202

    run(story, json.dumps({**tree(), "outbound": {"max_in_flight": 3}}))


def test_a_credential_that_is_always_refused_opens_the_circuit() -> None:
    """After five requests it is "refused" without a call: wrong keys get accounts locked."""

    async def story(s: Shop) -> None:
        await s.minted()
        s.told.clock.pass_(1)
        s.upstream.answer = lambda _: httpx2.Response(401)
        for _ in range(9):
            answer = await s.mint()
            assert (answer.status_code, problem(answer)) == (502, "upstream-refused")
        assert s.told.audit[-1]["cause"] == "circuit open"
        assert "retry-after" in answer.headers
        assert (s.upstream.tokens, len(s.upstream.calls)) == (2, 6)

    run(story)


def test_a_token_that_does_not_come_in_time_is_no_unknown_mint() -> None:
    """Nothing was sent to the upstream; waiting for the token ends with the request's time."""

    async def story(s: Shop) -> None:
        async def hangs() -> None:
            await asyncio.sleep(5)

        s.told.app._ground.transport.before = hangs  # type: ignore[attr-defined]
        answer = await s.mint()
        assert (answer.status_code, problem(answer)) == (504, "upstream-timeout")
        assert (s.upstream.requests, unknown(s)) == ([], 0)
        built = s.told.app._assembly
        profile, tokens = built.snapshot.profiles["p"], built.tokens["checkout"]
        upstream = built._upstream(profile, tokens, 0.2)
        async with asyncio.timeout(2):
            with pytest.raises(UpstreamTimeout, match="no token"):
                await upstream.reread(SID, "reread")

    run(story, json.dumps({**tree(), "server": {"request_budget": "200ms"}}))


def keys(*refs: dict[str, str]) -> str:
    return config("checkout/flow", **{"secret_key": [*refs], "credential": None, **FLOW})


NEW, OLD, NEXT = "sk_sbox_new", "sk_sbox_old", "sk_sbox_next"
TWO = keys({"env": "NEW"}, {"env": "OLD"})
TWO_ENV = {"NEW": NEW, "OLD": OLD}


def shown(s: Shop) -> list[str]:
    return [one.headers["authorization"].removeprefix("Bearer ") for one in s.upstream.requests]


def takes(s: Shop, *good: str, refusal: int = 401) -> None:
    s.upstream.answer = lambda one: (
        httpx2.Response(201, json={"id": "ps_1"})
        if one.headers["authorization"].removeprefix("Bearer ") in good
        else httpx2.Response(refusal)
    )


@pytest.mark.parametrize("refusal", [401, 403])
def test_a_key_that_is_refused_gives_way_to_the_other(refusal: int) -> None:
    """Within the same mint, which nobody sees; later mints begin with the one that works; when
    that is withdrawn, the new one is at hand."""

    async def story(s: Shop) -> None:
        takes(s, OLD, refusal=refusal)
        for _ in range(3):
            assert (await s.told.mint({}, "p", token=s.token())).status_code == 201
        assert shown(s) == [NEW, OLD, OLD, OLD]
        takes(s, NEW, refusal=refusal)
        assert (await s.told.mint({}, "p", token=s.token())).status_code == 201
        assert (await s.told.mint({}, "p", token=s.token())).status_code == 201
        assert shown(s)[4:] == [OLD, NEW, NEW]
        assert unknown(s) == 0

    run(story, TWO, env=TWO_ENV)


def test_a_key_that_was_just_replaced_is_read_at_once(tmp_path: Path) -> None:
    """Where all that is known is refused, the file is looked at again, once; calls that were
    refused at the same time take what one of them found."""
    (tmp_path / "key").write_text(OLD)

    async def story(s: Shop) -> None:
        app, looks = s.told.app, 0

        async def look() -> bool:
            nonlocal looks
            looks += 1
            found = app._keyring.read(secret_refs(app.snapshot))
            return bool(looks % 3 and app._keyring.adopt(found))

        app._keyring.reread = look
        takes(s, OLD)
        await s.told.mint({}, "p", token=s.token())
        takes(s, NEXT)
        assert (await s.told.mint({}, "p", token=s.token())).status_code == 502
        assert (looks, shown(s)) == (1, [OLD, OLD])
        (tmp_path / "key").write_text(NEXT)
        await together(s, 2)
        both = [s.told.mint({}, "p", token=s.token()) for _ in range(2)]
        assert [one.status_code for one in await asyncio.gather(*both)] == [201, 201]
        assert (looks, sorted(shown(s))) == (3, [*[NEXT] * 2, *[OLD] * 4])

    run(story, keys({"file": "key"}), base=tmp_path)


def test_keys_that_are_all_refused_are_one_failure() -> None:
    """Each version is shown once; five such mints open the circuit, as a refused credential."""

    async def story(s: Shop) -> None:
        takes(s)
        for _ in range(7):
            answer = await s.told.mint({}, "p", token=s.token())
            assert (answer.status_code, problem(answer)) == (502, "upstream-refused")
        assert sorted(shown(s)) == sorted([NEW, OLD] * 5)
        assert s.told.audit[-1]["cause"] == "circuit open"

    run(story, TWO, env=TWO_ENV)


def test_a_403_that_every_key_gets_is_about_the_request() -> None:
    """It speaks against no key, opens no circuit, and for a minute it costs one call."""

    async def story(s: Shop) -> None:
        takes(s, refusal=403)
        for _ in range(7):
            answer = await s.told.mint({}, "p", token=s.token())
            assert (answer.status_code, problem(answer)) == (502, "upstream-refused")
        assert shown(s) == [NEW, OLD, *[NEW] * 6]
        s.told.clock.pass_(61)
        await s.told.mint({}, "p", token=s.token())
        assert len(shown(s)) == 10

    run(story, TWO, env=TWO_ENV)


@pytest.mark.parametrize(
    "answer",
    [
        *(httpx2.Response(status) for status in (302, 400, 404, 422, 429, 500, 502, 503)),
        httpx2.Response(201, text="<html>"),
        httpx2.Response(201, json={"id": 5}),
    ],
    ids=lambda answer: f"{answer.status_code} {answer.text}".strip(),
)
def test_a_key_works_once_it_brings_what_was_asked_for(answer: httpx2.Response) -> None:
    """Not with any answer but a refusal: a gateway may give it, which looks at no key. No success
    is told of such a key, on which the old one would be deleted, and the old one stays in use."""

    def last(slot: str, source: str) -> float | None:
        return s_.told.sample(
            "broker_secret_last_success_timestamp_seconds", slot=slot, source=source
        )

    s_: Shop

    async def story(s: Shop) -> None:
        nonlocal s_
        s_ = s
        takes(s, OLD)
        assert (await s.told.mint({}, "p", token=s.token())).status_code == 201
        s.told.clock.pass_(70)
        s.upstream.answer = lambda one: (
            answer
            if one.headers["authorization"] == f"Bearer {NEW}"
            else httpx2.Response(201, json={"id": "ps_1"})
        )
        assert (await s.told.mint({}, "p", token=s.token())).status_code >= 400
        s.told.clock.pass_(5)
        assert (await s.told.mint({}, "p", token=s.token())).status_code == 201
        assert shown(s) == [NEW, OLD, NEW, OLD]
        assert last("newest", "env:NEW") is None
        assert last("older", "env:OLD") == s.told.clock.now().timestamp()

    run(story, TWO, env=TWO_ENV)


def test_a_403_with_one_key_is_told_as_it_is() -> None:
    """There is nothing else to show."""

    async def story(s: Shop) -> None:
        takes(s, refusal=403)
        assert (await s.told.mint({}, "p", token=s.token())).status_code == 502
        assert shown(s) == [NEW]

    run(story, keys({"env": "NEW"}), env=TWO_ENV)


def test_form_fields_of_one_version_go_together() -> None:
    """The second secret with the second id: no pair is shown that nobody configured."""
    pairs = {
        "client_id": [{"env": "ID2"}, {"env": "ID"}],
        "client_secret": [{"env": "KEY2"}, {"env": "KEY"}],
    }
    text = config("checkout/issuing", **{**ISSUING, **pairs})
    env = {"ID": "i1", "ID2": "i2", "KEY": "k1", "KEY2": "k2"}

    async def story(s: Shop) -> None:
        def answer(request: httpx2.Request) -> httpx2.Response:
            if dict(parse_qsl(request.content.decode()))["client_id"] == "i2":
                return httpx2.Response(401)
            return httpx2.Response(200, json={"access_token": "at_holder", "expires_in": 300})

        s.upstream.answer = answer
        asked = s.told.mint({}, "p", token=s.token(cardholder=HOLDER))
        assert (await asked).status_code == 201
        pairs_shown = [dict(parse_qsl(one.content.decode())) for one in s.upstream.requests]
        told = [(one["client_id"], one["client_secret"]) for one in pairs_shown]
        assert told == [("i2", "k2"), ("i1", "k1")]

    run(story, text, env=env)
