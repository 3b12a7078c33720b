"""Several replicas over one store, and each of them without it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import orjson

from broker.flights import Tasks
from broker.model import Acted
from broker.state import State, Vault
from broker.state.records import Endings
from broker.state.store import Kept
from tests.harness import Broker, broker, problem
from tests.support import DictStore, VirtualClock, settle


class Two:
    """Two replicas, the store between them and the clock of all three."""

    def __init__(self, a: Broker, b: Broker, store: DictStore, clock: VirtualClock) -> None:
        self.a, self.b, self.store, self.clock = a, b, store, clock

    @property
    def minted(self) -> int:
        """Sessions that were made upstream."""
        return len(self.a.nmi.bodies) + len(self.b.nmi.bodies) - 1000


@contextlib.asynccontextmanager
async def two() -> AsyncIterator[Two]:
    clock = VirtualClock()
    store = DictStore(clock)
    async with (
        broker(clock=clock, store=store) as a,
        broker(clock=clock, store=store) as b,
    ):
        b.nmi.bodies += [{}] * 1000  # so that their tokens differ
        yield Two(a, b, store, clock)


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
        assert (await world.a.end(known["handle"])).status_code == 204
        assert problem(await world.a.rotate(known["handle"])) == "handle-expired"

    run(story)


def test_a_replica_that_died_is_waited_for_half_the_budget() -> None:
    """Where a claim's owner is gone, the other one mints after half of the request's time."""

    async def story(world: Two) -> None:
        handle = (await world.a.mint()).json()["handle"]
        gone = asyncio.Event()

        async def never() -> None:
            await gone.wait()

        world.a.app._transport.before = never  # type: ignore[attr-defined]
        dead = asyncio.ensure_future(world.a.rotate(handle))
        await settle()
        assert world.store.claims
        waiting = asyncio.ensure_future(world.b.rotate(handle))
        await world.clock.advance(4.5)
        assert not waiting.done()
        await world.clock.advance(1)
        assert (await waiting).status_code == 201
        gone.set()
        await dead

    run(story)


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
