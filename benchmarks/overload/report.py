"""What was measured, as a table for people and as JSON for whoever compares runs."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import orjson

from benchmarks.overload.generator import PATIENCE
from benchmarks.overload.mix import SHARES
from benchmarks.overload.steps import AFTERWARDS, Settings
from benchmarks.overload.world import IS_PINNED, REST, TESTED

_COLUMNS = (
    ("load", 6), ("", 8), ("offered/s", 10), ("goodput/s", 10), ("of peak", 8), ("in 0.5 s", 9),
    ("a CPU s", 8),
    ("p50 ms", 8), ("p99 ms", 8), ("p99.9 ms", 9), ("slowest", 8), ("refused", 8), ("p50 ms", 7),
    ("p99 ms", 7), ("held", 6), ("first", 6), ("gave up", 8), ("lost", 5), ("WRONG", 6),
    ("brokers", 8), ("neighbours", 11), ("generator", 10), ("others", 7),
)  # fmt: skip


def as_json(settings: Settings, found: dict[str, Any]) -> bytes:
    tree = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": asdict(settings),
        "machine": {
            "cores": os.cpu_count(),
            "cores_of_brokers": sorted(TESTED),
            "cores_of_the_rest": sorted(REST),
            "python": platform.python_version(),
            "kernel": platform.release().split("-")[0],
        },
        **found,
    }
    return orjson.dumps(tree, option=orjson.OPT_INDENT_2) + b"\n"


def as_text(settings: Settings, found: dict[str, Any], seconds: float) -> str:
    lines = [*_peaks(found), "", "".join(f"{name:>{width}}" for name, width in _COLUMNS)]
    lines += [_row(step) for step in found["steps"]]
    lines += ["", *_notes(settings, found)]
    lines += ["", *_legend(settings, seconds)]
    return "\n".join(lines)


def _peaks(found: dict[str, Any]) -> Iterator[str]:
    for name, peak in found["peak"].items():
        if "tried" not in peak:
            continue
        by = ", ".join(f"{one['goodput']:.0f} with {one['connections']}" for one in peak["tried"])
        use = peak["use"]
        yield (
            f"peak of {name}: {peak['goodput']:.0f}/s ({by} connections); then the brokers had "
            f"{_percent(use['brokers'])} of their core: {peak['goodput_per_cpu']:.0f} a CPU second"
        )
    yield f"offered: multiples of {found['reference']:.0f} requests a second"


def _row(step: dict[str, Any]) -> str:
    answered, refusals, use = step["answered"], step["refusals"], step["use"]
    cells = (
        f"{step['load']:g} x", step["deployment"], f"{step['rate']:.0f}", f"{step['goodput']:.0f}",
        _percent(step["goodput_share"]), f"{step['good_in_time']:.0f}",
        f"{step['goodput_per_cpu']:.0f}",
        _ms(answered["p50"]), _ms(answered["p99"]), _ms(answered["p99.9"]),
        _ms(answered["slowest"]), _percent(step["refused_share"]),
        _ms(refusals["p50"]), _ms(refusals["p99"]),
        _percent(step["share_held"]), _percent(step["share_first"]),
        str(step["gave_up"]), str(step["lost"]), str(sum(step["reasons"].values())),
        _percent(use["brokers"]), _percent(use["neighbours"]), _percent(use["generator"]),
        _percent(use["upstream"] + use["redis"]),
    )  # fmt: skip
    return "".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, _COLUMNS, strict=True))


def _notes(settings: Settings, found: dict[str, Any]) -> Iterator[str]:
    reasons: dict[str, Counter[str]] = {name: Counter() for name in found["peak"]}
    for name, peak in found["peak"].items():
        for one in peak.get("tried", ()):
            reasons[name].update(one["wrong"])
    for step in found["steps"]:
        reasons[step["deployment"]].update(step["reasons"])
    for name, why in reasons.items():
        told = ", ".join(f"{count} x {text}" for text, count in why.most_common())
        yield f"wrong answers of {name}, all loads and the peak: {told or 'none'}"
    for step in found["steps"]:
        where = f"{step['deployment']}, {step['load']:g} x"
        if step["afterwards"]:
            yield f"{where}: well again {_again(step['afterwards'])}"
        if step["kill"]:
            yield f"{where}, killed: {_kill(step['kill'])}"
        behind = step["behind"]["p99"]
        if behind is not None and behind > 0.05:
            yield f"{where}: the generator came {_ms(behind)} ms late (p99): do not trust this row"


def _again(after: dict[str, Any]) -> str:
    at = after["well_again"]
    told = f"not within {after['seconds']:g} s" if at is None else f"after {at:g} s"
    return f"{told} of {AFTERWARDS:g} x ({after['gave_up']} gave up, {after['refused']} refused)"


def _kill(kill: dict[str, Any]) -> str:
    told = f"ready {kill['ready_after']:.1f} s after its start"
    if not kill["ready_within_step"]:
        return f"{told}, when the step was over: give it more --seconds"
    return f"{told}; of {kill['later_polls']} later polls {kill['later_not_ready']} found it not so"


def _legend(settings: Settings, seconds: float) -> Iterator[str]:
    if IS_PINNED:
        yield (
            "Both replicas are pinned to one core; Redis, upstream and load generator to the "
            "others, so that they take nothing from what is measured."
        )
    else:
        yield "There is one core for all: what the generator costs is missing to the brokers."
    mix = ", ".join(f"{share} % {kind.value}" for kind, share in SHARES.items())
    yield (
        f"Open loop, {settings.seconds:g} s for each load, {PATIENCE:g} s of patience, latencies "
        f"from when a request was due; nobody who is refused comes back."
    )
    yield (
        f"Begun: {mix} (end: the handle is rotated afterwards, which must be 410; tab: two at "
        "once; repeat: the same Idempotency-Key twice)."
    )
    yield (
        "goodput: right answers that came within the step. in 0.5 s: right answers of which each "
        "took no longer. a CPU s: right answers for each second of CPU that the brokers had."
    )
    yield ("refused: 503 with Retry-After, with the time to be told so.")
    yield (
        "held, first: of what was asked by those who hold a session, and of first mints, how much "
        "was answered right. brokers, generator, others (Redis and "
        "upstream): shares of one core. neighbours: of the brokers' core, what somebody else had."
    )
    yield f"{seconds:.0f} s in all."


def _percent(share: float | None) -> str:
    if share is None:
        return "-"
    return f"{share:.1%}" if 0 < share < 0.1 else f"{share:.0%}"


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.1f}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"
