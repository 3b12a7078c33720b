"""An operation: one thing an upstream can be asked, counted and open to faults.

The one place where an endpoint meets ASGI.  With no fault set an operation must cost next to
nothing, because the benchmarks measure the broker and not its sandbox.
"""

from collections.abc import Sequence
from typing import Final

from starlette.types import Receive, Scope, Send

from broker.sandbox.clock import SandboxClock
from broker.sandbox.exchange import (
    AwaitedEndpoint,
    Call,
    ClientGoneError,
    Endpoint,
    RefusedError,
    RepeatedFieldError,
    Reply,
    read_body,
    send_reply,
    text,
)
from broker.sandbox.faults import FaultList
from broker.sandbox.misbehaviour import Stage, misbehave

_TO_COME: Final = Reply(0)
"""Stands where a reply must be waited for; never sent."""


class Ledger:
    """What the control plane and the operations share: counts and faults."""

    def __init__(self, operations: Sequence[str]) -> None:
        self.calls = dict.fromkeys(operations, 0)
        self.faults = FaultList()

    def reset(self) -> None:
        self.calls = dict.fromkeys(self.calls, 0)
        self.faults.clear()


class Exchange:
    """An ASGI app around one endpoint: read, answer, send."""

    def __init__(self, endpoint: Endpoint, methods: str, clock: SandboxClock) -> None:
        self._endpoint = endpoint
        self._methods = frozenset(methods.split()) if methods else None
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            call = Call(scope, await read_body(receive))
        except ClientGoneError:
            return
        except RefusedError as refused:
            await send_reply(send, refused.reply, self._clock)
            return
        await self.run(call, receive, send)

    async def run(self, call: Call, receive: Receive, send: Send) -> None:
        await send_reply(send, self.answer(call), self._clock)

    def answer(self, call: Call) -> Reply:
        if self._methods is not None and call.scope["method"] not in self._methods:
            allow = ", ".join(sorted(self._methods)).encode()
            return text(405, "Method Not Allowed", (b"allow", allow))
        try:
            return self._endpoint(call)
        except RefusedError as refused:
            return refused.reply
        except RepeatedFieldError:
            return text(400, "a field was sent twice")


class Operation(Exchange):
    """An exchange with a name: its calls are counted and its faults happen."""

    def __init__(
        self, name: str, endpoint: Endpoint, methods: str, clock: SandboxClock, ledger: Ledger
    ) -> None:
        super().__init__(endpoint, methods, clock)
        self._name = name
        self._ledger = ledger

    async def run(self, call: Call, receive: Receive, send: Send) -> None:
        self._ledger.calls[self._name] += 1
        fault = self._ledger.faults.take(self._name)
        if fault is None:
            await send_reply(send, self.answer(call), self._clock)
        else:
            await misbehave(fault, Stage(call, self.awaited, receive, send, self._clock))

    async def awaited(self, call: Call) -> Reply:
        """The honest reply, for a fault that has time to wait for it."""
        return self.answer(call)


class AwaitedOperation(Operation):
    """An operation whose endpoint has something to wait for; the others do not pay for that."""

    def __init__(
        self,
        name: str,
        endpoint: AwaitedEndpoint,
        methods: str,
        clock: SandboxClock,
        ledger: Ledger,
    ) -> None:
        super().__init__(name, lambda _: _TO_COME, methods, clock, ledger)
        self._awaited_endpoint = endpoint

    async def run(self, call: Call, receive: Receive, send: Send) -> None:
        self._ledger.calls[self._name] += 1
        fault = self._ledger.faults.take(self._name)
        if fault is None:
            await send_reply(send, await self.awaited(call), self._clock)
        else:
            await misbehave(fault, Stage(call, self.awaited, receive, send, self._clock))

    async def awaited(self, call: Call) -> Reply:
        reply = self.answer(call)
        if reply is not _TO_COME:
            return reply
        try:
            return await self._awaited_endpoint(call)
        except RefusedError as refused:
            return refused.reply
