"""The configuration file, key by key: names, types, bounds, defaults, in the file's own order.

Only shapes: what must hold between entries is in `config`. The descriptions feed `token-broker
schema` and are checked against the README.
"""

from __future__ import annotations

import ipaddress
from datetime import timedelta
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

import limits
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from broker.declared import ProfileParameter
from broker.kinds import Duration, OneOrMany, SecretRef, Strict
from broker.urls import Url, is_url


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError:
        raise ValueError("a network is wanted: 10.0.0.0/8") from None


def _origin(value: str) -> str:
    parts = urlsplit(value)
    exact = f"{parts.scheme}://{parts.netloc}"
    if value != exact.lower() or parts.scheme not in ("http", "https") or "@" in parts.netloc:
        raise ValueError("an exact origin is wanted: https://shop.example (no *, no null, no path)")
    default = {"https": 443, "http": 80}[parts.scheme]
    if not parts.hostname or "*" in value or parts.port == default:
        raise ValueError("an exact origin is wanted: https://shop.example (no *, no null, no path)")
    return value


def _rate(value: object) -> limits.RateLimitItem:
    if isinstance(value, limits.RateLimitItem):
        return value
    try:
        found = limits.parse_many(value) if isinstance(value, str) else []
    except ValueError:
        found = []
    if len(found) != 1 or found[0].amount < 1:
        raise ValueError("one rate is wanted: 30/minute, 5/second, 1000/hour")
    return found[0]


Positive = Annotated[Duration, Field(gt=timedelta(0))]
Leeway = Annotated[Duration, Field(le=timedelta(minutes=10))]
Secrets = Annotated[list[SecretRef], OneOrMany(), Field(min_length=1)]
Network = Annotated[str, AfterValidator(_network)]
Origin = Annotated[str, AfterValidator(_origin)]
Rate = Annotated[
    limits.RateLimitItem,
    BeforeValidator(_rate),
    WithJsonSchema({"type": "string", "examples": ["30/minute"]}),
]
Words = Annotated[list[str], OneOrMany(), Field(min_length=1)]


class Listener(Strict):
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=0, ge=0, le=65535, description="port; 0 takes a free one")


class PublicListener(Listener):
    port: int = Field(default=8080, ge=0, le=65535, description="port; 0 takes a free one")


class OpsListener(Listener):
    port: int = Field(default=9090, ge=0, le=65535, description="port; 0 takes a free one")


class Server(Strict):
    public: PublicListener = Field(default=PublicListener(), description="serves /v1")
    ops: OpsListener = Field(default=OpsListener(), description="serves metrics and probes")
    trusted_proxies: list[Network] = Field(
        default=[], description="networks whose X-Forwarded-For is believed"
    )
    request_budget: Positive = Field(
        default=timedelta(seconds=10), description="time one request may take, upstream included"
    )
    max_in_flight: int = Field(
        default=512, ge=1, description="requests worked on at once; more are shed with 503"
    )
    max_connections: int = Field(
        default=4096, ge=16, description="connections of the public listener; more are refused"
    )
    max_body_bytes: int = Field(default=16384, ge=1024, description="largest request body")
    warm_up: Duration = Field(
        default=timedelta(seconds=5),
        description="before ready, fetch access tokens and key sets for this long at the most",
    )
    reload_interval: Duration = Field(
        default=timedelta(seconds=1),
        description="look at the configuration's and the secrets' files this often; 0s never",
    )
    drain_delay: Duration = Field(
        default=timedelta(0), description="after SIGTERM, go on serving this long while not ready"
    )
    shutdown_grace: Positive = Field(
        default=timedelta(seconds=20), description="then let running requests finish this long"
    )
    keep_alive: Positive = Field(
        default=timedelta(seconds=75),
        description="close idle connections after this; longer than the balancer's own limit",
    )


class Outbound(Strict):
    ca_file: str | None = Field(default=None, description="PEM file of the CAs to trust")
    insecure_http_hosts: list[str] = Field(
        default=[], description="hosts that may be called over plain http (loopback always may)"
    )
    max_connections: int = Field(default=512, ge=1, description="connections to one upstream host")
    idle_timeout: Positive = Field(
        default=timedelta(seconds=55), description="keep unused connections this long"
    )
    max_in_flight: int = Field(
        default=128, ge=1, description="calls of one upstream account at once; more are shed"
    )


class StateEntry(Strict):
    """A Redis or Valkey that replicas share."""

    url: SecretRef = Field(
        description="redis://, rediss://, valkey://, valkeys://, unix://; +sentinel, +cluster"
    )
    timeout: Annotated[Duration, Field(ge=timedelta(milliseconds=10), lt=timedelta(seconds=1))] = (
        Field(default=timedelta(milliseconds=250), description="of one operation; under a second")
    )
    prefix: str = Field(
        default="token-broker",
        pattern=r"^[A-Za-z0-9_.:-]{1,64}$",
        description="of every key; one for each deployment that shares a store",
    )
    ca_file: str | None = Field(default=None, description="PEM file of the CAs to trust for TLS")


class JwtCaller(Strict):
    """Bearer JWTs (RFC 7519) of one issuer."""

    type: Literal["jwt"] = Field(description="`jwt`")
    issuer: str = Field(min_length=1, description="exact `iss`")
    audience: Words = Field(description="`aud` must hold one of these")
    jwks_url: Url | None = Field(default=None, description="key set; else the issuer is asked")
    jwks: SecretRef | None = Field(default=None, description="key set from a file")
    shared_secret: SecretRef | None = Field(default=None, description="HS256, 32 bytes or more")
    algorithms: list[Literal["RS256", "PS256", "ES256", "EdDSA", "HS256"]] = Field(
        default=["RS256", "ES256", "EdDSA"], min_length=1, description="accepted `alg`"
    )
    leeway: Leeway = Field(default=timedelta(seconds=30), description="for exp, nbf and iat")
    subject_claim: str = Field(default="sub", min_length=1, description="claim that says who")
    jwks_max_age: Duration = Field(default=timedelta(minutes=15), description="reload keys after")
    jwks_cooldown: Duration = Field(
        default=timedelta(seconds=30), description="least time between two loads of the keys"
    )
    cache: Duration = Field(
        default=timedelta(minutes=5), description="trust a verified JWT this long"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [n for n in ("jwks_url", "jwks", "shared_secret") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other")
        if not given and not is_url(self.issuer):
            raise ValueError("the issuer is no URL to discover keys from; give jwks_url or jwks")
        if self.shared_secret is not None and "algorithms" in self.model_fields_set:
            raise ValueError("with shared_secret the algorithm is HS256; leave algorithms out")
        if self.shared_secret is None and "HS256" in self.algorithms:
            raise ValueError("HS256 goes with shared_secret only")
        return self


class ForwardAuthCaller(Strict):
    """Asks the application's own "who is this" endpoint with the request's credentials."""

    type: Literal["forward_auth"] = Field(description="`forward_auth`")
    url: Url = Field(description="answers 200 with subject and claims, or 401/403")
    headers: list[Literal["cookie", "authorization"]] = Field(
        default=["cookie"], min_length=1, description="request headers that are passed on"
    )
    cookies: list[str] = Field(
        default=[], description="of the Cookie header pass only these; empty passes all"
    )
    subject: str = Field(default="/subject", pattern="^/", description="pointer to who")
    claims: str = Field(default="/claims", pattern="^/", description="pointer to the claims")
    cache: Duration = Field(default=timedelta(0), description="trust an answer this long")


class IntrospectionCaller(Strict):
    """Bearer tokens checked by their authorisation server (RFC 7662)."""

    type: Literal["introspection"] = Field(description="`introspection`")
    url: Url = Field(description="introspection endpoint")
    client_id: SecretRef = Field(description="our id there")
    client_secret: SecretRef = Field(description="our secret there")
    issuer: str | None = Field(default=None, description="exact `iss`, where the answer has one")
    audience: Words | None = Field(default=None, description="`aud` must hold one of these")
    scope: str | None = Field(default=None, description="a scope the token must have")
    subject_claim: str = Field(default="sub", min_length=1, description="claim that says who")
    cache: Duration = Field(default=timedelta(seconds=30), description="trust an answer this long")


CallerEntry = JwtCaller | ForwardAuthCaller | IntrospectionCaller
CALLERS: dict[str, type[JwtCaller | ForwardAuthCaller | IntrospectionCaller]] = {
    "jwt": JwtCaller,
    "forward_auth": ForwardAuthCaller,
    "introspection": IntrospectionCaller,
}


class CredentialEntry(Strict):
    """An OAuth 2 client whose access token is kept warm (RFC 6749 §4.4)."""

    token_url: Url = Field(description="token endpoint")
    client_id: SecretRef = Field(description="client identifier")
    client_secret: Secrets | None = Field(
        default=None, description="a reference, or a list of them, newest first"
    )
    private_key: Secrets | None = Field(
        default=None,
        description="PEM or JWK, for private_key_jwt (RFC 7523); or a list, newest first",
    )
    client_auth: Literal["client_secret_post", "client_secret_basic", "private_key_jwt"] = Field(
        default="client_secret_post", description="how the client proves itself"
    )
    basic_encoding: Literal["form", "none"] = Field(
        default="form",
        description="client_secret_basic: encode id and secret (RFC 6749 §2.3.1), or send as is",
    )
    assertion_alg: Literal["RS256", "PS256", "ES256", "EdDSA"] = Field(
        default="RS256", description="private_key_jwt: signature algorithm"
    )
    assertion_kid: str | None = Field(default=None, description="private_key_jwt: `kid`")
    assertion_audience: str | None = Field(
        default=None, description="private_key_jwt: `aud`; the token URL when absent"
    )
    scope: list[str] = Field(default=[], description="scopes to ask for; none asks for the default")
    audience: str | None = Field(default=None, description="`audience` parameter")
    resource: list[str] = Field(default=[], description="`resource` parameters (RFC 8707)")
    parameters: dict[str, str] = Field(default={}, description="further form parameters")
    default_lifetime: Positive | None = Field(
        default=None, description="life of a token without expires_in; else it is refused"
    )
    max_lifetime: Positive = Field(
        default=timedelta(hours=24), description="a longer expires_in is cut to this"
    )
    min_remaining: Duration | None = Field(
        default=None, description="never hand out with less left; a tenth of life, 30s at most"
    )
    timeout: Positive = Field(default=timedelta(seconds=8), description="of getting one token")
    upstream_limit: Rate | None = Field(
        default=None, description="token requests of all replicas together"
    )
    expose_to: list[str] = Field(default=[], description="callers of GET /v1/access-tokens/…")

    @model_validator(mode="after")
    def _proof(self) -> Self:
        wanted = "private_key" if self.client_auth == "private_key_jwt" else "client_secret"
        other = "client_secret" if wanted == "private_key" else "private_key"
        if getattr(self, wanted) is None:
            raise ValueError(f"{self.client_auth} needs {wanted}")
        if getattr(self, other) is not None:
            raise ValueError(f"{self.client_auth} does not use {other}; remove it")
        own = {"audience", "resource", "scope"}
        reserved = own | {"grant_type", "client_id", "client_secret"}
        reserved |= {"client_assertion", "client_assertion_type"}
        if clash := reserved & self.parameters.keys():
            raise ValueError(f"parameters may not hold {', '.join(sorted(clash))}")
        return self


class Allow(Strict):
    """Who may mint, and from where. What is not listed may not."""

    callers: list[str] = Field(min_length=1, description="entries of callers")
    trusted: list[str] = Field(
        default=[],
        description="of callers, our own servers: may send trusted parameters and read results",
    )
    origins: list[Origin] = Field(
        default=[], description="exact browser origins; none refuses every browser"
    )
    require: dict[str, Annotated[list[str], OneOrMany()]] = Field(
        default={},
        description="claims that must be there, each with its accepted values; not of the trusted",
    )


class Rotation(Strict):
    """A session may be replaced before it expires, by its handle."""

    max_chain: Positive = Field(
        default=timedelta(hours=8), description="longest life of a session and its successors"
    )
    grace: Duration = Field(
        default=timedelta(seconds=60),
        description="how long a rotated or expired handle still gets its successor",
    )


class ProfileEntry(Strict):
    """The keys every profile has; the others are settings that its preset declares."""

    description: str = Field(default="", description="for people")
    preset: str = Field(min_length=1, description="the upstream: a name, or ./FILE.yaml")
    credential: str | None = Field(default=None, description="entry of credentials to call with")
    base_url: Url | None = Field(default=None, description="of the upstream; the preset has one")
    allow: Allow
    parameters: dict[str, ProfileParameter] = Field(
        default={}, description="what a request may carry"
    )
    merchant_from_parameters: bool = Field(
        default=False, description="let a request's parameters say who the merchant is"
    )
    rotation: Rotation | None = Field(default=None, description="absent: sessions do not rotate")
    min_remaining: Duration | None = Field(
        default=None, description="never hand out with less left; a tenth of life, 30s at most"
    )
    rate_limit: Rate | None = Field(default=None, description="mints and rotations of one caller")
    action_limit: Rate | None = Field(
        default=None, description="actions of one caller about a chain; 120/minute when absent"
    )
    upstream_limit: Rate | None = Field(
        default=None, description="calls to this upstream account, of all replicas together"
    )


class ConfigFile(Strict):
    """The top level, without the three sections of named entries."""

    server: Server = Server()
    outbound: Outbound = Outbound()
    state: StateEntry | None = Field(
        default=None, description="a store that replicas share; absent: this process remembers"
    )
    keys: Annotated[list[SecretRef], OneOrMany()] = Field(
        default=[], description="seal handles and stored state; newest first, older ones still open"
    )
    insecure_anonymous: bool = Field(
        default=False, description="everybody who can reach the port is the caller `anonymous`"
    )
