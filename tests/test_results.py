"""How sessions ended, and who may know: pages, the merchant's backend, and nobody else."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

from broker.errors import Fault
from tests.checkout import (
    SECRET_MEMBERS,
    Shop,
    config,
    faults,
    progress,
    refusal,
    result,
    shop,
    tree,
)
from tests.harness import ORIGIN, problem

FINAL = (
    "approved", "attempted", "unavailable", "declined", "rejected", "challenge_abandoned", "expired",
)  # fmt: skip
OPEN = ("pending", "processing", "challenged", "", "APPROVED", "approved ", "unknown")


def run(story: Any, text: str | None = None, **options: Any) -> None:
    async def whole() -> None:
        async with shop(text, **options) as s:
            await story(s)

    asyncio.run(whole())


@pytest.mark.parametrize("state", FINAL)
def test_a_final_result_is_remembered(state: str) -> None:
    """Read once, told to the log once; from then on `status` asks nobody, for the page and for the
    backend, each in its own view."""

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        s.upstream.put(sid, state)
        for _ in range(3):
            answer = await s.act("status", handle)
            assert (answer.status_code, answer.json()) == (200, progress(sid, state))
            answer = await s.act("status", handle, token=s.backend)
            told = result(sid) | {"status": state, "approved": state == "approved"}
            assert (answer.status_code, answer.json()) == (200, told)
        assert s.upstream.calls == [f"GET /sessions/{sid}"]
        chain = s.told.audit[0]["chain"]
        (line,) = s.results()
        line.pop("timestamp")
        assert line == {
            "profile": "p", "session": sid, "chain": chain, "state": state, "source": "status",
        }  # fmt: skip

    run(story)


@pytest.mark.parametrize("state", OPEN)
def test_what_is_not_final_is_not_remembered(state: str) -> None:
    """Each `status` asks anew."""

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        s.upstream.put(sid, state)
        for token in (None, s.backend, None):
            assert (await s.act("status", handle, token=token)).status_code == 200
        assert len(s.upstream.calls) == 3
        assert s.results() == []

    run(story)


@pytest.mark.parametrize(
    ("more", "final"),
    [
        ({"next_actions": ["complete"]}, False),
        ({"next_actions": []}, True),
        ({"next_actions": None}, True),
        ({}, True),
        ({"status": 5}, False),
        ({"status": None}, False),
        ({"status": ["approved"]}, False),
        ({"status": {"approved": 1}}, False),
    ],
)
def test_a_state_is_final_while_nothing_is_left_to_do(more: dict[str, Any], final: bool) -> None:
    """A session whose `next_actions` has something in it is not over, whatever its status."""

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        told = {"id": sid, "status": "approved", **more}
        s.upstream.answer = lambda _: httpx2.Response(200, json=told)
        await s.act("status", handle)
        await s.act("status", handle)
        assert len(s.upstream.calls) == (1 if final else 2)
        assert len(s.results()) == final

    run(story)


def test_only_a_reading_makes_a_result() -> None:
    """Another action's answer may say so; it is not kept."""

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        s.upstream.put(sid, "approved")
        data = {"three_ds_method_completion": "Y"}
        assert (await s.act("issuer-fingerprint", handle, data)).json()["status"] == "approved"
        assert s.results() == []

    run(story)


def test_a_result_is_forgotten_after_a_day() -> None:
    """As upstream, where the cryptogram can be read for a day."""

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        s.upstream.put(sid, "approved")
        await s.told.clock.advance(600)
        await s.act("status", handle)
        await s.told.clock.advance(86400 - 601)
        assert (await s.act("status", handle, token=s.backend)).json() == result(sid)
        assert len(s.upstream.calls) == 1

    run(story, config(session_lifetime="15m"))


def test_a_reading_with_the_sessions_own_token_is_not_the_result() -> None:
    """It hides what the backend would be told; so it is not kept, and the backend gets it whole."""

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        s.upstream.put(sid, "approved")
        hidden = {"id": sid, "status": "approved", "next_actions": []}
        s.upstream.answer = lambda request: (
            httpx2.Response(200, json=hidden)
            if request.headers["authorization"] == "sek_x"
            else None
        )
        answer = await s.act("status", handle, session_token="sek_x")
        assert answer.json() == hidden
        assert s.results() == []
        assert (await s.act("status", handle, token=s.backend)).json() == result(sid)
        assert len(s.results()) == 1

    run(story)


def test_results_are_shared_by_the_profiles_of_one_account() -> None:
    """An account's events come to one address: what was learnt there is known to the other
    profile, and told of the one that minted; another account knows nothing of it."""
    both = tree()
    both["profiles"]["hooks"] = both["profiles"]["p"]
    both["profiles"]["elsewhere"] = {
        **both["profiles"]["p"], "base_url": "https://checkout.shop.example",
    }  # fmt: skip

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        s.upstream.put(sid, "approved")
        assert (await s.callback({"session_id": sid}, profile="hooks")).status_code == 204
        await s.told.clock.advance(0)
        assert (await s.act("status", handle)).json()["status"] == "approved"
        assert len(s.upstream.calls) == 1
        assert [line["profile"] for line in s.results()] == ["p"]
        await s.callback({"session_id": sid}, profile="elsewhere")
        await s.told.clock.advance(0)
        assert len(s.upstream.calls) == 2
        assert [line["profile"] for line in s.results()] == ["p", "elsewhere"]

    run(story, json.dumps(both))


# --- whom a profile trusts


def test_the_backend_reads_what_became_of_a_pages_session() -> None:
    """With the page's handle, and more than the page: what a payment is authorised with."""

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        s.upstream.put(sid, "processing", ["challenge_cardholder"])
        page = (await s.act("status", handle)).json()
        assert page == progress(sid, "processing", "challenge_cardholder")
        backend = (await s.act("status", handle, token=s.backend)).json()
        assert backend.keys() - page.keys() == {
            "amount", "approved", "card", "response_code", *SECRET_MEMBERS,
        }  # fmt: skip

    run(story)


@pytest.mark.parametrize("action", ["collect-data", "issuer-fingerprint", "complete", "nope", ""])
def test_the_backend_may_only_read(action: str) -> None:
    """Actions that say nothing of trusted callers are not for them, and the upstream is not
    asked."""

    async def story(s: Shop) -> None:
        handle, _ = await s.minted()
        answer = await s.act(action, handle, {}, token=s.backend)
        expected = (409, "action-not-allowed") if action else (404, "not-found")
        assert (answer.status_code, problem(answer)) == expected
        assert s.upstream.requests == []

    run(story)


def test_only_the_trusted_may_show_anothers_handle() -> None:
    """Not another page, not a service that is not listed, not the backend with an Origin, and no
    one where nobody is trusted: one text for all of them."""

    async def story(s: Shop) -> None:
        handle, _ = await s.minted()
        others = [
            (s.token(subject="bob"), {}),
            (s.token("third-backend"), {}),
            (s.backend, {"origin": ORIGIN}),
        ]
        texts = set()
        for token, headers in others:
            answer = await s.act("status", handle, token=token, headers=headers)
            assert (answer.status_code, problem(answer)) == (403, "not-permitted")
            texts.add(answer.json()["detail"])
        assert texts == {"This handle was made for somebody else."}
        assert s.upstream.requests == []

    run(story)

    async def nobody(s: Shop) -> None:
        handle, _ = await s.minted()
        answer = await s.act("status", handle, token=s.backend)
        assert (answer.status_code, problem(answer)) == (403, "not-permitted")
        assert s.upstream.requests == []

    run(nobody, config(allow__trusted=[]))


def test_a_stranger_learns_nothing_of_anothers_handle() -> None:
    """Not even that its chain was ended, or that there is no such action: 403 for all of it."""

    async def story(s: Shop) -> None:
        handle, _ = await s.minted()
        assert (await s.told.end(handle, token=s.token())).status_code == 204
        for action in ("status", "complete", "nope"):
            for token in (s.token(subject="bob"), s.token("third-backend")):
                answer = await s.act(action, handle, token=token)
                assert (answer.status_code, problem(answer)) == (403, "not-permitted")

    run(story)


def test_the_backend_with_an_origin_gets_what_a_page_gets() -> None:
    """Also of a session of its own: a browser that shows a service's credential is a browser."""

    async def story(s: Shop) -> None:
        handle, sid = await s.minted(token=s.backend)
        s.upstream.put(sid, "approved")
        answer = await s.act("status", handle, token=s.backend)
        assert answer.json() == result(sid)
        answer = await s.act("status", handle, token=s.backend, headers={"origin": ORIGIN})
        assert (answer.status_code, problem(answer)) == (403, "not-permitted")  # require counts

    run(story)


def test_the_trusted_neither_rotate_nor_end_for_others() -> None:
    """A handle of somebody else stays theirs."""

    async def story(s: Shop) -> None:
        handle, _ = await s.minted()
        for answer in (
            await s.told.rotate(handle, token=s.backend),
            await s.told.end(handle, token=s.backend),
        ):
            assert (answer.status_code, problem(answer)) == (403, "not-permitted")
        assert (await s.act("status", handle)).status_code == 200

    run(story)


def test_an_ended_chain_is_over_for_its_page_only() -> None:
    """410 for whoever had it; the merchant's backend still reads how it ended, as a page that logs
    out must not take away what the payment is authorised with."""

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        s.upstream.put(sid, "approved")
        await s.act("status", handle)
        assert (await s.told.end(handle, token=s.token())).status_code == 204
        answer = await s.act("status", handle)
        assert (answer.status_code, problem(answer)) == (410, "handle-expired")
        answer = await s.act("status", handle, token=s.backend)
        assert (answer.status_code, answer.json()["status"]) == (200, "approved")
        assert "cryptogram" in answer.json()
        for path in ("rotate", "end"):
            answer = await s.told.post(f"/v1/sessions/{path}", {"handle": handle}, token=s.backend)
            assert (answer.status_code, problem(answer)) == (403, "not-permitted")
        assert len(s.upstream.calls) == 1

    run(story)


@pytest.mark.parametrize(
    ("after", "page", "backend"),
    [(899, 200, 200), (900, 410, 200), (86399, 410, 200), (86400, 410, 410)],
)
def test_the_backend_reads_for_a_day(after: int, page: int, backend: int) -> None:
    """A session's life ends for its page; its result can be read for 24 hours after the mint."""

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        s.upstream.put(sid, "approved")
        await s.told.clock.advance(after)
        assert (await s.act("status", handle)).status_code == page
        answer = await s.act("status", handle, token=s.backend)
        assert answer.status_code == backend
        if backend == 200:
            assert answer.json() == result(sid)
        else:
            assert problem(answer) == "handle-expired"

    run(story)


def test_the_trusted_are_exempt_from_required_claims() -> None:
    """A service has no role. A page without it is refused as ever."""

    async def story(s: Shop) -> None:
        assert (await s.mint(token=s.backend)).status_code == 202
        for token in (s.token(role=None), s.token(role="guest")):
            assert (await s.mint(token=token)).status_code == 403
        answer = await s.mint(token=s.backend, origin=ORIGIN)
        assert (answer.status_code, problem(answer)) == (403, "not-permitted")
        assert len(s.upstream.calls) == 1

    run(story)


TRUSTED = {
    "amount": "${parameters.amount}",
    "parameters__amount": {"like": "amount", "trusted": True},
}


def test_a_trusted_parameter_is_for_the_trusted() -> None:
    """A page that says it is told where, and nothing is asked; the backend's reaches the upstream.
    To leave out an amount is a way of saying one, so a page cannot do that either.
    A backend's own request from a browser is a page's."""

    async def story(s: Shop) -> None:
        for options in ({}, {"token": s.token("other-backend"), "origin": ORIGIN}):
            answer = await s.mint(parameters={"amount": 1}, **options)
            assert (answer.status_code, problem(answer)) == (422, "invalid-parameters")
            assert answer.json()["errors"] == [
                {"pointer": "/parameters/amount", "reason": "is for trusted callers only"}
            ]
        assert s.upstream.requests == []
        answer = await s.mint(parameters={"amount": 1}, token=s.backend)
        assert answer.status_code == 202
        assert s.upstream.body["amount"] == 1
        answer = await s.mint(token=s.backend)
        assert (answer.status_code, "amount" in s.upstream.body) == (202, False)
        answer = await s.mint()
        assert (answer.status_code, problem(answer)) == (422, "invalid-parameters")
        assert [one["pointer"] for one in answer.json()["errors"]] == ["/parameters/amount"]
        assert len(s.upstream.requests) == 2

    run(story, config(**TRUSTED))


@pytest.mark.parametrize("amount", [-1, "1", 1.5, None, 10**12])
def test_the_trusted_are_checked_too(amount: Any) -> None:
    """A trusted parameter has bounds like any other."""

    async def story(s: Shop) -> None:
        answer = await s.mint(parameters={"amount": amount}, token=s.backend)
        assert (answer.status_code, problem(answer)) == (422, "invalid-parameters")
        assert [one["pointer"] for one in answer.json()["errors"]] == ["/parameters/amount"]
        assert s.upstream.requests == []

    run(story, config(**TRUSTED))


def test_a_callers_later_claims_do_not_read_anothers_session() -> None:
    """The page's own claims are asked again; the backend's are not compared with them."""
    text = config(reference="${claims.order}")

    async def story(s: Shop) -> None:
        handle, _ = await s.minted(token=s.token(order="o-1"))
        assert (await s.act("status", handle, token=s.token(order="o-1"))).status_code == 200
        answer = await s.act("status", handle, token=s.token(order="o-2"))
        assert (answer.status_code, problem(answer)) == (410, "handle-expired")
        assert (await s.act("status", handle, token=s.backend)).status_code == 200

    run(story, text)


def test_claims_and_parameters_may_fill_one_setting() -> None:
    """The same caller with the same claims goes on with the session."""
    text = config(
        source={"type": "token", "token": "${parameters.token}", "email": "${claims.email}"},
        channel_data=None,
        parameters={"token": {"type": "string"}},
    )

    async def story(s: Shop) -> None:
        token = s.token(email="ada@shop.example")
        answer = await s.told.mint({"parameters": {"token": "tok_1"}}, "p", token=token)
        handle = answer.json()["handle"]
        assert (await s.act("status", handle, token=token)).status_code == 200
        other = s.token(email="bob@shop.example")
        assert (await s.act("status", handle, token=other)).status_code == 410

    run(story, text)


def test_an_unknown_session_is_over() -> None:
    """The upstream's 404 is `handle-expired`, for page and backend."""

    async def story(s: Shop) -> None:
        handle, _ = await s.minted()
        s.upstream.answer = lambda _: refusal(404)
        for token in (None, s.backend):
            answer = await s.act("status", handle, token=token)
            assert (answer.status_code, problem(answer)) == (410, "handle-expired")

    run(story)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"allow__trusted": ["strangers"]}, [Fault("/profiles/p/allow/trusted", "'strangers' is not among allow.callers")]),
        ({"allow__trusted": [], **TRUSTED}, [Fault("/profiles/p/parameters/amount", "nobody may send it: allow.trusted names no caller")]),
        ({"amount": "${parameters.amount}", "parameters__amount": {"like": "amount"}},
         [Fault("/profiles/p/amount", "amount comes from claims, from this file, or from a parameter with trusted: true; a browser does not say it")]),
    ],
)  # fmt: skip
def test_whom_a_profile_cannot_trust(changes: dict[str, Any], expected: list[Fault]) -> None:
    """Told when the configuration is read."""
    assert faults(config(**changes)) == expected


def test_anonymous_and_forward_auth_are_never_trusted() -> None:
    """They speak for browsers."""
    told = tree(allow__trusted=["anonymous", "whoami"])
    told["insecure_anonymous"] = True
    told["callers"]["whoami"] = {"type": "forward_auth", "url": "https://shop.example/whoami"}
    told["profiles"]["p"]["allow"]["callers"] += ["anonymous", "whoami"]
    assert faults(json.dumps(told)) == [
        Fault("/profiles/p/allow/trusted", "'anonymous' speaks for browsers"),
        Fault("/profiles/p/allow/trusted", "'whoami' speaks for browsers"),
    ]
