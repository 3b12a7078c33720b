"""New versions of configuration and secrets: put in force as a whole, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx2
import pytest
from blockbuster import blockbuster_ctx

from broker.app import App
from broker.audit import AuditLog
from broker.config import load
from tests.harness import CONFIG, ENV, Broker, FakeNmi, problem
from tests.support import AppTransport, VirtualClock, settle

FILES = CONFIG.replace("{env: NMI_KEY}", "{file: secrets/nmi}").replace(
    "{env: SEAL}", "{file: seal}"
)


class Files(Broker):
    """A broker whose files can be changed under it."""

    path: Path
    sent: list[str]

    async def look(self, times: int = 2) -> None:
        """As many looks as a change needs to be taken."""
        watch = self.app._watch
        assert watch is not None
        for _ in range(times):
            await watch.look()

    def write(self, text: str) -> None:
        self.path.write_text(text)

    @property
    def reloads(self) -> tuple[float | None, float | None, float | None]:
        """Taken, refused, and whether the files hold something that is not in force."""
        return (
            self.sample("broker_reloads_total", outcome="ok"),
            self.sample("broker_reloads_total", outcome="refused"),
            self.sample("broker_config_stale"),
        )


@contextlib.asynccontextmanager
async def files(base: Path, text: str = FILES) -> AsyncIterator[Files]:
    (base / "secrets").mkdir()
    (base / "secrets" / "nmi").write_text("old-key\n")
    (base / "seal").write_text("s" * 32)
    path = base / "broker.yaml"
    path.write_text(text)
    clock = VirtualClock()
    nmi = FakeNmi(clock)
    lines = io.BytesIO()
    transport = AppTransport(handler=nmi)
    app = App(
        load(path), base, path=path, transport=transport, clock=clock,
        audit=AuditLog(lines), env=ENV,
    )  # fmt: skip
    app.starting = False
    told = Files(app, clock, nmi, lines)
    told.path = path
    try:
        yield told
    finally:
        await told.client.aclose()
        await told.ops.aclose()
        await app.close()


def run(tmp_path: Path, story: Callable[[Files], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with files(tmp_path) as told:
            await story(told)

    asyncio.run(whole())


def _keys_sent(told: Files) -> list[str]:
    return [body["gateway"]["api_key"] for body in told.nmi.bodies]


def test_a_new_configuration_is_in_force_for_the_next_request(tmp_path: Path) -> None:
    """What a changed file says holds from the look that sees it settled; the digest tells which."""

    async def story(told: Files) -> None:
        assert (await told.mint()).status_code == 201
        before = (await told.ops.get("/version")).json()["config"]
        told.write(FILES.replace("[owner, accountant]", "[accountant]"))
        await told.look(1)
        assert told.reloads == (0, 0, 1)
        assert (await told.mint()).status_code == 201
        await told.look(1)
        assert told.reloads == (1, 0, 0)
        assert problem(await told.mint()) == "not-permitted"
        assert (await told.ops.get("/version")).json()["config"] != before

    run(tmp_path, story)


def test_nothing_changed_is_nothing_done(tmp_path: Path) -> None:
    """Looks at files that hold what they held reload nothing, also where they were touched."""

    async def story(told: Files) -> None:
        assembly = told.app._assembly
        await told.look(3)
        os.utime(told.path, (1, 1))
        told.path.write_text(told.path.read_text())
        await told.look(3)
        assert told.app._assembly is assembly
        assert told.reloads == (0, 0, 0)

    run(tmp_path, story)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("profiles: [", "not YAML"),
        ("", "empty"),
        (FILES.replace("rotation:", "rotatoin:"), "unknown key"),
        (FILES.replace("secrets/nmi", "secrets/none"), "a secret that is not there"),
        (FILES + "server: {public: {port: 9999}}\n", "takes a restart"),
        (FILES + "state: {url: {env: SEAL}}\n", "takes a restart, or is no address"),
        ("\x00\xff", "binary"),
    ],
)
def test_a_bad_version_changes_nothing(tmp_path: Path, text: str, fault: str) -> None:
    """A version that cannot be used is counted once, however often it is seen, and what was in
    force stays; the next good one is taken."""

    async def story(told: Files) -> None:
        assembly = told.app._assembly
        told.path.write_bytes(text.encode("latin-1"))
        await told.look(5)
        assert told.reloads == (0, 1, 1), fault
        assert told.app._assembly is assembly
        assert (await told.mint()).status_code == 201
        told.write(FILES.replace("5m", "4m"))
        await told.look()
        assert told.reloads == (1, 1, 0)

    run(tmp_path, story)


def test_a_version_that_is_taken_back_is_no_change(tmp_path: Path) -> None:
    """After a bad version the old one again is good, and nothing is stale."""

    async def story(told: Files) -> None:
        told.write("nonsense")
        await told.look()
        told.write(FILES)
        await told.look()
        assert told.reloads == (0, 1, 0)

    run(tmp_path, story)


def test_a_secret_that_changes_in_place_is_sent_from_then_on(tmp_path: Path) -> None:
    """A replaced secret file is read without a restart, though the configuration is the same."""

    async def story(told: Files) -> None:
        await told.mint()
        (tmp_path / "secrets" / "nmi").write_text("new-key\n")
        await told.look()
        await told.mint()
        assert _keys_sent(told) == ["old-key", "new-key"]

    run(tmp_path, story)


def test_a_refused_key_is_read_again_at_once(tmp_path: Path) -> None:
    """Where the upstream refuses what it is shown, the files are read before the caller is told: a
    key that was replaced a moment ago costs nobody an error."""

    async def story(told: Files) -> None:
        def answer(request: httpx2.Request) -> httpx2.Response:
            good = _keys_sent(told)[-1] == "new-key"
            return told.nmi.session(900) if good else httpx2.Response(401, json={})

        told.nmi.answer = answer
        (tmp_path / "secrets" / "nmi").write_text("new-key\n")
        assert (await told.mint()).status_code == 201
        assert _keys_sent(told) == ["old-key", "new-key"]

    run(tmp_path, story)


def test_garbage_in_a_secret_falls_back_on_what_was_there(tmp_path: Path) -> None:
    """A secret that became something the upstream refuses costs no mint: the value before it is
    shown too. One that cannot be a secret is not taken at all."""

    async def story(told: Files) -> None:
        def answer(request: httpx2.Request) -> httpx2.Response:
            good = _keys_sent(told)[-1] == "old-key"
            return told.nmi.session(900) if good else httpx2.Response(401, json={})

        told.nmi.answer = answer
        for garbage in (b"garbage", b"", b"\xff\xfe\x00"):
            (tmp_path / "secrets" / "nmi").write_bytes(garbage)
            await told.look()
            assert (await told.mint()).status_code == 201
        assert told.reloads == (1, 2, 1)

    run(tmp_path, story)


def test_the_swap_of_a_directory_is_seen(tmp_path: Path) -> None:
    """Kubernetes replaces a mounted Secret by one rename of the link `..data`."""

    async def story(told: Files) -> None:
        mount = tmp_path / "secrets"
        shutil.rmtree(mount)
        for version, text in (("..1", "first"), ("..2", "second")):
            (mount / version).mkdir(parents=True)
            (mount / version / "nmi").write_text(text)
        (mount / "..data").symlink_to("..1")
        (mount / "nmi").symlink_to("..data/nmi")
        await told.look()
        await told.mint()
        (mount / "..new").symlink_to("..2")
        os.replace(mount / "..new", mount / "..data")
        await told.look()
        await told.mint()
        assert _keys_sent(told) == ["first", "second"]

    run(tmp_path, story)


def test_a_handle_outlives_a_reload_and_a_new_sealing_key(tmp_path: Path) -> None:
    """Chains go on over a reload, and where the sealing key was replaced in place."""

    async def story(told: Files) -> None:
        handle = (await told.mint()).json()["handle"]
        (tmp_path / "seal").write_text("t" * 32)
        await told.look()
        rotated = await told.rotate(handle)
        assert rotated.status_code == 201
        assert (await told.rotate(rotated.json()["handle"])).status_code == 201

    run(tmp_path, story)


def test_a_request_ends_on_what_it_began_with(tmp_path: Path) -> None:
    """A mint that is under way when a version that would refuse it comes is still answered."""

    async def story(told: Files) -> None:
        gate = asyncio.Event()
        told.app._transport.before = gate.wait  # type: ignore[attr-defined]
        minting = asyncio.create_task(told.mint())
        await settle()
        told.write(FILES.replace("[owner, accountant]", "[accountant]"))
        await told.look()
        gate.set()
        assert (await minting).status_code == 201
        assert problem(await told.mint()) == "not-permitted"

    run(tmp_path, story)


def test_one_rotation_over_a_reload_is_one_mint(tmp_path: Path) -> None:
    """Tabs that rotate one handle before and after a reload still share its successor."""

    async def story(told: Files) -> None:
        handle = (await told.mint()).json()["handle"]
        gate = asyncio.Event()
        told.app._transport.before = gate.wait  # type: ignore[attr-defined]
        first = asyncio.create_task(told.rotate(handle))
        await settle()
        told.write(FILES.replace("5m", "4m"))
        await told.look()
        second = asyncio.create_task(told.rotate(handle))
        await settle()
        gate.set()
        tokens = {(await task).json()["session_token"] for task in (first, second)}
        assert len(tokens) == 1
        assert len(told.nmi.bodies) == 2

    run(tmp_path, story)


def test_a_half_written_file_is_no_version(tmp_path: Path) -> None:
    """A file that is another one at each look is not read until it holds still."""

    async def story(told: Files) -> None:
        for length in range(40, 400, 40):
            told.write(FILES[:length])
            await told.look(1)
        told.write(FILES.replace("5m", "4m"))
        await told.look()
        assert told.reloads == (1, 0, 0)

    run(tmp_path, story)


def test_a_pipe_in_place_of_a_file_holds_nobody(tmp_path: Path) -> None:
    """A secret that became a FIFO is refused, without waiting for a writer."""

    async def story(told: Files) -> None:
        (tmp_path / "secrets" / "nmi").unlink()
        os.mkfifo(tmp_path / "secrets" / "nmi")
        began = time.monotonic()
        await told.look()
        assert time.monotonic() - began < 5
        assert told.reloads == (0, 1, 1)

    run(tmp_path, story)


def test_a_change_between_loading_and_watching_is_seen(tmp_path: Path) -> None:
    """What was written after the file was read, and before anybody watched, is taken too."""

    async def story(told: Files) -> None:
        text = FILES.replace("[owner, accountant]", "[accountant]")
        snapshot = load(told.path)
        told.write(text)
        app = App(
            snapshot, tmp_path, path=told.path, transport=AppTransport(handler=told.nmi),
            clock=told.clock, audit=AuditLog(io.BytesIO()), env=ENV,
        )  # fmt: skip
        assert app._watch is not None
        for _ in range(2):
            await app._watch.look()
        assert app.snapshot.digest == load(told.path).digest != snapshot.digest
        await app.close()

    run(tmp_path, story)


def test_looking_never_blocks_the_loop(tmp_path: Path) -> None:
    """Files are read, and a version is parsed, in another thread."""

    async def story(told: Files) -> None:
        told.write(FILES.replace("5m", "4m"))
        with blockbuster_ctx():
            await told.look()
        assert told.reloads == (1, 0, 0)

    run(tmp_path, story)


def test_the_run_looks_once_an_interval(tmp_path: Path) -> None:
    """`server.reload_interval` apart, for as long as the app lives, whatever one look runs into."""

    async def story(told: Files) -> None:
        told.app.watch()
        looks: list[float] = []
        watch = told.app._watch
        assert watch is not None

        async def look() -> None:
            looks.append(told.clock.monotonic())
            raise RuntimeError

        watch.look = look  # type: ignore[method-assign]
        await told.clock.advance(3.5)
        assert looks == [1001, 1002, 1003]

    run(tmp_path, story)
