"""`make bench`: everything measured in turns in one run, judged, printed and written as JSON.

Exit status 0 unless a hard check fails: errors, a second token request, sessions upstream that are
not one for each mint and rotation, a request without its audit line. The aims are printed with a
mark and decide nothing, as no shared machine can promise a ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from benchmarks.processes import NotStarted, Server
from benchmarks.report import Check, Measured, Settings, as_json, as_text
from benchmarks.variants import Variants
from benchmarks.world import calls, servers

RESULTS = Path(__file__).parent / "results" / "latest.json"


async def bench(settings: Settings, directory: Path) -> tuple[list[Measured], list[Check]]:
    with servers(directory, settings.callers) as up:
        variants = Variants(up, settings.connections, settings.callers)
        await variants.meet()
        measured = [Measured(variant) for variant in variants.all()]
        # Naive has asked for nothing yet: what was fetched up to here is ours.
        await variants.first()
        tokens = calls(up["sandbox"])["checkout.token"]
        for turn in range(settings.rounds + 1):
            # There and back, so that nobody always comes after the same neighbour.
            for one in measured if turn % 2 else reversed(measured):
                tokens += await _slice(one, up, variants, settings, warm_up=turn == 0)
            print("." if turn else "warm ", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        variants.close()
        return measured, _checks(measured, variants, tokens, directory / "ours.out")


async def _slice(
    one: Measured, up: dict[str, Server], variants: Variants, settings: Settings, *, warm_up: bool
) -> int:
    """Measures one slice. Gives the token requests that ours made in it."""
    variant = one.variant
    server, load = up[variant.server], variants.loads[variant.server]
    count = max(1, round(settings.requests * variant.share))
    if warm_up:
        # Enough to meet every caller and to open every connection.
        count = max(count // 3, settings.callers, settings.connections)
    requests = await variant.prepare(count)
    before, cpu = calls(up["sandbox"]), server.cpu()
    answers = await load.run(requests, variant.status)
    used, after = server.cpu() - cpu, calls(up["sandbox"])
    one.sent += count
    one.errors += answers.errors
    one.first_error = one.first_error or answers.first_error
    one.sessions += after["nmi.session"] - before["nmi.session"]
    if not warm_up:
        one.cpu.append(used / count)
        one.rate.append(count / answers.seconds)
        one.latencies += answers.latencies
    return after["checkout.token"] - before["checkout.token"] if variant.server == "ours" else 0


def _checks(measured: list[Measured], variants: Variants, tokens: int, audit: Path) -> list[Check]:
    prepared = variants.prepared
    ours = [one for one in measured if one.variant.server == "ours"]
    failed = [(one.variant.name, one.first_error) for one in measured if one.errors]
    if prepared.errors:
        failed.append(("preparation", prepared.first_error))
    errors = sum(one.errors for one in measured) + prepared.errors
    told = "".join(f"; {name}: {text}" for name, text in failed)
    checks = [
        Check("no errors", errors == 0, f"{errors}{told}"),
        Check("one token request, of ours", tokens == 1, str(tokens)),
    ]
    for one in measured:
        wanted = one.sent if one.variant.fresh else 0
        title = f"sessions upstream, {one.variant.name}"
        checks.append(Check(title, one.sessions == wanted, f"{one.sessions} for {wanted}"))
    asked = sum(one.sent for one in ours) + prepared.requests
    lines = _lines(audit, asked)
    checks.append(Check("one audit line for each request", lines == asked, f"{lines} for {asked}"))
    return checks


def _lines(audit: Path, wanted: int) -> int:
    """Lines in the file, which a thread of the broker writes a twentieth of a second behind."""
    deadline = time.monotonic() + 2.0
    while (lines := audit.read_bytes().count(b"\n")) < wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    return lines


def _settings(argv: list[str] | None) -> Settings:
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="measured turns (7)")
    parser.add_argument("--requests", type=int, default=1500, help="requests in a slice (1500)")
    parser.add_argument("--connections", type=int, default=48, help="in flight at once (48)")
    parser.add_argument("--callers", type=int, default=300, help="people, each with a JWT (300)")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 400: does it work?")
    given = parser.parse_args(argv)
    if min(given.rounds, given.requests, given.connections, given.callers) < 1:
        parser.error("every number is 1 or more")
    if given.quick:
        given.rounds, given.requests = 2, 400
    return Settings(given.rounds, given.requests, given.connections, given.callers)


def main(argv: list[str] | None = None) -> int:
    settings = _settings(argv)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="token-broker-bench-") as name:
        directory = Path(name)
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                measured, checks = runner.run(bench(settings, directory))
        except NotStarted as exc:
            print(f"the benchmark could not run: {exc}", file=sys.stderr)
            return 2
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_bytes(as_json(settings, measured, checks))
    print(as_text(settings, measured, checks, time.monotonic() - began))
    print(f"\nwritten to {RESULTS}")
    return 0 if all(check.passed for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
