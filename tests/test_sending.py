"""How a request is filled and sent: whose credential it carries, and what may stand where."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import parse_qsl

import httpx2
import pytest

from broker.errors import Fault
from tests.checkout import BROWSER, Shop, config, faults, progress, refusal, shop
from tests.harness import ORIGIN, problem


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
