"""The token endpoint of an OAuth 2 upstream: one request for an access token (RFC 6749 §4.4).

Exists so that the rest of the house knows access tokens but no OAuth. `proofs` proves the client,
`rollover` says with which version of its secrets, the request goes through the one `Transport`, and
`guard` says when, and whether once more. Keeps no token: that is `tokens.Cached`. Must never try
another secret but on a refusal of the first, or let a word of an answer or a secret into an
exception or a log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from urllib.parse import urlencode

import structlog

from broker.errors import (
    BrokerError,
    ConfigError,
    Fault,
    Throttled,
    UpstreamNonsense,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
    outcome_of,
)
from broker.faults import pointer
from broker.file import CredentialEntry
from broker.guard import Guard
from broker.keyring import Keyring
from broker.kinds import SecretRef
from broker.metrics import Metrics
from broker.model import JSON, AccessToken, Life, Outcome, Priority, Secret
from broker.rollover import Rollover, Shown
from broker.schedule import Clock, parse_retry_after
from broker.strict import Unreadable, read_json
from broker.upstreams.proofs import Proofs, Prove, Unusable
from broker.upstreams.transport import Answer, Transport

BODY_LIMIT = 64 << 10
"""Bytes: a token of 16 KiB already fits no upstream's header limit."""
BEHIND = 0.25
"""Share of its time that a request made behind a good token has for one attempt: it is out of the
way when somebody comes to need one (SPIRE has 2 s of 10)."""

_CODES = (
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
)
"""RFC 6749 §5.2; any other text in `error` is the upstream's own and goes nowhere."""
_PRINTABLE = re.compile(r"[\x21-\x7e]+")
_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.ASCII)
_HEADERS = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}

_log = structlog.get_logger("oauth")


class OAuth:
    """A `TokenSource` that asks its token endpoint each time it is asked."""

    def __init__(
        self,
        name: str,
        entry: CredentialEntry,
        keyring: Keyring,
        transport: Transport,
        clock: Clock,
        metrics: Metrics,
        guard: Guard,
        digest: Callable[[str], str],
    ) -> None:
        """digest: a keyed one, for `request_key`. Raises ConfigError for a bad key."""
        self._name = name
        self._entry = entry
        self._transport = transport
        self._clock = clock
        self._metrics = metrics
        self._guard = guard
        self._digest = digest
        self._timeout = entry.timeout.total_seconds()
        self._form = self._form_of()
        key = _listed(entry.private_key)
        self._groups = {
            "client_id": _listed(entry.client_id),
            "private_key" if key else "client_secret": key or _listed(entry.client_secret),
        }
        self.rollover = Rollover(self._groups, keyring, clock, metrics, same=("client_id",))
        self._proofs = Proofs(entry, clock)
        self._slow = False
        try:
            for shown in self.rollover.current():
                _ = self._proofs.of(shown.values)
        except Unusable as exc:
            at = pointer("credentials", name, "private_key")
            raise ConfigError([Fault(at, str(exc))]) from None

    async def token(
        self, *, min_fresh: float = 0.0, priority: Priority = Priority.PERSON
    ) -> AccessToken:
        """A new token, with its whole life left; what `min_fresh` compares is up to the caller."""
        deadline = self._clock.monotonic() + self._timeout
        with _counted(lambda outcome: self._metrics.access_token_refreshed(self._name, outcome)):
            try:
                found = await self._ask_with_each_version(deadline, priority)
            except UpstreamTimeout:
                self._slow = True
                raise
            self._slow = False
            return found

    def forget(self, *, older_than: float) -> None:
        """Nothing is held here."""

    def request_key(self) -> str:
        """A digest of everything that shapes the request: who shares it may share tokens.

        Of the client its ids, by value, so that no client is ever served with another's token; of
        its secrets where they are, and not what they are. A token is granted to the client, by
        whatever it proved itself, so replicas that read a replaced secret a second apart, or are
        restarted and know no earlier value, go on sharing. Two credentials whose secrets are in
        different places share nothing, for servers where all clients have one id and the secret
        alone says who they are. JSON, as joined texts would let one field end where another begins.
        """
        entry = self._entry
        ids = [shown.values["client_id"].reveal() for shown in self.rollover.current()]
        places = {name: [ref.source for ref in refs] for name, refs in self._groups.items()}
        shape = {
            "token_url": entry.token_url,
            "client_id": sorted(set(ids)),
            "client_auth": entry.client_auth,
            "basic_encoding": entry.basic_encoding,
            "places": {name: sorted(sources) for name, sources in places.items()},
            "assertion": [entry.assertion_alg, entry.assertion_kid, entry.assertion_audience],
            "scope": sorted(entry.scope),
            "audience": entry.audience,
            "resource": entry.resource,
            "parameters": sorted(entry.parameters.items()),
            "lives": [str(entry.default_lifetime), str(entry.max_lifetime)],
        }
        return self._digest(json.dumps(shape))

    async def _ask_with_each_version(self, deadline: float, priority: Priority) -> AccessToken:
        """With one version of the secrets after another, and, where the endpoint knows none, with
        what may have been put there meanwhile: a secret is replaced after its successor is made."""
        tried: set[tuple[Secret, ...]] = set()
        refusal: UpstreamRefused | None = None
        for again in (False, True):
            if again:
                _ = await self.rollover.reread()
            for shown in self.rollover.order():
                if shown.key in tried:
                    continue
                tried.add(shown.key)
                try:
                    found = await self._ask_with(shown, deadline, priority)
                except _UnknownClient as error:
                    self.rollover.refused(shown)
                    refusal = error
                else:
                    self.rollover.worked(shown)
                    return found
        raise refusal or AssertionError("a credential has at least one version")

    async def _ask_with(self, shown: Shown, deadline: float, priority: Priority) -> AccessToken:
        try:
            prove = self._proofs.of(shown.values)
        except Unusable as exc:  # a file that was replaced since the start
            cause = f"the private key {exc}"
            raise _UnknownClient("The broker's credential cannot be used.", cause=cause) from None
        behind = priority is not Priority.PERSON and not self._slow

        async def attempt(seconds: float) -> AccessToken:
            return await self._ask(
                prove, min(seconds, self._timeout * BEHIND if behind else seconds)
            )

        return await self._guard.call(
            attempt, deadline=deadline, priority=priority, operation="token", again=self._again
        )

    def _again(self, error: BrokerError) -> bool:
        """A token too many harms nobody. But an endpoint that was too slow last time gets all of
        the time for one attempt, as it would be too slow for a part of it again."""
        if isinstance(error, UpstreamTimeout):
            return not self._slow
        passing = isinstance(error, UpstreamUnavailable | UpstreamNonsense)
        return passing and not isinstance(error, Throttled | _Settled)

    async def _ask(self, prove: Prove, seconds: float) -> AccessToken:
        headers, form = prove(dict(_HEADERS), self._form)
        sent = self._clock.monotonic()
        wall = self._clock.now()

        def count(outcome: Outcome) -> None:
            took = self._clock.monotonic() - sent
            self._metrics.upstream_answered(self._name, "token", outcome, took)

        with _counted(count):
            answer = await self._transport.send(
                "POST",
                self._entry.token_url,
                headers=headers,
                body=form.encode(),
                timeout=seconds,
                limit=BODY_LIMIT,
            )
            tree = self._granted(answer)
            lifetime = self._lifetime(tree.get("expires_in"))
            life = Life(wall + lifetime, lifetime, sent + lifetime.total_seconds())
            return self._token(tree, life, sent)

    def _granted(self, answer: Answer) -> dict[str, JSON]:
        """The members of an answer that grants; an error for every other answer."""
        status = answer.status
        if status >= 500 or status in (408, 429):
            wait = None  # which only these two statuses come with
            if status in (429, 503):
                wait = parse_retry_after(answer.headers.get("retry-after"), self._clock.now())
            kind = Throttled if status == 429 else UpstreamUnavailable
            raise kind("The token endpoint is unwell.", cause=f"HTTP {status}", retry_after=wait)
        try:
            tree = read_json(answer.body)
        except Unreadable:
            tree = None
        error = tree.get("error") if isinstance(tree, dict) else None
        if status == 406 or status < 200 or 300 <= status < 400:
            raise _Settled("The token endpoint's answer is none.", cause=f"HTTP {status}")
        if status >= 400 or error is not None:
            raise _refused(status, error)
        if not isinstance(tree, dict):
            raise UpstreamNonsense("The token endpoint's answer is no JSON object.")
        return tree

    def _token(self, tree: dict[str, JSON], life: Life, sent: float) -> AccessToken:
        value, kind = tree.get("access_token"), tree.get("token_type")
        # RFC 6749 §5.1: a scope that is left out is the one that was asked for.
        scope = self._entry.scope if tree.get("scope") is None else tree["scope"]
        if not isinstance(value, str) or not _PRINTABLE.fullmatch(value):
            raise UpstreamNonsense("The token endpoint's answer has no usable access token.")
        if not isinstance(kind, str) or kind.lower() != "bearer":
            raise _Settled("The token endpoint's token is not a bearer token.")
        if isinstance(scope, list) and all(isinstance(one, str) for one in scope):
            scope = " ".join(scope)
        if not isinstance(scope, str):
            raise _Settled("The token endpoint's scope is not a text.")
        return AccessToken(Secret(value), "Bearer", scope, life, sent)

    def _lifetime(self, value: JSON) -> timedelta:
        """`expires_in`, within reason; where it is absent, what is configured."""
        asked = self._entry.default_lifetime if value is None else _seconds(value)
        if asked is None:
            raise _Settled("The token endpoint did not say how long its token lives.")
        found = min(asked, self._entry.max_lifetime)
        if value is None or found < asked:
            self._metrics.lifetime_assumed(self._name)
            _log.warning("token_lifetime_assumed", credential=self._name, given=value is not None)
        return found

    def _form_of(self) -> str:
        entry = self._entry
        fields = [("grant_type", "client_credentials")]
        fields += [("scope", " ".join(entry.scope))] if entry.scope else []
        fields += [("audience", entry.audience)] if entry.audience is not None else []
        fields += [("resource", one) for one in entry.resource]
        fields += entry.parameters.items()
        return urlencode(fields)


class _UnknownClient(UpstreamRefused):
    """`invalid_client`: another secret may be the right one."""


class _Settled(UpstreamNonsense):
    """Said so clearly that it would be said again."""


def _listed(value: SecretRef | Sequence[SecretRef] | None) -> list[SecretRef]:
    return [value] if isinstance(value, SecretRef) else list(value or [])


def _seconds(value: JSON) -> timedelta:
    """Seconds as a number or, with some servers, a text of one; up to where `timedelta` ends."""
    if isinstance(value, str) and _SECONDS.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.001 <= value < 1e13:
        raise _Settled("The token endpoint's expires_in is not a time to come.")
    return timedelta(seconds=value)


def _refused(status: int, error: JSON) -> UpstreamRefused:
    """A 401 that names no error is `invalid_client` too: RFC 6749 has no other 401 here."""
    code = error if isinstance(error, str) and error in _CODES else ""
    unknown = code == "invalid_client" or (status == 401 and not code)
    return (_UnknownClient if unknown else UpstreamRefused)(
        "The token endpoint refused our credential or request.",
        cause=f"HTTP {status} {code}".rstrip(),
    )


@contextmanager
def _counted(count: Callable[[Outcome], None]) -> Iterator[None]:
    """Tells `count` how the block ended; a cancelled or broken one counts as internal."""
    outcome = Outcome.INTERNAL
    try:
        yield
        outcome = Outcome.OK
    except BrokerError as error:
        outcome = outcome_of(error)
        raise
    finally:
        count(outcome)
