"""Every series: named, explained, bounded, and readable by prometheus_client's own parsers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable

from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic

from broker.errors import problem_types
from broker.metrics import Metrics
from broker.model import Outcome
from tests.harness import Broker, broker, problem

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
FOREIGN = ("process_", "python_")
OURS = {
    "operation", "profile", "outcome", "problem", "reason", "kind", "source", "upstream", "caller", "credential",
    "version", "python", "digest", "slot", "le",
}  # fmt: skip


def used() -> Metrics:
    """Metrics in which everything has happened once."""
    metrics = Metrics()
    metrics.started("1.0", "3.11")
    metrics.configured("abc", 1.0)
    metrics.ready(True)
    metrics.serves("session", "p")
    for outcome in Outcome:
        metrics.request_answered("mint", "p", outcome, 0.1)
        metrics.upstream_answered("p", "session", outcome, 0.1)
        metrics.access_token_refreshed("c", outcome)
    metrics.token_served("session", "p", 600, 30)
    metrics.mint_unknown("p")
    for word in ("on_time", "late", "deduplicated", "refused", "failed"):
        metrics.rotated("p", word)
    metrics.replayed("p")
    metrics.authenticated("users", "ok")
    metrics.keys_loaded("users", True)
    metrics.keys_loaded("users", False)
    metrics.access_token_held("c", 2.0, 1.0)
    metrics.lifetime_assumed("c")
    metrics.secret_read("env NMI", 1.0)
    metrics.access_token_shared("c", "adopted")
    metrics.store_answered("get", "ok")
    metrics.store_up(False)
    metrics.circuit("p", 2)
    metrics.upstream_in_flight("p", 1)
    metrics.upstream_shed("p", "circuit")
    metrics.upstream_retried("p", "token")
    metrics.secret_worked("env NMI", "newest", 1.0)
    metrics.secret_refused("env NMI", "older")
    metrics.reloaded("ok")
    metrics.stale(True)
    metrics.shed.inc()
    metrics.in_flight.inc()
    return metrics


def families(metrics: Metrics, accept: str = OPENMETRICS) -> list[Metric]:
    body, content_type = metrics.render(accept)
    parse = openmetrics if "openmetrics" in content_type else classic
    return list(parse(body.decode()))


def series(found: Iterable[Metric]) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {(s.name, tuple(sorted(s.labels.items()))) for f in found for s in f.samples}


def test_every_series_has_our_prefix_and_a_help_text() -> None:
    """All is broker_ but the collectors of process and interpreter; each says what it is in a
    sentence; label names are from one short list."""
    for family in families(used()):
        assert family.name.startswith(("broker_", *FOREIGN))
        assert len(family.documentation) > 4
        if not family.name.startswith(FOREIGN):
            assert (
                family.documentation.endswith(".")
                or ";" in family.documentation
                or (":" in family.documentation)
            )
            for sample in family.samples:
                assert sample.labels.keys() <= OURS, sample


def test_names_follow_the_conventions() -> None:
    """Counters end in _total, times are in seconds, instants are timestamps, no _created series."""
    for family in families(used()):
        if family.name.startswith(FOREIGN):
            continue
        assert re.fullmatch(r"[a-z_]+", family.name)
        for sample in family.samples:
            assert not sample.name.endswith("_created")
            if family.type == "counter":
                assert sample.name == f"{family.name}_total"
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
        assert not re.search(r"_(ms|milliseconds|minutes|age)\b", family.name)


def test_both_formats_are_valid_and_say_the_same() -> None:
    """OpenMetrics and the classic format parse with prometheus_client's own parsers, with the same
    series; OpenMetrics comes only where it is asked for."""
    metrics = used()
    body, content_type = metrics.render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    body, content_type = metrics.render("")
    assert content_type.startswith("text/plain; version=0.0.4")
    assert b"# EOF" not in body
    assert series(families(metrics)) == series(families(metrics, ""))


def test_hostile_names_are_escaped() -> None:
    """Profile names with quotes, line breaks and backslashes do not forge a series."""
    metrics = Metrics()
    names = ['a"} 1\nbroker_forged 1\n', "back\\slash", "line\nbreak", "ü", ""]
    for name in names:
        metrics.mint_unknown(name)
    for accept in (OPENMETRICS, ""):
        found = {f.name.removesuffix("_total"): f for f in families(metrics, accept)}
        assert "broker_forged" not in found
        unknown = found["broker_unknown_mints"]
        assert {s.labels["profile"] for s in unknown.samples} == set(names)


@given(st.one_of(st.text(max_size=60), st.from_regex(r"application/openmetrics-text;.{0,40}")))
@example("application/openmetrics-text; version=abc")
@example("application/openmetrics-text; version=")
@example("application/openmetrics-text; version=1.0.0; escaping=nonsense")
@example("application/openmetrics-text; version=99999999999999999999.0")
@example("text/plain; version=1.0.0; escaping=allow-utf-8;;==")
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_accept_header_is_answered(accept: str) -> None:
    """Whatever a scraper asks for, it gets one of the formats."""
    body, content_type = METRICS.render(accept)
    assert content_type.startswith(("application/openmetrics-text", "text/plain"))
    assert b"broker_requests_in_flight" in body


METRICS = used()


def test_below_floor_is_there_from_the_start() -> None:
    """The counter that must stay 0 is 0, not absent, before the first hand-out; and the right
    hand-outs count."""

    async def story() -> None:
        async with broker() as told:
            name = "broker_tokens_served_below_floor_total"
            labels = {"kind": "session", "source": "transactions"}
            assert told.sample(name, **labels) == 0
            await told.mint()
            assert told.sample(name, **labels) == 0
            told.app.metrics.token_served("session", "transactions", 30.0, 30.0)
            assert told.sample(name, **labels) == 0
            told.app.metrics.token_served("session", "transactions", 29.999, 30.0)
            assert told.sample(name, **labels) == 1

    asyncio.run(story())


def test_apps_do_not_share_series() -> None:
    """Two apps in one process count apart."""
    one, other = Metrics(), Metrics()
    one.mint_unknown("p")
    assert one.registry.get_sample_value("broker_unknown_mints_total", {"profile": "p"}) == 1
    assert other.registry.get_sample_value("broker_unknown_mints_total", {"profile": "p"}) is None


async def _everything_wrong(told: Broker) -> None:
    for number in range(30):
        await told.mint(profile=f"made-up-{number}")
        await told.mint(token=told.jwt(f"subject-{number}", issuer=f"issuer-{number}"))
        await told.mint({"parameters": {f"p{number}": number}})
        await told.mint(origin=f"https://o{number}.example")
        await told.rotate(f"handle-{number}")
        await told.post(f"/v1/sessions/actions/a{number}", {"handle": "x"})
        await told.client.request(f"M{number}", f"/nowhere/{number}")
        assert problem(await told.client.get(f"/v1/access-tokens/c{number}"))


def test_label_values_are_configured_or_enumerated() -> None:
    """After requests that are wrong in every way, each label value is one that the configuration
    or an enum has, and asking again adds no series."""

    async def story() -> None:
        async with broker() as told:
            await told.mint()
            await _everything_wrong(told)
            found = families(told.app.metrics)
            before = series(found)
            await _everything_wrong(told)
            assert series(families(told.app.metrics)) == before
            known = {
                "profile": {"", "transactions"},
                "upstream": {"transactions"},
                "outcome": {
                    *Outcome,
                    "cached",
                    "refused",
                    "failed",
                    "on_time",
                    "late",
                    "deduplicated",
                },
                "problem": {"", *(kind.slug for kind in problem_types())},
                "caller": {"", "shop-users", "others", "none", "unknown"},
                "kind": {"session", "access_token"},
                "credential": set(),
            }
            for family in found:
                for sample in family.samples:
                    for label, value in sample.labels.items():
                        if family.name.startswith("broker_") and label in known:
                            assert value in known[label], sample

    asyncio.run(story())
