"""Presets: the packaged ones load, and what a preset cannot mean is refused when it is read."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import ConfigError, Fault
from broker.presets import load_preset, packaged, parse_preset

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
