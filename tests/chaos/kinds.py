"""The worlds that rows ask for, and what stands between broker and upstream in each."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from tests.chaos.process import free_port, until
from tests.chaos.proxies import Authority, Proxy
from tests.chaos.world import Kind, NotAllowedHere, World, needed

PAIR = Kind("pair")
TOKENS = Kind("short tokens")
STORE = Kind("store")
SLOW = Kind("slow store")
FAILOVER = Kind("failover")
STARVED = Kind("starved")
TLS = Kind("tls")
DNS = Kind(
    "dns",
    replicas=1,
    changes={
        "outbound": {"insecure_http_hosts": ["upstream.chaos.test"]},
        "server": {"warm_up": "1s"},
    },
)
CLOCK = Kind("clock")
DISK = Kind("full disk", replicas=1)
FILES = Kind("files")
TWO = Kind("two")
FIVE = Kind("five", replicas=5)
ROLLING = Kind("rolling", drain="3s")
SOAK = Kind("soak", replicas=1)

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
_OWN_NAMES = """mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/resolv.conf && shift 2 \
&& exec "$@" """


async def prepared(world: World) -> None:
    """Puts in place what a world of this kind has besides brokers, sandbox and store."""
    prepare = _PREPARE.get(world.kind.name)
    if prepare is not None:
        await prepare(world)


async def _slow(world: World) -> None:
    world.proxy = await _proxy(world, Proxy(world.store_port))
    world.state_port = world.proxy.port


async def _failover(world: World) -> None:
    """Two stores, the second a replica of the first, and one address for whichever is the primary."""
    world.second_port = free_port()
    primary = ["--replicaof", f"127.0.0.1 {world.store_port}"]
    second = world.start("second", world.redis(world.second_port, *primary))
    await until(lambda: "MASTER <-> REPLICA sync: Finished" in second.printed(), "a replica")
    await _slow(world)


async def _tls(world: World) -> None:
    """Everything upstream behind TLS of our own authority."""
    world.authority = Authority(world.directory, "trusted")
    proxy = Proxy(urlsplit(world.sandbox).port or 0, world.authority.leaf())
    world.proxy = await _proxy(world, proxy)
    world.upstream = world.tokens = f"https://127.0.0.1:{world.proxy.port}"
    world.changes = {"outbound": {"ca_file": str(world.authority.path)}}


async def _dns(world: World) -> None:
    """The broker sees names of its own: what it looks up is in files that the row rewrites.

    Through a proxy, as a connection that stands needs no name; the row cuts them.
    """
    root = [] if os.geteuid() == 0 else ["--map-root-user"]
    unshare = [needed("unshare"), *root, "--mount"]
    world.hosts = world.directory / "hosts"
    resolver = world.directory / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    world.hosts.write_text(HOSTS)
    wrap = [*unshare, "sh", "-ec", _OWN_NAMES, "sh", str(world.hosts), str(resolver)]
    if subprocess.run([*wrap, "true"], check=False, capture_output=True).returncode:
        raise NotAllowedHere("no mount namespaces here, so a broker cannot have names of its own")
    world.wrap = wrap
    world.proxy = await _proxy(world, Proxy(urlsplit(world.sandbox).port or 0))
    world.upstream = f"http://upstream.chaos.test:{world.proxy.port}"
    world.tokens = world.upstream


HOSTS = "127.0.0.1 localhost\n127.0.0.1 upstream.chaos.test\n"


async def _clock(world: World) -> None:
    """The brokers' wall clock is ours to step; what counts seconds goes on as it is."""
    if not FAKETIME.exists():
        needed("faketime")
    world.stamp = world.directory / "stamp"
    world.stamp.write_text("+0")
    world.broker_env = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(world.stamp),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


async def _disk(world: World) -> None:
    """Standard output goes to a disk of 64 KiB; where that cannot be mounted, to /dev/full."""
    world.stdout = Path("/dev/full")
    disk = world.directory / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "chaos", str(disk)]
    if (
        shutil.which("mount")
        and not subprocess.run(mount, check=False, capture_output=True).returncode
    ):
        world.stdout = disk / "audit"

        async def unmount() -> None:
            subprocess.run(["umount", str(disk)], check=True)

        world.at_end(unmount)


async def _proxy(world: World, proxy: Proxy) -> Proxy:
    await proxy.open()
    world.at_end(proxy.close)
    return proxy


_PREPARE = {
    SLOW.name: _slow, FAILOVER.name: _failover, TLS.name: _tls, DNS.name: _dns, CLOCK.name: _clock, DISK.name: _disk,
}  # fmt: skip
