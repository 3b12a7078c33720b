"""One kind of thing that is remembered: here, and with a store by all replicas together.

What is here is looked at first, as most of what is remembered never changes. The store is asked for
the rest; while it is away, this process acts alone, which costs a mint more and never an answer.
What replicas must agree on is waited for until the store is known to be away, and told again when
it is back. Nothing here knows what a value means: its codec does.
"""

from __future__ import annotations

import hashlib
import random
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import structlog

from broker.errors import Overloaded
from broker.flights import Flights, Spawn
from broker.schedule import Clock
from broker.state.patience import Patience
from broker.state.records import Codec
from broker.state.remembered import MOST_ITEMS, Remembered
from broker.state.store import Claim, Kept, Put, Store, StoreDown, StoreFailed, Told

_log = structlog.get_logger("state")
V = TypeVar("V")
T = TypeVar("T")
_PAUSE = 0.05
"""Seconds between two looks for what another replica is making, doubled up to eight times that."""
_LONGEST_PAUSE = 0.4
CLAIM_SECONDS = 3.0
"""A claim's life, extended three times as often by its living owner: so what is claimed is being
done, and a replica that was killed is waited for no longer than this."""
RECENT_SECONDS = 3.0
"""What was told since is told once more: a server that takes over may lack its predecessor's last
second, and nobody learns of it."""
_MOST_RECENT = 10_000
_TRIES = 3
"""To tell of what was made, each as long as one is patient: it was made, and must not be lost."""
_BATCH = 100


@dataclass(frozen=True, slots=True)
class _Run(Generic[V]):
    """See `Memory.once`."""

    work: Callable[[], Coroutine[Any, Any, V]]
    keep: Callable[[V], float]
    patience: float
    fits: Callable[[V], bool]
    also: Callable[[], list[Put | None]]
    alone: bool
    lost: Callable[[V], None]


class Memory(Generic[V]):
    """From text to value, each for its own time."""

    def __init__(
        self,
        kind: str,
        codec: Codec[V],
        clock: Clock,
        store: Store | None,
        spawn: Spawn,
        *,
        most: int = MOST_ITEMS,
        changes: bool = False,
        patience: Patience | None = None,
        twice: bool = False,
    ) -> None:
        """changes: a value may be replaced, so that the store's is preferred to the one here.
        patience: for what replicas must agree on: whoever asks waits so long for a store that may
        be well, and a store that is back is told again. twice: see `RECENT_SECONDS`."""
        self._kind = kind
        self._codec = codec
        self._clock = clock
        self._store = store
        self._changes = changes
        self._patience = patience
        self._spawn = spawn
        self._twice = twice
        self._recent: deque[tuple[float, str]] = deque(maxlen=_MOST_RECENT)
        self._untold: Remembered[bool] = Remembered(clock)
        self.here: Remembered[V] = Remembered(clock, most)
        self._flights: Flights[str, tuple[V, bool]] = Flights(spawn)

    def name(self, key: str) -> str:
        """In the store: of one length, and telling nothing of the key."""
        return f"{self._kind}:{hashlib.sha256(key.encode()).hexdigest()[:40]}"

    async def get(self, key: str) -> V | None:
        found = self.here.get(key)
        if self._store is None or (found is not None and not self._changes):
            return found
        known = await self.fetch(key)
        return found if known is None else known

    async def fetch(self, key: str) -> V | None:
        """What the store has now; nothing where there is none or it is away. Raises Overloaded
        where replicas must agree and nothing is certain."""
        store = self._store
        if store is None:
            return None
        sent = self._clock.monotonic()
        try:
            (kept,) = await self._asked(lambda: store.get([self.name(key)]))
        except StoreDown:
            return None
        return self.learn(key, kept, sent)

    async def _asked(self, call: Callable[[], Awaitable[T]]) -> T:
        return await (call() if self._patience is None else self._patience.insist(call))

    def learn(self, key: str, kept: Kept | None, sent: float) -> V | None:
        """Takes over what the store had at monotonic `sent`."""
        if kept is None:
            return None
        left = kept.seconds - (self._clock.monotonic() - sent)
        if left <= 0:
            return None
        value, weight = self._read(kept.value, left)
        if value is not None:
            self.here.put(key, value, left, weight)
        return value

    async def put(self, key: str, value: V, seconds: float) -> bool:
        """Remembers `value` for `seconds`; not at all for zero or less. Do all replicas know it
        now, or will they learn it when they ask? Does not raise."""
        item = self.noted(key, value, seconds)
        if item is None or self._store is None:
            return True
        try:
            told = bool(await self._told(self._store, [item]))
        except Overloaded:
            told = False
        if told:
            self._untold.drop(key)
        else:
            self._untold.put(key, True, seconds)
        return told

    def is_untold(self, key: str) -> bool:
        """Could the store not be told of this when it was put, and whoever put it has not heard
        since that it could?"""
        return self._untold.get(key) is not None

    async def _told(self, store: Store, items: list[Put]) -> list[bool]:
        """For each, whether the store has it now; nothing where it is away. Raises Overloaded."""
        try:
            return await self._asked(lambda: store.put(items))
        except StoreDown:
            return []
        except BaseException:  # also where whoever asks has no more time
            if self._patience is not None:
                store.missed()
            raise

    async def tell_again(self, told: Told, everything: bool) -> None:
        """Tells a store what is remembered here; not everything is what it was told just now.

        Where the store has another value, that one counts from now on: replicas that have acted
        alone agree again. Raises what `told` raises."""
        keys = list(self.here) if everything else self._just_told()
        for start in range(0, len(keys), _BATCH):
            await self._tell_some(told, keys[start : start + _BATCH])

    def _just_told(self) -> list[str]:
        since = self._clock.monotonic() - RECENT_SECONDS
        while self._recent and self._recent[0][0] < since:
            self._recent.popleft()
        return [key for _, key in self._recent]

    async def _tell_some(self, told: Told, keys: Sequence[str]) -> None:
        items: dict[str, Put] = {}
        for key in keys:
            value, seconds = self.here.look(key)
            if value is not None:
                raw = self._codec.write(value, seconds)
                items[key] = Put(self.name(key), raw, seconds, only_new=True)
        if not items:
            return
        taken = await told.put(list(items.values()))
        others = [key for key, is_there in zip(items, taken, strict=True) if not is_there]
        sent = self._clock.monotonic()
        if others:
            kept = await told.get([self.name(key) for key in others])
            for key, one in zip(others, kept, strict=True):
                self.learn(key, one, sent)

    def noted(
        self, key: str, value: V, seconds: float, owner: str = "", *, only_new: bool = False
    ) -> Put | None:
        """Remembers it here, and gives what the store is to be told."""
        self.here.put(key, value, seconds, self._codec.weight(value))
        if self._store is None or seconds <= 0:
            return None
        if self._twice:
            self._recent.append((self._clock.monotonic(), key))
        raw = self._codec.write(value, seconds)
        return Put(self.name(key), raw, seconds, owner, only_new)

    async def forget(self, key: str, value: V) -> None:
        """Drops `value`, here and in the store, unless another has taken its place."""
        if self.here.get(key) == value:
            self.here.drop(key)
        if self._store is not None:
            await self._forget(self._store, key, value)

    async def _forget(self, store: Store, key: str, value: V) -> None:
        try:
            (kept,) = await store.get([self.name(key)])
            if kept is not None and self._read(kept.value, kept.seconds)[0] == value:
                await store.delete_if(self.name(key), kept.value)
        except StoreDown:
            return

    def _read(self, raw: bytes, seconds: float) -> tuple[V | None, int]:
        """A value and its weight. What another version wrote may be unreadable in any way: it is
        not there then."""
        try:
            value = self._codec.read(raw, seconds)
            return value, self._codec.weight(value)
        except Exception as exc:  # noqa: BLE001  (see above)
            _log.warning("unreadable", kind=self._kind, cause=type(exc).__name__)
            return None, 0

    async def once(
        self,
        key: str,
        work: Callable[[], Coroutine[Any, Any, V]],
        *,
        keep: Callable[[V], float],
        patience: float,
        fits: Callable[[V], bool] = lambda _: True,
        also: Callable[[], list[Put | None]] = list,
        alone: bool = False,
        lost: Callable[[V], None] = lambda _: None,
    ) -> tuple[V, bool]:
        """One run of `work` for all who ask at once, on all replicas; its value, and whether this
        call made it.

        keep: for how long a value is remembered. patience: how long to wait for another replica
        that is at it. fits: is a remembered value what is wanted? also: what else the store is told
        in the same breath, after the value. alone: whoever has waited in vain runs `work` all the
        same, as once too often does no harm. lost: is told of a value that was made and that nobody
        gets. Raises what `work` raises; Overloaded where another replica is at it for longer, or
        where replicas must agree and the store is uncertain."""
        run = _Run(work, keep, patience, fits, also, alone, lost)
        (value, made), mine = await self._flights.join(key, lambda: self._run(key, run))
        return value, mine and made

    async def _run(self, key: str, run: _Run[V]) -> tuple[V, bool]:
        known = self.here.get(key)  # since it was looked up, another run may have landed
        if known is not None and run.fits(known):
            return known, False
        if self._store is None:
            value = await run.work()
            self.noted(key, value, run.keep(value))
            _ = run.also()
            return value, True
        owner, released, extending = uuid.uuid4().hex, False, None
        try:
            found, claim = await self._wait(self._store, key, run, owner)
            if found is not None:
                return found, False
            if claim is Claim.ACQUIRED:
                extending = self._spawn(self._extend(self._store, key, owner))
            value = await run.work()
            alone = extending is None and self._patience is not None
            holder = owner if extending else ""
            first = self.noted(key, value, run.keep(value), holder, only_new=alone)
            items = [item for item in (first, *run.also()) if item is not None]
            taken = await self._handed_over(self._store, items)
            if first and taken[:1] == [False]:
                return await self._overtaken(self._store, key, run, owner, value)
            released = bool(extending and first and taken)
            return value, True
        finally:
            if extending is not None:
                extending.cancel()
            if not released:  # also after an error: it may have been taken all the same
                await self._store.release(self.name(key), owner)

    async def _handed_over(self, store: Store, items: list[Put]) -> list[bool]:
        """What `_told` gives; with more patience, as there is something to lose."""
        for _ in range(_TRIES - 1):
            try:
                return await self._told(store, items)
            except Overloaded:
                continue
        return await self._told(store, items)

    async def _overtaken(
        self, store: Store, key: str, run: _Run[V], owner: str, value: V
    ) -> tuple[V, bool]:
        """This process stood still for so long that another took its claim: what that one makes is
        the answer for all."""
        self.here.drop(key)
        found, _ = await self._wait(store, key, replace(run, alone=True), owner)
        if found is None:
            return value, True
        run.lost(value)
        return found, False

    async def _extend(self, store: Store, key: str, owner: str) -> None:
        """Keeps a claim while its owner is alive and at it, however slow an upstream is."""
        extended = True
        while extended:
            await self._clock.sleep(CLAIM_SECONDS / 3)
            extended = await store.extend(self.name(key), owner, CLAIM_SECONDS)

    async def _claim(self, store: Store, key: str, owner: str) -> tuple[Claim, Kept | None]:
        try:
            return await self._asked(lambda: store.claim(self.name(key), owner, CLAIM_SECONDS))
        except StoreFailed:
            return Claim.ERROR, None

    async def _wait(
        self, store: Store, key: str, run: _Run[V], owner: str
    ) -> tuple[V | None, Claim]:
        """What another replica made; else the answer with which to go on: HELD is alone, though
        another is at it. Raises Overloaded."""
        until = self._clock.monotonic() + run.patience
        pause = _PAUSE
        while True:
            sent = self._clock.monotonic()
            claim, kept = await self._claim(store, key, owner)
            found = self.learn(key, kept, sent)
            if found is not None and run.fits(found):
                return found, claim
            if claim is not Claim.HELD or (run.alone and self._clock.monotonic() >= until):
                return None, claim
            if self._clock.monotonic() >= until:
                raise Overloaded(
                    "This is being done already.", cause="claimed elsewhere", retry_after=1.0
                )
            await self._clock.sleep(pause * (0.75 + random.random() / 2))  # noqa: S311  (jitter)
            pause = min(2 * pause, _LONGEST_PAUSE)
