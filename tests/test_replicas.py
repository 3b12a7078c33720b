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
from broker.state.memory import CLAIM_SECONDS, RECENT_SECONDS
from broker.state.records import Endings
from broker.state.store import Claim, Kept, Put, StoreFailed
from tests.harness import CONFIG, Broker, broker, problem
from tests.support import AppTransport, DictStore, VirtualClock, settle


class Cord:
    """One replica's way to the store. Cut, nothing of what it asks for comes or goes any more: to
    the others, the replica was killed."""

    def __init__(self, store: DictStore) -> None:
        self._store = store
        self.windows = store.windows
        self.when_back = store.when_back
        self.missed = store.missed
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


# While the store is uncertain


CALLS: dict[str, Callable[[Broker, str], Awaitable[Any]]] = {
    "rotate": lambda one, handle: one.rotate(handle),
    "check": lambda one, handle: one.post("/v1/sessions/check", {"handle": handle}),
    "end": lambda one, handle: one.end(handle),
    "act": lambda one, handle: one.post("/v1/sessions/actions/any", {"handle": handle}),
    "key": lambda one, handle: one.mint(idempotency_key="k"),
}


@pytest.mark.parametrize("what", CALLS)
def test_whoever_has_time_waits_while_the_store_is_uncertain(what: str) -> None:
    """While calls to the store fail and it does not count as away, whoever shows a handle or a key
    waits. If nothing is certain within four seconds, they are told when to come again, and nothing
    was minted; nothing that promises more was said."""

    async def story(world: Two) -> None:
        handle = (await world.a.mint()).json()["handle"]
        minted = world.minted
        world.store.failing = True
        asked = asyncio.ensure_future(CALLS[what](world.b, handle))
        await world.clock.advance(3.9)
        assert not asked.done()
        await world.clock.advance(8)  # an end asks twice: is it over, and that it be known
        answer = await asked
        assert (answer.status_code, problem(answer)) == (503, "overloaded")
        assert 1 <= int(answer.headers["retry-after"]) <= 3
        assert world.minted == minted
        assert not world.store.claims

    run(story)


@pytest.mark.parametrize("what", CALLS)
@pytest.mark.parametrize("then", ["well", "away"])
def test_whoever_waited_goes_on_as_soon_as_it_is_certain(what: str, then: str) -> None:
    """The wait ends when the store works, or counts as away: then the call goes on, with it or
    alone."""
    expected = {"rotate": 201, "check": 200, "end": 204, "act": 409, "key": 201}

    async def story(world: Two) -> None:
        handle = (await world.a.mint()).json()["handle"]
        world.store.failing = True
        asked = asyncio.ensure_future(CALLS[what](world.b, handle))
        await world.clock.advance(2)
        assert not asked.done()
        world.store.failing, world.store.down = False, then == "away"
        await world.clock.advance(0.5)
        assert asked.done()
        alone = then == "away" and what == "end"
        assert (await asked).status_code == (503 if alone else expected[what])

    run(story)


def test_an_end_is_remembered_though_nothing_is_certain() -> None:
    """A replica that was told of an end while the store was uncertain tells it when it can, though
    the caller was put off: the chain is dead here at once, and there afterwards."""

    async def story(world: Two) -> None:
        handle = (await world.a.mint()).json()["handle"]
        world.store.failing = True
        asked = asyncio.ensure_future(world.a.end(handle))
        await world.clock.advance(12)
        assert (await asked).status_code == 503
        assert world.store.has_missed
        here = asyncio.ensure_future(world.a.rotate(handle))
        await world.clock.advance(12)
        assert (await here).status_code == 410
        await world.store.back()
        for one in (world.b, world.a):
            assert (await one.rotate(handle)).status_code == 410

    run(story)


def test_a_first_mint_waits_for_nothing() -> None:
    """Without a key, a mint goes on at once while the store is uncertain, and makes no promise that
    needs it."""

    async def story(world: Two) -> None:
        world.store.failing = True
        before = world.clock.monotonic()
        assert (await world.a.mint()).status_code == 201
        assert world.clock.monotonic() == before

    run(story)


def test_a_short_budget_is_waited_for_by_half() -> None:
    """Where a request may take two seconds, the store is waited for one."""
    text = CONFIG + "server: {request_budget: 2s}\n"

    async def story() -> None:
        clock = VirtualClock()
        store = DictStore(clock)
        async with broker(text, clock=clock, store=store) as one:
            handle = (await one.mint()).json()["handle"]
            store.failing = True
            asked = asyncio.ensure_future(CALLS["check"](one, handle))
            await clock.advance(0.9)
            assert not asked.done()
            await clock.advance(0.4)
            assert problem(await asked) == "overloaded"

    asyncio.run(story())


# An end that could not be told


def test_an_end_is_not_believed_until_all_know_it() -> None:
    """Ended while the store is away, a session is dead here at once, and the answer is 503 for as
    long as it is asked for; when the store has been told it is 204, once; on the other replica the
    handle is over for every use."""

    async def story(world: Two) -> None:
        handle = (await world.a.mint()).json()["handle"]
        world.store.down = True
        for _ in range(2):
            answer = await world.a.end(handle)
            assert (answer.status_code, problem(answer)) == (503, "overloaded")
            assert 2 <= int(answer.headers["retry-after"]) <= 3
        for what in ("rotate", "check", "act"):
            assert (await CALLS[what](world.a, handle)).status_code == 410
        assert (await CALLS["check"](world.b, handle)).status_code == 200
        await world.store.back()
        assert (await world.a.end(handle)).status_code == 204
        for one in (world.a, world.b):
            for what in ("rotate", "check", "end", "act"):
                answer = await CALLS[what](one, handle)
                assert (answer.status_code, problem(answer)) == (410, "handle-expired")

    run(story)


def test_an_end_that_failed_once_is_told_by_asking_again() -> None:
    """Where the store was only uncertain, and works again, whoever asks again is told 204."""

    async def story(world: Two) -> None:
        handle = (await world.a.mint()).json()["handle"]
        put = world.store.put

        async def fail(items: Sequence[Put]) -> list[bool]:
            raise StoreFailed

        world.store.put = fail  # type: ignore[method-assign]
        ending = asyncio.ensure_future(world.a.end(handle))
        await world.clock.advance(5)
        assert (await ending).status_code == 503
        world.store.put = put  # type: ignore[method-assign]
        assert (await world.a.end(handle)).status_code == 204
        assert (await world.b.rotate(handle)).status_code == 410

    run(story)


def test_whoever_read_of_an_end_tells_it_too() -> None:
    """Where the store was emptied and the replica where a session ended is gone, another one that
    had read of the end tells the store again."""

    async def story(world: Two) -> None:
        handle = (await world.a.mint()).json()["handle"]
        assert (await world.a.end(handle)).status_code == 204
        assert (await CALLS["check"](world.b, handle)).status_code == 410
        world.store.kept.clear()
        del world.store.told[0]  # the first one is a's
        await world.store.back()
        async with broker(clock=world.clock, store=world.store) as third:
            assert (await third.rotate(handle)).status_code == 410

    run(story)


def test_an_end_is_told_again_for_a_while() -> None:
    """What was told in the last seconds is told again while all is well: a server that took over
    and lacks its predecessor's last writes gets them; older ends are told only where all is."""

    async def story(world: Two) -> None:
        old = (await world.a.mint()).json()["handle"]
        assert (await world.a.end(old)).status_code == 204
        world.clock.pass_(RECENT_SECONDS + 0.1)
        new = (await world.a.mint()).json()["handle"]
        assert (await world.a.end(new)).status_code == 204
        world.clock.pass_(1)
        for everything, status in ((False, 200), (True, 410)):
            world.store.kept.clear()
            await world.store.back(everything=everything)
            async with broker(clock=world.clock, store=world.store) as third:
                world.store.told.pop()
                assert (await CALLS["check"](third, new)).status_code == 410
                assert (await CALLS["check"](third, old)).status_code == status

    run(story)


# Replicas that have acted alone


@pytest.mark.parametrize("what", ["rotate", "key"])
def test_replicas_that_acted_alone_agree_again(what: str) -> None:
    """Each made its own successor of one handle, or answer to one key, while the store was away:
    from when it is back, both give the one that was told first, and so does a third."""

    async def story(world: Two) -> None:
        handle = (await world.a.mint()).json()["handle"]

        async def token(one: Broker) -> str:
            answer: str = (await CALLS[what](one, handle)).json()["session_token"]
            return answer

        world.store.down = True
        first, second = await token(world.a), await token(world.b)
        assert first != second
        assert (await token(world.a), await token(world.b)) == (first, second)
        minted = world.minted
        await world.store.back()  # a is told first
        assert [await token(one) for one in (world.a, world.b)] == [first, first]
        async with broker(clock=world.clock, store=world.store) as third:
            assert await token(third) == first
        assert world.minted == minted

    run(story)


@pytest.mark.parametrize("what", ["rotate", "key"])
def test_what_was_made_alone_gives_way_to_what_is_there(what: str) -> None:
    """One that asked while the store was away, and finds it back with another's answer when it has
    made its own, gives its caller the other's."""

    async def story(world: Two) -> None:
        handle = (await world.a.mint()).json()["handle"]
        gate = world.hang_a()
        world.store.down = True
        asked = asyncio.ensure_future(CALLS[what](world.a, handle))
        await settle()
        await world.store.back()
        first = (await CALLS[what](world.b, handle)).json()["session_token"]
        gate.set()
        await world.clock.advance(1)
        assert (await asked).json()["session_token"] == first
        assert (await CALLS[what](world.a, handle)).json()["session_token"] == first
        assert not world.store.claims

    run(story)


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 250])
def test_all_is_told_again_in_batches(count: int) -> None:
    """However much there is to tell, all of it arrives, with the life that is left to it, in calls
    of a hundred at the most; a value that another told first stays, and is learned."""

    async def story() -> None:
        clock = VirtualClock()
        store = DictStore(clock)
        one, other = (State(clock, Tasks().spawn, Vault([]), store) for _ in range(2))
        sizes: list[int] = []
        put = store.put

        async def sized(items: Sequence[Put]) -> list[bool]:
            sizes.append(len(items))
            return await put(items)

        store.put = sized  # type: ignore[method-assign]
        for number in range(count):
            one.ended.noted(f"c{number}", True, 100)
            one.spent.noted(f"h{number}", True, 100)
        clock.pass_(30)
        await one._tell_again(store, True)
        assert sum(sizes) == 2 * count
        assert max(sizes, default=0) <= 100
        assert len(sizes) == 2 * -(-count // 100)
        for number in range(count):
            assert await other.ended.get(f"c{number}") is True
        assert all(until == clock.monotonic() + 70 for _, until in store.kept.values())

    asyncio.run(story())


def test_a_telling_that_failed_halfway_is_repeated() -> None:
    """Where the store fails between two batches, what tells it again says so; the next time all is
    told, and nothing was forgotten meanwhile."""

    async def story() -> None:
        clock = VirtualClock()
        store = DictStore(clock)
        state = State(clock, Tasks().spawn, Vault([]), store)
        for number in range(250):
            state.ended.noted(f"c{number}", True, 100)
        put, left = store.put, 2

        async def breaks(items: Sequence[Put]) -> list[bool]:
            nonlocal left
            if left == 0:
                raise StoreFailed
            left -= 1
            return await put(items)

        store.put = breaks  # type: ignore[method-assign]
        with pytest.raises(StoreFailed):
            await store.back()
        assert len(store.kept) == 200
        left = 9
        await store.back()
        assert len(store.kept) == 250
        assert len(state.ended.here) == 250

    asyncio.run(story())


def test_what_is_over_is_not_told_again() -> None:
    """What has died since is not told, and takes nothing's place."""

    async def story() -> None:
        clock = VirtualClock()
        store = DictStore(clock)
        state = State(clock, Tasks().spawn, Vault([]), store)
        state.ended.noted("brief", True, 10)
        state.ended.noted("long", True, 100)
        clock.pass_(50)
        await store.back()
        assert list(store.kept) == [state.ended.name("long")]

    asyncio.run(story())


def test_what_was_made_is_handed_over_with_patience() -> None:
    """A successor that was made while the store became uncertain is told for longer than anything
    else is waited for: where the store works again within that time, the other replica gives the
    same."""

    async def story(world: Two) -> None:
        handle = (await world.a.mint()).json()["handle"]
        gate = world.hang_a()
        asked = asyncio.ensure_future(world.a.rotate(handle))
        await settle()
        world.store.failing = True
        gate.set()
        await world.clock.advance(6)
        world.store.failing = False
        await world.clock.advance(1)
        token = (await asked).json()["session_token"]
        assert (await world.b.rotate(handle)).json()["session_token"] == token

    run(story)
