"""What an upstream's no means, what the log is told of it, and that nothing else gets out."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.errors import (
    BrokerError,
    InvalidParameters,
    Throttled,
    UpstreamError,
    UpstreamNonsense,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
    outcome_of,
)
from broker.model import JSON, Priority
from broker.presets import load_preset, packaged, parse_preset
from broker.presets.vocabulary import Request
from broker.upstreams.refusals import Busy, refusal_of, repeats
from broker.upstreams.transport import Answer, BrokenOff, NotSent
from tests.checkout import Shop, progress, refusal, shop
from tests.harness import problem
from tests.support import settle

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
PRESET = """
summary: an upstream
reuse: per_caller
settings: {key: {type: secret, required: true}}
authorization: {secret: key}
request: {path: /sessions}
answer: {token: /token, expiry: {at: /end}}
output: {t: "${session.token}"}
refusals:
  - {status: 400, at: /code, pattern: "^gone", means: handle-expired}
  - {status: 400, at: /code, pattern: "state", means: action-not-allowed}
  - {status: 400, at: /code, pattern: "^gone_too", means: invalid-parameters}
  - {status: 400, at: /codes, pattern: "^value_", means: invalid-parameters}
  - {status: 400, at: /deep/er/code, pattern: "^down$", means: upstream-unavailable}
  - {status: 423, means: busy}
  - {at: /code, pattern: "^done$", means: done}
diagnosis: {codes: [/code, /codes], request_id: /request, request_id_header: X-Trace}
"""
FILE = parse_preset("test", PRESET).file
SILENT = parse_preset("test", PRESET[: PRESET.index("refusals:")]).file


def said(
    status: int,
    body: Any = None,
    *,
    conflict: list[int] | None = [409],  # noqa: B006  (never changed)
    file: Any = FILE,
    **headers: str,
) -> BrokerError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return refusal_of(file, Answer(status, fields, raw), conflict, NOON)


MEANINGS: list[tuple[int, Any, str]] = [
    (400, {"code": "gone"}, "HandleExpired"),
    (400, {"code": "gone_state"}, "HandleExpired"),  # the first that fits
    (400, {"code": "gone_too"}, "HandleExpired"),
    (400, {"code": "a_state_b"}, "ActionNotAllowed"),
    (400, {"code": "not_gone"}, "UpstreamRefused"),
    (400, {"codes": ["x", "value_bad"]}, "InvalidParameters"),
    (400, {"codes": "value_bad"}, "InvalidParameters"),
    (400, {"codes": [["value_bad"]]}, "UpstreamRefused"),
    (400, {"codes": {"0": "value_bad"}}, "UpstreamRefused"),
    (400, {"codes": [None, 5, "value_"]}, "InvalidParameters"),
    (400, {"codes": []}, "UpstreamRefused"),
    (400, {"deep": {"er": {"code": "down"}}}, "NotForThis"),
    (408, {"deep": {"er": {"code": "down"}}}, "UpstreamUnavailable"),
    (400, {"deep": ["er"]}, "UpstreamRefused"),
    (401, {"code": "gone"}, "CredentialRefused"),
    (403, {"code": "gone"}, "UpstreamRefused"),
    (423, {}, "Busy"),
    (423, b"<html>", "Busy"),
    (409, {"code": "done"}, "Done"),
    (500, {"code": "done"}, "Done"),
    (409, {}, "ActionNotAllowed"),
    (409, b"", "ActionNotAllowed"),
    (408, {}, "UpstreamUnavailable"),
    (425, {}, "UpstreamUnavailable"),
    (429, {}, "Throttled"),
    (500, {}, "UpstreamUnavailable"),
    (599, b"\xff", "UpstreamUnavailable"),
    (400, {}, "UpstreamRefused"),
    (404, b"<html>gone</html>", "UpstreamRefused"),
    (406, b"<html>gone</html>", "UpstreamRefused"),
    (302, {}, "UpstreamNonsense"),
    (200, {}, "UpstreamNonsense"),
    (204, b"", "UpstreamNonsense"),
    (400, [{"code": "gone"}], "UpstreamRefused"),
    (400, "gone", "UpstreamRefused"),
    (400, b'{"code":"gone","code":"gone"}', "UpstreamRefused"),
    (400, {"code": "x" * 300 + "state"}, "UpstreamRefused"),
    (400, b'{"code":"gone","n":' + b"9" * 400 + b"}", "HandleExpired"),
]


@pytest.mark.parametrize(("status", "body", "kind"), MEANINGS)
def test_what_a_refusal_means(status: int, body: Any, kind: str) -> None:
    """The preset's first rule that fits; then what its status says. Numbers of any size, and what
    is no JSON, change nothing."""
    assert type(said(status, body)).__name__ == kind


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"code": "gone"}, "UpstreamRefused"),
        (400, {"code": "a_state"}, "UpstreamRefused"),
        (423, {}, "UpstreamRefused"),
        (409, {"code": "done"}, "UpstreamRefused"),
        (400, {"codes": ["value_x"]}, "InvalidParameters"),
        (400, {"code": "gone_too"}, "InvalidParameters"),
        (429, {}, "Throttled"),
        (401, {}, "CredentialRefused"),
    ],
)
def test_a_mint_has_no_session_to_be_refused_for(status: int, body: Any, kind: str) -> None:
    """What speaks of a session is passed over where there is none yet."""
    assert type(said(status, body, conflict=None)).__name__ == kind


DIAGNOSES: list[tuple[Any, dict[str, str], str]] = [
    ({"code": "a_b"}, {}, ": a_b"),
    ({"code": "a_b", "codes": ["c1", "c2"]}, {}, ": a_b, c1, c2"),
    ({"code": "a_b", "codes": [f"code_{i}" for i in range(9)]}, {}, ": a_b, code_0, code_1, code_2, code_3"),
    ({"code": "x" * 64}, {}, ": " + "x" * 64),
    ({"code": "x" * 65}, {}, ""),
    ({"code": "Bad"}, {}, ""),
    ({"code": "a"}, {}, ""),
    ({"code": "a b"}, {}, ""),
    ({"code": "a_b\n"}, {}, ""),
    ({"code": "1ab"}, {}, ""),
    ({"code": "a.b"}, {}, ""),
    ({"code": "ärger"}, {}, ""),
    ({"code": 5, "codes": [None, ["a_b"], {"a": "a_b"}, "fine_1"]}, {}, ": fine_1"),
    ({"code": "n4242424242424242"}, {}, ""),
    ({"code": "n_4242_4242_4242_4242"}, {}, ""),
    ({"code": "n_4242_4242_4242_4"}, {}, ""),
    ({"code": "n_4242_4242_4242"}, {}, ": n_4242_4242_4242"),
    ({"request": "req-1"}, {}, " (upstream request req-1)"),
    ({"code": "a_b", "request": "req-1"}, {}, ": a_b (upstream request req-1)"),
    ({"request": "r 1"}, {}, ""),
    ({"request": "r\n1x"}, {}, ""),
    ({"request": "abc"}, {}, ""),
    ({"request": "4242424242424242"}, {}, ""),
    ({"request": "4242-4242-4242-4242"}, {}, ""),
    ({"request": "Sek.x"}, {"x_trace": "t-12"}, " (upstream request t-12)"),
    ({"request": 12345}, {"x_trace": "t-12"}, " (upstream request t-12)"),
    ({}, {"x_trace": "t-12"}, " (upstream request t-12)"),
    ({}, {"x_trace": "t 12"}, ""),
    ({}, {"x_trace": "4242424242424242"}, ""),
    ({}, {"x_trace": "é" * 9}, ""),
    ({"request": "req-1"}, {"x_trace": "t-12"}, " (upstream request req-1)"),
    (b"<html>", {"x_trace": "0b1f7f3e-6d0c-4f3a-9b1e-2f4c6a8b0d1f"}, " (upstream request 0b1f7f3e-6d0c-4f3a-9b1e-2f4c6a8b0d1f)"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "headers", "told"), DIAGNOSES)
def test_what_the_log_is_told(body: Any, headers: dict[str, str], told: str) -> None:
    """Codes and the request's id by their form, five at most, never with a card's number of
    digits; the detail for the caller has none of it."""
    for status in (400, 409, 429, 500, 302):
        error = said(status, body, **headers)
        assert error.cause == f"status {status}{told}"
        assert not (told and told.strip(": ") in error.detail)


def test_a_preset_without_diagnosis_tells_the_status_only() -> None:
    """Nothing is guessed."""
    error = said(400, {"code": "a_b", "request_id": "req-1"}, file=SILENT, x_request_id="req-2")
    assert error.cause == "status 400"


@pytest.mark.parametrize(
    ("status", "value", "wait"),
    [
        (429, "7", 7.0), (503, "99999", 900.0), (503, "Fri, 20 Nov 2026 12:00:30 GMT", 30.0),
        (503, "soon", None), (503, "-1", None), (400, "7", None), (409, "7", None),
        (423, "2", None), (408, "60", None), (425, "60", None), (500, "60", None),
        (502, "60", None), (504, "60", None), (599, "60", None),
    ],
)  # fmt: skip
def test_when_to_come_again(status: int, value: str, wait: float | None) -> None:
    """With 429 and 503, which ask all for a pause; capped; nonsense is none. With another status one
    odd request may have met, and it would shut the gate for everybody."""
    assert said(status, {}, retry_after=value).retry_after == wait


CODES = st.one_of(
    st.sampled_from(["gone", "value_x", "done", "x" * 64, "4242424242424242", "n4242424242424242"]),
    st.text(max_size=80),
    st.from_regex(r"[a-z][a-z0-9_]{0,70}"),
)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | CODES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["code", "codes", "request", "deep", "er"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)
SAFE = re.compile(r"status \d+(: [a-z0-9_]+(, [a-z0-9_]+){0,4})?( \(upstream request [\w-]+\))?")
PACKAGED = [load_preset(name, Path()).file for name in packaged()]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(100, 999),
    st.binary(max_size=60) | TREES.map(lambda tree: json.dumps(tree).encode()),
    st.one_of(st.none(), st.lists(st.integers(100, 999), max_size=3)),
    st.dictionaries(
        st.sampled_from(["x-trace", "retry-after", "cko-request-id"]), st.text(max_size=70)
    ),
    st.sampled_from([FILE, SILENT, *PACKAGED]),
)
@example(400, b"[" * 100_000, [409], {}, FILE)
@example(400, b'{"code": 1e999}', None, {"retry-after": "9" * 5000}, FILE)
def test_any_refusal_is_an_error_that_quotes_codes_only(
    status: int, raw: bytes, conflict: list[int] | None, headers: dict[str, str], file: Any
) -> None:
    """It never raises; its cause has codes and ids of a safe form and nothing else; its detail is
    one of our own texts."""
    found = refusal_of(file, Answer(status, headers, raw), conflict, NOON)
    assert isinstance(found, BrokerError)
    assert SAFE.fullmatch(found.cause)
    assert not re.search(r"(\d[-_]?){13}", found.cause)
    assert found.detail in DETAILS
    assert found.faults == ()
    assert found.retry_after is None or 0 <= found.retry_after <= 900


DETAILS = {
    "", "The session is not in a state for this.", "The upstream does not know this session any more.",
    "The upstream does not take these values.", "The session is being worked on.",
    "The upstream cannot answer now.", "The upstream refused the request.",
    "The upstream's answer is not one that is known.",
}  # fmt: skip


KINDS: list[BrokerError] = [
    NotSent("x"), UpstreamTimeout("x"), UpstreamUnavailable("x"), BrokenOff("x"),
    UpstreamNonsense("x"), Throttled("x"), Busy("x"), UpstreamRefused("x"), InvalidParameters("x"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "priority", "again"),
    [
        ({"method": "GET"}, Priority.PERSON, 4),
        ({"method": "POST", "repeat": "safe"}, Priority.PERSON, 4),
        ({"method": "POST"}, Priority.PERSON, 1),
        ({"method": "GET", "repeat": "never"}, Priority.PERSON, 1),
        ({"method": "GET"}, Priority.REFRESH, 0),
        ({"method": "GET"}, Priority.PREFETCH, 0),
    ],
)
def test_after_what_a_call_is_made_again(
    request_: dict[str, Any], priority: Priority, again: int
) -> None:
    """What was not sent, always; what was lost or passes by itself, where the request says that
    this is safe; for whom nobody waits, nothing. Never after a 429, a no or whole nonsense."""
    asked = repeats(Request.model_validate({"path": "/x", **request_}), priority)
    assert [asked(error) for error in KINDS] == [True] * again + [False] * (len(KINDS) - again)


# --- checkout/3ds, through the app


def run(story: Any) -> None:
    async def whole() -> None:
        async with shop() as s:
            await story(s)

    asyncio.run(whole())


ACTIONS: list[tuple[httpx2.Response, int, str, str, str]] = [
    (refusal(409, "wrong_state"), 409, "action-not-allowed", "client_error", ": wrong_state, request_invalid"),
    (refusal(403, "update_not_allowed_due_to_state"), 409, "action-not-allowed", "client_error", ": update_not_allowed_due_to_state, request_invalid"),
    (refusal(403, "three_ds_method_not_supported"), 409, "action-not-allowed", "client_error", ": three_ds_method_not_supported, request_invalid"),
    (refusal(403, "unauthorized"), 502, "upstream-refused", "refused", ": unauthorized, request_invalid"),
    (refusal(403, "card_not_enrolled"), 422, "invalid-parameters", "client_error", ": card_not_enrolled, request_invalid"),
    (refusal(403, "scheme_outage"), 503, "upstream-unavailable", "unavailable", ": scheme_outage, request_invalid"),
    (refusal(404), 410, "handle-expired", "client_error", ": request_invalid"),
    (refusal(422, "source_token_invalid"), 422, "invalid-parameters", "client_error", ": source_token_invalid, request_invalid"),
    (refusal(422, "amount_invalid"), 502, "upstream-refused", "refused", ": amount_invalid, request_invalid"),
    (refusal(429), 503, "upstream-unavailable", "throttled", ": request_invalid"),
    (refusal(503), 503, "upstream-unavailable", "unavailable", ": request_invalid"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "status", "slug", "outcome", "codes"), ACTIONS)
def test_what_a_page_is_told_of_an_action(
    answer: httpx2.Response, status: int, slug: str, outcome: str, codes: str
) -> None:
    """One problem each; codes and the upstream's request id are the log's. A reading is repeated
    where that may help, and only there."""

    async def story(s: Shop) -> None:
        handle, _ = await s.minted()
        s.upstream.answer = lambda _: answer
        asking = asyncio.create_task(s.act("status", handle))
        await s.told.clock.advance(1)
        found = await asking
        assert (found.status_code, problem(found)) == (status, slug)
        assert len(s.upstream.calls) == (3 if answer.status_code == 503 else 1)
        line = s.told.audit[-1]
        cause = f"status {answer.status_code}{codes} (upstream request req-0001)"
        assert (line["cause"], line["outcome"]) == (cause, outcome)
        assert "req-0001" not in found.text
        assert not any(code in found.text for code in codes.strip(": ").split(", "))

    run(story)


@pytest.mark.parametrize(
    ("answer", "status", "slug"),
    [
        (refusal(404), 502, "upstream-refused"),
        (refusal(409, "wrong_state"), 502, "upstream-refused"),
        (refusal(409, "session_already_in_use"), 502, "upstream-refused"),
        (refusal(500, "session_callback_failed"), 503, "upstream-unavailable"),
        (refusal(422, "channel_data_invalid"), 422, "invalid-parameters"),
        (refusal(403, "card_not_enrolled"), 422, "invalid-parameters"),
        (httpx2.Response(406, content=b"<html>wrong prefix</html>"), 502, "upstream-refused"),
    ],
)
def test_what_a_page_is_told_of_a_mint(answer: httpx2.Response, status: int, slug: str) -> None:
    """There is no session yet, so none is over or busy."""

    async def story(s: Shop) -> None:
        s.upstream.answer = lambda _: answer
        found = await s.mint()
        assert (found.status_code, problem(found)) == (status, slug)
        assert len(s.upstream.calls) == 1

    run(story)


@pytest.mark.parametrize(
    ("status", "more"),
    [
        (400, {"error_type": "callback_failed"}),
        (422, {"error_type": "callback_failed"}),
        (500, {"error_codes": ["session_callback_failed"]}),
    ],
)
def test_a_session_whose_callback_failed_is_complete(status: int, more: dict[str, JSON]) -> None:
    """`complete` has happened, though nobody took the post: 204 for the page, whatever the
    status."""

    async def story(s: Shop) -> None:
        handle, _ = await s.minted()
        s.upstream.answer = lambda _: refusal(status, **more)
        answer = await s.act("complete", handle)
        assert (answer.status_code, answer.content) == (204, b"")
        assert s.results() == []

    run(story)


def test_a_busy_session_is_tried_again() -> None:
    """After 0.2, 0.4 and 0.8 seconds; the page waits, and does not see it."""

    async def story(s: Shop) -> None:
        handle, sid = await s.minted()
        left = [refusal(409, "session_already_in_use")] * 3
        s.upstream.answer = lambda _: left.pop() if left else None
        asking = asyncio.create_task(s.act("status", handle))
        at = []
        for wait in (0, 0.19, 0.02, 0.38, 0.02, 0.78):
            await s.told.clock.advance(wait)
            at.append(len(s.upstream.calls))
        assert at == [1, 1, 2, 2, 3, 3]
        await s.told.clock.advance(0.02)
        answer = await asking
        assert (answer.status_code, answer.json()) == (
            200, progress(sid, "pending", "collect_channel_data"),
        )  # fmt: skip

    run(story)


def test_a_session_that_stays_busy_is_unavailable() -> None:
    """503 after four tries, and nobody is paged for it: it is the upstream's."""

    async def story(s: Shop) -> None:
        handle, _ = await s.minted()
        s.upstream.answer = lambda _: refusal(409, "session_already_in_use")
        asking = asyncio.create_task(s.act("complete", handle))
        await s.told.clock.advance(1.5)
        answer = await asking
        assert (answer.status_code, problem(answer)) == (503, "upstream-unavailable")
        assert len(s.upstream.calls) == 4
        assert s.told.audit[-1]["outcome"] == "unavailable"

    run(story)


def test_actions_of_one_session_wait_for_a_busy_one() -> None:
    """Turns hold while the session is tried again, so that our own calls never meet."""

    async def story(s: Shop) -> None:
        handle, _ = await s.minted()
        busy = [refusal(409, "session_already_in_use")]
        s.upstream.answer = lambda _: busy.pop() if busy else None
        data = {"three_ds_method_completion": "Y"}
        first = asyncio.create_task(s.act("issuer-fingerprint", handle, data))
        await settle()
        second = asyncio.create_task(s.act("complete", handle))
        await settle()
        assert len(s.upstream.calls) == 1
        await s.told.clock.advance(1)
        assert ((await first).status_code, (await second).status_code) == (200, 204)
        assert [call.split("/")[-1] for call in s.upstream.calls][2:] == ["complete"]

    run(story)


def test_every_upstream_error_has_an_outcome_of_its_own() -> None:
    """None of them counts as a defect of ours, those of a preset's meanings included."""
    todo: list[type[UpstreamError]] = [UpstreamError]
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        if kind is not UpstreamError:
            assert outcome_of(kind("x")).value != "internal", kind
