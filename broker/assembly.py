"""What serves one configuration: made whole from a snapshot, and replaced whole by the next.

Read it from top to bottom to know what the service is: access tokens, upstreams, use cases, the way
in. What outlives a configuration (connections, memories, breakers, tokens of credentials that did
not change) is given to it, or taken over from the one before. Makes no network call.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import orjson
from limits import RateLimitItem

from broker import openapi
from broker.api import Api, public_app
from broker.audit import AuditLog
from broker.authn import Door
from broker.callbacks import Callbacks
from broker.chains import Chains
from broker.file import CredentialEntry, ForwardAuthCaller
from broker.flights import Tasks, Turns
from broker.gate import Gate, Load, Origins
from broker.guard import Guard
from broker.handles import Seal
from broker.keyring import Keyring
from broker.kinds import SecretRef
from broker.limits import RateLimits
from broker.loop_time import LoopTime
from broker.metrics import Metrics
from broker.minting import Minting
from broker.results import Results
from broker.rollover import Rollover
from broker.schedule import Clock
from broker.shared import Shared
from broker.snapshot import Profile, Snapshot, secret_refs
from broker.state import State
from broker.static import Static
from broker.tokens import Cached
from broker.upstreams.oauth import OAuth
from broker.upstreams.preset import Upstream
from broker.upstreams.transport import Transport


@dataclass(frozen=True, slots=True)
class Ground:
    """What every configuration stands on, for as long as the process lives."""

    clock: Clock
    metrics: Metrics
    loop_time: LoopTime
    audit: AuditLog
    tasks: Tasks
    load: Load
    transport: Transport
    keyring: Keyring
    state: State
    rates: RateLimits
    results: Results
    client: Mapping[str, Static]
    pages: Mapping[str, Static]
    followed: set[str] = field(default_factory=set)
    turns: Turns[str] = field(default_factory=Turns)


class Assembly:
    """One snapshot, served."""

    def __init__(self, snapshot: Snapshot, ground: Ground, before: Assembly | None = None) -> None:
        """before: the one in force, whose parts are taken over where nothing they are made of
        changed. Raises ConfigError for secrets that are unusable; `fitness` is asked before."""
        server, keyring = snapshot.server, ground.keyring
        budget = server.request_budget.total_seconds()
        self.snapshot = snapshot
        self._ground = ground
        self._secrets = keyring.held
        self.guards: dict[str, Guard] = {}
        self._limits: dict[str, RateLimitItem | None] = {}
        self._guards_before = before.guards if before else {}
        seal = Seal([keyring.get(ref) for ref in snapshot.keys])
        self.rollovers: dict[Hashable, Rollover] = {}
        self.tokens = tokens = self._tokens(before)
        self._rollovers_before = before.rollovers if before else {}
        sources = {
            name: self._upstream(profile, tokens.get(profile.credential or ""), budget)
            for name, profile in snapshot.profiles.items()
        }
        minting = Minting(
            snapshot,
            sources=sources,
            tokens=tokens,
            seal=seal,
            state=ground.state,
            limits=ground.rates,
            results=ground.results,
            clock=ground.clock,
            metrics=ground.metrics,
            budget=budget,
        )
        chains = Chains(
            snapshot,
            minting,
            sources=sources,
            seal=seal,
            state=ground.state,
            results=ground.results,
            limits=ground.rates,
            clock=ground.clock,
            metrics=ground.metrics,
            turns=ground.turns,
            budget=budget,
        )
        callbacks = Callbacks(
            snapshot,
            sources=sources,
            keyring=keyring,
            results=ground.results,
            followed=ground.followed,
            state=ground.state,
            limits=ground.rates,
            clock=ground.clock,
            metrics=ground.metrics,
            spawn=ground.tasks.spawn,
        )
        self.door = self._door(budget, before)
        api = Api(
            door=self.door,
            minting=minting,
            chains=chains,
            callbacks=callbacks,
            clock=ground.clock,
            budget=budget,
            profiles={name: p.preset.file.reuse.value for name, p in snapshot.profiles.items()},
            credentials=frozenset(snapshot.credentials),
            max_body=server.max_body_bytes,
            document=orjson.dumps(openapi.document()),
        )
        self.public = Gate(
            public_app(api, budget, ground.client, ground.pages),
            origins=_origins(snapshot),
            load=ground.load,
            trusted_proxies=server.trusted_proxies,
            clock=ground.clock,
            metrics=ground.metrics,
            audit=ground.audit,
        )
        self._guards_before, self._rollovers_before = {}, {}  # which keep secrets that are gone

    def _guard(
        self, account: str, name: str, rate: RateLimitItem | None, *, paced: bool = False
    ) -> Guard:
        """The one guard of an account, which keeps its breaker over a reload."""
        self._limits[account] = rate
        if account not in self.guards:
            ground = self._ground
            self.guards[account] = self._guards_before.get(account) or Guard(
                name,
                account=account,
                paced=paced,
                clock=ground.clock,
                metrics=ground.metrics,
                limits=ground.rates,
                loop_time=ground.loop_time,
                rate=rate,
                most=self.snapshot.calls_at_once,
            )
        return self.guards[account]

    def _tokens(self, before: Assembly | None) -> dict[str, Cached]:
        """Access tokens are kept over a reload: their credential reads its secrets anew itself."""
        ground, found = self._ground, {}
        for name, entry in self.snapshot.credentials.items():
            place = ("credential", name)
            # what is asked for here are the flights of one cache, which makes its own pauses
            guard = self._guard(
                f"credential {name} {entry.token_url}",
                f"token:{name}",
                entry.upstream_limit,
                paced=True,
            )
            if before is not None and self._same_client(name, before):
                self.rollovers[place] = before.rollovers[place]
                found[name] = before.tokens[name]
                continue
            oauth = OAuth(
                name,
                entry,
                ground.keyring,
                ground.transport,
                ground.clock,
                ground.metrics,
                guard,
                ground.state.vault.name_of,
            )
            self.rollovers[place] = oauth.rollover
            found[name] = self._cached(name, entry, oauth)
        return found

    def _same_client(self, name: str, before: Assembly) -> bool:
        """Tokens belong to a client: another id, though it be in the same file, is another one."""
        entry = self.snapshot.credentials[name]
        if before.snapshot.credentials.get(name) != entry:
            return False
        id_ = entry.client_id
        return self._secrets[id_] == before._secrets.get(id_)

    def _cached(self, name: str, entry: CredentialEntry, oauth: OAuth) -> Cached:
        ground = self._ground
        floor = entry.min_remaining.total_seconds() if entry.min_remaining else None
        shared = Shared(
            oauth,
            ground.state.tokens,
            ground.clock,
            ground.metrics,
            name,
            entry.timeout.total_seconds(),
            min_remaining=floor,
            spawn=ground.tasks.spawn,
        )
        return Cached(
            shared,
            ground.clock,
            ground.metrics,
            name,
            min_remaining=floor,
            spawn=ground.tasks.spawn,
        )

    def _upstream(self, profile: Profile, tokens: Cached | None, budget: float) -> Upstream:
        ground = self._ground
        held = profile.preset.file.authorization.secrets
        groups = {name: profile.secrets[name] for name in held if name in profile.secrets}
        return Upstream(
            profile,
            rollover=self._rollover(profile, groups) if groups else None,
            transport=ground.transport,
            tokens=tokens,
            guard=self._guard(profile.account, profile.name, profile.upstream_limit),
            clock=ground.clock,
            metrics=ground.metrics,
            timeout=budget,
        )

    def _rollover(self, profile: Profile, groups: Mapping[str, tuple[SecretRef, ...]]) -> Rollover:
        """Which knows the earlier values of secrets, so is kept for one address only: what was in a
        file when it meant another one is not shown to this one."""
        place = (profile.preset.name, profile.base_url, tuple(groups.items()))
        if place not in self.rollovers:
            ground = self._ground
            self.rollovers[place] = self._rollovers_before.get(place) or Rollover(
                groups, ground.keyring, ground.clock, ground.metrics
            )
        return self.rollovers[place]

    @property
    def rolled_over(self) -> set[SecretRef]:
        """Secrets whose earlier values are at hand."""
        return {ref for one in self.rollovers.values() for ref in one.refs}

    def retire(self, successor: Assembly, *, hope: bool) -> None:
        """Another one is in force: what that has not taken over reads no more secrets and fetches
        nothing behind. hope: a secret changed, so what was refused may be taken now."""
        for account, rate in successor._limits.items():
            successor.guards[account].rate = rate
        for account, guard in self.guards.items():
            if account not in successor.guards:
                guard.retire()
        for place, rollover in self.rollovers.items():
            if successor.rollovers.get(place) is not rollover:
                rollover.freeze()
        for name, tokens in self.tokens.items():
            if successor.tokens.get(name) is not tokens:
                tokens.retire()
        if hope:
            for guard in successor.guards.values():
                guard.hope()
            for tokens in successor.tokens.values():
                tokens.hope()

    def _door(self, budget: float, before: Assembly | None) -> Door:
        """The door, with what it has proven; a new one where anything about callers changed."""
        snapshot, ground = self.snapshot, self._ground
        if before is not None and self._same_callers(before):
            return before.door
        return Door(
            snapshot.callers,
            anonymous=snapshot.anonymous,
            keyring=ground.keyring,
            transport=ground.transport,
            clock=ground.clock,
            metrics=ground.metrics,
            budget=budget,
            spawn=ground.tasks.spawn,
            before=before.door if before else None,
        )

    def _same_callers(self, before: Assembly) -> bool:
        one, other = self.snapshot, before.snapshot
        return (
            (one.callers, one.anonymous) == (other.callers, other.anonymous)
            and one.server.request_budget == other.server.request_budget
            and all(
                self._secrets[ref] == before._secrets.get(ref)
                for at, ref in secret_refs(one)
                if at.startswith("/callers/")
            )
        )


def _origins(snapshot: Snapshot) -> Origins:
    def uses_cookies(profile: Profile) -> bool:
        entries = [snapshot.callers.get(name) for name in profile.callers]
        return any(isinstance(e, ForwardAuthCaller) and "cookie" in e.headers for e in entries)

    by_profile = {
        name: dict.fromkeys(profile.origins, uses_cookies(profile))
        for name, profile in snapshot.profiles.items()
    }
    together: dict[str, bool] = {}
    for origins in by_profile.values():
        for origin, credentials in origins.items():
            together[origin] = together.get(origin, False) or credentials
    return Origins(by_profile, together)
