"""What can be done with a handle, where one caller's doings meet another's: turns, limits, readings."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.checkout import Shop, config, shop
from tests.harness import problem
from tests.support import settle

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
