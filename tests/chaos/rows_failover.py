"""A row about a failover: another primary stands where the store was, and knows almost all of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator

from tests.chaos.kinds import FAILOVER
from tests.chaos.rows_store import slow_by
from tests.chaos.sharing import Ends, alone, store
from tests.chaos.stage import Row, Stage

LEFT = 10.0
"""Seconds within which the brokers must have left a primary that is none any more."""


class Pair:
    """Two stores, of which one is the primary; brokers reach it through the world's proxy."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.primary, self.other = stage.world.store_port, stage.world.second_port

    async def follows(self, port: int, primary: int) -> None:
        """Makes one a replica of the other; does not wait for the data."""
        async with store(self._stage, port) as redis:
            await redis.execute_command("REPLICAOF", "127.0.0.1", primary)

    async def switch(self) -> None:
        """The replica becomes the primary, and new connections go to it."""
        async with store(self._stage, self.other) as redis:
            await redis.execute_command("REPLICAOF", "NO", "ONE")
        self._stage.world.proxy.to = self.other
        self.primary, self.other = self.other, self.primary

    async def joined(self) -> None:
        """The one that is not the primary is its replica, and has all data."""
        await self.follows(self.other, self.primary)
        async with store(self._stage, self.other) as redis:

            async def has_all() -> bool:
                return (await redis.info("replication"))["master_link_status"] == "up"

            await self._stage.must_become(has_all, "the old primary is a replica")

    async def callers(self) -> int:
        """How many connections of brokers the old primary still has."""
        async with store(self._stage, self.other) as redis:
            return len(await redis.client_list(_type="normal")) - 1


async def _failover(stage: Stage) -> None:
    pair, proxy = Pair(stage), stage.world.proxy
    async with stage.under_load():
        async with _switched(stage, pair, "cut"):
            proxy.cut()
            await pair.follows(pair.other, pair.primary)
        await pair.joined()
        async with _switched(stage, pair, "kept, the old primary a replica"):
            await pair.follows(pair.other, pair.primary)
        await pair.joined()
        async with _switched(stage, pair, "kept, the old primary writable") as ends:
            pass
        async with alone(stage, ends):  # whoever had stayed with the old one finds out only now
            proxy.cut()
            await stage.hold(2, 0.5)
    slow_by(stage)


@contextlib.asynccontextmanager
async def _switched(stage: Stage, pair: Pair, manner: str) -> AsyncIterator[Ends]:
    """Another primary; the body says what happens to the old one and to connections that stand."""
    stage.note(f"connections {manner}")
    ends = await Ends.made(stage)
    async with alone(stage, ends):
        started = time.monotonic()
        await pair.switch()
        yield ends
        await ends.told(4, in_vain=False)
        await stage.must_become(lambda: _left(pair), f"{manner}: nobody uses the old primary", LEFT)
        stage.note(f"left after {time.monotonic() - started:.1f} s")
        await ends.told(4, in_vain=False)
        await stage.hold(4, 0.5)


async def _left(pair: Pair) -> bool:
    return await pair.callers() == 0


ROWS = [
    Row("store-failover", "a replica of the store is made the primary behind the same address: old "
        "connections cut; kept, with the old primary demoted; kept, with it still writable",
        "no failed mint; the brokers leave the old primary within 10 s; nothing ended rotates "
        "afterwards; replicas agree again by themselves", FAILOVER, _failover),
]  # fmt: skip
