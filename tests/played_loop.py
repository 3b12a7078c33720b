"""An event loop on a clock of its own: nobody waits for it, and what work costs is said by the test.

Exists for what is about an event loop that has too much to do, or stands still: on a real one such
a test would be slow, and would mean something else on every machine.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from broker import loop_time

TURN_SECONDS = 1e-6
"""What a turn costs in which nothing is done: a clock never stands."""


class _Jumps(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    """In place of waiting, the clock jumps to where the loop would have woken up."""

    passed: Callable[[float], None]

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found and timeout is None:
            raise RuntimeError("nothing will ever happen")
        self.passed(TURN_SECONDS if found or not timeout else max(TURN_SECONDS, timeout))
        return found


class PlayedLoop(asyncio.SelectorEventLoop):
    """turns: how often it has turned. processor: seconds of work that it has done."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.processor = 0.0
        self.turns = 0
        selector = _Jumps()
        selector.passed = self._turned
        super().__init__(selector)

    def _turned(self, seconds: float) -> None:
        self.turns += 1
        self.now += seconds

    def time(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        """What is done at this point takes so long, of the processor."""
        self.now += seconds
        self.processor += seconds

    def stand_still(self, seconds: float) -> None:
        """The process is stopped, or has no processor, for so long."""
        self.now += seconds


def played(story: Callable[[PlayedLoop], Coroutine[Any, Any, None]]) -> None:
    """Runs the story on a played loop, whose time is also that of `broker.loop_time`."""
    loop = PlayedLoop()

    class Time:
        monotonic = staticmethod(loop.time)

    with pytest.MonkeyPatch.context() as patch, asyncio.Runner(loop_factory=lambda: loop) as runner:
        patch.setattr(loop_time, "time", Time)
        runner.run(story(loop))
