"""The broker one writes in an afternoon, with good libraries and by their documentation.

It mints the same session at the same sandbox for the same callers, and gives out the same access
token. It is meant to be fair: one client for the life of the process, key set and access token
cached, one middleware, errors mapped. It leaves out what an afternoon leaves out: sealed handles,
rotation, rate limits, time budgets, refresh ahead, audit with redaction. Never use it for anything
but the comparison.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx2
from cachetools import TTLCache
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from prometheus_client import Counter, Histogram
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from benchmarks.bare import serve

SANDBOX = os.environ.get("BENCH_SANDBOX", "")
ISSUER = f"{SANDBOX}/idp"
NMI_URL = f"{SANDBOX}/nmi/api/v1"
TOKEN_URL = f"{SANDBOX}/checkout/access/connect/token"
NMI_KEY = os.environ.get("BENCH_NMI_KEY", "")
CLIENT_ID = os.environ.get("BENCH_CLIENT_ID", "")
CLIENT_SECRET = os.environ.get("BENCH_CLIENT_SECRET", "")

REQUESTS = Counter("naive_requests", "Requests.", ["method", "path", "status"])
SECONDS = Histogram("naive_request_seconds", "Latency.", ["method", "path"])
UPSTREAM = Histogram("naive_upstream_seconds", "Latency of upstream calls.", ["upstream"])

log = logging.getLogger("naive")
cache: TTLCache[str, Any] = TTLCache(maxsize=64, ttl=3000)


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "timestamp": datetime.now(UTC).isoformat(),
                "level": record.levelname,
                "message": record.getMessage(),
                **getattr(record, "fields", {}),
            }
        )


class Observe(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        began = time.perf_counter()
        request.state.request_id = request.headers.get("x-request-id") or str(uuid.uuid4())
        response = await call_next(request)
        seconds = time.perf_counter() - began
        path = request.scope["route"].path if "route" in request.scope else "other"
        REQUESTS.labels(request.method, path, str(response.status_code)).inc()
        SECONDS.labels(request.method, path).observe(seconds)
        response.headers["x-request-id"] = request.state.request_id
        fields = {
            "request_id": request.state.request_id,
            "path": request.url.path,
            "status": response.status_code,
            "seconds": round(seconds, 6),
            "subject": getattr(request.state, "subject", ""),
        }
        log.info("request", extra={"fields": fields})
        return response


async def key_set(client: httpx2.AsyncClient) -> KeySet:
    if "jwks" not in cache:
        answer = await client.get(f"{ISSUER}/jwks")
        answer.raise_for_status()
        cache["jwks"] = KeySet.import_key_set(answer.json())
    keys: KeySet = cache["jwks"]
    return keys


async def claims_of(request: Request, audience: str) -> dict[str, Any]:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise HTTPException(401)
    try:
        keys = await key_set(request.app.state.client)
        decoded = jwt.decode(token, keys, algorithms=["RS256", "ES256"])
        registry = jwt.JWTClaimsRegistry(
            iss={"essential": True, "value": ISSUER},
            aud={"essential": True, "value": audience},
            exp={"essential": True},
        )
        registry.validate(decoded.claims)
    except (JoseError, ValueError):
        raise HTTPException(401) from None
    request.state.subject = decoded.claims["sub"]
    return decoded.claims


async def access_token(client: httpx2.AsyncClient) -> dict[str, Any]:
    if "access_token" not in cache:
        form = {
            "grant_type": "client_credentials",
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "scope": "sessions:browser",
        }
        answer = await client.post(TOKEN_URL, data=form)
        answer.raise_for_status()
        token = answer.json()
        cache["access_token"] = {**token, "expires_at": time.time() + token["expires_in"]}
    held: dict[str, Any] = cache["access_token"]
    return held


async def mint(request: Request) -> JSONResponse:
    claims = await claims_of(request, "token-broker")
    if claims.get("role") not in ("owner", "accountant") or not claims.get("merchant_id"):
        raise HTTPException(403)
    await request.json()
    order = {
        "gateway": {
            "api_key": NMI_KEY,
            "merchant_id": claims["merchant_id"],
            "environment": "sandbox",
        }
    }
    client: httpx2.AsyncClient = request.app.state.client
    with UPSTREAM.labels("nmi").time():
        answer = await client.post(f"{NMI_URL}/sessions", json=order)
    answer.raise_for_status()
    session = answer.json()
    now = datetime.now(UTC)
    expires_at = datetime.fromisoformat(session["expires_at"])
    return JSONResponse(
        {
            "session_token": session["session_token"],
            "issued_at": now.isoformat(),
            "expires_at": session["expires_at"],
            "expires_in": int((expires_at - now).total_seconds()),
            "output": {
                "sessionToken": session["session_token"],
                "expiresAt": int(expires_at.timestamp() * 1000),
            },
        },
        201,
        headers={"cache-control": "no-store"},
    )


async def show_access_token(request: Request) -> JSONResponse:
    await claims_of(request, "token-broker-services")
    token = await access_token(request.app.state.client)
    return JSONResponse(
        {
            "access_token": token["access_token"],
            "token_type": token["token_type"],
            "expires_in": int(token["expires_at"] - time.time()),
            "scope": token["scope"],
        },
        headers={"cache-control": "no-store"},
    )


@contextlib.asynccontextmanager
async def lifespan(application: Starlette) -> AsyncIterator[None]:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    async with httpx2.AsyncClient(timeout=10) as client:
        application.state.client = client
        yield


app = Starlette(
    routes=[
        Route("/v1/profiles/transactions/sessions", mint, methods=["POST"]),
        Route("/v1/access-tokens/checkout", show_access_token, methods=["GET"]),
    ],
    middleware=[Middleware(Observe)],
    lifespan=lifespan,
)

if __name__ == "__main__":
    serve(app, int(sys.argv[1]))
