"""What can be done with a handle, where one caller's doings meet another's: turns, limits, readings."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

from tests.checkout import Shop, config, shop, tree
from tests.harness import problem
from tests.support import settle
from tests.test_sending import FLOW

FINGERPRINT = {"three_ds_method_completion": "Y"}


def run(story: Any, text: str | None = None) -> None:
    async def whole() -> None:
        async with shop(text) as s:
            await story(s)

    asyncio.run(whole())


def _gate(s: Shop) -> asyncio.Event:
    """Holds every call upstream until it is set."""
    gate = asyncio.Event()
    transport: Any = s.told.app._transport
    transport.before = gate.wait
    return gate


def test_readings_of_one_session_are_one_call() -> None:
    """However many of a page's tabs, and its merchant's backend, ask at once: the upstream is asked
    once, and each gets their own view of the answer."""

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        s.upstream.put(sid, "processing", ["challenge_cardholder"])
        gate = _gate(s)
        tokens = [s.token()] * 20 + [s.backend]
        asking = [asyncio.create_task(s.act("status", handle, token=token)) for token in tokens]
        await settle()
        gate.set()
        answers = [await task for task in asking]
        assert [answer.status_code for answer in answers] == [200] * 21
        assert ["cryptogram" in answer.json() for answer in answers] == [False] * 20 + [True]
        assert len(s.upstream.calls) == 1

    run(story)


def test_a_reading_waits_for_no_action() -> None:
    """While an action of the page hangs upstream, the backend's reading is answered."""

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        s.upstream.put(sid, "approved", ["complete"])
        gate = asyncio.Event()
        transport: Any = s.told.app._transport
        transport.before = lambda: (
            gate.wait() if transport.calls[-1][1].endswith("complete") else None
        )
        slow = asyncio.create_task(s.act("complete", handle))
        await settle()
        assert (await s.act("status", handle, token=s.backend)).status_code == 200
        assert not slow.done()
        gate.set()
        assert (await slow).status_code == 204

    run(story)


def test_actions_at_once_are_bounded_for_each_session() -> None:
    """Eight may hold or await a session's turn; the ninth is told to come again, and nothing was
    done for it. Another session has its own."""

    async def story(s: Shop) -> None:
        (handle, _), (other, _) = await s.minted(), await s.minted()
        gate = _gate(s)
        acting = [
            asyncio.create_task(s.act("issuer-fingerprint", handle, FINGERPRINT)) for _ in range(8)
        ]
        await settle()
        answer = await s.act("issuer-fingerprint", handle, FINGERPRINT)
        assert (answer.status_code, problem(answer)) == (503, "overloaded")
        assert answer.headers["retry-after"] == "1"
        elsewhere = asyncio.create_task(s.act("issuer-fingerprint", other, FINGERPRINT))
        await settle()
        gate.set()
        assert [(await task).status_code for task in (*acting, elsewhere)] == [200] * 9
        assert len(s.upstream.calls) == 9
        assert (await s.act("issuer-fingerprint", handle, FINGERPRINT)).status_code == 200

    run(story)


@pytest.mark.parametrize(("changes", "most"), [({}, 120), ({"action_limit": "3/minute"}, 3)])
def test_actions_are_counted_for_each_session(changes: dict[str, Any], most: int) -> None:
    """120 a minute, or what the profile says; then 429, until the window has slid on. The merchant's
    backend is not held up by what its page has spent."""

    async def story(s: Shop) -> None:
        (handle, _), (other, _) = await s.minted(), await s.minted()
        for _ in range(most):
            assert (await s.act("status", handle)).status_code == 200
        answer = await s.act("status", handle)
        assert (answer.status_code, problem(answer)) == (429, "rate-limited")
        assert answer.headers["ratelimit-policy"] == f'"action";q={most};w=60'
        assert int(answer.headers["retry-after"]) > 0
        assert (await s.act("status", other)).status_code == 200
        assert (await s.act("status", handle, token=s.backend)).status_code == 200
        await s.told.clock.advance(120)
        assert (await s.act("status", handle)).status_code == 200

    run(story, config(**changes))


def test_a_session_that_does_not_rotate_says_so() -> None:
    """409, not a complaint about parameters that its handle does not keep."""

    async def story(s: Shop) -> None:
        handle, _ = await s.minted()
        answer = await s.told.rotate(handle, token=s.token())
        assert (answer.status_code, problem(answer)) == (409, "rotation-not-supported")
        assert s.upstream.requests == []

    run(story)


@pytest.mark.parametrize(
    "source",
    [
        {"type": "token", "token": "4242424242424242"},
        {"type": "token", "token": "tok_4242 4242"},
        {"type": "id", "id": "4242-4242-4242-4242"},
        {"type": "network_token", "token": "4242424242424242", "expiry_month": 1, "expiry_year": 2030},
    ],
)  # fmt: skip
def test_a_card_number_under_another_name_goes_nowhere(source: dict[str, Any]) -> None:
    """Tokens and ids have a form that no number fits; a network token, which has the form of one,
    needs a yes in words."""

    async def story(s: Shop) -> None:
        answer = await s.mint(source)
        assert (answer.status_code, problem(answer)) == (422, "invalid-parameters")
        assert "4242" not in answer.text
        assert s.upstream.requests == []

    run(story)

    async def allowed(s: Shop) -> None:
        answer = await s.mint(source)
        assert answer.status_code == (202 if source["type"] == "network_token" else 422)

    run(allowed, config(allow_network_tokens=True))


def test_what_happens_to_a_session_outdates_the_reading_under_way() -> None:
    """Who asks after an action, or an event, is not given an answer from before it."""

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        s.upstream.put(sid, "approved", ["complete"])
        gate = asyncio.Event()
        transport: Any = s.told.app._transport
        transport.before = lambda: gate.wait() if transport.calls[-1][0] == "GET" else None
        before = asyncio.create_task(s.act("status", handle))
        await settle()
        assert (await s.act("complete", handle)).status_code == 204
        after = asyncio.create_task(s.act("status", handle, token=s.backend))
        await settle()
        assert len(s.upstream.calls) == 1  # the action's: both readings are held
        assert [call for call in transport.calls if call[0] == "GET"][1:]
        gate.set()
        assert {(await before).status_code, (await after).status_code} == {200}

    run(story)


OTHER_ACCOUNT = {
    "token_url": "https://login.other.example/token",
    "client_id": {"env": "CKO_ID"},
    "client_secret": {"env": "CKO_SECRET"},
}


def test_another_accounts_profile_reads_nothing_for_this_one() -> None:
    """Two profiles of one address with different credentials are different accounts: what one of
    them reads is neither result nor answer of the other."""
    both = tree()
    both["credentials"]["other"] = OTHER_ACCOUNT
    both["profiles"]["q"] = {**both["profiles"]["p"], "credential": "other"}

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        s.upstream.put(sid, "approved")
        s.upstream.answer = lambda request: (
            httpx2.Response(200, json={"access_token": "at-q", "token_type": "Bearer", "expires_in": 9999})
            if request.url.host == "login.other.example"
            else httpx2.Response(404, json={}) if request.headers["authorization"] == "Bearer at-q"
            else None
        )  # fmt: skip
        gate = _gate(s)
        await s.callback({"session_id": sid}, profile="q")
        await settle()
        asking = asyncio.create_task(s.act("status", handle))
        await settle()
        gate.set()
        assert (await asking).json()["status"] == "approved"
        assert [one["profile"] for one in s.results()] == ["p"]

    run(story, json.dumps(both))


@pytest.mark.parametrize(
    "changes",
    [
        {
            "processing_channel_id": "${parameters.pc}",
            "parameters__pc": {"like": "processing_channel_id", "trusted": True},
        },
        {
            "completion": {"type": "non_hosted", "callback_url": "${parameters.cb}"},
            "parameters__cb": {"type": "string", "trusted": True},
        },
    ],
)
def test_a_page_leaves_nothing_out_that_a_server_says(changes: dict[str, Any]) -> None:
    """Neither a merchant nor a part of what is guarded: 422, and nothing is asked."""

    async def story(s: Shop) -> None:
        answer = await s.mint()
        assert (answer.status_code, problem(answer)) == (422, "invalid-parameters")
        assert s.upstream.requests == []
        assert (await s.mint(token=s.backend)).status_code == 202

    run(story, config(**changes))


def test_one_refused_action_does_not_hammer_the_token_endpoint() -> None:
    """Refused whatever the token, one kind of request costs three tokens a minute at the most, with
    the one before; other calls go well in between, and are not kept from renewing theirs."""

    async def story(s: Shop) -> None:
        handle, _ = await s.minted()
        s.upstream.answer = lambda request: (
            httpx2.Response(401) if request.url.path.endswith("issuer-fingerprint") else None
        )
        before = s.upstream.tokens
        for _ in range(10):
            s.told.clock.pass_(1)
            answer = await s.act("issuer-fingerprint", handle, FINGERPRINT)
            assert (answer.status_code, problem(answer)) == (502, "upstream-refused")
            assert (await s.act("status", handle)).status_code == 200
        assert s.upstream.tokens == before + 2
        s.told.clock.pass_(1)
        refused = [httpx2.Response(401)]
        s.upstream.answer = lambda _: refused.pop() if refused else None
        assert (await s.act("status", handle)).status_code == 200
        assert s.upstream.tokens == before + 3

    run(story)


@pytest.mark.parametrize("status", [202, 204])
def test_what_was_done_without_a_word_was_done(status: int) -> None:
    """An answer that would be passed on as it is, and is empty, is a good one: 204."""

    async def story(s: Shop) -> None:
        s.upstream.answer = lambda request: (
            httpx2.Response(status)
            if request.url.path.endswith("/submit")
            else httpx2.Response(201, json={"id": "ps_1", "payment_session_token": "t"})
        )
        minted = await s.told.mint({}, "p", token=s.token())
        assert minted.status_code == 201, minted.text
        answer = await s.act("submit", minted.json()["handle"], {"session_data": "d"})
        assert (answer.status_code, answer.content) == (204, b"")

    run(story, config("checkout/flow", **FLOW))
