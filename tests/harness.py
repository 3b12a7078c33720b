"""The real app, put together as in production, over an upstream that is played here.

What is faked is the *other* server and the clock; never our own code.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
from joserfc import jwt
from joserfc.jwk import OctKey

from broker.app import App
from broker.audit import AuditLog
from broker.config import parse
from broker.state import Store
from tests.support import AppTransport, VirtualClock

ISSUER_KEY = "a shared secret of thirty-two bytes or more"
NMI_KEY = "nmi-key+/=%ü"
ORIGIN = "https://app.shop.example"

CONFIG = """
keys: [{env: SEAL}]
callers:
  shop-users:
    {type: jwt, issuer: shop-backend, audience: token-broker, shared_secret: {env: ISSUER_KEY}}
  others:
    {type: jwt, issuer: other-backend, audience: token-broker, shared_secret: {env: ISSUER_KEY}}
profiles:
  transactions:
    preset: nmi
    api_key: {env: NMI_KEY}
    gateway:
      merchant_id: ${claims.merchant_id}
      environment: sandbox
    allow:
      callers: [shop-users]
      origins: [https://app.shop.example]
      require: {role: [owner, accountant]}
    rotation: {max_chain: 8h, grace: 60s}
    min_remaining: 5m
"""

ENV = {"SEAL": "s" * 32, "ISSUER_KEY": ISSUER_KEY, "NMI_KEY": NMI_KEY}


class FakeNmi:
    """Plays NMI: asserts what it is sent, counts, and answers as it is told to."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[httpx2.Headers] = []
        self.answer: Callable[[httpx2.Request], httpx2.Response] | None = None

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        assert request.method == "POST"
        assert str(request.url) == "https://embed-reporting.iriscrm.com/api/v1/sessions"
        self.bodies.append(json.loads(request.content))
        self.headers.append(request.headers)
        return self.answer(request) if self.answer else self.session(900)

    def session(self, seconds: float, **more: Any) -> httpx2.Response:
        expires = datetime.fromtimestamp(self.clock.now().timestamp() + seconds).astimezone()
        token = f"st_token_{len(self.bodies):04d}"
        return httpx2.Response(
            201, json={"session_token": token, "expires_at": expires.isoformat(), **more}
        )


class Broker:
    """A client of one app, with the clock, the upstream and the audit lines at hand."""

    def __init__(self, app: App, clock: VirtualClock, nmi: FakeNmi, lines: io.BytesIO) -> None:
        self.app = app
        self.clock = clock
        self.nmi = nmi
        self._lines = lines
        self.client = _client(app.public, "https://broker.example")
        self.ops = _client(app.ops, "http://ops.example")

    def jwt(self, subject: str = "ada", issuer: str = "shop-backend", **claims: Any) -> str:
        now = int(self.clock.now().timestamp())
        told = {
            "iss": issuer,
            "aud": "token-broker",
            "sub": subject,
            "exp": now + 3600,
            "merchant_id": "100200300",
            "role": "owner",
            **claims,
        }
        kept = {name: value for name, value in told.items() if value is not None}
        return jwt.encode({"alg": "HS256"}, kept, OctKey.import_key(ISSUER_KEY))

    async def post(
        self, path: str, body: Any = None, *, token: str | None = None, **headers: str
    ) -> httpx2.Response:
        """token: "" sends none; by default ada's. Header names are given with underscores."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token != "":
            sent.setdefault("authorization", f"Bearer {token or self.jwt()}")
        return await self.client.post(path, json={} if body is None else body, headers=sent)

    async def mint(self, body: Any = None, profile: str = "transactions", **options: Any) -> Any:
        return await self.post(f"/v1/profiles/{profile}/sessions", body, **options)

    async def rotate(self, handle: str, **options: Any) -> httpx2.Response:
        return await self.post("/v1/sessions/rotate", {"handle": handle}, **options)

    async def end(self, handle: str, **options: Any) -> httpx2.Response:
        return await self.post("/v1/sessions/end", {"handle": handle}, **options)

    @property
    def audit(self) -> list[dict[str, Any]]:
        self.app._audit.flush()
        return [json.loads(line) for line in self._lines.getvalue().splitlines()]

    def sample(self, name: str, **labels: str) -> float | None:
        return self.app.metrics.registry.get_sample_value(name, labels)


def _client(app: Any, base: str) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=True, client=("192.0.2.1", 1))
    return httpx2.AsyncClient(transport=transport, base_url=base)


@contextlib.asynccontextmanager
async def broker(
    config: str = CONFIG,
    upstream: Callable[[httpx2.Request], httpx2.Response] | None = None,
    *,
    base: Path = Path(),
    env: dict[str, str] | None = None,
    clock: VirtualClock | None = None,
    store: Store | None = None,
) -> AsyncIterator[Broker]:
    """A broker on `config`; `upstream` plays everything it calls, by default NMI. clock, store:
    those of replicas."""
    clock = clock or VirtualClock()
    nmi = FakeNmi(clock)
    lines = io.BytesIO()
    app = App(
        parse(config.encode(), base),
        base,
        transport=AppTransport(handler=upstream or nmi),
        clock=clock,
        store=store,
        audit=AuditLog(lines),
        env={**ENV, **(env or {})},
    )
    app.starting = False
    told = Broker(app, clock, nmi, lines)
    try:
        yield told
    finally:
        await told.client.aclose()
        await told.ops.aclose()
        await app.close()


def problem(answer: httpx2.Response) -> str:
    """The slug of a problem answer, after checking that it is a proper one."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert body["status"] == answer.status_code
    assert body["instance"].startswith("urn:uuid:")
    kind: str = body["type"]
    assert kind.startswith("urn:token-broker:problem:")
    return kind.rsplit(":", 1)[1]
