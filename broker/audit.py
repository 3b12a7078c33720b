"""One canonical line for each request, and the log that everything else goes to; both redact.

Audit lines go to standard output, one JSON object each, fingerprints in place of tokens. The log
goes to standard error in the same form. Neither may ever fail a request: what cannot be written is
counted and lost. Loggers of libraries are quiet below warnings, as some print URLs and headers.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import IO, Any

import orjson
import structlog

from broker.model import Outcome

_TOKENS = re.compile(
    r"(?i)(bearer|basic)\s+[^\s\"',]+"
    r"|eyJ[\w-]{8,}(\.[\w-]*){2,4}"
    r"|\b(sek|sk|pss|st)_[\w+/=-]{8,}"
)
_DEEPEST = 12
"""Levels of an event that are told as trees; a traceback in a chain has five."""


class Record:
    """What is told of one request: filled in as it becomes known, written once at the end.

    operation, profile: from the configuration or a closed list, as they are metric labels too.
    """

    __slots__ = (
        "began", "caller", "cause", "chain", "credentials", "fingerprint", "operation", "origin",
        "outcome", "problem", "profile", "remaining", "request_id", "source", "status", "subject",
    )  # fmt: skip

    def __init__(self, request_id: str, began: float) -> None:
        self.request_id = request_id
        self.began = began
        self.operation = "other"
        self.profile = ""
        self.origin = ""
        self.caller = ""
        self.subject = ""
        self.outcome = Outcome.OK
        self.status = 0
        self.problem = ""
        self.cause = ""
        self.source = ""
        self.chain = ""
        self.fingerprint = ""
        self.remaining = 0.0
        self.credentials = False

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
            "profile", "caller", "subject", "origin", "source", "chain", "fingerprint", "problem",
            "cause",
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
    """Writes lines; a full disk or a closed pipe loses them, and nothing else."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.lost = 0

    def msg(self, line: bytes) -> None:
        try:
            self._file.write(line + b"\n")
            self._file.flush()
        except (OSError, ValueError):
            self.lost += 1

    debug = info = warning = error = critical = exception = msg


class AuditLog:
    """The canonical line of each request, on one stream."""

    def __init__(self, file: IO[bytes] | None = None) -> None:
        self._lines = _Lines(file if file is not None else sys.stdout.buffer)
        self._log = structlog.wrap_logger(
            self._lines,
            processors=[
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                redact,
                structlog.processors.JSONRenderer(serializer=_dumps),
            ],
            wrapper_class=structlog.BoundLogger,
        ).bind()

    @property
    def lost(self) -> int:
        """Lines that could not be written."""
        return self._lines.lost

    def write(self, record: Record, seconds: float) -> None:
        self._log.info("request", **record.fields(seconds))


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001  (arguments that do not fit, or whatever their code raises)
        return _plain_text(record.msg)


def configure_logging(file: IO[bytes] | None = None, level: int = logging.INFO) -> None:
    """Everything that is not an audit line, ours and the libraries', as JSON on standard error."""
    lines = _Lines(file if file is not None else sys.stderr.buffer)
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
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "aiohttp", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)
