"""What must be remembered between requests: successors, ended chains, idempotent answers, tokens.

In this process, or in a store that replicas share. The store's failure is never an outage: once it
has been away for seconds, each memory goes on alone, and the README says which promise is weaker
meanwhile. When it is back it is told again what replicas must agree on.
"""

from __future__ import annotations

from typing import Any

from broker.flights import Spawn
from broker.model import AccessToken, Acted, Minted
from broker.schedule import Clock
from broker.state.memory import Memory
from broker.state.patience import Patience
from broker.state.records import (
    Answered,
    Answers,
    Endings,
    Plain,
    Sessions,
    Tokens,
    flag,
    pair,
    text,
)
from broker.state.store import Store, StoreDown, Told
from broker.state.vault import Vault

__all__ = ["Answered", "Memory", "State", "Store", "Vault"]

MOST_BYTES = 64 << 20
"""Of sessions with their handles and outputs, and of results: each of the three kinds, by the
codecs' estimates."""


class State:
    """The memories of one app, for as long as the process lives."""

    def __init__(
        self, clock: Clock, spawn: Spawn, vault: Vault, store: Store | None = None
    ) -> None:
        self.vault = vault
        self._clock = clock
        self._store = store
        self.patience = Patience(clock)

        def memory(kind: str, codec: Any, **options: Any) -> Memory[Any]:
            return Memory(kind, codec, clock, store, spawn, **options)

        agreed = {"patience": self.patience}
        self.successors: Memory[Minted] = memory(
            "successor", Sessions(clock), most=MOST_BYTES, **agreed
        )
        """By handle id: the successor, kept for the grace window."""
        self.spent: Memory[bool] = memory("spent", Plain(flag), **agreed)
        """Handle ids that have a successor, until they would have died anyway."""
        self.ended: Memory[bool] = memory("ended", Plain(flag), twice=True, **agreed)
        """Chain ids, until the chain's own end."""
        self.newest: Memory[str] = memory("newest", Plain(text), changes=True)
        """By chain id: the upstream's name of its newest session, where it can be revoked."""
        self.answers: Memory[Answered[Minted]] = memory(
            "answer", Answers(clock), most=MOST_BYTES, **agreed
        )
        """By digest of caller, profile and key."""
        self.expected: Memory[tuple[str, str]] = memory("expected", Plain(pair))
        """By upstream and its name of a session: profile and chain, where callbacks may come."""
        self.results: Memory[Acted] = memory("result", Endings(), most=MOST_BYTES)
        """By upstream and its name of a session: how it ended."""
        self.events: Memory[bool] = memory("event", Plain(flag))
        """By profile and the upstream's name of a signed event: that it was dealt with."""
        self.tokens: Memory[AccessToken] = memory("token", Tokens(clock), changes=True)
        """Access tokens, by a keyed digest of everything that shaped the request for one."""

        if store is not None:
            store.when_back(self._tell_again)

    async def _tell_again(self, told: Told, everything: bool) -> None:
        """Ended chains first: no other memory does harm by being late."""
        for memory in (self.ended, self.spent, self.successors, self.answers):
            await memory.tell_again(told, everything)

    async def look(self, *asked: tuple[Memory[Any], str]) -> list[Any]:
        """Several things that do not change once they are there and on which replicas agree, in one
        round trip. Raises Overloaded where nothing is certain."""
        found = [memory.here.get(key) for memory, key in asked]
        missing = [index for index, value in enumerate(found) if value is None]
        store = self._store
        if store is None or not missing:
            return found
        sent = self._clock.monotonic()
        names = [asked[i][0].name(asked[i][1]) for i in missing]
        try:
            kept = await self.patience.insist(lambda: store.get(names))
        except StoreDown:
            return found
        for index, one in zip(missing, kept, strict=True):
            memory, key = asked[index]
            found[index] = memory.learn(key, one, sent)
        return found
