"""What only processes can show: two listeners, signals, drain, ports, the command line's ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

DEADLINE = 20.0
"""Seconds a process may take for anything here, on a busy machine."""


class Process:
    """A `token-broker` process of this test's own; its lines are read as they come."""

    def __init__(self, *args: str, env: dict[str, str] | None = None, cwd: Path | None = None):
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "broker", *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **(env or {})},
            cwd=cwd,
            text=True,
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()

    def line_with(self, text: str) -> str:
        def found() -> str | None:
            return next((line for line in self.lines if text in line), None)

        with self._news:
            if not self._news.wait_for(found, DEADLINE):
                raise AssertionError(f"no line with {text!r} in {self.lines}")
            return found() or ""

    def ready(self) -> tuple[str, str]:
        """The addresses of both listeners."""
        told = json.loads(self.line_with('"event":"ready"'))
        return told["public"], told["ops"]

    def end(self, sent: int = signal.SIGTERM) -> int:
        self.popen.send_signal(sent)
        return self.wait()

    def wait(self) -> int:
        code = self.popen.wait(DEADLINE)
        self._reader.join(DEADLINE)
        return code


@contextlib.contextmanager
def process(*args: str, **options: Any) -> Iterator[Process]:
    told = Process(*args, **options)
    try:
        yield told
    finally:
        if told.popen.poll() is None:
            told.popen.kill()
        told.wait()
        assert told.popen.stdout is not None
        told.popen.stdout.close()


CONFIG = """
server:
  public: {host: 127.0.0.1, port: 0}
  ops: {host: 127.0.0.1, port: 0}
  drain_delay: %s
insecure_anonymous: true
keys: {env: SEAL}
profiles:
  p:
    preset: nmi
    base_url: %s/nmi/api/v1
    api_key: {env: KEY}
    gateway: {merchant_id: "1", environment: sandbox}
    allow: {callers: [anonymous]}
    rotation: {}
"""
ENV = {"SEAL": "s" * 32, "KEY": "sandbox-nmi-key"}


@pytest.fixture(name="upstreams")
def _upstreams() -> Iterator[str]:
    with process("sandbox", "--port", "0") as told:
        yield told.line_with("sandbox: ").split()[1]


@contextlib.contextmanager
def serving(tmp_path: Path, upstreams: str, drain: str = "0s") -> Iterator[Process]:
    path = tmp_path / "broker.yaml"
    path.write_text(CONFIG % (drain, upstreams))
    with process("serve", "-c", str(path), env=ENV) as told:
        yield told


def test_serve_answers_on_two_listeners(tmp_path: Path, upstreams: str) -> None:
    """`serve` mints on one port and tells its metrics on the other, never the other way round."""
    with serving(tmp_path, upstreams) as broker:
        public, ops = broker.ready()
        minted = httpx2.post(f"{public}/v1/profiles/p/sessions")
        assert minted.status_code == 201
        headers = {"content-type": "application/json"}
        body = json.dumps({"handle": minted.json()["handle"]})
        rotated = httpx2.post(f"{public}/v1/sessions/rotate", content=body, headers=headers)
        assert rotated.status_code == 201
        assert httpx2.get(f"{ops}/readyz").status_code == 200
        assert "broker_requests_total" in httpx2.get(f"{ops}/metrics").text
        assert httpx2.get(f"{public}/metrics").status_code == 404
        assert httpx2.post(f"{ops}/v1/profiles/p/sessions").status_code == 404
        assert broker.end() == 0


def test_a_drain_goes_on_serving_while_not_ready(tmp_path: Path, upstreams: str) -> None:
    """After SIGTERM readiness fails at once, requests are still answered and their connections
    closed, and a second signal ends the wait with status 0."""
    with serving(tmp_path, upstreams, "60s") as broker:
        public, ops = broker.ready()
        broker.popen.send_signal(signal.SIGTERM)
        broker.line_with('"event":"draining"')
        probe = httpx2.get(f"{ops}/readyz")
        assert (probe.status_code, probe.text) == (503, "draining\n")
        assert httpx2.get(f"{ops}/livez").status_code == 200
        answer = httpx2.post(f"{public}/v1/profiles/p/sessions")
        assert answer.status_code == 201
        assert answer.headers["connection"] == "close"
        assert broker.end() == 0


def test_a_running_mint_outlives_the_signal(tmp_path: Path, upstreams: str) -> None:
    """A mint whose upstream is slow when SIGTERM comes is still answered with its session."""
    fault = {"operation": "nmi.session", "kind": "latency", "seconds": 1.5, "times": 1}
    httpx2.post(f"{upstreams}/_sandbox/faults", json=fault)
    with serving(tmp_path, upstreams) as broker:
        public, _ = broker.ready()
        answers: list[httpx2.Response] = []
        url = f"{public}/v1/profiles/p/sessions"
        asking = threading.Thread(target=lambda: answers.append(httpx2.post(url, timeout=10)))
        asking.start()
        until = time.monotonic() + DEADLINE
        while httpx2.get(f"{upstreams}/_sandbox/calls").json().get("nmi.session") != 1:
            assert time.monotonic() < until
        assert broker.end() == 0
        asking.join(DEADLINE)
        assert [answer.status_code for answer in answers] == [201]


def test_interrupt_ends_at_once_with_0(tmp_path: Path, upstreams: str) -> None:
    """Ctrl-C does not wait for the drain delay."""
    with serving(tmp_path, upstreams, "60s") as broker:
        broker.ready()
        assert broker.end(signal.SIGINT) == 0


WARM = """
credentials:
  checkout:
    token_url: %s/checkout/access/connect/token
    client_id: {env: CLIENT}
    client_secret: {env: CLIENT_SECRET}
"""
CLIENT = {"CLIENT": "ack_sandbox", "CLIENT_SECRET": "sandbox+secret/with=chars=="}


@contextlib.contextmanager
def warming(tmp_path: Path, upstreams: str, warm_up: str) -> Iterator[Process]:
    path = tmp_path / "broker.yaml"
    text = (CONFIG % ("0s", upstreams)) + WARM % upstreams
    path.write_text(text.replace("server:", f"server:\n  warm_up: {warm_up}", 1))
    with process("serve", "-c", str(path), env={**ENV, **CLIENT}) as told:
        yield told


def test_ready_is_warm(tmp_path: Path, upstreams: str) -> None:
    """Before the process says that it is ready it has fetched its access tokens."""
    with warming(tmp_path, upstreams, "10s") as broker:
        _, ops = broker.ready()
        assert httpx2.get(f"{upstreams}/_sandbox/calls").json()["checkout.token"] == 1
        assert httpx2.get(f"{ops}/readyz").status_code == 200
        assert broker.end() == 0


def test_a_dead_token_endpoint_delays_no_start_for_long(tmp_path: Path, upstreams: str) -> None:
    """It is ready once `warm_up` is over, whatever came of it."""
    hang = {"operation": "checkout.token", "kind": "hang"}
    httpx2.post(f"{upstreams}/_sandbox/faults", json=hang)
    with warming(tmp_path, upstreams, "1s") as broker:
        public, _ = broker.ready()
        assert httpx2.post(f"{public}/v1/profiles/p/sessions").status_code == 201
        assert broker.end() == 0


def test_a_signal_while_it_warms_up_ends_it(tmp_path: Path, upstreams: str) -> None:
    """SIGTERM is obeyed before the process was ever ready, with status 0."""
    hang = {"operation": "checkout.token", "kind": "hang"}
    httpx2.post(f"{upstreams}/_sandbox/faults", json=hang)
    with warming(tmp_path, upstreams, "60s") as broker:
        until = time.monotonic() + DEADLINE
        while not httpx2.get(f"{upstreams}/_sandbox/calls").json().get("checkout.token"):
            assert time.monotonic() < until
        began = time.monotonic()
        assert broker.end() == 0
        assert time.monotonic() - began < 10


def test_a_taken_port_is_said_in_words(tmp_path: Path, upstreams: str) -> None:
    """A port in use ends the start with 71 and a line that names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = tmp_path / "broker.yaml"
        path.write_text((CONFIG % ("0s", upstreams)).replace("port: 0", f"port: {port}", 1))
        with process("serve", "-c", str(path), env=ENV) as broker:
            assert broker.wait() == 71
            assert f"cannot listen on 127.0.0.1:{port} (server.public)" in broker.lines[-1]


def test_a_bad_configuration_ends_with_78(tmp_path: Path) -> None:
    """Every fault is told on its own line with its path, no value of a secret among them."""
    path = tmp_path / "broker.yaml"
    path.write_text(
        "profiles: {p: {preset: nmi, api_key: sk_live_oops, allow: {callers: [x]}}}\nzz: 1\n"
    )
    for command in ("serve", "check"):
        with process(command, "-c", str(path)) as broker:
            assert broker.wait() == 78
            text = "\n".join(broker.lines)
            for fault in (
                "broker.yaml cannot be used: 4 faults",
                "zz: is not a known key",
                "profiles.p.api_key: a secret is given as {file: PATH} or {env: NAME}",
                "callers: nobody could ask for anything",
                "profiles.p.allow.callers: there is no caller 'x' under callers",
            ):
                assert fault in text
            assert "sk_live_oops" not in text


STORE = "state: {url: {env: URL}}\n"
SIGNING = """
credentials:
  checkout:
    token_url: https://idp.test/token
    client_id: {env: KEY}
    private_key: {env: KEY}
    client_auth: private_key_jwt
"""


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize(
    ("more", "env", "fault"),
    [
        ("", {"SEAL": "short"}, "keys.0: env:SEAL: a sealing key has 32 bytes or more"),
        (STORE, {"SEAL": "short"}, "keys.0: env:SEAL: a sealing key has 32 bytes or more"),
        (STORE, {"URL": "http://u:c4nary@x"}, "state.url: "),
        (SIGNING, {}, "credentials.checkout.private_key: "),
        (STORE + SIGNING, {}, "credentials.checkout.private_key: "),
    ],
)
def test_an_unusable_secret_ends_with_78(
    tmp_path: Path, command: str, more: str, env: dict[str, str], fault: str
) -> None:
    """What only a secret itself can show is told with its place, like every fault, and with
    nothing else: no traceback, and no word of what was made before it was found."""
    path = tmp_path / "broker.yaml"
    path.write_text(CONFIG % ("0s", "http://127.0.0.1:9") + more)
    url = {"URL": "redis://u:c4nary@127.0.0.1:9"}
    with process(command, "-c", str(path), env={**ENV, **url, **env}) as broker:
        assert broker.wait() == 78
        text = "\n".join(broker.lines)
        assert fault in text
        for noise in ("Traceback", "Unclosed", "never awaited", "c4nary"):
            assert noise not in text
        assert len(broker.lines) == 2, text


def test_the_demo_mints_rotates_and_leaves_nothing(tmp_path: Path) -> None:
    """`demo` prints a curl line that works as it stands, with a real JWT; its handle rotates; the
    service's access token is there; Ctrl-C ends every listener."""
    ports = ("--port", "0", "--ops-port", "0", "--sandbox-port", "0")
    with process("demo", *ports, cwd=tmp_path) as demo:
        demo.line_with("Ctrl-C ends it all.")
        start = next(i for i, line in enumerate(demo.lines) if "curl -s -X POST" in line)
        command = "\n".join(demo.lines[start : start + 2])
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, check=True, text=True, timeout=DEADLINE
        )
        minted = json.loads(done.stdout)
        assert minted["profile"] == "transactions"
        public, ops = demo.ready()
        sandbox = command.split("curl -s '")[1].split("/idp/")[0]
        ada = httpx2.get(f"{sandbox}/idp/token?user=ada&format=text").text
        eve = httpx2.get(f"{sandbox}/idp/token?user=eve&format=text").text
        service = httpx2.get(f"{sandbox}/idp/token?client=reports-backend&format=text").text
        rotated = httpx2.post(
            f"{public}/v1/sessions/rotate",
            json={"handle": minted["handle"]},
            headers={"authorization": f"Bearer {ada}"},
        )
        assert rotated.status_code == 201
        refused = httpx2.post(
            f"{public}/v1/profiles/transactions/sessions",
            headers={"authorization": f"Bearer {eve}"},
        )
        assert refused.status_code == 403
        access = httpx2.get(
            f"{public}/v1/access-tokens/checkout", headers={"authorization": f"Bearer {service}"}
        )
        assert access.status_code == 200
        assert 3500 < access.json()["expires_in"] <= 3600
        report = httpx2.get(
            f"{sandbox}/nmi/api/v1/report",
            headers={"authorization": f"Bearer {rotated.json()['session_token']}"},
        )
        assert report.status_code == 200
        again = subprocess.run(
            [sys.executable, "-m", "broker", "mint", "transactions", "--broker", public],
            env={**os.environ, "TOKEN_BROKER_TOKEN": ada},
            capture_output=True,
            check=True,
            text=True,
        )
        assert json.loads(again.stdout)["expires_in"] > 800
        assert demo.end(signal.SIGINT) == 0
        for url in (public, ops, sandbox):
            with pytest.raises(httpx2.ConnectError):
                httpx2.get(url)
