"""Every Prometheus series in one class; one verb for each thing that happens.

The only room that knows prometheus_client. Label values come from the configuration and from
enums, never from a request, so the number of series is bounded by the configurations that were in
force; children are bound once, as looking them up costs more than counting. Instants are exported,
not ages.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from broker.model import Outcome

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LIFE = (5, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)


class Metrics:
    """One registry for one app, so that two apps in one process (tests) do not meet."""

    def __init__(self) -> None:
        # they would double the series, to tell what a counter that fell tells too
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"broker_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"broker_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"broker_{name}", text, labels, buckets=buckets, registry=registry)

        requests = counter(
            "requests", "Requests answered.", "operation", "profile", "outcome", "problem"
        )
        seconds = histogram(
            "request_duration_seconds", "Time to answer.", _LATENCY, "operation", "profile"
        )
        self._requests = cache(requests.labels)
        self._seconds = cache(seconds.labels)
        self.in_flight = gauge("requests_in_flight", "Requests being worked on.")
        self.shed = counter(
            "requests_shed", "Requests refused because they could not be finished in time."
        )
        self._turned_away = counter(
            "connections_refused", "Connections ended before there was a request.", "reason"
        )
        remaining = histogram(
            "token_remaining_seconds",
            "Life left in a token when handed out.",
            _LIFE,
            "kind",
            "source",
        )
        below = counter(
            "tokens_served_below_floor", "Hand-outs under the floor; must stay 0.", "kind", "source"
        )
        self._remaining = cache(remaining.labels)
        self._below = cache(below.labels)
        calls = counter(
            "upstream_requests", "Calls to upstreams.", "upstream", "operation", "outcome"
        )
        call_seconds = histogram(
            "upstream_duration_seconds", "Time of a call.", _LATENCY, "upstream", "operation"
        )
        self._calls = cache(calls.labels)
        self._call_seconds = cache(call_seconds.labels)
        unknown = counter(
            "unknown_mints", "Sessions that may exist and that nobody got.", "profile"
        )
        self._unknown = cache(unknown.labels)
        rotations = counter(
            "rotations",
            "Rotations: on_time, late, deduplicated, refused, failed.",
            "profile",
            "outcome",
        )
        self._rotations = cache(rotations.labels)
        replays = counter(
            "idempotent_replays", "Mints answered from an Idempotency-Key.", "profile"
        )
        self._replays = cache(replays.labels)
        callbacks = counter(
            "callbacks",
            "Posts of upstreams: verified, open, unknown, duplicate, ignored, dropped, refused, "
            "failed.",
            "profile",
            "kind",
            "outcome",
        )
        self._callbacks = cache(callbacks.labels)
        logins = counter("authentications", "Credentials judged.", "caller", "outcome")
        self._logins = cache(logins.labels)
        self._key_loads = counter("jwks_loads", "Loads of a key set.", "caller", "outcome")
        self._refreshes = counter(
            "access_token_refreshes", "Token requests.", "credential", "outcome"
        )
        self._expiry = gauge(
            "access_token_expiry_timestamp_seconds", "When the held token ends.", "credential"
        )
        self._refresh_after = gauge(
            "access_token_refresh_after_timestamp_seconds", "When it is replaced.", "credential"
        )
        self._assumed = counter(
            "access_token_lifetime_assumed", "Tokens whose life was not given or cut.", "credential"
        )
        self._secret_loaded = gauge(
            "secret_loaded_timestamp_seconds", "When a secret was read.", "source"
        )
        self.lines_lost = gauge("log_lines_lost", "Audit lines that could not be written.")
        self._build = gauge("build_info", "What runs.", "version", "python")
        self._config = gauge("config_info", "What is configured.", "digest")
        self._config_loaded = gauge("config_loaded_timestamp_seconds", "When it was loaded.")
        self.loop_lag = gauge(
            "loop_lag_seconds", "The longest that a timer of ours was late in the last seconds."
        )
        self.loop_stalled = counter(
            "loop_stalled_seconds", "Time in which our own event loop stood still."
        )
        self._ready = gauge("ready", "1 while /readyz says yes.")

        self._shared = counter(
            "access_tokens_shared",
            "Access tokens: made by a request, or adopted from what others had.",
            "credential",
            "outcome",
        )
        self._of_failures(counter, gauge)

    def _of_failures(self, counter: Callable[..., Counter], gauge: Callable[..., Gauge]) -> None:
        """What tells how the service fares while something else fails, or changes."""
        stored = counter("store_operations", "Calls to the shared store.", "operation", "outcome")
        self._stored = cache(stored.labels)
        self._store_up = gauge(
            "store_up",
            "1 while the shared store is read, written and counted in, or there is none.",
        )
        self._store_up.set(1)
        circuits = gauge(
            "circuit_state", "0 closed, 1 half-open, 2 open; of one upstream account.", "upstream"
        )
        self._circuits = cache(circuits.labels)
        calling = gauge("upstream_requests_in_flight", "Calls under way.", "upstream")
        self._calling = cache(calling.labels)
        self._not_sent = counter(
            "upstream_shed",
            "Calls not let out: circuit, cooldown, full, budget, late.",
            "upstream",
            "reason",
        )
        self._retried = counter(
            "upstream_retries", "Attempts after the first.", "upstream", "operation"
        )
        secret_worked = gauge(
            "secret_last_success_timestamp_seconds",
            "When an upstream last took this version of a secret: newest, older, previous.",
            "source",
            "slot",
        )
        self._secret_worked = cache(secret_worked.labels)
        self._secret_refused = counter(
            "secret_refusals", "Refusals of a secret by its upstream.", "source", "slot"
        )
        self._reloads = counter("reloads", "New versions of the files: ok, refused.", "outcome")
        for outcome in ("ok", "refused"):
            self._reloads.labels(outcome)
        self._stale = gauge(
            "config_stale", "1 while the files hold a version that is not in force."
        )

    def request_answered(
        self, operation: str, profile: str, outcome: Outcome, seconds: float, problem: str = ""
    ) -> None:
        """problem: the slug of the answer, "" for a good one."""
        self._requests(operation, profile, outcome.value, problem).inc()
        self._seconds(operation, profile).observe(seconds)

    def refused_early(self) -> None:
        """A request was not admitted, of which only the head was read."""
        self.shed.inc()
        self._requests("shed", "", Outcome.UNAVAILABLE.value, "overloaded").inc()

    def token_served(self, kind: str, source: str, remaining: float, floor: float) -> None:
        """kind: session or access_token; source: the profile or credential; both in seconds."""
        self._remaining(kind, source).observe(remaining)
        if remaining < floor:
            self._below(kind, source).inc()

    def connection_refused(self, reason: str) -> None:
        """reason: full, slow, stalled, oversized or malformed."""
        self._turned_away.labels(reason).inc()

    def serves(self, kind: str, source: str) -> None:
        """Makes the series exist, so that "stays 0" can be told from "is not there"."""
        self._below(kind, source)
        if kind == "session":
            self._requests("mint", source, Outcome.OK.value, "")
            self._unknown(source)
            for outcome in ("on_time", "late", "deduplicated", "refused", "failed"):
                self._rotations(source, outcome)

    def upstream_answered(
        self, upstream: str, operation: str, outcome: Outcome, seconds: float
    ) -> None:
        self._calls(upstream, operation, outcome.value).inc()
        self._call_seconds(upstream, operation).observe(seconds)

    def mint_unknown(self, profile: str) -> None:
        self._unknown(profile).inc()

    def rotated(self, profile: str, outcome: str) -> None:
        self._rotations(profile, outcome).inc()

    def called_back(self, profile: str, kind: str, outcome: str) -> None:
        """kind: event (signed) or hint; outcome: of a closed list, see the series."""
        self._callbacks(profile, kind, outcome).inc()

    def replayed(self, profile: str) -> None:
        self._replays(profile).inc()

    def authenticated(self, caller: str, outcome: str) -> None:
        """outcome: ok, cached, refused or unavailable."""
        self._logins(caller, outcome).inc()

    def keys_loaded(self, caller: str, ok: bool) -> None:
        self._key_loads.labels(caller, "ok" if ok else "failed").inc()

    def access_token_refreshed(self, credential: str, outcome: Outcome) -> None:
        self._refreshes.labels(credential, outcome.value).inc()

    def access_token_held(self, credential: str, expires_at: float, refresh_after: float) -> None:
        """Both in seconds since the epoch."""
        self._expiry.labels(credential).set(expires_at)
        self._refresh_after.labels(credential).set(refresh_after)

    def access_token_shared(self, credential: str, outcome: str) -> None:
        """outcome: made by a request, or adopted from what another replica, or another credential
        of the same client, had."""
        self._shared.labels(credential, outcome).inc()

    def store_answered(self, operation: str, outcome: str) -> None:
        """outcome: ok, error, timeout, or down: not asked, as it did not answer lately."""
        self._stored(operation, outcome).inc()

    def store_up(self, up: bool) -> None:
        self._store_up.set(1 if up else 0)

    def circuit(self, upstream: str, state: int) -> None:
        self._circuits(upstream).set(state)

    def upstream_in_flight(self, upstream: str, delta: int) -> None:
        self._calling(upstream).inc(delta)

    def upstream_shed(self, upstream: str, reason: str) -> None:
        self._not_sent.labels(upstream, reason).inc()

    def upstream_retried(self, upstream: str, operation: str) -> None:
        self._retried.labels(upstream, operation).inc()

    def secret_worked(self, source: str, slot: str, at: float) -> None:
        """at: seconds since the epoch."""
        self._secret_worked(source, slot).set(at)

    def secret_refused(self, source: str, slot: str) -> None:
        self._secret_refused.labels(source, slot).inc()

    def reloaded(self, outcome: str) -> None:
        self._reloads.labels(outcome).inc()

    def stale(self, is_stale: bool) -> None:
        self._stale.set(1 if is_stale else 0)

    def lifetime_assumed(self, credential: str) -> None:
        self._assumed.labels(credential).inc()

    def secret_read(self, source: str, at: float) -> None:
        self._secret_loaded.labels(source).set(at)

    def started(self, version: str, python: str) -> None:
        self._build.labels(version, python).set(1)

    def configured(self, digest: str, at: float) -> None:
        """One configuration is in force, the one before it no more."""
        self._config.clear()
        self._config.labels(digest).set(1)
        self._config_loaded.set(at)

    def ready(self, is_ready: bool) -> None:
        self._ready.set(1 if is_ready else 0)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type; OpenMetrics where `accept` asks for it."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is no version
            encode, content_type = choose_encoder("")
        return encode(self.registry), content_type
