"""What can be done with a handle: rotate, check, end, act. A chain is a session and its successors.

A handle says whom it was made for and proves nobody: the caller is authenticated anew, must be the
one in it, and is asked after by policy again, on today's configuration and today's claims. Never a
session that the caller could not mint anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import timedelta

from broker import policy
from broker.errors import (
    ActionNotAllowed,
    BrokerError,
    CallerError,
    Fault,
    HandleExpired,
    InvalidParameters,
    NotPermitted,
    OriginNotAllowed,
    Overloaded,
    RotationNotSupported,
    UpstreamError,
)
from broker.flights import Turns
from broker.handles import Handle, Seal, bound_of
from broker.limits import RateLimits
from broker.metrics import Metrics
from broker.minting import MAY_BE_SET_BACK, PATIENCE, Minting, Served
from broker.model import JSON, Acted, Caller, Facts, Grant, Minted, observed
from broker.results import Results
from broker.schedule import Clock
from broker.snapshot import Profile, Snapshot
from broker.state import State
from broker.upstreams.preset import Upstream


class Chains:
    """The use cases that begin with a handle."""

    def __init__(
        self,
        snapshot: Snapshot,
        minting: Minting,
        *,
        sources: Mapping[str, Upstream],
        seal: Seal,
        state: State,
        results: Results,
        limits: RateLimits,
        clock: Clock,
        metrics: Metrics,
        turns: Turns[str],
        budget: float,
    ) -> None:
        """turns: of the calls about one session, by account and name. budget: seconds that one
        request may take."""
        self._profiles = snapshot.profiles
        self._minting = minting
        self._sources = sources
        self._seal = seal
        self._state = state
        self._results = results
        self._limits = limits
        self._clock = clock
        self._metrics = metrics
        self._turns = turns
        self._budget = budget

    async def rotate(
        self, text: str, caller: Caller, facts: Facts, *, min_fresh: float = 0.0
    ) -> Served:
        """The successor of a live session; the same one for all who show the same handle."""
        handle = self._open(text, caller)
        profile = self._minting.profile(handle.profile)
        try:
            return await self._rotate(profile, handle, caller, facts, min_fresh)
        except BrokerError as exc:
            exc.profile = profile.name
            raise

    async def _rotate(
        self, profile: Profile, handle: Handle, caller: Caller, facts: Facts, min_fresh: float
    ) -> Served:
        state = self._state
        try:
            known = await self._successor(handle)
            grant = self._may_rotate(profile, handle, caller, facts)
        except BrokerError:
            self._metrics.rotated(profile.name, "refused")
            raise
        if known is not None and self._minting.lives(known):
            self._metrics.rotated(profile.name, "deduplicated")
            return self._minting.serve(known, "deduplicated", min_fresh)
        self._minting.long_enough(profile, min_fresh)
        try:
            minted, made = await state.successors.once(
                handle.id,
                lambda: self._succeed(profile, grant, handle),
                keep=lambda minted: self._kept(profile, minted),
                patience=self._budget * PATIENCE,
                fits=self._minting.lives,
                lost=lambda _: self._metrics.mint_unknown(profile.name),
                also=lambda: [state.spent.noted(handle.id, True, self._spent_for(profile, handle))],
            )
        except (UpstreamError, Overloaded):
            self._metrics.rotated(profile.name, "failed")
            raise
        if await state.ended.get(handle.chain):
            raise _over("ended meanwhile")
        late = facts.now > handle.expires_at
        outcome = ("late" if late else "on_time") if made else "deduplicated"
        self._metrics.rotated(profile.name, outcome)
        return self._minting.serve(minted, "rotated" if made else "deduplicated", min_fresh)

    async def _successor(self, handle: Handle) -> Minted | None:
        """The successor that there is. Raises HandleExpired where there can be none any more."""
        state = self._state
        if state.ended.here.get(handle.chain):  # nobody need be asked, nor waited for
            raise _over("ended")
        ended, known, spent = await state.look(
            (state.ended, handle.chain), (state.successors, handle.id), (state.spent, handle.id)
        )
        found: Minted | None = known
        if ended:
            raise _over("ended")
        if spent and found is None:  # it was told before the mark, so it is there by now
            found = await state.successors.fetch(handle.id)
        if spent and found is None:
            raise _over("rotated away")
        return found

    async def check(self, text: str, caller: Caller, facts: Facts) -> tuple[Handle, float]:
        """The seconds that a live session has left, for a page that cannot trust its own clocks
        any more. Nothing for those whom policy would not let have it now."""
        handle = self._open(text, caller)
        await self._not_ended(handle)
        profile = self._minting.profile(handle.profile)
        try:
            grant = policy.follow_up(profile, caller, handle.parameters, facts)
            _same_grant(handle, grant)
        except BrokerError as exc:
            exc.profile = profile.name
            raise
        return handle, max(0.0, (handle.expires_at - facts.now).total_seconds())

    async def end(self, text: str, caller: Caller, facts: Facts) -> tuple[str, str]:
        """Ends a chain, here and, where it can be, upstream. Gives profile and chain.

        Whoever a handle was made for may end it, also when they may not mint any more. Raises
        Overloaded where the chain has ended here, and the other replicas cannot know that yet: it
        will be told to them, and until then the caller must not believe that all is over."""
        handle = self._open(text, caller)
        if not self._state.ended.is_untold(handle.chain):
            with contextlib.suppress(Overloaded):  # not certain: it ends here, whatever comes
                await self._not_ended(handle)
        profile = self._profiles.get(handle.profile)
        if profile is None:
            _must_be_known(await self._state.ended.put(handle.chain, True, MAY_BE_SET_BACK))
            return "", handle.chain
        if facts.origin and facts.origin not in profile.origins:
            raise OriginNotAllowed("This origin may not use this profile.")
        chain = profile.rotation.max_chain if profile.rotation else timedelta(0)
        last = max(handle.chain_began + chain, handle.expires_at)
        is_known = await self._state.ended.put(
            handle.chain, True, (last - facts.now).total_seconds() + MAY_BE_SET_BACK
        )
        with contextlib.suppress(CallerError):
            grant = policy.follow_up(profile, caller, handle.parameters, facts)
            newest = await self._state.newest.get(handle.chain)
            for session_id in {handle.session_id, newest} - {None}:
                await self._sources[profile.name].revoke(grant, session_id)
        _must_be_known(is_known)
        return profile.name, handle.chain

    async def act(
        self,
        action: str,
        text: str,
        data: JSON,
        caller: Caller,
        facts: Facts,
        *,
        session_token: str | None = None,
    ) -> tuple[Handle, int, JSON]:
        """A follow-up call about a session. Gives the handle, status and the answer.

        session_token: makes the call in place of our own credential, where the preset allows it.
        """
        handle = self._seal.open(text)
        mine = _is_whose(handle, caller)
        known = self._profiles.get(handle.profile)
        trusted = known is not None and policy.trusts(known, caller, facts)
        if mine:
            await self._not_ended(handle)
        elif not trusted:  # one text for every cause: a stranger learns nothing of the profile
            raise _somebody_elses(handle, caller)
        profile = self._minting.profile(handle.profile)
        try:
            if mine:
                grant = policy.follow_up(profile, caller, handle.parameters, facts)
                _same_grant(handle, grant)
            else:
                grant = policy.oversee(profile, caller, facts)
            checked = _action_data(profile, action, handle, data, facts, trusted, mine)
            acted = await self._perform(profile, action, handle, grant, checked, session_token)
        except BrokerError as exc:
            exc.profile = profile.name
            raise
        more = trusted and acted.trusted is not None
        return handle, acted.status, acted.trusted if more else acted.output

    async def _perform(
        self,
        profile: Profile,
        action: str,
        handle: Handle,
        grant: Grant,
        data: dict[str, JSON],
        session_token: str | None,
    ) -> Acted:
        if session_token is not None and profile.preset.file.session_authorization is None:
            raise _no_session_token()
        asked_by = grant.caller.name  # a page does not spend what its merchant's backend needs
        await self._limits.hit(
            profile.action_limit, profile.name, "act", handle.chain, asked_by, policy_name="action"
        )
        source, session_id = self._sources[profile.name], handle.session_id
        callbacks = profile.preset.file.callbacks
        is_reading = callbacks is not None and callbacks.read == action and not data
        if (
            is_reading
            and session_id is not None
            and (session_token is None or await self._results.known(profile, session_id))
        ):
            return await self._results.read(
                profile, session_id, lambda: source.reread(session_id, f"action_{action}"), action
            )
        async with self._turns.of(profile.key_of(session_id or handle.chain)):
            try:
                return await source.act(action, grant, session_id, data, session_token)
            finally:
                if session_id is not None:
                    self._results.outdated(profile, session_id)

    def _open(self, text: str, caller: Caller) -> Handle:
        """A handle that is this caller's own."""
        handle = self._seal.open(text)
        if not _is_whose(handle, caller):
            raise _somebody_elses(handle, caller)
        return handle

    async def _not_ended(self, handle: Handle) -> None:
        if await self._state.ended.get(handle.chain):
            raise _over("ended")

    def _may_rotate(self, profile: Profile, handle: Handle, caller: Caller, facts: Facts) -> Grant:
        grant = policy.follow_up(profile, caller, handle.parameters, facts)
        if profile.rotation is None:
            raise RotationNotSupported("Sessions of this profile do not rotate.")
        if facts.now > handle.expires_at + profile.rotation.grace:
            raise _over("past its grace")
        if facts.now > handle.chain_began + profile.rotation.max_chain:
            raise _over("the chain is too old")
        _same_grant(handle, grant)
        return grant

    async def _succeed(self, profile: Profile, grant: Grant, handle: Handle) -> Minted:
        if self._state.spent.here.get(handle.id):  # since it was looked up
            raise _over("rotated away")
        minted = await self._minting.new(profile, grant, handle)
        if profile.preset.file.revoke and await self._state.ended.get(handle.chain):
            await self._sources[profile.name].revoke(grant, minted.session.id)
        return minted

    def _spent_for(self, profile: Profile, handle: Handle) -> float:
        """Seconds for which a handle could rotate if it had not: until its grace is over by the
        wall clock, and an hour more, as that may be set back."""
        assert profile.rotation is not None  # noqa: S101  (_may_rotate)
        left = (handle.expires_at - self._clock.now()).total_seconds()
        return left + profile.rotation.grace.total_seconds() + 3600

    def _kept(self, profile: Profile, minted: Minted) -> float:
        """Seconds for which a successor is given to whoever shows its predecessor's handle."""
        assert profile.rotation is not None  # noqa: S101  (_may_rotate)
        return min(profile.rotation.grace.total_seconds(), self._minting.remaining(minted))


def _is_whose(handle: Handle, caller: Caller) -> bool:
    return handle.caller == caller.name and handle.subject == caller.subject


def _somebody_elses(handle: Handle, caller: Caller) -> NotPermitted:
    whose = "caller" if handle.caller != caller.name else "subject"
    return NotPermitted("This handle was made for somebody else.", cause=f"another {whose}")


def _action_data(
    profile: Profile,
    action: str,
    handle: Handle,
    data: JSON,
    facts: Facts,
    trusted: bool,
    mine: bool,
) -> dict[str, JSON]:
    """The data of an action that may be asked for with this handle, now. mine: it was made for who
    shows it. Raises ActionNotAllowed, HandleExpired, InvalidParameters."""
    checker = profile.preset.actions.get(action)
    told = profile.preset.file.actions[action].trusted if checker else None
    if checker is None or not (mine or told):
        raise ActionNotAllowed("This is not an action of this profile.")
    until = handle.expires_at
    if trusted and told:
        until = max(until, handle.issued_at + told.within)
    if facts.now >= until:
        raise _over("the session is over")
    checked, faults = checker.read(data, "/data", tells=trusted)
    if faults:
        raise InvalidParameters("The data do not fit this action.", faults=faults)
    policy.has_opted_in(profile, checked, "/data")
    if not trusted:
        checker.observe(checked, observed(facts))
    return checked


def _no_session_token() -> InvalidParameters:
    fault = Fault("/session_token", "this profile's actions are not made with one")
    return InvalidParameters("This profile takes no session token.", faults=[fault])


def _same_grant(handle: Handle, grant: Grant) -> None:
    """A session of one merchant is not continued for another, though the person be the same."""
    if handle.bound != bound_of(grant):
        raise _over("the caller's claims have changed")


def _must_be_known(is_known: bool) -> None:
    if not is_known:
        detail = "The session has ended here; the other replicas cannot be told yet. Ask again."
        raise Overloaded(detail, cause="end not shared", retry_after=2.0)


def _over(cause: str) -> HandleExpired:
    return HandleExpired("This handle is not valid any more; start a new session.", cause=cause)
