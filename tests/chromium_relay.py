"""Chromium as Playwright starts it, but for two things that Playwright does not let us say.

    chromium_relay.py PROGRAM PREFERENCES FLAG…

Its tabs hide one another, as everybody's do: Playwright tells every tab that it has the focus, which
keeps all of them visible and never throttled. And its profile begins with PREFERENCES (JSON).
Standard input and output are the pipes 3 and 4; this process becomes Chromium, and a child of it
passes on what it is told. It never reads what passes, but for that one order.
"""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

FOCUS = b'"method":"Emulation.setFocusEmulationEnabled","params":{"enabled":'
"""As Playwright writes it, which is why `tests/tabs.py` has its own way to write it."""


def relay(source: int, target: int) -> None:
    """Message by message, each ending with a zero byte, until either end is closed."""
    rest = b""
    ends = select.poll()
    ends.register(source, select.POLLIN)
    ends.register(target, 0)  # an error, once Chromium is gone
    while target not in dict(ends.poll()) and (data := os.read(source, 1 << 16)):
        *whole, rest = (rest + data).split(b"\0")
        for message in whole:
            told = memoryview(message.replace(FOCUS + b"true}", FOCUS + b"false}") + b"\0")
            while told:
                told = told[os.write(target, told) :]


def main(program: str, preferences: str, *flags: str) -> None:
    [profile] = [Path(f.partition("=")[2]) for f in flags if f.startswith("--user-data-dir=")]
    (profile / "Default").mkdir(parents=True, exist_ok=True)
    (profile / "Default" / "Preferences").write_text(preferences)
    inner, outer = os.pipe()
    if os.fork():
        os.close(outer)
        os.dup2(inner, 3)
        os.execv(program, [program, *flags])
    os.close(inner)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2, 4):  # who waits for these to end waits for Chromium, not for us
        os.dup2(nothing, descriptor)
    try:
        relay(3, outer)
    finally:
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
