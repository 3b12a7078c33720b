"""Deployments under test: two replicas of one checkout, a Redis of their own, one upstream for all.

The replicas share one core, so that they are what is short of it; everything else has the rest.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.overload.mix import AUDIENCE, ISSUER, ORIGIN
from benchmarks.processes import NotStarted, Server, cores, free_ports, launched, until_listening
from broker.sandbox.settings import SandboxSettings

HERE = Path(__file__).parents[2]
_CONFIG = """\
server:
  public: {{host: 127.0.0.1, port: {port}}}
  ops: {{host: 127.0.0.1, port: {ops_port}}}
  keep_alive: 120s
keys: {{env: BENCH_SEAL_KEY}}
state: {{url: {{env: BENCH_STATE_URL}}}}
callers:
  pages:
    type: jwt
    issuer: {issuer}
    audience: {audience}
    shared_secret: {{env: BENCH_CALLERS_KEY}}
profiles:
  nmi:
    preset: nmi
    base_url: {upstream}/nmi/api/v1
    api_key: {{env: BENCH_NMI_KEY}}
    gateway:
      merchant_id: ${{claims.merchant_id}}
      environment: sandbox
    allow:
      callers: [pages]
      origins: ["{origin}"]
      require: {{role: [owner]}}
    rotation: {{max_chain: 8h, grace: 10m}}
    min_remaining: 5m
"""
_SETPRIV = shutil.which("setpriv")
_WITH_US = [_SETPRIV, "--pdeathsig", "KILL"] if _SETPRIV else []
"""So that a run that is killed leaves nothing behind."""


TESTED, REST = cores()
"""Asked once, before this process takes its own place."""
IS_PINNED = TESTED != REST


class Replica:
    """One broker: its file and its ports stay the same over its restarts."""

    def __init__(self, deployment: Deployment, index: int) -> None:
        self.index = index
        self.port, self.ops_port = free_ports(2)
        self._deployment = deployment
        self._path = deployment.directory / f"broker-{index}.yaml"
        self._err = deployment.directory / f"broker-{index}.err"
        self._spent = 0.0
        self._server: Server | None = None
        self._path.write_text(
            _CONFIG.format(
                port=self.port,
                ops_port=self.ops_port,
                upstream=deployment.upstream,
                origin=ORIGIN,
                issuer=ISSUER,
                audience=AUDIENCE,
            )
        )

    def start(self) -> None:
        command = [*_WITH_US, sys.executable, "-m", "broker", "serve", "-c", str(self._path)]
        one = self._deployment
        with self._path.with_suffix(".out").open("ab") as audit:
            self._server = launched(
                command, self.port, TESTED,
                out=audit, err=self._err, env=one.env, cwd=one.directory,
            )  # fmt: skip

    def kill(self) -> None:
        assert self._server is not None
        self._spent = self.cpu()
        self._server.kill()
        self._server = None

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()

    def cpu(self) -> float:
        """Seconds of CPU time, of all its lives."""
        return self._spent + (self._server.cpu() if self._server is not None else 0.0)

    def is_ready(self) -> bool:
        """What /readyz says, within a second."""
        return self.ask("/readyz") is not None

    def in_flight(self) -> float:
        """Requests that it works on, by its own metrics; 0 where it does not tell."""
        for line in (self.ask("/metrics") or "").splitlines():
            if line.startswith("broker_requests_in_flight "):
                return float(line.split()[1])
        return 0.0

    def ask(self, path: str) -> str | None:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.ops_port}{path}", timeout=1) as answer,
        ):
            text: str = answer.read().decode()
            return text
        return None

    def said(self) -> str:
        return self._err.read_text(errors="replace")[-2000:]


class Deployment:
    """Two replicas of one checkout."""

    def __init__(
        self, name: str, checkout: Path, directory: Path, upstream: str, store: int
    ) -> None:
        """name: in the output. store: the port of its Redis."""
        directory.mkdir()
        self.name = name
        self.directory = directory
        self.upstream = upstream
        self.helpers: list[Server] = []
        """Redis and upstream, to know what they cost."""
        self.callers_key = secrets.token_urlsafe(32)
        # The directory it runs in must have no package `broker`, as that would go before the path.
        self.env = {
            "PYTHONPATH": str(checkout),
            "BENCH_SEAL_KEY": secrets.token_urlsafe(32),
            "BENCH_STATE_URL": f"redis://127.0.0.1:{store}/0",
            "BENCH_CALLERS_KEY": self.callers_key,
            "BENCH_NMI_KEY": next(iter(SandboxSettings().nmi_gateway_keys)),
        }
        self.imported = _imported(checkout, self)
        self.replicas = [Replica(self, index) for index in range(2)]

    @property
    def ports(self) -> list[int]:
        return [replica.port for replica in self.replicas]

    def cpu(self) -> float:
        return sum(replica.cpu() for replica in self.replicas)


def _imported(checkout: Path, deployment: Deployment) -> Path:
    """Where its `broker` really comes from. Raises NotStarted where that is not the checkout."""
    told = subprocess.run(
        [sys.executable, "-c", "import broker; print(broker.__file__)"],
        env={**os.environ, **deployment.env},
        cwd=deployment.directory,
        capture_output=True,
        text=True,
        check=False,
    )
    found = Path(told.stdout.strip() or "nowhere")
    if not found.is_relative_to(checkout):
        raise NotStarted(f"{deployment.name} would import {found}, not {checkout}: {told.stderr}")
    return found


@contextlib.contextmanager
def deployments(directory: Path, checkouts: dict[str, Path]) -> Iterator[list[Deployment]]:
    """All of them, by name, not ready yet. Raises NotStarted."""
    with contextlib.ExitStack() as stack:

        def started(name: str, port: int, *command: str) -> Server:
            err = directory / f"{name}.err"
            server = launched([*_WITH_US, *command], port, REST, err=err, cwd=HERE)
            stack.callback(server.stop)
            until_listening(server, port, err)
            return server

        (port,) = free_ports(1)
        sandbox = started(
            "upstream", port, sys.executable, "-m", "benchmarks.sandbox", str(port), "1"
        )
        upstream = f"http://127.0.0.1:{port}"
        found = []
        for name, checkout in checkouts.items():
            (port,) = free_ports(1)
            redis = started(f"redis-{name}", port, *_redis(port, directory))
            one = Deployment(name, checkout.resolve(), directory / name, upstream, port)
            one.helpers = [sandbox, redis]
            found.append(one)
            for replica in one.replicas:
                replica.start()
                stack.callback(replica.stop)
        yield found


def _redis(port: int, directory: Path) -> list[str]:
    """Keeps nothing on disk, and has no bound: what is measured is not its memory."""
    program = shutil.which("redis-server")
    if program is None:
        raise NotStarted("redis-server is not installed; apt-get install it")
    options = {"--port": str(port), "--bind": "127.0.0.1", "--save": "", "--appendonly": "no"}
    return [program, *(word for pair in options.items() for word in pair), "--dir", str(directory)]
