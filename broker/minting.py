"""The use cases: mint, rotate, act, end, and the access token for a service.

Each reads as the README tells it, over values that are already proven: a `Caller`, a `Grant`.
Policy is asked before any memory is; memory before the rate limit; the limit before the upstream.
Knows nothing of HTTP.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import orjson

from broker import policy
from broker.errors import (
    ActionNotAllowed,
    BrokerError,
    CallerError,
    Fault,
    HandleExpired,
    InvalidParameters,
    MinFreshNotMet,
    NotPermitted,
    OriginNotAllowed,
    RotationNotSupported,
    UnknownProfile,
    UpstreamNonsense,
)
from broker.flights import Flights, Spawn
from broker.handles import MOST_PARAMETERS, Handle, Seal, first_link, next_link
from broker.limits import RateLimits
from broker.metrics import Metrics
from broker.model import JSON, AccessToken, Caller, ComponentSession, Facts, Grant, TokenSource
from broker.schedule import Clock, floor_of, refresh_point
from broker.snapshot import Profile, Snapshot
from broker.state import Answered, State
from broker.upstreams.preset import Upstream

_A_DAY = 86400.0
"""Seconds an end is remembered beyond the chain's own, in case the wall clock is set back."""
Source = Literal["minted", "rotated", "deduplicated", "replayed"]


@dataclass(frozen=True, slots=True)
class Minted:
    """A session for the browser. handle: "" where there is nothing to do with one.

    floor: seconds of life under which it may not be handed out.
    """

    profile: str
    session: ComponentSession
    handle: str
    chain: str
    rotates: bool
    floor: float


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
        sources: Mapping[str, Upstream],
        tokens: Mapping[str, TokenSource],
        seal: Seal,
        state: State,
        limits: RateLimits,
        clock: Clock,
        metrics: Metrics,
        spawn: Spawn,
    ) -> None:
        self._profiles = snapshot.profiles
        self._credentials = snapshot.credentials
        self._sources = sources
        self._tokens = tokens
        self._seal = seal
        self._state = state
        self._limits = limits
        self._clock = clock
        self._metrics = metrics
        self._answers: Flights[str, Answered[Minted]] = Flights(spawn)
        self._successors: Flights[str, Minted] = Flights(spawn)

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
        profile = self._profile(profile_name)
        grant = policy.decide(profile, caller, parameters, facts)
        if not idempotency_key:
            return self._serve(await self._new(profile, grant, None), "minted", min_fresh)
        key = _digest(caller.name, caller.subject, profile_name, idempotency_key)
        body = _digest(orjson.dumps(grant.parameters, option=orjson.OPT_SORT_KEYS).decode())
        known = self._state.answers.get(key)
        if known is not None and known.body != body:
            raise _reused_key()
        if known is not None and self._above_floor(known.answer):
            self._metrics.replayed(profile_name)
            return self._serve(known.answer, "replayed", min_fresh)

        async def work() -> Answered[Minted]:
            answered = Answered(body, await self._new(profile, grant, None))
            self._state.answers.put(key, answered, self._remaining(answered.answer))
            return answered

        answered, mine = await self._answers.join(key, work)
        if answered.body != body:
            raise _reused_key()
        return self._serve(answered.answer, "minted" if mine else "replayed", min_fresh)

    async def rotate(
        self, text: str, caller: Caller, facts: Facts, *, min_fresh: float = 0.0
    ) -> Served:
        """The successor of a live session; the same one for all who show the same handle."""
        handle = self._open(text, caller)
        profile = self._profile(handle.profile)
        try:
            return await self._rotate(profile, handle, caller, facts, min_fresh)
        except BrokerError as exc:
            exc.profile = profile.name
            raise

    async def _rotate(
        self, profile: Profile, handle: Handle, caller: Caller, facts: Facts, min_fresh: float
    ) -> Served:
        try:
            grant = self._may_rotate(profile, handle, caller, facts)
        except BrokerError:
            self._metrics.rotated(profile.name, "refused")
            raise
        known: Minted | None = self._state.successors.get(handle.id)
        if known is not None and self._above_floor(known):
            self._metrics.rotated(profile.name, "deduplicated")
            return self._serve(known, "deduplicated", min_fresh)
        minted, mine = await self._successors.join(
            handle.id, lambda: self._succeed(profile, grant, handle)
        )
        if self._state.ended.get(handle.chain):
            raise _over("ended meanwhile")
        late = facts.now > handle.expires_at
        outcome = ("late" if late else "on_time") if mine else "deduplicated"
        self._metrics.rotated(profile.name, outcome)
        return self._serve(minted, "rotated" if mine else "deduplicated", min_fresh)

    async def end(self, text: str, caller: Caller, facts: Facts) -> tuple[str, str]:
        """Ends a chain, here and, where it can be, upstream. Gives profile and chain.

        Whoever a handle was made for may end it, also when they may not mint any more."""
        handle = self._open(text, caller)
        profile = self._profiles.get(handle.profile)
        if profile is None:
            self._state.ended.put(handle.chain, True, _A_DAY)
            return "", handle.chain
        if facts.origin and facts.origin not in profile.origins:
            raise OriginNotAllowed("This origin may not use this profile.")
        chain = profile.rotation.max_chain if profile.rotation else timedelta(0)
        last = max(handle.chain_began + chain, handle.expires_at)
        self._state.ended.put(handle.chain, True, (last - facts.now).total_seconds() + _A_DAY)
        with contextlib.suppress(CallerError):
            grant = policy.decide(profile, caller, dict(handle.parameters), facts)
            await self._sources[profile.name].revoke(grant, handle.session_id)
        return profile.name, handle.chain

    async def act(
        self, action: str, text: str, data: JSON, caller: Caller, facts: Facts
    ) -> tuple[str, int, dict[str, JSON]]:
        """A follow-up call about a live session. Gives profile, status and the answer."""
        handle = self._open(text, caller)
        profile = self._profile(handle.profile)
        try:
            grant = policy.decide(profile, caller, dict(handle.parameters), facts)
            if facts.now >= handle.expires_at:
                raise _over("the session is over")
            checked = _action_data(profile, action, data)
            source = self._sources[profile.name]
            status, output = await source.act(action, grant, handle.session_id, checked)
        except BrokerError as exc:
            exc.profile = profile.name
            raise
        return profile.name, status, output

    async def access_token(
        self, name: str, caller: Caller, *, min_fresh: float = 0.0
    ) -> tuple[AccessToken, float]:
        """The token of a credential that is exposed to this caller, and its seconds left."""
        entry = self._credentials.get(name)
        if entry is None or caller.name not in entry.expose_to:
            raise UnknownProfile("There is no such credential for this caller.")
        token = await self._tokens[name].token(min_fresh=min_fresh)
        remaining = token.life.remaining(self._clock.monotonic())
        floor = entry.min_remaining
        least = floor.total_seconds() if floor else floor_of(token.life.lifetime.total_seconds())
        self._metrics.token_served("access_token", name, remaining, least)
        return token, remaining

    def _profile(self, name: str) -> Profile:
        profile = self._profiles.get(name)
        if profile is None:
            raise UnknownProfile("There is no such profile for this caller.")
        return profile

    def _open(self, text: str, caller: Caller) -> Handle:
        """A handle that is this caller's own, of a chain that was not ended."""
        handle = self._seal.open(text)
        if handle.caller != caller.name or handle.subject != caller.subject:
            raise NotPermitted("This handle was made for somebody else.")
        if self._state.ended.get(handle.chain):
            raise _over("ended")
        return handle

    def _may_rotate(self, profile: Profile, handle: Handle, caller: Caller, facts: Facts) -> Grant:
        grant = policy.decide(profile, caller, dict(handle.parameters), facts)
        if profile.rotation is None:
            raise RotationNotSupported("Sessions of this profile do not rotate.")
        if facts.now > handle.expires_at + profile.rotation.grace:
            raise _over("past its grace")
        if facts.now > handle.chain_began + profile.rotation.max_chain:
            raise _over("the chain is too old")
        known = self._state.successors.get(handle.id)
        if known is None and self._state.spent.get(handle.id):
            raise _over("rotated away")
        return grant

    async def _succeed(self, profile: Profile, grant: Grant, handle: Handle) -> Minted:
        minted = await self._new(profile, grant, handle)
        assert profile.rotation is not None  # noqa: S101  (_may_rotate)
        grace = profile.rotation.grace.total_seconds()
        left = (handle.expires_at - self._clock.now()).total_seconds() + grace
        self._state.successors.put(handle.id, minted, min(grace, self._remaining(minted)))
        self._state.spent.put(handle.id, True, left + 3600)
        return minted

    async def _new(self, profile: Profile, grant: Grant, before: Handle | None) -> Minted:
        """One upstream mint, counted against the caller's limit."""
        if profile.gives_handles and len(orjson.dumps(grant.parameters)) > MOST_PARAMETERS:
            fault = Fault("/parameters", f"are longer than {MOST_PARAMETERS} bytes")
            raise InvalidParameters("The parameters do not fit a handle.", faults=[fault])
        if profile.rate_limit is not None:
            caller = grant.caller
            await self._limits.hit(profile.rate_limit, profile.name, caller.name, caller.subject)
        session = await self._sources[profile.name].session(grant)
        lifetime = session.life.lifetime.total_seconds()
        floor = profile.min_remaining
        floor = floor_of(lifetime) if floor is None else floor
        if session.life.remaining(self._clock.monotonic()) < floor:
            raise UpstreamNonsense("The upstream's session is shorter than this profile allows.")
        handle = self._handle(profile, grant, session, before)
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
            return first_link(grant, session.id, **times)
        return next_link(before, grant, session.id, **times)

    def _remaining(self, minted: Minted) -> float:
        return minted.session.life.remaining(self._clock.monotonic())

    def _above_floor(self, minted: Minted) -> bool:
        return self._remaining(minted) > minted.floor

    def _serve(self, minted: Minted, source: Source, min_fresh: float) -> Served:
        """The last line before a hand-out: what is left now, and is it enough?"""
        remaining = self._remaining(minted)
        if remaining < min_fresh:
            raise MinFreshNotMet("The upstream's sessions do not live as long as that.")
        if remaining < minted.floor:
            raise UpstreamNonsense("The upstream's session is shorter than this profile allows.")
        self._metrics.token_served("session", minted.profile, remaining, minted.floor)
        return Served(minted, source, remaining)


def rotate_in(served: Served) -> int:
    """Whole seconds after which to ask for the successor, drawn anew for each answer."""
    lifetime = served.minted.session.life.lifetime.total_seconds()
    return max(1, int(served.remaining - refresh_point(lifetime)))


def _action_data(profile: Profile, action: str, data: JSON) -> dict[str, JSON]:
    checker = profile.preset.actions.get(action)
    if checker is None:
        raise ActionNotAllowed("This is not an action of this profile.")
    checked, faults = checker.read(data, "/data")
    if faults:
        raise InvalidParameters("The data do not fit this action.", faults=faults)
    return checked


def _digest(*parts: str) -> str:
    """One text for several, such that no two lists of parts share it."""
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()


def _over(cause: str) -> HandleExpired:
    return HandleExpired("This handle is not valid any more; start a new session.", cause=cause)


def _reused_key() -> InvalidParameters:
    return InvalidParameters(
        "This Idempotency-Key was used with another body.",
        faults=[Fault("", "the Idempotency-Key belongs to another body")],
    )
