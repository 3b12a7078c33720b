"""One real process of a world: started here, signalled and ended by its id.

Must never find a process by its name, nor leave one behind. What it prints goes to files, so that
nobody's pipe can hold it up.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
_SETPRIV = shutil.which("setpriv")
_WITH_US = [_SETPRIV, "--pdeathsig", "KILL"] if _SETPRIV else []
"""So that a suite that is killed leaves nothing behind (the thread that starts a world ends it)."""
DEADLINE = 30.0
"""Seconds that anything here may take on a busy machine."""


_PORTS = itertools.count(12_000 + os.getpid() % 10_000)
"""Below those that the system gives to who asks for any, and never the same one twice."""


def free_port() -> int:
    """A port that is free, for what cannot tell which one it took, or must have it again."""
    for port in _PORTS:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


async def until(said: Callable[[], object], what: str, deadline: float = DEADLINE) -> float:
    """Polls until `said` is true; gives the seconds that it took. Raises TimeoutError."""
    started = time.monotonic()
    while not said():
        if time.monotonic() - started > deadline:
            raise TimeoutError(f"{what}: not within {deadline:.0f} s")
        await asyncio.sleep(0.02)
    return time.monotonic() - started


class Process:
    """A child with its output in files of its own."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        directory: Path,
        env: Mapping[str, str] | None = None,
        stdout: Path | None = None,
    ) -> None:
        """stdout: where its standard output goes instead, such as a disk that is full."""
        self.name = name
        self.out = stdout or directory / f"{name}.out"
        self.err = directory / f"{name}.err"
        with self.out.open("ab") as out, self.err.open("ab") as err:
            # What its predecessors of the same name wrote is not its own.
            self._out_from, self._err_from = self.out.stat().st_size, self.err.stat().st_size
            self._popen = subprocess.Popen(
                [*_WITH_US, *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=directory,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
                start_new_session=True,  # Ctrl-C is for the suite, which then ends its own
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def said(self) -> str:
        """What it wrote to standard error."""
        return _from(self.err, self._err_from)

    def printed(self) -> str:
        """What it wrote to standard output."""
        return _from(self.out, self._out_from)

    def send(self, sent: signal.Signals) -> None:
        self._popen.send_signal(sent)

    async def ended(self, deadline: float = DEADLINE) -> int:
        await until(lambda: not self.running, f"the end of {self.name}", deadline)
        return self._popen.wait()

    async def kill(self) -> None:
        """At once, whatever state it is in; a stopped one dies too."""
        if self.running:
            self._popen.kill()
        await self.ended()

    def cpu(self) -> float:
        """Seconds of processor time that it has had."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss(self) -> float:
        """Resident memory in MB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise LookupError(f"{self.name} has no memory")

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


def _from(path: Path, start: int) -> str:
    with path.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")


@contextlib.asynccontextmanager
async def busy_neighbours(count: int, directory: Path) -> AsyncIterator[None]:
    """Meanwhile this many processes want a processor each, and get their share of what there is."""
    command = [sys.executable, "-c", "while True: pass"]
    started: list[Process] = []
    try:
        started.extend(Process(f"neighbour-{i}", command, directory) for i in range(count))
        yield
    finally:
        for process in started:
            await process.kill()


def many_files() -> None:
    """As many open files as we may have: a stopped broker is owed many connections."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
