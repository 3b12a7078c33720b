"""Rows about what is on disk: secrets replaced by garbage, a broken configuration."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

from tests.chaos import config
from tests.chaos.kinds import FILES
from tests.chaos.stage import Row, Stage

JUNK = random.Random(7).randbytes(3000)


def put(path: Path, data: bytes) -> None:
    """In one step, as a mounted secret changes."""
    aside = path.with_name(path.name + ".new")
    aside.write_bytes(data)
    aside.replace(path)


async def reloads(stage: Stage, outcome: str) -> list[float]:
    """By replica."""
    name = "broker_reloads_total"
    return [await stage.metric(one, name, outcome=outcome) for one in stage.world.brokers]


async def _counted(stage: Stage, outcome: str, before: list[float], what: str) -> None:
    async def each() -> bool:
        now = await reloads(stage, outcome)
        return all(count > was for count, was in zip(now, before, strict=True))

    await stage.must_become(each, f"{what}: counted as {outcome} by every replica", 10)


async def _secrets(stage: Stage) -> None:
    async with stage.under_load():
        for name in ("nmi", "checkout-secret", "pages", "seal"):
            path = stage.world.secrets / name
            right = path.read_bytes()
            for junk in (JUNK, b""):
                before = await reloads(stage, "refused")
                put(path, junk)
                await _counted(stage, "refused", before, f"{name} as junk of {len(junk)} bytes")
                await stage.hold(2, 0.3)
                put(path, right)
                await stage.hold(2, 0.8)
        for name in ("nmi", "checkout-secret"):
            await _wrong_text(stage, stage.world.secrets / name)


async def _wrong_text(stage: Stage, path: Path) -> None:
    """Nothing about it tells that it is wrong, but the upstream does: the one before serves on."""
    right = path.read_bytes()
    before = await reloads(stage, "ok")
    put(path, right[:-2] + b"zz")
    await _counted(stage, "ok", before, f"another {path.name}")
    with stage.judge.allowing(unknown={"access"}):
        await stage.order("revoke")  # so that an access token is needed too
        await stage.hold(6, 1.5)
    before = await reloads(stage, "ok")
    put(path, right)
    await _counted(stage, "ok", before, f"{path.name} as it was")
    await stage.hold(3, 0.5)


async def _configuration(stage: Stage) -> None:
    brokers = stage.world.brokers
    right = [broker.path.read_bytes() for broker in brokers]
    digests = await _digests(stage)
    async with stage.under_load():
        for what, broken in _broken(stage.world.settings(brokers[0])).items():
            before = await reloads(stage, "refused")
            for broker in brokers:
                put(broker.path, broken)
            await _counted(stage, "refused", before, what)
            await stage.hold(2, 0.3)
            stage.must(await _digests(stage) == digests, f"{what}: it came into force")
            for broker, text in zip(brokers, right, strict=True):
                put(broker.path, text)
            await stage.hold(1, 0.8)
        # And one that is good does come into force, and goes again.
        good: dict[str, Any] = {"profiles": {"nmi": {"min_remaining": "310s"}}}
        for changes in (good, {}):
            before = await reloads(stage, "ok")
            for broker in brokers:
                told = config.merged(stage.world.settings(broker), changes)
                config.write(broker.path, told)
            await _counted(stage, "ok", before, "a good one")
            await stage.hold(2, 0.5)
            came = await _digests(stage) != digests
            stage.must(came == bool(changes), "the configuration in force is not the newest")


async def _digests(stage: Stage) -> list[str]:
    found = []
    for broker in stage.world.brokers:
        async with stage.http.get(f"{broker.ops}/version") as answer:
            found.append((await answer.json())["config"])
    return found


def _broken(right: dict[str, Any]) -> dict[str, bytes]:
    def changed(**changes: Any) -> bytes:
        return yaml.safe_dump(config.merged(right, changes)).encode()

    return {
        "no YAML": b"profiles: {unclosed: [\n\t- x",
        "an empty file": b"",
        "binary junk": JUNK,
        "an unknown key": changed(zz=1),
        "a caller that is not there": changed(profiles={"nmi": {"allow": {"callers": ["x"]}}}),
        "a secret that is not there": changed(profiles={"nmi": {"api_key": {"file": "/nowhere"}}}),
    }


ROWS = [
    Row("secrets-garbage", "each secret file: binary junk, empty, text that the upstream refuses",
        "junk is refused and counted, wrong text is served around: no failed request", FILES, _secrets),
    Row("config-broken", "no YAML, empty, junk, unknown key, unknown caller, missing secret; then good",
        "refused and counted, the old one stays in force: no failed request", FILES, _configuration),
]  # fmt: skip
