"""What an upstream posts about a session: a reason to ask it, never an answer.

A body with a good signature is an event: dealt with once, and with an error it is left to be sent
again. A body without is a hint, and proves nothing: it is answered at once, as whoever completes a
session waits for that, and followed up behind, at a bounded rate for sessions that were not minted
here. Either way the session is read again with our own credential, so order does not matter.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping

import limits
import structlog

from broker.errors import (
    BrokerError,
    HandleExpired,
    MalformedRequest,
    Overloaded,
    RateLimited,
    Unauthenticated,
    UnknownProfile,
)
from broker.flights import Spawn
from broker.keyring import Keyring
from broker.limits import RateLimits
from broker.metrics import Metrics
from broker.model import JSON, Priority, Secret
from broker.presets import vocabulary
from broker.results import HINT, Results
from broker.schedule import Clock
from broker.snapshot import Profile, Snapshot
from broker.state import State
from broker.strict import Unreadable, read_json
from broker.upstreams.answers import first_at
from broker.upstreams.preset import Upstream

_log = structlog.get_logger("callbacks")
_UNKNOWN = limits.parse("5/second")
"""Readings of sessions that are not known here (another replica's, or anybody's guess), for each
profile."""
_KNOWN = limits.parse("12/minute")
"""Readings of each session that is: whoever has one may post about it as often as they like."""
_WAITS = (0.5, 2.0, 8.0)
"""Seconds between readings after a hint: the upstream may say it before it has written it down."""
_PLACES = 32
"""Callbacks at once, a quarter of what may be in flight at the most."""
_EVENT_KEPT = 7 * 86400.0


class Callbacks:
    """The use case of one snapshot."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        sources: Mapping[str, Upstream],
        keyring: Keyring,
        results: Results,
        state: State,
        limits: RateLimits,
        clock: Clock,
        metrics: Metrics,
        spawn: Spawn,
        followed: set[str],
    ) -> None:
        """followed: sessions whose hints are being followed up, by whichever configuration."""
        self._profiles = snapshot.profiles
        self._sources = sources
        self._keys = {
            name: [keyring.get(ref) for ref in profile.secrets.get(how.signature.secret, ())]
            for name, profile in snapshot.profiles.items()
            if (how := profile.preset.file.callbacks) and how.signature
        }
        self._results = results
        self._state = state
        self._limits = limits
        self._clock = clock
        self._metrics = metrics
        self._spawn = spawn
        self._places = max(1, min(_PLACES, snapshot.server.max_in_flight // 4))
        self._taken = 0
        self._followed = followed

    @contextlib.contextmanager
    def place(self, name: str) -> Iterator[None]:
        """A place among the few that are for callbacks: strangers hold no other. To be asked for
        before the body is read. Raises UnknownProfile, Overloaded."""
        self._which(name)
        if self._taken >= self._places:
            raise Overloaded("Too many callbacks at once.", retry_after=1.0)
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    def _which(self, name: str) -> tuple[Profile, vocabulary.Callbacks]:
        profile = self._profiles.get(name)
        how = profile.preset.file.callbacks if profile else None
        if profile is None or how is None:
            raise UnknownProfile("There is no such profile that takes callbacks.")
        return profile, how

    async def receive(self, name: str, headers: Mapping[bytes, bytes], raw: bytes) -> str:
        """Takes what was posted. Gives what became of it, for the audit line.

        Raises UnknownProfile, Unauthenticated for a wrong signature, MalformedRequest, and, for a
        signed event only, what its reading raises."""
        profile, how = self._which(name)
        signed = self._signed(profile, how, headers, raw)
        try:
            tree = read_json(raw)
        except Unreadable as exc:
            raise MalformedRequest(f"The body cannot be read: {exc.reason}.") from None
        session_id = first_at(tree, how.session)
        if not (isinstance(session_id, str) and re.fullmatch(how.pattern, session_id)):
            outcome = "ignored"  # signed, it is an event about something else
        elif signed:
            outcome = await self._event(profile, how, session_id, tree)
        else:
            outcome = await self._hint(profile, session_id)
        if outcome != "taken":  # counted when it is known what came of it
            self._metrics.called_back(name, "event" if signed else "hint", outcome)
        return outcome

    def _signed(
        self,
        profile: Profile,
        how: vocabulary.Callbacks,
        headers: Mapping[bytes, bytes],
        raw: bytes,
    ) -> bool:
        """Whether it has a good signature. Raises Unauthenticated for a bad one."""
        signature = how.signature
        given = headers.get(signature.header.lower().encode()) if signature else None
        if signature is None or given is None:
            return False
        keys = self._keys.get(profile.name, ())
        if not any(_is_good(key, given, raw) for key in keys):
            self._metrics.called_back(profile.name, "event", "refused")
            raise Unauthenticated(cause="signature" if keys else f"no {signature.secret}")
        return True

    async def _event(
        self, profile: Profile, how: vocabulary.Callbacks, session_id: str, tree: JSON
    ) -> str:
        event = first_at(tree, [how.event]) if how.event else None
        key = f"{profile.name} {event}" if isinstance(event, str) and len(event) <= 255 else ""
        seen = key and await self._state.events.get(key)
        if seen or await self._results.known(profile, session_id):
            return "duplicate"
        self._results.outdated(profile, session_id)  # it is newer than what is being read
        try:
            outcome = await self._read(profile, session_id, "webhook")
        except BrokerError:
            self._metrics.called_back(profile.name, "event", "failed")
            raise
        if key and outcome == "verified":  # else, one that is sent again is a reason to ask again
            await self._state.events.put(key, True, _EVENT_KEPT)
        return outcome

    async def _hint(self, profile: Profile, session_id: str) -> str:
        if await self._results.known(profile, session_id):
            return "duplicate"
        key = profile.key_of(session_id)
        if key in self._followed:
            return "duplicate"
        if not await self._may_read(profile, session_id):
            return "dropped"
        self._followed.add(key)
        _ = self._spawn(self._follow_up(profile, session_id, key))
        return "taken"

    async def _may_read(self, profile: Profile, session_id: str) -> bool:
        """Counts one reading that nobody proved a need for."""
        try:
            if await self._results.expected(profile, session_id):
                await self._limits.hit(_KNOWN, profile.name, "callback", session_id)
            else:
                await self._limits.hit(_UNKNOWN, profile.name, "callback", "")
        except RateLimited:
            return False
        return True

    async def _follow_up(self, profile: Profile, session_id: str, key: str) -> None:
        """Reads until the session is over, for a while; one run for each session at a time."""
        outcome = "failed"
        try:
            for wait in (*_WAITS, None):
                try:
                    outcome = await self._read(profile, session_id, HINT)
                except BrokerError as exc:
                    _log.warning("not_read", profile=profile.name, slug=exc.slug, cause=exc.cause)
                if outcome in ("verified", "unknown") or wait is None:
                    break
                await self._clock.sleep(wait)
                if not await self._may_read(profile, session_id):
                    break
        except Exception:  # noqa: BLE001  (nobody awaits this task: a defect must still be told)
            _log.exception("defect", profile=profile.name)
        finally:
            self._followed.remove(key)
            self._metrics.called_back(profile.name, "hint", outcome)

    async def _read(self, profile: Profile, session_id: str, source: str) -> str:
        """verified: it is over; open: not yet; unknown: the upstream knows no such session."""
        upstream = self._sources[profile.name]
        # a hint is read again in a moment anyway; an event's sender waits
        priority = Priority.REFRESH if source == HINT else Priority.PERSON
        try:
            acted = await self._results.read(
                profile,
                session_id,
                lambda: upstream.reread(session_id, "reread", priority=priority),
                source,
            )
        except HandleExpired:
            return "unknown"
        return "verified" if acted.final else "open"


def _is_good(key: Secret, given: bytes, raw: bytes) -> bool:
    """Hex HMAC-SHA256 over the bytes as they came, compared in constant time."""
    expected = hmac.new(key.reveal().encode(), raw, hashlib.sha256).hexdigest().encode()
    return hmac.compare_digest(expected, given.strip().lower())
