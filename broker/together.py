"""What must hold between the entries of one configuration, each of which is good by itself.

Only what nobody could see in one entry alone: that keys, addresses and lives fit together, that who
is trusted is no browser, that what is exposed is exposed to services.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker.errors import Fault
from broker.faults import pointer
from broker.file import CallerEntry, ConfigFile, CredentialEntry, ForwardAuthCaller, Server
from broker.model import Reuse
from broker.presets import environment_of
from broker.snapshot import ANONYMOUS, Profile
from broker.urls import plain_http


class Together:
    """One pass over what was read."""

    def __init__(
        self,
        tree: Mapping[str, Any],
        callers: Mapping[str, CallerEntry],
        credentials: Mapping[str, CredentialEntry],
        profiles: Mapping[str, Profile],
        faults: list[Fault],
    ) -> None:
        """tree: the file as it stands; faults: those found so far, which this adds to."""
        self._tree = tree
        self._callers = callers
        self._credentials = credentials
        self._profiles = profiles
        self._faults = faults

    def _fault(self, at: str, reason: str) -> None:
        self._faults.append(Fault(at, reason))

    def _faulty(self, at: str) -> bool:
        return any(fault.pointer.startswith(at) for fault in self._faults)

    def check(self, top: ConfigFile) -> None:
        """Tells every fault."""
        self._server(top.server)
        for name, credential in self._credentials.items():
            self._exposure(pointer("credentials", name, "expose_to"), credential)
        self._state(top)
        for profile in self._profiles.values():
            at = pointer("profiles", profile.name)
            self._budget(at, profile)
            self._base_url(at, profile, top)
            self._authorization(at, profile)
            self._trusted(at, profile)
            self._lives(at, profile)
            if not self._tree.get("keys") and profile.gives_handles and not self._faulty("/keys"):
                self._fault(
                    "/keys",
                    "a profile gives out handles, which are sealed: name a key file with 32 bytes "
                    "or more (head -c 32 /dev/urandom | base64 > seal.key)",
                )

    def _state(self, top: ConfigFile) -> None:
        if top.state is not None and not top.keys and not self._faulty("/keys"):
            self._fault("/keys", "what is kept in the store is sealed: name a key file")

    def _budget(self, at: str, profile: Profile) -> None:
        """One account has one budget, whichever of its profiles calls."""
        others = (one for one in self._profiles.values() if one.account == profile.account)
        first = next(others)
        if first.upstream_limit != profile.upstream_limit:
            self._fault(
                f"{at}/upstream_limit",
                f"calls the same account as {first.name!r}, whose limit is another",
            )

    def _base_url(self, at: str, profile: Profile, top: ConfigFile) -> None:
        if not profile.base_url:
            self._fault(f"{at}/base_url", "is required: the preset names none")
        if "?" in profile.base_url:
            self._fault(f"{at}/base_url", "has no query: paths are put after it")
        own = "base_url" in self._tree["profiles"][profile.name]
        if not own and plain_http(profile.base_url, top.outbound.insecure_http_hosts):
            self._fault(f"{at}/preset", "its base_url is plain http; give the profile another")

    def _lives(self, at: str, profile: Profile) -> None:
        """Lifetimes that a session of the preset can have."""
        file = profile.preset.file
        most = file.answer.expiry.most.total_seconds()
        lifetime = file.answer.expiry.lifetime
        if lifetime and not 1 <= profile.fixed[lifetime] <= most:
            self._fault(at + pointer(lifetime), f"is from 1s to {most:g}s")
        elif profile.min_remaining is not None and profile.min_remaining >= profile.longest:
            told = f"no session of this preset lives {profile.longest:g}s"
            self._fault(f"{at}/min_remaining", told)
        if profile.rotation and file.reuse is Reuse.SINGLE_USE:
            self._fault(f"{at}/rotation", "sessions of this preset are for one use; remove it")

    def _authorization(self, at: str, profile: Profile) -> None:
        """What the profile shows its upstream: of one kind, and of the same environment."""
        file = profile.preset.file
        how = file.authorization
        secret = how.secret if how.secret in profile.secrets else None
        if how.access_token and how.secret and (secret is None) == (profile.credential is None):
            self._fault(f"{at}/credential", f"give exactly one of credential and {how.secret}")
        elif how.access_token and not how.secret and profile.credential is None:
            self._fault(f"{at}/credential", "is required: the preset sends an access token")
        elif not how.access_token and profile.credential is not None:
            self._fault(f"{at}/credential", "is not used: the preset sends no access token")
        credential = self._credentials.get(profile.credential or "")
        if credential is None:
            return
        if how.scopes and credential.scope and not set(how.scopes) & set(credential.scope):
            wanted = " or ".join(how.scopes)
            self._fault(
                f"{at}/credential", f"asks for none of the scopes that this needs: {wanted}"
            )
        here = environment_of(file, profile.base_url)
        there = environment_of(file, credential.token_url, "token_url")
        if here is None or there is None:
            return
        if here[0] != there[0]:
            self._fault(f"{at}/credential", f"its tokens are of {there[0]}, base_url is {here[0]}")
        elif here[1] != there[1]:
            self._fault(f"{at}/base_url", "its account prefix is not that of the token_url")

    def _trusted(self, at: str, profile: Profile) -> None:
        """Trusted callers are servers: not those with which pages come, here or elsewhere."""

        def is_of_pages(name: str) -> bool:
            if profile.origins and profile.callers <= profile.trusted:
                return True
            others = (one for one in self._profiles.values() if name not in one.trusted)
            return any(name in one.callers and one.origins for one in others)

        for name in sorted(profile.trusted):
            entry = self._callers.get(name)
            if name not in profile.callers:
                self._fault(f"{at}/allow/trusted", f"{name!r} is not among allow.callers")
            elif name == ANONYMOUS or isinstance(entry, ForwardAuthCaller) or is_of_pages(name):
                self._fault(f"{at}/allow/trusted", f"{name!r} speaks for browsers")
        for name in sorted(profile.trusted_parameters if not profile.trusted else ()):
            at_it = f"{at}/parameters{pointer(name)}"
            self._fault(at_it, "nobody may send it: allow.trusted names no caller")

    def _server(self, server: Server) -> None:
        public, ops = server.public, server.ops
        anywhere = {public.host, ops.host} & {"0.0.0.0", "::"}  # noqa: S104  (compared, not bound)
        same = public.host == ops.host or anywhere
        if public.port and public.port == ops.port and same:
            self._fault(
                "/server/ops/port", "is the public listener's; metrics need one of their own"
            )
        if server.shutdown_grace < server.request_budget:
            self._fault(
                "/server/shutdown_grace",
                "is shorter than request_budget: requests would be cut off",
            )

    def _exposure(self, at: str, credential: CredentialEntry) -> None:
        for name in credential.expose_to:
            entry = self._callers.get(name)
            if entry is None:
                if name not in (self._tree.get("callers") or {}):
                    self._fault(at, f"there is no caller {name!r} under callers")
            elif entry.type == "forward_auth" or any(
                name in profile.callers - profile.trusted and profile.origins
                for profile in self._profiles.values()
            ):
                self._fault(
                    at, f"{name!r} speaks for browsers; access tokens are for services only"
                )
