"""The connections to a Redis or Valkey server, and the deadline of every call over them.

Must never let one call's late answer be taken for another's, hold a caller beyond the deadline, or
count seconds in which our own loop stood still against the server.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from broker.flights import Spawn
from broker.loop_time import LoopTime
from broker.state.addresses import MOST_CONNECTIONS, Line

T = TypeVar("T")
Command = tuple[str, tuple[str, ...], tuple[str | bytes | int, ...]]
"""A script, its keys, its arguments."""
_CODES = re.compile(
    r"\b(BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|NOAUTH|NOPERM|NOREPLICAS|OOM|READONLY|WRONGPASS)\b"
)
_DENIED = re.compile(r"user executing the script can't|ACL failure in script")
"""What a script says, without a code, of a command that our user may not use (7 and later)."""
_CODE_OF_CLASS = {
    "BusyLoadingError": "LOADING",
    "ClusterDownError": "CLUSTERDOWN",
    "MasterDownError": "MASTERDOWN",
    "NoPermissionError": "NOPERM",
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
}
"""The library takes the code off the texts of these."""
_ELSEWHERE = frozenset({"LOADING", "MASTERDOWN", "READONLY"})


class Link:
    """One line at a time, which can be replaced by a new one."""

    def __init__(
        self,
        dial: Callable[[], Line],
        *,
        timeout: float,
        loop_time: LoopTime,
        spawn: Spawn,
    ) -> None:
        """timeout: running seconds of one call, connecting included."""
        self._dial = dial
        self._timeout = timeout
        self._loop_time = loop_time
        self._spawn = spawn
        self._places = asyncio.Semaphore(MOST_CONNECTIONS)
        self._in_use = 0
        self._closing: set[asyncio.Future[None]] = set()
        self.widest = 1
        """The most calls of callers at once over the current line. It has one connection more at
        most: of who looks it over, one after another."""
        self.line = dial()
        self.replaced: Callable[[], None] = lambda: None
        """Called when `line` is another one."""

    def dial(self) -> Line:
        return self._dial()

    def redial(self, instead: Line) -> None:
        """New calls go over new connections, if they do not already: of many that are answered
        "not here" at once over one line, the first replaces it."""
        if self.line is instead:
            self.take(self._dial())

    def take(self, line: Line) -> None:
        """New calls go over `line`; those under way end on the one they are on."""
        before, self.line, self.widest = self.line, line, 1
        self.replaced()
        _ = self._spawn(self._hang_up(before))

    async def hang_up(self, line: Line) -> None:
        """Closes a line that nobody uses any more. Goes on where whoever asks is cancelled, and is
        none of the app's tasks, which are cancelled as it ends: then connections would stay."""
        closing = asyncio.ensure_future(line.close())
        self._closing.add(closing)
        closing.add_done_callback(_seen)
        closing.add_done_callback(self._closing.discard)
        if not await self._loop_time.finished(closing, self._timeout):
            closing.cancel()

    async def close(self) -> None:
        """Ends the current line, and waits for those that are ending, within the deadline."""
        await self.hang_up(self.line)
        for closing in list(self._closing):
            await self._loop_time.finished(closing, self._timeout)

    async def _hang_up(self, line: Line) -> None:
        try:
            await asyncio.sleep(2 * self._timeout)
        finally:  # also where the app ends meanwhile
            await self.hang_up(line)

    async def send(self, commands: Sequence[Command], line: Line | None = None) -> list[Any]:
        """Sends all of them at once. Gives their answers; raises the first error among them.

        line: another one than the current."""
        if len(commands) == 1:
            ((script, keys, arguments),) = commands
            client = (line or self.line).client
            return [await client.execute_command("EVAL", script, len(keys), *keys, *arguments)]
        answers = await self.answers(commands, line)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    async def answers(self, commands: Sequence[Command], line: Line | None = None) -> list[Any]:
        """The same, with errors in the places of answers."""
        pipeline = (line or self.line).client.pipeline(transaction=False)
        for script, keys, arguments in commands:
            pipeline.execute_command("EVAL", script, len(keys), *keys, *arguments)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers

    async def called(self, work: Callable[[], Awaitable[T]]) -> T:
        """`bounded`, for a caller: see `widest`."""
        self._in_use += 1
        self.widest = max(self.widest, min(self._in_use, MOST_CONNECTIONS))
        try:
            return await self.bounded(work)
        finally:
            self._in_use -= 1

    async def bounded(self, work: Callable[[], Awaitable[T]], least: float = 0.0) -> T:
        """What `work` gives, within the deadline (or `least` seconds, if that is longer). Raises
        TimeoutError, and what `work` raises.

        In a task of its own, which is cancelled once and by us only: then the library closes the
        connection, whose late answer must not be taken for another's, and gives its place back,
        however the caller left. And the deadline holds though a library swallow a cancellation."""
        task = self._spawn(self._in_place(work))
        task.add_done_callback(_seen)
        try:
            await self._loop_time.finished(task, max(least, self._timeout))
        finally:
            task.cancel()
        if not task.done() or task.cancelled():
            raise TimeoutError
        result: T = task.result()
        return result

    async def _in_place(self, work: Callable[[], Awaitable[T]]) -> T:
        """Never more calls at once than connections: with none left, the library fails at once."""
        async with self._places:
            return await work()


def cause_of(error: Exception) -> str:
    """The server's own word for an error, else the name of its class. Never its text, as the
    library repeats names and arguments in it."""
    name = type(error).__name__
    if name in _CODE_OF_CLASS:
        return _CODE_OF_CLASS[name]
    if _DENIED.search(str(error)):
        return "NOPERM"
    found = _CODES.search(str(error))
    return found[1] if found else name


def is_timeout(cause: str) -> bool:
    """By its name, as the library's own is no TimeoutError."""
    return "Timeout" in cause


def leads_elsewhere(error: Exception) -> bool:
    """Does the server say that it is not the one to ask? Then the address, or the sentinels, may
    know another by now."""
    return cause_of(error) in _ELSEWHERE


def is_broken(error: Exception) -> bool:
    """Has the connection ended, rather than the server refused or been silent?"""
    names = {one.__name__ for one in type(error).__mro__}
    return ("ConnectionError" in names or isinstance(error, OSError)) and not is_timeout(
        type(error).__name__
    )


def _seen(task: asyncio.Future[Any]) -> None:
    """An error after the deadline is nobody's any more."""
    if not task.cancelled():
        task.exception()
