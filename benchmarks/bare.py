"""The yardstick: one Starlette route that answers a small `JSONResponse`, on uvicorn.

With the same server settings as the broker's own listener, so that only the application differs.
It must stay as plain as the first example of Starlette's documentation: it is the 1 of all ratios.
"""

from __future__ import annotations

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


async def hello(_request: Request) -> JSONResponse:
    return JSONResponse({"hello": "world"})


app = Starlette(routes=[Route("/hello", hello, methods=["GET"])])


def serve(application: Starlette, port: int) -> None:
    """Runs until killed. Also what the naive broker is served with."""
    uvicorn.run(
        application,
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        # Longer than a round, so that no slice measures the connecting of another.
        timeout_keep_alive=120,
    )


if __name__ == "__main__":
    serve(app, int(sys.argv[1]))
