"""Commands for people: serve, check, schema, client, sandbox, demo, mint.

Exit statuses are those of sysexits.h: 78 a configuration that cannot be used, 69 a service that
cannot be reached, 70 a defect, 71 a port that is taken, 1 a refusal, 2 a wrong command line.
"""

from __future__ import annotations

import asyncio
import errno
import html
import io
import json
import os
import secrets
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NoReturn

import click
import httpx2
import uvloop

from broker import __version__
from broker.app import App
from broker.audit import AuditLog, configure_logging
from broker.config import load, parse
from broker.demo import demo_config, demo_pages, demo_secrets
from broker.errors import ConfigError
from broker.file import Listener
from broker.presets import load_preset, packaged
from broker.sandbox.serving import serve as serve_sandbox
from broker.sandbox.settings import SandboxSettings
from broker.schema import json_schema
from broker.serving import ListenerEnded, Stop, bind, on_signals, serve, url_of
from broker.snapshot import Snapshot, secret_refs
from broker.static import CLIENT, client_files

EX_UNAVAILABLE, EX_SOFTWARE, EX_OSERR, EX_CONFIG = 69, 70, 71, 78

_CONFIG_OPTION = click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default="broker.yaml",
    envvar="TOKEN_BROKER_CONFIG",
    show_default=True,
    help="The configuration file.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="token-broker")
def main() -> None:
    """Mints short-lived session tokens for browser components, and rotates them."""
    for descriptor in range(3):  # a socket that took a missing one's place would get the log
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


@main.command("serve")
@_CONFIG_OPTION
def serve_command(path: Path) -> None:
    """Run the broker."""
    configure_logging()
    try:
        snapshot = load(path)
        sockets = _bind(snapshot)
        _run(_serve(snapshot, path, sockets))
    except ConfigError as exc:
        _refuse(path.name, exc)


async def _serve(snapshot: Snapshot, path: Path, sockets: tuple[Any, Any]) -> None:
    app = App(snapshot, path.parent, path=path)
    stop = Stop()
    with on_signals(stop):
        await serve(app, *sockets, stop)


@main.command()
@_CONFIG_OPTION
def check(path: Path) -> None:
    """Validate a configuration, and print what would be loaded. Makes no network call."""
    try:
        snapshot = load(path)

        async def build() -> None:
            await App(snapshot, path.parent, audit=AuditLog(sys.stderr.buffer)).close()

        _run(build())
    except ConfigError as exc:
        _refuse(path.name, exc)
    click.echo(f"{path.name} is good (digest {snapshot.digest})")
    server = snapshot.server
    click.echo(f"  public   {server.public.host}:{server.public.port}")
    click.echo(f"  ops      {server.ops.host}:{server.ops.port}")
    click.echo(f"  state    {'a store that replicas share' if snapshot.state else 'this process'}")
    for name, caller in snapshot.callers.items():
        click.echo(f"  caller   {name}: {caller.type}")
    if snapshot.anonymous:
        click.echo("  caller   anonymous: everybody who can reach the port (insecure_anonymous)")
    for name, credential in snapshot.credentials.items():
        click.echo(f"  access token  {name}: {credential.token_url} ({credential.client_auth})")
    for name, profile in snapshot.profiles.items():
        rotates = "rotates" if profile.rotation else "does not rotate"
        who = ", ".join(sorted(profile.callers))
        where = ", ".join(sorted(profile.origins)) or "no browser"
        click.echo(f"  profile  {name}: {profile.preset.name} for {who} from {where}; {rotates}")
    click.echo(f"  secrets  {len(list(secret_refs(snapshot)))} readable")


@main.command()
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    presets = {name: load_preset(name, Path()).settings.json_schema(name) for name in packaged()}
    click.echo(json.dumps(json_schema(presets), indent=2))


@main.command()
@click.option(
    "--broker", default="https://broker.example", show_default=True, help="Its address for pages."
)
def client(broker: str) -> None:
    """Say where the module for browsers is, how large, and how a page loads just this version."""
    path = "/v1/client.js"
    module = client_files()[path]
    click.echo(CLIENT / "client.js")
    click.echo(f"{len(module.body)} bytes, {len(module.packed)} with gzip")
    click.echo(module.integrity)
    source = html.escape(broker.rstrip("/") + path)
    click.echo(
        f'<script type="module" crossorigin="anonymous" src="{source}" '
        f'integrity="{module.integrity}"></script>'
    )


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8090, show_default=True)
def sandbox(host: str, port: int) -> None:
    """Run the fake upstreams and the development identity provider."""

    async def run() -> None:
        stop = Stop()
        with on_signals(stop):
            async with serve_sandbox(SandboxSettings(), host, port) as running:
                click.echo(f"sandbox: {running.url}  (development only)")
                await stop.asked()

    _run(run())


@main.command()
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option("--ops-port", type=click.IntRange(0, 65535), default=9090, show_default=True)
@click.option("--sandbox-port", type=click.IntRange(0, 65535), default=8090, show_default=True)
@click.option("--ready-fd", type=int, help="Write one line of JSON here once it is up.")
@click.option("--audit/--no-audit", default=True, show_default=True, help="Print audit lines.")
def demo(port: int, ops_port: int, sandbox_port: int, ready_fd: int | None, audit: bool) -> None:
    """Run broker, sandbox and identity provider together; needs no configuration."""
    configure_logging()
    _run(_demo(port, ops_port, sandbox_port, ready_fd, audit))


async def _demo(
    port: int, ops_port: int, sandbox_port: int, ready_fd: int | None, audit: bool
) -> None:
    public = _bind_one(Listener(host="127.0.0.1", port=port), "--port")
    ops = _bind_one(Listener(host="127.0.0.1", port=ops_port), "--ops-port")
    webhook_key = secrets.token_hex(32)
    webhooks = {f"{url_of(public)}/v1/callbacks/checkout-3ds": webhook_key}
    settings = SandboxSettings(checkout_webhooks=webhooks)
    async with serve_sandbox(settings, "127.0.0.1", sandbox_port) as upstreams:
        raw = demo_config(public.getsockname()[1], ops.getsockname()[1], upstreams.url)
        env = demo_secrets(
            next(iter(settings.nmi_gateway_keys)),
            next(iter(settings.checkout_clients.items())),
            next(iter(settings.idp_introspection_clients.items())),
            webhook_key,
        )
        log = AuditLog(None if audit else io.BytesIO())
        pages = demo_pages(upstreams.url)
        app = App(parse(raw, Path()), Path(), env=env, audit=log, pages=pages)
        stop = Stop()

        def ready() -> None:
            _welcome(url_of(public), url_of(ops), upstreams.url)
            if ready_fd is not None:
                told = {"public": url_of(public), "ops": url_of(ops), "sandbox": upstreams.url}
                os.write(ready_fd, json.dumps(told).encode() + b"\n")

        with on_signals(stop):
            await serve(app, public, ops, stop, ready)


def _welcome(public: str, ops: str, sandbox_url: str) -> None:
    click.echo(
        f"""
token-broker demo is up. Open it in a browser:

  {public}/      a report that runs on its session token; log in as ada or bob
  {public}/3ds   a 3-D Secure authentication

Or mint a session as ada, with a real JWT of the development identity provider:

  curl -s -X POST {public}/v1/profiles/transactions/sessions \\
    -H "Authorization: Bearer $(curl -s '{sandbox_url}/idp/token?user=ada&format=text')"

Other profiles: checkout-3ds, checkout-3ds-hosted (with a source, as below), checkout-flow.

  curl -s -X POST {public}/v1/profiles/checkout-3ds-hosted/sessions \\
    -H "Authorization: Bearer $(curl -s '{sandbox_url}/idp/token?user=ada&format=text')" \\
    -H 'Content-Type: application/json' \\
    -d '{{"parameters": {{"source": {{"type": "token", "token": "tok_challenge"}}}}}}'

  metrics {ops}/metrics · API {public}/v1/openapi.json · upstream calls {sandbox_url}/_sandbox/calls

Ctrl-C ends it all.
"""
    )


@main.command()
@click.argument("profile")
@click.option("--broker", default="http://127.0.0.1:8080", show_default=True, help="Its address.")
@click.option(
    "--token-file",
    type=click.File("r"),
    help="File with the caller's bearer token (- is standard input); else $TOKEN_BROKER_TOKEN.",
)
@click.option(
    "-p", "--parameter", "pairs", multiple=True, metavar="NAME=VALUE",
    help="A parameter; the value is JSON, or text where it is none.",
)  # fmt: skip
@click.option("--min-fresh", type=click.IntRange(1), help="Seconds of life to ask for.")
def mint(
    profile: str, broker: str, token_file: Any, pairs: tuple[str, ...], min_fresh: int
) -> None:
    """Mint one session from the terminal, as a caller, and print the answer."""
    token = token_file.read() if token_file else os.environ.get("TOKEN_BROKER_TOKEN", "")
    headers = {"authorization": f"Bearer {token.strip()}"} if token.strip() else {}
    if min_fresh:
        headers["cache-control"] = f"min-fresh={min_fresh}"
    try:
        answer = httpx2.post(
            f"{broker.rstrip('/')}/v1/profiles/{profile}/sessions",
            json={"parameters": dict(_pair(pair) for pair in pairs)},
            headers=headers,
            timeout=30,
        )
        told = answer.json()
    except (httpx2.UnsupportedProtocol, httpx2.InvalidURL):
        raise click.BadParameter(
            f"{broker!r} is no http(s) address", param_hint="--broker"
        ) from None
    except (httpx2.HTTPError, ValueError) as exc:
        click.echo(f"{broker}: no answer ({type(exc).__name__})", err=True)
        sys.exit(EX_UNAVAILABLE)
    click.echo(json.dumps(told, indent=2), err=not answer.is_success)
    sys.exit(0 if answer.is_success else EX_UNAVAILABLE if answer.status_code >= 500 else 1)


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.BadParameter(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work)
    except ListenerEnded:
        click.echo("a listener stopped though nobody asked it to; the log says more", err=True)
        sys.exit(EX_SOFTWARE)
    except OSError as exc:
        if exc.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
            raise
        click.echo(f"cannot listen: {os.strerror(exc.errno)}", err=True)
        sys.exit(EX_OSERR)


def _bind(snapshot: Snapshot) -> tuple[Any, Any]:
    server = snapshot.server
    return _bind_one(server.public, "server.public"), _bind_one(server.ops, "server.ops")


def _bind_one(listener: Listener, named: str) -> Any:
    try:
        return bind(listener)
    except OSError as exc:
        click.echo(
            f"cannot listen on {listener.host}:{listener.port} ({named}): {exc.strerror}", err=True
        )
        sys.exit(EX_OSERR)


def _refuse(name: str, error: ConfigError) -> NoReturn:
    """Every fault, one a line, as the path a person would look up."""
    count = len(error.faults)
    click.echo(f"{name} cannot be used: {count} fault{'s' if count > 1 else ''}", err=True)
    for fault in error.faults:
        where = fault.pointer.strip("/").replace("/", ".") or name
        click.echo(f"  {where}: {fault.reason}", err=True)
    sys.exit(EX_CONFIG)
