"""A rolling restart of two replicas behind a proxy, under load: nobody may notice."""

from __future__ import annotations

import asyncio

from tests.chaos.kinds import ROLLING
from tests.chaos.process import Process, free_port, until
from tests.chaos.sharing import store
from tests.chaos.stage import Row, Stage
from tests.chaos.world import World, needed

CONFIG = """
global
  maxconn 2000
defaults
  mode http
  timeout connect 2s
  timeout client 30s
  timeout server 30s
  timeout http-keep-alive 30s
  timeout check 2s
  option redispatch
  retries 3
frontend public
  bind 127.0.0.1:{port}
  default_backend brokers
backend brokers
  balance roundrobin
  option httpchk GET /readyz
  default-server inter 250ms fall 2 rise 2
{servers}
listen stats
  bind 127.0.0.1:{stats}
  stats enable
  stats uri /
"""


async def _rolling(stage: Stage) -> None:
    world = stage.world
    url, stats, proxy = await _haproxy(world)
    try:
        await stage.must_become(lambda: _up(stage, stats, 2), "both are in haproxy's service")
        stage.load.targets = [url]
        async with stage.nothing_lost(), stage.under_load():
            for _ in range(2 if not stage.short else 1):
                for broker in world.brokers:
                    status = await world.stop(broker)
                    stage.must(status == 0, f"broker {broker.index} ended with {status}")
                    await world.serve()
                    await stage.must_become(lambda: _up(stage, stats, 2), "both serve again")
    finally:
        await proxy.kill()
    async with store(stage) as redis:
        left = [key async for key in redis.scan_iter(match="*:claim")]
    stage.note(f"{len(left)} claims left in the store")
    stage.must(not left, f"{len(left)} claims were left in the store")


async def _up(stage: Stage, stats: str, wanted: int) -> bool:
    async with stage.http.get(f"{stats}/;csv") as answer:
        rows = [line.split(",") for line in (await answer.text()).splitlines()]
    status = rows[0].index("status")
    states = [row[status] for row in rows if row[0] == "brokers" and row[1].startswith("broker-")]
    return sum(state == "UP" for state in states) == wanted


async def _haproxy(world: World) -> tuple[str, str, Process]:
    port, stats = free_port(), free_port()
    servers = "\n".join(
        f"  server broker-{b.index} 127.0.0.1:{b.public_port} check port {b.ops_port}"
        for b in world.brokers
    )
    path = world.directory / "haproxy.cfg"
    path.write_text(CONFIG.format(port=port, stats=stats, servers=servers))
    proxy = world.start("haproxy", [needed("haproxy"), "-db", "-f", str(path)])
    await asyncio.sleep(0)

    def listens() -> bool:
        return not proxy.running or f":{port:04X} " in _listeners()

    await until(listens, "haproxy")
    assert proxy.running, proxy.said()
    return f"http://127.0.0.1:{port}", f"http://127.0.0.1:{stats}", proxy


def _listeners() -> str:
    with open("/proc/net/tcp") as file:
        return file.read()


ROWS = [
    Row("rolling-restart", "two replicas behind haproxy, each SIGTERMed and started anew under load",
        "no failed request at all, exit status 0, no claims left in the store", ROLLING, _rolling),
]  # fmt: skip
