"""The shared store, at real servers: what it keeps, what it never tells, and what it does when the
server is slow, mute, full, gone, strange, or back."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from broker.errors import ConfigError
from broker.flights import Tasks
from broker.model import Secret
from broker.schedule import Clock, SystemClock
from broker.state.addresses import Address, parse_address
from broker.state.redis_store import RedisStore
from broker.state.store import Claim, Kept, Put, StoreDown
from broker.state.vault import Vault
from tests.redis_server import RedisServer, free_port, redis_cluster, redis_sentinel, redis_server
from tests.support import VirtualClock

NEW, OLD = Secret("n" * 32), Secret("o" * 32)
TIMEOUT = 0.25
PATIENT = 2.0
"""The deadline where the server is well, or refuses at once, and only the machine may be slow."""
SLACK = 0.7
"""Of a busy machine, beyond the deadline: with it, a call still ends within a second."""


class Seen:
    """Stands in for the metrics."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, str]] = Counter()
        self.ups: list[bool] = []

    def store_answered(self, operation: str, outcome: str) -> None:
        self.answers[operation, outcome] += 1

    def store_up(self, is_up: bool) -> None:
        self.ups.append(is_up)


@contextlib.asynccontextmanager
async def store_at(
    url: str,
    *ring: Secret,
    seen: Seen | None = None,
    clock: Clock | None = None,
    **options: Any,
) -> AsyncIterator[RedisStore]:
    tasks = Tasks()
    store = RedisStore(
        Secret(url), Vault(ring or (NEW,)), clock or SystemClock(), seen or Seen(), tasks.spawn,
        **{"timeout": PATIENT, "prefix": "broker", "ca_file": None} | options,
    )  # fmt: skip
    try:
        yield store
    finally:
        await store.close()
        await tasks.close()


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 20))


async def until(true: Callable[[], bool | Awaitable[bool]], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while True:
        answer = true()
        if answer if isinstance(answer, bool) else await answer:
            return
        assert time.monotonic() < end, "did not come true"
        await asyncio.sleep(0.01)


async def works(store: RedisStore) -> bool:
    try:
        await store.get(["anything"])
    except StoreDown:
        return False
    return True


async def down(call: Awaitable[Any]) -> float:
    """Seconds after which it said that the store is down."""
    began = time.monotonic()
    with pytest.raises(StoreDown) as caught:
        await call
    assert caught.value.__cause__ is None
    return time.monotonic() - began


def values(kept: Sequence[Kept | None]) -> list[bytes | None]:
    return [one and one.value for one in kept]


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    with redis_server() as url:
        yield url


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes come five times as often."""
    monkeypatch.setattr("broker.state.redis_store.PROBE_EVERY", 0.1)


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    shared.flush()
    return shared


# What it keeps


def test_what_is_put_is_there_for_its_time(server: RedisServer) -> None:
    """Any bytes come back in the order asked for, with the life that is left; not for nought
    seconds or less, nor after their time."""

    async def story() -> None:
        async with store_at(server) as store:
            await store.put(
                [
                    Put("a", bytes(range(256)), 100),
                    Put("é}{b", b"", 0.08),
                    Put("c", b"c", 0),
                    Put("d", b"d", -1),
                    Put("e", b"e", 0.0009),
                ]
            )
            none, b, a, again, *rest = await store.get(["none", "é}{b", "a", "a", "c", "d", "e"])
            assert none is None
            assert rest == [None, None, None]
            assert b is not None
            assert 0 < b.seconds <= 0.08
            assert a is not None
            assert a.value == bytes(range(256)) == (again and again.value)
            assert 99 < a.seconds <= 100
            await asyncio.sleep(0.1)
            assert values(await store.get(["é}{b", "a"])) == [None, bytes(range(256))]
            assert await store.get([]) == []
            await store.put([])

    run(story())


def test_one_claim_of_many_is_acquired(server: RedisServer) -> None:
    """Of sixty that claim at once, through two replicas, one gets it; all are told what is there."""

    async def story() -> None:
        async with store_at(server) as one, store_at(server) as two:
            await one.put([Put("token", b"old", 60)])
            answers = await asyncio.gather(
                *((one, two)[n % 2].claim("token", f"owner-{n}", 5) for n in range(60))
            )
            assert Counter(claim for claim, _ in answers) == {Claim.ACQUIRED: 1, Claim.HELD: 59}
            assert {kept and kept.value for _, kept in answers} == {b"old"}

    run(story())


def test_a_claim_is_given_back_by_its_owner_only(server: RedisServer) -> None:
    """Neither a release nor a put by another ends it; the owner's do, in the same step."""

    async def story() -> None:
        async with store_at(server) as store:
            assert await store.claim("a", "me", 5) == (Claim.ACQUIRED, None)
            await store.release("a", "you")
            await store.put([Put("a", b"theirs", 5, owner="you"), Put("b", b"", 5, owner="me")])
            assert (await store.claim("a", "third", 5))[0] is Claim.HELD
            await store.put([Put("a", b"mine", 5, owner="me")])
            claim, kept = await store.claim("a", "third", 5)
            assert (claim, kept and kept.value) == (Claim.ACQUIRED, b"mine")
            await store.put([Put("a", b"", 0, owner="third")])
            assert (await store.claim("a", "fourth", 5))[0] is Claim.ACQUIRED
            await store.release("a", "fourth")
            assert (await store.claim("a", "fifth", 5))[0] is Claim.ACQUIRED

    run(story())


def test_a_claim_heals(server: RedisServer) -> None:
    """The claim of an owner that died ends by itself; who comes late ends nobody else's."""

    async def story() -> None:
        async with store_at(server) as store:
            assert (await store.claim("a", "dead", 0.05))[0] is Claim.ACQUIRED
            assert (await store.claim("b", "brief", 0))[0] is Claim.ACQUIRED
            await asyncio.sleep(0.07)
            assert (await store.claim("a", "next", 5))[0] is Claim.ACQUIRED
            await store.release("a", "dead")
            await store.put([Put("a", b"late", 5, owner="dead")])
            assert (await store.claim("a", "third", 5))[0] is Claim.HELD
            assert (await store.claim("b", "third", 5))[0] is Claim.ACQUIRED

    run(story())


def test_only_what_is_still_this_is_forgotten(server: RedisServer) -> None:
    """`delete_if` compares the plain value, though each seal of it is another; a newer one stays."""

    async def story() -> None:
        async with store_at(server, NEW, OLD) as store, store_at(server, OLD, NEW) as other:
            await store.put([Put("a", b"bad token", 5), Put("b", b"bad token", 5)])
            await store.put([Put("a", b"bad token", 5)])
            await store.delete_if("a", b"other token")
            await store.delete_if("none", b"bad token")
            assert values(await store.get(["a", "b"])) == [b"bad token", b"bad token"]
            await other.delete_if("a", b"bad token")
            assert values(await store.get(["a", "b"])) == [None, b"bad token"]

    run(story())


def test_scripts_and_data_may_be_lost(server: RedisServer) -> None:
    """After FLUSHALL and SCRIPT FLUSH it all works on, without one failure."""
    seen = Seen()

    async def story() -> None:
        async with store_at(server, seen=seen) as store:
            for _ in range(2):
                assert await store.get(["a"]) == [None]
                assert await store.claim("a", "me", 5) == (Claim.ACQUIRED, None)
                await store.put([Put("a", b"x", 5, "me")])
                assert await store.windows.acquire_sliding_window_entry("k", 1, 60)
                assert values(await store.get(["a", "b"])) == [b"x", None]
                assert server.command("SCRIPT", "FLUSH") == b"+OK\r\n"
                server.flush()
        assert {outcome for _, outcome in seen.answers} == {"ok"}
        assert {operation for operation, _ in seen.answers} == {"get", "claim", "put", "hit"}

    run(story())


# What it never tells


def keys_of(server: RedisServer) -> list[bytes]:
    return [line for line in server.command("KEYS", "*").split(b"\r\n")[2::2] if line]


def test_the_server_learns_nothing(server: RedisServer) -> None:
    """In no key, value or dump is there any plain text of a value."""

    async def story() -> None:
        async with store_at(server) as store:
            await store.put(
                [Put("token", b"canary-4711", 60), Put("big", b"canary-4711" * 999, 60)]
            )
            await store.claim("token", "me", 60)
            await store.delete_if("token", b"not the canary-4711")

    run(story())
    names = keys_of(server)
    assert sorted(names) == [b"{broker:big}", b"{broker:token}", b"{broker:token}:claim"]
    for name in names:
        for command in ("GET", "DUMP"):
            raw = server.command(command, name)
            assert len(raw) > 5
            assert b"canary" not in raw


def test_what_was_moved_or_changed_is_not_there(server: RedisServer) -> None:
    """A sealed value under another name, a shortened one, another's and one without an end are all
    "not there", which is no failure."""
    seen = Seen()

    async def story() -> None:
        async with store_at(server, seen=seen) as store:
            await store.put([Put("a", b"for a", 60), Put("b", b"for b", 60)])
            server.command("RENAME", "{broker:a}", "{broker:c}")
            server.command("SET", "{broker:d}", "some text", "PX", "9999")
            server.command("SET", "{broker:e}", "", "PX", "9999")
            server.command("COPY", "{broker:b}", "{broker:f}")
            server.command("PERSIST", "{broker:b}")
            assert await store.get(["a", "b", "c", "d", "e", "f"]) == [None] * 6
            assert await store.claim("c", "me", 5) == (Claim.ACQUIRED, None)
        assert {outcome for _, outcome in seen.answers} == {"ok"}

    run(story())


def test_rings_of_keys(server: RedisServer) -> None:
    """An older key of the ring still opens, a retired one does not; prefixes do not meet."""

    async def story() -> None:
        async with store_at(server, OLD) as old, store_at(server, NEW, OLD) as both:
            await old.put([Put("a", b"by old", 60)])
            assert values(await both.get(["a"])) == [b"by old"]
            await both.put([Put("b", b"by new", 60)])
            assert values(await old.get(["a", "b"])) == [b"by old", None]
        async with store_at(server, NEW) as new, store_at(server, NEW, prefix="other") as other:
            assert values(await new.get(["a", "b"])) == [None, b"by new"]
            assert await other.get(["b"]) == [None]

    run(story())


# What it does when the server does not


def test_every_call_ends_in_time(server: RedisServer) -> None:
    """Against a mute server each call ends within the deadline: on a connection that is there, on
    one to be made, and five hundred at once; a claim is ERROR, a release is silent."""

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
                    began = time.monotonic()
                    assert await store.claim("a", "me", 5) == (Claim.ERROR, None)
                    assert TIMEOUT <= time.monotonic() - began < TIMEOUT + SLACK
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


def test_three_failures_are_down_and_one_probe_brings_it_back() -> None:
    """One failure, or two with a success between, trips nothing; after three in a row no call goes
    out, each is refused at once; the server is told from a probe alone, and comes back by itself.
    One line each is logged, without the URL."""

    async def story(server: RedisServer) -> None:
        seen, clock = Seen(), VirtualClock()
        url = server.replace("redis://", "redis://canary-user:canary-word@")
        server.command("ACL", "SETUSER", "canary-user", "on", ">canary-word", "~*", "+@all")
        async with store_at(url, seen=seen, clock=clock, timeout=TIMEOUT) as store:
            assert await works(store)
            server.pause()
            for _ in range(FAILURES - 1):
                await down(store.get(["a"]))
            server.resume()
            assert await works(store)
            server.kill()
            for _ in range(FAILURES):
                await down(store.get(["a"]))
            assert seen.ups == [True, False]
            crowd = await asyncio.gather(*(down(store.get(["a"])) for _ in range(200)))
            assert sorted(crowd)[len(crowd) // 2] < 0.01  # a machine may stand still during one
            assert seen.answers["get", "down"] == 200
            assert (await store.claim("a", "me", 5))[0] is Claim.ERROR
            await clock.advance(2)
            assert seen.ups == [True, False]
            server.restart()
            server.command("ACL", "SETUSER", "canary-user", "on", ">canary-word", "~*", "+@all")
            before = server.command("INFO", "commandstats")
            assert b"cmdstat_eval" not in before
            await clock.advance(0.7)
            await until(lambda: seen.ups == [True, False, True])
            probed = server.command("INFO", "commandstats")
            assert b"cmdstat_set:calls=1," in probed
            assert await works(store)
            await clock.advance(60)
            assert b"cmdstat_set:calls=1," in server.command("INFO", "commandstats")

    with redis_server() as server, capture_logs() as lines:
        run(story(server))
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("store_down", "warning"), ("store_up", "warning"),
    ]  # fmt: skip
    assert lines[0]["cause"] == "ConnectionError"
    assert "canary" not in repr(lines)


def test_what_is_durable_is_told_later() -> None:
    """A durable put that failed is sent when the server is back, with the life that is left to it
    then; what died meanwhile, what was taken back and what is not durable is not."""

    async def story(server: RedisServer) -> None:
        seen, clock = Seen(), VirtualClock()
        async with store_at(server, seen=seen, clock=clock) as store:
            server.kill()
            await down(
                store.put(
                    [
                        Put("ended", b"old", 50, durable=True),
                        Put("brief", b"x", 5, durable=True),
                        Put("taken back", b"x", 100, durable=True),
                        Put("token", b"x", 100),
                    ]
                )
            )
            await down(store.put([Put("ended", b"yes", 100, durable=True)]))
            await down(store.delete_if("ended", b"old"))
            await down(store.delete_if("taken back", b"x"))
            await down(store.put([Put(f"many {n}", b"x", 100, durable=True) for n in range(250)]))
            clock.pass_(30)
            server.restart()
            await clock.advance(1)
            await until(lambda: seen.ups == [True, False, True])
            ended, *others = await store.get(["ended", "brief", "taken back", "token", "many 249"])
            assert ended is not None
            assert ended.value == b"yes"
            assert 65 < ended.seconds <= 70
            assert values(others) == [None, None, None, b"x"]

    with redis_server() as server:
        run(story(server))


def test_a_single_failure_is_made_up_for_too() -> None:
    """A durable put that failed once, while the store does not count as down, is told as well; a
    newer value under the name is not overwritten by it."""

    async def story(server: RedisServer) -> None:
        seen, clock = Seen(), VirtualClock()
        async with store_at(server, seen=seen, clock=clock) as store:
            server.kill()
            await down(store.put([Put("a", b"old", 100, durable=True)]))
            await down(store.put([Put("b", b"b", 100, durable=True)]))
            server.restart()
            await store.put([Put("a", b"new", 100)])
            await clock.advance(1)

            async def told() -> bool:
                return values(await store.get(["a", "b"])) == [b"new", b"b"]

            await until(told)
            assert seen.ups == [True]

    with redis_server() as server:
        run(story(server))


def test_what_comes_while_it_is_paid_is_still_owed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A newer value that failed while an older one was being sent is sent in its turn."""

    async def story(server: RedisServer) -> None:
        clock = VirtualClock()
        async with store_at(server, clock=clock) as store:
            server.kill()
            await down(store.put([Put("a", b"older", 100, durable=True)]))
            server.restart()
            send = store._send

            async def meanwhile(commands: Any) -> Any:
                monkeypatch.undo()
                answers = await send(commands)
                store._owe(Put("a", b"newer", 100, durable=True), clock.monotonic() + 100)
                return answers

            monkeypatch.setattr(store, "_send", meanwhile)
            await clock.advance(1)
            await until(lambda: not store._owed)
            assert values(await store.get(["a"])) == [b"newer"]

    with redis_server() as server:
        run(story(server))


def test_what_is_owed_is_bounded() -> None:
    """Of more than it may remember for a server that is gone, the newest are kept."""

    async def story() -> None:
        async with store_at(f"redis://127.0.0.1:{free_port()}", clock=VirtualClock()) as store:
            await down(store.put([Put(f"{n}", b"", 9, durable=True) for n in range(MOST_OWED + 9)]))
            assert len(store._owed) == MOST_OWED
            assert next(iter(store._owed)) == "9"

    run(story())


def test_a_restart_on_the_same_port_heals_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed and started again, the server is used again within two seconds, by the real clock."""
    monkeypatch.undo()

    async def story(server: RedisServer) -> None:
        async with store_at(server) as store:
            await store.put([Put("a", b"x", 60)])
            server.kill()
            for _ in range(5):
                assert await down(store.get(["a"])) < PATIENT / 2
            server.restart()
            began = time.monotonic()
            await until(lambda: works(store))
            assert time.monotonic() - began < 2
            assert await store.get(["a"]) == [None]

    with redis_server() as server:
        run(story(server))


def test_a_stopped_server_heals_by_itself(server: RedisServer) -> None:
    """So does one that was mute for a while; what it answers late is nobody's."""

    async def story() -> None:
        async with store_at(server, timeout=TIMEOUT) as store:
            await store.put([Put("a", b"a", 60), Put("b", b"b", 60)])
            server.pause()
            for _ in range(FAILURES):
                await down(store.get(["a"]))
            server.resume()
            await until(lambda: works(store))
            assert values(await store.get(["b"])) == [b"b"]

    run(story())


@contextlib.asynccontextmanager
async def proxy(delay: Callable[[], float], port: Callable[[], int]) -> AsyncIterator[str]:
    """Passes everything on, each answer after `delay()` seconds; new connections to `port()`."""
    tasks = Tasks()

    async def carry(reader: Any, writer: Any, wait: Callable[[], float]) -> None:
        try:
            while data := await reader.read(65536):
                await asyncio.sleep(wait())
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()

    async def serve(reader: Any, writer: Any) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port())
        tasks.spawn(carry(there, writer, delay))
        tasks.spawn(carry(reader, back, lambda: 0.0))

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        await tasks.close()
        await asyncio.sleep(0.01)


def test_no_answer_is_taken_for_another_s(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a line that is now and then slower than the deadline, with callers who leave at any
    moment, whoever gets an answer gets their own: 1000 calls, of which many are late."""
    draw = random.Random(4711)
    monkeypatch.setattr("broker.state.redis_store.FAILURES", 10**9)  # not about the guard

    async def story() -> None:
        got: Counter[str] = Counter()

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
                await asyncio.wait((asked,), timeout=draw.choice([0.001, 0.01, 1, 1]))
                got["left"] += not asked.done()
                asked.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asked

        slow = lambda: draw.choice([0, 0, 0, 0, 0, 0.002, 0.1])  # noqa: E731
        async with proxy(slow, lambda: server.port) as url, store_at(url, timeout=0.05) as store:
            async with store_at(server) as near:
                await near.put([Put(str(n), str(n).encode(), 60) for n in range(50)])
            await asyncio.gather(*(caller(store, 40 * n) for n in range(25)))
        assert got["right"] > 10, got
        assert got["down"] > 10, got
        assert got["left"] > 10, got

    run(story())


def test_a_probe_may_take_longer_than_a_call(server: RedisServer) -> None:
    """A server that is slower than a call may be, as after a cold start, is still found to be back:
    nobody waits for the probe."""
    seen, slow = Seen(), 0.2

    async def story() -> None:
        nonlocal slow
        async with (
            proxy(lambda: slow, lambda: server.port) as url,
            store_at(url, seen=seen, timeout=0.1) as store,
        ):
            for _ in range(FAILURES):
                await down(store.get(["a"]))
            await until(lambda: seen.ups == [True, False, True], 2)
            slow = 0.0
            await until(lambda: works(store), 2)

    run(story())


def test_a_name_that_moved_is_followed(server: RedisServer) -> None:
    """Where a server was demoted to a replica, but keeps its connections, and its name now leads to
    another one, the store goes there: what is probed is a new connection."""

    async def story(new: RedisServer) -> None:
        place = server.port
        async with proxy(lambda: 0.0, lambda: place) as url, store_at(url) as store:
            await store.put([Put("a", b"x", 60)])
            server.command("REPLICAOF", "127.0.0.1", "1")
            place = new.port
            for _ in range(FAILURES):
                await down(store.put([Put("a", b"y", 60)]))
            await until(lambda: works(store))
            await store.put([Put("a", b"z", 60)])
            assert b"{broker:a}" in keys_of(new)

    try:
        with redis_server() as new:
            run(story(new))
    finally:
        server.command("REPLICAOF", "NO", "ONE")


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
            assert store._places._value == 32
            pool = store._line.client.connection_pool
            assert not pool._in_use_connections
            clients = server.command("CLIENT", "LIST").count(b"cmd=eval")
            assert 1 <= clients <= 32

    run(story())


def test_whatever_the_server_says_is_no_outage() -> None:
    """A wrong password, none, a server that is full, one that became a replica, and a value of
    another type are StoreDown and ERROR at once; full and replica are found out by the probe, which
    writes, so that the store is not called up because it can be read."""

    async def story(server: RedisServer) -> None:
        for userinfo in ("", ":wrong@", "nobody:secret@"):
            async with store_at(server.replace("://", f"://{userinfo}")) as store:
                assert await down(store.get(["a"])) < PATIENT / 2
                assert await store.claim("a", "me", 5) == (Claim.ERROR, None)
        seen = Seen()
        url = server.replace("://", "://:right@")
        async with store_at(url, seen=seen) as store:
            server.command("LPUSH", "{broker:list}", "x", password="right")
            await down(store.get(["list"]))
            await store.put([Put("a", b"x", 60)])
            for spoil, mend in (
                (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
                (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
            ):
                server.command(*spoil, password="right")
                assert values(await store.get(["a"])) == [b"x"]
                for _ in range(FAILURES):
                    assert (await store.claim("b", "me", 5))[0] is Claim.ERROR
                await asyncio.sleep(0.3)
                assert seen.ups[-1] is False
                server.command(*mend, password="right")
                await until(lambda: works(store))
        assert {outcome for _, outcome in seen.answers} == {"ok", "error", "down"}

    with redis_server("--requirepass", "right") as server:
        run(story(server))


def test_nobody_there() -> None:
    """A port where nobody listens is StoreDown at once, for each way to be a server."""

    async def story() -> None:
        for scheme, more in (
            ("redis", ""),
            ("redis+cluster", ""),
            ("redis+sentinel", "?service=m"),
        ):
            async with store_at(f"{scheme}://127.0.0.1:{free_port()}{more}") as store:
                assert await down(store.get(["a", "b"])) < PATIENT / 2
                assert await store.claim("a", "me", 5) == (Claim.ERROR, None)

    run(story())


def test_after_the_end(server: RedisServer) -> None:
    """A closed store opens no connection for a call that comes late."""

    async def story() -> None:
        async with store_at(server) as store:
            assert await works(store)
            await store.close()
            await down(store.get(["a"]))
            assert (await store.claim("a", "me", 5))[0] is Claim.ERROR
            assert b"cmd=eval" not in server.command("CLIENT", "LIST")

    run(story())


# Other ways to be a server


class Authority:
    """Certificates for loopback, as files."""

    def __init__(self, place: Path, name: str, host: str = "127.0.0.1") -> None:
        self.ca = place / f"{name}-ca.pem"
        self.key = place / f"{name}.key"
        self.certificate = place / f"{name}.pem"
        ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        san = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
        self.ca.write_bytes(self._signed(ca_name, ca_key, ca_name, ca_key, None))
        self.certificate.write_bytes(self._signed(x509.Name([]), key, ca_name, ca_key, san))
        self.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )

    def _signed(self, subject: Any, key: Any, issuer: Any, by: Any, san: Any) -> bytes:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=san is None, path_length=None), critical=True)
        )
        if san is not None:
            builder = builder.add_extension(san, critical=True)
        return builder.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def options(self, *, client: bool = False) -> list[str]:
        return [
            "--tls-cert-file", str(self.certificate), "--tls-key-file", str(self.key),
            "--tls-ca-cert-file", str(self.ca), "--tls-auth-clients", "yes" if client else "no",
        ]  # fmt: skip


def test_tls(tmp_path: Path) -> None:
    """Over TLS 1.2 or later, to a server that the named authorities vouch for, for this address;
    not where other authorities are named, or the system's are meant; not in plain text."""
    good, other = Authority(tmp_path, "good"), Authority(tmp_path, "other")
    moved = Authority(tmp_path, "moved", "127.0.0.2")

    async def story(url: RedisServer) -> None:
        async with store_at(url, ca_file=str(good.ca)) as store:
            await store.put([Put("a", b"x", 60)])
            assert values(await store.get(["a"])) == [b"x"]
        async with store_at(url.replace("redis", "valkey"), ca_file=str(good.ca)) as store:
            assert values(await store.get(["a"])) == [b"x"]
        for ca_file in (str(other.ca), None):
            async with store_at(url, ca_file=ca_file) as store:
                assert await down(store.get(["a"])) < PATIENT / 2
        async with store_at(url.replace("rediss", "redis")) as store:
            await down(store.get(["a"]))

    with redis_server(*good.options(), scheme="rediss") as url:
        run(story(url))

    async def elsewhere(url: RedisServer) -> None:
        async with store_at(url, ca_file=str(moved.ca)) as store:
            await down(store.get(["a"]))

    with redis_server(*moved.options(), scheme="rediss") as url:
        run(elsewhere(url))


def test_unusable_authorities_end_the_start(tmp_path: Path) -> None:
    """A ca_file that is not there or is none is a fault of the configuration."""
    (tmp_path / "noise.pem").write_text("noise")
    for name in ("missing.pem", "noise.pem"):
        with pytest.raises(ConfigError, match=r"/state/ca_file: cannot be read"):
            RedisStore(
                Secret("rediss://h"), Vault([]), SystemClock(), Seen(), Tasks().spawn,
                ca_file=str(tmp_path / name),
            )  # fmt: skip


def test_a_unix_socket(tmp_path: Path) -> None:
    """A path is an address too, with a database behind it."""

    async def story(path: Path) -> None:
        async with store_at(f"unix://{path}?db=3") as store:
            await store.put([Put("a", b"x", 60)])
            assert values(await store.get(["a"])) == [b"x"]

    path = tmp_path / "redis.sock"
    with redis_server("--unixsocket", str(path)) as server:
        run(story(path))
        assert b"db3:keys=1" in server.command("INFO", "keyspace")


def test_sentinels_name_the_master() -> None:
    """The master is asked for where sentinels are, mute ones passed over; when it stops, the store
    follows to the replica that took its place, by itself."""

    async def story(url: str, master: RedisServer, replica: RedisServer) -> None:
        async with store_at(url, timeout=0.4) as store:
            await store.put([Put("a", b"x", 60)])
            assert b"db2:keys=" in master.command("INFO", "keyspace")
            await until(lambda: b"db2:keys=" in replica.command("INFO", "keyspace"))
            assert await store.windows.acquire_sliding_window_entry("k", 1, 60)
            master.pause()

            async def written() -> bool:
                return (await store.claim(f"b{time.monotonic()}", "me", 5))[0] is Claim.ACQUIRED

            await until(written, 12)
            assert values(await store.get(["a"])) == [b"x"]
            assert b"role:master" in replica.command("INFO", "replication")

    with (
        redis_server() as mute,
        redis_server("--repl-diskless-sync-delay", "0") as master,
        redis_server("--replicaof", "127.0.0.1", str(master.port)) as replica,
    ):
        deadline = time.monotonic() + 5
        while b"state=online" not in master.command("INFO", "replication"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with redis_sentinel(master) as url:
            mute.pause()
            deadline = time.monotonic() + 15
            while b"num-slaves\r\n$1\r\n1" not in url.command("SENTINEL", "MASTERS"):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            several = url.replace("://", f"://127.0.0.1:{mute.port},").replace("/0?", "/2?")
            run(story(several, master, replica))


def test_a_cluster() -> None:
    """Over three masters: many names in one call, claims, counters; a value and its claim lie
    together. Where a master went mute, the store follows to its replica by itself; a slot
    that is nobody's is no reason to leave the others."""

    async def story(url: str, nodes: list[RedisServer]) -> None:
        async with store_at(url, timeout=0.5) as store:
            names = [f"name-{n}" for n in range(60)]
            await store.put([Put(name, name.encode(), 60) for name in names])
            assert values(await store.get(names)) == [name.encode() for name in names]
            for name in names[:10]:
                assert (await store.claim(name, "me", 5))[0] is Claim.ACQUIRED
            await store.put([Put(name, b"", 60, "me") for name in names[:10]])
            for name in names[:10]:
                assert (await store.claim(name, "you", 5))[0] is Claim.ACQUIRED
            await store.delete_if(names[0], b"")
            assert await store.get(names[:1]) == [None]
            assert await store.windows.acquire_sliding_window_entry("k", 1, 60)
            assert not await store.windows.acquire_sliding_window_entry("k", 1, 60)
            lying = [set(keys_of(node)) for node in nodes[:3]]
            assert all(lying)
            for keys in lying:
                claims = {key for key in keys if key.endswith(b":claim")}
                assert claims <= {key + b":claim" for key in keys} | {b"{broker:name-0}:claim"}
            there = lying[1] | lying[2]
            other = next(n for n in names if f"{{broker:{n}}}".encode() in there)
            gone = next(n for n in names[10:] if f"{{broker:{n}}}".encode() in lying[0])
            for node in nodes:
                node.command("CLUSTER", "DELSLOTS", "0")
            lost = b"cluster_slots_assigned:16383"
            await until(lambda: all(lost in node.command("CLUSTER", "INFO") for node in nodes[:3]))
            async with store_at(url) as fresh:
                assert None not in await fresh.get(names[10:])
            nodes[0].pause()
            assert await down(store.get([gone])) < 0.5 + SLACK

            async def followed() -> bool:
                try:
                    await store.get([other])  # so that it never fails three times in a row
                    return values(await store.get([gone])) == [gone.encode()]
                except StoreDown:
                    return False

            await until(followed, 12)
            assert b"role:master" in nodes[3].command("INFO", "replication")
            nodes[0].resume()

    with redis_cluster() as (url, nodes):
        run(story(url, nodes))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the extra is not installed, the start ends with what to install."""
    for name in [name for name in sys.modules if name.split(".")[0] == "redis"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"needs the extra: pip install token-broker\[redis\]"):
        RedisStore(Secret("redis://h"), Vault([]), SystemClock(), Seen(), Tasks().spawn)


# Where it is


def told(address: Address) -> dict[str, Any]:
    usual = Address("single", tls=False)
    fields = {name: getattr(address, name) for name in Address.__slots__}
    for name in ("password", "sentinel_password"):
        fields[name] = fields[name].reveal()
    return {
        name: value
        for name, value in fields.items()
        if value not in (getattr(usual, name), "") or name == "kind"
    }


H = ("h", 6379)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", {"hosts": (H,)}),
        ("REDIS://h:1/2", {"hosts": (("h", 1),), "db": 2}),
        ("redis://h/?db=2", {"hosts": (H,), "db": 2}),
        ("valkey://h", {"hosts": (H,)}),
        ("valkeys://h", {"hosts": (H,), "tls": True}),
        ("rediss://:p%40%2f@[::1]:7", {"hosts": (("::1", 7),), "tls": True, "password": "p@/"}),
        ("redis://u:p:q@h", {"hosts": (H,), "username": "u", "password": "p:q"}),
        ("redis://[fe80::1]", {"hosts": (("fe80::1", 6379),)}),
        ("unix:///run/a%20b.sock?db=1", {"kind": "unix", "path": "/run/a b.sock", "db": 1}),
        ("unix://u:p@/s", {"kind": "unix", "path": "/s", "username": "u", "password": "p"}),
        (
            "redis+sentinel://u:p@a,b:7/3?service=m&sentinel_username=s&sentinel_password=t%26",
            {
                "kind": "sentinel", "hosts": (("a", 26379), ("b", 7)), "db": 3, "service": "m",
                "username": "u", "password": "p",
                "sentinel_username": "s", "sentinel_password": "t&",
            },
        ),
        ("valkeys+sentinel://a?service=m",
         {"kind": "sentinel", "tls": True, "hosts": (("a", 26379),), "service": "m"}),
        ("rediss+cluster://a:1,b,[::2]:3/0",
         {"kind": "cluster", "tls": True, "hosts": (("a", 1), ("b", 6379), ("::2", 3))}),
    ],
)  # fmt: skip
def test_what_a_url_says(url: str, expected: dict[str, Any]) -> None:
    """Each form of address, and what it means."""
    assert told(parse_address(url)) == {"kind": "single", **expected}


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("", "a URL is wanted"),
        ("canary", "a URL is wanted"),
        ("http://canary", "a URL is wanted"),
        ("redis:canary", "a URL is wanted"),
        ("rediss+unix:///canary", "a URL is wanted"),
        ("redis://", "a host is wanted"),
        ("redis:///2", "a host is wanted"),
        ("redis://:canary@", "a host is wanted"),
        ("redis://::canary", "a host is wanted"),
        ("redis://[::canary", "a host is wanted"),
        ("redis://[::1]canary", "a host is wanted"),
        ("redis://h:canary", "a port"),
        ("redis://h:0", "a port"),
        ("redis://h:65536", "a port"),
        ("redis://h:٣", "a port"),
        ("redis://h/canary", "the number of a database"),
        ("redis://h/-1", "the number of a database"),
        ("redis://:can#ary@h", "percent-encoded"),
        ("redis://:can/ary@h", "percent-encoded"),
        ("redis://:can@ary@h", "percent-encoded"),
        ("redis://:can ary@h", "percent-encoded"),
        ("redis://:canary\n@h", "percent-encoded"),
        ("redis://:can?ary@h", "a host is wanted|percent-encoded|name=value|a port"),
        ("redis://h?canary", "name=value"),
        ("redis://h?canary=1", "an option that is not known here, or twice; known: db"),
        ("redis://h?db=1&db=2", "twice"),
        ("redis://a,b", "several hosts"),
        ("redis+sentinel://a,b", "service"),
        ("redis+sentinel://a?service=", "service"),
        ("redis+cluster://a/1", "the database 0 only"),
        ("redis+cluster://a?db=1", "known: none"),
        ("unix://canary", "absolute path"),
        ("unix://canary/x", "absolute path"),
        ("unix:///x?db=canary", "the number of a database"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_url(url: str, fault: str) -> None:
    """Each fault is told in words, none repeats the URL; it ends the start."""
    with pytest.raises(ConfigError, match=fault) as caught:
        RedisStore(Secret(url), Vault([]), SystemClock(), Seen(), Tasks().spawn)
    assert caught.value.faults[0].pointer == "/state/url"
    assert "canary" not in f"{caught.value!r}{caught.value}".replace("'", "")
    assert caught.value.__cause__ is None


SCHEMES = st.sampled_from(
    ["redis", "rediss", "unix", "redis+sentinel", "redis+cluster", "valkey", "x"]
)


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],  # of a machine with other work
)
@given(SCHEMES, st.text(alphabet="a1:@/?#[]%,=&.é \n\ud800", max_size=24))
@example("redis", "[::1")
@example("redis+sentinel", "a?service=%")
def test_a_url_that_is_noise(scheme: str, noise: str) -> None:
    """The parser raises its own error only, whose text is one of a few."""
    try:
        parse_address(f"{scheme}://{noise}")
    except ValueError as exc:
        fault = str(exc)
        assert fault.isascii()
        assert len(noise) < 6 or noise not in fault
