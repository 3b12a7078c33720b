"""`decide`: what is not listed is refused, and less never gets more."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.config import parse
from broker.errors import (
    BrokerError,
    CallerError,
    Fault,
    InvalidParameters,
    NotPermitted,
    OriginNotAllowed,
    UnknownProfile,
)
from broker.model import JSON, Caller, Facts, Grant
from broker.policy import decide, follow_up, oversee, trusts
from broker.snapshot import Profile
from tests.checkout import config, parsed

ORIGIN = "https://app.shop.example"
FACTS = Facts(
    now=datetime(2026, 11, 20, 12, tzinfo=UTC),
    unique="3f0f3c0e-0000-4000-8000-000000000000",
    origin=ORIGIN,
    ip="203.0.113.9",
    user_agent="Mozilla/5.0 (ü)",
    accept="*/*",
)
BASE: dict[str, Any] = {
    "preset": "nmi",
    "api_key": {"env": "KEY"},
    "gateway": {"merchant_id": "${claims.merchant_id}", "environment": "sandbox"},
    "allow": {"callers": ["users"], "origins": [ORIGIN], "require": {"role": ["owner", "clerk"]}},
}
CHOICE: dict[str, Any] = {
    **BASE,
    "gateway": "${parameters.gateway}",
    "merchant-central": "${parameters.merchant-central}",
    "parameters": {
        "gateway": {"type": "object", "open": True},
        "merchant-central": {"type": "object", "open": True},
    },
    "merchant_from_parameters": True,
}
CLAIMS: dict[str, JSON] = {"merchant_id": "m-1", "role": "owner"}


def _profile(entry: dict[str, Any] = BASE, **changes: JSON) -> Profile:
    tree = {
        "keys": [{"env": "SEAL"}],
        "callers": {
            name: {"type": "jwt", "issuer": name, "audience": "us", "jwks": {"env": "JWKS"}}
            for name in ("users", "others")
        },
        "profiles": {"p": copy.deepcopy(entry) | changes},
    }
    return parse(json.dumps(tree).encode(), Path()).profiles["p"]


def _caller(claims: dict[str, JSON] = CLAIMS, name: str = "users") -> Caller:
    return Caller(name, "zoë", claims)


def _central(value: JSON, **parameters: JSON) -> Profile:
    entry = {k: v for k, v in BASE.items() if k != "gateway"}
    return _profile(entry, **{"merchant-central": value}, **parameters)


def _from(origin: str) -> Facts:
    return Facts(FACTS.now, FACTS.unique, origin, FACTS.ip, FACTS.user_agent, FACTS.accept)


def test_a_grant_says_exactly_what_may_be_minted() -> None:
    """Whole: profile, caller, parameters, settings with their holes filled, what came from the
    caller, and the facts."""
    caller = _caller()
    assert decide(_profile(), caller, {}, FACTS) == Grant(
        profile="p",
        caller=caller,
        parameters={},
        settings={
            "api_key_in": "body",
            "api_key_header": "X-Api-Key",
            "gateway": {"merchant_id": "m-1", "environment": "sandbox"},
        },
        bound={"claims.merchant_id": "m-1"},
        facts=FACTS,
    )


def test_a_caller_who_is_not_listed_sees_no_profile() -> None:
    """Whatever their claims are, and before anything else is looked at."""
    with pytest.raises(UnknownProfile):
        decide(_profile(), _caller(name="others"), {"bad": 1}, _from("https://evil.example"))


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "*", f"{ORIGIN}/", f"{ORIGIN}:443", ORIGIN.upper()]
)
def test_an_origin_that_is_not_listed_is_refused(origin: str) -> None:
    """Exactly those of the profile, compared as they are; none means no browser."""
    with pytest.raises(OriginNotAllowed):
        decide(_profile(), _caller(), {}, _from(origin))
    with pytest.raises(OriginNotAllowed):
        decide(_profile(allow={"callers": ["users"]}), _caller(), {}, FACTS)
    assert decide(_profile(), _caller(), {}, _from("")).profile == "p"


@pytest.mark.parametrize(
    ("role", "good"),
    [
        ("owner", True),
        ("clerk", True),
        (["guest", "clerk"], True),
        ("guest", False),
        ("", False),
        ("OWNER", False),
        ("owner clerk", False),
        ([], False),
        ([["owner"]], False),
        ({"owner": True}, False),
        (True, False),
        (None, False),
        (0, False),
    ],
)
def test_a_required_claim_has_an_accepted_value(role: JSON, good: bool) -> None:
    """As a text or in a list of texts; every other shape is a refusal."""
    caller = _caller(CLAIMS | {"role": role})
    if good:
        assert decide(_profile(), caller, {}, FACTS).settings["gateway"]
    else:
        with pytest.raises(NotPermitted):
            decide(_profile(), caller, {}, FACTS)


def test_every_required_claim_is_required() -> None:
    """One that is missing is enough to refuse; an empty list of accepted values accepts none."""
    both: JSON = {"role": "owner", "tier": ["gold"]}
    profile = _profile(allow={"callers": ["users"], "origins": [ORIGIN], "require": both})
    assert decide(profile, _caller(CLAIMS | {"tier": "gold"}), {}, FACTS)
    for claims in (CLAIMS, {"merchant_id": "m-1", "tier": "gold"}):
        with pytest.raises(NotPermitted):
            decide(profile, _caller(claims), {}, FACTS)
    none: JSON = {"callers": ["users"], "origins": [ORIGIN], "require": {"role": []}}
    with pytest.raises(NotPermitted):
        decide(_profile(allow=none), _caller(), {}, FACTS)


MISSHAPEN: list[JSON] = [
    None, "", " ", [], ["m-1"], {}, {"id": "m-1"}, 5, 1.5, True, "../m-1", "m/1", "m\\1", "m-1\n",
    "m-1\0", "\ud800", "m 1", "mé", "m%2f1", "${claims.role}", "x" * 65,
]  # fmt: skip


@pytest.mark.parametrize("value", MISSHAPEN, ids=ascii)
def test_a_claim_that_does_not_fit_is_a_refusal(value: JSON) -> None:
    """Missing, empty, of another type or form: NotPermitted, never an empty or mended text."""
    with pytest.raises(NotPermitted):
        decide(_profile(), _caller(CLAIMS | {"merchant_id": value}), {}, FACTS)


def test_a_missing_claim_is_a_refusal_within_text_too() -> None:
    """Also where the rest of the text would fit, and inside an open object."""
    for profile in (
        _profile(gateway={"merchant_id": "m-${claims.gone}"}),
        _central({"x": ["${claims.gone}"]}),
        _central("${claims.gone}"),
    ):
        with pytest.raises(NotPermitted):
            decide(profile, _caller(), {}, FACTS)
        with pytest.raises(NotPermitted):
            decide(profile, _caller({**CLAIMS, "gone": ""}), {}, FACTS)


@pytest.mark.parametrize("value", [5, 1.5, True, ["a"], {"b": [None]}, "text"])
def test_a_whole_hole_keeps_the_values_type(value: JSON) -> None:
    """A number stays one, an object too, where the setting takes it."""
    grant = decide(_central({"x": "${claims.v}"}), _caller(CLAIMS | {"v": value}), {}, FACTS)
    assert grant.settings["merchant-central"] == {"x": value}
    assert type(grant.settings["merchant-central"]["x"]) is type(value)


def test_every_hole_is_filled_from_where_it_says() -> None:
    """Claims, parameters, caller, request, the one UUID of the request, now and later."""
    holes = ["claims.role", "parameters.a", "caller.subject", "request.ip", "request.user_agent",
             "request.accept", "uuid4", "now", "now+15m"]  # fmt: skip
    profile = _central(
        {hole: f"${{{hole}}}" for hole in holes},
        parameters={"a": {"type": "integer"}},
        merchant_from_parameters=True,
        rotation={},
    )
    grant = decide(profile, _caller(), {"a": 7}, FACTS)
    expected = ["owner", 7, "zoë", "203.0.113.9", "Mozilla/5.0 (ü)", "*/*", FACTS.unique,
                "2026-11-20T12:00:00Z", "2026-11-20T12:15:00Z"]  # fmt: skip
    assert list(grant.settings["merchant-central"].values()) == expected
    assert grant.bound == {"claims.role": "owner", "parameters.a": 7, "caller.subject": "zoë"}


BOTH = "gateway and merchant-central exclude each other."
ONE_OF = (Fault("/parameters", "give exactly one of gateway and merchant-central"),)


@pytest.mark.parametrize(
    "parameters", [{}, {"gateway": {"merchant_id": "m"}, "merchant-central": {}}]
)
@pytest.mark.parametrize("profile", [CHOICE, BASE], ids=["choice", "fixed"])
def test_both_or_neither_of_nmis_ways_in_a_request(
    profile: dict[str, Any], parameters: dict[str, JSON]
) -> None:
    """Is an error that names both; also where the profile does not leave the choice at all (there,
    neither is right)."""
    if profile is BASE and not parameters:
        return
    with pytest.raises(InvalidParameters) as caught:
        decide(_profile(profile), _caller(), parameters, FACTS)
    assert (caught.value.detail, caught.value.faults) == (BOTH, ONE_OF)


@pytest.mark.parametrize("way", ["gateway", "merchant-central"])
def test_a_request_chooses_one(way: str) -> None:
    """And only that one is in the grant; it binds successors, where there are any."""
    grant = decide(_profile(CHOICE), _caller(), {way: {"merchant_id": "m-9"}}, FACTS)
    assert grant.settings.keys() & {"gateway", "merchant-central"} == {way}
    assert grant.settings[way] == {"merchant_id": "m-9"}
    assert grant.bound == {}
    rotating = decide(
        _profile({**CHOICE, "rotation": {}}), _caller(), {way: {"merchant_id": "m-9"}}, FACTS
    )
    assert rotating.bound == {f"parameters.{way}": {"merchant_id": "m-9"}}


@pytest.mark.parametrize(
    ("value", "at"),
    [
        (None, [""]), ("m", [""]), (5, [""]), ([], [""]), ({}, ["/merchant_id"]),
        ({"merchant_id": "../x"}, ["/merchant_id"]), ({"x": 1}, ["/merchant_id", ""]),
    ],
)  # fmt: skip
def test_what_a_request_says_must_fit_the_setting_too(value: JSON, at: list[str]) -> None:
    """The parameter's own declaration is not all: the preset's is checked again, filled, and its
    faults are told where the request said it."""
    with pytest.raises(InvalidParameters) as caught:
        decide(_profile(CHOICE), _caller(), {"gateway": value}, FACTS)
    found = [fault.pointer for fault in caught.value.faults]
    assert found == [f"/parameters/gateway{one}" for one in at]


def test_a_parameter_that_is_not_there() -> None:
    """A whole hole leaves its member out; within text, or where it is required, it is the
    request's fault, by name."""
    kind: JSON = {"a": {"type": "string"}}
    entry: JSON = {"merchant_id": "m-1", "environment": "${parameters.a}"}
    extra: dict[str, JSON] = {"parameters": kind, "merchant_from_parameters": True}
    grant = decide(_profile(gateway=entry, **extra), _caller(), {}, FACTS)
    assert grant.settings["gateway"] == {"merchant_id": "m-1"}
    for merchant in ("${parameters.a}", "m-${parameters.a}"):
        profile = _profile(gateway={"merchant_id": merchant}, **extra)
        with pytest.raises(InvalidParameters) as caught:
            decide(profile, _caller(), {}, FACTS)
        assert list(caught.value.faults) == [Fault("/parameters/a", "is missing or does not fit")]


def test_claims_do_not_stand_in_for_parameters_nor_parameters_for_claims() -> None:
    """A name that is the same is another value all the same."""
    kind: JSON = {"merchant_id": {"type": "string"}, "tier": {"type": "string"}}
    extra: dict[str, JSON] = {"parameters": kind, "merchant_from_parameters": True}
    by_request = _profile(gateway={"merchant_id": "${parameters.merchant_id}"}, **extra)
    with pytest.raises(InvalidParameters):
        decide(by_request, _caller(), {}, FACTS)
    by_claim = _profile(gateway={"merchant_id": "${claims.tier}"}, **extra)
    with pytest.raises(NotPermitted):
        decide(by_claim, _caller(), {"tier": "m-9", "merchant_id": "m-9"}, FACTS)
    given = decide(by_request, _caller(), {"merchant_id": "m-9"}, FACTS)
    assert given.settings["gateway"] == {"merchant_id": "m-9"}


@pytest.mark.parametrize("parameters", [None, [], "x", 5, [["gateway", "merchant-central"]]])
def test_parameters_are_an_object(parameters: JSON) -> None:
    """Any other shape is a fault, whether or not the profile declares something."""
    for profile in (_profile(), _profile(CHOICE)):
        with pytest.raises(InvalidParameters):
            decide(profile, _caller(), parameters, FACTS)


def test_undeclared_parameters_are_refused_without_an_echo() -> None:
    """Neither name nor value comes back; claims cannot be given as parameters."""
    for name in ("c4nary", "merchant_id", "claims.merchant_id", "role"):
        with pytest.raises(InvalidParameters) as caught:
            decide(_profile(), _caller(), {name: "c4nary"}, FACTS)
        reason = "has a member that is not declared; none declared"
        assert list(caught.value.faults) == [Fault("/parameters", reason)]
        assert "c4nary" not in str(caught.value) + caught.value.detail


# Laws, over questions that are sometimes granted.

LAW = settings(max_examples=400, deadline=None, derandomize=True)
NAMES = ["users", "others"]
ORIGINS = [ORIGIN, "https://other.example"]
VALUES = st.sampled_from(["owner", "clerk", "m-1", "m-2", "", None, 5, ["owner"], "../x"])
CLAIM_SETS = st.sampled_from([CLAIMS, CLAIMS | {"tier": "clerk"}]) | st.dictionaries(
    st.sampled_from(["role", "merchant_id", "tier"]), VALUES
)
GOOD: list[dict[str, JSON]] = [{}, {"gateway": {"merchant_id": "m-3"}}, {"merchant-central": {}}]
PARAMETERS = st.sampled_from([*GOOD, {"a": "m-4"}]) | st.dictionaries(
    st.sampled_from(["a", "gateway", "merchant-central", "nope"]), VALUES | st.just({}), max_size=2
)
KIND: dict[str, JSON] = {"type": "string"}
SHAPES = [
    entry | {"parameters": entry.get("parameters", {}) | more}
    for entry in (BASE, CHOICE)
    for more in ({}, {"a": KIND}, {"a": KIND | {"default": "m-5"}})
]
READY = [(entry, _profile(entry)) for entry in SHAPES]


def _allowing(
    ready: tuple[dict[str, Any], Profile],
    callers: list[str],
    origins: list[str],
    require: dict[str, list[str]],
) -> tuple[dict[str, Any], Profile]:
    entry, profile = ready
    accepted = {claim: frozenset(values) for claim, values in require.items()}
    return entry, replace(
        profile, callers=frozenset(callers), origins=frozenset(origins), require=accepted
    )


ENTRIES = st.builds(
    _allowing,
    st.sampled_from(READY),
    st.sampled_from([["users"], NAMES, ["others"]]),
    st.sampled_from([ORIGINS, [ORIGIN], []]),
    st.dictionaries(
        st.sampled_from(["role", "tier"]),
        st.sampled_from([["owner", "clerk"], ["owner"], []]),
        max_size=2,
    ),
)
QUESTIONS = st.tuples(
    st.builds(Caller, st.sampled_from(["users", *NAMES]), st.just("zoë"), CLAIM_SETS),
    PARAMETERS,
    st.sampled_from(["", ORIGIN, *ORIGINS]).map(_from),
)


def _granted(profile: Profile, caller: Caller, parameters: JSON, facts: Facts) -> Grant | None:
    try:
        return decide(profile, caller, parameters, facts)
    except CallerError:
        return None


def test_the_questions_are_worth_asking() -> None:
    """The laws below see both answers: a share of these questions is granted."""
    answers: list[bool] = []

    @LAW
    @given(ENTRIES, QUESTIONS)
    def ask(shape: Any, question: Any) -> None:
        answers.append(_granted(shape[1], *question) is not None)

    ask()
    assert 20 < sum(answers) < len(answers) - 20


@LAW
@given(ENTRIES, QUESTIONS)
def test_decide_is_total_and_pure(shape: Any, question: Any) -> None:
    """A grant or a refusal, and the same on the second time of asking."""
    before = copy.deepcopy(question)
    assert _granted(shape[1], *question) == _granted(shape[1], *question)
    assert question == before


def _narrower(profile: Profile) -> Iterator[Profile]:
    """The profile with one entry of `allow` less, or one requirement more, in every way."""
    for name in profile.callers:
        yield replace(profile, callers=profile.callers - {name})
    for origin in profile.origins:
        yield replace(profile, origins=profile.origins - {origin})
    for claim, accepted in profile.require.items():
        for value in accepted:
            yield replace(profile, require={**profile.require, claim: accepted - {value}})
    for claim in {"role", "tier"} - profile.require.keys():
        yield replace(profile, require={**profile.require, claim: frozenset({"owner"})})


@LAW
@given(ENTRIES, QUESTIONS)
def test_less_allowed_is_not_more_granted(shape: Any, question: Any) -> None:
    """Taking a caller, an origin or an accepted value out of `allow`, the last one too, or adding a
    requirement, never turns a refusal into a grant, and never changes what is granted."""
    wide = _granted(shape[1], *question)
    for profile in _narrower(shape[1]):
        narrow = _granted(profile, *question)
        assert narrow is None or narrow == wide


@LAW
@given(ENTRIES, QUESTIONS)
def test_fewer_claims_are_not_more_granted(shape: Any, question: Any) -> None:
    """Losing a claim never turns a refusal into a grant, and never changes the settings."""
    caller, parameters, facts = question
    wide = _granted(shape[1], *question)
    for gone in caller.claims:
        claims = {name: value for name, value in caller.claims.items() if name != gone}
        less = Caller(caller.name, caller.subject, claims)
        narrow = _granted(shape[1], less, parameters, facts)
        assert narrow is None or (wide is not None and wide.settings == narrow.settings)


@LAW
@given(ENTRIES, QUESTIONS)
def test_fewer_declared_parameters_are_not_more_granted(shape: Any, question: Any) -> None:
    """A parameter that the profile stops declaring cannot be given any more."""
    entry, profile = shape
    if "a" not in entry["parameters"]:
        return
    (without,) = [
        ready
        for other, ready in READY
        if other["gateway"] == entry["gateway"] and "a" not in other["parameters"]
    ]
    less = replace(
        without, callers=profile.callers, origins=profile.origins, require=profile.require
    )
    narrow, wide = _granted(less, *question), _granted(profile, *question)
    assert narrow is None or (wide is not None and wide.settings == narrow.settings)
    assert narrow is None or "a" not in question[1]


def _leaves(tree: JSON) -> set[str]:
    if isinstance(tree, dict):
        return set().union(*map(_leaves, tree.values()))
    return set().union(*map(_leaves, tree)) if isinstance(tree, list) else {repr(tree)}


@LAW
@given(ENTRIES, QUESTIONS)
def test_settings_hold_only_what_was_given(shape: Any, question: Any) -> None:
    """Every value of a grant's settings is the configuration's, a claim's or a declared
    parameter's; no secret is among them; exactly one of NMI's two ways is."""
    entry, profile = shape
    caller, parameters, _ = question
    grant = _granted(profile, *question)
    if grant is None:
        return
    defaults = {"'body'", "'X-Api-Key'", "'m-5'"}
    assert _leaves(dict(grant.settings)) <= (
        defaults | _leaves(entry) | _leaves(dict(caller.claims)) | _leaves(parameters)
    )
    assert grant.parameters.keys() <= entry["parameters"].keys()
    assert "api_key" not in grant.settings
    assert len(grant.settings.keys() & {"gateway", "merchant-central"}) == 1


@LAW
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=6,
    ),
    st.dictionaries(st.sampled_from(["merchant_id", "role"]), st.text(max_size=6) | st.integers()),
)
def test_any_parameters_and_claims_are_a_grant_or_a_refusal(
    parameters: JSON, claims: dict[str, JSON]
) -> None:
    """No other error, whatever a browser sends or an identity provider says."""
    for profile in (_BASE, _CHOICE):
        for tree in (parameters, {"gateway": parameters}, {"merchant-central": parameters}):
            try:
                decide(profile, _caller(CLAIMS | claims), tree, FACTS)
            except BrokerError as error:
                if not isinstance(error, CallerError):
                    raise


_BASE, _CHOICE = _profile(), _profile(CHOICE)


# --- whom a profile trusts


def _checkout(**changes: Any) -> Profile:
    return parsed(config(**changes).encode()).profiles["p"]


PAGE = Caller("pages", "ada", {"role": "owner", "order": "o-1"})
BACKEND = Caller("backend", "shop", {})
TOKEN: dict[str, JSON] = {"source": {"type": "token", "token": "tok_1"}}


def test_who_is_trusted() -> None:
    """By name, and never with a browser's Origin, not even one that is listed."""
    profile = _checkout()
    asked = [
        (PAGE, ""), (PAGE, ORIGIN), (BACKEND, ""), (BACKEND, ORIGIN), (BACKEND, "null"),
        (Caller("strangers", "shop", {}), ""), (Caller("Backend", "shop", {}), ""),
    ]  # fmt: skip
    assert [trusts(profile, caller, _from(origin)) for caller, origin in asked] == [
        False, False, True, False, False, False, False,
    ]  # fmt: skip
    assert not trusts(_checkout(allow__trusted=[]), BACKEND, _from(""))


def test_to_oversee_is_to_know_what_the_file_says() -> None:
    """Nothing of claims or parameters; refused to all others."""
    profile = _checkout(reference="${claims.order}")
    grant = oversee(profile, BACKEND, _from(""))
    assert (grant.settings, grant.parameters, grant.bound) == (profile.fixed, {}, {})
    assert "reference" not in grant.settings
    for caller, origin in ((PAGE, ""), (BACKEND, ORIGIN)):
        with pytest.raises(NotPermitted):
            oversee(profile, caller, _from(origin))


@pytest.mark.parametrize(
    "source",
    [
        "${parameters.source}",
        {"type": "token", "token": "${parameters.token}", "email": "${claims.order}"},
        {"type": "token", "token": "tok_1", "email": "${claims.order}"},
    ],
)
def test_a_follow_up_binds_as_the_mint_did(source: JSON) -> None:
    """Without the parameters, which no handle keeps: the same claims give the same bound."""
    declared = {"source": {"like": "source"}, "token": {"type": "string"}}
    profile = _checkout(
        source=source, channel_data=None, parameters=declared, reference="${claims.order}"
    )
    said = {**TOKEN, "token": "tok_1"} if "${" in str(source) else {}
    made = decide(profile, PAGE, said, FACTS)
    again = follow_up(profile, PAGE, {}, FACTS)
    assert again.bound == made.bound == {"claims.order": "o-1"}
    assert (again.parameters, "parameters" in str(again.settings)) == ({}, False)
    other = follow_up(profile, replace(PAGE, claims={"role": "owner", "order": "o-2"}), {}, FACTS)
    assert other.bound != made.bound


def test_a_follow_up_is_decided_anew() -> None:
    """Who lost the role, the place or the listing is refused."""
    profile = _checkout()
    follow_up(profile, PAGE, {}, FACTS)
    for caller, facts, kind in (
        (replace(PAGE, claims={}), FACTS, NotPermitted),
        (PAGE, _from("https://evil.example"), OriginNotAllowed),
        (replace(PAGE, name="others"), FACTS, UnknownProfile),
    ):
        with pytest.raises(kind):
            follow_up(profile, caller, {}, facts)


@pytest.mark.parametrize(
    ("parameters", "caller", "origin", "good"),
    [
        ({"amount": 1}, BACKEND, "", True),
        ({"amount": 1}, BACKEND, ORIGIN, False),
        ({"amount": 1}, PAGE, "", False),
        ({"amount": None}, PAGE, "", False),
        ({"amount": "x"}, BACKEND, "", False),
        ({}, PAGE, "", False),
        ({}, BACKEND, "", True),
    ],
)
def test_a_trusted_parameter(
    parameters: dict[str, JSON], caller: Caller, origin: str, good: bool
) -> None:
    """Is told in its place, before anything else is looked at."""
    profile = _checkout(
        amount="${parameters.amount}", parameters__amount={"like": "amount", "trusted": True}
    )
    caller = replace(caller, claims={"role": "owner"})
    if good:
        grant = decide(profile, caller, TOKEN | parameters, _from(origin))
        assert grant.settings.get("amount") == parameters.get("amount")
        return
    with pytest.raises(InvalidParameters) as caught:
        decide(profile, caller, TOKEN | parameters, _from(origin))
    assert [fault.pointer for fault in caught.value.faults] == ["/parameters/amount"]


def test_what_a_profile_has_not_opted_in() -> None:
    """Refused whoever asks, and nothing of the value is repeated."""
    card = {"type": "card", "number": "4242424242424242", "expiry_month": 1, "expiry_year": 2030}
    for caller in (PAGE, BACKEND):
        with pytest.raises(InvalidParameters) as caught:
            decide(_checkout(), caller, {"source": card}, _from(""))
        assert "4242" not in f"{caught.value!r} {vars(caught.value)}"
        grant = decide(_checkout(allow_card_numbers=True), caller, {"source": card}, _from(""))
        assert grant.settings["source"] == card
        assert not _checkout(allow_card_numbers=True).keeps_parameters
