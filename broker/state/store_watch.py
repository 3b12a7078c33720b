"""Looks after the shared store: is it well, is it still the same one, and does it still know what
it was told?

A heartbeat goes over a new connection and does all that the work does: it takes, extends and gives
back a claim, and writes, reads and forgets a value. So a server that is full, has become a replica
or takes no more of what our user may do is noticed without anybody's request. It also reads the
mark that the beat before has left: where that is gone, the store was emptied, or another server
answers now. Then, as after every absence, the store is told again what it must know, and replicas
wait for one another for a moment, before anybody uses it again: a chain that was ended must not be
rotated by a replica that looks before the one that knows has told.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from broker.loop_time import LoopTime
from broker.metrics import Metrics
from broker.schedule import Clock
from broker.state.addresses import Line
from broker.state.health import Health, kind_of
from broker.state.redis_link import Command, Link, cause_of, leads_elsewhere
from broker.state.redis_scripts import Scripts
from broker.state.store import Again, Kept, Put

BEAT_SECONDS = 1.0
"""Between two beats while all is well: one connection and three round trips, 2 ms of a core."""
PROBE_SECONDS = 0.4
"""Between two probes while something fails."""
PROBE_WITHIN_SECONDS = 1.0
"""For one beat: nobody waits, and a cluster's map over TLS may take longer than a deadline."""
SETTLE_SECONDS = 2.0
"""After the first good beat, until the store is used again: every other replica ends a probe that
hangs (1 s), pauses, probes anew, and tells what it knows."""
SETTLE_AGAIN_SECONDS = 10.0
"""A store that loses data time and again (evicted keys, say) is told again each time, and is waited
for only once in so long."""
_MARK_SECONDS = 60.0
_JITTER = 0.25
_EVERYTHING = ("get", "beat", "hit")
"""An operation of each kind: what a server that does not answer at all fails in."""

_KINDS = tuple(kind_of(operation) for operation in _EVERYTHING)

_log = structlog.get_logger("store")


class Watch:
    """The beat of one replica; owns what `Health` says of the store, and the metrics of that."""

    def __init__(
        self,
        link: Link,
        scripts: Scripts,
        health: Health,
        clock: Clock,
        loop_time: LoopTime,
        metrics: Metrics,
    ) -> None:
        self._link = link
        self._scripts = scripts
        self._health = health
        self._clock = clock
        self._loop_time = loop_time
        self._metrics = metrics
        self._name = f"probe:{uuid.uuid4().hex}"
        self._owner = secrets.token_hex(8)
        """The same for all beats: where a claim could not be given back, the next beat must not
        find it another's, and leave out what it cannot do."""
        self._marks: set[bytes] = set()
        """One of them is there: that of the last good beat, or of one that was not heard of
        since."""
        self._marked_at = float("-inf")
        self._settled_at = float("-inf")
        self._owes = ""
        """Why the store must be told everything before it is used again; "" where it need not."""
        self._told_away = False
        self._hurry = asyncio.Event()
        self.again: Again = _nothing
        self.count: Callable[[Line], Awaitable[None]] | None = None
        """Counts once, as rate limits do; None while nobody counts."""
        self.is_settling = False
        metrics.store_up(True)

    def failed(self, operation: str, cause: str) -> None:
        """An operation has failed. Looks closer soon; or says that the store is away."""
        if self._health.failed(operation, self._loop_time.running()):
            self._say_away(cause)
        self._hurry.set()

    def owe(self, why: str) -> None:
        """The store must be told everything: it has said that it is not the one to ask any more, or
        could not be told something. Until then nobody believes that replicas agree."""
        self._owes = self._owes or why
        self._say_away(self._owes)
        self._hurry.set()

    async def run(self) -> None:
        """Beats for ever."""
        while True:
            await self._pause()
            try:
                await self._beat()
            except _Refused as exc:
                for operation in exc.worked:
                    self._health.worked(operation)
                for operation, cause in exc.refusals:
                    self.failed(operation, cause)
            except Exception as exc:  # noqa: BLE001  (whatever it is, it is tried again)
                for operation in _EVERYTHING:
                    self.failed(operation, cause_of(exc))

    async def _pause(self) -> None:
        spread = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311  (replicas not in step)
        if not self._health.is_well:
            return await self._clock.sleep(PROBE_SECONDS * spread)
        self._hurry.clear()
        sleeping = asyncio.ensure_future(self._clock.sleep(BEAT_SECONDS * spread))
        hurried = asyncio.ensure_future(self._hurry.wait())
        try:
            await asyncio.wait((sleeping, hurried), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            hurried.cancel()
        return None

    async def _beat(self) -> None:
        fresh = self._link.dial()
        kept = False
        try:
            await self._link.bounded(lambda: self._probe(fresh), PROBE_WITHIN_SECONDS)
            if await self._strays():
                self.owe("other server")
            told = _Told(self._link, self._scripts, fresh)
            if self._owes or self._health.away:
                self._link.take(fresh)
                kept = True
                await self._back(told)
            else:
                self._health.back()
                await self.again(told, False)
        finally:
            if not kept:
                await self._link.hang_up(fresh)

    async def _probe(self, line: Line) -> None:
        """Looks for the mark of the beat before, and does all that the work does. Raises what the
        server says where it refuses any of it."""
        name, owner, mark = self._name, self._owner, secrets.token_bytes(8)
        scripts, within = self._scripts, PROBE_WITHIN_SECONDS
        steps: list[tuple[str, Command]] = [
            ("get", scripts.read(name)),
            ("claim", scripts.claim(name, owner, within)),
            ("extend", scripts.extend(name, owner, within)),
            ("delete", scripts.forget(name, b"another")),
            ("put", scripts.write(Put(name, mark, _MARK_SECONDS, owner))),
            ("put", scripts.write(Put(name, b"late", within, "another"))),
            ("claim", scripts.claim(name, owner, within)),
            ("release", scripts.free(name, owner)),
        ]
        # once by itself: a new mark that was written, and whose answer is lost, hides what is lost
        self._look_for_mark((await self._link.answers([steps[0][1]], line))[0])
        self._marks.add(mark)
        answers = await self._link.answers([command for _, command in steps], line)
        self._look_for_mark(answers[0])
        refusals = [
            (operation, cause_of(answer))
            for (operation, _), answer in zip(steps, answers, strict=True)
            if isinstance(answer, Exception)
        ]
        worked = {operation for operation, _ in steps} - {operation for operation, _ in refusals}
        if refusals:
            raise _Refused(refusals, worked)
        if self.count is not None:
            try:
                await self.count(line)
            except Exception as exc:  # noqa: BLE001  (whatever it is, it cannot count)
                raise _Refused([("hit", cause_of(exc))], worked) from None
        self._marks, self._marked_at = {mark}, self._clock.monotonic()

    def _look_for_mark(self, answer: Any) -> None:
        """answer: of a read of it."""
        if self._clock.monotonic() - self._marked_at > _MARK_SECONDS / 2:
            self._marks.clear()  # none is due any more
        elif not isinstance(answer, Exception):
            found = self._scripts.opened(self._name, *answer)
            if found is None or found.value not in self._marks:
                self.owe("other data")

    async def _strays(self) -> bool:
        """Does a connection in use not find the mark that was written over a new one? Then it leads
        to a server that is not behind the address any more.

        One after another, which come by turns: at once, they would drive calls that are made
        meanwhile to new connections, more with every beat."""
        command = self._scripts.read(self._name)
        for _ in range(self._link.widest + 1):
            try:
                (answer,) = await self._link.bounded(lambda: self._link.send([command]))
            except Exception as exc:  # noqa: BLE001  (a call that fails is judged as any other)
                return leads_elsewhere(exc)
            found = self._scripts.opened(self._name, *answer)
            if found is None or found.value not in self._marks:
                return True
        return False

    async def _back(self, told: _Told) -> None:
        """Tells all that must be known, waits for the other replicas, and lets everybody in."""
        began = self._loop_time.running()
        before = self._health.away
        self._owes = self._owes or "been away"  # the next beat may find nothing amiss
        self._health.back()
        self.is_settling = True
        try:
            await self.again(told, True)
            now = self._loop_time.running()
            if before or now - self._settled_at > SETTLE_AGAIN_SECONDS:
                await self._clock.sleep(max(0.0, SETTLE_SECONDS - (now - began)))
                self._settled_at = self._loop_time.running()
        except Exception:
            self._health.withhold(_KINDS)  # nobody uses what has not been told
            raise
        finally:
            self.is_settling = False
        self._owes = ""
        self._told_away = False
        self._metrics.store_up(True)
        _log.warning("store_up")

    def _say_away(self, cause: str) -> None:
        self._metrics.store_up(False)
        if not self._told_away:
            self._told_away = True
            _log.warning("store_down", cause=cause, withheld=self._health.away)


class _Refused(Exception):
    """The server answered, and refused operations: each with its cause."""

    def __init__(self, refusals: list[tuple[str, str]], worked: set[str]) -> None:
        super().__init__()
        self.refusals = refusals
        self.worked = worked


class _Told:
    """`store.Told`, over a line that has just proved good."""

    def __init__(self, link: Link, scripts: Scripts, line: Line) -> None:
        self._link = link
        self._scripts = scripts
        self._line = line

    async def get(self, names: Sequence[str]) -> list[Kept | None]:
        commands = [self._scripts.read(name) for name in names]
        answers = await self._link.bounded(lambda: self._link.send(commands, self._line))
        pairs = zip(names, answers, strict=True)
        return [self._scripts.opened(name, *answer) for name, answer in pairs]

    async def put(self, items: Sequence[Put]) -> list[bool]:
        commands = [self._scripts.write(item) for item in items]
        answers = await self._link.bounded(lambda: self._link.send(commands, self._line))
        return [bool(answer) for answer in answers]


async def _nothing(_told: object, _all: bool) -> None:
    return None
