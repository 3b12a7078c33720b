"""Presets: the packaged ones load, and what a preset cannot mean is refused when it is read."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.declared import OBSERVED, Declared
from broker.errors import ConfigError, Fault, UpstreamNonsense
from broker.holes import ABSENT, fill_tree, holes_in
from broker.model import Reuse
from broker.presets import environment_of, load_preset, packaged, parse_preset
from broker.presets.vocabulary import VERBATIM, PresetFile, Refusal, parts_of
from broker.upstreams.answers import session_of, shown
from broker.upstreams.transport import Answer
from tests.checkout import config, faults, parsed

NMI = Path(__file__).parents[1] / "broker" / "presets" / "nmi.yaml"
SMALL = """
summary: a small one
reuse: per_caller
base_url: https://api.example
settings:
  key: {type: secret, required: true}
  kind: {type: string, default: basic}
authorization: {secret: key}
request: {path: "/v1/${settings.kind}", json: {kind: "${settings.kind}", ref: "${uuid4}"}}
answer: {token: /token, expiry: {at: /expires}}
output: {id: "${session.id}", token: "${session.token}"}
actions:
  status:
    request: {method: GET, path: "/v1/${session.id}/${data.part}"}
    data: {part: {type: string}}
revoke: {method: DELETE, path: "/v1/${session.id}"}
"""


def _faults(old: str, new: str) -> list[Fault]:
    assert SMALL.count(old) == 1
    with pytest.raises(ConfigError) as caught:
        parse_preset("small", SMALL.replace(old, new))
    return list(caught.value.faults)


@pytest.mark.parametrize("name", packaged())
def test_every_packaged_preset_loads(name: str) -> None:
    """By its name, and it says what it is for."""
    preset = load_preset(name, Path("/nowhere"))
    assert preset.name == name
    assert preset.file.summary


def test_nmi_knows_who_the_merchant_is() -> None:
    """Gateway and Merchant Central exclude each other, and both say whose account it is."""
    file = load_preset("nmi", Path()).file
    assert file.exactly_one == [["gateway", "merchant-central"]]
    assert file.merchant == ["gateway", "merchant-central"]
    assert file.settings[file.authorization.secret or ""].type == "secret"


def test_the_small_one_is_good() -> None:
    """So that what is refused below is refused for what was changed."""
    assert parse_preset("small", SMALL).actions.keys() == {"status"}


@pytest.mark.parametrize(
    ("old", "new", "at", "reason"),
    [
        ("ref: \"${uuid4}\"", "ref: \"${nope}\"", "", "${nope} is not known here"),
        ("ref: \"${uuid4}\"", "ref: \"${settings.nope}\"", "", "${settings.nope} is not known here"),
        ("ref: \"${uuid4}\"", "ref: \"${settings.key}\"", "", "${settings.key} is not known here"),
        ("ref: \"${uuid4}\"", "ref: \"${claims.x}\"", "", "${claims.x} is not known here"),
        ("ref: \"${uuid4}\"", "ref: \"${session.id}\"", "", "${session.id} is not known here"),
        ("ref: \"${uuid4}\"", "ref: \"${data.part}\"", "", "${data.part} is not known here"),
        ("ref: \"${uuid4}\"", "ref: [{x: \"a ${settings.key}\"}]", "", "${settings.key} is not known here"),
        ("${data.part}", "${data.nope}", "", "${data.nope} is not known here"),
        ("${session.token}", "${settings.kind}", "", "${settings.kind} is not known here"),
        ("\"/v1/${session.id}\"", "\"/v1/${data.part}\"", "", "${data.part} is not known here"),
        ("{secret: key}", "{secret: key, header: \"${settings.key}\"}", "", "${settings.key} is not known here"),
        ("{secret: key}", "{secret: kind}", "", "authorization.secret names a required setting of type secret"),
        ("secret, required: true", "secret", "", "authorization.secret names a required setting of type secret"),
        ("{secret: key}", "{secret: nope}", "", "names settings that are not declared: nope"),
        ("{secret: key}", "{}", "/authorization", "give secret, access_token or both; or else form"),
        ("{secret: key}", "{secret: key, form: {a: key}}", "/authorization", "give secret, access_token or both; or else form"),
        ("{secret: key}", "{form: {a: kind}}", "", "authorization.secret names a required setting of type secret"),
        ("{secret: key}", "{secret: key, access_token: true}", "", "authorization.secret names a required setting of type secret, or an optional one beside access_token"),
        ("{secret: key}", "{secret: key, members: [key]}", "/authorization/members/0", "does not have the form that is asked for"),
        ("token: /token", "token: token", "/answer/token/0", "does not have the form that is asked for"),
        ("at: /expires", "at: /", "/answer/expiry/at", "does not have the form that is asked for"),
        ("at: /expires", "at: /a//b", "/answer/expiry/at", "does not have the form that is asked for"),
        ("at: /expires", "at: /e, as: stardate", "/answer/expiry/as", "must be 'rfc3339', 'epoch_s', 'epoch_ms' or 'seconds'"),
        ("\"/v1/${settings.kind}\"", "\".evil.example/${settings.kind}\"", "/request/path", "a path begins with /"),
        ("\"/v1/${settings.kind}\"", "\"${settings.kind}\"", "/request/path", "a path begins with /"),
        ("\"/v1/${settings.kind}\"", "v1", "/request/path", "a path begins with /"),
        ("\"/v1/${settings.kind}\"", "\"/${settings.kind\"", "/request/path", "a ${ is not closed, or what it holds is not a name"),
        ("ref: \"${uuid4}\"", "ref: \"${uuid4\"", "/request/json", "a ${ is not closed, or what it holds is not a name"),
        ("ref: \"${uuid4}\"", "\"${uuid4}\": 1", "/request/json", "a ${ stands in a member's name; holes are for values"),
        ("/v1/${settings.kind}\", json", "/v1\", form: {a: b}, json", "/request", "give json or form, not both"),
        ("reuse: per_caller", "reuse: often", "/reuse", "must be 'shared', 'per_caller' or 'single_use'"),
        ("base_url: https", "base_url: ftp", "/base_url", "an absolute http(s) URL is wanted"),
        ("https://api.example", "https://${settings.kind}.example", "/base_url", "this URL has no holes: where a secret goes is not for a request to say"),
        ("type: string, default: basic", "type: string, default: 5", "/settings/kind", "the default does not fit"),
        ("{part: {type: string}}", "{part: {type: secret}}", "/actions/status/data/part", "a request carries JSON types: no secret, no duration"),
        ("summary: a small one", "summary: a\nunknown: 1", "/unknown", "is not a known key"),
        ("summary: a small one", "summary: a\nsummary: b", "", "the key 'summary' is given twice"),
        ("summary: a small one", "a: [", "", "not YAML: expected ',' or ']', but got ':'"),
    ],
)  # fmt: skip
def test_a_preset_that_cannot_work_is_refused(old: str, new: str, at: str, reason: str) -> None:
    """Holes that nothing fills, a secret in a template, a pointer that is none, a path that would
    go on with the host's name: found when it is read, not when it is used."""
    assert _faults(old, new) == [Fault(at, reason)]


def test_every_fault_of_a_preset_at_once() -> None:
    """Two mistakes, two faults."""
    faults = _faults("reuse: per_caller\nbase_url: https", "reuse: often\nbase_url: ftp")
    assert [fault.pointer for fault in faults] == ["/reuse", "/base_url"]


def test_an_own_preset_is_a_file_beside_the_configuration(tmp_path: Path) -> None:
    """A name that begins with `.` or `/` is a path; any other must be packaged."""
    (tmp_path / "mine.yaml").write_text(SMALL)
    assert load_preset("./mine.yaml", tmp_path).file.summary == "a small one"
    assert load_preset(str(tmp_path / "mine.yaml"), Path()).file.summary == "a small one"
    (tmp_path / "latin.yaml").write_bytes(b"summary: \xff")
    for name in ("./gone.yaml", ".", "./\0", "./latin.yaml", "/"):
        with pytest.raises(ConfigError) as caught:
            load_preset(name, tmp_path)
        assert list(caught.value.faults) == [Fault("", "the preset file cannot be read")]


@pytest.mark.parametrize("name", ["nope", "", "nmi.yaml", "nmi/../nmi", "NMI", "checkout/../nmi"])
def test_an_unknown_preset_is_told_which_there_are(name: str) -> None:
    """A packaged name is exact: it is no path."""
    with pytest.raises(ConfigError) as caught:
        load_preset(name, Path())
    known = ", ".join(packaged())
    expected = Fault("", f"no such preset; there are: {known}, or ./FILE.yaml")
    assert list(caught.value.faults) == [expected]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2500), st.integers(0, 30), st.text(max_size=3))
def test_a_mangled_preset_is_good_or_a_config_error(at: int, cut: int, patch: str) -> None:
    """Whatever is cut out of, or put into, a preset file; and any text at all."""
    whole = NMI.read_text()
    for text in (patch, whole[:at] + patch + whole[at + cut :]):
        with contextlib.suppress(ConfigError):
            parse_preset("x", text)


# --- the vocabulary beyond the small one

LARGE = """
summary: a larger one
reuse: single_use
settings:
  key: {type: secret}
  hook: {type: secret}
  yes: {type: boolean, default: false}
  life: {type: duration, default: 15m}
  thing:
    type: object
    by: kind
    properties: {name: {type: string}}
    variants: {a: {x: {type: string, observed: request.ip}}, b: {y: {type: integer}}}
opt_in: [{needs: yes, at: /thing/kind, equals: b}]
guarded: [life]
merchant: [thing]
environments:
  test: {base_url: "https://(?P<prefix>[a-z]+)\\\\.test", token_url: "https://(?P<prefix>[a-z]+)\\\\.login", secrets: {key: "^t"}}
authorization: {secret: key, access_token: true, scopes: [make]}
request: {path: /s, json: {thing: "${settings.thing}", until: "${expires_at}"}}
answer: {token: [/t, /u], id: /id, expiry: {lifetime: life}}
views:
  small: [/id, [/links/one/href, /links/other]]
  large: ["@small", /secret]
output: small
refusals: [{status: 409, means: busy}]
diagnosis: {codes: /code}
actions:
  read:
    request: {method: GET, path: "/s/${session.id}"}
    output: small
    trusted: {output: large, within: 24h}
  tell:
    request: {method: PUT, path: "/s/${session.id}", json: "${data.thing}"}
    data: {thing: {like: thing, required: true}}
    output: large
callbacks:
  read: read
  session: /id
  pattern: "^s_[a-z]+$"
  signature: {secret: hook, header: X-Sig}
  final_at: /state
  final: [over]
"""


def test_the_large_one_is_good() -> None:
    """And its shorthand is spelt out: `like` without default and required, `@` by its members."""
    preset = parse_preset("large", LARGE)
    assert preset.file.views == {
        "small": [["/id"], ["/links/one/href", "/links/other"]],
        "large": [["/id"], ["/links/one/href", "/links/other"], ["/secret"]],
    }
    said = preset.file.actions["tell"].data["thing"]
    assert said == preset.file.settings["thing"].model_copy(update={"required": True})
    _, wrong = preset.actions["tell"].read({"thing": {"kind": "a", "x": "192.0.2.1"}}, "/data")
    assert wrong == [Fault("/data/thing", "has a member that is not declared")]


@pytest.mark.parametrize(
    ("old", "new", "at", "reason"),
    [
        ("[life]", "[nope]", "", "names settings that are not declared: nope"),
        ("merchant: [thing]", "merchant: [nope, gone]", "", "names settings that are not declared: gone, nope"),
        ("needs: yes,", "needs: nope,", "", "names settings that are not declared: nope"),
        ("at: /thing/kind", "at: /nope/kind", "", "names settings that are not declared: nope"),
        ("secrets: {key: ", "secrets: {nope: ", "", "names settings that are not declared: nope"),
        ("secret: hook", "secret: nope", "", "names settings that are not declared: nope"),
        ("{lifetime: life}", "{lifetime: nope}", "", "names settings that are not declared: nope"),
        ("{lifetime: life}", "{lifetime: yes}", "", "expiry.lifetime names a setting of type duration with a default"),
        ("duration, default: 15m", "duration", "", "expiry.lifetime names a setting of type duration with a default"),
        ("{lifetime: life}", "{default: 15m}", "", "${expires_at} is not known here"),
        ("output: small\nrefusals", "output: nope\nrefusals", "", "names views that are not declared: nope"),
        ("output: small\n    trusted", "output: nope\n    trusted", "", "names views that are not declared: nope"),
        ("{output: large, within", "{output: nope, within", "", "names views that are not declared: nope"),
        ("read: read", "read: nope", "", "callbacks.read names an action"),
        ("\"@small\"", "\"@nope\"", "/views/large/0/0", "does not have the form that is asked for"),
        ("\"@small\"", "\"@large\"", "/views/large/0/0", "does not have the form that is asked for"),
        ("[/id, [/links", "[[], [/links", "/views/small/0", "Value should have at least 1 item after validation, not 0"),
        ("like: thing", "like: nope", "/actions/tell/data/thing/like", "is not a known key"),
        ("like: thing", "like: key", "/actions/tell/data/thing", "a request carries JSON types: no secret, no duration"),
        ("pattern: \"^s_[a-z]+$\"", "pattern: \"(\"", "/callbacks/pattern", "the pattern is not a regular expression"),
        ("final: [over]", "final: []", "/callbacks/final", "List should have at least 1 item after validation, not 0"),
        ("GET, path: \"/s/${session.id}\"", "GET, path: \"/s/${uuid4}\"", "", "${uuid4} is not known here"),
        ("GET, path: \"/s/${session.id}\"", "GET, path: \"/s/${request.ip}\"", "", "${request.ip} is not known here"),
        ("GET, path: \"/s/${session.id}\"", "GET, path: \"/s/${settings.key}\"", "", "${settings.key} is not known here"),
        ("means: busy", "means: tired", "/refusals/0/means", None),
        ("within: 24h", "within: long", "/actions/read/trusted/within", "a number with a unit is wanted: 250ms, 90s, 15m, 8h, 7d"),
        ("{codes: /code}", "{codes: []}", "/diagnosis/codes", "Value should have at least 1 item after validation, not 0"),
    ],
)  # fmt: skip
def test_a_large_preset_that_cannot_work(old: str, new: str, at: str, reason: str | None) -> None:
    """Names that are not declared, holes that a reading cannot fill, views that are none."""
    assert LARGE.count(old) == 1, old
    with pytest.raises(ConfigError) as caught:
        parse_preset("large", LARGE.replace(old, new))
    found = {fault.pointer: fault.reason for fault in caught.value.faults}
    assert found[at] == (reason or found[at])


@pytest.mark.parametrize(
    "more", ["", "actions: {a: {request: {path: /a, json: {}}}}", "revoke: {path: /a}"]
)
def test_secrets_of_a_form_need_forms(more: str) -> None:
    """Each of its requests sends one: there is nowhere else that they could go."""
    text = (
        "summary: x\nreuse: per_caller\nsettings: {k: {type: secret, required: true}}\n"
        "authorization: {form: {key: k}}\nrequest: {path: /t, form: {a: b}}\n"
        'answer: {token: /t, expiry: {default: 5m}}\noutput: {t: "${session.token}"}\n'
    )
    if not more:
        assert parse_preset("form", text).file.authorization.secrets == ["k"]
        return
    with pytest.raises(ConfigError) as caught:
        parse_preset("form", text + more)
    assert [f.reason for f in caught.value.faults] == [
        "authorization.form needs requests that send a form"
    ]


# --- what every packaged preset keeps

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
CANARY = "sk_c4nary_secret"


@functools.cache
def _file(name: str) -> PresetFile:
    return load_preset(name, Path()).file


def _declared(settings: dict[str, Declared]) -> Iterator[Declared]:
    for one in settings.values():
        yield one
        yield from _declared(one.properties)
        for members in one.variants.values():
            yield from _declared(members)
        if one.items:
            yield one.items


@pytest.mark.parametrize("name", packaged())
def test_a_preset_declares_what_it_sends(name: str) -> None:
    """Every setting is used, every hole is known, secrets only where secrets go; patterns are
    closed at both ends."""
    file = _file(name)
    requests = [file.request, *(a.request for a in file.actions.values())]
    requests += [file.revoke] if file.revoke else []
    holes = {hole for one in requests for hole in holes_in(parts_of(one))}
    holes |= set(holes_in((file.authorization.place, file.authorization.header)))
    secrets = {n for n, one in file.settings.items() if one.type == "secret"}
    used = {hole.partition(".")[2] for hole in holes if hole.startswith("settings.")}
    named = {*file.authorization.secrets, *(rule.needs for rule in file.opt_in)}
    named |= {file.answer.expiry.lifetime or ""} - {""}
    if file.callbacks and file.callbacks.signature:
        named.add(file.callbacks.signature.secret)
    assert used | named == file.settings.keys()
    assert not used & secrets
    assert holes - {f"settings.{n}" for n in used} <= {
        "uuid4", "expires_at", "session.id", *OBSERVED,
        *(f"data.{n}" for a in file.actions.values() for n in a.data),
    }  # fmt: skip
    for one in _declared(file.settings):
        if one.pattern:
            assert one.pattern.startswith("^")
            assert one.pattern.endswith("$")


@pytest.mark.parametrize("name", packaged())
@pytest.mark.parametrize(
    "body",
    [
        {}, {"junk": CANARY}, [CANARY], CANARY, 5, None, True,
        {"id": "x" * 300, "session_secret": CANARY}, {"data": {"token": CANARY}},
        {"session_token": [CANARY], "session_secret": {"x": CANARY}, "access_token": 5, "id": 5},
        {"session_token": "", "session_secret": "", "access_token": "", "id": ""},
        {"session_token": "a\nb", "session_secret": "a\0", "access_token": "\t", "id": "\r"},
        {"session_token": "x" * 20_000, "session_secret": "x" * 20_000, "access_token": "x" * 20_000, "id": "x" * 20_000},
    ],
    ids=lambda body: str(body)[:20],
)  # fmt: skip
def test_junk_is_nonsense_to_every_preset(name: str, body: Any) -> None:
    """A good status with anything else than a session: nonsense, without a word of it."""
    file = _file(name)
    answer = Answer(file.answer.statuses[0], {}, json.dumps(body).encode())
    with pytest.raises(UpstreamNonsense) as caught:
        session_of(file, answer, 1000.0, NOON, timedelta(minutes=5))
    assert CANARY not in repr(vars(caught.value))


@pytest.mark.parametrize("name", packaged())
def test_a_mints_body_has_no_secret_but_in_its_place(name: str) -> None:
    """The template is filled from settings that are no secrets: whoever fills it has none."""
    file = _file(name)
    values = {f"settings.{n}": CANARY for n, one in file.settings.items() if one.type == "secret"}
    for request in (file.request, *(a.request for a in file.actions.values())):
        for part in (request.json_, request.form):
            assert CANARY not in json.dumps(fill_tree(part, values), default=str)
        for text in (request.path, *request.headers.values()):
            assert CANARY not in str(
                fill_tree(text, {**dict.fromkeys(holes_in(text), "x"), **values})
            )
    places = {member.rpartition("/")[2] for member in file.authorization.members}
    assert not (places | file.authorization.form.keys()) & _members(file.request.json_)


def _members(tree: Any) -> set[str]:
    if not isinstance(tree, dict):
        return set()
    return set(tree).union(*(_members(one) for one in tree.values()))


@pytest.mark.parametrize("name", packaged())
def test_a_preset_for_one_use_does_not_rotate(name: str) -> None:
    """`reuse: single_use` and a rotation are a fault."""
    settings: dict[str, dict[str, Any]] = {
        "checkout/3ds": {},
        "checkout/flow": {
            "source": None, "channel_data": None, "completion": None, "webhook_key": None,
            "parameters": {}, "billing": {"address": {"country": "GB"}},
            "success_url": "https://shop.example/a", "failure_url": "https://shop.example/b",
        },
    }  # fmt: skip
    single = _file(name).reuse is Reuse.SINGLE_USE
    assert single == (name in settings)
    if single:
        text = config(name, **settings[name])
        assert faults(text) == []
        expected = Fault(
            "/profiles/p/rotation", "sessions of this preset are for one use; remove it"
        )
        assert faults(config(name, **settings[name], rotation={"max_chain": "1h"})) == [expected]


@pytest.mark.parametrize("name", packaged())
def test_a_preset_lets_nothing_out_by_accident(name: str) -> None:
    """Views name members; `verbatim` stands only where the component wants the answer itself."""
    file = _file(name)
    outputs = [file.output, *(a.output for a in file.actions.values())]
    assert (VERBATIM in [one for one in outputs if isinstance(one, str)]) == (
        name == "checkout/flow"
    )
    page = {v for v in outputs if isinstance(v, str)} - {VERBATIM}
    hidden = re.compile(r"crypto|eci|xid|card/|amount|source|response_code|approved")
    for view in page:
        assert not [
            place for places in file.views[view] for place in places if hidden.search(place)
        ]


@pytest.mark.parametrize("name", packaged())
def test_environments_are_told_apart(name: str) -> None:
    """An address belongs to one environment at the most, each of them has a test and a live one."""
    file = _file(name)
    if not file.environments:
        assert name == "nmi"
        return
    assert file.environments.keys() == {"sandbox", "production"}
    for base, found in (
        ("https://abcd1234.api.sandbox.checkout.com", "sandbox"),
        ("https://api.sandbox.checkout.com/", "sandbox"),
        ("https://ABCD1234.api.checkout.com:443", "production"),
        ("https://pl-abcd.api.checkout.com.", "production"),
        ("https://api.checkout.com.evil.example", None),
        ("https://evil.example/api.checkout.com", None),
        ("http://api.checkout.com", None),
        ("https://apixcheckout.com", None),
        ("https://a.b.api.checkout.com", None),
    ):
        told = environment_of(file, base)
        assert (told[0] if told else None) == found, base
        hits = [n for n, e in file.environments.items() if re.fullmatch(e.base_url, base)]
        assert len(hits) <= 1


def test_every_meaning_of_a_refusal_is_in_use() -> None:
    """Words that no preset needs would not be in the vocabulary."""
    words = set(get_args(Refusal.model_fields["means"].annotation))
    used = {rule.means for name in packaged() for rule in _file(name).refusals}
    assert used == words


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just("MARK"),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["id", "status", "_links", "redirect", "redirect_url", "href", "acs", "url",
                             "3ds", "card", "instrument_id", "cryptogram", "eci", "number"]),
            inner, max_size=4,
        )
    ),
    max_leaves=10,
)  # fmt: skip


def _at(tree: Any, pointer: str) -> Any:
    for step in pointer.split("/")[1:]:
        if not isinstance(tree, dict) or step not in tree:
            return ABSENT
        tree = tree[step]
    return tree


@settings(max_examples=60, deadline=None, derandomize=True)
@given(TREES, st.sampled_from(["progress", "created", "result"]))
def test_a_view_lets_out_only_what_it_lists(tree: Any, view: str) -> None:
    """Each member of what comes out stands in a listed place, and is what stood in one of that
    place's alternatives."""
    file = _file("checkout/3ds")
    out = shown(file, view, tree, Answer(200, {}, b"{}"))
    left = json.loads(json.dumps(out))
    for places in file.views[view]:
        value = _at(out, places[0])
        if value is ABSENT:
            assert all(_at(tree, place) in (ABSENT, None) for place in places)
            continue
        assert value in [_at(tree, place) for place in places]
        *parents, last = places[0].split("/")[1:]
        at = left
        for step in parents:
            at = at[step]
        at.pop(last, None)
    assert not _leaves(left)


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for one in tree.values() for leaf in _leaves(one)]
    return [tree]


def test_like_takes_what_a_value_may_be_and_no_more() -> None:
    """Not whether it must be there, nor what stands in for it; what is said besides goes before."""
    text = LARGE.replace(
        "data: {thing: {like: thing, required: true}}", "data: {thing: {like: yes}}"
    )
    said = parse_preset("large", text).file.actions["tell"].data["thing"]
    assert (said.type, said.required, said.default) == ("boolean", False, None)
    text = config(
        parameters__c={"like": "currency", "pattern": "^EUR$"}, reference="${parameters.c}"
    )
    declared = parsed(text.encode()).profiles["p"].parameters.declared["c"]
    assert (declared.type, declared.required, declared.pattern) == ("string", False, "^EUR$")
