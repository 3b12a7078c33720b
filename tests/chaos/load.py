"""Load: callers who mint, rotate, repeat, end and read, at a bounded rate, on every replica.

Open loop: a slow broker does not slow the callers down, it only has more of them at once, up to a
bound. Each request is judged when it is answered; the judge keeps the figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any

import aiohttp

from broker.loop_time import LoopTime
from tests.chaos import config
from tests.chaos.callers import jwt, page_jwt, read
from tests.chaos.judge import BUSY, CUT, SILENT, Answer, Judge

PATIENCE = config.BUDGET + 4.0
"""Seconds that a client waits: longer than any answer may take, so that a late one is seen."""
MOST_AT_ONCE = 600
SUBJECTS = 200
SECRET_KEY = "sk_sbox_sandboxsandboxsandboxsandbo"
"""The sandbox's own, to ask it about Flow sessions directly."""
MIX = {
    "nmi": 34, "flow": 20, "rotate": 14, "tabs": 8, "repeat": 8, "access": 10, "ended": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chain:
    """A session that some caller has, and that can be rotated."""

    subject: str
    handle: str
    epoch: int


class Load:
    """The callers of one row."""

    def __init__(
        self, http: aiohttp.ClientSession, sandbox: str, targets: list[str], judge: Judge
    ) -> None:
        """targets: the brokers' addresses; the row changes the list as a balancer would."""
        self.targets = targets
        self.judge = judge
        self.mix = dict(MIX)
        self.most_at_once = MOST_AT_ONCE
        self.verify = 0.25
        """Share of the tokens that are shown to the sandbox, which must know them."""
        self._http = http
        self._sandbox = sandbox
        self._random = random.Random(20261121)
        self._jwts = {name: page_jwt(name) for name in (f"u{i}" for i in range(SUBJECTS))}
        self._service = jwt("services", "reports", client_id="reports")
        self._chains: deque[Chain] = deque(maxlen=400)
        self.ended: deque[Chain] = deque(maxlen=20)
        """What callers have ended last, told 204, or 503 as the store did not know it yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop_time = LoopTime()
        """So that what the callers' own loop slept away is not taken for a late answer."""
        self.skipped = 0
        self.strangers = 0

    # --- its life -----------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self, rate: float) -> AsyncIterator[None]:
        """rate: operations started in a second; some are two or three requests."""
        self._loop_time.start()
        try:
            async with self.more(rate):
                yield
        finally:
            await self.drained()
            self._loop_time.stop()

    @contextlib.asynccontextmanager
    async def more(self, rate: float) -> AsyncIterator[None]:
        """The same, besides what runs already; does not wait for what is under way at its end."""
        ticking = asyncio.create_task(self._tick(rate)) if rate else None
        try:
            yield
        finally:
            if ticking is not None:
                ticking.cancel()
                await asyncio.gather(ticking, return_exceptions=True)

    def forget(self) -> None:
        """The callers lose their handles, and mint anew."""
        self._chains.clear()

    async def drained(self) -> None:
        while self._tasks:
            await asyncio.gather(*self._tasks)

    async def settled(self) -> None:
        """Waits for what is under way now, and not for what comes after it."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _tick(self, rate: float) -> None:
        started, count = time.monotonic(), 0
        while True:
            count += 1
            await asyncio.sleep(max(0.0, started + count / rate - time.monotonic()))
            if len(self._tasks) >= self.most_at_once or not self.targets:
                self.skipped += 1
                continue
            name = self._random.choices(list(self.mix), list(self.mix.values()))[0]
            task = asyncio.create_task(self._guarded(getattr(self, f"_do_{name}")()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _guarded(self, doing: Coroutine[Any, Any, None]) -> None:
        try:
            await doing
        except Exception as exc:
            self.judge.complain(f"an answer that could not be read: {exc!r}")

    # --- what callers do ----------------------------------------------------------------------

    async def _do_nmi(self) -> None:
        subject = self._subject()
        minted = await self.mint("nmi", subject)
        self._keep(subject, minted)

    async def _do_flow(self) -> None:
        await self.mint("flow", self._subject())

    async def _do_rotate(self) -> None:
        chain = self._chain()
        if chain is None:
            return await self._do_nmi()
        rotated = await self.rotate("rotate", chain, self._target())
        self._keep(chain.subject, rotated, chain)
        return None

    async def _do_tabs(self) -> None:
        """Two tabs rotate one handle at once, wherever the balancer sends them."""
        chain = self._chain()
        if chain is None:
            return await self._do_nmi()
        first, second = self._target(), self._target()
        both = [self.rotate("rotate", chain, target) for target in (first, second)]
        one, other = await asyncio.gather(*both)
        self.same("two tabs got two successors", chain.epoch, one, other, first == second)
        self._keep(chain.subject, one if one.ok else other, chain)
        return None

    async def _do_repeat(self) -> None:
        """A retry under the same Idempotency-Key, while the first is under way or after it."""
        subject, key, epoch = self._subject(), str(uuid.uuid4()), self.judge.epoch
        first, second = self._target(), self._target()
        if self._random.random() < 0.5:
            both = [self.mint("nmi", subject, key, target) for target in (first, second)]
            one, other = await asyncio.gather(*both)
        else:
            one = await self.mint("nmi", subject, key, first)
            second = self._target()  # the first one may be out of service by now
            other = await self.mint("nmi", subject, key, second)
        self.same("an idempotent repeat brought another token", epoch, one, other, first == second)

    async def _do_access(self) -> None:
        path = "/v1/access-tokens/checkout"
        answer = await self.ask("access", "GET", path, "reports", self._service, self._target())
        if answer.ok and self._random.random() < self.verify:
            await self._known(f"{self._sandbox}/checkout/api/ping", answer.body["access_token"])

    async def _do_ended(self) -> None:
        """Logout; then the handle must be dead everywhere."""
        chain = self._chain()
        if chain is None:
            return await self._do_nmi()
        ended = await self.end(chain, self._target())
        if ended.ok or ended.outcome == "overloaded":
            self.ended.append(chain)
        if not ended.ok:
            return None
        again = await self.rotate("ended", chain, self._target())
        if again.ok and self._binding(chain.epoch):
            self.judge.complain("an ended chain rotated")
        return None

    async def _do_stranger(self) -> None:
        """Somebody who was never here before; every tenth comes back once, by handle."""
        self.strangers += 1
        subject = f"s{self.strangers}"
        token = page_jwt(subject)
        minted = await self.mint("nmi", subject, token=token)
        if minted.ok and self.strangers % 10 == 0:
            chain = Chain(subject, minted.body["handle"], self.judge.epoch)
            await self.rotate("rotate", chain, self._target(), token)

    # --- one request --------------------------------------------------------------------------

    async def mint(
        self, profile: str, subject: str, key: str = "", target: str = "", token: str = ""
    ) -> Answer:
        """A client of good manners: where the line was cut, it asks once more, elsewhere, under the
        same key. NMI's mints always have one; Flow's have none, unless told, and so need no store."""
        if not key and profile != "flow":
            key = str(uuid.uuid4())
        target = target or self._target()
        path = f"/v1/profiles/{profile}/sessions"
        token = token or self._jwts[subject]
        answer = await self.ask(profile, "POST", path, subject, token, target, key=key)
        if answer.outcome == CUT and CUT in answer.allowed:
            other = self._target()
            answer = await self.ask(profile, "POST", path, subject, token, other, key=key)
        if answer.ok and self._random.random() < self.verify:
            await self._verify(profile, answer)
        return answer

    def jwt_of(self, subject: str) -> str:
        return self._jwts[subject]

    async def chain(self, subject: str) -> Chain:
        """A session of this caller, just minted; whoever is put off comes again."""
        minted = await self.mint("nmi", subject)
        for _ in range(30):
            if minted.ok or minted.outcome not in BUSY:
                break
            await asyncio.sleep(0.2)
            minted = await self.mint("nmi", subject)
        return Chain(subject, minted.body["handle"], self.judge.epoch)

    async def end(self, chain: Chain, target: str) -> Answer:
        body, token = {"handle": chain.handle}, self._jwts[chain.subject]
        path = "/v1/sessions/end"
        return await self.ask("end", "POST", path, chain.subject, token, target, body)

    async def rotate(self, kind: str, chain: Chain, target: str, token: str = "") -> Answer:
        body, token = {"handle": chain.handle}, token or self._jwts[chain.subject]
        path = "/v1/sessions/rotate"
        answer = await self.ask(kind, "POST", path, chain.subject, token, target, body)
        if answer.outcome == CUT and CUT in answer.allowed:
            other = self._target()
            answer = await self.ask(kind, "POST", path, chain.subject, token, other, body)
        return answer

    async def ask(
        self,
        kind: str,
        method: str,
        path: str,
        subject: str,
        token: str,
        target: str,
        body: dict[str, Any] | None = None,
        key: str = "",
    ) -> Answer:
        headers = {"authorization": f"Bearer {token}"}
        headers |= {"idempotency-key": key} if key else {}
        body = {} if body is None and method == "POST" else body
        sent, may = time.monotonic(), self.judge.allowed(kind, target)
        began = self._loop_time.running()
        status, outcome, told, fields = 0, SILENT, {}, {}
        try:
            async with (
                asyncio.timeout(PATIENCE),
                self._http.request(method, target + path, headers=headers, json=body) as got,
            ):
                raw = await got.read()
                status = got.status
                fields = {name.lower(): value for name, value in got.headers.items()}
                told = read(raw)
                outcome = "ok" if status < 300 else str(told.get("type", "")).rpartition(":")[2]
                outcome = outcome or f"{status} that is no problem of ours"
        except TimeoutError:
            pass
        except (aiohttp.ClientError, OSError):
            status, outcome = 0, CUT
        seconds = self._loop_time.running() - began
        may |= self.judge.allowed(kind, target)
        answer = Answer(
            kind, subject, sent, seconds, status, outcome, told, fields, target, frozenset(may)
        )
        self.judge.see(answer)
        return answer

    # --- what must be so ----------------------------------------------------------------------

    def same(self, complaint: str, epoch: int, one: Answer, other: Answer, alone: bool) -> None:
        """Both answers must have one token. alone: the same replica gave both."""
        if not (one.ok and other.ok) or one.body["session_token"] == other.body["session_token"]:
            return
        if self._binding(epoch) or (alone and epoch == self.judge.epoch):
            self.judge.complain(complaint + (" (of one replica)" if alone else ""))

    def _binding(self, epoch: int) -> bool:
        return self.judge.shared and epoch == self.judge.epoch

    async def _verify(self, profile: str, answer: Answer) -> None:
        if profile == "nmi":
            token = answer.body["session_token"]
            return await self._known(f"{self._sandbox}/nmi/api/v1/report", token)
        session = answer.body["output"]["id"]
        url = f"{self._sandbox}/checkout/api/payment-sessions/{session}/submit"
        body = {"session_data": "sandbox-declined"}
        headers = {"authorization": f"Bearer {SECRET_KEY}"}
        async with self._http.post(url, json=body, headers=headers) as got:
            if got.status != 201 and answer.sent >= self.judge.skewed_at:
                self.judge.complain(f"a Flow session that the upstream does not know: {got.status}")
        return None

    async def _known(self, url: str, token: str) -> None:
        async with self._http.get(url, headers={"authorization": f"Bearer {token}"}) as got:
            if got.status != 200 and not self.judge.allowed("unknown"):
                self.judge.complain(f"a token that the upstream does not know: {got.status}")

    def _keep(self, subject: str, answer: Answer, chain: Chain | None = None) -> None:
        epoch = self.judge.epoch if chain is None else chain.epoch
        if answer.ok and "handle" in answer.body:
            self._chains.append(Chain(subject, answer.body["handle"], epoch))

    def _chain(self) -> Chain | None:
        if len(self._chains) < 5:
            return None
        index = self._random.randrange(len(self._chains))
        chain = self._chains[index]
        del self._chains[index]
        return chain

    def _subject(self) -> str:
        return f"u{self._random.randrange(SUBJECTS)}"

    def _target(self) -> str:
        return self._random.choice(self.targets)
