"""What an upstream posts: through the real app, over an upstream that counts what it is asked."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from typing import Any

import httpx2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.errors import BrokerError, ConfigError, Fault
from tests.checkout import BASE, OTHER_PAN, SID, Shop, config, refusal, result, shop, sign, tree
from tests.harness import problem
from tests.support import settle


def run(story: Any, text: str | None = None, **options: Any) -> None:
    async def whole() -> None:
        async with shop(text, **options) as s:
            await story(s)

    asyncio.run(whole())


def read(session: str) -> str:
    return f"GET /sessions/{session}"


def hint(session: str = SID, **more: Any) -> dict[str, Any]:
    return {"session_id": session, **more}


def body_of(answer: httpx2.Response) -> tuple[int, bytes]:
    return answer.status_code, answer.content


# --- hints


def test_a_hint_is_answered_at_once_and_read_behind() -> None:
    """204 while the upstream has not been asked yet; then one reading, with our own credential."""

    async def story(s: Shop) -> None:
        _, sid = await s.minted()
        s.upstream.put(sid, "approved")
        gate = asyncio.Event()
        s.told.app._transport.before = gate.wait  # type: ignore[attr-defined]
        assert body_of(await s.callback(hint(sid))) == (204, b"")
        assert s.upstream.calls == []
        gate.set()
        await settle()
        assert s.upstream.calls == [read(sid)]
        assert s.upstream.requests[0].headers["authorization"] == "Bearer at-1"
        assert s.upstream.requests[0].content == b""
        assert s.counted("hint", "verified") == 1

    run(story)


@pytest.mark.parametrize(
    ("said", "found"), [("approved", "declined"), ("declined", "approved"), ("approved", "pending")]
)
def test_a_hints_contents_are_never_believed(said: str, found: str) -> None:
    """Whatever it says besides the session's name; what the upstream says counts."""

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        s.upstream.put(sid, found)
        told = hint(sid, status=said, approved=True, data={"session_id": SID}, cryptogram="x")
        assert (await s.callback(told)).status_code == 204
        await s.told.clock.advance(60)
        assert [line["state"] for line in s.results()] == [found] * (found != "pending")
        answer = (await s.act("status", handle)).json()
        assert answer["status"] == found
        assert "cryptogram" not in answer
        assert read(SID) not in s.upstream.calls

    run(story)


def test_unknown_sessions_are_read_five_times_a_second_for_each_profile() -> None:
    """Anybody can guess names: beyond that they are answered 204, counted, and nothing is asked."""
    both = tree()
    both["profiles"]["q"] = {**both["profiles"]["p"], "base_url": "https://api.example"}
    both["profiles"]["q"]["credential"] = "checkout"

    async def story(s: Shop) -> None:
        names = ["sid_" + f"{i:026d}" for i in range(20)]
        for name in names:
            assert (await s.callback(hint(name))).status_code == 204
        await settle()
        assert sorted(s.upstream.calls) == [read(name) for name in names[:5]]
        assert (s.counted("hint", "unknown"), s.counted("hint", "dropped")) == (5, 15)
        assert (await s.callback(hint(), profile="q")).status_code == 204
        await settle()
        assert s.upstream.calls[5:] == [read(SID)]
        await s.told.clock.advance(2)
        for name in names:
            await s.callback(hint(name))
        await settle()
        assert len(s.upstream.calls) == 11

    run(story, json.dumps(both))


def test_a_known_session_is_read_twelve_times_a_minute() -> None:
    """Each of them has twelve of its own, also while strangers spend what unknown ones share."""

    async def story(s: Shop) -> None:
        (_, one), (_, two) = await s.minted(), await s.minted()
        for i in range(20):
            await s.callback(hint(f"sid_{900 + i:026d}"))
        del s.upstream.sessions[one]  # each reading ends its follow-up
        for _ in range(16):
            assert (await s.callback(hint(one))).status_code == 204
            await settle()
        await s.callback(hint(two))
        assert s.counted("hint", "dropped") == 15 + 4
        await s.told.clock.advance(121)
        s.upstream.requests.clear()
        await s.callback(hint(one))
        await settle()
        assert s.upstream.calls == [read(one)]

    run(story)


def test_many_hints_do_not_spend_what_a_later_one_needs() -> None:
    """While a session is followed up, more hints about it cost nothing: the upstream's own, when it
    is over, still brings the result."""

    async def story(s: Shop) -> None:
        _, sid = await s.minted()
        for _ in range(40):
            await s.callback(hint(sid))
        await s.told.clock.advance(11)
        assert len(s.upstream.calls) == 4
        s.upstream.put(sid, "approved")
        await s.callback(hint(sid))
        await settle()
        assert [one["state"] for one in s.results()] == ["approved"]

    run(story)


def test_repeated_readings_count_too() -> None:
    """With the upstream down, hints about unknown sessions cause no more than five readings in any
    second, those that are tried again included."""

    async def story(s: Shop) -> None:
        s.upstream.answer = lambda _: httpx2.Response(503)
        for i in range(40):
            await s.callback(hint(f"sid_{900 + i:026d}"))
        await settle()
        seen = [len(s.upstream.requests)]
        for _ in range(24):
            s.upstream.requests.clear()
            await s.told.clock.advance(0.5)
            await settle()
            seen.append(len(s.upstream.requests))
        assert seen[0] == 5
        assert all(one + two <= 5 for one, two in itertools.pairwise(seen))

    run(story)


def test_strangers_hold_few_places() -> None:
    """A callback for a profile that takes none is refused before its body is read, and so many
    bodies at once that do not come are: who is known is served meanwhile."""

    async def story(s: Shop) -> None:
        never: Any = asyncio.Event()

        async def slowly() -> Any:
            await never.wait()
            yield b""

        async def stalled(profile: str) -> httpx2.Response:
            return await s.told.client.post(
                f"/v1/callbacks/{profile}",
                content=slowly(),
                headers={"content-type": "application/json"},
            )

        assert problem(await asyncio.wait_for(stalled("nothing"), 5)) == "unknown-profile"
        waiting = [asyncio.create_task(stalled("p")) for _ in range(32)]
        await settle()
        answer = await asyncio.wait_for(stalled("p"), 5)
        assert (answer.status_code, problem(answer)) == (503, "overloaded")
        assert (await s.mint()).status_code == 202
        never.set()
        for task in waiting:
            assert problem(await task) == "malformed-request"
        assert (await s.callback(hint(SID))).status_code == 204

    run(story)


@pytest.mark.parametrize(
    "body",
    [
        {}, {"session_id": None}, {"session_id": 5}, {"session_id": ""}, {"session_id": [SID]},
        {"session_id": SID + "x"}, {"session_id": SID[:-1]}, {"session_id": SID + "\n"},
        {"session_id": SID.upper()}, {"session_id": "../" + SID}, {"session_id": SID[:-1] + "/"},
        {"session_id": SID[:-1] + "é"}, {"session_id": {"session_id": SID}}, {"id": SID},
        {"data": [SID]}, {"data": {"session_id": "sid_"}}, [], [SID], "x", None, 5, SID,
        {"session_id": "nonsense", "data": {"session_id": SID}},
    ],
)  # fmt: skip
def test_a_name_that_is_none_is_ignored(body: Any) -> None:
    """Answered like any other, counted, and nothing is asked."""

    async def story(s: Shop) -> None:
        assert body_of(await s.callback(body)) == (204, b"")
        await s.told.clock.advance(60)
        assert s.upstream.requests == []
        assert s.counted("hint", "ignored") == 1
        assert s.told.audit[-1]["callback"] == "ignored"

    run(story)


def test_a_hint_while_the_upstream_fails_is_tried_again_and_given_up() -> None:
    """After 0.5, 2 and 8 more seconds; then not, and that is counted."""

    async def story(s: Shop) -> None:
        _, sid = await s.minted()
        s.upstream.answer = lambda _: httpx2.Response(503)
        await s.callback(hint(sid))
        at = []
        for wait in (0, 0.49, 0.02, 1.98, 0.02, 7.98, 0.02, 600):
            await s.told.clock.advance(wait)
            at.append(len(s.upstream.requests))
        assert at == [1, 1, 2, 2, 3, 3, 4, 4]
        assert s.counted("hint", "failed") == 1
        assert s.results() == []

    run(story)


def test_a_hint_that_came_too_early_finds_the_result_later() -> None:
    """While the session is not over yet, it is read again."""

    async def story(s: Shop) -> None:
        _, sid = await s.minted()
        await s.callback(hint(sid))
        await settle()
        s.upstream.put(sid, "approved")
        await s.told.clock.advance(0.5)
        assert s.upstream.calls == [read(sid)] * 2
        await s.told.clock.advance(60)
        assert s.upstream.calls == [read(sid)] * 2
        assert (s.counted("hint", "verified"), len(s.results())) == (1, 1)

    run(story)


def test_a_session_that_stays_open_is_left() -> None:
    """Four readings, and it counts as open, not as failed."""

    async def story(s: Shop) -> None:
        _, sid = await s.minted()
        await s.callback(hint(sid))
        await s.told.clock.advance(60)
        assert s.upstream.calls == [read(sid)] * 4
        assert (s.counted("hint", "open"), s.counted("hint", "failed")) == (1, 0)

    run(story)


def test_hints_together_cost_one_reading() -> None:
    """They are followed up once, all of them; and one while the result is known not at all."""

    async def story(s: Shop) -> None:
        _, sid = await s.minted()
        s.upstream.put(sid, "approved")
        await asyncio.gather(*(s.callback(hint(sid)) for _ in range(4)))
        await settle()
        assert s.upstream.calls == [read(sid)]
        assert (await s.callback(hint(sid))).status_code == 204
        await settle()
        assert s.upstream.calls == [read(sid)]
        assert (s.counted("hint", "verified"), s.counted("hint", "duplicate")) == (1, 4)
        assert len(s.results()) == 1

    run(story)


# --- signed events


def test_a_signed_event_is_read_before_it_is_answered() -> None:
    """Who delivers it knows by the 204 that we know how it ended."""

    async def story(s: Shop) -> None:
        _, sid = await s.minted()
        s.upstream.put(sid, "approved")
        assert body_of(await s.event(sid)) == (204, b"")
        assert s.upstream.calls == [read(sid)]
        assert (s.counted("event", "verified"), len(s.results())) == (1, 1)
        assert s.told.audit[-1]["callback"] == "verified"

    run(story)


RAW = b'{"id":"evt_1", "data":{"session_id":"%s"},"n":1.50}' % SID.encode()
BAD: dict[str, str] = {
    "empty": "",
    "nonsense": "nonsense",
    "of another key": sign(RAW, "another key"),
    "of the empty key": sign(RAW, " "),
    "of what the body means": sign(json.dumps(json.loads(RAW)).encode()),
    "of the body written compactly": sign(
        json.dumps(json.loads(RAW), separators=(",", ":")).encode()
    ),
    "of another body": sign(RAW + b" "),
    "cut": sign(RAW)[:-1],
    "with more": sign(RAW) + "0",
    "twice": f"{sign(RAW)}, {sign(RAW)}",
    "a plain digest": hashlib.sha256(RAW).hexdigest(),
    "beyond ASCII": "é" * 64,
}


@pytest.mark.parametrize("signature", BAD.values(), ids=BAD.keys())
def test_a_bad_signature_is_refused(signature: str) -> None:
    """401, and the upstream is not asked; never taken for a hint instead."""

    async def story(s: Shop) -> None:
        sent = {"cko-signature": signature.encode("latin-1"), "content-type": "application/json"}
        answer = await s.told.client.post("/v1/callbacks/p", content=RAW, headers=sent)
        assert (answer.status_code, problem(answer)) == (401, "unauthenticated")
        await s.told.clock.advance(60)
        assert s.upstream.requests == []
        assert s.upstream.tokens == 0
        assert s.counted("event", "refused") == 1
        assert s.told.audit[-1]["cause"] == "signature"

    run(story)


@pytest.mark.parametrize("written", [str.lower, str.upper, lambda hex_: f" {hex_}\t"])
def test_a_good_signature_in_any_writing(written: Any) -> None:
    """Hex in either case; over the bytes as they came."""

    async def story(s: Shop) -> None:
        answer = await s.callback(RAW, cko_signature=written(sign(RAW)))
        assert answer.status_code == 204
        assert s.upstream.calls == [read(SID)]

    run(story)


def test_without_a_key_no_signature_is_good() -> None:
    """A profile without `webhook_key` refuses what is signed, and takes hints."""

    async def story(s: Shop) -> None:
        for key in ("", "None", "null"):
            answer = await s.callback(RAW, cko_signature=sign(RAW, key))
            assert (answer.status_code, problem(answer)) == (401, "unauthenticated")
            assert s.told.audit[-1]["cause"] == "no webhook_key"
        assert s.upstream.requests == []
        assert (await s.callback(hint())).status_code == 204

    run(story, config(webhook_key=None))


def test_an_event_is_dealt_with_once() -> None:
    """Deliveries repeat: once the session is over, an event is read for once, and no other about it
    is, for a day; the event itself is known for a week."""

    async def story(s: Shop) -> None:
        _, sid = await s.minted()
        s.upstream.put(sid, "approved")
        for _ in range(3):
            assert (await s.event(sid, "evt_1")).status_code == 204
        await s.event(sid, "evt_2")
        assert s.upstream.calls == [read(sid)]
        assert s.counted("event", "duplicate") == 3
        await s.told.clock.advance(7 * 86400 - 1)
        await s.event(sid, "evt_1")
        assert s.upstream.calls == [read(sid)]
        await s.event(sid, "evt_2")
        assert s.upstream.calls == [read(sid)] * 2

    run(story)


def test_an_event_that_comes_too_early_is_a_reason_to_ask_again() -> None:
    """What was read while the session was open settles nothing: sent again, the same event brings
    the result."""

    async def story(s: Shop) -> None:
        _, sid = await s.minted()
        assert (await s.event(sid, "evt_1")).status_code == 204
        s.upstream.put(sid, "approved")
        assert (await s.event(sid, "evt_1")).status_code == 204
        assert s.upstream.calls == [read(sid)] * 2
        assert (s.counted("event", "open"), s.counted("event", "verified")) == (1, 1)

    run(story)


def test_an_answer_about_another_session_is_nonsense() -> None:
    """The result of one session is never kept for another."""

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        other = s.upstream.put("sid_" + "b" * 26, "approved")
        s.upstream.answer = lambda _: httpx2.Response(200, json=other)
        answer = await s.act("status", handle)
        assert (answer.status_code, problem(answer)) == (502, "upstream-nonsense")
        assert (await s.event(sid, "evt_1")).status_code == 502
        s.upstream.answer = None
        assert (await s.act("status", handle)).json()["status"] == "pending"

    run(story)


@pytest.mark.parametrize("event", [None, 5, "", ["evt"], "e" * 256])
def test_an_event_without_a_name_is_read_for_each_time(event: Any) -> None:
    """It cannot be known again."""

    async def story(s: Shop) -> None:
        _, sid = await s.minted()
        await s.event(sid, event)
        await s.event(sid, event)
        assert s.upstream.calls == [read(sid)] * 2

    run(story)


def test_events_out_of_order_leave_the_final_result() -> None:
    """Approved, then started: it stays approved, for one reading and one line."""

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        s.upstream.put(sid, "approved")
        await s.event(sid, "evt_2", type="authentication_approved")
        s.upstream.put(sid, "processing", ["challenge_cardholder"])
        assert (await s.event(sid, "evt_1", type="authentication_started")).status_code == 204
        assert (await s.act("status", handle)).json()["status"] == "approved"
        assert s.upstream.calls == [read(sid)]
        assert [line["state"] for line in s.results()] == ["approved"]

    run(story)


@pytest.mark.parametrize(
    ("failing", "status", "slug"),
    [
        (httpx2.Response(503), 503, "upstream-unavailable"),
        (httpx2.Response(429), 503, "upstream-unavailable"),
        (httpx2.Response(401), 502, "upstream-refused"),
        (httpx2.Response(200, content=b"<html>"), 502, "upstream-nonsense"),
        (refusal(403, "unauthorized"), 502, "upstream-refused"),
    ],
)
def test_an_event_that_could_not_be_read_for_is_delivered_again(
    failing: httpx2.Response, status: int, slug: str
) -> None:
    """5xx, so that it is sent again; and then it is no duplicate."""

    async def story(s: Shop) -> None:
        _, sid = await s.minted()
        s.upstream.put(sid, "approved")
        s.upstream.answer = lambda _: failing
        posting = asyncio.create_task(s.event(sid))
        await s.told.clock.advance(2)  # a reading is tried again, with a pause
        answer = await posting
        assert (answer.status_code, problem(answer)) == (status, slug)
        assert (s.counted("event", "failed"), s.results()) == (1, [])
        s.upstream.answer = None
        assert (await s.event(sid)).status_code == 204
        assert s.counted("event", "verified") == 1
        assert len(s.results()) == 1

    run(story)


def test_an_event_about_something_else_is_taken_and_ignored() -> None:
    """A workflow posts more than sessions: 204, or it would be sent again for ever."""

    async def story(s: Shop) -> None:
        raw = b'{"id":"evt_1","type":"payment_approved","data":{"id":"pay_1"}}'
        assert (await s.callback(raw, cko_signature=sign(raw))).status_code == 204
        assert s.upstream.requests == []
        assert s.counted("event", "ignored") == 1

    run(story)


def test_an_event_about_an_unknown_session_is_no_error() -> None:
    """The upstream knows no such session: nothing that a repetition could mend."""

    async def story(s: Shop) -> None:
        assert (await s.event(SID)).status_code == 204
        assert s.counted("event", "unknown") == 1
        assert s.results() == []

    run(story)


# --- the door


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://app.shop.example"}, {"origin": "null"}, {"origin": ""},
        {"sec_fetch_site": "same-origin"}, {"sec_fetch_site": "none"}, {"sec_fetch_site": "cross-site"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("signed", [False, True])
def test_pages_do_not_call_back(headers: dict[str, str], signed: bool) -> None:
    """Whatever has a browser's marks is refused, signed or not."""

    async def story(s: Shop) -> None:
        more = {"cko_signature": sign(RAW)} if signed else {}
        answer = await s.callback(RAW, **headers, **more)
        assert (answer.status_code, problem(answer)) == (403, "origin-not-allowed")
        assert "access-control-allow-origin" not in answer.headers
        await s.told.clock.advance(60)
        assert s.upstream.requests == []

    run(story)


@pytest.mark.parametrize(
    ("raw", "kind", "status", "slug"),
    [
        (RAW, "text/plain", 415, "unsupported-media-type"),
        (RAW, "", 415, "unsupported-media-type"),
        (RAW, "application/x-www-form-urlencoded", 415, "unsupported-media-type"),
        (RAW, "application/json-patch+json", 415, "unsupported-media-type"),
        (b'{"a":"' + b"x" * 16384 + b'"}', "application/json", 413, "request-too-large"),
        (b"", "application/json", 400, "malformed-request"),
        (b"{", "application/json", 400, "malformed-request"),
        (b'{"session_id":"a","session_id":"b"}', "application/json", 400, "malformed-request"),
        (b"\xff", "application/json", 400, "malformed-request"),
        (b'{"n":NaN}', "application/json", 400, "malformed-request"),
        (b"[" * 5000, "application/json; charset=utf-8", 400, "malformed-request"),
    ],
)
def test_what_is_not_taken(raw: bytes, kind: str, status: int, slug: str) -> None:
    """Another type, too much, or no JSON: refused, also where the signature is good."""

    async def story(s: Shop) -> None:
        for signed in ({}, {"cko_signature": sign(raw)}):
            answer = await s.callback(raw, content_type=kind, **signed)
            assert (answer.status_code, problem(answer)) == (status, slug)
        assert s.upstream.requests == []

    run(story)


@pytest.mark.parametrize("name", ["nope", "", "P", "p/", "flow", "p%2F"])
def test_there_is_no_such_profile(name: str) -> None:
    """Unknown, or of a preset whose upstream posts nothing: one answer for both."""
    both = tree()
    both["profiles"]["flow"] = {
        "preset": "checkout/flow", "credential": "checkout", "base_url": BASE, "amount": 1,
        "currency": "GBP", "billing": {"address": {"country": "GB"}},
        "success_url": "https://s.example/a", "failure_url": "https://s.example/b",
        "allow": {"callers": ["pages"]},
    }  # fmt: skip

    async def story(s: Shop) -> None:
        answer = await s.callback(RAW, profile=name, cko_signature=sign(RAW))
        slug = "unknown-profile" if "/" not in name and name else "not-found"
        slug = "not-found" if "%2F" in name else slug
        assert (answer.status_code, problem(answer)) == (404, slug)
        assert s.upstream.requests == []

    run(story, json.dumps(both))


def test_only_posts_call_back() -> None:
    """GET is 405."""

    async def story(s: Shop) -> None:
        assert (await s.told.client.get("/v1/callbacks/p")).status_code == 405

    run(story)


def test_the_audit_line_of_a_callback() -> None:
    """Operation, profile and what became of it; nothing of the body."""

    async def story(s: Shop) -> None:
        await s.callback(hint(SID, note=OTHER_PAN))
        line = s.told.audit[-1]
        kept = {k: line[k] for k in ("operation", "profile", "callback", "status", "outcome")}
        assert kept == {
            "operation": "callback", "profile": "p", "callback": "taken", "status": 204,
            "outcome": "ok",
        }  # fmt: skip
        assert OTHER_PAN not in json.dumps(s.told.audit)
        assert SID not in json.dumps(s.told.audit)

    run(story)


def test_a_signed_events_result_is_for_the_backend() -> None:
    """The merchant's own server then reads it without a call upstream."""

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        s.upstream.put(sid, "approved")
        await s.event(sid)
        answer = await s.act("status", handle, token=s.backend)
        assert (answer.status_code, answer.json()) == (200, result(sid))
        assert s.upstream.calls == [read(sid)]

    run(story)


MANY = st.one_of(
    st.binary(max_size=80),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(SID),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["session_id", "data", "id", "x"]), inner, max_size=3)
        ),
        max_leaves=6,
    ).map(lambda found: json.dumps(found).encode()),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(MANY, st.booleans(), st.sampled_from(["p", "q"])), max_size=4))
@example([(b'{"session_id":"' + SID.encode() + b'"}', True, "p")])
@example([(b"[" * 9999, True, "p")])
@example([(b'"\\ud800"', False, "p"), (b'{"id":1e999}', True, "p")])
def test_any_bytes_are_an_outcome_or_a_problem(posts: list[tuple[bytes, bool, str]]) -> None:
    """`receive` raises a BrokerError or says what became of it, whatever is posted."""

    async def story(s: Shop) -> None:
        gate: Any = s.told.app._assembly.public
        endpoint: Any = next(r for r in gate._app.routes if "callbacks" in r.path).app
        callbacks = endpoint._handler.__self__._callbacks
        for raw, signed, name in posts:
            headers = {b"cko-signature": sign(raw).encode()} if signed else {}
            try:
                outcome = await callbacks.receive(name, headers, raw)
            except BrokerError:
                continue
            assert outcome in ("taken", "ignored", "duplicate", "dropped", "unknown")

    run(story)


def test_a_signature_key_that_can_be_guessed_is_refused() -> None:
    """Fifteen bytes are a fault of the configuration, told by where the key is; sixteen are not."""

    async def story(_: Shop) -> None:
        pass

    run(story, env={"WEBHOOK": "k" * 16})
    with pytest.raises(ConfigError) as caught:
        run(story, env={"WEBHOOK": "k" * 15})
    reason = "env:WEBHOOK: a signature key has 16 bytes or more"
    assert list(caught.value.faults) == [Fault("/profiles/p/webhook_key", reason)]
