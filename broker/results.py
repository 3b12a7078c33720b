"""How sessions ended: remembered for `status`, and told to the audit log once.

A session's result is final, so whoever asks again is answered from here, without a call upstream.
Only what the preset's views let out is kept, and only what was read from the upstream itself.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from broker.audit import AuditLog
from broker.flights import Flights, Spawn
from broker.model import Acted
from broker.snapshot import Profile
from broker.state import State

HINT = "callback"
"""The source of a reading that nobody waits for."""
_PATIENCE = 1.0
_KEPT = 86400.0
"""Seconds; a result can be read upstream for a day too (Checkout.com: the cryptogram)."""


class Results:
    """The results of one app's sessions; those of an account are one, whichever of its profiles
    minted them, as its events come to one of them."""

    def __init__(self, state: State, audit: AuditLog, spawn: Spawn) -> None:
        self._state = state
        self._audit = audit
        self._readings: Flights[str, Acted] = Flights(spawn)

    async def expect(self, profile: Profile, session_id: str, chain: str, lifetime: float) -> None:
        """A session was minted of which a callback may tell. lifetime: its own, in seconds."""
        await self._state.expected.put(
            profile.key_of(session_id), (profile.name, chain), lifetime + _KEPT
        )

    async def expected(self, profile: Profile, session_id: str) -> bool:
        """Was it minted here?"""
        return await self._state.expected.get(profile.key_of(session_id)) is not None

    async def known(self, profile: Profile, session_id: str) -> Acted | None:
        """The result of a session that is over."""
        return await self._state.results.get(profile.key_of(session_id))

    async def read(
        self,
        profile: Profile,
        session_id: str,
        ask: Callable[[], Coroutine[Any, Any, Acted]],
        source: str,
    ) -> Acted:
        """The result, or else what the upstream says now: one question at a time, however many
        ask. Raises what `ask` raises."""
        known = await self.known(profile, session_id)
        if known is not None:
            return known

        async def work() -> Acted:
            acted = await ask()
            if acted.final:
                await self._learn(profile, session_id, acted, source)
            return acted

        acted, _ = await self._readings.join(_flight(profile, session_id, source), work)
        return acted

    def outdated(self, profile: Profile, session_id: str) -> None:
        """Something happened to a session: who asks from now on does not join an older question."""
        for source in ("", HINT):
            self._readings.leave(_flight(profile, session_id, source))

    async def _learn(self, profile: Profile, session_id: str, acted: Acted, source: str) -> None:
        """Keeps a result and tells of it. source: what set the reading off: an action's name,
        callback or webhook."""
        key = profile.key_of(session_id)

        async def found() -> Acted:
            return acted

        _, made = await self._state.results.once(
            key, found, keep=lambda _: _KEPT, patience=_PATIENCE, alone=True
        )
        if not made:  # another replica has learnt it at the same time, and told
            return
        minted_by, chain = await self._state.expected.get(key) or (profile.name, "")
        self._audit.event(
            "result",
            profile=minted_by,
            session=session_id,
            chain=chain,
            state=acted.final,
            source=source,
        )


def _flight(profile: Profile, session_id: str, source: str) -> str:
    """Whoever waits does not join what a hint set off: that gives way to those who wait."""
    return profile.key_of(session_id) + (" behind" if source == HINT else "")
