"""The sandbox as a process of its own, with as many people in it as the run has callers."""

from __future__ import annotations

import asyncio
import sys

import uvloop

from broker.sandbox.serving import serve
from broker.sandbox.settings import SandboxSettings


def people(count: int) -> dict[str, dict[str, object]]:
    """Distinct merchants, so that no two mints ask for the same thing."""
    return {
        f"user-{n}": {"role": "owner", "merchant_id": str(100_000_000 + n)} for n in range(count)
    }


async def run(port: int, callers: int) -> None:
    async with serve(SandboxSettings(idp_users=people(callers)), "127.0.0.1", port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(int(sys.argv[1]), int(sys.argv[2])))
