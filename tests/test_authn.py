"""The door: who is let in, who is not, and what it costs the identity provider to be asked.

Tokens are made by hand with `cryptography`, so that no library judges its own work. The other
server is a function of the request; time stands still until a test moves it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote_plus

import httpx2
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.authn import Door, Presented
from broker.authn.discovery import documents_of
from broker.authn.keysets import read_keys
from broker.authn.proof import Proofs, Proven
from broker.declared import SecretRef
from broker.errors import (
    BrokerError,
    ConfigError,
    Unauthenticated,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from broker.file import CALLERS
from broker.keyring import Keyring
from broker.metrics import Metrics
from broker.model import Caller
from broker.strict import Unreadable
from tests.support import AppTransport, VirtualClock, settle

ISSUER = "https://login.shop.example"
JWKS_URL = "https://login.shop.example/keys"
SHARED = "0123456789abcdef0123456789abcdef"
ENV = {"HS": SHARED, "ID": "our id", "SECRET": "s:e/c+r€t"}
PRIVATE_TEXTS = (SHARED, "opaque-", "shop_session", "eyJ")


def b64(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def number(value: int, size: int = 0) -> str:
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


@cache
def private(name: str) -> Any:
    """One key for each name, the kind in front: rsa-1, ec-1, ed-1."""
    kind = name.partition("-")[0]
    if kind == "rsa":
        return rsa.generate_private_key(65537, 1024 if name.endswith("weak") else 2048)
    return ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else _ed()


def _ed() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def public_jwk(name: str, **more: Any) -> dict[str, Any]:
    key = private(name).public_key()
    if name.startswith("rsa"):
        numbers = key.public_numbers()
        members = {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e)}
    elif name.startswith("ec"):
        numbers = key.public_numbers()
        members = {"kty": "EC", "crv": "P-256", "x": number(numbers.x, 32)}
        members["y"] = number(numbers.y, 32)
    else:
        raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        members = {"kty": "OKP", "crv": "Ed25519", "x": b64(raw)}
    return {"kid": name, "use": "sig", **members, **more}


def signature(key: Any, alg: str, text: bytes) -> bytes:
    if alg == "HS256":
        return hmac.digest(key, text, "sha256")
    if alg == "none":
        return b""
    if alg == "RS256":
        return key.sign(text, padding.PKCS1v15(), hashes.SHA256())
    if alg == "PS256":
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        return key.sign(text, pss, hashes.SHA256())
    if alg == "ES256":
        r, s = decode_dss_signature(key.sign(text, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")
    return key.sign(text)


def jwt(
    key: str | bytes = "rsa-1",
    alg: str = "RS256",
    *,
    header: dict[str, Any] | None = None,
    raw_claims: bytes | None = None,
    **claims: Any,
) -> str:
    """A JWT that is good unless told otherwise; a claim given as None is left out."""
    base = {"iss": ISSUER, "aud": "token-broker", "sub": "alice", "exp": now() + 600}
    full = {n: v for n, v in {**base, "iat": now(), **claims}.items() if v is not None}
    head = {"alg": alg, "typ": "JWT"} | ({"kid": key} if isinstance(key, str) else {})
    head |= header or {}
    head = {name: value for name, value in head.items() if value is not None}
    payload = raw_claims if raw_claims is not None else json.dumps(full).encode()
    text = f"{b64(json.dumps(head).encode())}.{b64(payload)}"
    material = private(key) if isinstance(key, str) else key
    return f"{text}.{b64(signature(material, alg, text.encode()))}"


def now() -> int:
    return int(VirtualClock().now().timestamp())


class Shop:
    """The other server: identity provider, introspection and whoami, as told by its fields."""

    def __init__(self) -> None:
        self.keys: list[Any] = [public_jwk("rsa-1"), public_jwk("ec-1"), public_jwk("ed-1")]
        self.raw_keys: bytes | None = None
        self.status = 200
        self.discovery: dict[str, Any] = {"issuer": ISSUER, "jwks_uri": JWKS_URL}
        self.oidc = True
        self.tokens: dict[str, Any] = {}
        self.sessions: dict[str, Any] = {}
        self.seen: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.seen.append(request)
        path = request.url.path
        if self.status != 200:
            return httpx2.Response(self.status, content=b"<html>")
        if path.endswith("/.well-known/openid-configuration") and self.oidc:
            return httpx2.Response(200, json=self.discovery)
        if "/.well-known/oauth-authorization-server" in path:
            return httpx2.Response(200, json=self.discovery)
        if path == "/keys":
            body = self.raw_keys if self.raw_keys is not None else dumps({"keys": self.keys})
            return httpx2.Response(200, content=body)
        if path == "/introspect":
            token = parse_qs(request.content.decode())["token"][0]
            return answer(self.tokens.get(token, {"active": False}))
        if path == "/whoami":
            return answer(self.sessions.get(request.headers.get("cookie", ""), 401))
        return httpx2.Response(404)


def dumps(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def answer(what: Any) -> httpx2.Response:
    if isinstance(what, int):
        return httpx2.Response(what)
    content = what if isinstance(what, bytes) else dumps(what)
    return httpx2.Response(200, content=content)


JWT_ENTRY = {"type": "jwt", "issuer": ISSUER, "audience": "token-broker", "jwks_url": JWKS_URL}
INTROSPECT = {
    "type": "introspection",
    "url": f"{ISSUER}/introspect",
    "client_id": {"env": "ID"},
    "client_secret": {"env": "SECRET"},
}
WHOAMI = {"type": "forward_auth", "url": "https://shop.example/whoami"}


class House:
    """A door with what is around it."""

    def __init__(
        self,
        callers: dict[str, dict[str, Any]] | None = None,
        *,
        anonymous: bool = False,
        env: dict[str, str] | None = None,
    ) -> None:
        self.shop = Shop()
        self.clock = VirtualClock()
        self.metrics = Metrics()
        self.transport = AppTransport(handler=self.shop)
        callers = {"users": JWT_ENTRY} if callers is None else callers
        entries = {n: CALLERS[e["type"]].model_validate(e) for n, e in callers.items()}
        refs = [SecretRef(env=name) for name in env or ENV]
        keyring = Keyring([("", ref) for ref in refs], Path(), env or ENV)
        self.door = Door(
            entries,
            anonymous=anonymous,
            keyring=keyring,
            transport=self.transport,
            clock=self.clock,
            metrics=self.metrics,
            budget=5.0,
        )

    async def bearer(self, token: str, cookie: str = "") -> Caller:
        return await self.door.authenticate(Presented(f"Bearer {token}", cookie))

    async def cookie(self, cookie: str) -> Caller:
        return await self.door.authenticate(Presented("", cookie))

    async def refusal(self, token: str, cookie: str = "") -> Unauthenticated:
        with pytest.raises(Unauthenticated) as caught:
            await self.bearer(token, cookie)
        return caught.value

    def calls(self, end: str) -> int:
        return sum(url.endswith(end) for _, url in self.transport.calls)

    def counted(self, caller: str, outcome: str) -> float:
        labels = {"caller": caller, "outcome": outcome}
        return self.metrics.registry.get_sample_value("broker_authentications_total", labels) or 0


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


ALICE = ("users", "alice")


def test_signatures_of_every_algorithm() -> None:
    """RS256, PS256, ES256, EdDSA and HS256 tokens are accepted, with the claims they carry."""

    async def body() -> None:
        every = ["RS256", "PS256", "ES256", "EdDSA"]
        house = House({"users": JWT_ENTRY | {"algorithms": every}})
        for key, alg in zip(("rsa-1", "rsa-1", "ec-1", "ed-1"), every, strict=True):
            caller = await house.bearer(jwt(key, alg, merchant_id="m-1"))
            assert (caller.name, caller.subject) == ALICE
            assert caller.claims["merchant_id"] == "m-1"
        assert house.calls("/keys") == 1
        page = {"type": "jwt", "issuer": "shop", "audience": "b", "shared_secret": {"env": "HS"}}
        house = House({"page": page})
        for header in ({}, {"kid": "any"}):
            token = jwt(SHARED.encode(), "HS256", iss="shop", aud=["x", "b"], header=header)
            assert (await house.bearer(token)).name == "page"
        assert house.transport.calls == []

    run(body)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
@pytest.mark.parametrize("kind", ["at+jwt", "application/at+jwt", "AT+JWT", "jwt", None])
def test_scheme_and_type(scheme: str, kind: str | None) -> None:
    """The scheme and `typ` are compared without case, and RFC 9068's types are accepted."""

    async def body() -> None:
        shown = Presented(f"{scheme} {jwt(header={'typ': kind, 'unknown': 1})}", "")
        assert (await House().door.authenticate(shown)).subject == "alice"

    run(body)


def pem() -> bytes:
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    return private("rsa-1").public_key().public_bytes(serialization.Encoding.PEM, info)


def tampered() -> str:
    head, _, tail = jwt().split(".")
    return f"{head}.{jwt(sub='root').split('.')[1]}.{tail}"


BAD: dict[str, Callable[[], str]] = {
    "alg none": lambda: jwt(alg="none"),
    "alg none with our signature": lambda: jwt(header={"alg": "none"}),
    "HS256 with the public key": lambda: jwt(pem(), "HS256", header={"kid": "rsa-1"}),
    "HS256 with the modulus": lambda: jwt(public_jwk("rsa-1")["n"].encode(), "HS256"),
    "RS256 said of an EC signature": lambda: jwt("ec-1", "ES256", header={"alg": "RS256"}),
    "an EC key's kid on RS256": lambda: jwt(header={"kid": "ec-1"}),
    "PS256, not configured": lambda: jwt(alg="PS256"),
    "another key of the same kid": lambda: jwt("rsa-2", header={"kid": "rsa-1"}),
    "unknown kid": lambda: jwt(header={"kid": "other"}),
    "kid is a number": lambda: jwt(header={"kid": 1}),
    "kid is empty": lambda: jwt(header={"kid": ""}),
    "crit of what is understood": lambda: jwt(header={"crit": ["kid"]}),
    "nbf is true": lambda: jwt(nbf=True),
    "iat is an object": lambda: jwt(iat={}),
    "crit": lambda: jwt(header={"crit": ["exp"]}),
    "unencoded payload": lambda: jwt(header={"b64": False, "crit": ["b64"]}),
    "typ of a logout token": lambda: jwt(header={"typ": "logout+jwt"}),
    "typ is a list": lambda: jwt(header={"typ": ["JWT"]}),
    "own key in the header": lambda: jwt("rsa-2", header={"jwk": public_jwk("rsa-2")}),
    "expired": lambda: jwt(exp=now() - 31),
    "expired at the end of the leeway": lambda: jwt(exp=now() - 30),
    "not yet": lambda: jwt(nbf=now() + 31),
    "issued in the future": lambda: jwt(iat=now() + 31),
    "wrong aud": lambda: jwt(aud="another"),
    "no aud": lambda: jwt(aud=None),
    "aud of mixed types": lambda: jwt(aud=["token-broker", 1]),
    "aud is an object": lambda: jwt(aud={"token-broker": 1}),
    "wrong iss": lambda: jwt(iss="https://evil.example"),
    "iss with a slash more": lambda: jwt(iss=ISSUER + "/"),
    "iss is a list": lambda: jwt(iss=[ISSUER]),
    "missing exp": lambda: jwt(exp=None),
    "exp is true": lambda: jwt(exp=True),
    "exp is a text": lambda: jwt(exp=str(now() + 60)),
    "exp is a list": lambda: jwt(exp=[now() + 60]),
    "exp is infinite": lambda: jwt(exp=1e999),
    "exp is NaN": lambda: jwt(exp=float("nan")),
    "exp is null": lambda: jwt(
        raw_claims=dumps({"iss": ISSUER, "aud": "token-broker", "sub": "a", "exp": None})
    ),
    "exp is huge": lambda: jwt(exp=10**400),
    "exp is hugely negative": lambda: jwt(exp=-(10**400)),
    "no sub": lambda: jwt(sub=None),
    "empty sub": lambda: jwt(sub=""),
    "sub is a number": lambda: jwt(sub=7),
    "long sub": lambda: jwt(sub="a" * 256),
    "sub with a line break": lambda: jwt(sub="a\nb"),
    "sub with a surrogate": lambda: jwt(sub="a\ud800"),
    "a member twice": lambda: jwt(
        raw_claims=(
            dumps({"iss": ISSUER, "aud": "token-broker", "sub": "a", "exp": now() + 60})[:-1]
            + b',"sub":"b"}'
        )
    ),
    "deeply nested": lambda: jwt(raw_claims=b"[" * 3000 + b"]" * 3000),
    "claims are a list": lambda: jwt(raw_claims=b"[]"),
    "claims are no JSON": lambda: jwt(raw_claims=b"\xff"),
    "tampered": tampered,
    "no signature": lambda: jwt().rsplit(".", 1)[0] + ".",
    "signature with padding": lambda: jwt() + "==",
    "four parts": lambda: jwt() + ".x",
    "too long": lambda: jwt(more="x" * 16384),
    "garbage": lambda: "garbage",
    "dots": lambda: "..",
    "not ASCII": lambda: jwt() + "é",
    "surrogate": lambda: "\ud800",
    "empty": lambda: "",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tokens(name: str) -> None:
    """Every bad token is refused with the same face, and its cause tells nothing of the token."""

    async def body() -> None:
        house = House(anonymous=True)
        await house.bearer(jwt())
        error = await house.refusal(BAD[name]())
        plain = Unauthenticated()
        assert (error.status, error.slug, error.title, error.detail, error.faults) == (
            plain.status, plain.slug, plain.title, plain.detail, ()
        )  # fmt: skip
        assert error.retry_after is None
        assert error.cause
        assert error.__cause__ is None
        assert not any(text in str(error) for text in ("alice", "evil", "eyJ", *PRIVATE_TEXTS))
        assert house.counted("users", "refused") + house.counted("none", "refused") == 1

    run(body)


def test_a_stranger_counts_under_none() -> None:
    """A token of an issuer that no entry has is counted under `none`, and nobody is asked."""

    async def body() -> None:
        house = House()
        await house.refusal(jwt(iss="https://evil.example"))
        assert (house.counted("none", "refused"), house.transport.calls) == (1, [])

    run(body)


def test_times_within_leeway() -> None:
    """exp, nbf and iat may be off by the leeway, and huge or fractional times are times."""

    async def body() -> None:
        house = House()
        for claims in (
            {"exp": now() - 29},
            {"nbf": now() + 30, "iat": now() + 30},
            {"exp": 10**17},
            {"exp": now() + 0.5},
            {"exp": 1e300},
            {"nbf": -(10**16)},
        ):
            assert (await house.bearer(jwt(**claims))).subject == "alice"

    run(body)


def test_subject_claim() -> None:
    """The configured claim says who; `sub` is not looked at then."""

    async def body() -> None:
        house = House({"users": JWT_ENTRY | {"subject_claim": "email"}})
        assert (await house.bearer(jwt(sub=None, email="a@b.c"))).subject == "a@b.c"
        await house.refusal(jwt())

    run(body)


def test_no_kid_tries_fitting_keys() -> None:
    """Without `kid` every key of the fitting type is tried, and one that fits is enough."""

    async def body() -> None:
        house = House()
        house.shop.keys = [public_jwk(n, kid=None) for n in ("ec-1", "rsa-2", "rsa-1")]
        assert (await house.bearer(jwt(header={"kid": None}))).subject == "alice"
        assert (await house.bearer(jwt("ec-1", "ES256", header={"kid": None}))).subject == "alice"
        await house.refusal(jwt("rsa-3", header={"kid": None}))
        assert house.calls("/keys") == 1

    run(body)


def test_unusable_keys_are_ignored() -> None:
    """Keys that are weak, for encryption, of unknown type or garbled do not spoil the others."""

    async def body() -> None:
        house = House()
        house.shop.keys = [
            7,
            {"kty": "AKP", "kid": "pq"},
            {"kty": ["RSA"]},
            {"kty": "oct", "k": b64(SHARED.encode()), "kid": "oct"},
            public_jwk("rsa-weak"),
            public_jwk("rsa-2", use="enc"),
            public_jwk("rsa-3", key_ops=["encrypt"]),
            public_jwk("ec-1", x="!", kid="bad-x"),
            public_jwk("ec-1", crv="P-999"),
            public_jwk("rsa-1", n="A" * 100_000, kid="vast"),
            public_jwk("rsa-1", x5c=17),
        ]
        assert (await house.bearer(jwt())).subject == "alice"
        for key in ("rsa-weak", "rsa-2", "rsa-3"):
            await house.refusal(jwt(key))
        await house.refusal(jwt(SHARED.encode(), "HS256", header={"kid": "oct"}))

    run(body)


def test_alg_of_a_key_is_obeyed() -> None:
    """A key that says which algorithm it is for is used for no other."""

    async def body() -> None:
        house = House({"users": JWT_ENTRY | {"algorithms": ["RS256", "PS256"]}})
        house.shop.keys = [public_jwk("rsa-1", alg="PS256")]
        await house.refusal(jwt(alg="RS256"))
        assert (await house.bearer(jwt(alg="PS256"))).subject == "alice"

    run(body)


def test_unknown_kid_reloads_once_a_cooldown() -> None:
    """A thousand tokens with invented kids cost one load per cool-down, and good ones none."""

    async def body() -> None:
        house = House()
        await house.bearer(jwt())
        for round_ in (1, 2):
            for n in range(500):
                await house.refusal(jwt(header={"kid": f"x{n}"}))
            assert house.calls("/keys") == round_
            house.clock.pass_(30)
            tokens = [jwt(header={"kid": f"y{round_}-{n}"}) for n in range(250)]
            await asyncio.gather(*(house.refusal(token) for token in tokens))
            assert house.calls("/keys") == round_ + 1
            assert (await house.bearer(jwt())).subject == "alice"

    run(body)


def test_rotation_of_keys() -> None:
    """A new key works at once after the cool-down, and a withdrawn one no longer, cached or not."""

    async def body() -> None:
        house = House()
        old = jwt()
        await house.bearer(old)
        house.shop.keys = [public_jwk("rsa-2")]
        new = jwt("rsa-2")
        await house.refusal(new)
        house.clock.pass_(31)
        assert (await house.bearer(old)).subject == "alice"
        assert (await house.bearer(new)).subject == "alice"
        await house.refusal(old)
        assert house.calls("/keys") == 2

    run(body)


def test_old_keys_reload_behind() -> None:
    """Keys past their age are used while new ones load behind, and the same set voids no proof."""

    async def body() -> None:
        house = House()
        await house.bearer(jwt())
        house.clock.pass_(900)
        gate = asyncio.Event()
        house.transport.before = gate.wait
        token = jwt(exp=now() + 2000)
        for n in range(10):
            assert (await house.bearer(jwt(exp=now() + 2000, n=n))).subject == "alice"
        await house.bearer(token)
        gate.set()
        await settle()
        assert house.calls("/keys") == 2
        await house.bearer(token)
        assert house.counted("users", "cached") == 1

    run(body)


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b'{"keys":[]}', b'{"keys":7}', b"[1]", b"<html>", b"[" * 9999, b"\xff"]
)
def test_garbled_sets_change_nothing(raw: bytes) -> None:
    """An empty or garbled key set leaves the old one in use; held none, it is an outage."""

    async def body() -> None:
        house = House()
        await house.bearer(jwt())
        house.shop.raw_keys = raw
        for _ in range(3):
            house.clock.pass_(1000)
            assert (await house.bearer(jwt(exp=now() + 9999))).subject == "alice"
            await settle()
        assert house.calls("/keys") == 4
        value = house.metrics.registry.get_sample_value
        labels = {"caller": "users", "outcome": "failed"}
        assert value("broker_jwks_loads_total", labels) == 3
        cold = House()
        cold.shop.raw_keys = raw
        with pytest.raises(UpstreamUnavailable):
            await cold.bearer(jwt())

    run(body)


def test_outage_of_the_issuer() -> None:
    """With keys held an outage harms nobody; an unknown kid is then 503, and no refusal."""

    async def body() -> None:
        house = House()
        await house.bearer(jwt())
        house.shop.status = 503
        house.clock.pass_(1000)
        assert (await house.bearer(jwt(exp=now() + 9999))).subject == "alice"
        with pytest.raises(UpstreamUnavailable) as caught:
            await house.bearer(jwt(header={"kid": "new"}, exp=now() + 9999))
        assert caught.value.status == 503
        assert house.counted("users", "unavailable") == 1
        assert house.calls("/keys") == 2

    run(body)


def test_cold_and_down() -> None:
    """Without keys an outage is 503 with Retry-After, once a cool-down asked, never 401."""

    async def body() -> None:
        house = House(anonymous=True)
        house.shop.status = 500
        for n in range(20):
            with pytest.raises(UpstreamUnavailable) as caught:
                await house.bearer(jwt(n=n))
            assert caught.value.retry_after == 30
        assert house.calls("/keys") == 1
        house.shop.status = 200
        house.clock.pass_(30)
        assert (await house.bearer(jwt())).subject == "alice"

        def late() -> None:
            raise UpstreamTimeout("late", cause="late")

        slow = House()
        slow.transport.before = late
        with pytest.raises(UpstreamUnavailable):
            await slow.bearer(jwt())

    run(body)


def test_a_failed_load_is_tried_again_soon() -> None:
    """An authority that comes up late costs seconds, not a whole cool-down; one that stays down is
    asked less and less often."""

    async def body() -> None:
        house = House()
        house.shop.status = 500
        for n in range(120):
            with pytest.raises(UpstreamUnavailable):
                await house.bearer(jwt(n=n))
            house.clock.pass_(0.5)
        assert 4 <= house.calls("/keys") <= 9
        late = House()
        late.shop.status = 500
        with pytest.raises(UpstreamUnavailable):
            await late.bearer(jwt())
        late.shop.status = 200
        late.clock.pass_(1)
        assert (await late.bearer(jwt())).subject == "alice"

    run(body)


DISCOVERED = {n: v for n, v in JWT_ENTRY.items() if n != "jwks_url"}


def test_one_flight_for_cold_callers() -> None:
    """A hundred cold callers load discovery and keys once; the first may leave and harms none."""

    async def body() -> None:
        house = House({"users": DISCOVERED})
        gate = asyncio.Event()
        house.transport.before = gate.wait
        tokens = [jwt(n=n) for n in range(100)]
        tasks = [asyncio.create_task(house.bearer(token)) for token in tokens]
        await settle()
        tasks[0].cancel()
        await settle()
        gate.set()
        callers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(callers[0], asyncio.CancelledError)
        assert [c.subject for c in callers[1:] if isinstance(c, Caller)] == ["alice"] * 99
        assert [url for _, url in house.transport.calls] == [
            f"{ISSUER}/.well-known/openid-configuration", JWKS_URL
        ]  # fmt: skip

    run(body)


def test_warm() -> None:
    """`warm` loads every key set before anybody asks."""

    async def body() -> None:
        house = House({"users": DISCOVERED})
        await house.door.warm()
        assert house.calls("/keys") == 1
        await house.bearer(jwt())
        assert house.calls("/keys") == 1

    run(body)


def test_where_metadata_is() -> None:
    """OpenID appends to the issuer, RFC 8414 inserts before its path, and no issuer is guessed."""
    assert documents_of("https://a.example/t/1/") == [
        "https://a.example/t/1/.well-known/openid-configuration",
        "https://a.example/.well-known/oauth-authorization-server/t/1",
    ]
    for bad in ("shop", "https://a.example?x=1", "https://ü.example", "http://["):
        with pytest.raises(ValueError, match=r"URL|query|pattern"):
            documents_of(bad)


def test_rfc_8414_is_the_second_try() -> None:
    """Where there is no OpenID document, RFC 8414's is taken."""

    async def body() -> None:
        house = House({"users": DISCOVERED})
        house.shop.oidc = False
        assert (await house.bearer(jwt())).subject == "alice"
        assert [url.split("/")[-1] for _, url in house.transport.calls] == [
            "openid-configuration", "oauth-authorization-server", "keys"
        ]  # fmt: skip

    run(body)


@pytest.mark.parametrize(
    "document",
    [
        {"issuer": ISSUER + "/", "jwks_uri": JWKS_URL},
        {"issuer": "https://evil.example", "jwks_uri": JWKS_URL},
        {"jwks_uri": JWKS_URL},
        {"issuer": ISSUER},
        {"issuer": ISSUER, "jwks_uri": 7},
        {"issuer": ISSUER, "jwks_uri": "http://login.shop.example/keys"},
        {"issuer": ISSUER, "jwks_uri": "http://["},
        {"issuer": ISSUER, "jwks_uri": "file:///keys"},
        {"issuer": ISSUER, "jwks_uri": "https://u:p@login.shop.example/keys"},
    ],
)
def test_documents_that_are_not_believed(document: dict[str, Any]) -> None:
    """Another issuer's document, or keys in the clear, are an outage and never fetched."""

    async def body() -> None:
        house = House({"users": DISCOVERED})
        house.shop.discovery = document
        with pytest.raises(UpstreamUnavailable):
            await house.bearer(jwt())
        assert house.calls("/keys") == 0

    run(body)


@pytest.mark.parametrize(
    ("issuer", "jwks_uri"),
    [
        ("http://idp.test", "http://idp.test/keys"),
        ("http://127.0.0.1:9000/idp", "http://127.0.0.1:9000/keys"),
        (ISSUER, "http://localhost:1/keys"),
        (ISSUER, "https://keys.example/keys"),
    ],
)
def test_where_keys_may_be(issuer: str, jwks_uri: str) -> None:
    """Keys may be on another host with https, on loopback, or beside an issuer that has no TLS."""

    async def body() -> None:
        house = House({"users": DISCOVERED | {"issuer": issuer}})
        house.shop.discovery = {"issuer": issuer, "jwks_uri": jwks_uri}
        assert (await house.bearer(jwt(iss=issuer))).subject == "alice"

    run(body)


def test_a_hit_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that was proven is neither verified again nor awaited for, and counts as cached."""

    async def body() -> None:
        house = House()
        token = jwt()
        first = await house.bearer(token)
        calls = list(house.transport.calls)

        def never(*_: object, **__: object) -> None:
            raise AssertionError("verified again")

        monkeypatch.setattr("broker.authn.jwt_caller.jws.deserialize_compact", never)
        monkeypatch.setattr("broker.authn.unverified_jwt", never)
        waiting = house.door.authenticate(Presented(f"Bearer {token}", ""))
        with pytest.raises(StopIteration) as caught:
            waiting.send(None)
        assert caught.value.value is first
        assert house.transport.calls == calls
        assert (house.counted("users", "ok"), house.counted("users", "cached")) == (1, 1)

    run(body)


def test_a_hit_ends() -> None:
    """A cached token is refused after its end by either clock, and proven again after `cache`."""

    async def body() -> None:
        house = House()
        token = jwt(exp=now() + 100)
        await house.bearer(token)
        house.clock.step(131)
        await house.refusal(token)
        house.clock.step(-131)
        await house.bearer(token)
        house.clock.pass_(100)
        await house.bearer(token)  # within the leeway, so proven again
        assert house.counted("users", "cached") == 0
        house.clock.pass_(30)
        await house.refusal(token)
        house = House({"users": JWT_ENTRY | {"cache": "10s"}})
        token = jwt()
        for wait in (0, 9, 1, 0):
            house.clock.pass_(wait)
            await house.bearer(token)
        assert (house.counted("users", "ok"), house.counted("users", "cached")) == (2, 2)

    run(body)


def test_proofs_are_bounded() -> None:
    """Never more proofs are held than the bound; those over go first."""
    clock = VirtualClock()
    proofs = Proofs(clock, most=10)
    for n in range(100):
        proofs.put(b"%d" % n, Proven(Caller("a", str(n), {}), clock.monotonic() + 1 + n % 2))
    assert len(proofs) == 10
    clock.pass_(1.5)
    assert proofs.get(b"98") is None
    assert proofs.get(b"99") == Caller("a", "99", {})


def test_entries_of_one_issuer() -> None:
    """Among entries of one issuer the audience chooses, and the first that vouches counts."""

    async def body() -> None:
        entries = {n: JWT_ENTRY | {"audience": a} for n, a in (("one", "a"), ("two", ["b", "c"]))}
        house = House(entries | {"three": JWT_ENTRY | {"audience": "c", "subject_claim": "email"}})
        assert (await house.bearer(jwt(aud="a"))).name == "one"
        assert (await house.bearer(jwt(aud=["z", "b"]))).name == "two"
        assert (await house.bearer(jwt(aud="c", sub=None, email="e"))).name == "three"
        assert house.counted("two", "refused") == 0

    run(body)


def test_key_files_and_secrets() -> None:
    """Keys from a file prove tokens without a call; unusable ones are faults with their place."""

    async def body() -> None:
        keys = json.dumps({"keys": [public_jwk("ec-1")]})
        entry = {"type": "jwt", "issuer": "shop", "audience": "token-broker"}
        house = House({"a": entry | {"jwks": {"env": "K"}}}, env={"K": keys})
        assert (await house.bearer(jwt("ec-1", "ES256", iss="shop"))).name == "a"
        await house.refusal(jwt("ec-1", "ES256", iss="shop", header={"kid": "new"}))
        assert house.transport.calls == []
        with pytest.raises(ConfigError) as caught:
            House(
                {
                    "a/b": entry | {"jwks": {"env": "BAD"}},
                    "c": entry | {"shared_secret": {"env": "SHORT"}},
                    "d": entry | {"shared_secret": {"env": "PEM"}},
                    "e": entry | {"issuer": "https://shop.example?x"},
                },
                env={"BAD": '{"keys": []}', "SHORT": "x" * 31, "PEM": pem().decode()},
            )
        assert [fault.pointer for fault in caught.value.faults] == [
            "/callers/a~1b/jwks",
            "/callers/c/shared_secret",
            "/callers/d/shared_secret",
            "/callers/e/issuer",
        ]
        assert "xxxx" not in str(caught.value)

    run(body)


def active(**more: Any) -> dict[str, Any]:
    return {"active": True, "sub": "svc", **more}


def test_introspection() -> None:
    """An active token is its subject's; we prove ourselves with form-encoded Basic."""

    async def body() -> None:
        house = House({"svc": INTROSPECT})
        house.shop.tokens = {"opaque-1": active(scope="a b")}
        caller = await house.bearer("opaque-1")
        assert caller == Caller("svc", "svc", active(scope="a b"))
        (request,) = house.shop.seen
        assert request.method == "POST"
        assert request.content == b"token=opaque-1&token_type_hint=access_token"
        pair = b64decode(request.headers["authorization"].removeprefix("Basic ")).decode()
        assert [unquote_plus(half) for half in pair.split(":")] == ["our id", "s:e/c+r€t"]
        assert "opaque" not in str(request.url)
        await house.bearer("opaque-1")
        assert (len(house.shop.seen), house.counted("svc", "cached")) == (1, 1)
        house.clock.pass_(30)
        await house.bearer("opaque-1")
        assert len(house.shop.seen) == 2

    run(body)


@pytest.mark.parametrize(
    "told",
    [
        {"active": False},
        {},
        active() | {"active": "true"},
        active() | {"active": 1},
        active(exp=now()),
        active(exp="soon"),
        active(exp=True),
        active(nbf=now() + 60),
        active(iss="https://evil.example"),
        active(aud="x"),
        active(scope="mint-not"),
        active(scope=None),
        active(sub=""),
        active(sub=None),
        active(sub=["svc"]),
    ],
)
def test_introspection_refuses(told: dict[str, Any]) -> None:
    """Whatever is not plainly active, for us and of the right scope is refused, and remembered."""

    async def body() -> None:
        entry = INTROSPECT | {"issuer": ISSUER, "audience": "b", "scope": "mint"}
        house = House({"svc": entry})
        house.shop.tokens = {"opaque-1": {"aud": ["b"], "scope": "x mint", **told}}
        house.shop.tokens["opaque-2"] = active(aud=["b"], scope=["mint"])
        for _ in range(2):
            error = await house.refusal("opaque-1")
            assert not any(text in str(error) for text in PRIVATE_TEXTS)
        assert len(house.shop.seen) == 1
        assert (await house.bearer("opaque-2")).subject == "svc"
        house.clock.pass_(5)
        await house.refusal("opaque-1")
        assert len(house.shop.seen) == 3

    run(body)


def test_introspected_ends() -> None:
    """An introspected token is not believed past its `exp`, whatever `cache` says."""

    async def body() -> None:
        house = House({"svc": INTROSPECT | {"cache": "1h"}})
        house.shop.tokens = {"opaque-1": active(exp=now() + 60)}
        await house.bearer("opaque-1")
        house.clock.step(60)
        await house.refusal("opaque-1")
        house.clock.step(-60)
        house.clock.pass_(61)
        await house.refusal("opaque-1")
        off = House({"svc": INTROSPECT | {"cache": "0s"}})
        off.shop.tokens = {"opaque-1": active()}
        for _ in range(2):
            await off.bearer("opaque-1")
            await off.refusal("opaque-2")
        assert len(off.shop.seen) == 4

    run(body)


def test_introspection_is_one_flight() -> None:
    """However many show one token, one question is asked, and the first may leave."""

    async def body() -> None:
        house = House({"svc": INTROSPECT})
        house.shop.tokens = {"opaque-1": active()}
        gate = asyncio.Event()
        house.transport.before = gate.wait
        tasks = [asyncio.create_task(house.bearer("opaque-1")) for _ in range(50)]
        await settle()
        tasks[0].cancel()
        await settle()
        gate.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [c.subject for c in found if isinstance(c, Caller)] == ["svc"] * 49
        assert len(house.shop.seen) == 1

    run(body)


def test_a_flood_of_bad_tokens_evicts_no_good_one() -> None:
    """Refusals have a place of their own, with a bound of its own."""

    async def body() -> None:
        house = House({"svc": INTROSPECT})
        house.shop.tokens = {"opaque-good": active()}
        await house.bearer("opaque-good")
        introspector = house.door._introspectors[0]
        for n in range(20_000):
            introspector._refused[hashlib.sha256(b"%d" % n).digest()] = "not active"
        assert len(introspector._refused) == 10_000
        assert len(house.door._proofs) == 1
        await house.bearer("opaque-good")
        assert len(house.shop.seen) == 1

    run(body)


@pytest.mark.parametrize("told", [500, 401, 403, 302, 429, b"<html>", b"[]", b"\xff", b""])
def test_introspection_down(told: Any) -> None:
    """An endpoint that answers neither yes nor no is 503 and not remembered."""

    async def body() -> None:
        house = House({"svc": INTROSPECT}, anonymous=True)
        house.shop.tokens = {"opaque-1": told}
        with pytest.raises(UpstreamUnavailable):
            await house.bearer("opaque-1")
        house.shop.tokens = {"opaque-1": active()}
        assert (await house.bearer("opaque-1")).subject == "svc"

    run(body)


def test_order_and_outage() -> None:
    """Those concerned are asked in order; one that is down outweighs refusals, not a yes."""

    async def body() -> None:
        second = INTROSPECT | {"url": "https://two.example/introspect"}
        house = House({"users": JWT_ENTRY, "one": INTROSPECT, "two": second, "old": WHOAMI})
        house.shop.tokens = {"opaque-1": active()}

        def one_down() -> None:
            if house.transport.calls[-1][1] == INTROSPECT["url"]:
                raise UpstreamTimeout("late", cause="late")

        house.transport.before = one_down
        assert (await house.bearer("opaque-1")).name == "two"
        with pytest.raises(UpstreamTimeout):
            await house.bearer("opaque-2")
        house.shop.sessions = {"s=1": {"subject": "bob"}}
        assert (await house.bearer("opaque-3", "s=1")).name == "old"
        asked = [url for _, url in house.transport.calls]
        assert asked[-3:] == [INTROSPECT["url"], second["url"], WHOAMI["url"]]
        assert house.counted("one", "unavailable") == 3
        before = len(house.transport.calls)
        assert (await house.bearer(jwt(), "s=1")).name == "users"
        await house.refusal(jwt(aud="x"))
        assert house.transport.calls[before:] == [("GET", JWKS_URL)]

    run(body)


def test_forward_auth() -> None:
    """Only the configured cookies are passed on, and the answer's pointers say who."""

    async def body() -> None:
        entry = WHOAMI | {"cookies": ["sid"], "subject": "/user/id", "claims": "/user/a~1b"}
        house = House({"old": entry})
        house.shop.sessions = {"sid=1": {"user": {"id": "bob", "a/b": {"role": "owner"}}}}
        shown = Presented("Bearer opaque-1", "theme=dark; sid=1;sid2=x")
        assert await house.door.authenticate(shown) == Caller("old", "bob", {"role": "owner"})
        (request,) = house.shop.seen
        assert request.headers["cookie"] == "sid=1"
        assert "authorization" not in request.headers
        assert request.headers["accept"] == "application/json"
        await house.door.authenticate(shown)
        assert len(house.shop.seen) == 2
        with pytest.raises(Unauthenticated):
            await house.cookie("theme=dark")
        assert len(house.shop.seen) == 2

    run(body)


def test_forward_auth_of_authorization() -> None:
    """Any scheme may be passed on where `authorization` is configured, cached by what was sent."""

    async def body() -> None:
        house = House({"old": WHOAMI | {"headers": ["cookie", "authorization"], "cache": "10s"}})
        house.shop.sessions = {"": {"subject": "bob"}, "s=1": {"subject": "eve"}}
        for shown in (Presented("Basic xyz", ""), Presented("Basic xyz", "s=1")):
            for _ in range(2):
                await house.door.authenticate(shown)
        assert [r.headers["authorization"] for r in house.shop.seen] == ["Basic xyz"] * 2
        assert (await house.door.authenticate(Presented("Basic xyz", "s=1"))).subject == "eve"
        assert house.counted("old", "cached") == 3
        house.clock.pass_(10)
        await house.door.authenticate(Presented("Basic xyz", ""))
        assert len(house.shop.seen) == 3

    run(body)


@pytest.mark.parametrize(
    "told",
    [500, 404, 302, 204, b"<html>", b"[]", {}, {"subject": None}, {"subject": ""},
     {"subject": 7}, {"subject": "b", "claims": []}, {"subject": "b" * 256}],
)  # fmt: skip
def test_forward_auth_down(told: Any) -> None:
    """An answer that is neither yes nor no is 503."""

    async def body() -> None:
        house = House({"old": WHOAMI}, anonymous=True)
        house.shop.sessions = {"s=1": told}
        with pytest.raises(UpstreamUnavailable):
            await house.cookie("s=1")
        assert house.counted("old", "unavailable") == 1

    run(body)


@pytest.mark.parametrize("status", [401, 403])
def test_forward_auth_refuses(status: int) -> None:
    """401 and 403 are a refusal, and a refused cookie does not become anonymous."""

    async def body() -> None:
        house = House({"old": WHOAMI}, anonymous=True)
        house.shop.sessions = {"s=1": status}
        with pytest.raises(Unauthenticated):
            await house.cookie("s=1")

    run(body)


def test_cookies_that_cannot_be_sent() -> None:
    """An odd cookie beside the session harms nobody; an odd or endless session is refused."""

    async def body() -> None:
        house = House({"old": WHOAMI})
        house.shop.sessions = {"s=1": {"subject": "bob"}}
        assert (await house.cookie("ad=ü; s=1; x=\r\nHost: evil")).subject == "bob"
        named = House({"old": WHOAMI | {"cookies": ["s"]}}, anonymous=True)
        for bad in ("s=\r\nX: y", "s=ü", "s=\ud800", "s=" + "x" * 16385):
            with pytest.raises(Unauthenticated):
                await named.cookie(bad)
        assert named.transport.calls == []

    run(body)


def test_anonymous() -> None:
    """Only who shows nothing is anonymous, and only where that is configured."""

    async def body() -> None:
        house = House(anonymous=True)
        assert await house.cookie("theme=dark") == Caller("anonymous", "anonymous", {})
        for shown in ("Basic eDp5", "Bearer", "Bearer ", "Bearer opaque-1", "x", "Bearer a b"):
            with pytest.raises(Unauthenticated):
                await house.door.authenticate(Presented(shown, ""))
        with pytest.raises(Unauthenticated):
            await House().cookie("")

    run(body)


EVERYBODY = {
    "users": JWT_ENTRY,
    "svc": INTROSPECT,
    "old": WHOAMI | {"headers": ["cookie", "authorization"]},
}
QUIET = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
LOOSE = st.text(st.characters(exclude_categories=()), max_size=60)


async def survives(house: House, shown: Presented) -> None:
    with suppress(BrokerError):
        assert (await house.door.authenticate(shown)).name in EVERYBODY


@QUIET
@given(st.sampled_from(["", "Bearer ", "bearer  ", "Basic "]), LOOSE, LOOSE)
def test_any_text_is_survived(scheme: str, text: str, cookie: str) -> None:
    """Whatever text is shown, nothing but a BrokerError is raised."""
    run(lambda: survives(House(EVERYBODY), Presented(scheme + text, cookie)))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | LOOSE | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LOOSE, inner, max_size=3),
    max_leaves=8,
)
CLAIMS = st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "iat", "jti", "x"])
HEADERS = st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "x5c", "jku", "cty", "x"])


@QUIET
@given(st.dictionaries(CLAIMS, JSON_VALUES), st.dictionaries(HEADERS, JSON_VALUES))
def test_any_claims_are_survived(claims: dict[str, Any], header: dict[str, Any]) -> None:
    """Whatever a rightly signed token says of itself, nothing but a BrokerError is raised."""
    token = jwt("ed-1", "EdDSA", header={"kid": "ed-1"} | header, **claims)
    run(lambda: survives(House({"users": JWT_ENTRY}), Presented(f"Bearer {token}", "")))


@QUIET
@given(st.data())
def test_mutated_tokens_are_survived(data: st.DataObject) -> None:
    """A token with any character changed is refused, and nothing but a BrokerError is raised."""
    token = jwt("ed-1", "EdDSA")
    at = data.draw(st.integers(0, len(token) - 1))
    put = data.draw(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=3))
    changed = token[:at] + put + token[at + 1 :]

    async def body() -> None:
        house = House()
        if changed != token:
            await house.refusal(changed)

    run(body)


@QUIET
@given(st.binary(max_size=60) | JSON_VALUES.map(lambda v: json.dumps({"keys": v}).encode()))
def test_any_key_set_is_survived(raw: bytes) -> None:
    """Whatever an issuer publishes, reading it raises nothing but Unreadable."""
    with suppress(Unreadable):
        assert read_keys(raw).keys


@QUIET
@given(JSON_VALUES, JSON_VALUES, JSON_VALUES, JSON_VALUES)
def test_any_answer_is_survived(sub: Any, exp: Any, scope: Any, aud: Any) -> None:
    """Whatever introspection and whoami answer, nothing but a BrokerError is raised."""

    async def body() -> None:
        house = House({"svc": INTROSPECT | {"audience": "b", "scope": "x"}, "old": WHOAMI})
        house.shop.tokens = {"t": active(sub=sub, exp=exp, scope=scope, aud=aud)}
        house.shop.sessions = {"s=1": {"subject": sub, "claims": exp}}
        for shown in (Presented("Bearer t", ""), Presented("", "s=1")):
            with suppress(BrokerError):
                await house.door.authenticate(shown)

    run(body)


def test_a_hit_is_cheap() -> None:
    """A hit costs microseconds: a digest, a look-up and two clocks (generous for slow machines)."""

    async def body() -> None:
        house = House()
        shown = Presented(f"Bearer {jwt()}", "")
        await house.door.authenticate(shown)
        began = time.perf_counter()
        for _ in range(2000):
            await house.door.authenticate(shown)
        assert (time.perf_counter() - began) / 2000 < 100e-6

    run(body)
