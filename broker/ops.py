"""The listener for operators: metrics, probes, version. Never reachable through the public one.

`/readyz` speaks of this process only, never of an upstream's health: one provider's outage must not
take every replica out of service.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from broker import __version__
from broker.metrics import Metrics


def ops_app(
    metrics: Metrics, digest: Callable[[], str], why_not_ready: Callable[[], str]
) -> Starlette:
    """digest: of the configuration in force. why_not_ready: empty while requests may be sent here,
    else the reason."""

    async def metrics_page(request: Request) -> Response:
        metrics.ready(not why_not_ready())
        body, content_type = metrics.render(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def livez(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_request: Request) -> Response:
        reason = why_not_ready()
        return PlainTextResponse(f"{reason or 'ok'}\n", 503 if reason else 200)

    async def version(_request: Request) -> Response:
        return JSONResponse(
            {"version": __version__, "python": platform.python_version(), "config": digest()}
        )

    return Starlette(
        routes=[
            Route("/metrics", metrics_page),
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/version", version),
        ]
    )
