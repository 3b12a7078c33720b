"""The audit line and the log: every field, nothing secret, and never a request's undoing."""

from __future__ import annotations

import asyncio
import base64
import hmac
import io
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.audit import AuditLog, Record, configure_logging
from broker.errors import UpstreamNonsense
from broker.model import Outcome, Secret
from tests.harness import ISSUER_KEY, broker, problem

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl"
CANARIES = {
    "JWT": JWT,
    "JWE": "eyJhbGciOiJkaXIifQ..aXYtaXYtaXY.Y2lwaGVy.dGFnLXRhZw",
    "bearer": "Authorization: Bearer canaryAAAA+/=._~-",
    "bearer in small letters": "bearer canaryAAAA",
    "bearer and blanks": "Bearer   canaryAAAA",
    "basic": "Basic Y2FuYXJ5OmNhbmFyeQ==",
    "secret key": "sek_canaryAAAA",
    "secret key of tests": "sk_test_canaryAAAA",
    "session token": "st_canary-AAAA_",
    "payment session": "pss_canaryAAAA+/=",
}
PARTS = ("canary", "Y2Fu", "eyJ", "Y2lwaGVy", "c2lnbmF0dXJl")


class Log:
    """Everything that is not an audit line, configured as in production, into a buffer."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        configure_logging(self._file)
        self.own = structlog.get_logger("room")

    def alone(self) -> None:
        """Takes away pytest's own handler, which raises for records that cannot be printed."""
        root = logging.getLogger()
        root.handlers[:] = [one for one in root.handlers if one.__module__ == "broker.audit"]

    @property
    def text(self) -> str:
        return self._file.getvalue().decode()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._file.getvalue().splitlines()]


NAMES = ("uvicorn", "uvicorn.error", "uvicorn.access", "aiohttp", "asyncio")


@pytest.fixture(name="log")
def _log() -> Iterator[Log]:
    """Logging is the process's: put back what was there."""
    root = logging.getLogger()
    loggers = [root, *map(logging.getLogger, NAMES)]
    before = [(one, one.handlers[:], one.level, one.propagate) for one in loggers]
    told = structlog.get_config()
    yield Log()
    structlog.configure(**told)
    for logger, handlers, level, propagate in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


def full_record() -> Record:
    record = Record("0e8a4a0e-0000-4000-8000-000000000000", 1.0)
    record.operation = "mint"
    record.profile = "transactions"
    record.origin = "https://app.shop.example"
    record.caller = "shop-users"
    record.subject = "ada"
    record.outcome = Outcome.TIMEOUT
    record.status = 504
    record.problem = "upstream-timeout"
    record.cause = "TimeoutError"
    record.source = "upstream"
    record.chain = "c1"
    record.fingerprint = "0123456789abcdef"
    record.remaining = 899.98765
    return record


def written(record: Record) -> dict[str, Any]:
    file = io.BytesIO()
    log = AuditLog(file)
    log.write(record, 0.123456789)
    assert file.getvalue().count(b"\n") == 1
    assert log.lost == 0
    line: dict[str, Any] = json.loads(file.getvalue())
    return line


def test_every_field_of_a_request() -> None:
    """A line has everything that became known of a request, under these names and units."""
    line = written(full_record())
    assert datetime.fromisoformat(line.pop("timestamp")).tzinfo is not None
    assert line == {
        "event": "request",
        "request_id": "0e8a4a0e-0000-4000-8000-000000000000",
        "operation": "mint",
        "status": 504,
        "outcome": "timeout",
        "duration": 0.123457,
        "profile": "transactions",
        "caller": "shop-users",
        "subject": "ada",
        "origin": "https://app.shop.example",
        "source": "upstream",
        "chain": "c1",
        "fingerprint": "0123456789abcdef",
        "problem": "upstream-timeout",
        "cause": "TimeoutError",
        "remaining": 899.988,
    }


def test_only_what_is_known_is_told() -> None:
    """A request of which nothing became known has no empty fields."""
    line = written(Record("r", 1.0))
    assert line.keys() - {"timestamp"} == {
        "event", "request_id", "operation", "status", "outcome", "duration",
    }  # fmt: skip


@pytest.mark.parametrize("name", CANARIES)
@pytest.mark.parametrize("field", ["subject", "cause", "origin", "chain"])
def test_credentials_are_cut_out_of_audit_lines(name: str, field: str) -> None:
    """What looks like a credential is not written, whatever field it strayed into."""
    record = full_record()
    setattr(record, field, f"before {CANARIES[name]}, after")
    line = json.dumps(written(record))
    assert not [part for part in PARTS if part in line]
    assert "before" in line
    assert "after" in line


@pytest.mark.parametrize("name", CANARIES)
def test_credentials_are_cut_out_of_the_log(log: Log, name: str) -> None:
    """In the log too, in texts, trees, keys, bytes and objects; of ours and of libraries."""
    canary = CANARIES[name]
    log.own.warning(f"text {canary}", value=canary)
    log.own.warning("tree", tree={"a": [1, {canary: (canary, {canary})}]})
    log.own.warning("bytes", raw=canary.encode())
    log.own.warning("object", error=ValueError(canary))
    logging.getLogger("library").warning("of %s", canary)
    logging.getLogger("library").error({"of": canary})
    assert len(log.lines) == 6
    assert not [part for part in PARTS if part in log.text]


@pytest.mark.parametrize("name", CANARIES)
def test_credentials_are_cut_out_of_tracebacks(log: Log, name: str) -> None:
    """Also in exceptions, their causes, contexts, groups and notes; locals are never told."""
    canary = CANARIES[name]

    def fails(local: str) -> None:
        try:
            raise KeyError(local)
        except KeyError as exc:
            error = ValueError(f"because {local}")
            error.add_note(f"note {local}")
            raise ExceptionGroup(f"group {local}", [error, OSError(local)]) from exc

    try:
        fails(canary)
    except ExceptionGroup as exc:
        log.own.exception("ours")
        logging.getLogger("library").exception("theirs")
        log.own.error("given", exc_info=exc)
    assert len(log.lines) == 3
    assert not [part for part in PARTS if part in log.text]
    assert '"locals"' not in log.text
    assert all(line["exception"][0]["exc_type"] == "ExceptionGroup" for line in log.lines)
    assert "fails" in log.text


def test_locals_are_never_told(log: Log) -> None:
    """A value that looks like nothing, in a frame of a traceback, is not in the log."""
    hidden = "just a word of no form " + "zebra"

    def fails(value: str) -> None:
        raise ValueError("no")

    try:
        fails(hidden)
    except ValueError:
        log.own.exception("ours")
    assert "zebra" not in log.text


def test_secrets_are_masked(log: Log) -> None:
    """A Secret in an event prints as stars: alone, in a tree, in a text, in both logs."""
    secret = Secret("zebra")
    log.own.warning("event", a=secret, b=[secret], c={"k": secret}, d=f"{secret}")
    logging.getLogger("library").warning("%s %r", secret, secret)
    line, theirs = log.lines
    assert (line["a"], line["b"], line["c"], line["d"]) == ("***", ["***"], {"k": "***"}, "***")
    assert theirs["event"] == "*** Secret(***)"


def test_ordinary_words_stay(log: Log) -> None:
    """What only resembles a credential is left as it is."""
    text = "best_practice st_x latest_news_of_today bearer. keyJ basic, eyJ desk_drawers_open"
    log.own.info(text)
    assert log.lines[0]["event"] == text


class _Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def _circle() -> list[Any]:
    one: list[Any] = []
    one.append(one)
    return one


STRANGE: dict[str, Any] = {
    "lone surrogate": "a\ud800b",
    "huge integer": 1 << 70,
    "integer without text": 10**5000,
    "NaN": float("nan"),
    "bytes": b"\xff",
    "object": object(),
    "hostile object": _Hostile(),
    "circle": _circle(),
    "keys": {1: 2, None: 3, (1, 2): 4, "\ud800": 5, _Hostile(): 6},
    "set": {1},
    "date": datetime(2026, 11, 20),
    "class": int,
    "exception": KeyError("k"),
    "control characters": "a\nb\0c\u2028",
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_json_cannot_say_is_no_error(log: Log, name: str) -> None:
    """Any value at all makes one line of JSON."""
    log.alone()
    log.own.warning("event", value=STRANGE[name])
    logging.getLogger("library").warning("%s", STRANGE[name])
    record = full_record()
    record.subject = STRANGE[name]
    assert written(record)["event"] == "request"
    assert [line["level"] for line in log.lines] == ["warning", "warning"]


def test_a_caller_with_an_unspeakable_name_is_still_served() -> None:
    """A lone surrogate in a verified subject costs neither the answer nor the audit line."""

    async def story() -> None:
        async with broker() as told:
            claims = {"iss": "shop-backend", "aud": "token-broker", "sub": "a\ud800da"}
            claims |= {"exp": 1 << 40, "merchant_id": "1", "role": "owner"}
            parts = [json.dumps(part).encode() for part in ({"alg": "HS256"}, claims)]
            signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
            mac = hmac.digest(ISSUER_KEY.encode(), signed, "sha256")
            token = signed + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")
            answer = await told.mint(token=token.decode())
            assert answer.status_code == 201 or problem(answer) == "unauthenticated"
            assert len(told.audit) == 1

    asyncio.run(story())


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
        max_leaves=20,
    )
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_every_event_is_one_line_of_json(value: Any) -> None:
    """Whatever strays into a record, the line can be read again and is one."""
    record = full_record()
    record.cause = value
    written(record)


# Libraries.


def test_libraries_log_in_the_same_form(log: Log) -> None:
    """Warnings of stdlib loggers are JSON lines with their logger's name and level."""
    logging.getLogger("some.library").warning("%d of %s", 1, "x")
    logging.getLogger("uvicorn.error").error("bad")
    for line in log.lines:
        datetime.fromisoformat(line.pop("timestamp"))
    assert [{k: v for k, v in line.items() if k != "timestamp"} for line in log.lines] == [
        {"event": "1 of x", "logger": "some.library", "level": "warning"},
        {"event": "bad", "logger": "uvicorn.error", "level": "error"},
    ]


def test_libraries_are_quiet(log: Log) -> None:
    """Below warnings no library says anything: some print URLs and headers."""
    for name in (*NAMES, "aiohttp.client", "authlib", "limits", "httpx2", "any"):
        for level in (logging.DEBUG, logging.INFO):
            logging.getLogger(name).log(level, "GET /?token=x")
    log.own.debug("not ours either")
    assert log.text == ""
    log.own.info("but this")
    assert [line["event"] for line in log.lines] == ["but this"]


def test_a_badly_formed_log_call_is_no_error(log: Log) -> None:
    """Arguments that do not fit their text, or break when printed, lose themselves only."""
    log.alone()
    logging.getLogger("library").warning("%d things", "no number")
    logging.getLogger("library").warning("%s", _Hostile())
    assert [line["event"] for line in log.lines] == ["%d things", "%s"]


def test_our_rooms_warnings_are_as_structured(log: Log) -> None:
    """Fields stay fields, and a broker error's cause is told with its type."""
    try:
        raise UpstreamNonsense("public", cause="private")
    except UpstreamNonsense:
        log.own.exception("failed", profile="p")
    line = log.lines[0]
    assert (line["level"], line["profile"]) == ("error", "p")
    told = line["exception"][0]
    assert (told["exc_type"], told["exc_value"]) == ("UpstreamNonsense", "private")


# Streams that do not take it.


def test_a_full_disk_loses_lines_and_nothing_else() -> None:
    """/dev/full: nothing is raised, every line is counted."""
    with Path("/dev/full").open("wb", buffering=0) as file:
        log = AuditLog(file)
        for _ in range(1000):
            log.write(full_record(), 0.1)
        log.close()
        assert log.lost == 1000


def test_a_full_disk_behind_a_buffer() -> None:
    """The same through the buffer that standard output has."""
    with Path("/dev/full").open("wb") as file:
        log = AuditLog(file)
        for _ in range(1000):
            log.write(full_record(), 0.1)
        log.close()
        assert log.lost == 1000


def test_a_reader_that_stands_still_holds_nobody() -> None:
    """With a pipe that nobody reads, lines pile up to a bound, are then lost and counted; writing
    one never waits; once somebody reads, lines come again."""
    reading, writing = os.pipe()
    with open(writing, "wb", buffering=0) as file:
        log = AuditLog(file)
        log._lines._most = 500
        began = time.monotonic()
        for _ in range(3000):
            log.write(full_record(), 0.1)
        assert time.monotonic() - began < 2
        assert 1000 < log.lost < 3000
        log.close()
        got = b""
        while got.count(b"\n") < 3000 - log.lost:
            got += os.read(reading, 1 << 20)
        assert json.loads(got.splitlines()[0])["event"] == "request"
    os.close(reading)


def test_a_closed_stream_loses_lines_and_nothing_else(log: Log) -> None:
    """A closed file and a pipe that nobody reads are no errors, in either log."""
    file = io.BytesIO()
    audit = AuditLog(file)
    file.close()
    audit.write(full_record(), 0.1)
    assert audit.lost == 1
    log._file.close()
    log.own.error("lost")
    logging.getLogger("library").error("lost")


def test_requests_go_on_without_a_log() -> None:
    """With its audit stream gone, the app still mints."""

    async def story() -> None:
        async with broker() as told:
            told._lines.close()
            assert (await told.mint()).status_code == 201

    asyncio.run(story())


def test_the_audit_log_is_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file, lines go to standard output as it is when the log is made."""
    out = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", out)
    AuditLog().write(full_record(), 0.1)
    assert json.loads(out.buffer.getvalue())["event"] == "request"  # type: ignore[attr-defined]
