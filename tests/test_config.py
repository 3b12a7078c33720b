"""The configuration: strict, told whole, secrets by reference only; and its JSON Schema."""

from __future__ import annotations

import contextlib
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.config import load, parse
from broker.declared import SecretRef
from broker.errors import ConfigError, Fault
from broker.file import (
    ConfigFile,
    CredentialEntry,
    ForwardAuthCaller,
    IntrospectionCaller,
    JwtCaller,
    ProfileEntry,
)
from broker.holes import Template
from broker.model import JSON
from broker.presets import load_preset, packaged
from broker.schema import json_schema
from broker.snapshot import Snapshot, secret_refs
from broker.strict import read_yaml
from tests.checkout import BROWSER
from tests.checkout import config as checkout_config
from tests.checkout import faults as checkout_faults
from tests.checkout import tree as checkout_tree

CANARY = "c4nary"
NMI_FILE = Path(__file__).parents[1] / "broker" / "presets" / "nmi.yaml"
CONTRACT = """
server:
  public: {host: 127.0.0.1, port: 8080}
  ops: {host: 127.0.0.1, port: 9090}
  trusted_proxies: []                  # CIDRs whose X-Forwarded-For is believed
keys:                                  # seal handles; newest first
  - {file: /run/secrets/token-broker/seal-2026-11}
callers:
  shop-users:                          # browser users: bearer JWT of the shop's identity provider
    type: jwt
    issuer: https://login.shop.example
    audience: token-broker
  page-tickets:                        # the shop's own backend signs a ticket into the page
    type: jwt
    issuer: shop-backend
    audience: token-broker
    jwks: {file: /etc/token-broker/shop-jwks.json}
  legacy-shop:                         # cookie sessions
    type: forward_auth
    url: https://shop.example/internal/whoami
  reports-backend:                     # services
    type: introspection                # RFC 7662
    url: https://login.shop.example/introspect
    client_id: {env: INTROSPECT_ID}
    client_secret: {file: /run/secrets/token-broker/introspect}
credentials:
  checkout:
    token_url: https://abcd1234.access.checkout.com/connect/token
    client_id: {file: …}
    client_secret: {file: …}
    client_auth: client_secret_post
    scope: [sessions:browser]
    expose_to: [reports-backend]
profiles:
  transactions:
    preset: nmi
    api_key: {file: /run/secrets/token-broker/nmi}
    gateway:
      merchant_id: ${claims.merchant_id}
      environment: sandbox
    allow:
      callers: [shop-users]
      origins: [https://app.shop.example]
      require: {role: [owner, accountant]}
    rotation: {max_chain: 8h, grace: 60s}
    min_remaining: 5m
    rate_limit: 30/minute
"""
SMALL = """
keys: [{file: seal}]
callers: {users: {type: jwt, issuer: shop, audience: us, jwks: {file: jwks}}}
profiles:
  p:
    preset: nmi
    api_key: {file: nmi}
    gateway: {merchant_id: m-1}
    allow: {callers: [users], origins: [https://app.shop.example]}
"""


def _parse(text: str) -> Snapshot:
    return parse(text.encode(), Path("/nowhere"))


def _faults(text: str) -> list[Fault]:
    with pytest.raises(ConfigError) as caught:
        _parse(text)
    assert CANARY not in str(caught.value)
    return list(caught.value.faults)


def _with(old: str, new: str, text: str = SMALL) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def _tree(text: str = SMALL, **changes: JSON) -> str:
    """The configuration as JSON, with what stands at `a__b__c` replaced."""
    tree: Any = read_yaml(text)
    for path, value in changes.items():
        *steps, last = path.split("__")
        at = tree
        for step in steps:
            at = at.setdefault(step, {})
        at[last] = value
    return json.dumps(tree)


def test_the_contracts_example_loads() -> None:
    """Every value of it arrives, in its own type."""
    snapshot = _parse(CONTRACT)
    profile = snapshot.profiles["transactions"]
    assert list(snapshot.callers) == [
        "shop-users",
        "page-tickets",
        "legacy-shop",
        "reports-backend",
    ]
    assert list(snapshot.credentials) == ["checkout"]
    assert snapshot.keys == (SecretRef(file="/run/secrets/token-broker/seal-2026-11"),)
    assert profile.secrets == {"api_key": (SecretRef(file="/run/secrets/token-broker/nmi"),)}
    assert profile.fixed == {"api_key_in": "body", "api_key_header": "X-Api-Key"}
    (gateway,) = profile.open_settings
    assert gateway.template == {
        "merchant_id": Template("${claims.merchant_id}"),
        "environment": "sandbox",
    }
    assert profile.base_url == "https://embed-reporting.iriscrm.com/api/v1"
    assert profile.callers == {"shop-users"}
    assert profile.origins == {"https://app.shop.example"}
    assert profile.require == {"role": {"owner", "accountant"}}
    assert profile.rotation is not None
    assert profile.rotation.max_chain == timedelta(hours=8)
    assert (profile.min_remaining, str(profile.rate_limit)) == (300.0, "30 per 1 minute")
    assert [at for at, _ in secret_refs(snapshot)] == [
        "/keys/0",
        "/callers/page-tickets/jwks",
        "/callers/reports-backend/client_id",
        "/callers/reports-backend/client_secret",
        "/credentials/checkout/client_id",
        "/credentials/checkout/client_secret",
        "/profiles/transactions/api_key",
    ]


def test_the_digest_is_of_the_bytes() -> None:
    """The same bytes, the same digest; a comment is a change."""
    assert _parse(SMALL).digest == _parse(SMALL).digest != _parse(SMALL + "# x").digest


def test_every_fault_at_once() -> None:
    """Of every section, each with its path, none with a secret's value."""
    text = f"""
    wibble: 1
    keys: [{CANARY}]
    server: {{public: {{port: 99999}}, ops: {{port: "9090"}}, request_budget: 10}}
    callers:
      a b: {{type: jwt}}
      users: {{type: jwt, issuer: shop, audience: us, shared_secret: {CANARY}}}
      odd: {{type: magic}}
      list: []
    credentials:
      c: {{token_url: "ftp://x", client_id: {{env: ID}}, client_secret: {CANARY}, expose_to: [nobody]}}
    profiles:
      p:
        preset: nmi
        api_key: {CANARY}
        gateway: {{merchant_id: "../x", colour: red}}
        allow: {{callers: [nobody], origins: ["*", "null", "https://a.example/"]}}
        credential: gone
        rotation: {{max_chain: 8}}
        rate_limit: often
        wobble: 1
      q: {{preset: nope}}
    """
    exact = "an exact origin is wanted: https://shop.example (no *, no null, no path)"
    inline = "a secret is given as {file: PATH} or {env: NAME}, never inline"
    unit = "a number with a unit is wanted: 250ms, 90s, 15m, 8h, 7d"
    wanted = {
        Fault("/wibble", "is not a known key"),
        Fault("/keys/0", "must be a mapping"),
        Fault("/server/public/port", "must be less than or equal to 65535"),
        Fault("/server/ops/port", "must be a whole number"),
        Fault("/server/request_budget", unit),
        Fault("/callers/a b", "a name has letters, digits and hyphens, 63 at the most"),
        Fault("/callers/users/shared_secret", inline),
        Fault("/callers/odd/type", "must be one of jwt, forward_auth, introspection"),
        Fault("/callers/list", "must be a mapping"),
        Fault("/credentials/c/token_url", "an absolute http(s) URL is wanted"),
        Fault("/profiles/p/api_key", inline),
        Fault("/profiles/p/gateway/merchant_id", "does not have the form that is asked for"),
        Fault("/profiles/p/gateway/colour", "is not a known key"),
        Fault("/profiles/p/allow/callers", "there is no caller 'nobody' under callers"),
        *(Fault(f"/profiles/p/allow/origins/{i}", exact) for i in range(3)),
        Fault("/profiles/p/credential", "there is no 'gone' under credentials (p)"),
        Fault("/profiles/p/rotation/max_chain", unit),
        Fault("/profiles/p/rate_limit", "one rate is wanted: 30/minute, 5/second, 1000/hour"),
        Fault("/profiles/p/wobble", "is not a known key"),
        Fault("/profiles/q/allow", "is required"),
    }
    found = set(_faults(text))
    assert wanted <= found
    assert {fault.pointer for fault in found - wanted} == {
        "/credentials/c/client_secret/0",
        "/profiles/q/preset",
    }


SECRETS = [
    "keys__0", "callers__users__jwks", "callers__users__shared_secret", "profiles__p__api_key",
    "callers__i__client_id", "callers__i__client_secret", "credentials__c__client_id",
    "credentials__c__client_secret", "credentials__c__private_key",
]  # fmt: skip


@pytest.mark.parametrize("place", SECRETS)
@pytest.mark.parametrize(
    "inline",
    [CANARY, [CANARY], {"value": CANARY}, {"file": [CANARY]}, {"file": CANARY, "env": "X"}],
)
def test_a_secret_inline_is_refused_and_not_shown(place: str, inline: JSON) -> None:
    """Wherever a secret goes, in whatever form its value is given, the faults are silent on it."""
    tree: Any = read_yaml(SMALL)
    tree["callers"]["i"] = {"type": "introspection", "url": "https://x.example"}
    tree["credentials"] = {"c": {"token_url": "https://x.example"}}
    if place == "keys__0":
        tree["keys"] = [inline]
    else:
        section, name, key = place.split("__")
        tree[section][name][key] = inline
    at = "/" + place.replace("__", "/")
    assert any(fault.pointer.startswith(at) for fault in _faults(json.dumps(tree)))


@pytest.mark.parametrize(
    "text",
    [
        f"profiles: {{p: {{api_key: !{CANARY}}}}}",
        f"profiles: {{p: {{api_key: *{CANARY}}}}}",
        f"profiles: {{p: {{api_key: '{CANARY}}}}}",
        f"profiles: {{p: {{api_key: {CANARY}: x}}}}",
        f"key: {CANARY}\x07",
        CANARY,
    ],
)
def test_not_even_unreadable_yaml_shows_a_value(text: str) -> None:
    """A secret that the YAML reader stumbles over stays out of the fault."""
    assert len(_faults(text)) == 1


@pytest.mark.parametrize(
    "path",
    [
        "x", "server__x", "server__public__x", "outbound__x", "callers__users__x",
        "profiles__p__x", "profiles__p__allow__x", "profiles__p__rotation__x",
        "profiles__p__gateway__x", "profiles__p__parameters__a__x", "credentials__c__x",
        "profiles__p__api_key__x", "callers__users__jwks__x",
    ],
)  # fmt: skip
def test_an_unknown_key_is_refused_everywhere(path: str) -> None:
    """At every level, with its path."""
    at = "/" + path.replace("__", "/")
    assert Fault(at, "is not a known key") in _faults(_tree(**{path: 1}))


@pytest.mark.parametrize("raw", [b"\xff", b"", b"5", b"[]", b"null", b"a: [", b"a: 1\na: 2"])
def test_what_is_no_mapping_is_one_fault(raw: bytes) -> None:
    """Not UTF-8, not YAML, not a mapping."""
    with pytest.raises(ConfigError) as caught:
        parse(raw, Path())
    assert [fault.pointer for fault in caught.value.faults] == [""]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, or a directory: told as a fault; one that can is read, beside its own presets."""
    for name, why in (
        ("gone", "cannot be read (No such file or directory)"),
        (".", "is no regular file"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / name)
        assert list(caught.value.faults) == [Fault("", why)]
    (tmp_path / "mine.yaml").write_text(NMI_FILE.read_text())
    (tmp_path / "broker.yaml").write_text(_with("preset: nmi", "preset: ./mine.yaml"))
    assert load(tmp_path / "broker.yaml").profiles["p"].preset.name == "./mine.yaml"


NMI = "    gateway: {merchant_id: m-1}\n"
NEITHER = "set exactly one of gateway and merchant-central; neither is set"
BOTH = "gateway and merchant-central exclude each other: set exactly one of them"
BY_REQUEST = """    gateway: ${parameters.gateway}
    merchant-central: ${parameters.merchant-central}
    parameters:
      gateway: {type: object, open: true}
      merchant-central: {type: object, open: true}
"""


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("", NEITHER),
        (NMI + "    merchant-central: {merchant_id: m-2}\n", BOTH),
        (NMI + "    merchant-central: {}\n", BOTH),
        (NMI + "    merchant-central: ${claims.mc}\n", BOTH),
        ("    gateway: ${claims.g}\n    merchant-central: ${claims.mc}\n", BOTH),
        (NMI + "    merchant-central: ${parameters.merchant-central}\n    merchant_from_parameters: "
         "true\n    parameters: {merchant-central: {type: object}}\n", BOTH),
        (BY_REQUEST.replace("{type: object, open: true}", "{type: object, required: true}")
         + "    merchant_from_parameters: true\n", BOTH),
    ],
)  # fmt: skip
def test_nmis_two_ways_exclude_each_other(lines: str, reason: str) -> None:
    """Both, or neither, is an error that names both; also where one might be left to a request."""
    assert _faults(_with(NMI, lines)) == [Fault("/profiles/p", reason)]


def test_a_request_may_choose_between_nmis_two_ways() -> None:
    """Where both are the request's own optional parameters, and the profile says it in words."""
    text = _with(NMI, BY_REQUEST + "    merchant_from_parameters: true\n")
    names = [setting.name for setting in _parse(text).profiles["p"].open_settings]
    assert names == ["gateway", "merchant-central"]


@pytest.mark.parametrize(
    "lines",
    [
        BY_REQUEST,
        "    gateway: {merchant_id: '${parameters.m}'}\n    parameters: {m: {type: string}}\n",
        "    gateway: {merchant_id: 'm-${parameters.m}'}\n    parameters: {m: {type: string}}\n",
        "    merchant-central: {x: [{y: '${parameters.m}'}]}\n    parameters: {m: {type: string}}\n",
    ],
)
def test_who_the_merchant_is_is_not_the_requests_to_say(lines: str) -> None:
    """Not whole, not in part, not deep inside; unless `merchant_from_parameters: true` says so."""
    reason = (
        "who the merchant is comes from claims or from this file; to let the request say it, add "
        "merchant_from_parameters: true"
    )
    assert {fault.reason for fault in _faults(_with(NMI, lines))} == {reason}
    _parse(_with(NMI, lines + "    merchant_from_parameters: true\n"))
    assert _faults(_with(NMI, lines + '    merchant_from_parameters: "yes"\n'))


def test_somebody_must_be_able_to_ask() -> None:
    """No callers is refused, unless `insecure_anonymous: true` says that everybody may; and then
    only profiles that name `anonymous` are theirs."""
    tree: Any = read_yaml(SMALL)
    for callers in ({}, None, "absent"):
        tree["callers"] = callers
        if callers == "absent":
            del tree["callers"]
        assert any(
            fault.pointer == "/callers" and "nobody could ask" in fault.reason
            for fault in _faults(json.dumps(tree))
        )
    tree["profiles"]["p"]["allow"]["callers"] = ["anonymous"]
    unknown = Fault("/profiles/p/allow/callers", "there is no caller 'anonymous' under callers")
    assert unknown in _faults(json.dumps(tree))
    snapshot = _parse(json.dumps(tree | {"insecure_anonymous": True}))
    assert (snapshot.anonymous, dict(snapshot.callers)) == (True, {})
    for word in ("true", 1, None):
        assert _faults(json.dumps(tree | {"insecure_anonymous": word}))
    assert Fault("/callers/anonymous", "this name is taken") in _faults(
        _tree(callers__anonymous={"type": "jwt"})
    )


PLAIN = (
    "a secret or token would go over plain http; use https, or name the host in "
    "outbound.insecure_http_hosts"
)
URLS = {
    "callers__users__issuer": {"type": "jwt", "audience": "us"},
    "callers__users__jwks_url": {"type": "jwt", "issuer": "shop", "audience": "us"},
    "callers__users__url": {"type": "forward_auth"},
    "credentials__c__token_url": {"client_id": {"env": "A"}, "client_secret": {"env": "B"}},
    "profiles__p__base_url": None,
}


@pytest.mark.parametrize("place", URLS)
def test_plain_http_is_refused(place: str) -> None:
    """For every URL that a secret or token goes to, but loopback and hosts that are named."""
    section, name, _ = place.split("__")

    def text(url: str, **changes: JSON) -> str:
        entry = {f"{section}__{name}": URLS[place]} if URLS[place] else {}
        return _tree(**entry, **{place: url}, **changes)

    at = "/" + place.replace("__", "/")
    assert _faults(text("http://api.example/x")) == [Fault(at, PLAIN)]
    assert _faults(text("http://localhost.example/x")) == [Fault(at, PLAIN)]
    _parse(text("https://api.example/x"))
    _parse(text("http://127.0.0.1:8090/x"))
    _parse(text("http://localhost:8090/x"))
    _parse(text("http://api.example/x", outbound__insecure_http_hosts=["api.example"]))
    for bad in ("http://[", "ftp://api.example", "https://", f"https://u:{CANARY}"):
        assert _faults(text(bad))


def test_an_own_presets_plain_http_is_refused(tmp_path: Path) -> None:
    """The base URL that a profile takes from its preset is no way round."""
    nmi = NMI_FILE.read_text()
    (tmp_path / "mine.yaml").write_text(nmi.replace("https://embed", "http://embed"))
    mine = _with("preset: nmi", "preset: ./mine.yaml")
    with pytest.raises(ConfigError) as caught:
        parse(mine.encode(), tmp_path)
    reason = "its base_url is plain http; give the profile another"
    assert list(caught.value.faults) == [Fault("/profiles/p/preset", reason)]
    parse(_with("api_key:", "base_url: https://api.example\n    api_key:", mine).encode(), tmp_path)
    exempt = "outbound: {insecure_http_hosts: [embed-reporting.iriscrm.com]}" + mine
    parse(exempt.encode(), tmp_path)


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "", "https://*", "https://*.shop.example", "shop.example", "https://",
     "https://shop.example/", "https://shop.example/x", "https://shop.example?x", "file://x",
     "https://Shop.example", "HTTPS://shop.example", "https://u@shop.example", "//shop.example",
     "https://shop.example:443", "http://shop.example:80", "https://shop.example:x", "https://[",
     5, None, ["https://shop.example"]],
)  # fmt: skip
def test_only_exact_origins(origin: JSON) -> None:
    """Never `*`, never `null`, no path, nothing that a browser would never send."""
    faults = _faults(_tree(profiles__p__allow__origins=[origin]))
    assert [fault.pointer for fault in faults] == ["/profiles/p/allow/origins/0"]


def test_exact_origins_are_taken() -> None:
    """With and without a port."""
    origins: JSON = ["https://shop.example", "https://shop.example:8443", "http://localhost:5173"]
    snapshot = _parse(_tree(profiles__p__allow__origins=origins))
    assert snapshot.profiles["p"].origins == set(origins)


def test_access_tokens_are_for_services_only() -> None:
    """A caller of a profile with origins, a forward_auth caller, `anonymous` or nobody is refused;
    one that is used by services only is not."""

    def text(name: str, **changes: JSON) -> str:
        credential: JSON = {
            "token_url": "https://x.example/t",
            "client_id": {"env": "A"},
            "client_secret": [{"env": "B"}, {"env": "C"}],
            "expose_to": [name],
        }
        cookies: JSON = {
            "type": "forward_auth",
            "url": "https://x.example",
            "headers": ["authorization"],
        }
        return _tree(credentials__c=credential, callers__cookies=cookies, **changes)

    at = "/credentials/c/expose_to"
    browsers = "speaks for browsers; access tokens are for services only"
    assert _faults(text("users")) == [Fault(at, f"'users' {browsers}")]
    assert _faults(text("cookies")) == [Fault(at, f"'cookies' {browsers}")]
    for nobody in ("nobody", "anonymous"):
        assert _faults(text(nobody, insecure_anonymous=True)) == [
            Fault(at, f"there is no caller {nobody!r} under callers")
        ]
    snapshot = _parse(text("users", profiles__p__allow__origins=[]))
    assert snapshot.credentials["c"].expose_to == ["users"]


ALLOWED = ["claims.x", "claims.a.b", "claims.https://shop/claim", "caller.subject", "request.ip",
           "request.user_agent", "request.accept", "uuid4", "now", "now+15m", "now+0s",
           "parameters.known"]  # fmt: skip


@pytest.mark.parametrize("hole", ALLOWED)
@pytest.mark.parametrize("around", ["{}", "a-{}"])
def test_every_hole_that_there_is(hole: str, around: str) -> None:
    """Whole, and within text."""
    text = _tree(
        profiles__p__gateway__merchant_id=around.format(f"${{{hole}}}"),
        profiles__p__parameters={"known": {"type": "string"}},
        profiles__p__merchant_from_parameters=True,
    )
    (setting,) = _parse(text).profiles["p"].open_settings
    assert setting.holes == (hole,)


@pytest.mark.parametrize(
    "hole",
    ["", "x", "claims", "claims.", "claim.x", "Claims.x", " claims.x", "parameters", "parameters.",
     "parameters.unknown", "caller", "caller.name", "caller.claims", "request", "request.host",
     "request.headers", "request.ip ", "uuid", "uuid4()", "now+", "now+soon", "now-15m", "now+-15m",
     "now +15m", "now+999999999d", "env.HOME", "file./etc/passwd", "settings.api_key", "session.id",
     "1+1", "claims.x|upper", "claims['x']", "__class__"],
)  # fmt: skip
@pytest.mark.parametrize("around", ["{}", "a-{}"])
def test_there_is_no_other_hole(hole: str, around: str) -> None:
    """Anything else is refused when the file is read, at the setting where it stands (or, where it
    begins like one of the known, as a claim's odd name: only `claims.` has free names)."""
    text = _tree(profiles__p__gateway__merchant_id=around.format(f"${{{hole}}}"))
    if hole.startswith("claims.") and hole != "claims.":
        assert _parse(text).profiles["p"].open_settings[0].holes == (hole,)
        return
    faults = _faults(text)
    assert [fault.pointer for fault in faults] == ["/profiles/p/gateway"]
    assert faults[0].reason.startswith(f"${{{hole}}}")


@pytest.mark.parametrize(
    "changes",
    [
        {"profiles__p__gateway__merchant_id": "${claims.x"},
        {"profiles__p__merchant-central": {"${claims.x}": 1}},
        {"profiles__p__base_url": "https://${claims.x}.example"},
        {"profiles__p__api_key": "${claims.x}"},
        {"profiles__p__rate_limit": "${claims.x}"},
        {"profiles__p__min_remaining": "${claims.x}"},
        {"profiles__p__preset": "${claims.x}"},
        {"callers__users__jwks_url": "https://${claims.x}.example"},
    ],
)
def test_a_hole_where_nothing_fills_it_is_refused(changes: dict[str, JSON]) -> None:
    """Not closed, in a member's name, in a URL that a secret goes to, in a key of ours."""
    assert _faults(_tree(**changes))


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        ({"callers": 5}, "/callers"),
        ({"callers": [{"a": "b"}]}, "/callers"),
        ({"callers": "x"}, "/callers"),
        ({"credentials": 5, "profiles__p__credential": "c"}, "/credentials"),
        ({"credentials": [["c"]], "profiles__p__credential": "c"}, "/credentials"),
        ({"profiles": 5}, "/profiles"),
        ({"profiles": {}}, "/profiles"),
        ({"profiles__p": None}, "/profiles/p"),
        ({"profiles__p__preset": 5}, "/profiles/p/preset"),
        ({"profiles__p__preset": "./\0"}, "/profiles/p/preset"),
        ({"profiles__p__allow": None}, "/profiles/p/allow"),
        ({"profiles__p__allow__callers": []}, "/profiles/p/allow/callers"),
        ({"profiles__p__allow__callers": "users"}, "/profiles/p/allow/callers"),
        ({"profiles__p__rate_limit": "0/minute"}, "/profiles/p/rate_limit"),
        ({"profiles__p__rate_limit": "30/minute;1/second"}, "/profiles/p/rate_limit"),
        ({"profiles__p__rate_limit": 30}, "/profiles/p/rate_limit"),
        ({"profiles__p__min_remaining": "25h"}, "/profiles/p/min_remaining"),
        ({"profiles__p__rotation": True}, "/profiles/p/rotation"),
        ({"profiles__p__rotation": {"max_chain": "999999999d"}}, "/profiles/p/rotation/max_chain"),
        ({"profiles__p__parameters": {"k": {"type": "secret"}}}, "/profiles/p/parameters/k"),
        ({"keys": []} | {"profiles__p__rotation": {}}, "/keys"),
        ({"state": {"url": "redis://127.0.0.1"}}, "/state/url"),
        ({"state": {"url": {"env": "X"}, "timeout": "1s"}}, "/state/timeout"),
        ({"state": {"url": {"env": "X"}, "prefix": "a b"}}, "/state/prefix"),
        ({"state": {"url": {"env": "X"}}, "keys": []}, "/keys"),
        ({"server__trusted_proxies": ["10.0.0.1/8"]}, "/server/trusted_proxies/0"),
        ({"server__request_budget": "0s"}, "/server/request_budget"),
        ({"server__ops": {"port": 8080}}, "/server/ops/port"),
        ({"callers__users__algorithms": ["none"]}, "/callers/users/algorithms/0"),
        ({"callers__users__algorithms": ["HS256"]}, "/callers/users"),
        ({"callers__users__shared_secret": {"env": "X"}}, "/callers/users"),
        ({"callers__users": {"type": "jwt", "issuer": "shop", "audience": "a"}}, "/callers/users"),
        ({"callers__users": {"type": "jwt", "issuer": "http://[", "audience": "a"}}, "/callers/users"),
    ],
)  # fmt: skip
def test_faults_and_their_places(changes: dict[str, JSON], at: str) -> None:
    """Wrong shapes, wrong bounds, wrong company: a fault at its path, and never a crash."""
    assert at in {fault.pointer for fault in _faults(_tree(**changes))}


def _keys() -> list[str]:
    kinds = [ConfigFile, CredentialEntry, ForwardAuthCaller, IntrospectionCaller, JwtCaller]
    names = {name for kind in [*kinds, ProfileEntry] for name in kind.model_fields}
    names |= {"callers", "credentials", "profiles", "state", "users", "p", "public", "port", "file"}
    names |= {"gateway", "merchant-central", "api_key", "merchant_id", "origins", "require", "env"}
    return sorted(names)


WORDS = st.sampled_from(
    ["", "users", "p", "c", "nmi", "jwt", "introspection", "forward_auth", "https://a.example", "http://[",
     "15m", "0s", "30/minute", "*", "null", "${claims.x}", "${parameters.x}", "${", "string", "object",
     "./x", "\0", "private_key_jwt"]
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers(-1, 70000) | WORDS | st.text(max_size=4)
SHAPES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(_keys()), inner, max_size=4)
    ),
    max_leaves=12,
)
SECTIONS = ["callers", "credentials", "profiles", "server", "outbound", "keys"]
ENTRIES = st.dictionaries(st.sampled_from(["users", "p", "c"]), SHAPES, max_size=2)
FUZZ = settings(max_examples=150, deadline=None, derandomize=True)


@FUZZ
@given(st.dictionaries(st.sampled_from(SECTIONS), ENTRIES | SHAPES, max_size=4))
def test_any_tree_is_a_snapshot_or_a_config_error(tree: dict[str, JSON]) -> None:
    """Built from the real keys and from words that mean something somewhere."""
    with contextlib.suppress(ConfigError):
        _parse(json.dumps(tree))


@FUZZ
@given(st.data())
def test_a_good_file_with_one_part_replaced(data: st.DataObject) -> None:
    """Any node of the contract's example, put in the place of which stands anything: a Snapshot or
    a ConfigError with faults."""
    tree: Any = read_yaml(CONTRACT)
    at = tree
    while True:
        step = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not at[step] or not isinstance(at[step], dict | list) or data.draw(st.booleans()):
            break
        at = at[step]
    at[step] = data.draw(SHAPES)
    try:
        _parse(json.dumps(tree))
    except ConfigError as exc:
        faults = exc.faults
        if not faults:
            raise AssertionError from exc


@FUZZ
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(b"callers: 5")
def test_any_bytes_are_a_config_error(raw: bytes) -> None:
    """No other exception leaves."""
    with pytest.raises(ConfigError):
        parse(raw, Path("/nowhere"))


def _schema() -> dict[str, Any]:
    return json_schema({n: load_preset(n, Path()).settings.json_schema(n) for n in packaged()})


def test_the_schema_is_one_and_takes_the_contracts_example() -> None:
    """Valid JSON Schema 2020-12, without a fault to find in either example."""
    schema = json.loads(json.dumps(_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    checker = jsonschema.Draft202012Validator(schema)
    for text in (CONTRACT, CONTRACT, SMALL, _with(NMI, BY_REQUEST)):
        assert [error.json_path for error in checker.iter_errors(read_yaml(text))] == []
    lists = _tree(credentials__c={"token_url": "https://x", "client_id": {"env": "A"},
                                  "client_secret": [{"env": "B"}, {"file": "C"}]},
                  keys={"file": "one"}, callers__users__audience=["a", "b"],
                  profiles__p__allow__require={"role": "owner"})  # fmt: skip
    assert [error.json_path for error in checker.iter_errors(json.loads(lists))] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"x": 1},
        {"server__x": 1},
        {"callers__users__x": 1},
        {"credentials__c": {"x": 1}},
        {"profiles__p__x": 1},
        {"profiles__p__allow__x": 1},
        {"profiles__p__gateway__x": 1},
        {"profiles__p__api_key": "inline"},
        {"profiles__p__preset": "nope"},
        {"profiles__p__min_remaining": 5},
        {"server__public__port": 70000},
        {"callers__users__type": "magic"},
    ],
)
def test_the_schema_refuses_what_the_broker_refuses(changes: dict[str, JSON]) -> None:
    """Unknown keys at every level, and wrong types: an editor underlines them."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(_tree(**changes)), _schema())
    assert _faults(_tree(**changes))


LIFE = "is from 1s to 86400s"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"session_lifetime": "1s"}, []),
        ({"session_lifetime": "24h"}, []),
        ({"session_lifetime": "0s"}, [("session_lifetime", LIFE)]),
        ({"session_lifetime": "999ms"}, [("session_lifetime", LIFE)]),
        ({"session_lifetime": "86401s"}, [("session_lifetime", LIFE)]),
        ({"session_lifetime": "soon"}, [("session_lifetime", "a number with a unit is wanted: 250ms, 90s, 15m, 8h, 7d")]),
        ({"session_lifetime": "${claims.life}"}, [("session_lifetime", "a number with a unit is wanted: 250ms, 90s, 15m, 8h, 7d")]),
        ({"session_lifetime": "5m", "min_remaining": "5m"}, [("min_remaining", "no session of this preset lives 300s")]),
        ({"session_lifetime": "5m", "min_remaining": "299s"}, []),
        ({"rotation": {"max_chain": "1h"}}, [("rotation", "sessions of this preset are for one use; remove it")]),
        ({"credential": None}, [("credential", "is required: the preset sends an access token")]),
        ({"base_url": None}, [("base_url", "is required: the preset names none")]),
        ({"parameters__source": {"type": "object", "properties": {"ip": {"type": "string", "observed": "request.ip"}}}}, [("parameters/source", "what is observed is a preset's to say"), ("source", "${parameters.source}: this profile declares no such parameter")]),
        ({"parameters__source": {"like": "nope"}}, [("parameters/source/like", "is no setting of the preset"), ("source", "${parameters.source}: this profile declares no such parameter")]),
        ({"parameters__hook": {"like": "webhook_key"}}, [("parameters/hook", "a request carries JSON types: no secret, no duration")]),
        ({"currency": "${request.accept}"}, [("currency", "currency is not for a browser to say, in no field of its requests")]),
        ({"currency": "${parameters.c}", "parameters__c": {"like": "currency"}},
         [("currency", "currency comes from claims, from this file, or from a parameter with trusted: true; a browser does not say it")]),
        ({"currency": "${parameters.c}", "parameters__c": {"like": "currency", "trusted": True}}, []),
        ({"completion": {"type": "hosted", "success_url": "${parameters.u}", "failure_url": "https://a.example"}, "parameters__u": {"type": "url"}},
         [("completion", "completion comes from claims, from this file, or from a parameter with trusted: true; a browser does not say it")]),
        ({"processing_channel_id": "${parameters.c}", "parameters__c": {"type": "string"}},
         [("processing_channel_id", "who the merchant is comes from claims or from this file; to let the request say it, add merchant_from_parameters: true")]),
        ({"channel_data": {**BROWSER, "ip_address": "192.0.2.1"}}, [("channel_data/ip_address", "is not a known key")]),
        ({"source": {"type": "nope"}}, [("source", "is not one of the known types")]),
        ({"source": {}}, [("source", "does not say which of the known types it is")]),
        ({"source": {"type": "token", "token": "tok_1", "number": "5"}}, [("source/number", "is not a known key")]),
    ],
)  # fmt: skip
def test_what_a_profile_of_checkout_may_say(
    changes: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    """Each with its place and reason, and nothing else."""
    found = checkout_faults(checkout_config(**changes))
    assert sorted(found, key=str) == sorted(
        (Fault(f"/profiles/p/{at}", reason) for at, reason in expected), key=str
    )


@pytest.mark.parametrize(
    ("scope", "good"),
    [([], True), (["sessions:browser"], True), (["sessions:app", "x"], True), (["sessions"], True),
     (["payment-sessions"], False), (["sessions:"], False)],
)  # fmt: skip
def test_a_credential_asks_for_a_scope_that_serves(scope: list[str], good: bool) -> None:
    """One of those that the preset names, or none at all, which is the account's default."""
    told = checkout_tree()
    told["credentials"]["checkout"]["scope"] = scope
    reason = (
        "asks for none of the scopes that this needs: sessions or sessions:browser or sessions:app"
    )
    expected = [] if good else [Fault("/profiles/p/credential", reason)]
    assert checkout_faults(json.dumps(told)) == expected


def test_a_setting_with_the_name_of_a_profiles_own_key(tmp_path: Path) -> None:
    """It could never be set: refused with the preset."""
    (tmp_path / "own.yaml").write_text(
        "summary: x\nreuse: per_caller\nbase_url: https://api.example\n"
        "settings: {key: {type: secret, required: true}, allow: {type: string}, rotation: {type: string}}\n"
        "authorization: {secret: key}\nrequest: {path: /s}\n"
        'answer: {token: /t, expiry: {default: 5m}}\noutput: {t: "${session.token}"}\n'
    )
    told = json.loads(_tree(profiles__p__preset="./own.yaml"))
    profile = told["profiles"]["p"]
    profile.pop("api_key"), profile.pop("gateway")
    profile["key"] = {"file": "nmi"}
    with pytest.raises(ConfigError) as caught:
        parse(json.dumps(told).encode(), tmp_path)
    assert list(caught.value.faults) == [
        Fault("/profiles/p/preset", "its setting 'allow' has the name of a profile's own key"),
        Fault("/profiles/p/preset", "its setting 'rotation' has the name of a profile's own key"),
    ]


OWN = """
summary: x
reuse: single_use
base_url: https://api.example
settings: {key: {type: secret, required: true}, region: {type: string, required: true}}
authorization: {secret: key}
request: {path: /s}
answer: {token: /t, id: /id, expiry: {default: 5m}}
output: {t: "${session.token}"}
views: {all: [/id]}
actions:
  read: {request: {method: GET, path: "/${settings.region}/${session.id}"}, output: all}
"""


@pytest.mark.parametrize(
    ("old", "new", "good"),
    [
        ("", "", True),
        (", output: all}", ", output: all, trusted: {output: all, within: 1h}}", False),
        ("actions:", "callbacks: {read: read, session: /id, pattern: '^s$', final_at: /s, final: [x]}\nactions:", False),
    ],
)  # fmt: skip
def test_what_is_read_without_a_caller_needs_nothing_of_one(
    old: str, new: str, good: bool, tmp_path: Path
) -> None:
    """A setting from claims fills no request that callbacks or trusted callers set off."""
    (tmp_path / "own.yaml").write_text(OWN.replace(old, new) if old else OWN)
    told = checkout_tree("./own.yaml")
    told["profiles"]["p"] = {
        "preset": "./own.yaml", "key": {"env": "K"}, "region": "${claims.region}",
        "allow": {"callers": ["pages"]},
    }  # fmt: skip
    reason = "the action 'read' needs it without a caller too"
    expected = [] if good else [Fault("/profiles/p/region", reason)]
    assert checkout_faults(json.dumps(told), tmp_path) == expected
    told["profiles"]["p"]["region"] = "eu"
    assert checkout_faults(json.dumps(told), tmp_path) == []
