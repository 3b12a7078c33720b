"""`make overload`: offered load against goodput, refusals and latency, of two replicas.

Exit status 0 unless it could not run: figures of a shared machine decide nothing. With --against
another checkout is measured in the same run, by turns: "before" is that one, "after" this one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from benchmarks.overload.report import as_json, as_text
from benchmarks.overload.steps import Settings, measured
from benchmarks.overload.world import HERE, REST, deployments
from benchmarks.processes import NotStarted

_LOADS = "0.5,0.75,1,1.5,2,3"
_SECONDS, _SECONDS_WITH_KILL = 10.0, 20.0
"""A replica that is killed in the middle is ready again some six seconds later."""


def _parsed(argv: list[str] | None) -> tuple[Settings, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="make overload ARGS=…", description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, help="of each load (10; with --kill 20)")
    add("--pause", type=float, default=2.0, help="seconds between loads (2)")
    add("--loads", default=_LOADS, help=f"multiples of the peak, ascending ({_LOADS})")
    add("--afterwards", type=float, default=15.0, help="seconds to watch recovery (15; 0 not)")
    add("--rate", type=float, default=0.0, help="1 x, in requests a second (the measured peak)")
    add("--kill", action="store_true", help="kill a replica in each step, start it 2 s later")
    add("--against", type=Path, metavar="DIR", help="another checkout, measured by turns")
    add("--json", type=Path, metavar="PATH", help="write the figures there")
    add("--plot", type=Path, metavar="PATH", help="draw them there, as .png or .svg")
    given = parser.parse_args(argv)
    try:
        loads = tuple(float(load) for load in given.loads.split(","))
    except ValueError:
        parser.error("--loads are numbers with commas between")
    seconds = given.seconds or (_SECONDS_WITH_KILL if given.kill else _SECONDS)
    if min(loads) <= 0 or sorted(loads) != list(loads) or not 1 <= seconds <= 120:
        parser.error("loads ascend from above 0, and a step has 1 to 120 seconds")
    settings = Settings(
        loads, seconds, given.pause, given.afterwards, kill=given.kill, rate=given.rate
    )
    return settings, given


def _progress(text: str) -> None:
    """One line that is written over, and only for somebody who looks."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{text}", end="", flush=True)


def main(argv: list[str] | None = None) -> int:
    settings, given = _parsed(argv)
    began = time.monotonic()
    os.sched_setaffinity(0, REST)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    checkouts = {"this": HERE} if not given.against else {"before": given.against, "after": HERE}
    with tempfile.TemporaryDirectory(prefix="token-broker-overload-") as name:
        try:
            with deployments(Path(name), checkouts) as started:
                for one in started:
                    print(f"{one.name}: {one.imported}")
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    found = runner.run(measured(started, settings, _progress))
        except NotStarted as exc:
            print(f"the benchmark could not run: {exc}", file=sys.stderr)
            return 2
    _progress("")
    print(as_text(settings, found, time.monotonic() - began))
    if given.json:
        given.json.write_bytes(as_json(settings, found))
    if given.plot:
        from benchmarks.overload.plot import plot  # noqa: PLC0415  (only who draws needs it)

        plot(given.plot, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
