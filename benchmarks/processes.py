"""Servers as processes: started on free ports, pinned to a core, asked what CPU time they used."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

_START_SECONDS = 30.0


class NotStarted(Exception):
    """A server ended, or did not listen in time."""


class Server:
    """One running process that listens on `port`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, core: set[int]) -> None:
        self.port = port
        self._process = process
        os.sched_setaffinity(process.pid, core)

    def cpu(self) -> float:
        """Seconds of CPU time of all its threads, also those that ended, in nanosecond steps.

        Linux's own encoding of `clock_getcpuclockid(3)`, which Python does not offer for other
        processes: the pid inverted, and CPUCLOCK_SCHED.
        """
        return time.clock_gettime((~self._process.pid << 3) | 2)

    def running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """At once, as a machine that is lost."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now."""
    with contextlib.ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def cores() -> tuple[set[int], set[int]]:
    """For the servers under test, and for all else; the same where there is only one."""
    mine = sorted(os.sched_getaffinity(0))
    return {mine[0]}, set(mine[1:]) or {mine[0]}


@contextlib.contextmanager
def started(
    arguments: Sequence[str],
    port: int,
    core: set[int],
    *,
    out: IO[bytes] | int = subprocess.DEVNULL,
    err: Path,
    env: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """`python -m …`, listening. err: where its standard error goes, shown if it fails to start."""
    command = [sys.executable, "-m", *arguments]
    server = launched(command, port, core, out=out, err=err, env=env)
    try:
        until_listening(server, port, err)
        yield server
    finally:
        server.stop()


def launched(
    command: Sequence[str],
    port: int,
    core: set[int],
    *,
    out: IO[bytes] | int = subprocess.DEVNULL,
    err: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Server:
    """Any command, that will listen some time after this; whoever calls stops it."""
    with err.open("ab") as err_file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err_file,
            env={**os.environ, **(env or {})},
            cwd=cwd,
        )
    return Server(process, port, core)


def until_listening(server: Server, port: int, err: Path) -> None:
    """Raises NotStarted."""
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and server.running():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise NotStarted(err.read_text(errors="replace")[-4000:])
