"""New versions of configuration and secrets: put in force as a whole, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx2
import pytest
from blockbuster import blockbuster_ctx
from structlog.testing import capture_logs

from broker.app import App
from broker.audit import AuditLog
from broker.config import load
from broker.keyring import Reading
from broker.presets import load_preset
from broker.snapshot import Snapshot
from broker.state import Store
from tests.harness import CONFIG, ENV, Broker, FakeNmi, problem
from tests.support import AppTransport, DictStore, VirtualClock, settle

FILES = CONFIG.replace("{env: NMI_KEY}", "{file: secrets/nmi}").replace(
    "{env: SEAL}", "{file: seal}"
)
PRESET = load_preset("nmi", Path()).text


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

    def write(self, text: str, **secrets: str) -> None:
        """The configuration; secrets: files beside it, by name."""
        self.path.write_text(text)
        self.put(**secrets)

    def put(self, **secrets: str) -> None:
        for name, value in secrets.items():
            path = self.path.parent / ("secrets/nmi" if name == "nmi" else name)
            path.write_text(value)

    def plays(self, upstream: Callable[[httpx2.Request], Any]) -> None:
        """The other end from now on, whatever its address."""
        transport = self.app._transport
        assert isinstance(transport, AppTransport)
        transport._client = httpx2.AsyncClient(transport=httpx2.MockTransport(upstream))

    @property
    def reloads(self) -> tuple[float | None, float | None, float | None]:
        """Taken, refused, and whether the files hold something that is not in force."""
        return (
            self.sample("broker_reloads_total", outcome="ok"),
            self.sample("broker_reloads_total", outcome="refused"),
            self.sample("broker_config_stale"),
        )


@contextlib.asynccontextmanager
async def files(
    base: Path,
    text: str = FILES,
    *,
    clock: VirtualClock | None = None,
    store: Store | None = None,
    **secrets: str,
) -> AsyncIterator[Files]:
    """secrets: files beside the configuration, by name. clock, store: those of replicas."""
    (base / "secrets").mkdir(parents=True)
    path = base / "broker.yaml"
    path.write_text(text)
    found = {"secrets/nmi": "old-key\n", "seal": "s" * 32, **secrets}
    for name, value in found.items():
        (base / name).write_text(value)
    clock = clock or VirtualClock()
    nmi = FakeNmi(clock)
    lines = io.BytesIO()
    transport = AppTransport(handler=nmi)
    app = App(
        load(path), base, path=path, transport=transport, clock=clock, store=store,
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


def run(
    tmp_path: Path, story: Callable[[Files], Awaitable[None]], text: str = FILES, **secrets: str
) -> None:
    async def whole() -> None:
        async with files(tmp_path, text, **secrets) as told:
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
        (FILES + "server: {shutdown_grace: 7s}\n", "takes a restart, as listeners are told once"),
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
        told.clock.pass_(11)
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
    """Chains go on over a reload, and with a new sealing key put in front of the old one; until
    that one is taken out of the list."""

    async def story(told: Files) -> None:
        handle = (await told.mint()).json()["handle"]
        two = FILES.replace("{file: seal}", "{file: seal2}, {file: seal}").replace("5m", "4m")
        told.write(two, seal2="t" * 32)
        await told.look()
        rotated = await told.rotate(handle)
        assert rotated.status_code == 201
        sealed_anew = rotated.json()["handle"]
        told.write(FILES.replace("{file: seal}", "{file: seal2}"))
        await told.look()
        assert told.reloads == (2, 0, 0)
        assert (await told.rotate(sealed_anew)).status_code == 201
        assert problem(await told.rotate(handle)) == "handle-expired"

    run(tmp_path, story)


def test_a_sealing_key_replaced_in_place_ends_what_it_sealed(tmp_path: Path) -> None:
    """A key that leaked is good for nothing from the look on that finds another in its place."""

    async def story(told: Files) -> None:
        handle = (await told.mint()).json()["handle"]
        told.put(seal="t" * 32)
        await told.look()
        assert problem(await told.rotate(handle)) == "handle-expired"
        later = (await told.mint()).json()["handle"]
        assert (await told.rotate(later)).status_code == 201

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
    """A file that is another one at each look is not read until it holds still, nor are its faults
    told, though one look's are the other's."""

    async def story(told: Files) -> None:
        for length in range(40, 400, 40):
            told.write(FILES[:length])
            await told.look(1)
        told.write(FILES.replace("5m", "4m"))
        await told.look()
        assert told.reloads == (1, 0, 0)

    run(tmp_path, story)


def test_what_a_refused_version_names_may_come_later(tmp_path: Path) -> None:
    """A configuration may be there before the secret that it names, or before a preset beside it
    is mended: it is looked at again by itself, told and counted once, and taken."""

    async def story(told: Files) -> None:
        own = tmp_path / "own.yaml"
        own.write_text("broken: [")
        changed = FILES.replace("secrets/nmi", "late").replace("preset: nmi", "preset: ./own.yaml")
        told.write(changed)
        with capture_logs() as lines:
            await told.look(5)
            own.write_text(PRESET)
            told.clock.pass_(11)
            await told.look(5)
            told.clock.pass_(11)
            await told.look(5)
        assert [line["event"] for line in lines] == ["reload_refused"] * 2  # the preset, the secret
        assert told.reloads == (0, 2, 1)
        told.put(late="late-key")
        told.clock.pass_(11)
        await told.look()
        assert told.reloads == (1, 2, 0)
        assert (await told.mint()).status_code == 201
        assert _keys_sent(told) == ["late-key"]

    run(tmp_path, story)


def test_a_refused_version_costs_a_reading_in_ten_seconds(tmp_path: Path) -> None:
    """What was refused is parsed again once in ten seconds, not with every look."""

    async def story(told: Files) -> None:
        readings: list[float] = []
        read = told.app.read

        def counted(snapshot: Snapshot) -> Reading:
            readings.append(told.clock.monotonic())
            return read(snapshot)

        told.app.read = counted  # type: ignore[method-assign]
        told.write(FILES.replace("secrets/nmi", "late"))
        for _ in range(60):
            await told.look(1)
            told.clock.pass_(1)
        assert 6 <= len(readings) <= 13  # two looks that agree, each time
        assert told.reloads == (0, 1, 1)

    run(tmp_path, story)


@pytest.mark.parametrize("named", ["secrets/nmi", "nmi2"])
def test_what_changes_while_a_version_is_adopted_is_seen(tmp_path: Path, named: str) -> None:
    """A secret that is written between its reading and its adoption is in force after the next
    looks, whether the version before had named it or not."""

    async def story(told: Files) -> None:
        (tmp_path / named).write_text("half")
        told.write(FILES.replace("secrets/nmi", named).replace("5m", "4m"))
        adopt = told.app.adopt

        def slow(snapshot: Snapshot, reading: Reading) -> bool:
            changed = adopt(snapshot, reading)
            (tmp_path / named).write_text("half-and-the-rest")
            told.app.adopt = adopt  # type: ignore[method-assign]
            return changed

        told.app.adopt = slow  # type: ignore[method-assign]
        await told.look()
        await told.mint()
        await told.look(1)
        assert told.reloads == (1, 0, 1)
        await told.look(1)
        assert told.reloads == (2, 0, 0)
        await told.mint()
        assert _keys_sent(told) == ["half", "half-and-the-rest"]

    run(tmp_path, story)


@pytest.mark.parametrize("name", ["secrets/nmi", "broker.yaml", "own.yaml"])
def test_a_directory_in_place_of_a_file_leaks_nothing(tmp_path: Path, name: str) -> None:
    """However often it is looked at, no descriptor stays open."""

    async def story(told: Files) -> None:
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
        await told.look(2)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            told.clock.pass_(11)
            await told.look(1)
        assert len(os.listdir("/proc/self/fd")) == before
        assert told.reloads == (0, 1, 1)

    text = FILES.replace("preset: nmi", "preset: ./own.yaml")
    run(tmp_path, story, text, **{"own.yaml": PRESET})


def test_a_preset_beside_the_configuration_is_part_of_it(tmp_path: Path) -> None:
    """A change of its text alone is a new version, with a digest of its own."""

    async def story(told: Files) -> None:
        before = (await told.ops.get("/version")).json()["config"]
        assert before == load(told.path).digest
        told.put(**{"own.yaml": PRESET + "# another\n"})
        await told.look()
        assert told.reloads == (1, 0, 0)
        after = (await told.ops.get("/version")).json()["config"]
        assert after == load(told.path).digest != before
        await told.look(3)
        assert told.reloads == (1, 0, 0)

    run(tmp_path, story, FILES.replace("preset: nmi", "preset: ./own.yaml"), **{"own.yaml": PRESET})


def _refuses(told: Files, *good: str) -> None:
    """NMI knows these keys."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        known = _keys_sent(told)[-1] in good
        return told.nmi.session(900) if known else httpx2.Response(401, json={})

    told.nmi.answer = answer


def test_a_refusal_puts_no_changed_configuration_in_force(tmp_path: Path) -> None:
    """One look, of which half a file may be all, is enough for the secrets of the configuration in
    force, and for nothing else: what changes that waits for two looks."""

    async def story(told: Files) -> None:
        _refuses(told, "new-key")
        told.write(FILES[: FILES.index("      require:")], nmi="new-key")
        stranger = told.jwt(role="cashier")
        assert (await told.mint()).status_code == 502
        assert problem(await told.mint(token=stranger)) == "not-permitted"
        assert told.reloads == (0, 0, 0)
        told.write(FILES)
        told.clock.pass_(5)
        assert (await told.mint()).status_code == 201
        assert _keys_sent(told)[-1] == "new-key"
        assert told.reloads[0] == 1

    run(tmp_path, story)


def test_a_refusal_puts_no_other_secret_in_force(tmp_path: Path) -> None:
    """Nor a key that seals handles, or one that proves callers: half of such a file would not be
    found out by the upstream."""

    async def story(told: Files) -> None:
        _refuses(told, "new-key")
        told.nmi.answer = None
        handle = (await told.mint()).json()["handle"]
        _refuses(told, "new-key")
        told.put(nmi="new-key", seal="t" * 32)
        assert (await told.mint()).status_code == 502
        assert told.reloads == (0, 0, 0)
        await told.look()
        assert told.reloads == (1, 0, 0)
        assert (await told.mint()).status_code == 201
        assert problem(await told.rotate(handle)) == "handle-expired"

    run(tmp_path, story)


def test_never_is_never(tmp_path: Path) -> None:
    """With `reload_interval: 0s` nothing is read again, also where an upstream refuses what it is
    shown."""

    async def story(told: Files) -> None:
        _refuses(told, "new-key")
        told.app.watch()
        told.put(nmi="new-key")
        for _ in range(3):
            assert (await told.mint()).status_code == 502
            await told.clock.advance(20)
        assert set(_keys_sent(told)) == {"old-key"}
        assert told.reloads == (0, 0, 0)

    run(tmp_path, story, FILES + "server: {reload_interval: 0s}\n")


def test_another_address_of_the_store_takes_a_restart(tmp_path: Path) -> None:
    """A password of the store that was replaced in place has no effect, which is said once and measured;
    other secrets that changed with it are in force."""
    text = FILES + "state: {url: {file: url}}\n"

    async def whole() -> None:
        store = DictStore(clock := VirtualClock())
        old = "redis://:old@redis.test"
        async with files(tmp_path, text, clock=clock, store=store, url=old) as told:
            told.put(url="redis://:new@redis.test", nmi="new-key")
            with capture_logs() as lines:
                await told.look(5)
            assert [line["setting"] for line in lines if line["event"] == "takes_a_restart"] == [
                "/state/url"
            ]
            assert ":new@" not in str(lines)
            assert told.reloads == (1, 0, 1)
            await told.mint()
            assert _keys_sent(told) == ["new-key"]

    asyncio.run(whole())


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


ELSEWHERE = FILES.replace("preset: nmi", "preset: nmi\n    base_url: https://staging.example/api")
NMI_HOST = "embed-reporting.iriscrm.com"


def _key_in(request: httpx2.Request) -> tuple[str, str]:
    return request.url.host, json.loads(request.content)["gateway"]["api_key"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_new_address_is_never_shown_the_old_key(tmp_path: Path, status: int) -> None:
    """Where a key is replaced in place together with the address that it is for, its earlier value
    stays with the earlier address, whatever the new one answers; also when that is the second
    change of the address."""

    async def story(told: Files) -> None:
        seen: list[tuple[str, str]] = []

        def up(request: httpx2.Request) -> httpx2.Response:
            seen.append(_key_in(request))
            old = request.url.host == NMI_HOST
            return told.nmi.session(900) if old else httpx2.Response(status, json={})

        told.plays(up)
        assert (await told.mint()).status_code == 201
        told.write(ELSEWHERE, nmi="new-key")
        await told.look()
        assert problem(await told.mint()) == "upstream-refused"
        told.write(ELSEWHERE.replace("staging.example", "third.example"), nmi="third-key")
        await told.look()
        assert problem(await told.mint()) == "upstream-refused"
        assert told.reloads == (2, 0, 0)
        assert set(seen) == {
            (NMI_HOST, "old-key"), ("staging.example", "new-key"), ("third.example", "third-key"),
        }  # fmt: skip

    run(tmp_path, story)


def test_the_old_address_is_never_shown_the_new_key(tmp_path: Path) -> None:
    """A call that is under way when address and key are replaced goes on with the key of then."""

    async def story(told: Files) -> None:
        seen: list[tuple[str, str]] = []
        gate = asyncio.Event()

        async def up(request: httpx2.Request) -> httpx2.Response:
            seen.append(_key_in(request))
            await gate.wait()
            return httpx2.Response(401, json={})

        told.plays(up)
        minting = asyncio.create_task(told.mint())
        await settle(200)
        assert seen == [(NMI_HOST, "old-key")]
        told.write(ELSEWHERE, nmi="new-key")
        await told.look()
        assert told.reloads == (1, 0, 0)
        gate.set()
        assert problem(await minting) == "upstream-refused"
        assert set(seen) == {(NMI_HOST, "old-key")}

    run(tmp_path, story)


def test_an_earlier_key_outlives_a_reload_of_something_else(tmp_path: Path) -> None:
    """For the same address it is still shown while the new one is refused."""

    async def story(told: Files) -> None:
        _refuses(told, "old-key")
        assert (await told.mint()).status_code == 201
        told.write(FILES.replace("5m", "4m"), nmi="new-key")
        await told.look()
        assert (await told.mint()).status_code == 201
        assert _keys_sent(told) == ["old-key", "new-key", "old-key"]

    run(tmp_path, story)


CREDENTIAL = """
credentials:
  checkout:
    token_url: https://idp.test/token
    client_id: {file: id}
    client_secret: {file: secret}
    client_auth: client_secret_post
    scope: [a]
    expose_to: [others]
"""
WITH_CREDENTIAL = FILES + CREDENTIAL
CLIENT = {"id": "client-a", "secret": "secret-a"}


class Idp:
    """Plays token endpoints: knows all clients, or some; remembers who asked."""

    def __init__(self, told: Files, *known: str, life: float = 3600) -> None:
        self.known = set(known)
        self.life = life
        self.asked: list[tuple[str, str, str]] = []
        told.plays(self)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        form = dict(parse_qsl(request.content.decode()))
        self.asked.append((request.url.host, form["client_id"], form["client_secret"]))
        if self.known and form["client_secret"] not in self.known:
            return httpx2.Response(401, json={"error": "invalid_client"})
        value = f"{form['client_id']}-{form['scope']}-{len(self.asked)}"
        return httpx2.Response(
            200, json={"access_token": value, "token_type": "Bearer", "expires_in": self.life}
        )


async def _token(told: Files) -> str:
    """The access token that a service gets, or the problem that it is told."""
    headers = {"authorization": f"Bearer {told.jwt(issuer='other-backend')}"}
    asking = asyncio.create_task(told.client.get("/v1/access-tokens/checkout", headers=headers))
    await told.clock.advance(1)
    answer = await asking
    return str(answer.json()["access_token"]) if answer.status_code == 200 else problem(answer)


def test_an_access_token_outlives_a_reload(tmp_path: Path) -> None:
    """Of a credential that did not change, and also where its secret did: it was granted to the
    same client."""

    async def story(told: Files) -> None:
        idp = Idp(told)
        first = await _token(told)
        told.write(WITH_CREDENTIAL.replace("5m", "4m"), secret="secret-b")
        await told.look()
        assert told.reloads == (1, 0, 0)
        assert await _token(told) == first
        assert len(idp.asked) == 1

    run(tmp_path, story, WITH_CREDENTIAL, **CLIENT)


def test_another_client_has_another_token(tmp_path: Path) -> None:
    """A client_id that is replaced in place is another client: it is not served with the token of
    the one before, nor is a token fetched as that one, though the endpoint knows no other."""

    async def story(told: Files) -> None:
        idp = Idp(told)
        assert await _token(told) == "client-a-a-1"
        told.put(id="client-b", secret="secret-b")
        await told.look()
        assert await _token(told) == "client-b-a-2"
        told.put(id="client-c", secret="secret-c")
        idp.known = {"secret-a", "secret-b"}
        await told.look()
        assert await _token(told) == "upstream-refused"
        assert {client for _, client, _ in idp.asked[2:]} == {"client-c"}

    run(tmp_path, story, WITH_CREDENTIAL, **CLIENT)


def test_a_shorter_life_holds_at_once(tmp_path: Path) -> None:
    """A token that was had under a longer `max_lifetime` is not handed out under a shorter one."""

    async def story(told: Files) -> None:
        idp = Idp(told, life=86400)
        await _token(told)
        told.write(WITH_CREDENTIAL + "    max_lifetime: 5m\n")
        await told.look()
        await _token(told)
        token = told.app._assembly.tokens["checkout"].peek()
        assert token is not None
        assert token.life.remaining(told.clock.monotonic()) <= 300
        assert len(idp.asked) == 2

    run(tmp_path, story, WITH_CREDENTIAL + "    max_lifetime: 24h\n", **CLIENT)


@pytest.mark.parametrize("now", ["elsewhere", "removed", "other scope"])
def test_a_credential_that_is_replaced_fetches_nothing_behind(tmp_path: Path, now: str) -> None:
    """Neither for nobody, nor with a secret that is for another address by now: from the reload on
    its endpoint hears of the successor only. Nothing of it is left running."""
    after = {
        "elsewhere": WITH_CREDENTIAL.replace("idp.test", "new-idp.test"),
        "removed": FILES,
        "other scope": WITH_CREDENTIAL.replace("scope: [a]", "scope: [b]"),
    }[now]

    async def story(told: Files) -> None:
        idp = Idp(told)
        for _ in range(3):
            await _token(told)
        tasks = len(told.app._tasks._running)
        told.write(after, secret="secret-b")
        await told.look()
        assert told.reloads == (1, 0, 0)
        await told.clock.advance(1)
        assert len(told.app._tasks._running) == tasks - 1
        await told.clock.advance(2 * 86400)
        assert idp.asked == [("idp.test", "client-a", "secret-a")]
        if now != "removed":
            await _token(told)
            host = "new-idp.test" if now == "elsewhere" else "idp.test"
            assert idp.asked[1:] == [(host, "client-a", "secret-b")]

    run(tmp_path, story, WITH_CREDENTIAL, **CLIENT)


def test_many_reloads_leave_one_of_each(tmp_path: Path) -> None:
    """Replaced credentials keep no task alive, however many there have been."""

    async def story(told: Files) -> None:
        Idp(told)
        for number in range(20):
            told.write(WITH_CREDENTIAL.replace("scope: [a]", f"scope: [a{number}]"))
            await told.look()
            await _token(told)
        assert told.reloads == (20, 0, 0)
        assert len(told.app._tasks._running) <= 2

    run(tmp_path, story, WITH_CREDENTIAL, **CLIENT)


def test_a_mended_key_is_tried_at_once(tmp_path: Path) -> None:
    """Where every version was refused until the circuit opened, however often: the first call after
    the reload that brings a good one is let out. Another secret's change is no reason to shut up."""

    async def story(told: Files) -> None:
        _refuses(told, "fixed")
        for _ in range(12):
            assert problem(await told.mint()) == "upstream-refused"
            await told.clock.advance(70)
        for _ in range(6):
            await told.mint()
        sent = len(told.nmi.bodies)
        assert problem(await told.mint()) == "upstream-refused"
        assert len(told.nmi.bodies) == sent
        told.put(nmi="fixed")
        await told.look()
        assert (await told.mint()).status_code == 201

    run(tmp_path, story)


def test_a_mended_client_secret_is_tried_at_once(tmp_path: Path) -> None:
    """The refusal that is remembered for a minute is forgotten when a secret changed."""

    async def story(told: Files) -> None:
        idp = Idp(told, "fixed")
        assert await _token(told) == "upstream-refused"
        sent = len(idp.asked)
        assert await _token(told) == "upstream-refused"
        assert len(idp.asked) == sent
        told.put(secret="fixed")
        await told.look()
        assert (await _token(told)).startswith("client-a-a-")

    run(tmp_path, story, WITH_CREDENTIAL, **CLIENT)


def test_an_outage_is_not_forgotten_with_a_new_secret(tmp_path: Path) -> None:
    """An upstream that does not answer is let be, whatever secret is new."""

    async def story(told: Files) -> None:
        told.nmi.answer = lambda _: httpx2.Response(503)
        for _ in range(8):
            await told.mint()
        sent = len(told.nmi.bodies)
        told.put(nmi="new-key")
        await told.look()
        assert (await told.mint()).status_code == 503
        assert len(told.nmi.bodies) == sent

    run(tmp_path, story)


LIMITED = FILES.replace("    min_remaining", "    upstream_limit: 100/minute\n    min_remaining")


def test_another_upstream_limit_forgets_no_outage(tmp_path: Path) -> None:
    """An open circuit and a pause that the upstream asked for stay, as does the metric, when the
    budget is edited; and the new budget holds."""

    async def story(told: Files) -> None:
        told.nmi.answer = lambda _: httpx2.Response(500)
        for _ in range(6):
            await told.mint()
        assert told.sample("broker_circuit_state", upstream="transactions") == 2
        sent = len(told.nmi.bodies)
        told.write(LIMITED)
        await told.look()
        assert told.reloads == (1, 0, 0)
        assert told.sample("broker_circuit_state", upstream="transactions") == 2
        assert (await told.mint()).status_code == 503
        assert len(told.nmi.bodies) == sent
        told.clock.pass_(120)
        told.nmi.answer = lambda _: httpx2.Response(429, headers={"retry-after": "50"})
        await told.mint()
        told.nmi.answer = None
        told.write(LIMITED.replace("100/minute", "1/minute"))
        await told.look()
        assert (await told.mint()).status_code == 503
        assert len(told.nmi.bodies) == sent + 1
        told.clock.pass_(60)
        assert [(await told.mint()).status_code for _ in range(3)] == [201, 503, 503]

    run(tmp_path, story)


def test_a_refused_version_mends_no_guard(tmp_path: Path) -> None:
    """What is wrong with a version may be found when half of it is made: the budgets in force stay
    the ones in force."""
    bad = CREDENTIAL.replace("\ncredentials:\n  checkout:", "  signing:")
    bad = bad.replace("client_secret: {file", "private_key: {file")
    bad = bad.replace("client_secret_post", "private_key_jwt")

    async def story(told: Files) -> None:
        guards = told.app._assembly.guards
        before = {account: guard.rate for account, guard in guards.items()}
        limited = CREDENTIAL + "    upstream_limit: 9/minute\n"
        told.write(LIMITED + limited + bad)
        with capture_logs() as lines:
            await told.look()
        assert "/credentials/signing/private_key" in lines[0]["faults"][0]
        assert {account: guard.rate for account, guard in guards.items()} == before

    run(tmp_path, story, WITH_CREDENTIAL, **CLIENT)


def test_a_store_password_that_is_put_back_needs_no_restart(tmp_path: Path) -> None:
    """`broker_config_stale` is 1 while the address in the files is not the one that is connected,
    and 0 again when it is."""

    async def whole() -> None:
        (tmp_path / "url").write_text("redis://127.0.0.1:1/0")
        text = FILES + "state: {url: {file: url}}\n"
        async with files(tmp_path, text) as told:
            await told.look(1)
            assert told.reloads[2] == 0
            for value, stale in (("redis://:new@127.0.0.1:1/0", 1), ("redis://127.0.0.1:1/0", 0)):
                (tmp_path / "url").write_text(value)
                await told.look(3)
                assert told.reloads[2] == stale

    asyncio.run(whole())
