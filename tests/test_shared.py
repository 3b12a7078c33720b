"""Replicas that share access tokens: one token request for all, and none handed on that is bad.

Each replica is the real cache over the real sharing over the real token client; they have one token
endpoint and one store between them. The other end is played, time is virtual.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
import random
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import BrokerError, UpstreamRefused, UpstreamUnavailable
from broker.file import CredentialEntry
from broker.flights import Tasks
from broker.keyring import Keyring
from broker.kinds import SecretRef
from broker.metrics import Metrics
from broker.model import AccessToken, Priority, Secret
from broker.schedule import floor_of
from broker.shared import Shared
from broker.state import Vault
from broker.state.memory import CLAIM_SECONDS, Memory
from broker.state.records import Tokens
from broker.state.store import Again, Claim, Kept, Put, StoreDown
from broker.tokens import Cached
from broker.upstreams.oauth import OAuth
from tests.support import VirtualClock, settle
from tests.test_oauth import Through
from tests.test_tokens import Endpoint

TIMEOUT = 8.0


class OneStore:
    """A `Store` in this process, by its Protocol, that can be down and counts the claims."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.down = False
        self.kept: dict[str, tuple[bytes, float]] = {}
        self.claims: dict[str, tuple[str, float]] = {}
        self.claimed: list[float] = []

    def _up(self) -> None:
        if self.down:
            raise StoreDown

    def when_back(self, again: Again) -> None: ...

    def missed(self) -> None: ...

    def _get(self, name: str) -> Kept | None:
        value, until = self.kept.get(name, (b"", 0.0))
        left = until - self._clock.monotonic()
        return Kept(value, left) if left > 0 else None

    async def get(self, names: Sequence[str]) -> list[Kept | None]:
        self._up()
        return [self._get(name) for name in names]

    async def put(self, items: Sequence[Put]) -> list[bool]:
        self._up()
        return [await self._put(item) for item in items]

    async def _put(self, item: Put) -> bool:
        if item.owner and self._holder(item.name) != item.owner and self._get(item.name):
            return False
        self.kept[item.name] = (item.value, self._clock.monotonic() + item.seconds)
        await self.release(item.name, item.owner)
        return True

    def _holder(self, name: str) -> str:
        owner, until = self.claims.get(name, ("", 0.0))
        return owner if until > self._clock.monotonic() else ""

    async def delete_if(self, name: str, value: bytes) -> None:
        self._up()
        if self.kept.get(name, (b"", 0.0))[0] == value:
            del self.kept[name]

    async def claim(self, name: str, owner: str, seconds: float) -> tuple[Claim, Kept | None]:
        if self.down:
            return Claim.ERROR, None
        if self._holder(name) not in ("", owner):
            return Claim.HELD, self._get(name)
        self.claimed.append(seconds)
        self.claims[name] = (owner, self._clock.monotonic() + seconds)
        return Claim.ACQUIRED, self._get(name)

    async def extend(self, name: str, owner: str, seconds: float) -> bool:
        if not self.down and self._holder(name) == owner:
            self.claims[name] = (owner, self._clock.monotonic() + seconds)
        return self.down or self._holder(name) == owner

    async def release(self, name: str, owner: str) -> None:
        if self.claims.get(name, ("", 0.0))[0] == owner:
            del self.claims[name]

    @property
    def windows(self) -> Any:
        raise NotImplementedError

    async def close(self) -> None: ...


class Replica:
    """One process: its cache, what shares for it, and its own share of nothing but the store."""

    def __init__(self, fleet: Fleet, draw: Callable[[], float], **entry: Any) -> None:
        clock = fleet.clock
        self.tasks = Tasks()
        self.metrics = Metrics()
        self.clock = clock
        declared = CredentialEntry(
            **{
                "token_url": "https://idp.test/token",
                "client_id": SecretRef(env="ID"),
                "client_secret": [SecretRef(env="SECRET")],
                "max_lifetime": "7d",
                **entry,
            }
        )
        env = {"ID": "us", "SECRET": "s3cret"}
        refs = [("/x", SecretRef(env=name)) for name in env]
        self.memory: Memory[AccessToken] = Memory(
            "token", Tokens(clock), clock, fleet.store, self.tasks.spawn, changes=True
        )
        source = OAuth(
            "checkout",
            declared,
            Keyring(refs, Path(), env),
            fleet.endpoint.transport,
            clock,
            self.metrics,
            Through(clock),  # type: ignore[arg-type]
            lambda text: hashlib.sha256(text.encode()).hexdigest(),
        )
        self.shared = Shared(
            source,
            self.memory,
            clock,
            self.metrics,
            "checkout",
            TIMEOUT,
            min_remaining=None,
            spawn=self.tasks.spawn,
        )
        self.cache = Cached(
            self.shared,
            clock,
            self.metrics,
            "checkout",
            min_remaining=None,
            spawn=self.tasks.spawn,
            draw=draw,
        )

    async def value(self, **wanted: Any) -> str:
        return (await self.cache.token(**wanted)).value.reveal()

    def count(self, outcome: str) -> float:
        labels = {"credential": "checkout", "outcome": outcome}
        found = self.metrics.registry.get_sample_value("broker_access_tokens_shared_total", labels)
        return found or 0.0


class Fleet:
    """Replicas over one store and one token endpoint."""

    def __init__(
        self, size: int, lifetime: float = 3600, draws: Sequence[float] = (0.5,), **entry: Any
    ) -> None:
        self.clock = VirtualClock()
        self.endpoint = Endpoint(self.clock, lifetime)
        self.store = OneStore(self.clock)
        self.draws = draws
        self.entry = entry
        self.replicas = [self.another() for _ in range(size)]

    def another(self, **entry: Any) -> Replica:
        draw = self.draws[len(getattr(self, "replicas", ())) % len(self.draws)]
        return Replica(self, lambda: draw, **{**self.entry, **entry})

    async def token(self, *numbers: int) -> str:
        """What these replicas hand out, where they agree."""
        asking = [asyncio.create_task(self.replicas[n].value()) for n in numbers]
        await self.clock.advance(1)
        (value,) = {await one for one in asking}
        return value

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.tasks.close()
        await self.endpoint.transport.close()


def run(work: Callable[[Fleet], Coroutine[Any, Any, None]], size: int = 2, **made: Any) -> None:
    async def main() -> None:
        fleet = Fleet(size, **made)
        try:
            await work(fleet)
        finally:
            await fleet.close()

    asyncio.run(main())


@pytest.mark.parametrize("size", [2, 5])
def test_a_fleet_that_starts_together_asks_once(size: int) -> None:
    """All replicas cold at once, with callers at each: one token request, one token."""

    async def work(fleet: Fleet) -> None:
        fleet.endpoint.slow = 0.5
        asking = [asyncio.create_task(one.value()) for one in fleet.replicas for _ in range(20)]
        await fleet.clock.advance(3)
        assert set(await asyncio.gather(*asking)) == {"token-1"}
        assert fleet.endpoint.count == 1
        assert sorted(one.count("adopted") for one in fleet.replicas) == [0.0] + [1.0] * (size - 1)
        assert sum(one.count("made") for one in fleet.replicas) == 1
        assert fleet.store.claimed == [CLAIM_SECONDS] * len(fleet.store.claimed)

    run(work, size=size)


@pytest.mark.parametrize("size", [2, 5])
def test_one_token_request_in_each_life(size: int) -> None:
    """Over twenty lives, with callers everywhere and each replica's own refresh point: requests are
    two thirds of a life apart, at the least, however many replicas there are."""
    draws = [random.Random(number).random() for number in range(size)]

    async def work(fleet: Fleet) -> None:
        while fleet.clock.monotonic() < 1000 + 20 * 3600:
            for replica in fleet.replicas:
                await settle(2)
                token = asyncio.create_task(replica.cache.token())
                await fleet.clock.advance(7)
                assert (await token).life.remaining(fleet.clock.monotonic()) > 30
        asked = fleet.endpoint.asked
        assert all(b - a >= 0.67 * 3600 for a, b in itertools.pairwise(asked))
        assert 20 <= len(asked) <= 30

    run(work, size=size, draws=draws)


def test_a_replica_that_joins_adopts() -> None:
    """One started later takes what is there, with the life that is left of it, and replaces it no
    sooner than the others."""

    async def work(fleet: Fleet) -> None:
        assert await fleet.token(0) == "token-1"
        await fleet.clock.advance(1999)
        fleet.replicas.append(fleet.another())
        token = await fleet.replicas[-1].cache.token()
        assert token.value.reveal() == "token-1"
        assert token.life.remaining(fleet.clock.monotonic()) == pytest.approx(1600)
        assert token.obtained == fleet.clock.monotonic()
        await fleet.clock.advance(695)
        assert fleet.endpoint.count == 1
        await fleet.clock.advance(10)
        assert fleet.endpoint.count == 2
        assert await fleet.token(0, 1) == "token-2"

    run(work, size=1)


def test_a_replica_that_joins_late_replaces() -> None:
    """A token that is due to be replaced still serves the first caller, and is replaced behind by
    another; one at its floor is not adopted."""

    async def work(fleet: Fleet) -> None:
        await fleet.token(0)
        fleet.replicas[0].cache._used = False
        await fleet.clock.advance(2899)
        fleet.replicas.append(fleet.another())
        assert await fleet.replicas[1].value() == "token-1"
        await fleet.clock.advance(1)
        assert await fleet.replicas[1].value() == "token-2"
        fleet.replicas[1].cache._used = False
        await fleet.clock.advance(3600 - 30)
        fleet.replicas.append(fleet.another())
        assert await fleet.replicas[2].value() == "token-3"

    run(work, size=1)


def test_min_fresh_is_met_by_what_is_shared_or_by_another() -> None:
    """A caller who wants more than the store's token has gets a new one; one who does not, adopts."""

    async def work(fleet: Fleet) -> None:
        await fleet.token(0)
        await fleet.clock.advance(999)
        assert await fleet.replicas[1].value(min_fresh=2600) == "token-1"
        assert await fleet.replicas[1].value(min_fresh=3000) == "token-2"
        assert await fleet.replicas[0].value(min_fresh=3000) == "token-2"
        assert fleet.endpoint.count == 2

    run(work)


def test_a_refresh_wants_another_token() -> None:
    """Whoever asks to replace a token is not given the same, however much of its life is left; one
    who asks because nothing is held is."""

    async def work(fleet: Fleet) -> None:
        shared = fleet.replicas[0].shared
        first = await shared.token()
        assert (await shared.token()).value == first.value
        assert (await shared.token(priority=Priority.REFRESH)).value.reveal() == "token-2"
        assert (await fleet.replicas[1].shared.token()).value.reveal() == "token-2"

    run(work)


def test_other_credentials_share_nothing() -> None:
    """Another scope, another address: another token."""

    async def work(fleet: Fleet) -> None:
        fleet.replicas += [
            fleet.another(scope=["a"]),
            fleet.another(token_url="https://other.test/token"),
        ]
        found = {await one.value() for one in fleet.replicas}
        assert len(found) == fleet.endpoint.count == 3

    run(work, size=1)


def test_a_refused_token_is_never_adopted_again() -> None:
    """After a 401 the token is gone here and from the store. Even where the store has it still, it
    is not taken; nor is one that another replica puts back."""

    async def work(fleet: Fleet) -> None:
        first, second = fleet.replicas
        await fleet.token(0, 1)
        kept = dict(fleet.store.kept)
        await fleet.clock.advance(10)
        first.cache.forget(older_than=fleet.clock.monotonic())
        await settle()
        assert fleet.store.kept == {}
        fleet.store.kept = kept
        assert await first.value() == "token-2"
        fleet.store.kept = kept
        await fleet.clock.advance(10)
        first.cache.forget(older_than=fleet.clock.monotonic())
        assert await first.value() == "token-3"
        second.cache.forget(older_than=fleet.clock.monotonic())
        assert await second.value() == "token-3"

    run(work)


def test_a_token_that_all_have_seen_refused_costs_one_request() -> None:
    """Each of five replicas has a burst of 401s: one token request for all."""

    async def work(fleet: Fleet) -> None:
        await fleet.token(*range(5))
        await fleet.clock.advance(10)
        sent = fleet.clock.monotonic()
        await fleet.clock.advance(1)
        asking = []
        for replica in fleet.replicas:
            for _ in range(20):
                replica.cache.forget(older_than=sent)
                asking.append(asyncio.create_task(replica.value()))
        await fleet.clock.advance(2)
        assert set(await asyncio.gather(*asking)) == {"token-2"}
        assert fleet.endpoint.count == 2

    run(work, size=5)


def test_a_late_401_evicts_nothing_newer() -> None:
    """Another replica has replaced the token already: the news that the old one is refused leaves
    the new one in the store, and here once it is adopted."""

    async def work(fleet: Fleet) -> None:
        first, second = fleet.replicas
        await fleet.token(0, 1)
        await fleet.clock.advance(10)
        sent = fleet.clock.monotonic()
        await fleet.clock.advance(10)
        second.cache.forget(older_than=sent)
        assert await second.value() == "token-2"
        first.cache.forget(older_than=sent)
        await settle()
        assert await first.value() == "token-2"
        first.cache.forget(older_than=sent)
        await settle()
        assert await first.value() == "token-2"
        fleet.replicas.append(fleet.another())
        assert await fleet.replicas[2].value() == "token-2"
        assert fleet.endpoint.count == 2

    run(work)


def test_without_the_store_each_asks_for_itself() -> None:
    """The store's failure is no outage: each replica has a token of its own, and the refreshes go
    on; when it is back they share again."""

    async def work(fleet: Fleet) -> None:
        fleet.store.down = True
        assert {await one.value() for one in fleet.replicas} == {"token-1", "token-2"}
        await fleet.clock.advance(3000)
        assert {await one.value() for one in fleet.replicas} == {"token-3", "token-4"}
        fleet.store.down = False
        await fleet.clock.advance(3000)
        assert {await one.value() for one in fleet.replicas} == {"token-5"}

    run(work)


@pytest.mark.parametrize("size", [2, 5])
def test_a_slow_endpoint_is_asked_once_too(size: int) -> None:
    """Where its answer takes nearly all of the time, no replica but the first asks: a claim lives
    for as long as whoever has it is at it."""

    async def work(fleet: Fleet) -> None:
        fleet.endpoint.slow = 0.9 * TIMEOUT
        asking = [asyncio.create_task(one.value()) for one in fleet.replicas]
        await fleet.clock.advance(3 * TIMEOUT)
        assert {await one for one in asking} == {"token-1"}
        assert fleet.endpoint.count == 1
        assert not fleet.store.claims

    run(work, size=size)


@pytest.mark.parametrize("ahead", [None, Priority.PREFETCH])
def test_who_waits_for_a_replica_that_died_waits_for_its_claim(ahead: Priority | None) -> None:
    """The claim's holder is gone: a person with no token waits until the claim is over, which is
    seconds and not the request's time, also where they join what a warm-up began; and so does what
    is fetched behind a good token, which makes the request that the claim stood for."""

    async def work(fleet: Fleet) -> None:
        clock, store = fleet.clock, fleet.store
        (first,) = fleet.replicas
        name = first.memory.name(first.shared._source.request_key())
        store.claims[name] = ("dead", clock.monotonic() + CLAIM_SECONDS)
        if ahead is not None:
            warming = asyncio.create_task(first.cache.token(priority=ahead))
            await settle()
        asking = asyncio.create_task(first.value())
        await clock.advance(CLAIM_SECONDS - 0.1)
        assert fleet.endpoint.count == 0
        await clock.advance(0.7)
        assert await asking == "token-1"
        if ahead is not None:
            assert (await warming).value.reveal() == "token-1"
        stale = (await first.cache.token()).obtained + 2700
        await clock.advance(stale - 1 - clock.monotonic())
        store.claims[name] = ("dead", stale + CLAIM_SECONDS)
        await clock.advance(CLAIM_SECONDS)
        assert fleet.endpoint.count == 1
        await clock.advance(2)
        assert fleet.endpoint.count == 2

    run(work, size=1)


def test_a_refresh_behind_holds_no_person() -> None:
    """A token reaches its floor while its refresh waits for a replica that was killed: whoever
    needs one then waits for the rest of the claim."""

    async def work(fleet: Fleet) -> None:
        clock, store = fleet.clock, fleet.store
        (first,) = fleet.replicas
        await fleet.token(0)
        first.cache._used = False
        await clock.advance(60 - 6.5 - 1)  # its floor is at six seconds
        name = first.memory.name(first.shared._source.request_key())
        store.claims[name] = ("dead", clock.monotonic() + CLAIM_SECONDS)
        assert await first.value() == "token-1"  # and a refresh begins
        await clock.advance(1)
        asking = asyncio.create_task(first.value())
        await settle()
        assert not asking.done()
        await clock.advance(CLAIM_SECONDS - 1 + 0.6)
        assert await asking == "token-2"

    run(work, size=1, lifetime=60)


def test_who_waits_in_vain_asks_alone() -> None:
    """Where another replica is at it for longer than a request may take, a token too many harms
    nobody: no caller is told that somebody else is busy."""

    async def work(fleet: Fleet) -> None:
        (first,) = fleet.replicas
        name = first.memory.name(first.shared._source.request_key())
        fleet.store.claims[name] = ("busy", math.inf)
        asking = asyncio.create_task(first.value())
        await fleet.clock.advance(TIMEOUT - 0.1)
        assert not asking.done()
        await fleet.clock.advance(0.7)
        assert await asking == "token-1"

    run(work, size=1)


def test_a_new_sealing_key_names_the_tokens_anew() -> None:
    """A replica whose ring has a new key in front shares with those that were started with it: all
    of them ask for one token in each life, and not each family for its own."""
    old, new = Secret("o" * 32), Secret("n" * 32)

    async def work(fleet: Fleet) -> None:
        first, second = fleet.replicas
        vaults = [Vault([old, new]), Vault([new, old])]
        for replica, vault in zip(fleet.replicas, vaults, strict=True):
            replica.shared._source._digest = vault.name_of  # type: ignore[attr-defined]
        names = [one.shared._source.request_key() for one in fleet.replicas]
        assert names[0] != names[1]
        vaults[0].replace([new, old])
        assert first.shared._source.request_key() == names[1]
        await fleet.token(0, 1)
        for _ in range(4 * 60):
            await fleet.clock.advance(60)
            assert await first.value() == await second.value()
        assert fleet.endpoint.count == 6

    run(work)


def test_other_lives_are_other_tokens() -> None:
    """Credentials that differ in the lives that are believed share nothing: a token carries that of
    its maker."""

    async def work(fleet: Fleet) -> None:
        fleet.replicas += [fleet.another(max_lifetime="5m"), fleet.another(default_lifetime="5m")]
        found = {await one.value() for one in fleet.replicas}
        assert len(found) == fleet.endpoint.count == 3

    run(work, size=1)


def test_a_failure_is_each_replicas_own() -> None:
    """The endpoint's refusal is told to whoever asked, the claim is free for the next at once, and
    nothing is left in the store."""

    async def work(fleet: Fleet) -> None:
        fleet.endpoint.failure = httpx2.Response(401, json={"error": "invalid_client"})
        for replica in fleet.replicas:
            with pytest.raises(UpstreamRefused):
                await replica.value()
        assert (fleet.endpoint.count, fleet.store.claims, fleet.store.kept) == (2, {}, {})

    run(work)


def test_an_outage_of_the_endpoint_costs_a_fleet_nothing() -> None:
    """Down for nine tenths of the rest: every caller of each replica is served throughout, and
    afterwards one request serves them all."""

    async def work(fleet: Fleet) -> None:
        await fleet.token(*range(5))
        await fleet.clock.advance(2900)
        fleet.endpoint.failure = httpx2.Response(503)
        until = fleet.clock.monotonic() + 0.9 * (3600 - 2901 - 30)
        while fleet.clock.monotonic() < until:
            assert {await one.value() for one in fleet.replicas} <= {"token-1", "token-2"}
            await fleet.clock.advance(5)
        fleet.endpoint.failure = None
        granted = len(fleet.endpoint.issued)
        for _ in range(60):
            for one in fleet.replicas:
                await one.value()
            await fleet.clock.advance(1)
        assert len(fleet.endpoint.issued) <= granted + 1

    run(work, size=5, draws=[0.1, 0.3, 0.5, 0.7, 0.9])


def test_what_another_fetched_is_judged_again() -> None:
    """In one process, two credentials of one key share a flight: what comes of it is not handed on
    to the one that has seen it refused."""

    class Fixed:
        def __init__(self, token: AccessToken) -> None:
            self.token = token

        async def once(self, key: str, work: Any, **how: Any) -> tuple[AccessToken, bool]:
            return self.token, False

        async def forget(self, key: str, value: AccessToken) -> None: ...

    async def work(fleet: Fleet) -> None:
        (first,) = fleet.replicas
        token = await first.shared.token()
        await fleet.clock.advance(1)
        first.shared.forget(older_than=fleet.clock.monotonic())
        first.shared._memory = Fixed(token)
        assert (await first.shared.token()).value.reveal() == "token-2"

    run(work, size=1)


STEPS = st.lists(
    st.tuples(st.just("advance"), st.integers(0, 4), st.floats(0.0, 0.4))
    | st.tuples(st.just("call"), st.integers(0, 4), st.just(0.0))
    | st.tuples(st.just("call"), st.integers(0, 4), st.just(0.0))
    | st.tuples(st.just("forget"), st.integers(0, 4), st.floats(0.0, 0.2))
    | st.tuples(st.just("refused"), st.integers(0, 4), st.just(0.0))
    | st.tuples(st.just("store"), st.integers(0, 1), st.just(0.0))
    | st.tuples(st.just("endpoint"), st.integers(0, 1), st.just(0.0))
    | st.tuples(st.just("slow"), st.integers(0, 0), st.floats(0.0, 0.3))
    | st.tuples(st.just("wall"), st.integers(0, 0), st.floats(-3600.0, 3600.0)),
    min_size=1,
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(lifetime=st.sampled_from([60.0, 900.0, 3600.0]), steps=STEPS)
def test_the_laws_hold_whatever_happens(
    lifetime: float, steps: list[tuple[str, int, float]]
) -> None:
    """Five replicas, callers, 401s early and late, the store and the endpoint up and down, the wall
    clock set: no token handed out is at its floor by true time, and none is handed out by a replica
    that has seen it refused."""

    async def work(fleet: Fleet) -> None:
        clock, endpoint = fleet.clock, fleet.endpoint
        refused: list[set[str]] = [set() for _ in range(5)]
        asking: list[asyncio.Task[None]] = []

        async def ask(number: int) -> None:
            known = set(refused[number])
            try:
                token = await fleet.replicas[number].cache.token()
            except BrokerError:
                return
            value = token.value.reveal()
            age = clock.monotonic() - endpoint.issued[value]
            assert lifetime - age > floor_of(lifetime) - 1e-6
            assert value not in known

        for step, number, size in steps:
            if step == "advance":
                await clock.advance(size * lifetime)
            elif step == "call":
                asking.append(asyncio.create_task(ask(number)))
                await settle(8)
            elif step == "forget":
                fleet.replicas[number].cache.forget(older_than=clock.monotonic() - size * lifetime)
            elif step == "refused" and (held := fleet.replicas[number].cache.peek()):
                await clock.advance(0.01)
                refused[number].add(held.value.reveal())
                fleet.replicas[number].cache.forget(older_than=clock.monotonic())
            elif step == "store":
                fleet.store.down = not number
            elif step == "endpoint":
                endpoint.failure = None if number else httpx2.Response(503)
            elif step == "slow":
                endpoint.slow = size * lifetime
            elif step == "wall":
                clock.step(size)
        await clock.advance(3 * lifetime)
        await asyncio.gather(*asking)

    run(work, size=5, lifetime=lifetime, draws=[0.0, 0.25, 0.5, 0.75, 0.99])


def test_it_is_told_for_whom() -> None:
    """The source hears the priority that was asked with, and a defect of the store's memory is no
    concern of its."""
    heard: list[Priority] = []

    class Source:
        async def token(
            self, *, min_fresh: float = 0.0, priority: Priority = Priority.PERSON
        ) -> AccessToken:
            heard.append(priority)
            raise UpstreamUnavailable

        def forget(self, *, older_than: float) -> None: ...

        def request_key(self) -> str:
            return "k"

    async def work(fleet: Fleet) -> None:
        (first,) = fleet.replicas
        first.shared._source = Source()
        for priority in Priority:
            with pytest.raises(UpstreamUnavailable):
                await first.shared.token(priority=priority)
        assert heard == list(Priority)

    run(work, size=1)
