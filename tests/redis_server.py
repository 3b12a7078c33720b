"""Real Redis servers for tests: on free loopback ports, in a directory of their own, ended by pid.

    with redis_server() as url:          # the URL is a str; the server is behind it
        url.pause(); url.resume(); url.kill(); url.restart(); url.flush()

Where redis-server is not installed the test is skipped, and says so; in CI it fails.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest


class RedisServer(str):
    """The URL of a server, with the process behind it."""

    __slots__ = ("_arguments", "_process", "port")

    port: int
    _arguments: list[str]
    _process: subprocess.Popen[bytes]

    def __new__(cls, url: str, port: int, arguments: list[str]) -> Self:
        self = super().__new__(cls, url)
        self.port = port
        self._arguments = arguments
        self.restart()
        return self

    def pause(self) -> None:
        """Takes connections (the kernel does) and answers nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """At once; its port then refuses."""
        self._process.kill()
        self._process.wait(10)

    def restart(self) -> None:
        """Empty, on the same port. After `kill`."""
        self._process = subprocess.Popen(
            self._arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        until = time.monotonic() + 10
        while time.monotonic() < until:
            with (
                contextlib.suppress(ConnectionRefusedError, TimeoutError),
                socket.create_connection(("127.0.0.1", self.port), 1) as line,
            ):
                with contextlib.suppress(ConnectionError):
                    line.sendall(b"PING\r\n")
                    line.recv(1)  # whatever it says, over TLS too: it is listening everywhere
                return
            assert self._process.poll() is None, "redis-server ended as it started"
            time.sleep(0.005)
        raise AssertionError("redis-server did not start")

    def command(self, *words: str | bytes, password: str = "") -> bytes:
        """What the server answers, raw, to one command on a connection of its own."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as line:
            if password:
                line.sendall(_packed("AUTH", password))
                assert line.recv(100) == b"+OK\r\n"
            line.sendall(_packed(*words))
            line.settimeout(5)
            answer = line.recv(1 << 20)
            line.settimeout(0.02)
            with contextlib.suppress(TimeoutError):
                while more := line.recv(1 << 20):
                    answer += more
            return answer

    def flush(self) -> None:
        assert self.command("FLUSHALL") == b"+OK\r\n"

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()  # ends a paused one too
        self._process.wait(10)


def _packed(*words: str | bytes) -> bytes:
    parts = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        reason = f"{name} is not installed: what only a real server can show was NOT tested"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@contextlib.contextmanager
def redis_server(*options: str, scheme: str = "redis", userinfo: str = "") -> Iterator[RedisServer]:
    """options: as on the command line of redis-server. With the scheme rediss, the port is TLS
    only, for which they must name certificate, key and authorities."""
    program = _program("redis-server")
    port = free_port()
    bound = (
        ["--port", str(port)] if scheme != "rediss" else ["--port", "0", "--tls-port", str(port)]
    )
    with tempfile.TemporaryDirectory() as place:
        arguments = [program, *bound, "--bind", "127.0.0.1", "--dir", place, "--save", "", *options]
        server = RedisServer(f"{scheme}://{userinfo}127.0.0.1:{port}", port, arguments)
        try:
            yield server
        finally:
            server.end()


@contextlib.contextmanager
def redis_sentinel(master: RedisServer, *options: str) -> Iterator[RedisServer]:
    """One sentinel, which is a quorum of its own, and notices after 300 ms; its service is
    `mymaster`. options: lines of its configuration."""
    program = _program("redis-server")
    port = free_port()
    with tempfile.TemporaryDirectory() as place:
        lines = [
            f"port {port}", "bind 127.0.0.1", f"dir {place}",
            f"sentinel monitor mymaster 127.0.0.1 {master.port} 1",
            "sentinel down-after-milliseconds mymaster 300",
            "sentinel failover-timeout mymaster 2000", *options,
        ]  # fmt: skip
        file = Path(place) / "sentinel.conf"
        file.write_text("\n".join(lines) + "\n")
        url = f"redis+sentinel://127.0.0.1:{port}/0?service=mymaster"
        server = RedisServer(url, port, [program, str(file), "--sentinel"])
        try:
            yield server
        finally:
            server.end()


@contextlib.contextmanager
def redis_cluster() -> Iterator[tuple[str, list[RedisServer]]]:
    """Three masters with a third of the slots each, and a replica of the first: the URL, and the
    nodes. A master that is mute for a second is replaced."""
    with contextlib.ExitStack() as stack:
        nodes, buses = [], []
        for index in range(4):
            bus = free_port()
            options = [
                "--cluster-enabled", "yes", "--cluster-port", str(bus),
                "--cluster-node-timeout", "600", "--cluster-require-full-coverage", "no",
                "--cluster-config-file", f"nodes-{index}.conf", "--repl-diskless-sync-delay", "0",
            ]  # fmt: skip
            nodes.append(stack.enter_context(redis_server(*options)))
            buses.append(bus)
        edges = [0, 5461, 10923, 16384]
        for index, node in enumerate(nodes):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", str(index + 1))
            if index < 3:
                first, last = str(edges[index]), str(edges[index + 1] - 1)
                assert node.command("CLUSTER", "ADDSLOTSRANGE", first, last) == b"+OK\r\n"
            if index:
                nodes[0].command("CLUSTER", "MEET", "127.0.0.1", str(node.port), str(buses[index]))
        first = nodes[0].command("CLUSTER", "MYID").split(b"\r\n")[1]
        until = time.monotonic() + 10
        while nodes[3].command("CLUSTER", "REPLICATE", first) != b"+OK\r\n":
            assert time.monotonic() < until, "the nodes did not meet"
        while time.monotonic() < until:
            infos = [node.command("CLUSTER", "INFO") for node in nodes]
            follows = nodes[3].command("INFO", "replication")
            if b"master_link_status:up" in follows and all(
                b"cluster_state:ok" in info and b"cluster_slots_ok:16384" in info for info in infos
            ):
                hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes[:3])
                yield f"redis+cluster://{hosts}", nodes
                return
            time.sleep(0.02)
        raise AssertionError("the cluster did not form")
