"""What is measured: each variant as the requests of one slice, and what they must come to.

Nothing that a variant needs beforehand (handles to rotate, JWTs never seen before) is made inside
its slice, but all of it is counted where sessions are.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks.load import Load, request
from benchmarks.processes import Server
from benchmarks.world import ORIGIN, SERVICES, USERS, jwts

MINT = "/v1/profiles/transactions/sessions"
_BROWSER = {
    "origin": ORIGIN,
    "sec-fetch-site": "same-site",
    "user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "accept": "application/json",
    "accept-encoding": "gzip, deflate, br",
}
_SERVICE = {"user-agent": "reports-backend/1.0", "accept": "application/json"}


@dataclass(slots=True)
class Variant:
    """name: also the key in the JSON. server: whose CPU time counts. like: the naive variant it is
    compared with. share: of the requests of a slice; dear ones send fewer, cheap ones more.

    fresh: whether each request must cost one session upstream, or none may.
    """

    name: str
    server: str
    status: int
    prepare: Callable[[int], Awaitable[list[bytes]]]
    like: str = ""
    share: float = 1.0
    fresh: bool = False
    aim: float | None = None


@dataclass(slots=True)
class Prepared:
    """What was asked of ours outside the slices."""

    requests: int = 0
    errors: int = 0
    first_error: str = ""


class Variants:
    """Makes the requests. One generator for each server, with connections kept for the run."""

    def __init__(self, servers: dict[str, Server], connections: int, people: int) -> None:
        self.loads = {name: Load(one.port, connections) for name, one in servers.items()}
        self.prepared = Prepared()
        self._people = people
        self._users: list[str] = []
        self._services: list[str] = []
        self._turn = itertools.count()

    async def meet(self) -> None:
        """Fetches everybody's JWT."""
        idp, count = self.loads["sandbox"], self._people
        self._users = await jwts(idp, count, count, USERS, "RS256", "ES256")
        self._services = await jwts(idp, count, count, SERVICES, "RS256", "ES256")

    async def first(self) -> None:
        """Waits until ours has its access token, by asking for it."""
        await self._outside(await self._token("ours")(1), 200)

    def all(self) -> list[Variant]:
        return [
            Variant("bare Starlette", "bare", 200, self._bare, share=2),
            Variant("naive: mint", "naive", 201, self._mint("naive"), share=0.5, fresh=True),
            Variant("naive: access token", "naive", 200, self._token("naive"), share=0.5),
            Variant(
                "ours: mint", "ours", 201, self._mint("ours"),
                like="naive: mint", fresh=True, aim=5.0,
            ),
            Variant(
                "ours: mint, JWT not seen before", "ours", 201, self._mint_unseen,
                like="naive: mint", share=0.5, fresh=True,
            ),
            Variant(
                "ours: rotate", "ours", 201, self._rotate, like="naive: mint", share=0.5, fresh=True
            ),
            Variant("ours: rotate, deduplicated", "ours", 201, self._rotate_again),
            Variant(
                "ours: access token", "ours", 200, self._token("ours"),
                like="naive: access token", share=2, aim=1.3,
            ),
        ]  # fmt: skip

    def close(self) -> None:
        for load in self.loads.values():
            load.close()

    async def _bare(self, count: int) -> list[bytes]:
        """The very request of the access-token variants, but for its path: the same bytes in."""
        return self._requests("bare", "GET", "/hello", _SERVICE, self._services, count)

    def _mint(self, server: str) -> Callable[[int], Awaitable[list[bytes]]]:
        async def prepare(count: int) -> list[bytes]:
            return self._requests(server, "POST", MINT, _BROWSER, self._users, count, b"{}")

        return prepare

    def _token(self, server: str) -> Callable[[int], Awaitable[list[bytes]]]:
        async def prepare(count: int) -> list[bytes]:
            path = "/v1/access-tokens/checkout"
            return self._requests(server, "GET", path, _SERVICE, self._services, count)

        return prepare

    async def _mint_unseen(self, count: int) -> list[bytes]:
        # ES256 only: a provider that signs thousands of RS256 would be most of the run.
        unseen = await jwts(self.loads["sandbox"], count, self._people, USERS, "ES256")
        return self._requests("ours", "POST", MINT, _BROWSER, unseen, count, b"{}")

    async def _rotate(self, count: int) -> list[bytes]:
        """A handle of its own for each request, shown by the person it was made for."""
        users = self._take(self._users, count)
        handles = await self._handles(users)
        return [self._show(user, handle) for user, handle in zip(users, handles, strict=True)]

    async def _rotate_again(self, count: int) -> list[bytes]:
        """One handle, rotated already, shown again and again, as many tabs of one person do."""
        user = self._take(self._users, 1)
        (handle,) = await self._handles(user)
        once = self._show(user[0], handle)
        await self._outside([once])
        return [once] * count

    async def _handles(self, users: list[str]) -> list[str]:
        port = self.loads["ours"].port
        mints = [request(port, "POST", MINT, _bearer(_BROWSER, user), b"{}") for user in users]
        bodies = await self._outside(mints)
        return [json.loads(body)["handle"] if body else "" for body in bodies]

    async def _outside(self, requests: list[bytes], status: int = 201) -> list[bytes]:
        answers = await self.loads["ours"].run(requests, status, keep_bodies=True)
        self.prepared.requests += len(requests)
        self.prepared.errors += answers.errors
        self.prepared.first_error = self.prepared.first_error or answers.first_error
        return answers.bodies

    def _show(self, user: str, handle: str) -> bytes:
        body = json.dumps({"handle": handle}).encode()
        port = self.loads["ours"].port
        return request(port, "POST", "/v1/sessions/rotate", _bearer(_BROWSER, user), body)

    def _requests(
        self,
        server: str,
        method: str,
        path: str,
        headers: dict[str, str],
        tokens: list[str],
        count: int,
        body: bytes = b"",
    ) -> list[bytes]:
        port = self.loads[server].port
        chosen = self._take(tokens, count)
        return [request(port, method, path, _bearer(headers, token), body) for token in chosen]

    def _take(self, tokens: list[str], count: int) -> list[str]:
        return [tokens[next(self._turn) % len(tokens)] for _ in range(count)]


def _bearer(headers: dict[str, str], token: str) -> dict[str, str]:
    return {**headers, "authorization": f"Bearer {token}"}
