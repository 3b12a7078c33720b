"""Several replicas over one store, and each of them without it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import httpx2
import orjson
import pytest

from broker.flights import Tasks
from broker.model import Acted
from broker.state import Memory, State, Vault
from broker.state.memory import CLAIM_SECONDS
from broker.state.records import Endings
from broker.state.store import Claim, Kept
from tests.harness import CONFIG, Broker, broker, problem
from tests.support import AppTransport, DictStore, VirtualClock, settle


class Cord:
    """One replica's way to the store. Cut, nothing of what it asks for comes or goes any more: to
    the others, the replica was killed."""

    def __init__(self, store: DictStore) -> None:
        self._store = store
        self.windows = store.windows
        self.when_back = store.when_back
        self.cut = False

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any) -> Any:
            if self.cut:
                await asyncio.get_running_loop().create_future()
            return await getattr(self._store, name)(*args)

        return call


class Two:
    """Two replicas, the store between them and the clock of all three."""

    def __init__(
        self, a: Broker, b: Broker, store: DictStore, clock: VirtualClock, cord: Cord
    ) -> None:
        """cord: between a and the store."""
        self.a, self.b, self.store, self.clock, self.cord = a, b, store, clock, cord

    @property
    def minted(self) -> int:
        """Sessions that were made upstream."""
        return len(self.a.nmi.bodies) + len(self.b.nmi.bodies) - 1000

    def hang_a(self) -> asyncio.Event:
        """Calls of a to its upstream wait for this before they are sent."""
        gate = asyncio.Event()
        transport = self.a.app._transport
        assert isinstance(transport, AppTransport)
        transport.before = gate.wait
        return gate


@contextlib.asynccontextmanager
async def two() -> AsyncIterator[Two]:
    clock = VirtualClock()
    store = DictStore(clock)
    cord = Cord(store)
    async with (
        broker(clock=clock, store=cord) as a,
        broker(clock=clock, store=store) as b,
    ):
        b.nmi.bodies += [{}] * 1000  # so that their tokens differ
        yield Two(a, b, store, clock, cord)
        cord.cut = False  # so that it can be closed


def run(story: Callable[[Two], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with two() as world:
            await story(world)

    asyncio.run(whole())


async def both(world: Two, one: Awaitable[object], other: Awaitable[object]) -> list[object]:
    """Both at once, while a little time passes."""
    tasks = [asyncio.ensure_future(one), asyncio.ensure_future(other)]
    for _ in range(20):
        await world.clock.advance(0.1)
    return [await task for task in tasks]


def test_one_handle_has_one_successor_on_all_replicas() -> None:
    """Tabs that rotate one handle on two replicas at once get the same session, for one mint; and
    so does who comes later, within the grace."""

    async def story(world: Two) -> None:
        handle = (await world.a.mint()).json()["handle"]
        one, other = await both(world, world.a.rotate(handle), world.b.rotate(handle))
        later = await world.b.rotate(handle)
        tokens = {answer.json()["session_token"] for answer in (one, other, later)}  # type: ignore[attr-defined]
        assert len(tokens) == 1
        assert world.minted == 2
        assert not world.store.claims

    run(story)


def test_a_successor_that_appears_between_two_looks_is_found() -> None:
    """Where the other replica wrote successor and mark while this one was reading, the successor is
    given, not a refusal."""

    async def story(world: Two) -> None:
        handle = (await world.a.mint()).json()["handle"]
        successor = (await world.a.rotate(handle)).json()["session_token"]
        get = world.store.get
        looks: list[list[str]] = []

        async def torn(names: Sequence[str]) -> list[Kept | None]:
            found = await get(names)
            looks.append([name.partition(":")[0] for name in names])
            if len(looks) == 1:
                return [
                    None if name.startswith("successor:") else one
                    for name, one in zip(names, found, strict=True)
                ]
            return found

        world.store.get = torn  # type: ignore[method-assign]
        assert (await world.b.rotate(handle)).json()["session_token"] == successor
        assert looks[:2] == [["ended", "successor", "spent"], ["successor"]]

    run(story)


def test_past_the_grace_a_spent_handle_is_dead_everywhere() -> None:
    """A handle that one replica rotated does not rotate on another once its grace is over."""

    async def story(world: Two) -> None:
        handle = (await world.a.mint()).json()["handle"]
        assert (await world.a.rotate(handle)).status_code == 201
        world.clock.pass_(61)
        assert problem(await world.b.rotate(handle)) == "handle-expired"

    run(story)


def test_an_idempotency_key_is_one_session_on_all_replicas() -> None:
    """The same key on two replicas, at once or later, is one mint; with another body it is 422."""

    async def story(world: Two) -> None:
        mint_a = world.a.mint(idempotency_key="k")
        one, other = await both(world, mint_a, world.b.mint(idempotency_key="k"))
        assert one.json()["session_token"] == other.json()["session_token"]  # type: ignore[attr-defined]
        assert world.minted == 1
        later = await world.b.mint(idempotency_key="k", token=world.b.jwt(merchant_id="999"))
        assert problem(later) == "invalid-parameters"

    run(story)


def test_an_end_is_known_everywhere() -> None:
    """A chain that ended on one replica does not rotate on the other."""

    async def story(world: Two) -> None:
        handle = (await world.a.mint()).json()["handle"]
        assert (await world.a.end(handle)).status_code == 204
        assert problem(await world.b.rotate(handle)) == "handle-expired"

    run(story)


def test_without_the_store_each_acts_alone() -> None:
    """While the store is down every use case answers, and what one replica knows it still knows."""

    async def story(world: Two) -> None:
        known = (await world.a.mint(idempotency_key="k")).json()
        world.store.down = True
        assert (await world.b.mint()).status_code == 201
        again = await world.a.mint(idempotency_key="k")
        assert again.json()["session_token"] == known["session_token"]
        assert (await world.b.rotate(known["handle"])).status_code == 201
        assert (await world.a.end(known["handle"])).status_code == 503
        assert problem(await world.a.rotate(known["handle"])) == "handle-expired"

    run(story)


async def _asked(one: Broker, what: str, handle: str) -> httpx2.Response:
    if what == "rotation":
        return await one.rotate(handle)
    answer: httpx2.Response = await one.mint(idempotency_key="k")
    return answer


@pytest.mark.parametrize("what", ["rotation", "key"])
def test_what_is_being_made_is_made_once_however_slow(what: str) -> None:
    """While the replica that mints is alive, nobody mints the same, though its upstream takes all
    of the request's time: who asks on another gets what it made, or, where that takes too long, is
    told when to come again; and then gets it."""

    async def story(world: Two) -> None:
        handle = (await world.b.mint()).json()["handle"]
        minted = world.minted
        gate = world.hang_a()
        first = asyncio.create_task(_asked(world.a, what, handle))
        await world.clock.advance(1)
        second = asyncio.create_task(_asked(world.b, what, handle))
        await world.clock.advance(7.9)
        assert not second.done()
        await world.clock.advance(0.7)
        told = await second
        assert problem(told) == "overloaded"
        assert 1 <= int(told.headers["retry-after"]) <= 2
        third = asyncio.create_task(_asked(world.b, what, handle))
        await settle()
        gate.set()
        await world.clock.advance(1)
        tokens = {(await one).json()["session_token"] for one in (first, third)}
        assert len(tokens) == 1
        assert world.minted == minted + 1
        assert (await _asked(world.a, what, handle)).json()["session_token"] in tokens
        assert not world.store.claims

    run(story)


@pytest.mark.parametrize("what", ["rotation", "key"])
def test_a_replica_that_died_is_waited_for_as_long_as_its_claim(what: str) -> None:
    """Where the claim's owner was killed the other one waits until the claim's life is over, then
    mints; until then it never does."""

    async def story(world: Two) -> None:
        handle = (await world.b.mint()).json()["handle"]
        minted = world.minted
        gate = world.hang_a()
        dead = asyncio.create_task(_asked(world.a, what, handle))
        await world.clock.advance(5)
        assert world.store.claims
        world.cord.cut = True
        waiting = asyncio.create_task(_asked(world.b, what, handle))
        await world.clock.advance(CLAIM_SECONDS * 2 / 3 - 0.1)
        assert not waiting.done()
        await world.clock.advance(CLAIM_SECONDS / 3 + 0.7)
        assert (await waiting).status_code == 201
        assert world.minted == minted + 1
        dead.cancel()
        gate.set()

    run(story)


def test_a_replica_that_stood_still_replaces_nothing() -> None:
    """One that was not heard of for longer than its claim lives, and mints after all, gives its
    caller what everybody else goes on with: what was made in its place."""

    async def story(world: Two) -> None:
        gate = world.hang_a()
        late = asyncio.create_task(world.a.mint(idempotency_key="k"))
        await settle()

        async def still(name: str, owner: str, seconds: float) -> bool:
            return True

        world.store.extend = still  # type: ignore[method-assign]
        await world.clock.advance(CLAIM_SECONDS + 1)
        kept = (await world.b.mint(idempotency_key="k")).json()["session_token"]
        gate.set()
        await world.clock.advance(1)
        assert world.minted == 2
        async with broker(clock=world.clock, store=world.store) as third:
            again = await third.mint(idempotency_key="k")
        later = await world.a.mint(idempotency_key="k")
        assert {one.json()["session_token"] for one in (await late, again, later)} == {kept}
        assert not world.store.claims

    run(story)


def test_a_claim_whose_answer_was_lost_is_given_back() -> None:
    """A claim that the store took, though all that was heard of it is an error: whoever it is for
    mints, and it is not left behind, whether the mint ended well or not."""

    async def story(world: Two) -> None:
        claim = world.store.claim

        async def unheard(name: str, owner: str, seconds: float) -> tuple[Claim, Kept | None]:
            await claim(name, owner, seconds)
            return Claim.ERROR, None  # the store counts as away from here on

        world.store.claim = unheard  # type: ignore[method-assign]
        assert (await world.a.mint(idempotency_key="k")).status_code == 201
        assert not world.store.claims
        world.a.nmi.answer = lambda _: httpx2.Response(422, json={})
        assert (await world.a.mint(idempotency_key="l")).status_code == 502
        assert not world.store.claims

    run(story)


def test_a_claim_outlives_no_replica_that_ends() -> None:
    """A replica that is stopped while it asks for a claim, or mints under one, gives it back."""

    async def story(turns: int) -> None:
        clock = VirtualClock()
        store = DictStore(clock)
        async with broker(clock=clock, store=store) as one:
            transport = one.app._transport
            assert isinstance(transport, AppTransport)
            transport.before = asyncio.Event().wait
            minting = asyncio.create_task(one.mint(idempotency_key="k"))
            await settle(turns)
            await one.app.close()
            minting.cancel()
            await asyncio.gather(minting, return_exceptions=True)
        assert not store.claims, turns

    for turns in range(40):
        asyncio.run(story(turns))


LIMITED = CONFIG.replace("    min_remaining", "    upstream_limit: 2/minute\n    min_remaining")


def test_one_budget_for_an_account_whatever_its_profiles_are_called() -> None:
    """While a configuration that renames a profile, or puts another in front of it, is rolled out,
    the replicas that have it and those that do not spend one `upstream_limit`."""
    renamed = LIMITED.replace("transactions:", "reports:")

    async def story() -> None:
        clock = VirtualClock()
        store = DictStore(clock)
        async with (
            broker(LIMITED, clock=clock, store=store) as old,
            broker(renamed, clock=clock, store=store) as new,
        ):
            assert [(await old.mint()).status_code for _ in range(2)] == [201, 201]
            waiting = asyncio.create_task(new.mint(profile="reports"))
            await clock.advance(3)
            assert problem(await waiting) == "overloaded"
            assert new.nmi.bodies == []

    asyncio.run(story())


def test_a_credential_and_a_profile_of_one_name_are_two() -> None:
    """Each has the whole of its own `upstream_limit`, and gauges of its own."""
    text = (
        LIMITED
        + """
credentials:
  transactions:
    token_url: https://idp.test/token
    client_id: {env: NMI_KEY}
    client_secret: {env: NMI_KEY}
    upstream_limit: 2/minute
    expose_to: [others]
"""
    )

    async def story() -> None:
        clock = VirtualClock()
        sessions = 0

        def upstream(request: httpx2.Request) -> httpx2.Response:
            nonlocal sessions
            if request.url.host == "idp.test":
                return httpx2.Response(500)
            sessions += 1
            return one.nmi.session(900)

        async with broker(text, upstream, clock=clock) as one:
            headers = {"authorization": f"Bearer {one.jwt(issuer='other-backend')}"}
            for _ in range(6):
                asking = asyncio.create_task(
                    one.client.get("/v1/access-tokens/transactions", headers=headers)
                )
                await clock.advance(20)
                assert (await asking).status_code == 503
                await clock.advance(70)
            assert [(await one.mint()).status_code for _ in range(2)] == [201, 201]
            assert sessions == 2
            assert one.sample("broker_circuit_state", upstream="token:transactions") == 2
            assert one.sample("broker_circuit_state", upstream="transactions") == 0

    asyncio.run(story())


def test_a_replica_that_fails_hands_over() -> None:
    """Where the claim's owner failed upstream, the one that waited tries for itself, at once."""

    async def story(world: Two) -> None:
        handle = (await world.a.mint()).json()["handle"]
        gate = asyncio.Event()

        async def fail() -> None:
            await gate.wait()
            raise OSError

        world.a.app._transport.before = fail  # type: ignore[attr-defined]
        failing = asyncio.ensure_future(world.a.rotate(handle))
        await settle()
        waiting = asyncio.ensure_future(world.b.rotate(handle))
        await settle()
        gate.set()
        await settle()
        await world.clock.advance(1)
        assert (await waiting).status_code == 201
        assert (await failing).status_code == 500

    run(story)


def test_what_a_session_has_left_crosses_replicas() -> None:
    """A session read from the store has the life it really has left, not that of when it was
    written, and is not handed out under its floor."""

    async def story(world: Two) -> None:
        first = (await world.a.mint(idempotency_key="k")).json()
        world.clock.pass_(500)
        again = (await world.b.mint(idempotency_key="k")).json()
        assert again["session_token"] == first["session_token"]
        assert again["expires_in"] == first["expires_in"] - 500
        world.clock.pass_(101)  # under five minutes are left
        assert (await world.b.mint(idempotency_key="k")).json()["expires_in"] == 900

    run(story)


def test_clocks_that_were_set_make_nothing_live_longer() -> None:
    """Where one of the store's count and the reader's wall clock is wrong, the other one holds: a
    record is never thought to live longer than it does."""

    async def story(world: Two) -> None:
        await world.a.mint(idempotency_key="k")
        for name, (value, until) in list(world.store.kept.items()):
            world.store.kept[name] = (value, until + 3600)  # the store's clock was set back
        world.clock.pass_(890)
        assert (await world.b.mint(idempotency_key="k")).json()["expires_in"] > 890
        assert world.minted == 2

    run(story)


def test_a_result_crosses_replicas_byte_for_byte() -> None:
    """What an upstream said verbatim comes out of the store as it went in, numbers of any size
    included."""
    body = b'{"amount": 1.10, "id": 36893488147419103233}'
    acted = Acted(200, "sid_1", orjson.Fragment(body), {"cryptogram": "x"}, "approved")
    codec = Endings()
    again = codec.read(codec.write(acted, 1), 1)
    assert orjson.dumps(again.output) == body
    assert (again.id, again.trusted, again.final) == ("sid_1", {"cryptogram": "x"}, "approved")


def test_look_ups_are_one_trip() -> None:
    """What a rotation must know first costs one round trip, and nothing where it is known here."""

    async def story() -> None:
        clock = VirtualClock()
        store = DictStore(clock)
        state, other = (State(clock, Tasks().spawn, Vault([]), store) for _ in range(2))
        await other.ended.put("c", True, 60)
        before = store.trips
        asked = ((state.ended, "c"), (state.successors, "h"), (state.spent, "h"))
        assert await state.look(*asked) == [True, None, None]
        assert store.trips == before + 1
        assert await state.look((state.ended, "c")) == [True]
        assert store.trips == before + 1

    asyncio.run(story())


def test_who_was_overtaken_waits_for_what_the_other_one_makes() -> None:
    """A replica that stood still for longer than its claim, and wakes while another is at it, gives
    its caller the other one's value; its own is told of as lost."""

    async def story() -> None:
        clock = VirtualClock()
        store = DictStore(clock)
        spawn = Tasks().spawn
        a, b = (State(clock, spawn, Vault([]), store).newest for _ in range(2))
        gates = {"a": asyncio.Event(), "b": asyncio.Event()}
        lost: list[str] = []

        async def making(memory: Memory[str], value: str) -> tuple[str, bool]:
            async def work() -> str:
                await gates[value].wait()
                return value

            return await memory.once("k", work, keep=lambda _: 60.0, patience=8.0, lost=lost.append)

        first = asyncio.create_task(making(a, "a"))
        await settle()
        store.claims.clear()  # it stood still, and its claim ended
        second = asyncio.create_task(making(b, "b"))
        await settle()
        gates["a"].set()
        await clock.advance(1)
        assert not first.done()
        gates["b"].set()
        await clock.advance(1)
        assert (await second, await first) == (("b", True), ("b", False))
        assert (lost, await a.get("k"), await b.get("k")) == (["a"], "b", "b")
        assert not store.claims

    asyncio.run(story())
