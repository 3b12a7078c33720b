"""The load generator, a process of its own: `python -m benchmarks.overload.generator PORT PORT`.

Reads commands as lines of JSON and answers with figures as lines of JSON. It spends as little as it
can, so that it is never what limits the rate, and tells what it spent.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
import traceback
from collections import deque
from typing import Any

import orjson
import uvloop

from benchmarks.overload.books import Answer, Asked, Books, Outcome
from benchmarks.overload.figures import Tally
from benchmarks.overload.lines import Replica
from benchmarks.overload.mix import Mix

PATIENCE = 10.0
"""Seconds that a client waits for an answer, from when the request was due."""
_TICK = 0.001
_SWEEP = 0.05


class Generator:
    """Load on the replicas of one deployment."""

    def __init__(self, ports: list[int], key: str, seed: int) -> None:
        self.replicas = [Replica(port, self._answered, self._cut) for port in ports]
        self._mix = Mix(key, seed)
        self._random = random.Random(seed)
        self._books = Books()
        self._phases: list[Tally] = []
        self._phase = 0
        self._under_way: deque[Asked] = deque()
        self._outstanding = 0
        self._closed_until = 0.0
        """Until when each answer is followed by a new request."""

    # --- commands -----------------------------------------------------------------------------

    async def open(self, phases: list[tuple[float, float]]) -> dict[str, Any]:
        """Each phase at a rate for some seconds, one right after the other."""
        return await self._measured(phases, self._open)

    async def closed(self, connections: int, seconds: float) -> dict[str, Any]:
        """So many requests always under way: the way to find out what can be done at all."""

        async def run(_index: int) -> None:
            self._closed_until = time.perf_counter() + seconds
            for _ in range(connections):
                self._send(self._mix.next(), time.perf_counter())
            while time.perf_counter() < self._closed_until:
                await asyncio.sleep(_SWEEP)
                self._sweep()

        return await self._measured([(0.0, seconds)], run)

    def killing(self, index: int) -> None:
        """From now on cuts by this one are nobody's fault."""
        self.replicas[index].dying = True

    def up(self, index: int) -> None:
        one = self.replicas[index]
        one.in_service, one.dying = True, False

    # --- its loops ----------------------------------------------------------------------------

    async def _measured(self, phases: list[tuple[float, float]], run: Any) -> dict[str, Any]:
        self._phases = [Tally(rate, seconds) for rate, seconds in phases]
        self._books.wrong.clear()
        for replica in self.replicas:
            replica.tidy()
            replica.most = replica.lines
        cpu, began, spent = time.process_time(), time.perf_counter(), []
        for index, tally in enumerate(self._phases):
            self._phase = index
            tally.began = time.perf_counter()
            await run(index)
            now = time.process_time()
            spent.append((now - cpu) / (time.perf_counter() - tally.began))
            cpu = now
        while self._outstanding:
            await asyncio.sleep(_SWEEP)
            self._sweep()
        return {
            "phases": [tally.figures() for tally in self._phases],
            "wrong": dict(self._books.wrong),
            "lines": sum(replica.most for replica in self.replicas),
            "cpu_share": spent,
            "seconds": time.perf_counter() - began,
        }

    async def _open(self, index: int) -> None:
        tally = self._phases[index]
        total, sent, swept = int(tally.rate * tally.seconds), 0, 0.0
        while sent < total:
            now = time.perf_counter()
            while sent < min(total, int((now - tally.began) * tally.rate) + 1):
                due = tally.began + sent / tally.rate
                tally.behind.append(now - due)
                self._send(self._mix.next(), due)
                sent += 1
            if now - swept > _SWEEP:
                swept = now
                self._sweep()
            await asyncio.sleep(_TICK)

    def _sweep(self) -> None:
        """Gives up what nobody waits for any more. All have the same patience, so the first in the
        row is the next to lose it."""
        old = time.perf_counter() - PATIENCE
        row = self._under_way
        while row and (row[0].done or row[0].due < old):
            asked = row.popleft()
            if not asked.done:
                self._finish(asked, Outcome.GAVE_UP, None)
                if asked.line is not None:
                    asked.line.abort()

    # --- one request --------------------------------------------------------------------------

    def _send(self, asked: Asked, due: float) -> None:
        asked.due, asked.phase = due, self._phase
        self._phases[self._phase].sent[asked.kind] += 1
        self._outstanding += 1
        self._under_way.append(asked)
        self._target().send(asked)

    def _target(self) -> Replica:
        here = [replica for replica in self.replicas if replica.in_service] or self.replicas
        return here[0] if len(here) == 1 else self._random.choice(here)

    def _answered(self, asked: Asked, answer: Answer) -> None:
        if not asked.done:
            self._finish(asked, self._books.judge(asked, answer), answer)

    def _cut(self, replica: Replica, asked: Asked) -> None:
        """A replica that was killed is left at its first cut, and what waited for a line to it, or
        had just been sent into the void, goes to the other."""
        if not replica.dying:
            self._finish(asked, self._books.cut(excused=False), None)
            return
        replica.in_service = False
        moved = replica.taken()
        if asked.line is None:
            moved.append(asked)
        else:
            self._finish(asked, self._books.cut(excused=True), None)
        for one in moved:
            self._target().send(one)

    def _finish(self, asked: Asked, outcome: Outcome, answer: Answer | None) -> None:
        now = time.perf_counter()
        asked.done = True
        self._outstanding -= 1
        tally = self._phases[asked.phase]
        tally.came(asked, outcome, now - asked.due)
        if outcome is Outcome.RIGHT and (running := self._phases[self._phase]).holds(now):
            running.arrived += 1
        self._mix.came(asked, outcome, answer)
        if now < self._closed_until:
            self._send(self._mix.next(), now)


async def serve(ports: list[int]) -> None:
    """Commands from standard input until it ends."""
    # Descriptors are needed for lines alone; the key comes from the environment as all secrets do.
    generator = Generator(ports, os.environ["BENCH_CALLERS_KEY"], seed=20261201)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    running: set[asyncio.Task[None]] = set()

    async def answered(command: dict[str, Any]) -> None:
        told = await getattr(generator, command.pop("do"))(**command)
        sys.stdout.buffer.write(orjson.dumps(told) + b"\n")
        sys.stdout.buffer.flush()

    def ended(task: asyncio.Task[None]) -> None:
        running.discard(task)
        if (broken := task.exception()) is not None:
            traceback.print_exception(broken)
            os._exit(70)  # at once: whoever waits for the figures reads the end of the file

    while line := await reader.readline():
        command = orjson.loads(line)
        if command["do"] in ("killing", "up"):
            getattr(generator, command.pop("do"))(**command)
            continue
        task = asyncio.create_task(answered(command))
        running.add(task)
        task.add_done_callback(ended)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve([int(port) for port in sys.argv[1:]]))
