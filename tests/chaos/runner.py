"""Runs rows: those of one kind one after the other in one world, several worlds side by side.

Rows that take the processor from their neighbours come last, and then have none.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence

import aiohttp

from tests.chaos.judge import Judge
from tests.chaos.kinds import prepared
from tests.chaos.process import many_files
from tests.chaos.stage import Form, Row, Stage, Told
from tests.chaos.world import Kind, NotAllowedHere, NotHere, World


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that share a world, largest group first, so that the last to end is a small one."""
    found: dict[Kind, list[Row]] = {}
    for row in rows:
        found.setdefault(row.kind, []).append(row)
    return sorted(found.values(), key=len, reverse=True)


async def run(
    rows: Sequence[Row], form: Form, ended: Callable[[Told], None] = lambda _: None
) -> list[Told]:
    """ended: told of each row as it ends."""
    many_files()
    waiting = groups([row for row in rows if not row.alone])
    last = groups([row for row in rows if row.alone])
    results: list[Told] = []

    async def lane(left: list[list[Row]]) -> None:
        while left:
            results.extend(await _group(left.pop(0), form, ended))

    await asyncio.gather(*(lane(waiting) for _ in range(form.lanes)))
    await lane(last)
    order = [row.name for row in rows]
    return sorted(results, key=lambda told: order.index(told.row.name))


async def _group(rows: list[Row], form: Form, ended: Callable[[Told], None]) -> list[Told]:
    results: list[Told] = []
    left = list(rows)
    try:
        async with World(rows[0].kind) as world:
            await prepared(world)
            while left:
                row = left[0]
                results.append(await _row(row, world, form))
                ended(results[-1])
                left.pop(0)
    except Exception as exc:
        for row in left:
            told = Told(row, Judge())
            strict = os.environ.get("CI") and not isinstance(exc, NotAllowedHere)
            if isinstance(exc, NotHere) and not strict:
                told.not_here = str(exc)
            else:
                told.failures.append(f"the world broke: {exc!r}")
            results.append(told)
            ended(told)
    return results


async def _row(row: Row, world: World, form: Form) -> Told:
    told = Told(row, Judge())
    started = time.monotonic()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, trust_env=False) as http:
        stage = Stage(told, world, http, form)
        try:
            await world.serve()
            await row.run(stage)
        except NotHere:
            raise
        except Exception as exc:
            stage.fail(f"the row broke: {exc!r}")
        try:
            await stage.finish()
        except (aiohttp.ClientError, OSError, AssertionError) as exc:
            stage.fail(f"what could not be read at the end: {exc!r}")
    told.seconds = time.monotonic() - started
    return told
