"""One canonical line for each request, and the log that everything else goes to; both redact.

Audit lines go to standard output, one JSON object each, fingerprints in place of tokens. The log
goes to standard error in the same form. Neither may ever fail a request or hold the loop: a thread
writes, a twentieth of a second behind, and what cannot be written is counted and lost. Loggers of
libraries are quiet below warnings, as some print URLs and headers.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import IO, Any, TextIO

import orjson
import structlog

from broker.model import Outcome

_TOKENS = re.compile(
    r"(?i)(bearer|basic)\s+[^\s\"',]+"
    r"|eyJ[\w-]{8,}(\.[\w-]*){2,4}"
    r"|\b(sek|sk|pss|st)_[\w+/=-]{8,}"
)
_BEHIND = 0.05
"""Seconds a line may wait: one write for many lines, and none on the loop."""
_DEEPEST = 12
"""Levels of an event that are told as trees; a traceback in a chain has five."""


class Record:
    """What is told of one request: filled in as it becomes known, written once at the end.

    operation, profile: from the configuration or a closed list, as they are metric labels too.
    """

    __slots__ = (
        "action", "began", "callback", "caller", "cause", "chain", "faults", "fingerprint",
        "operation", "origin", "outcome", "peer", "problem", "profile", "remaining", "request_id",
        "source", "status", "subject",
    )  # fmt: skip

    def __init__(self, request_id: str, began: float) -> None:
        self.request_id = request_id
        self.began = began
        self.operation = "other"
        self.profile = ""
        self.origin = ""
        self.caller = ""
        self.subject = ""
        self.outcome = Outcome.INTERNAL  # until somebody has answered
        self.status = 0
        self.problem = ""
        self.cause = ""
        self.source = ""
        self.action = ""
        self.callback = ""
        self.chain = ""
        self.fingerprint = ""
        self.remaining = 0.0
        self.peer = ""
        self.faults: list[str] = []

    def fields(self, seconds: float) -> dict[str, Any]:
        """Only what is known; durations in seconds."""
        told: dict[str, Any] = {
            "request_id": self.request_id,
            "operation": self.operation,
            "status": self.status,
            "outcome": self.outcome.value,
            "duration": round(seconds, 6),
        }
        for name in (
            "profile", "action", "callback", "caller", "subject", "peer", "origin", "source",
            "chain", "fingerprint", "problem", "cause", "faults",
        ):  # fmt: skip
            if value := getattr(self, name):
                told[name] = value
        if self.fingerprint:
            told["remaining"] = round(self.remaining, 3)
        return told


def redact(
    _logger: object, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """The last line of defence in the sink: what looks like a credential is cut out, however deep
    it lies (tracebacks are trees), and nothing is left that JSON cannot say."""
    return {_text(name): _plain(value, 0) for name, value in event.items()}


def _plain(value: object, depth: int) -> Any:
    if isinstance(value, str):
        return _text(value)
    if value is None or type(value) in (bool, float):
        return value
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return value
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {_plain_text(name): _plain(one, depth + 1) for name, one in value.items()}
    if depth < _DEEPEST and isinstance(value, list | tuple | set | frozenset):
        return [_plain(one, depth + 1) for one in value]
    return _plain_text(value)


def _plain_text(value: object) -> str:
    try:
        return _text(str(value))
    except Exception:  # noqa: BLE001  (whatever a foreign __str__ raises; a log line may not fail)
        return f"<{type(value).__name__}>"


def _text(value: str) -> str:
    if not value.isascii():
        value = value.encode(errors="replace").decode()  # lone surrogates
    return _TOKENS.sub("***", value) if _TOKENS.search(value) else value


def _dumps(event: Any, **_: Any) -> bytes:
    return orjson.dumps(event)


class _Lines:
    """Lines on their way to a stream. A full disk, a closed pipe or a reader that stands still
    loses lines, and nothing else."""

    def __init__(self, file: IO[bytes] | None, most: int = 10_000) -> None:
        """file: None loses every line (a process started without the stream). most: lines that may
        wait; at a kilobyte each they are 10 MB."""
        self.lost = 0
        self._file = file
        try:
            self._descriptor = file.fileno() if file is not None else -1
        except (AttributeError, OSError, ValueError):
            self._descriptor = -1  # memory, which never stands still
        self._most = most
        self._waiting: deque[bytes] = deque()
        self._writer: threading.Thread | None = None
        self._closed = threading.Event()
        self._writing = threading.Lock()

    def msg(self, line: bytes) -> None:
        if len(self._waiting) >= self._most:
            self.lost += 1
            return
        self._waiting.append(line)
        if self._descriptor < 0 or self._closed.is_set():  # no thread can be started at exit
            self._write()
        elif self._writer is None:
            self._writer = threading.Thread(target=self._run, name="log", daemon=True)
            self._writer.start()

    debug = info = warning = error = critical = exception = msg

    def flush(self, seconds: float = 1.0) -> None:
        """Writes what waits, here and now; gives up after `seconds` on a stalled stream."""
        if self._writing.acquire(timeout=seconds):
            try:
                self._write()
            finally:
                self._writing.release()

    def close(self) -> None:
        self._closed.set()
        if self._writer is not None:
            self._writer.join(1.0)

    def _run(self) -> None:
        while not self._closed.wait(_BEHIND):
            with self._writing:
                self._write()
        with self._writing:
            self._write()

    def _write(self) -> None:
        lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not lines:
            return
        try:
            self._send(b"\n".join(lines) + b"\n")
        except (OSError, ValueError):
            self.lost += len(lines)

    def _send(self, data: bytes) -> None:
        """Past Python's buffer, whose lock a writer that stands still would hold at exit."""
        if self._file is None:
            raise OSError("no stream")
        if self._descriptor < 0:
            self._file.write(data)
            return
        while data:
            data = data[os.write(self._descriptor, data) :]


def _stream(standard: TextIO | None) -> IO[bytes] | None:
    """A standard stream's bytes; None where the process was started without it."""
    return standard.buffer if standard is not None else None


class AuditLog:
    """The canonical line of each request, on one stream. Written by hand rather than through
    structlog's processors, which would cost a twentieth of a mint; texts from outside are redacted
    all the same."""

    def __init__(self, file: IO[bytes] | None = None) -> None:
        self._lines = _Lines(file if file is not None else _stream(sys.stdout))

    @property
    def lost(self) -> int:
        """Lines that could not be written."""
        return self._lines.lost

    def write(self, record: Record, seconds: float) -> None:
        event = record.fields(seconds)
        for name in ("subject", "origin", "cause", "chain"):
            if name in event:
                event[name] = _plain(event[name], 0)
        event["event"] = "request"
        event["timestamp"] = datetime.now(UTC)
        self._lines.msg(orjson.dumps(event, option=orjson.OPT_UTC_Z))

    def event(self, name: str, **told: str) -> None:
        """A line about something that no single request was: what is empty is left out."""
        event: dict[str, Any] = {key: _text(value) for key, value in told.items() if value}
        event |= {"event": name, "timestamp": datetime.now(UTC)}
        self._lines.msg(orjson.dumps(event, option=orjson.OPT_UTC_Z))

    def flush(self) -> None:
        self._lines.flush()

    def close(self) -> None:
        """Writes what waits and ends the writer."""
        self._lines.close()


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001  (arguments that do not fit, or whatever their code raises)
        return _plain_text(record.msg)


def configure_logging(file: IO[bytes] | None = None, level: int = logging.INFO) -> None:
    """Everything that is not an audit line, ours and the libraries', as JSON on standard error."""
    lines = _Lines(file if file is not None else _stream(sys.stderr))
    atexit.register(lines.close)
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(
            structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=20)
        ),
        redact,
    ]
    render = structlog.processors.JSONRenderer(serializer=_dumps)
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=False,
    )

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            event = {"event": _message(record), "logger": record.name}
            if record.exc_info:
                event["exc_info"] = record.exc_info  # type: ignore[assignment]
            out: Any = event
            for step in [*shared, render]:
                out = step(None, record.levelname.lower(), out)
            lines.msg(out)

    root = logging.getLogger()
    root.handlers[:] = [Handler()]
    root.setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.access", "aiohttp", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    # It warns of each malformed request, which strangers can send at will; those are counted.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
