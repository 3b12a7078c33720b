"""The shared store, at real servers: what is noticed when it is slow, mute, full, gone, strange,
emptied or another one, without anybody's request, and how it comes back."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.flights import Tasks
from broker.schedule import SystemClock
from broker.state.addresses import MOST_CONNECTIONS
from broker.state.redis_store import RedisStore
from broker.state.store import Claim, Put, StoreDown, StoreFailed, Told
from tests.redis_server import RedisServer, free_port, redis_server
from tests.stores import (
    LONG,
    PATIENT,
    SLACK,
    TIMEOUT,
    Retold,
    Seen,
    down,
    forwarder,
    keys_of,
    outcome,
    quicken,
    run,
    store_at,
    until,
    values,
    works,
)

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    with redis_server() as url:
        yield url


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    shared.flush()
    return shared


@pytest.fixture
def no_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """While all is well, the watch asks nothing: what is noticed is noticed by a call."""
    monkeypatch.setattr("broker.state.store_watch.BEAT_SECONDS", 600.0)


class Beats:
    """Counts the connections that the watch of a store makes: one for each beat or probe."""

    def __init__(self, store: RedisStore) -> None:
        self.count = 0
        self._dial = store._link._dial
        store._link._dial = self._one

    def _one(self) -> Any:
        self.count += 1
        return self._dial()

    async def more(self, count: int = 6) -> None:
        """Waits for so many that have begun after this."""
        least = self.count + count
        await until(lambda: self.count >= least)


async def counted(store: RedisStore) -> str:
    return await outcome(store.windows.acquire_sliding_window_entry("k", 10**6, 600))


async def written(store: RedisStore, name: str = "written") -> str:
    return await outcome(store.put([Put(name, b"x", 60)]))


async def read(store: RedisStore) -> str:
    return await outcome(store.get(["kept"]))


def is_alone(server: RedisServer) -> bool:
    """Is nobody connected to it but who asks?"""
    return server.command("CLIENT", "LIST").count(b" addr=") <= 1


# What is noticed without a request


@dataclass
class Fault:
    """cause: what the log calls it. reads: may it be read all the same?"""

    spoil: Callable[[RedisServer], object]
    mend: Callable[[RedisServer], object]
    cause: str
    reads: bool = True
    options: list[str] = field(default_factory=list)


def setting(name: str, value: str) -> Callable[[RedisServer], object]:
    return lambda server: server.command("CONFIG", "SET", name, value)


def demote(server: RedisServer) -> None:
    server.command("REPLICAOF", "127.0.0.1", "1")


def promote(server: RedisServer) -> None:
    server.command("REPLICAOF", "NO", "ONE")


def cannot_save(server: RedisServer) -> None:
    place = server.command("CONFIG", "GET", "dir").split(b"\r\n")[4].decode()
    server.command("CONFIG", "SET", "save", "3600 1")
    shutil.rmtree(place)
    server.command("BGSAVE")
    end = time.monotonic() + LONG
    while b"rdb_last_bgsave_status:err" not in server.command("INFO", "persistence"):
        assert time.monotonic() < end, "saving did not fail"
        time.sleep(0.01)
    Path(place).mkdir()


FAULTS = {
    "READONLY": Fault(demote, promote, "READONLY"),
    "MASTERDOWN": Fault(
        demote, promote, "MASTERDOWN", reads=False, options=["--replica-serve-stale-data", "no"]
    ),
    "OOM": Fault(setting("maxmemory", "1"), setting("maxmemory", "0"), "OOM"),
    "NOREPLICAS": Fault(
        setting("min-replicas-to-write", "3"), setting("min-replicas-to-write", "0"), "NOREPLICAS"
    ),
    "MISCONF": Fault(cannot_save, setting("save", ""), "MISCONF"),
    "paused": Fault(RedisServer.pause, RedisServer.resume, "TimeoutError", reads=False),
    "killed": Fault(RedisServer.kill, RedisServer.restart, "ConnectionError", reads=False),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_server_that_refuses_is_noticed_without_a_request(name: str) -> None:
    """A server that takes no writes, or is mute, or gone, is found out by the beat. One line tells
    the cause; the store stays down while the fault lasts, what can be read goes on being read, and
    it comes back by itself with one line and all that it could do before."""
    fault = FAULTS[name]

    async def story(server: RedisServer) -> None:
        seen = Seen()
        async with store_at(server, seen=seen, timeout=0.5) as store:
            beats, retold = Beats(store), Retold(store)
            await store.put([Put("kept", b"x", 600)])
            assert await counted(store) == "ok"
            await until(lambda: len(retold.calls) > 1)
            asked = seen.answers.copy()
            fault.spoil(server)
            await until(lambda: not seen.is_up)
            assert seen.answers == asked
            for _ in range(3):
                await beats.more(2)
                assert await read(store) == ("ok" if fault.reads else "away")
                assert await written(store) == "away"
                assert await store.claim("b", "me", 5) == (Claim.ERROR, None)
            assert seen.ups == [True, False]
            assert retold.wholes == 0
            fault.mend(server)
            await until(lambda: seen.is_up)
            assert retold.wholes == 1
            for call in (read, written, counted):
                assert await call(store) == "ok"
            await beats.more()
            assert seen.ups == [True, False, True]

    with redis_server(*fault.options) as server, capture_logs() as lines:
        run(story(server))
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("store_down", "warning"), ("store_up", "warning"),
    ]  # fmt: skip
    assert lines[0]["cause"] == fault.cause


def rights() -> list[str]:
    """The commands that the README says the user needs, as ACL has them."""
    (told,) = re.findall(r"The user needs ([^(]*?)\(a\s+cluster's", README.read_text())
    return [word.lower().replace(" ", "|") for word in re.split(r",\s*|\s+and\s+", told.strip())]


READS, COUNTS = {"eval", "get", "pttl"}, {"evalsha", "script|load", "rename", "incrby"}


@pytest.mark.parametrize("right", rights())
def test_a_right_that_is_taken_away_is_noticed_without_a_request(right: str) -> None:
    """The rights that the README names are enough. Of these, none can be missing without being
    noticed by the beat, and what needs it not goes on."""

    async def story(server: RedisServer) -> None:
        granted = [f"+{one}" for one in rights()]
        server.command(
            "ACL", "SETUSER", "canary-user", "on", ">canary-word", "~*broker*", "-@all", *granted
        )
        seen = Seen()
        url = server.replace("://", "://canary-user:canary-word@")
        async with store_at(url, seen=seen) as store:
            beats, retold = Beats(store), Retold(store)
            await store.put([Put("kept", b"x", 600)])
            assert await counted(store) == "ok"
            await until(lambda: len(retold.calls) > 1)
            assert seen.ups == [True]
            asked = seen.answers.copy()
            server.command("ACL", "SETUSER", "canary-user", f"-{right}")
            server.command("SCRIPT", "FLUSH")
            await until(lambda: not seen.is_up)
            assert seen.answers == asked
            for _ in range(3):
                await beats.more(2)
                if right not in READS:
                    assert await read(store) == "ok"
                if right in COUNTS:
                    assert await written(store) == "ok"
                    assert await counted(store) == "away"
                else:
                    assert await written(store) == "away"
            await beats.more(10)
            assert seen.ups == [True, False]
            server.command("ACL", "SETUSER", "canary-user", f"+{right}")
            await until(lambda: seen.is_up)
            for call in (read, written, counted):
                assert await call(store) == "ok"
            assert seen.ups == [True, False, True]

    with redis_server() as server, capture_logs() as lines:
        run(story(server))
    assert [line["event"] for line in lines] == ["store_down", "store_up"]
    assert lines[0]["cause"] == "NOPERM"
    assert "canary" not in repr(lines)


def test_a_server_that_is_loading_is_noticed_without_a_request(server: RedisServer) -> None:
    """A server that answers LOADING to all is away after a while, and back when it has loaded."""
    seen = Seen()

    async def story() -> None:
        async with forwarder(server.port) as place, store_at(place.url, seen=seen) as store:
            beats, retold = Beats(store), Retold(store)
            assert await written(store) == "ok"
            await until(lambda: len(retold.calls) > 1)
            place.says = b"-LOADING Redis is loading the dataset in memory\r\n"
            await until(lambda: not seen.is_up)
            await beats.more()
            assert await read(store) == await written(store) == "away"
            assert seen.ups == [True, False]
            place.says = None
            await until(lambda: seen.is_up)
            assert await read(store) == await written(store) == "ok"

    with capture_logs() as lines:
        run(story())
    assert [line["event"] for line in lines] == ["store_down", "store_up"]
    assert lines[0]["cause"] == "LOADING"


def test_at_the_real_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is set in production, a server that was killed is noticed without a request, not
    before two seconds of failures, and within a few beats after; it is used again two seconds after
    it is back at the earliest."""
    monkeypatch.undo()

    async def story(server: RedisServer) -> None:
        seen = Seen()
        async with store_at(server, seen=seen, timeout=TIMEOUT) as store:
            await until(lambda: bool(store._watch._marks))
            await asyncio.sleep(0.5)
            server.kill()
            began = time.monotonic()
            await until(lambda: not seen.is_up)
            assert 2 <= time.monotonic() - began < 15
            server.restart()
            began = time.monotonic()
            await until(lambda: seen.is_up)
            assert 2 <= time.monotonic() - began < 15
            assert await works(store)

    with redis_server() as server:
        run(story(server))


# One call that fails is no outage


def test_one_failure_is_not_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that fail say "it may be well", until one operation has failed for the seconds that are
    set: from then on each is refused at once, and no call goes out. Not sooner, however many fail."""
    monkeypatch.setattr("broker.state.health.AWAY_AFTER_SECONDS", 1.0)

    async def story(server: RedisServer) -> None:
        seen = Seen()
        async with store_at(server, seen=seen, timeout=TIMEOUT) as store:
            assert await works(store)
            server.kill()
            began = time.monotonic()
            answers: Counter[str] = Counter()
            while (answer := await read(store)) == "failed":
                answers[answer] += 1
            assert answer == "away"
            assert time.monotonic() - began >= 1
            assert answers["failed"] >= 3
            await until(lambda: not seen.is_up)
            before = seen.answers["get", "down"]
            crowd = await asyncio.gather(*(down(store.get(["a"])) for _ in range(200)))
            assert sorted(crowd)[len(crowd) // 2] < 0.01  # a machine may stand still during one
            assert seen.answers["get", "down"] == before + 200

    with redis_server() as server:
        run(story(server))


def test_a_success_of_one_operation_hides_no_failure_of_another(server: RedisServer) -> None:
    """While every read succeeds, and each hundredth of a second, writes that fail are away in their
    time; then reads go on."""

    async def story() -> None:
        seen = Seen()
        async with store_at(server, seen=seen) as store:
            assert await written(store) == "ok"
            server.command("CONFIG", "SET", "maxmemory", "1")

            async def away() -> bool:
                assert await read(store) == "ok"
                return await written(store) == "away"

            await until(away)
            assert await read(store) == "ok"
            assert seen.ups == [True, False]

    try:
        run(story())
    finally:
        server.command("CONFIG", "SET", "maxmemory", "0")


def test_what_a_probe_has_proved_counts_though_it_was_refused_another(
    server: RedisServer,
) -> None:
    """While the store takes no writes, two reads that fail at different times, with probes between
    that could read, do not make reading away."""

    async def story() -> None:
        async with store_at(server, seen=(seen := Seen())) as store:
            beats = Beats(store)
            server.command("CONFIG", "SET", "maxmemory", "1")
            await until(lambda: not seen.is_up)
            for _ in range(3):
                store._watch.failed("get", "by the test")
                await beats.more(12)
                assert store._health.away == ["write"]
            assert await read(store) == "ok"

    try:
        run(story())
    finally:
        server.command("CONFIG", "SET", "maxmemory", "0")


def test_a_failure_that_is_over_is_forgotten(server: RedisServer) -> None:
    """A mute moment, shorter than the seconds that are set, leaves nothing behind: no line, and no
    value of the metric but up."""
    seen = Seen()

    async def story() -> None:
        async with store_at(server, seen=seen, timeout=0.1) as store:
            await until(lambda: bool(store._watch._marks))
            for _ in range(3):
                server.pause()
                assert await read(store) == "failed"
                server.resume()
                await until(lambda: store._health.is_well)

    with pytest.MonkeyPatch.context() as patch, capture_logs() as lines:
        patch.setattr("broker.state.health.AWAY_AFTER_SECONDS", 60.0)
        run(story())
    assert seen.ups == [True]
    assert lines == []


@pytest.mark.usefixtures("no_beats")
def test_a_dead_connection_is_not_noticed(server: RedisServer) -> None:
    """Calls that find their connection ended are made over a new one: twenty that were cut while
    nobody used them, and one that is cut while a call waits for its answer."""

    async def story() -> None:
        seen = Seen()
        async with forwarder(server.port) as place, store_at(place.url, seen=seen) as store:
            await asyncio.gather(*(store.get(["a"]) for _ in range(20)))
            for cut in (place.cut, lambda: server.command("CLIENT", "KILL", "TYPE", "normal")):
                cut()
                names = [f"{cut}-{n}" for n in range(20)]
                calls = (written(store, name) for name in names)
                assert set(await asyncio.gather(*calls)) == {"ok"}
            place.mute = True
            late = asyncio.ensure_future(written(store, "late"))
            await until(lambda: b"{broker:late}" in keys_of(server))
            place.cut()
            place.mute = False
            assert await late == "ok"
            assert seen.ups == [True]
            assert store._health.is_well

    run(story())


@pytest.mark.usefixtures("no_beats")
def test_a_server_that_was_demoted_is_left_at_once(server: RedisServer) -> None:
    """A call that an old connection leads to a replica is made again over a new one, which leads to
    the new master; the caller notices nothing, of a write as of a count."""

    async def story(new: RedisServer) -> None:
        for call in (written, counted):
            async with forwarder(server.port) as place, store_at(place.url) as store:
                assert await call(store) == "ok"
                demote(server)
                place.port = new.port
                assert await call(store) == "ok"
                promote(server)

    try:
        with redis_server() as new:
            run(story(new))
            assert keys_of(new)
    finally:
        promote(server)


@pytest.mark.usefixtures("no_beats")
def test_a_crowd_that_is_led_elsewhere_goes_there_together(server: RedisServer) -> None:
    """Of thirty calls that a demoted server refuses at once, the first makes new connections for
    all: no more than there are calls."""

    async def story(new: RedisServer) -> None:
        async with forwarder(server.port) as place, store_at(place.url) as store:
            await asyncio.gather(*(store.get(["a"]) for _ in range(30)))
            dials = Beats(store)
            demote(server)
            place.port = new.port
            calls = (written(store, f"{n}") for n in range(30))
            assert set(await asyncio.gather(*calls)) == {"ok"}
            assert dials.count <= 3  # of which one or two are of the watch, which was called

    try:
        with redis_server() as new:
            run(story(new))
    finally:
        promote(server)


# Another server, or none of the data


def copied(old: RedisServer, new: RedisServer) -> None:
    """Makes `new` a master of its own that has all that `old` has."""
    old.command("CONFIG", "SET", "repl-diskless-sync-delay", "0")
    new.command("REPLICAOF", "127.0.0.1", str(old.port))
    end = time.monotonic() + LONG
    while b"master_link_status:up" not in new.command("INFO", "replication"):
        assert time.monotonic() < end, "did not follow"
        time.sleep(0.01)
    promote(new)


@pytest.mark.parametrize("how", ["cut", "demoted", "left as it was", "copied", "one is left"])
def test_another_server_behind_the_address_is_noticed(how: str, server: RedisServer) -> None:
    """Where new connections lead to another server, it is told everything, and all connections go
    there, also those that idled: whether the old ones were cut, their server was made a replica, or
    it still takes all that is written and nobody answers an error; also where the new one has all
    that the old one had, and where one connection of many still leads to the old one."""
    seen = Seen()

    async def story(new: RedisServer) -> None:
        async with (
            forwarder(server.port) as place,
            store_at(place.url, seen=seen) as store,
        ):
            retold = Retold(store)
            retold.does = lambda told: told.put([Put("told", b"again", 60)])
            await asyncio.gather(*(store.get(["a"]) for _ in range(12)))
            await until(lambda: len(retold.calls) > 1)
            if how in ("copied", "one is left"):
                copied(server, new)
            place.port = new.port
            if how == "cut":
                place.cut()
            elif how == "one is left":
                place.cut(but=1)
            elif how == "demoted":
                demote(server)
            await until(lambda: seen.ups == [True, False, True])
            assert retold.wholes >= 1
            calls = [written(store, f"after-{n}") for n in range(40)]
            assert set(await asyncio.gather(*calls)) == {"ok"}
            there = keys_of(new)
            assert {b"{broker:after-%d}" % n for n in range(40)} <= set(there)
            assert b"{broker:told}" in there
            assert not any(b"after" in key for key in keys_of(server))
            await until(lambda: is_alone(server))

    try:
        with redis_server() as new, capture_logs() as lines:
            run(story(new))
    finally:
        promote(server)
    assert [line["event"] for line in lines] == ["store_down", "store_up"]


def test_a_store_that_missed_something_counts_as_down_until_it_is_told(server: RedisServer) -> None:
    """A caller that gave up before the store counted as away leaves nothing untold: the store is
    told everything, and until then `broker_store_up` is 0, though calls get through."""

    async def story() -> None:
        seen = Seen()
        async with store_at(server, seen=seen) as store:
            retold = Retold(store)
            await until(lambda: len(retold.calls) > 1)
            assert retold.wholes == 0
            store.missed()
            assert seen.ups == [True, False]
            assert await written(store) == "ok"
            await until(lambda: seen.ups == [True, False, True])
            assert retold.wholes == 1

    with capture_logs() as lines:
        run(story())
    assert [line["event"] for line in lines] == ["store_down", "store_up"]
    assert lines[0]["cause"] == "not told"


def test_a_store_that_was_emptied_is_told_again_before_it_is_used(server: RedisServer) -> None:
    """FLUSHALL is noticed without a request. Until all has been told, and the moment in which the
    other replicas tell too is over, no call gets through, and none is told to act alone; then what
    was told is there."""

    async def story() -> None:
        seen, gate = Seen(), asyncio.Event()
        async with store_at(server, seen=seen) as store:
            retold = Retold(store)

            async def tell(told: Told) -> None:
                assert await told.get(["ended"]) == [None]
                assert await told.put([Put("ended", b"yes", 60, only_new=True)]) == [True]
                await gate.wait()

            retold.does = tell
            await until(lambda: len(retold.calls) > 1)
            server.flush()
            await until(lambda: retold.wholes == 1)
            for call in (read, written, counted):
                assert await call(store) == "failed"
            gate.set()
            await until(lambda: seen.ups == [True, False, True])
            assert values(await store.get(["ended"])) == [b"yes"]
            assert await written(store) == await counted(store) == "ok"
            await until(lambda: retold.calls[-2:] == [False, False])
            assert retold.wholes == 1

    with capture_logs() as lines:
        run(story())
    assert [line["event"] for line in lines] == ["store_down", "store_up"]
    assert lines[0]["cause"] == "other data"


def test_a_restart_that_nobody_noticed_is_noticed_by_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that was killed and is there again, empty, before any call failed for long, is told
    everything."""
    monkeypatch.setattr("broker.state.health.AWAY_AFTER_SECONDS", 60.0)

    async def story(server: RedisServer) -> None:
        seen = Seen()
        async with store_at(server, seen=seen) as store:
            retold = Retold(store)
            await until(lambda: len(retold.calls) > 1)
            server.kill()
            server.restart()
            await until(lambda: retold.wholes == 1)
            await until(lambda: seen.ups == [True, False, True])

    with redis_server() as server:
        run(story(server))


@pytest.mark.parametrize("how", ["emptied", "killed"])
def test_what_could_not_be_told_is_told_until_it_is(how: str) -> None:
    """Where telling the store again fails, halfway or at once, it is tried again, and until it has
    succeeded nobody uses the store; whether it was emptied or had been away."""

    async def story(server: RedisServer) -> None:
        seen, tries, whole = Seen(), 0, False
        async with store_at(server, seen=seen) as store:
            retold = Retold(store)

            async def tell(told: Told) -> None:
                nonlocal tries, whole
                tries += 1
                await told.put([Put("one", b"1", 60)])
                if tries < 4:
                    raise TimeoutError
                await told.put([Put("two", b"2", 60)])
                whole = True

            retold.does = tell
            await until(lambda: len(retold.calls) > 1)
            if how == "emptied":
                server.flush()
            else:
                server.kill()
                await until(lambda: not seen.is_up)
                server.restart()
            await until(lambda: tries > 0)
            while not seen.is_up:
                was_whole = whole
                for answer in (await read(store), await written(store)):
                    assert was_whole or answer != "ok"
                await asyncio.sleep(0.005)
            assert tries == 4
            assert values(await store.get(["one", "two"])) == [b"1", b"2"]
            assert seen.ups == [True, False, True]

    with redis_server() as server, capture_logs() as lines:
        run(story(server))
    assert [line["event"] for line in lines] == ["store_down", "store_up"]


def test_a_loss_is_noticed_though_the_answers_of_a_beat_were_lost(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the store was emptied while its answers did not arrive, the beats that nobody heard of
    have left no mark that hides it."""
    monkeypatch.setattr("broker.state.health.AWAY_AFTER_SECONDS", 60.0)

    async def story() -> None:
        async with (
            forwarder(server.port) as place,
            store_at(place.url, timeout=0.1) as store,
        ):
            monkeypatch.setattr("broker.state.store_watch.PROBE_WITHIN_SECONDS", 0.1)
            beats, retold = Beats(store), Retold(store)
            await until(lambda: len(retold.calls) > 1)
            place.mute = True
            server.flush()
            await beats.more(3)
            place.mute = False
            await until(lambda: retold.wholes == 1)

    run(story())


class Sleepless(SystemClock):
    """The system's, which notes how long the watch wants to sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await super().sleep(seconds)


def test_a_store_that_forgets_again_and_again_is_waited_for_once(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that evicts the mark all the time is told again each time; only after the first loss does
    everybody wait for the other replicas."""
    monkeypatch.setattr("broker.state.store_watch.SETTLE_SECONDS", 0.5)
    monkeypatch.setattr("broker.state.store_watch.SETTLE_AGAIN_SECONDS", 600.0)
    clock = Sleepless()

    async def story() -> None:
        async with store_at(server, clock=clock) as store:
            retold = Retold(store)
            mark = store._scripts.key(store._watch._name)
            await until(lambda: len(retold.calls) > 1)
            for count in range(1, 6):
                server.command("DEL", mark)
                await until(lambda count=count: retold.wholes >= count)
                await until(lambda: not store._watch.is_settling)
                assert await read(store) == "ok"

    run(story())
    assert len([seconds for seconds in clock.slept if seconds > 0.3]) == 1


def test_marks_of_a_long_outage_do_not_pile_up(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While every beat is refused, no more marks are remembered than the store could still have."""
    monkeypatch.setattr("broker.state.store_watch._MARK_SECONDS", 0.6)

    async def story() -> None:
        async with store_at(server) as store:
            beats = Beats(store)
            await beats.more(2)
            server.command("CONFIG", "SET", "maxmemory", "1")
            for _ in range(3):
                await beats.more(15)
                assert len(store._watch._marks) <= 16

    try:
        run(story())
    finally:
        server.command("CONFIG", "SET", "maxmemory", "0")


def test_one_caller_needs_few_connections(server: RedisServer) -> None:
    """Beats that come while calls are made do not add connections: one caller at a time, and thirty
    beats, are served by a handful."""

    async def story() -> None:
        async with store_at(server) as store:
            beats, goes_on = Beats(store), True

            async def caller() -> None:
                while goes_on:
                    await store.get(["a"])

            calling = asyncio.ensure_future(caller())
            await beats.more(30)
            goes_on = False
            await calling
            assert store._link.widest <= 8

    run(story())


# Slow, mute, gone


@pytest.mark.usefixtures("no_beats")
def test_every_call_ends_in_time(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a mute server each call ends within the deadline: on a connection that is there, on
    one to be made, and five hundred at once; a claim raises as any other, a release is silent."""
    monkeypatch.setattr("broker.state.health.AWAY_AFTER_SECONDS", 60.0)

    async def story() -> None:
        seen = Seen()
        async with (
            store_at(server, seen=seen, timeout=TIMEOUT) as warm,
            store_at(server, timeout=TIMEOUT) as cold,
        ):
            await asyncio.gather(*(warm.get(["a"]) for _ in range(40)))
            server.pause()
            try:
                for store in (warm, cold):
                    assert TIMEOUT <= await down(store.get(["a", "b"])) < TIMEOUT + SLACK
                    assert TIMEOUT <= await down(store.claim("a", "me", 5)) < TIMEOUT + SLACK
                crowd = await asyncio.gather(*(down(cold.get(["a"])) for _ in range(500)))
                assert max(crowd) < TIMEOUT + 2 * SLACK
                assert min(crowd) >= TIMEOUT
                began = time.monotonic()
                await warm.release("a", "me")
                await cold.close()
                assert time.monotonic() - began < 2 * TIMEOUT + SLACK
            finally:
                server.resume()
        assert [answer for answer in seen.answers if answer[1] != "ok"] == [
            ("get", "timeout"), ("claim", "timeout"), ("release", "timeout"),
        ]  # fmt: skip

    run(story())


@pytest.mark.usefixtures("no_beats")
def test_no_answer_is_taken_for_another_s(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a line that is now and then slower than the deadline, with callers who leave at any
    moment, whoever gets an answer gets their own: 1000 calls, of which many are late."""
    draw = random.Random(4711)
    monkeypatch.setattr("broker.state.health.AWAY_AFTER_SECONDS", 600.0)  # not about that

    async def story() -> None:
        got: Counter[str] = Counter()
        crowd = 0.0

        async def one(store: RedisStore, number: int) -> None:
            names = [str(number % 50), str((number + 7) % 50)][: 1 + number % 2]
            try:
                kept = await store.get(names)
            except StoreDown:
                got["down"] += 1
                return
            assert values(kept) == [name.encode() for name in names]
            got["right"] += 1

        async def caller(store: RedisStore, first: int) -> None:
            for number in range(first, first + 40):
                asked = asyncio.ensure_future(one(store, number))
                await asyncio.wait((asked,), timeout=draw.choice([0.02, 0.2, 20, 20]) * deadline)
                got["left"] += not asked.done()
                asked.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asked

        async with forwarder(server.port) as place, store_at(place.url) as near:
            await near.put([Put(str(n), str(n).encode(), 60) for n in range(50)])
            for _ in range(3):
                began = time.monotonic()
                await asyncio.gather(*(near.get([str(n)]) for n in range(25)))
                crowd = max(crowd, time.monotonic() - began)  # the first one connects too
        deadline = max(0.05, 4 * crowd)  # by what this machine can do now
        slow = lambda: draw.choice([0, 0, 0, 0, 0, 0.04, 2]) * deadline  # noqa: E731
        async with (
            forwarder(server.port, slow) as place,
            store_at(place.url, timeout=deadline) as store,
        ):
            await asyncio.gather(*(caller(store, 40 * n) for n in range(25)))
        assert got["right"] > 10, got
        assert got["down"] > 10, got
        assert got["left"] > 10, got

    run(story())


def test_a_probe_may_take_longer_than_a_call(server: RedisServer) -> None:
    """A server that is slower than a call may be, as after a cold start, is still found to be back:
    nobody waits for the probe."""
    seen, slow = Seen(), 0.0

    async def story() -> None:
        nonlocal slow
        async with (
            forwarder(server.port, lambda: slow) as place,
            store_at(place.url, seen=seen, timeout=0.1) as store,
        ):
            await until(lambda: bool(store._watch._marks))
            server.pause()
            await until(lambda: not seen.is_up)
            slow = 0.2
            server.resume()
            await until(lambda: seen.is_up)
            slow = 0.0
            await until(lambda: works(store))

    run(story())


@pytest.mark.usefixtures("no_beats")
def test_places_are_not_lost(server: RedisServer) -> None:
    """After a thousand calls that were left or cut off, as many fit at once as before, over no more
    connections than there may be."""

    async def story() -> None:
        async with store_at(server) as store:
            for _ in range(10):
                asked = [asyncio.ensure_future(store.get([str(n)])) for n in range(100)]
                await asyncio.sleep(0.001)
                for one in asked:
                    one.cancel()
                await asyncio.gather(*asked, return_exceptions=True)
            await asyncio.gather(*(store.get([str(n)]) for n in range(500)))
            assert store._link._places._value == MOST_CONNECTIONS
            pool = store._link.line.client.connection_pool
            assert not pool._in_use_connections
            clients = server.command("CLIENT", "LIST").count(b"cmd=eval")
            assert 1 <= clients <= MOST_CONNECTIONS + 1

    run(story())


def test_whatever_the_server_says_is_no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong password, none, and a value of another type are failures at once, and no error of
    another kind."""
    monkeypatch.setattr("broker.state.health.AWAY_AFTER_SECONDS", 60.0)

    async def story(server: RedisServer) -> None:
        for userinfo in ("", ":wrong@", "nobody:secret@"):
            async with store_at(server.replace("://", f"://{userinfo}")) as store:
                assert await down(store.get(["a"])) < PATIENT / 2
                with pytest.raises(StoreFailed):
                    await store.claim("a", "me", 5)
                await store.release("a", "me")
                assert await store.extend("a", "me", 5)
        seen = Seen()
        async with store_at(server.replace("://", "://:right@"), seen=seen) as store:
            server.command("LPUSH", "{broker:list}", "x", password="right")
            await down(store.get(["list"]))
            assert await written(store) == "ok"
        assert {outcome for _, outcome in seen.answers} == {"ok", "error"}

    with redis_server("--requirepass", "right") as server:
        run(story(server))


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port where nobody listens is StoreDown at once, for each way to be a server."""
    monkeypatch.setattr("broker.state.health.AWAY_AFTER_SECONDS", 60.0)

    async def story() -> None:
        for scheme, more in (
            ("redis", ""),
            ("redis+cluster", ""),
            ("redis+sentinel", "?service=m"),
        ):
            async with store_at(f"{scheme}://127.0.0.1:{free_port()}{more}") as store:
                assert await down(store.get(["a", "b"])) < PATIENT / 2
                await down(store.claim("a", "me", 5))

    run(story())


# The end, and what is told


def test_the_end_leaves_nothing(server: RedisServer) -> None:
    """After `close` there is no task and no connection: not of the watch, nor of a line that was
    just replaced, whatever was under way. A call that comes late opens none."""

    async def story(turns: int) -> None:
        tasks, there = Tasks(), asyncio.all_tasks()
        async with forwarder(server.port) as place:
            async with store_at(place.url, tasks=tasks) as store:
                await asyncio.gather(*(store.get(["a"]) for _ in range(5)))
                store._link.redial(store._link.line)
                await store.get(["a"])
                asking = [asyncio.ensure_future(outcome(store.get(["a"]))) for _ in range(5)]
                for _ in range(turns):
                    await asyncio.sleep(0)
                await store.close()
                await asyncio.gather(*asking)
                assert await read(store) == "away"
                assert await store.claim("a", "me", 5) == (Claim.ERROR, None)
            assert not tasks._running
            await until(lambda: place.connections == 0)
            accepted = place.accepted
            assert await read(store) == "away"
            assert place.accepted == accepted
        assert asyncio.all_tasks() == there

    for turns in (0, 1, 5, 25, 100):
        asyncio.run(asyncio.wait_for(story(turns), 60))


def test_neither_errors_nor_lines_tell_anything() -> None:
    """Whatever goes wrong, in no log line and no error is there anything of the URL, of names or of
    values."""

    async def story(server: RedisServer) -> None:
        server.command("ACL", "SETUSER", "canary-user", "on", ">canary-word", "~*", "+@all")
        url = server.replace("://", "://canary-user:canary-word@")
        texts: list[str] = []

        async def tried(call: Any) -> None:
            try:
                await call
            except StoreDown as exc:
                texts.append("".join(traceback.format_exception(exc)))

        async with store_at(url, seen=(seen := Seen()), timeout=TIMEOUT) as store:
            await store.put([Put("canary-name", b"canary-value", 60)])
            server.command("LPUSH", "{broker:canary-list}", "canary-value")
            await tried(store.get(["canary-list"]))
            assert texts
            for spoil, mend in (
                (("ACL", "SETUSER", "canary-user", "-@all"), "+@all"),
                (("ACL", "SETUSER", "canary-user", "off"), "on"),
            ):
                server.command(*spoil)
                await until(lambda: not seen.is_up)
                for call in (store.get(["canary-name"]), store.delete_if("canary-name", b"canary")):
                    await tried(call)
                server.command("ACL", "SETUSER", "canary-user", mend)
                await until(lambda: seen.is_up)
            server.kill()
            await tried(store.put([Put("canary-name", b"canary-value", 60)]))
            await until(lambda: not seen.is_up)
        assert "canary" not in "".join(texts)

    with redis_server() as server, capture_logs() as lines:
        run(story(server))
    assert len(lines) >= 5
    assert "canary" not in repr(lines)
