"""`python -m tests.chaos`: runs the table, prints each row as it ends, writes a report."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chaos import report
from tests.chaos.process import busy_neighbours
from tests.chaos.rows import ROWS
from tests.chaos.runner import run
from tests.chaos.stage import Form, Row, Told


def told_of(told: Told) -> None:
    judge = told.judge
    if told.not_here:
        return print(f"NOT TESTED {told.row.name}: {told.not_here}", flush=True)
    print(
        f"{'held  ' if told.held else 'FAILED'} {told.row.name:22} {told.seconds:6.1f} s "
        f"{judge.requests:6} requests, {judge.wrong_answers} wrong, "
        f"{judge.under_floor} under floor  {dict(judge.outcomes)}  {'; '.join(filter(None, [told.token_requests, *told.notes]))}",
        flush=True,
    )
    for failure in told.failures:
        print(f"       - {failure}", flush=True)
    return None


async def all_runs(
    rows: Sequence[Row], form: Form, repeat: int, neighbours: int
) -> list[list[Told]]:
    """Each run has worlds of its own; busy neighbours stay beside them all."""
    with tempfile.TemporaryDirectory(prefix="chaos-neighbours-") as directory:
        async with busy_neighbours(neighbours, Path(directory)):
            return [await run(rows, form, told_of) for _ in range(repeat)]


def summary(runs: Sequence[Sequence[Told]]) -> None:
    """How each row went in each run."""
    for each in zip(*runs, strict=True):
        held = sum(told.held for told in each)
        wrong = " ".join(str(told.judge.wrong_answers) for told in each)
        busy = " ".join(str(told.judge.outcomes["overloaded"]) for told in each)
        print(
            f"{each[0].row.name:22} held {held} of {len(each)}; wrong answers by run: {wrong}; "
            f"503 overloaded by run: {busy}"
        )


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--short", action="store_true", help="the form that `make test` has")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these rows")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument(
        "--soak", type=float, default=600, metavar="SECONDS", help="of the soak row"
    )
    parser.add_argument("--rate", type=float, metavar="N", help="operations a second")
    parser.add_argument("--lanes", type=int, default=1, metavar="N", help="worlds side by side")
    parser.add_argument("--report", type=Path, metavar="PATH", help="write Markdown there")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="run each row N times")
    parser.add_argument(
        "--neighbours", type=int, default=0, metavar="N", help="busy processes beside the whole run"
    )
    options = parser.parse_args()
    if unknown := set(options.only or []) - {row.name for row in ROWS}:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    return options


def main() -> int:
    options = options_of()
    if options.list:
        for row in ROWS:
            print(f"{row.name:22} {row.done}: {row.holds}")
        return 0
    rows = [row for row in ROWS if row.name in (options.only or [row.name])]
    started = time.time()
    rate = options.rate or (40.0 if options.short else 80.0)
    form = Form(options.short, rate, options.lanes, options.soak, options.neighbours > 0)
    # Whoever ends the suite ends its worlds too: as Ctrl-C does, by the way of their `finally`.
    # A shell starts what runs in its background with SIGINT ignored, so it is asked for here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    runs = asyncio.run(all_runs(rows, form, options.repeat, options.neighbours))
    results = [told for each in runs for told in each]
    if options.repeat > 1:
        summary(runs)
    if options.report:
        options.report.write_text(report.markdown(results, started, form))
    failed = [told.row.name for told in results if not told.held]
    print(
        f"{len(results) - len(failed)} of {len(results)} rows held"
        + (f"; not {', '.join(failed)}" if failed else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
