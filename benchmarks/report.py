"""What was measured, as a table for people and as JSON for comparing runs.

Ratios are taken within a round and then their median over the rounds: neighbours on the machine
come and go, and trouble the slices of one round alike.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from benchmarks.processes import cores
from benchmarks.variants import Variant

_LIBRARIES = (
    "starlette", "uvicorn", "uvloop", "httptools", "aiohttp", "httpx2", "joserfc", "cryptography",
    "orjson", "prometheus-client", "structlog", "cachetools", "limits", "pydantic",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one run. requests: in a slice; callers: people, each with a JWT of their own."""

    rounds: int
    requests: int
    connections: int
    callers: int


@dataclass(slots=True)
class Measured:
    """All slices of one variant. cpu: seconds for a request, rate: answers a second, by round.

    sent, errors, sessions: of warm-up and slices together; sessions as the sandbox counted them.
    """

    variant: Variant
    cpu: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    sent: int = 0
    errors: int = 0
    sessions: int = 0
    first_error: str = ""

    def against(self, other: Measured) -> float:
        return median(mine / theirs for mine, theirs in zip(self.cpu, other.cpu, strict=True))

    def latency(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@dataclass(frozen=True, slots=True)
class Check:
    """What must hold in every run."""

    title: str
    passed: bool
    found: str


def as_text(
    settings: Settings, measured: list[Measured], checks: list[Check], seconds: float
) -> str:
    head = f"{'':34}{'CPU µs':>8}{'x bare':>8}{'x naive':>9}{'p50 ms':>8}{'p99 ms':>8}"
    lines = [f"{head}{'sent':>8}{'errors':>8}"]
    for row in _rows(measured):
        naive = f"{row['against_naive']:9.3f}" if row["against_naive"] else f"{'':9}"
        lines.append(
            f"{row['name']:34}{row['cpu_us']:8.1f}{row['against_bare']:8.2f}{naive}"
            f"{row['p50_ms']:8.2f}{row['p99_ms']:8.2f}{row['requests_with_warm_up']:8}{row['errors']:8}"
        )
    lines += [
        "",
        f"CPU of the server's process for one request; medians of {settings.rounds} rounds in "
        f"{seconds:.0f} s. Latency with {settings.connections}",
        f"requests always in flight, the server saturated. {settings.callers} callers, whose JWTs "
        "were all seen in the warm-up",
        "(RS256 and ES256 by turns), but for the variant that says otherwise (ES256).",
        "Sent and errors are with warm-up.",
        "",
    ]
    for row in _rows(measured):
        if row["aim"]:
            mark = "met" if row["against_bare"] <= row["aim"] else "MISSED"
            if row["errors"]:
                mark = "VOID"  # a refusal is cheap, and no mint
            lines.append(f"aim    {mark:7}{row['name']} <= {row['aim']} x bare")
    lines += [
        f"check  {'ok' if check.passed else 'FAILED':7}{check.title}: {check.found}"
        for check in checks
    ]
    return "\n".join(lines)


def as_json(settings: Settings, measured: list[Measured], checks: list[Check]) -> bytes:
    tree = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": asdict(settings),
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "cores_of_servers": sorted(cores()[0]),
            "cores_of_the_rest": sorted(cores()[1]),
            "kernel": platform.release(),
            "load_average": os.getloadavg(),
        },
        "versions": {
            "python": platform.python_version(),
            "token-broker": version("token-broker"),
            **{name: version(name) for name in _LIBRARIES},
        },
        "variants": _rows(measured),
        "checks": [asdict(check) for check in checks],
    }
    return orjson.dumps(tree, option=orjson.OPT_INDENT_2) + b"\n"


def _rows(measured: list[Measured]) -> list[dict[str, Any]]:
    by_name = {one.variant.name: one for one in measured}
    bare = measured[0]
    return [
        {
            "name": one.variant.name,
            "cpu_us": round(median(one.cpu) * 1e6, 2),
            "cpu_us_by_round": [round(cpu * 1e6, 2) for cpu in one.cpu],
            "against_bare": round(one.against(bare), 3),
            "against_naive": round(one.against(by_name[one.variant.like]), 4)
            if one.variant.like
            else None,
            "aim": one.variant.aim,
            "answers_per_second": round(median(one.rate)),
            "p50_ms": round(one.latency(0.50) * 1e3, 3),
            "p99_ms": round(one.latency(0.99) * 1e3, 3),
            "requests": len(one.latencies),
            "requests_with_warm_up": one.sent,
            "errors": one.errors,
            "sessions_upstream": one.sessions,
        }
        for one in measured
    ]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()
