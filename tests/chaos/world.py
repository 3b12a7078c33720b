"""The real processes of one row, or of several that share them: sandbox, store, brokers.

A world is made and ended within one event loop. Whatever it starts, it ends, by process id.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp

from tests.chaos import config
from tests.chaos.process import DEADLINE, Process, free_port, until
from tests.chaos.proxies import Authority, Proxy


class NotHere(RuntimeError):
    """This machine lacks what a row needs: told loudly, and a failure where CI is set."""


class NotAllowedHere(NotHere):
    """The same, of what cannot be installed: told loudly everywhere."""


def needed(program: str) -> str:
    """The program's path. Raises NotHere."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/bin")
    if found is None:
        raise NotHere(f"{program} is not installed; apt-get install it")
    return found


@dataclass(frozen=True, slots=True)
class Kind:
    """What a row asks of its world; rows of one kind share one.

    changes: to the configuration. drain: `server.drain_delay`.
    """

    name: str
    replicas: int = 2
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    drain: str = "0s"


class Broker:
    """One replica: its files and ports stay the same over its restarts."""

    def __init__(self, index: int, directory: Path) -> None:
        self.index = index
        self.path = directory / f"broker-{index}.yaml"
        self.public_port, self.ops_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.public_port}"
        self.ops = f"http://127.0.0.1:{self.ops_port}"
        self.process: Process | None = None

    @property
    def up(self) -> Process:
        assert self.process is not None
        return self.process


class World:
    """Sandbox, store and brokers in a directory of their own."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._temporary = tempfile.TemporaryDirectory(prefix="chaos-")
        self.directory = Path(self._temporary.name)
        self.secrets = self.directory / "secrets"
        self.brokers = [Broker(index, self.directory) for index in range(kind.replicas)]
        self.sandbox = ""
        self.store_port = free_port()
        self.store: Process | None = None
        self._processes: list[Process] = []
        self._closers: list[Any] = []
        # What a kind may put between or around (see `kinds`).
        self.changes: dict[str, Any] = {}
        self.broker_env: dict[str, str] = {}
        self.wrap: Sequence[str] = ()
        self.stdout: Path | None = None
        self.upstream = ""
        self.tokens = ""
        self.state_port = self.store_port
        self.second_port = 0
        self.operation_cost = 0.0
        """Seconds of processor time, once a row has measured it."""
        self.proxy: Proxy
        self.authority: Authority
        self.hosts: Path
        self.stamp: Path

    async def __aenter__(self) -> Self:
        config.put_secrets(self.secrets)
        try:
            await self.start_sandbox()
            await self.start_store()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        for process in reversed(self._processes):
            await process.kill()
        for closer in reversed(self._closers):
            await closer()
        self._temporary.cleanup()

    def at_end(self, closer: Any) -> None:
        """closer: an async function of nothing, called when every process has ended."""
        self._closers.append(closer)

    def start(self, name: str, command: Sequence[str], **options: Any) -> Process:
        process = Process(name, command, self.directory, **options)
        self._processes.append(process)
        return process

    async def start_sandbox(self) -> None:
        process = self.start("sandbox", [sys.executable, "-m", "broker", "sandbox", "--port", "0"])
        await until(lambda: "sandbox: " in process.printed() or not process.running, "sandbox")
        self.sandbox = process.printed().split("sandbox: ")[1].split()[0]
        self.upstream = self.tokens = self.sandbox

    def redis(self, port: int, *options: str) -> list[str]:
        """The command of a store that saves nothing by itself."""
        command = [needed("redis-server"), "--port", str(port), "--bind", "127.0.0.1"]
        command += ["--save", "", "--appendonly", "no", "--maxmemory", "64mb"]
        command += ["--maxmemory-policy", "noeviction", "--dir", str(self.directory)]
        return [*command, "--repl-diskless-sync-delay", "0", *options]

    def launch_store(self, *options: str) -> None:
        self.store = self.start("store", self.redis(self.store_port, *options))

    def store_ready(self) -> bool:
        return self.store is not None and "Ready to accept" in self.store.printed()

    async def start_store(self) -> None:
        """Empty, as it keeps nothing on disk."""
        self.launch_store()
        await until(self.store_ready, "store")

    def settings(self, broker: Broker) -> dict[str, Any]:
        told = config.config(self.secrets, self.upstream, self.tokens)
        told["server"]["public"]["port"] = broker.public_port
        told["server"]["ops"]["port"] = broker.ops_port
        told["server"]["drain_delay"] = self.kind.drain
        told["state"] = {"url": {"env": "BROKER_STATE_URL"}, "timeout": "250ms"}
        return config.merged(config.merged(told, dict(self.kind.changes)), self.changes)

    def launch(self, broker: Broker) -> None:
        if not broker.path.exists():
            config.write(broker.path, self.settings(broker))
        command = [*self.wrap, sys.executable, "-m", "broker", "serve", "-c", str(broker.path)]
        state = f"redis://127.0.0.1:{self.state_port}/0"
        env = {"BROKER_STATE_URL": state, **self.broker_env}
        name = f"broker-{broker.index}"
        broker.process = self.start(name, command, env=env, stdout=self.stdout)

    async def ready(self, broker: Broker, deadline: float = DEADLINE) -> None:
        """Waits until /readyz says yes. Raises AssertionError where the process ended instead."""
        process = broker.up
        async with aiohttp.ClientSession() as http:
            for _ in range(int(deadline / 0.05)):
                if not process.running:
                    raise AssertionError(f"{process.name} ended: {process.said()[-2000:]}")
                try:
                    async with http.get(f"{broker.ops}/readyz") as answer:
                        if answer.status == 200:
                            return
                except (aiohttp.ClientError, OSError):
                    pass
                await asyncio.sleep(0.05)
        raise TimeoutError(f"{process.name} is not ready after {deadline:.0f} s")

    async def serve(self) -> None:
        """Starts every replica that does not run."""
        idle = [broker for broker in self.brokers if not (broker.process and broker.up.running)]
        for broker in idle:
            self.launch(broker)
        for broker in idle:
            await self.ready(broker)

    async def stop(self, broker: Broker, sent: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status."""
        broker.up.send(sent)
        return await broker.up.ended()
