"""The token client: what it sends, what it believes, and that real servers understand it.

The other end is read by stock code (urllib, base64, joserfc), by a socket that misbehaves, and by
oidc-provider, an authorisation server that nobody here wrote.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote_plus

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OKPKey, RSAKey

from broker.authn import Door, Presented
from broker.declared import SecretRef
from broker.errors import (
    BrokerError,
    ConfigError,
    Fault,
    Overloaded,
    Unauthenticated,
    UpstreamError,
    UpstreamNonsense,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from broker.file import CallerEntry, CredentialEntry, IntrospectionCaller, JwtCaller
from broker.flights import Tasks
from broker.guard import Guard
from broker.keyring import Keyring
from broker.limits import RateLimits
from broker.metrics import Metrics
from broker.model import AccessToken, Priority
from broker.schedule import Clock, SystemClock
from broker.upstreams.oauth import BODY_LIMIT, OAuth
from broker.upstreams.proofs import ASSERTION_LIFE
from broker.upstreams.transport import AiohttpTransport, Transport
from tests.support import AppTransport, VirtualClock

URL = "https://idp.test/connect/token"
NASTY = "a+b/c=d%e&f:g h?;#\"'<>\\é漢😀"
GRANTED = {"access_token": "tok", "token_type": "Bearer", "expires_in": 3600, "scope": "a b"}

Handler = Callable[[httpx2.Request], httpx2.Response]


class Through:
    """In a guard's place: one attempt, in all of the time; remembers what it was asked for."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.asked: list[tuple[float, Priority, str]] = []
        self.again: Callable[[BrokerError], bool] = lambda _: False

    async def call(
        self,
        work: Callable[[float], Any],
        *,
        deadline: float,
        priority: Priority,
        operation: str,
        again: Callable[[BrokerError], bool],
    ) -> Any:
        seconds = deadline - self._clock.monotonic()
        self.asked.append((seconds, priority, operation))
        self.again = again
        return await work(seconds)


def plain_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Client:
    """An `OAuth` with what it stands on; settings are those of the configuration file. Variables
    are in `env`, and replaced there by `replace`."""

    def __init__(
        self,
        transport: Transport,
        *,
        id: str = "ack_me",
        secrets: tuple[str, ...] = ("s3cret",),
        key: str | None = None,
        digest: Callable[[str], str] = plain_digest,
        clock: Clock | None = None,
        guard: Any = None,
        prefix: str = "",
        **entry: Any,
    ) -> None:
        id_, secret = f"{prefix}ID", f"{prefix}SECRET"
        self.env = {id_: id, **{f"{secret}{i}": value for i, value in enumerate(secrets)}}
        proof: dict[str, Any] = {
            "client_secret": [SecretRef(env=f"{secret}{i}") for i in range(len(secrets))]
        }
        if key is not None:
            self.env["KEY"] = key
            proof = {"private_key": SecretRef(env="KEY"), "client_auth": "private_key_jwt"}
        declared = CredentialEntry(
            **{"token_url": URL, "client_id": SecretRef(env=id_), **proof, **entry}
        )
        self.refs = [("/x", SecretRef(env=name)) for name in self.env]
        self.metrics = Metrics()
        self.clock = clock or VirtualClock()
        self.keyring = Keyring(self.refs, Path(), self.env)
        self.guard = guard or Through(self.clock)
        self.oauth = OAuth(
            "checkout",
            declared,
            self.keyring,
            transport,
            self.clock,
            self.metrics,
            self.guard,
            digest,
        )

    def replace(self, **values: str) -> None:
        """Changes secrets in place, as an operator does, and has it noticed."""
        self.env.update(values)
        self.keyring.adopt(self.keyring.read(self.refs))

    def sample(self, name: str, **labels: str) -> float:
        found = self.metrics.registry.get_sample_value(f"broker_{name}", labels)
        return found or 0.0


def ask(handler: Handler, **made: Any) -> AccessToken:
    return asyncio.run(Client(AppTransport(handler=handler), **made).oauth.token())


def answering(*answers: httpx2.Response) -> tuple[list[httpx2.Request], Handler]:
    """A handler that gives these answers in turn, the last for ever, and keeps the requests."""
    seen: list[httpx2.Request] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return answers[min(len(seen), len(answers)) - 1]

    return seen, handler


def granted(**changed: Any) -> httpx2.Response:
    tree = {**GRANTED, **changed}
    return httpx2.Response(200, json={k: v for k, v in tree.items() if v is not ...})


def form_of(request: httpx2.Request) -> dict[str, list[str]]:
    return parse_qs(request.content.decode("ascii"), keep_blank_values=True, strict_parsing=True)


def basic_of(request: httpx2.Request) -> tuple[str, str]:
    kind, _, encoded = request.headers["authorization"].partition(" ")
    assert kind == "Basic"
    user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    return user, password


# What is sent


def test_the_request_is_rfc_6749s() -> None:
    """One POST with exactly the declared fields, and the answer as a token of that moment."""
    seen, handler = answering(granted())
    clock = VirtualClock()
    token = ask(
        handler,
        clock=clock,
        scope=["sessions:browser", "sessions:app"],
        audience="https://api.test",
        resource=["https://a.test", "https://b.test"],
        parameters={"tenant": "x&y", "empty": ""},
    )
    (request,) = seen
    assert (request.method, str(request.url)) == ("POST", URL)
    assert request.headers["accept"] == "application/json"
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert "authorization" not in request.headers
    assert form_of(request) == {
        "grant_type": ["client_credentials"],
        "scope": ["sessions:browser sessions:app"],
        "audience": ["https://api.test"],
        "resource": ["https://a.test", "https://b.test"],
        "tenant": ["x&y"],
        "empty": [""],
        "client_id": ["ack_me"],
        "client_secret": ["s3cret"],
    }
    assert (token.value.reveal(), token.token_type, token.scope) == ("tok", "Bearer", "a b")
    assert token.life.lifetime == timedelta(hours=1)
    assert token.life.expires_at == clock.now() + timedelta(hours=1)
    assert token.life.until == clock.monotonic() + 3600
    assert token.obtained == clock.monotonic()


def test_no_scope_is_sent_where_none_is_declared() -> None:
    """An empty scope list leaves the field out, which asks for the default."""
    seen, handler = answering(granted())
    ask(handler)
    assert set(form_of(seen[0])) == {"grant_type", "client_id", "client_secret"}


SECRETS = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("+/=%&: ~éß漢😀"), min_size=1
).filter(lambda text: text.rstrip("\r\n") == text)


@settings(deadline=None)
@given(secret=SECRETS, id=SECRETS)
def test_any_secret_arrives_intact(secret: str, id: str) -> None:
    """Whatever text id and secret are, stock decoders get it back: from the form, from Basic with
    RFC 6749's form encoding, and from Basic as it is (id without a colon, which Basic cannot)."""
    seen, handler = answering(granted())
    ask(handler, id=id, secrets=(secret,))
    assert form_of(seen[0])["client_id"] == [id]
    assert form_of(seen[0])["client_secret"] == [secret]
    ask(handler, id=id, secrets=(secret,), client_auth="client_secret_basic")
    user, password = basic_of(seen[1])
    assert (unquote_plus(user), unquote_plus(password)) == (id, secret)
    plain = id.replace(":", "")
    if plain.rstrip("\r\n"):
        plain = plain.rstrip("\r\n")
        ask(
            handler,
            id=plain,
            secrets=(secret,),
            client_auth="client_secret_basic",
            basic_encoding="none",
        )
        assert basic_of(seen[2]) == (plain, secret)
    assert "client_secret" not in form_of(seen[1])


def test_a_nasty_secret_on_the_wire() -> None:
    """One example in full, so that the encoding can be read here."""
    seen, handler = answering(granted())
    ask(handler, secrets=("a+b/c= %é",))
    assert seen[0].content.endswith(b"&client_secret=a%2Bb%2Fc%3D+%25%C3%A9")
    ask(handler, secrets=("a+b/c= %é",), client_auth="client_secret_basic")
    assert basic_of(seen[1]) == ("ack_me", "a%2Bb%2Fc%3D+%25%C3%A9")


KEYS: list[tuple[str, Callable[[], Any]]] = [
    ("RS256", lambda: RSAKey.generate_key(2048)),
    ("PS256", lambda: RSAKey.generate_key(2048)),
    ("ES256", lambda: ECKey.generate_key("P-256")),
    ("EdDSA", lambda: OKPKey.generate_key("Ed25519")),
]


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
@pytest.mark.parametrize("form", ["pem", "jwk"])
@pytest.mark.parametrize(("alg", "make"), KEYS)
def test_private_key_jwt(alg: str, make: Callable[[], Any], form: str) -> None:
    """A signed assertion stands for the secret: RFC 7523's claims, the declared alg, kid and
    audience, and a `jti` that is new each time."""
    key = make()
    text = (
        key.as_pem(private=True).decode()
        if form == "pem"
        else json.dumps(key.as_dict(private=True))
    )
    seen, handler = answering(granted())
    clock = VirtualClock()
    client = Client(
        AppTransport(handler=handler), key=text, clock=clock, assertion_alg=alg, assertion_kid="k1"
    )
    asyncio.run(client.oauth.token())
    asyncio.run(client.oauth.token())
    seen_jti = set()
    for request in seen:
        fields = form_of(request)
        assert fields["client_assertion_type"] == [
            "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        ]
        assert fields["client_id"] == ["ack_me"]
        assert "client_secret" not in fields
        token = jwt.decode(fields["client_assertion"][0], key, algorithms=[alg])
        assert token.header == {"typ": "JWT", "alg": alg, "kid": "k1"}
        seen_jti.add(token.claims.pop("jti"))
        now = int(clock.now().timestamp())
        expected = {"iss": "ack_me", "sub": "ack_me", "aud": URL}
        assert token.claims == {**expected, "iat": now, "exp": now + ASSERTION_LIFE}
    assert len(seen_jti) == 2


def test_the_assertions_audience_can_be_set() -> None:
    """`assertion_audience` takes the place of the token URL; a JWK's own kid that of none."""
    key = ECKey.generate_key("P-256", {"kid": "of-the-key"})
    seen, handler = answering(granted())
    ask(
        handler,
        key=json.dumps(key.as_dict(private=True)),
        assertion_alg="ES256",
        assertion_audience="https://idp.test",
    )
    token = jwt.decode(form_of(seen[0])["client_assertion"][0], key)
    assert token.claims["aud"] == "https://idp.test"
    assert token.header["kid"] == "of-the-key"


def _public(key: Any) -> str:
    return json.dumps(key.as_dict(private=False))


BAD_KEYS: list[tuple[str, Callable[[], str]]] = [
    ("garbage", lambda: "canary-not-a-key"),
    ("broken PEM", lambda: "-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----"),
    ("broken JSON", lambda: '{"kty": "canary"'),
    ("unknown type", lambda: '{"kty": "canary"}'),
    ("public", lambda: _public(RSAKey.generate_key(2048))),
    ("other type", lambda: ECKey.generate_key("P-256").as_pem(private=True).decode()),
    ("for another alg", lambda: json.dumps(
        RSAKey.generate_key(2048, {"alg": "PS256"}).as_dict(private=True)
    )),
]  # fmt: skip


@pytest.mark.parametrize("make", [make for _, make in BAD_KEYS], ids=[name for name, _ in BAD_KEYS])
def test_a_bad_private_key_ends_the_start(make: Callable[[], str]) -> None:
    """A key that cannot sign is found when the configuration is loaded, with its place and without
    a word of it."""
    _, handler = answering(granted())
    with pytest.raises(ConfigError) as caught:
        Client(AppTransport(handler=handler), key=make())
    reason = "is no private key, PEM or JWK, that RS256 can use"
    assert caught.value.faults == (Fault("/credentials/checkout/private_key", reason),)
    assert caught.value.__cause__ is None


def test_a_short_rsa_key_is_a_bad_key() -> None:
    """An RSA key under 2048 bits is refused, not warned of."""
    with pytest.warns(Warning, match="2048"):
        text = RSAKey.generate_key(1024).as_pem(private=True).decode()
    _, handler = answering(granted())
    with pytest.raises(ConfigError):
        Client(AppTransport(handler=handler), key=text)


# Rollover of a client secret


class Knower:
    """A token endpoint that knows some secrets, gives each its own token, and keeps what it saw."""

    def __init__(self, *good: str) -> None:
        self.good = set(good)
        self.sent: list[str] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        (secret,) = form_of(request)["client_secret"]
        self.sent.append(secret)
        if secret in self.good:
            return granted(access_token=secret)
        return httpx2.Response(401, json={"error": "invalid_client"})

    async def asked(self, client: Client) -> list[str]:
        """What one token request sent, the one that worked last."""
        self.sent.clear()
        assert (await client.oauth.token()).value.reveal() == self.sent[-1]
        return self.sent


def test_a_rollover_of_secrets() -> None:
    """On `invalid_client` the next secret is tried, newest first, one request each. The one that
    worked is shown from then on; the newest is tried again once a minute, and takes over by itself;
    the metrics say when each worked last, and how often it was refused."""
    idp = Knower("new")

    async def main() -> None:
        clock = VirtualClock()
        made = {"secrets": ("new", "old", "older"), "clock": clock}
        client = Client(AppTransport(handler=idp), **made)
        for passed, now_good, asked in (
            (0, {"new"}, ["new"]),
            (0, {"old"}, ["new", "old"]),
            (50, {"old"}, ["old"]),
            (20, {"old"}, ["new", "old"]),
            (50, {"new", "old"}, ["old"]),
            (20, {"new", "old"}, ["new"]),
            (500, {"new", "old"}, ["new"]),
        ):
            clock.pass_(passed)
            idp.good = now_good
            assert await idp.asked(client) == asked
        idp.good = set()
        idp.sent.clear()
        with pytest.raises(UpstreamRefused) as caught:
            await client.oauth.token()
        assert idp.sent == ["new", "old", "older"]
        _tells_nothing(caught.value)
        labels = {"credential": "checkout", "outcome": "refused"}
        assert client.sample("access_token_refreshes_total", **labels) == 1
        newest = {"source": "env:SECRET0", "slot": "newest"}
        old = {"source": "env:SECRET1", "slot": "older"}
        now = clock.now().timestamp()
        assert client.sample("secret_last_success_timestamp_seconds", **newest) == now
        assert client.sample("secret_last_success_timestamp_seconds", **old) == now - 520
        assert client.sample("secret_refusals_total", **newest) == 3
        assert client.sample("secret_refusals_total", **old) == 1

    asyncio.run(main())


def test_a_secret_replaced_in_place_keeps_the_one_before() -> None:
    """A file that is overwritten before the upstream knows the new value costs one refusal a
    minute and no token: the earlier value stays in service, as `previous`."""
    idp = Knower("old")

    async def main() -> None:
        client = Client(AppTransport(handler=idp), secrets=("old",))
        assert await idp.asked(client) == ["old"]
        client.replace(SECRET0="new")
        assert await idp.asked(client) == ["new", "old"]
        assert await idp.asked(client) == ["old"]
        idp.good = {"new"}
        assert await idp.asked(client) == ["old", "new"]
        assert await idp.asked(client) == ["new"]
        labels = {"source": "env:SECRET0", "slot": "previous"}
        assert client.sample("secret_last_success_timestamp_seconds", **labels) > 0

    asyncio.run(main())


def test_a_refusal_of_all_reads_the_secrets_again_at_once() -> None:
    """Where the endpoint knows no version, the files are looked at there and then, and what was put
    there meanwhile is shown in the same request; once, and nothing is shown twice."""
    idp = Knower("new")
    looked: list[bool] = []

    async def main() -> None:
        client = Client(AppTransport(handler=idp), secrets=("old",))

        async def reread() -> bool:
            looked.append(True)
            return bool(client.keyring.adopt(client.keyring.read(client.refs)))

        client.keyring.reread = reread
        with pytest.raises(UpstreamRefused):
            await client.oauth.token()
        assert (idp.sent, looked) == (["old"], [True])
        client.env["SECRET0"] = "new"
        assert await idp.asked(client) == ["old", "new"]
        assert len(looked) == 2

    asyncio.run(main())


def test_a_client_id_is_replaced_with_its_secret() -> None:
    """The id is read anew as the secret is, and an earlier one is never shown again, though it be
    the only one that is known: what it got would be stored and served as the new client's."""
    pairs: list[tuple[str, str]] = []
    good = {("old-id", "old")}

    def handler(request: httpx2.Request) -> httpx2.Response:
        form = form_of(request)
        pairs.append((form["client_id"][0], form["client_secret"][0]))
        if pairs[-1] in good:
            return granted()
        return httpx2.Response(401, json={"error": "invalid_client"})

    async def main() -> None:
        made: dict[str, Any] = {"id": "old-id", "secrets": ("old",)}
        client = Client(AppTransport(handler=handler), **made)
        client.replace(ID="new-id", SECRET0="new")
        with pytest.raises(UpstreamRefused):
            await client.oauth.token()
        assert pairs == [("new-id", "new"), ("new-id", "old")]
        good.add(("new-id", "new"))
        client.clock.pass_(70)  # type: ignore[attr-defined]
        await client.oauth.token()
        assert pairs[2:] == [("new-id", "new")]

    asyncio.run(main())


def test_a_key_that_cannot_sign_does_not_end_the_one_that_can() -> None:
    """A private key replaced by rubbish is passed over for the one before; replaced by a good one,
    it signs with that."""
    keys = [ECKey.generate_key("P-256") for _ in range(2)]
    texts = [key.as_pem(private=True).decode() for key in keys]
    seen, handler = answering(granted())

    def signed_by(key: Any) -> None:
        jwt.decode(form_of(seen[-1])["client_assertion"][0], key, algorithms=["ES256"])

    async def main() -> None:
        client = Client(AppTransport(handler=handler), key=texts[0], assertion_alg="ES256")
        client.replace(KEY="canary-rubbish")
        await client.oauth.token()
        assert len(seen) == 1
        signed_by(keys[0])
        client.replace(KEY=texts[1])
        await client.oauth.token()
        signed_by(keys[1])

    asyncio.run(main())


def test_rubbish_upon_rubbish_loses_no_key_that_can_sign() -> None:
    """However often the file is replaced by what cannot sign, the last that could does. When that
    is refused, nothing is left: a refusal, without a word of any of them."""
    key = ECKey.generate_key("P-256").as_pem(private=True).decode()
    seen, handler = answering(granted(), granted(), granted(), httpx2.Response(401))

    async def main() -> None:
        client = Client(AppTransport(handler=handler), key=key, assertion_alg="ES256")
        for nth in range(1, 4):
            client.replace(KEY=f"canary-{nth}")
            await client.oauth.token()
            assert len(seen) == nth
        with pytest.raises(UpstreamRefused) as caught:
            await client.oauth.token()
        assert len(seen) == 4
        _tells_nothing(caught.value)

    asyncio.run(main())


# How long, for whom, and whether once more


@pytest.mark.parametrize(
    ("priority", "seconds"),
    [(Priority.PERSON, 8.0), (Priority.REFRESH, 2.0), (Priority.PREFETCH, 2.0)],
)
def test_who_waits_has_more_time(priority: Priority, seconds: float) -> None:
    """A person's request has the whole timeout, one made behind a quarter of it; until one was too
    slow: the next has all of it for one attempt, whoever asks."""
    given: list[float] = []

    class Slow(AppTransport):
        async def send(self, method: str, url: str, **how: Any) -> Any:
            given.append(how["timeout"])
            if len(given) == 1:
                raise UpstreamTimeout("late")
            return await super().send(method, url, **how)

    async def main() -> None:
        client = Client(Slow(handler=lambda _: granted()))
        late = UpstreamTimeout("late")
        with pytest.raises(UpstreamTimeout):
            await client.oauth.token(priority=priority)
        assert client.guard.asked == [(8.0, priority, "token")]
        assert not client.guard.again(late)
        await client.oauth.token(priority=priority)
        assert client.guard.again(late)
        await client.oauth.token(priority=priority)
        assert given == [seconds, 8.0, seconds]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "again"),
    [
        (httpx2.Response(503), True),
        (httpx2.Response(408), True),
        (httpx2.Response(200), True),
        (httpx2.Response(200, html="<html>"), True),
        (granted(access_token=""), True),
        (granted(token_type="DPoP"), False),
        (granted(expires_in=...), False),
        (httpx2.Response(302), False),
        (httpx2.Response(429), False),
        (httpx2.Response(400, json={"error": "invalid_scope"}), False),
        (httpx2.Response(401), False),
    ],
)
def test_what_is_asked_once_more(answer: httpx2.Response, again: bool) -> None:
    """What passes is asked again, as a token too many harms nobody: not sent, 5xx, a garbled 200.
    Never a refusal, a 429, or what was said clearly and would be said again."""

    async def main() -> None:
        client = Client(AppTransport(handler=lambda _: answer))
        with pytest.raises(UpstreamError) as caught:
            await client.oauth.token()
        assert client.guard.again(caught.value) is again
        assert client.guard.again(UpstreamUnavailable("not sent"))
        assert not client.guard.again(Overloaded())

    asyncio.run(main())


def test_a_real_guard_asks_once_more() -> None:
    """Behind the real guard a 503 and a garbled 200 cost two requests more, and no failure."""
    seen, handler = answering(httpx2.Response(503), httpx2.Response(200), granted())

    async def main() -> None:
        clock = VirtualClock()
        limits = RateLimits(clock)
        guard = Guard(
            "x", account="x", clock=clock, metrics=Metrics(), limits=limits, rate=None, most=8
        )
        client = Client(AppTransport(handler=handler), clock=clock, guard=guard)
        asking = asyncio.create_task(client.oauth.token())
        await clock.advance(2)
        assert (await asking).value.reveal() == "tok"
        assert len(seen) == 3

    asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.Response(400, json={"error": "invalid_scope"}),
        httpx2.Response(429),
        httpx2.Response(500, json={"error": "invalid_client"}),
        httpx2.Response(200, text="<html>"),
    ],
)
def test_only_invalid_client_tries_the_next_secret(answer: httpx2.Response) -> None:
    """No other failure sends a second secret."""
    seen, handler = answering(answer)
    with pytest.raises(UpstreamError):
        ask(handler, secrets=("new", "old"))
    assert len(seen) == 1


# What is believed


@pytest.mark.parametrize(
    ("changed", "scope", "seconds"),
    [
        ({}, "a b", 3600.0),
        ({"token_type": "bearer"}, "a b", 3600.0),
        ({"token_type": "BEARER"}, "a b", 3600.0),
        ({"scope": ["a", "c"]}, "a c", 3600.0),
        ({"scope": ...}, "x y", 3600.0),
        ({"scope": None, "error": None}, "x y", 3600.0),
        ({"scope": ""}, "", 3600.0),
        ({"expires_in": "900"}, "a b", 900.0),
        ({"expires_in": "900.5"}, "a b", 900.5),
        ({"expires_in": 1.5}, "a b", 1.5),
        ({"expires_in": 1}, "a b", 1.0),
        ({"refresh_token": "r", "id_token": {"any": ["thing"]}}, "a b", 3600.0),
    ],
)
def test_answers_that_are_believed(changed: dict[str, Any], scope: str, seconds: float) -> None:
    """What real servers say in their own ways means one thing here."""
    token = ask(lambda _: granted(**changed), scope=["x", "y"])
    assert (token.value.reveal(), token.token_type) == ("tok", "Bearer")
    assert (token.scope, token.life.lifetime.total_seconds()) == (scope, seconds)


@pytest.mark.parametrize("status", [200, 201, 202, 299])
def test_any_success_status_is_one(status: int) -> None:
    """Checkout.com's own mocks answer 201."""
    assert ask(lambda _: httpx2.Response(status, json=GRANTED)).value.reveal() == "tok"


@pytest.mark.parametrize("given", [..., None])
def test_a_missing_lifetime_is_assumed_aloud(given: Any) -> None:
    """Without expires_in the configured default counts, with a metric; without a default, no."""

    async def main() -> None:
        client = Client(
            AppTransport(handler=lambda _: granted(expires_in=given)), default_lifetime="5m"
        )
        assert (await client.oauth.token()).life.lifetime == timedelta(minutes=5)
        assert client.sample("access_token_lifetime_assumed_total", credential="checkout") == 1

    asyncio.run(main())
    with pytest.raises(UpstreamNonsense):
        ask(lambda _: granted(expires_in=given))


@pytest.mark.parametrize("given", [3601, "1000000", 1e12, 10**12])
def test_a_long_lifetime_is_cut_aloud(given: Any) -> None:
    """More than max_lifetime is cut to it, with a metric."""

    async def main() -> None:
        client = Client(
            AppTransport(handler=lambda _: granted(expires_in=given)), max_lifetime="1h"
        )
        assert (await client.oauth.token()).life.lifetime == timedelta(hours=1)
        assert client.sample("access_token_lifetime_assumed_total", credential="checkout") == 1

    asyncio.run(main())


NONSENSE: dict[str, httpx2.Response] = {
    "html": httpx2.Response(200, html="<html>canary</html>"),
    "empty": httpx2.Response(200),
    "no content": httpx2.Response(204),
    "truncated": httpx2.Response(200, text='{"access_token": "canary", "token_type": "Bea'),
    "duplicate key": httpx2.Response(
        200,
        text='{"access_token": "a", "access_token": "b", "token_type": "Bearer", "expires_in": 9}',
    ),
    "array": httpx2.Response(200, json=[GRANTED]),
    "text": httpx2.Response(200, json="canary"),
    "null": httpx2.Response(200, text="null"),
    "nan": httpx2.Response(
        200, text='{"access_token": "a", "token_type": "Bearer", "expires_in": NaN}'
    ),
    "infinite": httpx2.Response(
        200, text='{"access_token": "a", "token_type": "Bearer", "expires_in": 1e999}'
    ),
    "long number": httpx2.Response(
        200, text='{"access_token": "a", "token_type": "Bearer", "expires_in": ' + "9" * 6000 + "}"
    ),
    "not utf-8": httpx2.Response(200, content=b'{"access_token": "\xff"}'),
    "utf-16": httpx2.Response(200, content=json.dumps(GRANTED).encode("utf-16")),
    "deep": httpx2.Response(200, text="[" * 60_000),
    "compressed": httpx2.Response(200, content=gzip.compress(json.dumps(GRANTED).encode())),
    "406 html": httpx2.Response(406, html="<html>canary</html>"),
    "redirect": httpx2.Response(302, headers={"Location": "https://evil.test/canary"}),
    "moved": httpx2.Response(308, headers={"Location": "https://evil.test/"}, json=GRANTED),
    "not modified": httpx2.Response(304),
    "no token": granted(access_token=...),
    "empty token": granted(access_token=""),
    "token null": granted(access_token=None),
    "token number": granted(access_token=7),
    "token with space": granted(access_token="a b"),
    "token with newline": granted(access_token="a\n"),
    "token with nul": granted(access_token="a\0"),
    "token not ascii": granted(access_token="é"),
    "no type": granted(token_type=...),
    "other type": granted(token_type="DPoP"),
    "type null": granted(token_type=None),
    "type list": granted(token_type=["Bearer"]),
    "scope number": granted(scope=7),
    "scope of numbers": granted(scope=[1]),
    "no expiry": granted(expires_in=...),
    "zero": granted(expires_in=0),
    "zero text": granted(expires_in="0"),
    "negative": granted(expires_in=-1),
    "true": granted(expires_in=True),
    "words": granted(expires_in="an hour"),
    "exponent text": granted(expires_in="1e3"),
    "other digits": granted(expires_in="٣٦٠٠"),
    "signed text": granted(expires_in="+3600"),
    "spaced text": granted(expires_in=" 3600"),
    "nan text": granted(expires_in="nan"),
    "list": granted(expires_in=[3600]),
    "next to nothing": granted(expires_in=1e-9),
    "beyond time": granted(expires_in=10**300),
    "too large": httpx2.Response(200, text=" " * (BODY_LIMIT + 1)),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_answers_that_are_nonsense(name: str) -> None:
    """None of these is a token; each is the upstream's nonsense, counted as such, and no word of
    the answer is in the error."""

    async def main() -> None:
        client = Client(AppTransport(handler=lambda _: NONSENSE[name]))
        with pytest.raises(UpstreamNonsense) as caught:
            await client.oauth.token()
        _tells_nothing(caught.value)
        labels = {"upstream": "checkout", "operation": "token", "outcome": "nonsense"}
        assert client.sample("upstream_requests_total", **labels) == 1
        labels = {"credential": "checkout", "outcome": "nonsense"}
        assert client.sample("access_token_refreshes_total", **labels) == 1

    asyncio.run(main())


def _tells_nothing(error: BrokerError) -> None:
    chain: BaseException | None = error
    while chain is not None:
        told = f"{chain!r} {chain} {vars(chain)}"
        assert "canary" not in told
        assert "s3cret" not in told
        chain = chain.__cause__ or chain.__context__


@pytest.mark.parametrize(
    ("status", "body", "cause"),
    [
        (400, {"error": "invalid_client"}, "HTTP 400 invalid_client"),
        (
            401,
            {"error": "invalid_client", "error_description": "canary"},
            "HTTP 401 invalid_client",
        ),
        (400, {"error": "unauthorized_client"}, "HTTP 400 unauthorized_client"),
        (400, {"error": "invalid_scope"}, "HTTP 400 invalid_scope"),
        (400, {"error": "unsupported_grant_type"}, "HTTP 400 unsupported_grant_type"),
        (400, {"error": "invalid_request"}, "HTTP 400 invalid_request"),
        (400, {"error": "invalid_grant"}, "HTTP 400 invalid_grant"),
        (400, {"error": "canary_s3cret"}, "HTTP 400"),
        (400, {"error": ["canary"]}, "HTTP 400"),
        (200, {"error": "invalid_scope", **GRANTED}, "HTTP 200 invalid_scope"),
        (200, {"error": "canary"}, "HTTP 200"),
        (401, None, "HTTP 401"),
        (403, None, "HTTP 403"),
        (404, None, "HTTP 404"),
        (415, {"anything": 1}, "HTTP 415"),
    ],
)
def test_refusals(status: int, body: Any, cause: str) -> None:
    """Every 4xx, and a 200 that says "error", is a permanent refusal; its cause names RFC 6749's
    codes and nothing else of the answer."""
    answer = httpx2.Response(status, json=body) if body else httpx2.Response(status, html="canary")
    with pytest.raises(UpstreamRefused) as caught:
        ask(lambda _: answer)
    assert caught.value.cause == cause
    assert caught.value.slug == "upstream-refused"
    _tells_nothing(caught.value)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 599])
@pytest.mark.parametrize("form", ["none", "seconds", "date", "garbage"])
def test_passing_failures(status: int, form: str) -> None:
    """429, 408 and 5xx pass: unavailable, with the Retry-After that 429 and 503 came with."""
    clock = VirtualClock()
    at = format_datetime(clock.now() + timedelta(seconds=90), usegmt=True)
    field, wait = {
        "none": (None, None),
        "seconds": ("120", 120.0),
        "date": (at, 90.0),
        "garbage": ("canary", None),
    }[form]
    wait = wait if status in (429, 503) else None
    answer = httpx2.Response(status, headers={"Retry-After": field} if field else {}, text="canary")

    async def main() -> None:
        client = Client(AppTransport(handler=lambda _: answer), clock=clock)
        with pytest.raises(UpstreamUnavailable) as caught:
            await client.oauth.token()
        assert caught.value.retry_after == wait
        _tells_nothing(caught.value)
        outcome = "throttled" if status == 429 else "unavailable"
        labels = {"upstream": "checkout", "operation": "token", "outcome": outcome}
        assert client.sample("upstream_requests_total", **labels) == 1

    asyncio.run(main())


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*GRANTED, "error"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(
    status=st.integers(100, 599),
    body=st.binary(max_size=200)
    | JSONISH.map(lambda tree: json.dumps(tree).encode())
    | st.dictionaries(st.sampled_from([*GRANTED, "error"]), JSONISH).map(
        lambda tree: json.dumps({**GRANTED, **tree}).encode()
    ),
)
def test_whatever_is_answered_only_our_errors_come_out(status: int, body: bytes) -> None:
    """Any status with any bytes, JSON or not, gives a usable token or a BrokerError."""
    try:
        token = ask(lambda _: httpx2.Response(status, content=body))
    except UpstreamError:
        return
    assert 200 <= status < 300
    assert token.value.reveal().isprintable()
    assert timedelta(0) < token.life.lifetime <= timedelta(hours=24)


# What shapes the request

BASE: dict[str, Any] = {
    "scope": ["b", "a"],
    "resource": ["https://r.test"],
    "parameters": {"p": "q"},
}
CHANGES: dict[str, dict[str, Any]] = {
    "token_url": {"token_url": URL + "2"},
    "client_id": {"id": "other"},
    "client_secret elsewhere": {"prefix": "OTHER_"},
    "client_secret added": {"secrets": ("s3cret", "other")},
    "client_auth": {"client_auth": "client_secret_basic"},
    "basic_encoding": {"basic_encoding": "none"},
    "assertion_alg": {"assertion_alg": "ES256"},
    "assertion_kid": {"assertion_kid": "k"},
    "assertion_audience": {"assertion_audience": "a"},
    "scope": {"scope": ["a"]},
    "scope joined": {"scope": ["b a"]},
    "audience": {"audience": "x"},
    "audience empty": {"audience": ""},
    "resource": {"resource": ["https://r.test", "https://s.test"]},
    "parameters": {"parameters": {"p": "r"}},
    "parameters name": {"parameters": {"pq": ""}},
    "private_key": {"key": "EC1", "assertion_alg": "ES256"},
    "max_lifetime": {"max_lifetime": "5m"},
    "default_lifetime": {"default_lifetime": "5m"},
    "default_lifetime and not max_lifetime": {"max_lifetime": "24h", "default_lifetime": "24h"},
}
UNSHAPING = {"min_remaining", "timeout", "expose_to", "upstream_limit"}


def _made(**changed: Any) -> Client:
    _, handler = answering(granted())
    return Client(AppTransport(handler=handler), **{**BASE, **changed})


def _key(**changed: Any) -> str:
    return _made(**changed).oauth.request_key()


def test_every_setting_that_shapes_the_request_changes_its_key() -> None:
    """No two of these have one key, every setting of a credential is in the list or named as one
    that shapes no token, and the order of scopes does not matter. How long a token is believed in
    shapes it too: a life that was cut is no cut where an earlier, longer one is taken over."""
    key = ECKey.generate_key("P-256").as_pem(private=True).decode()
    found = {"": _key()}
    for name, change in CHANGES.items():
        found[name] = _key(**({**change, "key": key} if "key" in change else change))
    assert len(set(found.values())) == len(found)
    covered = {name.partition(" ")[0] for name in CHANGES}
    assert covered | UNSHAPING == set(CredentialEntry.model_fields)
    assert _key(scope=["a", "b"]) == _key()
    assert _key(timeout="1s", min_remaining="1m") == _key()


def test_a_secret_replaced_in_place_changes_no_key() -> None:
    """Replicas that read a replaced secret a second apart, or that were started after it and know
    no earlier value, have one key throughout; of a replaced client id each has its own, and one
    that was started later has that of one that saw it change."""
    client = _made()
    before = client.oauth.request_key()
    client.replace(SECRET0="new")
    assert client.oauth.request_key() == before == _key(secrets=("new",))
    client.replace(ID="other")
    assert client.oauth.request_key() == _key(id="other", secrets=("new",))
    assert client.oauth.request_key() != before


def test_a_request_key_is_what_the_digest_makes_of_it() -> None:
    """Another keyed digest, another key; and what is digested has no secret in it."""
    told: list[str] = []

    def digest(text: str) -> str:
        told.append(text)
        return "abc"

    assert _key(digest=digest, secrets=("c4nary",)) == "abc"
    assert "c4nary" not in told[0]
    assert "ack_me" in told[0]


def test_a_request_key_follows_the_digests_own_key() -> None:
    """Keys roll over under a credential that stays: replicas that were started since and those
    that only reloaded name its tokens alike, though no secret of its own has changed."""
    salt = "one"
    client = _made(digest=lambda text: plain_digest(salt + text))
    before = client.oauth.request_key()
    assert client.oauth.request_key() == before
    salt = "two"
    assert client.oauth.request_key() == _key(digest=lambda text: plain_digest("two" + text))
    assert client.oauth.request_key() != before


# Over real sockets

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(talk: Talk) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/token"
    finally:
        server.close()


def over_a_socket(talk: Talk, **entry: Any) -> AccessToken:
    async def main() -> AccessToken:
        transport = AiohttpTransport()
        try:
            async with listening(talk) as url:
                return await Client(transport, **{"token_url": url, **entry}).oauth.token()
        finally:
            await transport.close()

    return asyncio.run(main())


def test_a_body_of_fifty_megabytes_is_not_read() -> None:
    """An answer that says it is 50 MB long is refused by its length, and of one that does not say
    little more than the limit is taken off the wire."""
    written = 0

    async def declared(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 52428800\r\n\r\n" + b" " * 4096)
        await writer.drain()

    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
            await writer.drain()
            written += 0x1000

    for talk in (declared, endless):
        with pytest.raises(UpstreamNonsense):
            over_a_socket(talk)
    assert written < 32 << 20


def test_a_server_that_says_nothing_is_a_timeout() -> None:
    """The credential's own timeout bounds one token request."""

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    with pytest.raises(UpstreamTimeout):
        over_a_socket(silent, timeout="200ms")


def test_a_server_that_breaks_off_is_nonsense() -> None:
    """Half a body, or no HTTP at all, is nonsense; a port where nobody listens is unavailable."""

    async def half(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"access_token"')
        await writer.drain()

    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
        await writer.drain()

    for talk in (half, babble):
        with pytest.raises(UpstreamNonsense):
            over_a_socket(talk)
    with pytest.raises(UpstreamUnavailable):
        over_a_socket(half, token_url="http://127.0.0.1:9/token")


# A real authorisation server

HERE = Path(__file__).parent / "oidc"
RESOURCE = "https://broker.example"
ISSUER_SECRET = "a+b/c=d%e&f:g h?;#\"'<>\\~*-._"
"""oidc-provider takes printable ASCII only."""


class Issuer:
    def __init__(self, url: str, key: ECKey) -> None:
        self.url = url
        self.key = key


def _unusable(why: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{why}, and CI must run this")
    pytest.skip(f"NOT TESTED against a real authorisation server: {why}")


def _installed() -> Path:
    """The server's directory under .cache, filled once for each version of package.json."""
    package = (HERE / "package.json").read_bytes()
    digest = hashlib.sha256(package).hexdigest()[:16]
    room = HERE.parent.parent / ".cache" / "oidc" / digest
    if not (room / "installed").exists():
        room.mkdir(parents=True, exist_ok=True)
        (room / "package.json").write_bytes(package)
        options = ["--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"]
        done = subprocess.run(
            [str(shutil.which("npm")), "install", *options],
            cwd=room, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        if done.returncode:
            _unusable(f"npm install failed: {done.stderr[-300:]}")
        (room / "installed").touch()
    shutil.copy(HERE / "server.mjs", room)
    return room


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    """oidc-provider on loopback, as long as the tests of this file last."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        _unusable("node and npm are not installed")
    key = ECKey.generate_key("P-256", {"kid": "our-key", "alg": "ES256", "use": "sig"})
    given = {"secret": ISSUER_SECRET, "jwk": key.as_dict(private=False)}
    server = subprocess.Popen(
        [str(node), "server.mjs"], cwd=_installed(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        server.stdin.write(json.dumps(given) + "\n")
        server.stdin.flush()
        line = server.stdout.readline()
        assert line, "the server did not start"
        yield Issuer(json.loads(line)["issuer"], key)
    finally:
        server.stdin.close()
        server.wait(timeout=10)
        server.stdout.close()


def _as_client(issuer: Issuer, auth: str) -> dict[str, Any]:
    if auth == "private_key_jwt":
        key = issuer.key.as_pem(private=True).decode()
        return {"id": "signer", "key": key, "assertion_alg": "ES256", "assertion_kid": "our-key"}
    name = {"client_secret_post": "poster", "client_secret_basic": "basic:one"}[auth]
    return {"id": name, "secrets": (ISSUER_SECRET,), "client_auth": auth}


AUTHS = ["client_secret_post", "client_secret_basic", "private_key_jwt"]


async def _from(issuer: Issuer, transport: Transport, **made: Any) -> AccessToken:
    entry = {"token_url": f"{issuer.url}/token", "resource": [RESOURCE], "scope": ["read"], **made}
    return await Client(transport, clock=SystemClock(), **entry).oauth.token()


@pytest.mark.parametrize("auth", AUTHS)
def test_a_real_server_knows_each_way_to_be_a_client(issuer: Issuer, auth: str) -> None:
    """oidc-provider grants a token to each client authentication, with a secret of nasty signs; the
    token is a JWT for the resource that verifies against the server's own keys."""

    async def main() -> None:
        transport = AiohttpTransport()
        try:
            made = _as_client(issuer, auth)
            token = await _from(issuer, transport, **made)
            keys = await transport.send("GET", f"{issuer.url}/jwks", headers={}, timeout=5)
        finally:
            await transport.close()
        assert (token.token_type, token.scope) == ("Bearer", "read")
        assert token.life.lifetime == timedelta(seconds=600)
        found = jwt.decode(
            token.value.reveal(), KeySet.import_key_set(json.loads(keys.body)), algorithms=["RS256"]
        )
        expected = {"iss": issuer.url, "aud": RESOURCE, "sub": made["id"], "scope": "read"}
        assert {name: found.claims[name] for name in expected} == expected
        assert found.header["typ"] == "at+jwt"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("made", "cause"),
    [
        ({"secrets": ("wrong",)}, "invalid_client"),
        ({"id": "nobody"}, "invalid_client"),
        ({"basic_encoding": "none"}, "invalid_request"),
        ({"scope": ["read", "admin"]}, "invalid_scope"),
    ],
)
def test_a_real_servers_refusals(issuer: Issuer, made: dict[str, Any], cause: str) -> None:
    """A wrong secret, id, encoding or scope is a refusal whose cause is the server's error code."""

    async def main() -> None:
        transport = AiohttpTransport()
        try:
            with pytest.raises(UpstreamRefused) as caught:
                await _from(issuer, transport, **{**_as_client(issuer, AUTHS[1]), **made})
        finally:
            await transport.close()
        assert caught.value.cause.split()[-1] == cause

    asyncio.run(main())


def test_a_rollover_at_a_real_server(issuer: Issuer) -> None:
    """A newest secret that the server does not know yet costs one request more, and no failure."""

    async def main() -> None:
        transport = AiohttpTransport()
        try:
            made = {**_as_client(issuer, AUTHS[0]), "secrets": ("not yet", ISSUER_SECRET)}
            assert (await _from(issuer, transport, **made)).scope == "read"
        finally:
            await transport.close()

    asyncio.run(main())


def test_a_real_servers_tokens_open_our_door(issuer: Issuer) -> None:
    """The other way round: a JWT of that server authenticates its client as a caller, by discovery
    and the server's keys, and an opaque token by introspection; neither with a letter changed."""
    env = {"ID": "poster", "SECRET": ISSUER_SECRET}
    refs = {name: SecretRef(env=name) for name in env}
    callers: dict[str, CallerEntry] = {
        "jwt": JwtCaller(type="jwt", issuer=issuer.url, audience=[RESOURCE]),
        "opaque": IntrospectionCaller(
            type="introspection",
            url=f"{issuer.url}/token/introspection",
            client_id=refs["ID"],
            client_secret=refs["SECRET"],
            subject_claim="client_id",
        ),
    }

    async def main() -> None:
        transport = AiohttpTransport()
        tasks = Tasks()
        door = Door(
            callers,
            anonymous=False,
            keyring=Keyring([("", ref) for ref in refs.values()], Path(), env),
            transport=transport,
            clock=SystemClock(),
            metrics=Metrics(),
            budget=5.0,
            spawn=tasks.spawn,
        )
        try:
            for name, resource in (("jwt", [RESOURCE]), ("opaque", [])):
                made = _as_client(issuer, AUTHS[2])
                token = (await _from(issuer, transport, resource=resource, **made)).value.reveal()
                caller = await door.authenticate(Presented(f"Bearer {token}", ""))
                assert (caller.name, caller.subject) == (name, "signer")
                assert caller.claims["scope"] == "read"
                changed = token[:-9] + ("A" if token[-9] != "A" else "B") + token[-8:]
                with pytest.raises(Unauthenticated):
                    await door.authenticate(Presented(f"Bearer {changed}", ""))
        finally:
            await tasks.close()
            await transport.close()

    asyncio.run(main())
