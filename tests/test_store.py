"""The shared store, at real servers: what it keeps, what it never tells, and where it may be. What it
does when the server is slow, mute, full, gone, strange or back stands in test_store_health."""

from __future__ import annotations

import asyncio
import ipaddress
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from broker.errors import ConfigError
from broker.flights import Tasks
from broker.model import Secret
from broker.schedule import SystemClock
from broker.state.addresses import Address, parse_address
from broker.state.redis_store import RedisStore
from broker.state.store import Claim, Put, StoreDown
from broker.state.vault import Vault
from tests.redis_server import RedisServer, redis_cluster, redis_sentinel, redis_server
from tests.stores import (
    NEW,
    OLD,
    PATIENT,
    SLACK,
    Seen,
    down,
    keys_of,
    outcome,
    run,
    store_at,
    until,
    values,
    works,
)


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    with redis_server() as url:
        yield url


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


def test_each_script_may_be_sent_twice(server: RedisServer) -> None:
    """A call whose answer was lost is made again: the same value, put by the same owner or as the
    only one, is "there" the second time too, the same owner has its claim again, and what was given
    back is not taken from whoever has it by then."""

    async def story() -> None:
        async with store_at(server) as store:
            twice = store._link.send

            async def send(commands: Any, line: Any = None) -> Any:
                await twice(commands, line)
                return await twice(commands, line)

            store._link.send = send  # type: ignore[method-assign]
            assert (await store.claim("a", "me", 60))[0] is Claim.ACQUIRED
            assert (await store.claim("a", "you", 60))[0] is Claim.HELD
            assert await store.extend("a", "me", 60)
            assert not await store.extend("a", "you", 60)
            assert await store.put([Put("a", b"mine", 60, "me")]) == [True]
            assert (await store.claim("a", "you", 60))[0] is Claim.ACQUIRED
            assert await store.put([Put("b", b"first", 60, only_new=True)]) == [True]
            assert await store.put([Put("b", b"second", 60, only_new=True)]) == [False]
            await store.release("a", "me")
            assert (await store.claim("a", "third", 60))[0] is Claim.HELD
            await store.release("a", "you")
            assert (await store.claim("a", "third", 60))[0] is Claim.ACQUIRED
            await store.delete_if("b", b"first")
            assert values(await store.get(["a", "b"])) == [b"mine", None]

    run(story())


def test_another_value_is_not_taken_for_the_same(server: RedisServer) -> None:
    """A put by an owner whose claim is over is refused where there is another value, and where
    another has the claim; also as one of many, each of which has its own answer. What is put
    without owner replaces."""

    async def story() -> None:
        async with store_at(server) as store:
            await store.put([Put("a", b"theirs", 60)])
            await store.claim("held", "you", 60)
            late = [
                Put("a", b"mine", 60, "me"),
                Put("a", b"theirs", 60, "me"),
                Put("a", b"mine", 60, only_new=True),
                Put("a", b"theirs", 60, only_new=True),
                Put("held", b"mine", 60, "me"),
                Put("free", b"mine", 60, "me"),
            ]
            assert await store.put(late) == [False, True, False, True, False, True]
            assert values(await store.get(["a", "held", "free"])) == [b"theirs", None, b"mine"]
            assert await store.put([Put("a", b"newer", 60)]) == [True]
            assert values(await store.get(["a"])) == [b"newer"]

    run(story())


def test_scripts_and_data_may_be_lost(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """After FLUSHALL and SCRIPT FLUSH it all works on, without one failure. (That the data are gone
    is noticed too, see test_store_health; here no beat comes in between.)"""
    seen = Seen()
    monkeypatch.setattr("broker.state.store_watch.BEAT_SECONDS", 600.0)

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
                return await outcome(store.put([Put("b", b"", 5)])) == "ok"

            await until(written)

            async def kept() -> bool:  # not at once: another server is told again first
                return await works(store) and values(await store.get(["a"])) == [b"x"]

            await until(kept)
            assert b"role:master" in replica.command("INFO", "replication")

    with (
        redis_server() as mute,
        redis_server("--repl-diskless-sync-delay", "0") as master,
        redis_server("--replicaof", "127.0.0.1", str(master.port)) as replica,
    ):
        deadline = time.monotonic() + 20
        while b"state=online" not in master.command("INFO", "replication"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with redis_sentinel(master) as url:
            mute.pause()
            deadline = time.monotonic() + 40
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
                    await store.get([other])  # which works all the time
                    return values(await store.get([gone])) == [gone.encode()]
                except StoreDown:
                    return False

            await until(followed)
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
