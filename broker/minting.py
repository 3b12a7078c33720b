"""New sessions, and the access token for a service: the use cases that begin with nothing.

They read as the README tells them, over values that are already proven: a `Caller`, a `Grant`.
Policy is asked before any memory is; memory before the rate limit; the limit before the upstream.
What can be done with a session that there is stands in `chains`. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import orjson

from broker import policy
from broker.errors import (
    Fault,
    InvalidParameters,
    MinFreshNotMet,
    UnknownProfile,
    UpstreamNonsense,
)
from broker.handles import MOST_PARAMETERS, Handle, Seal, first_link, next_link
from broker.limits import RateLimits
from broker.metrics import Metrics
from broker.model import (
    JSON,
    AccessToken,
    Caller,
    ComponentSession,
    Facts,
    Grant,
    Minted,
    SessionSource,
)
from broker.results import Results
from broker.schedule import Clock, floor_of, refresh_point
from broker.snapshot import ANONYMOUS, Profile, Snapshot
from broker.state import Answered, State
from broker.tokens import Cached

MAY_BE_SET_BACK = 86400.0
"""Seconds that things with a wall-clock end are remembered beyond it, should that clock be set."""
PATIENCE = 0.8
"""Of a request's time, for what another replica is doing: then there is time left to say so."""
Source = Literal["minted", "rotated", "deduplicated", "replayed"]


@dataclass(frozen=True, slots=True)
class Served:
    """What is about to be handed out, with what is left of it now, in seconds."""

    minted: Minted
    source: Source
    remaining: float


class Minting:
    """The use cases on one snapshot; the memories are the app's and outlive it."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        sources: Mapping[str, SessionSource],
        tokens: Mapping[str, Cached],
        seal: Seal,
        state: State,
        limits: RateLimits,
        results: Results,
        clock: Clock,
        metrics: Metrics,
        budget: float,
    ) -> None:
        """budget: seconds that one request may take."""
        self._profiles = snapshot.profiles
        self._credentials = snapshot.credentials
        self._callers = snapshot.callers
        self._sources = sources
        self._tokens = tokens
        self._seal = seal
        self._state = state
        self._limits = limits
        self._results = results
        self._clock = clock
        self._metrics = metrics
        self._budget = budget
        self._lifetimes: dict[str, float] = {}

    async def mint(
        self,
        profile_name: str,
        caller: Caller,
        parameters: JSON,
        facts: Facts,
        *,
        idempotency_key: str = "",
        min_fresh: float = 0.0,
    ) -> Served:
        """A new session, or with an Idempotency-Key the one that was made for it before."""
        profile = self.profile(profile_name)
        grant = policy.decide(profile, caller, parameters, facts)
        self.long_enough(profile, min_fresh)
        if not idempotency_key or caller.name == ANONYMOUS:  # strangers share no memory
            minted = await self.new(profile, grant, None)
            if self.remaining(minted) < min_fresh:
                self._metrics.mint_unknown(profile_name)  # it exists, and nobody gets it
            return self.serve(minted, "minted", min_fresh)
        answered, made = await self._answered(profile, grant, idempotency_key)
        if not made:
            self._metrics.replayed(profile_name)
        return self.serve(answered, "minted" if made else "replayed", min_fresh)

    async def _answered(self, profile: Profile, grant: Grant, key: str) -> tuple[Minted, bool]:
        """What was or is being made under an Idempotency-Key, here or on another replica; and
        whether it was made just now. Raises InvalidParameters for a key that has another body."""
        caller, vault = grant.caller, self._state.vault
        asked = orjson.dumps([caller.name, caller.subject, profile.name, key]).decode()
        body = (_sorted(grant.parameters), _sorted(grant.bound))
        known = await self._state.answers.get(asked)
        if known is not None:
            if vault.same(known.body, *body) is False:
                raise _reused_key()
            if await self.usable(known.answer):
                return known.answer, False
        dead = known.answer.chain if known is not None else None

        def fits(found: Answered[Minted]) -> bool:
            return self.lives(found.answer) and found.answer.chain != dead

        async def work() -> Answered[Minted]:
            return Answered(vault.digest(*body), await self.new(profile, grant, None))

        answered, made = await self._state.answers.once(
            asked,
            work,
            keep=lambda answered: self.remaining(answered.answer),
            patience=self._budget * PATIENCE,
            fits=fits,
            lost=lambda _: self._metrics.mint_unknown(profile.name),
        )
        if vault.same(answered.body, *body) is False:
            raise _reused_key()
        return answered.answer, made

    async def access_token(
        self, name: str, caller: Caller, *, min_fresh: float = 0.0
    ) -> tuple[AccessToken, float, bool]:
        """The token of a credential that is exposed to this caller, its seconds left, and whether
        it was held already."""
        entry = self._credentials.get(name)
        if entry is None:
            raise UnknownProfile("There is no such credential for this caller.")
        policy.may_have_access_token(entry, self._callers.get(caller.name), caller)
        asked = self._clock.monotonic()
        tokens = self._tokens[name]
        token = None if min_fresh else tokens.peek()
        if token is None:
            token = await tokens.token(min_fresh=min_fresh)
        remaining = token.life.remaining(self._clock.monotonic())
        floor = entry.min_remaining
        least = floor.total_seconds() if floor else floor_of(token.life.lifetime.total_seconds())
        self._metrics.token_served("access_token", name, remaining, least)
        return token, remaining, token.obtained < asked

    def profile(self, name: str) -> Profile:
        """Raises UnknownProfile."""
        profile = self._profiles.get(name)
        if profile is None:
            raise UnknownProfile("There is no such profile for this caller.")
        return profile

    async def new(self, profile: Profile, grant: Grant, before: Handle | None) -> Minted:
        """One upstream mint, counted against the caller's limit."""
        if profile.keeps_parameters and len(orjson.dumps(grant.parameters)) > MOST_PARAMETERS:
            fault = Fault("/parameters", f"are longer than {MOST_PARAMETERS} bytes")
            raise InvalidParameters("The parameters do not fit a handle.", faults=[fault])
        if profile.rate_limit is not None:
            caller = grant.caller
            await self._limits.hit(profile.rate_limit, profile.name, caller.name, caller.subject)
        session = await self._sources[profile.name].session(grant)
        lifetime = session.life.lifetime.total_seconds()
        floor = profile.min_remaining
        floor = floor_of(lifetime) if floor is None else floor
        self._lifetimes[profile.name] = lifetime
        if session.life.remaining(self._clock.monotonic()) < floor:
            self._metrics.mint_unknown(profile.name)  # it exists, and nobody gets it
        _above(floor, session.life.remaining(self._clock.monotonic()))
        handle = self._handle(profile, grant, session, before)
        if handle is not None and session.id:
            if profile.preset.file.revoke:
                await self._state.newest.put(handle.chain, session.id, lifetime + MAY_BE_SET_BACK)
            if profile.preset.file.callbacks:
                await self._results.expect(profile, session.id, handle.chain, lifetime)
        return Minted(
            profile=profile.name,
            session=session,
            handle=self._seal.close(handle) if handle else "",
            chain=handle.chain if handle else "",
            rotates=profile.rotation is not None,
            floor=floor,
        )

    def _handle(
        self, profile: Profile, grant: Grant, session: ComponentSession, before: Handle | None
    ) -> Handle | None:
        if not profile.gives_handles:
            return None
        times = {
            "issued_at": self._clock.now().replace(microsecond=0),
            "expires_at": session.life.expires_at.replace(microsecond=0),
        }
        if before is None:
            kept = grant.parameters if profile.keeps_parameters else {}
            return first_link(grant, session.id, kept, **times)
        return next_link(before, grant, session.id, **times)

    def remaining(self, minted: Minted) -> float:
        """Seconds."""
        return minted.session.life.remaining(self._clock.monotonic())

    def lives(self, minted: Minted) -> bool:
        return self.remaining(minted) > minted.floor

    async def usable(self, minted: Minted) -> bool:
        """May it be handed out again?"""
        return self.lives(minted) and not await self._state.ended.get(minted.chain)

    def long_enough(self, profile: Profile, min_fresh: float) -> None:
        """Refuses a wish that no session of this upstream meets, before one is made for it."""
        most = profile.longest
        if min_fresh > min(most, self._lifetimes.get(profile.name, most)):
            raise _too_short()

    def serve(self, minted: Minted, source: Source, min_fresh: float) -> Served:
        """The last line before a hand-out: what is left now, and is it enough?"""
        remaining = self.remaining(minted)
        if remaining < min_fresh:
            raise _too_short()
        _above(minted.floor, remaining)
        self._metrics.token_served("session", minted.profile, remaining, minted.floor)
        return Served(minted, source, remaining)


def rotate_in(served: Served) -> int:
    """Whole seconds after which to ask for the successor, drawn anew for each answer."""
    lifetime = served.minted.session.life.lifetime.total_seconds()
    return max(1, int(served.remaining - refresh_point(lifetime)))


def _sorted(tree: Mapping[str, JSON]) -> str:
    return orjson.dumps(tree, option=orjson.OPT_SORT_KEYS).decode()


def _above(floor: float, remaining: float) -> None:
    if remaining < floor:
        raise UpstreamNonsense(
            "The upstream's session is shorter than this profile allows.",
            cause=f"{remaining:.1f} s left, floor {floor:.1f} s",
        )


def _too_short() -> MinFreshNotMet:
    return MinFreshNotMet("The upstream's sessions do not live as long as that.")


def _reused_key() -> InvalidParameters:
    return InvalidParameters(
        "This Idempotency-Key was used with another body.",
        faults=[Fault("", "the Idempotency-Key belongs to another body")],
    )
