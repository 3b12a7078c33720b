"""Whatever breaks, the broker hands out no wrong token, and is well again by itself.

The short form of the chaos suite: each row of `tests.chaos.rows` once, with real processes and load
running, several worlds side by side. A test waits for its own row, which may have ended long ago.
`python -m tests.chaos` is the long form.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos import config, runner
from tests.chaos.judge import CUT, UPSTREAM_DOWN, Answer, Judge
from tests.chaos.rows import ROWS
from tests.chaos.runner import run
from tests.chaos.stage import Form, Row, Stage, Told
from tests.chaos.world import Kind

FORM = Form(short=True, rate=30.0, lanes=3)
LONGEST = 420.0
"""Seconds that all of them may take together, on a machine that does much else."""


class Running:
    """All rows that were chosen, run in a thread of their own from the first test on."""

    def __init__(self, rows: list[Row]) -> None:
        self._told: dict[str, Told] = {}
        self._news = threading.Condition()
        self._broke: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(rows,))
        self._thread.start()

    def _run(self, rows: list[Row]) -> None:
        try:
            asyncio.run(run(rows, FORM, self._ended))
        except BaseException as exc:
            self._broke = exc
        with self._news:
            self._news.notify_all()

    def _ended(self, told: Told) -> None:
        with self._news:
            self._told[told.row.name] = told
            self._news.notify_all()

    def of(self, row: Row) -> Told:
        """How that row went, once it has. Raises AssertionError."""

        def over() -> bool:
            return row.name in self._told or self._broke is not None

        with self._news:
            assert self._news.wait_for(over, LONGEST), f"{row.name} did not end"
        assert row.name in self._told, f"the suite broke: {self._broke!r}"
        return self._told[row.name]

    def end(self) -> None:
        self._thread.join(LONGEST)


@pytest.fixture(name="running", scope="module")
def _running(request: pytest.FixtureRequest) -> Iterator[Running]:
    chosen = {
        item.callspec.params["row"].name
        for item in request.session.items
        if item.path == request.path and "running" in getattr(item, "fixturenames", ())
    }
    running = Running([row for row in ROWS if row.name in chosen])
    yield running
    running.end()


# A TLS connection to a broker that is killed is closed by nobody; asyncio complains when it is found.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_of_the_chaos_table_holds(
    row: Row, running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the row says must hold, holds; no answer is wrong, no token under its floor."""
    told = running.of(row)
    if told.not_here:
        with capsys.disabled():  # loudly: what was not tried must not look like what held
            print(f"\nNOT TESTED: {row.name}: {told.not_here}")
        pytest.skip(told.not_here)
    if told.failures:
        pytest.fail("\n- ".join([f"{row.done}: {row.holds}", *told.failures]), pytrace=False)
    assert (told.judge.wrong_answers, told.judge.under_floor) == (0, 0)


def nmi_token(expires: float, merchant: str) -> str:
    """As the sandbox writes it, but for its digest."""
    contents = bytes(24) + json.dumps([int(expires), "gateway", merchant]).encode()
    return "st_" + base64.urlsafe_b64encode(contents).rstrip(b"=").decode()


def answered(status: int, outcome: str, left: float = 900, **changes: Any) -> Answer:
    """An answer of 900 s, of which there are `left`; good, but for the changes."""
    body = {"session_token": nmi_token(time.time() + left, "m-u1"), "expires_in": min(left, 900)}
    headers = {"cache-control": "no-store", "cache-status": "token-broker; fwd=miss"}
    told: dict[str, Any] = {
        "kind": "nmi", "subject": "u1", "sent": time.monotonic(), "seconds": 0.1, "body": body,
        "headers": headers, "target": "", "allowed": frozenset(), **changes,
    }  # fmt: skip
    return Answer(status=status, outcome=outcome, **told)


DOWN = {"allowed": UPSTREAM_DOWN, "headers": {"retry-after": "1"}}
LATE = {"seconds": config.BUDGET + 2}
OPEN = {"headers": {"cache-status": "token-broker; hit"}}


@pytest.mark.parametrize(
    ("status", "outcome", "changes", "fault"),
    [
        (201, "ok", {}, ""),
        (503, "upstream-unavailable", DOWN, ""),
        (410, "handle-expired", {"kind": "ended"}, ""),
        (0, CUT, {"allowed": frozenset({CUT})}, ""),
        (0, CUT, {}, "nmi: no answer: cut"),
        (500, "internal-error", DOWN, "nmi: not allowed here: 500 internal-error"),
        (401, "unauthenticated", DOWN, "nmi: not allowed here: 401 unauthenticated"),
        (410, "handle-expired", {"kind": "rotate"}, "rotate: not allowed here: 410"),
        (503, "upstream-unavailable", {}, "nmi: not allowed here: 503 upstream-unavailable"),
        (502, "upstream-unavailable", DOWN, "nmi: undocumented: 502 upstream-unavailable"),
        (503, "upstream-timeout", {**DOWN, "headers": {}}, "nmi: undocumented: 503"),
        (503, "upstream-unavailable", {**DOWN, "headers": {}}, "nmi: no Retry-After"),
        (201, "ok", LATE, "nmi: answered after"),
        (201, "ok", OPEN, "nmi: a token without no-store"),
        (201, "ok", {"subject": "u2"}, "nmi: a token of another merchant"),
        (201, "ok", {"left": 200}, "s left, the floor is 300"),
    ],
)
def test_the_judge_forgives_only_what_a_row_allows(
    status: int, outcome: str, changes: dict[str, Any], fault: str
) -> None:
    """Each kind of wrong answer is told, and none besides: who sees none has looked."""
    judge = Judge()
    judge.see(answered(status, outcome, **changes))
    assert len(judge.wrong) == bool(fault)
    assert all(fault in reason for reason in judge.wrong)


def test_the_judge_stops_allowing_when_the_time_is_over() -> None:
    """What a fault may do in its first seconds it may not do later, nor to another kind; and what
    is allowed to every request does not allow a token that the upstream does not know."""
    judge, some = Judge(), frozenset({"overloaded"})
    with judge.allowing(seconds=60, nmi=some), judge.allowing(seconds=0, flow=some):
        assert judge.allowed("nmi") == some
        assert not judge.allowed("flow")
    with judge.allowing(every=some):
        assert judge.allowed("flow") == some
        assert not judge.allowed("unknown")
    assert not judge.allowed("nmi")


def test_rows_that_take_the_processor_run_last_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a row begins when all others have ended, however many worlds run side by side."""
    events: list[str] = []

    async def group(rows: list[Row], form: Form, ended: Any) -> list[Told]:
        events.append(f"+{rows[0].kind.name}")
        await asyncio.sleep(0.01)
        events.append(f"-{rows[0].kind.name}")
        return [Told(row, Judge()) for row in rows]

    async def nothing(stage: Stage) -> None:
        """Is never run."""

    rows = [
        Row(name, "", "", Kind(name), nothing, alone=name in "ab") for name in ("a", "c", "b", "d")
    ]
    monkeypatch.setattr(runner, "_group", group)
    told = asyncio.run(runner.run(rows, FORM))
    assert [one.row.name for one in told] == ["a", "c", "b", "d"]
    assert set(events[:4]) == {"+c", "-c", "+d", "-d"}
    assert events[4:] == ["+a", "-a", "+b", "-b"]


def test_the_judge_knows_a_life_that_is_not_there() -> None:
    """An answer that tells more life than the token has is wrong."""
    judge, answer = Judge(), answered(201, "ok", left=500)
    judge.see(replace(answer, body={**answer.body, "expires_in": 900}))
    (reason,) = judge.wrong
    assert reason.startswith("nmi: expires_in says 900 s, of which there are ")


def test_the_judge_knows_a_token_of_somebody_else() -> None:
    """One token that came to two callers is told, whatever it says inside."""
    judge, answer = Judge(), answered(201, "ok")
    judge.see(answer)
    judge.see(answered(201, "ok", subject="u2", body=answer.body))
    assert "nmi: a token of another caller" in judge.wrong
