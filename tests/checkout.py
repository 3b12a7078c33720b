"""Checkout.com as the tests of single rooms play it: sessions that end as they are told to."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2

import broker.config
from broker.errors import ConfigError, Fault
from broker.presets import load_preset
from broker.snapshot import Snapshot
from tests import harness
from tests.harness import ORIGIN, Broker

BASE = "https://abcd1234.api.sandbox.checkout.com"
TOKEN_URL = "https://abcd1234.access.sandbox.checkout.com/connect/token"
WEBHOOK_KEY = "a webhook key, of Ünicode"
ENV = {"CKO_ID": "ack_id", "CKO_SECRET": "cko-secret", "WEBHOOK": WEBHOOK_KEY}
PAN = "4242424242424242"
OTHER_PAN = "5555555555554444"
SID = "sid_" + "x" * 26
"""Of a session that nobody minted here."""
SECRET_MEMBERS = {"cryptogram": "MTIzNDU2", "eci": "05", "xid": "XSUErNftqkiTdlkpSk8p32GWOFA="}
CARD = {"id": "src_1", "number": PAN, "last4": "4242", "bin": "424242", "instrument_id": "src_1"}
BROWSER = {
    "channel": "browser",
    "java_enabled": False,
    "javascript_enabled": True,
    "language": "en-GB",
    "color_depth": "24",
    "screen_height": "1080",
    "screen_width": "1920",
    "timezone": "-60",
}
"""What a page says of itself."""
APP = {
    "channel": "app",
    "sdk_app_id": "dbd64fcb-c19a-4728-8849-e3d50bfdde39",
    "sdk_max_timeout": 5,
    "sdk_ephem_pub_key": {"kty": "EC", "crv": "P-256", "x": "x", "y": "y"},
    "sdk_reference_number": "3DS_LOA_SDK_PPFU_020100_00007",
    "sdk_encrypted_data": "jwe",
    "sdk_transaction_id": "b2385523-a66c-4907-ac3c-91848e8c0067",
    "sdk_interface_type": "both",
    "sdk_ui_elements": ["text"],
}
MERCHANT = {"channel": "merchant_initiated", "request_type": "recurring_transaction"}


def tree(preset: str = "checkout/3ds", **changes: Any) -> dict[str, Any]:
    """A configuration with one profile `p`; what stands at `a__b` of it replaced, None taken out."""

    def caller(issuer: str) -> dict[str, Any]:
        return {
            "type": "jwt", "issuer": issuer, "audience": "token-broker",
            "shared_secret": {"env": "ISSUER_KEY"},
        }  # fmt: skip

    profile: dict[str, Any] = {
        "preset": preset,
        "credential": "checkout",
        "base_url": BASE,
        "source": "${parameters.source}",
        "channel_data": "${parameters.channel_data}",
        "parameters": {"source": {"like": "source"}, "channel_data": {"like": "channel_data"}},
        "amount": 6540,
        "currency": "GBP",
        "completion": {"type": "non_hosted"},
        "webhook_key": {"env": "WEBHOOK"},
        "allow": {
            "callers": ["pages", "backend"],
            "trusted": ["backend"],
            "origins": [ORIGIN],
            "require": {"role": ["owner"]},
        },
    }
    for path, value in changes.items():
        *steps, last = path.split("__")
        at = profile
        for step in steps:
            at = at.setdefault(step, {})
        at[last] = value
        if value is None:
            del at[last]
    return {
        "keys": [{"env": "SEAL"}],
        "callers": {
            "pages": caller("shop-backend"),
            "backend": caller("other-backend"),
            "strangers": caller("third-backend"),
        },
        "credentials": {
            "checkout": {
                "token_url": TOKEN_URL,
                "client_id": {"env": "CKO_ID"},
                "client_secret": {"env": "CKO_SECRET"},
            }
        },
        "profiles": {"p": profile},
    }


def config(preset: str = "checkout/3ds", **changes: Any) -> str:
    return json.dumps(tree(preset, **changes))


class FakeCheckout:
    """Plays the token endpoint and the sessions: counts, and answers as it is told to."""

    def __init__(self) -> None:
        self.requests: list[httpx2.Request] = []
        """Without those for access tokens."""
        self.tokens = 0
        self.sessions: dict[str, dict[str, Any]] = {}
        self.answer: Callable[[httpx2.Request], httpx2.Response | None] | None = None

    @property
    def calls(self) -> list[str]:
        return [f"{one.method} {one.url.path}" for one in self.requests]

    @property
    def body(self) -> Any:
        """What the last request carried."""
        return json.loads(self.requests[-1].content)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if str(request.url) == TOKEN_URL:
            self.tokens += 1
            token = {"access_token": f"at-{self.tokens}", "token_type": "Bearer"}
            return httpx2.Response(200, json={**token, "expires_in": 3600})
        self.requests.append(request)
        told = self.answer(request) if self.answer else None
        return told if told is not None else self._usual(request)

    def _usual(self, request: httpx2.Request) -> httpx2.Response:
        _, *steps = request.url.path.split("/")
        if steps == ["sessions"]:
            name = f"sid_{len(self.sessions):026d}"
            session = self.put(name, "pending", ["collect_channel_data"])
            return httpx2.Response(202, json={**session, "session_secret": f"sek_{name[4:]}"})
        session = self.sessions.get(steps[1], {})
        if not session:
            return refusal(404)
        return (
            httpx2.Response(204) if steps[-1] == "complete" else httpx2.Response(200, json=session)
        )

    def put(self, name: str, status: str, next_actions: list[str] | None = None) -> dict[str, Any]:
        """A session in this state, with everything that is not a page's."""
        self.sessions[name] = {
            "id": name, "status": status, "next_actions": next_actions or [], "card": CARD,
            "approved": status == "approved", "response_code": "Y", **SECRET_MEMBERS,
            "_links": {"redirect": {"href": "https://pay.example/r"}}, "amount": 6540,
        }  # fmt: skip
        return self.sessions[name]


def refusal(status: int, *codes: str, **more: Any) -> httpx2.Response:
    told = {"request_id": "req-0001", "error_type": "request_invalid", "error_codes": list(codes)}
    return httpx2.Response(status, json={**told, **more})


def result(session: str) -> dict[str, Any]:
    """What a trusted caller gets of `FakeCheckout.put(session, "approved")`."""
    return {
        "id": session, "status": "approved", "next_actions": [], "amount": 6540, "approved": True,
        "_links": {"redirect_url": {"href": "https://pay.example/r"}},
        "card": {"instrument_id": "src_1"}, "response_code": "Y", **SECRET_MEMBERS,
    }  # fmt: skip


def progress(session: str, status: str, *next_actions: str) -> dict[str, Any]:
    """What a page gets."""
    return {
        "id": session, "status": status, "next_actions": list(next_actions),
        "_links": {"redirect_url": {"href": "https://pay.example/r"}},
    }  # fmt: skip


def sign(raw: bytes, key: str = WEBHOOK_KEY) -> str:
    return hmac.new(key.encode(), raw, hashlib.sha256).hexdigest()


class Shop:
    """A broker over a `FakeCheckout`, and what its pages and its backend do."""

    def __init__(self, told: Broker, upstream: FakeCheckout) -> None:
        self.told = told
        self.upstream = upstream

    @property
    def backend(self) -> str:
        return self.token("other-backend", subject="shop", role=None)

    def token(self, issuer: str = "shop-backend", **claims: Any) -> str:
        """A JWT that outlives every test."""
        end = int(self.told.clock.now().timestamp()) + 10**6
        return self.told.jwt(claims.pop("subject", "ada"), issuer, **{"exp": end, **claims})

    async def mint(
        self, source: Any = None, *, profile: str = "p", **options: Any
    ) -> httpx2.Response:
        parameters = {"source": source or {"type": "token", "token": "tok_1"}}
        parameters |= options.pop("parameters", {})
        options.setdefault("token", self.token())
        found: httpx2.Response = await self.told.mint(
            {"parameters": parameters}, profile, **options
        )
        return found

    async def minted(self, **options: Any) -> tuple[str, str]:
        """The handle and the upstream's name of a new session; no call of it is counted."""
        answer = await self.mint(**options)
        assert answer.status_code == 202, answer.text
        self.upstream.requests.clear()
        return answer.json()["handle"], answer.json()["output"]["id"]

    async def act(
        self, action: str, handle: str, data: Any = None, *, token: str | None = None, **more: Any
    ) -> httpx2.Response:
        headers = more.pop("headers", {})
        body = {"handle": handle, **({"data": data} if data is not None else {}), **more}
        return await self.told.post(
            f"/v1/sessions/actions/{action}", body, token=token or self.token(), **headers
        )

    async def callback(self, body: Any, *, profile: str = "p", **headers: str) -> httpx2.Response:
        """What the upstream posts. body: bytes go as they are. Header names with underscores."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.told.client.post(f"/v1/callbacks/{profile}", content=raw, headers=sent)

    async def event(self, session: str, event: str = "evt_1", **more: Any) -> httpx2.Response:
        """A webhook with a good signature."""
        raw = json.dumps({"id": event, **more, "data": {"session_id": session}}).encode()
        return await self.callback(raw, cko_signature=sign(raw))

    def results(self) -> list[dict[str, Any]]:
        """Audit lines of results, without when they were written."""
        found = [line for line in self.told.audit if line.get("event") == "result"]
        return [{k: v for k, v in line.items() if k not in ("at", "event")} for line in found]

    def counted(self, kind: str, outcome: str, profile: str = "p") -> float:
        labels = {"profile": profile, "kind": kind, "outcome": outcome}
        return self.told.sample("broker_callbacks_total", **labels) or 0.0


_load = functools.lru_cache(maxsize=16)(load_preset)
"""A preset is never changed, and this one takes a tenth of a second to read."""


@functools.lru_cache(maxsize=64)
def parsed(raw: bytes, base: Path = Path()) -> Snapshot:
    """As `config.parse`; what was read once is remembered."""
    with mock.patch.object(broker.config, "load_preset", _load):
        return broker.config.parse(raw, base)


def faults(text: str, base: Path = Path()) -> list[Fault]:
    """What is wrong with a configuration; nothing of it is repeated that is no name."""
    found: list[Fault] = []
    try:
        parsed(text.encode(), base)
    except ConfigError as exc:
        found = list(exc.faults)
    assert not any(pan in repr(found) for pan in (PAN, OTHER_PAN))
    return found


@contextlib.asynccontextmanager
async def shop(text: str | None = None, **options: Any) -> AsyncIterator[Shop]:
    upstream = FakeCheckout()
    env = {**ENV, **options.pop("env", {})}
    async with contextlib.AsyncExitStack() as stack:
        with mock.patch.object(harness, "parse", parsed):
            whole = harness.broker(text or config(), upstream, env=env, **options)
            told = await stack.enter_async_context(whole)
        yield Shop(told, upstream)
