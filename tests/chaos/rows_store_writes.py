"""Rows about a store that answers and cannot be used: it takes no writes, or not from this user."""

from __future__ import annotations

from redis.asyncio import Redis

from tests.chaos.kinds import STORE
from tests.chaos.process import free_port, until
from tests.chaos.rows_store import HOLDS, away, slow_by
from tests.chaos.sharing import store
from tests.chaos.stage import Row, Stage

PADDING = 1000
"""Keys that a store must load, for each second that it is to take."""


async def _readonly(stage: Stage) -> None:
    """The store becomes a replica of a server that is not there; then it gives nothing at all."""
    nobody = free_port()
    async with stage.under_load(), store(stage) as redis:

        async def replica(stale: str) -> None:
            await redis.config_set("replica-serve-stale-data", stale)
            await redis.execute_command("REPLICAOF", "127.0.0.1", nobody)

        async def primary() -> None:
            await redis.execute_command("REPLICAOF", "NO", "ONE")
            await redis.config_set("replica-serve-stale-data", "yes")

        await away(stage, lambda: replica("yes"), primary)
        await away(stage, lambda: replica("no"), primary)
    slow_by(stage)


async def _no_replicas(stage: Stage) -> None:
    """The store asks for replicas of its own that are not there."""
    async with stage.under_load(), store(stage) as redis:

        async def wants(count: int) -> None:
            await redis.config_set("min-replicas-to-write", count)

        await away(stage, lambda: wants(3), lambda: wants(0))
    slow_by(stage)


async def _no_rights(stage: Stage) -> None:
    """The user may not SET any more, then may not EVAL: a plain SET would still pass then."""
    async with stage.under_load(), store(stage) as redis:

        async def may(rule: str) -> None:
            await redis.execute_command("ACL SETUSER", "default", rule)

        for command in ("set", "eval"):
            await away(stage, lambda c=command: may(f"-{c}"), lambda: may("+@all"))
    slow_by(stage)


async def _loading(stage: Stage) -> None:
    """Killed, and started on what it had saved, which it takes some seconds to read."""
    world, seconds = stage.world, stage.long(10, 4)
    dump = world.directory / "dump.rdb"

    async def killed() -> None:
        assert world.store is not None
        async with store(stage) as redis:
            await _padded(redis, int(seconds * PADDING))
            await redis.save()
        await world.store.kill()
        # A thousand microseconds a key, and clients are answered meanwhile, as with a large file.
        world.launch_store("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")  # fmt: skip

    async def loaded() -> None:
        async with store(stage) as redis:
            loading = (await redis.info("persistence"))["loading"]
        stage.must(loading, "the store was not loading any more when the fault was to end")
        await until(world.store_ready, "store")
        dump.unlink()

    async with stage.under_load():
        await away(stage, killed, loaded, 1)
        async with store(stage) as redis:
            await _padded(redis, 0)
    slow_by(stage)


async def _padded(redis: Redis, count: int) -> None:
    """Leaves so many keys of no meaning there, or none."""
    left = [key async for key in redis.scan_iter(match="padding:*", count=1000)]
    async with redis.pipeline(transaction=False) as pipeline:
        for key in left:
            pipeline.delete(key)
        for number in range(count):
            pipeline.set(f"padding:{number}", "x" * 100)
        await pipeline.execute()


ROWS = [
    Row("store-readonly", "the store becomes a replica (READONLY), then one without its primary "
        "(MASTERDOWN)", HOLDS, STORE, _readonly),
    Row("store-no-replicas", "min-replicas-to-write is not reached (NOREPLICAS)", HOLDS, STORE, _no_replicas),
    Row("store-no-rights", "the user loses SET, then EVAL (NOPERM)", HOLDS, STORE, _no_rights),
    Row("store-loading", "killed, and started on what it had saved (LOADING)", HOLDS, STORE, _loading),
]  # fmt: skip
