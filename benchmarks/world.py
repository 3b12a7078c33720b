"""Everything one run stands on: sandbox, bare Starlette, naive broker, ours; and who calls them.

All of it on loopback and in a temporary directory that goes with the run. Ours is started as its
users start it, `token-broker serve` with a file, and with everything on that an operator would
have on: callers' JWTs, policy with claims, origins, a rate limit (too high to be met), sealed
handles, metrics, and audit lines into a file.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.load import Load, request
from benchmarks.processes import NotStarted, Server, cores, free_ports, started
from broker.sandbox.settings import SandboxSettings

ORIGIN = "https://shop.example"
USERS, SERVICES = "token-broker", "token-broker-services"
"""Audiences: of people in a browser, and of backends that fetch the access token."""

_CONFIG = """\
server:
  public: {{host: 127.0.0.1, port: {port}}}
  ops: {{host: 127.0.0.1, port: {ops_port}}}
  keep_alive: 120s
keys: {{env: BENCH_SEAL_KEY}}
callers:
  shop-users: {{type: jwt, issuer: "{sandbox}/idp", audience: {users}}}
  reports-backend: {{type: jwt, issuer: "{sandbox}/idp", audience: {services}}}
credentials:
  checkout:
    token_url: {sandbox}/checkout/access/connect/token
    client_id: {{env: BENCH_CLIENT_ID}}
    client_secret: {{env: BENCH_CLIENT_SECRET}}
    scope: [sessions:browser]
    expose_to: [reports-backend]
profiles:
  transactions:
    preset: nmi
    base_url: {sandbox}/nmi/api/v1
    api_key: {{env: BENCH_NMI_KEY}}
    gateway:
      merchant_id: ${{claims.merchant_id}}
      environment: sandbox
    allow:
      callers: [shop-users]
      origins: ["{origin}"]
      require: {{role: [owner, accountant]}}
    rotation: {{max_chain: 8h, grace: 10m}}
    min_remaining: 5m
    rate_limit: 1000000/minute
"""


@contextlib.contextmanager
def servers(directory: Path, people: int) -> Iterator[dict[str, Server]]:
    """Sandbox, bare, naive, ours, for as long as the context lasts. Raises NotStarted."""
    tested, rest = cores()
    ports = free_ports(5)
    sandbox_url = _url(ports[0])
    config = directory / "broker.yaml"
    config.write_text(
        _CONFIG.format(
            port=ports[3],
            ops_port=ports[4],
            sandbox=sandbox_url,
            origin=ORIGIN,
            users=USERS,
            services=SERVICES,
        )
    )
    env = _environment(sandbox_url)
    with contextlib.ExitStack() as stack:

        def start(name: str, port: int, core: set[int], *arguments: str) -> Server:
            out = stack.enter_context((directory / f"{name}.out").open("wb"))
            err = directory / f"{name}.err"
            return stack.enter_context(started(arguments, port, core, out=out, err=err, env=env))

        # The sandbox shares the generator's core, away from what is measured.
        sandbox = start("sandbox", ports[0], rest, "benchmarks.sandbox", str(ports[0]), str(people))
        bare = start("bare", ports[1], tested, "benchmarks.bare", str(ports[1]))
        naive = start("naive", ports[2], tested, "benchmarks.naive", str(ports[2]))
        ours = start("ours", ports[3], tested, "broker", "serve", "-c", str(config))
        _until_ready(ports[4])
        yield {"sandbox": sandbox, "bare": bare, "naive": naive, "ours": ours}


def calls(sandbox: Server) -> dict[str, int]:
    """How often each operation of the sandbox was asked, by its own count."""
    answer = urllib.request.urlopen(f"{_url(sandbox.port)}/_sandbox/calls", timeout=10)
    with answer:
        counted: dict[str, int] = json.load(answer)
        return counted


async def jwts(load: Load, count: int, people: int, audience: str, *algorithms: str) -> list[str]:
    """New JWTs of the sandbox's identity provider, one person after the other."""
    lifetime = 3600  # seconds; longer than any run
    paths = [
        f"/idp/token?user=user-{n % people}&audience={audience}&format=text"
        f"&lifetime={lifetime}&alg={algorithms[n % len(algorithms)]}"
        for n in range(count)
    ]
    answers = await load.run(
        [request(load.port, "GET", path, {}) for path in paths], 200, keep_bodies=True
    )
    if answers.errors:
        raise NotStarted(f"the identity provider gives no JWTs: {answers.first_error}")
    return [body.decode() for body in answers.bodies]


def _environment(sandbox_url: str) -> dict[str, str]:
    """The sandbox's secrets, by the names that both brokers look for."""
    settings = SandboxSettings()
    client_id, client_secret = next(iter(settings.checkout_clients.items()))
    return {
        "BENCH_SEAL_KEY": secrets.token_urlsafe(32),
        "BENCH_SANDBOX": sandbox_url,
        "BENCH_NMI_KEY": next(iter(settings.nmi_gateway_keys)),
        "BENCH_CLIENT_ID": client_id,
        "BENCH_CLIENT_SECRET": client_secret,
    }


def _until_ready(ops_port: int) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{_url(ops_port)}/readyz", timeout=1),
        ):
            return
        time.sleep(0.05)
    raise NotStarted("the broker does not become ready")


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"
