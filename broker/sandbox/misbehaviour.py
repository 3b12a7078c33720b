"""What each kind of fault does to an exchange.

Two sorts: spoilers take the honest reply and return a worse one; the rest decide what happens on
the wire.  Every wait and every stream ends when the client goes away: a fault may torment the
client, never the sandbox.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.types import Receive, Send

from broker.sandbox import wire
from broker.sandbox.clock import SandboxClock, http_date, rfc3339
from broker.sandbox.exchange import Call, Reply, as_json, html, send_reply, start, text
from broker.sandbox.faults import Fault

_CHUNK: Final = b"x" * 65536
"""One write that fills a default socket buffer, so that back-pressure sets in at once."""


@dataclass(frozen=True, slots=True)
class Stage:
    """All that a fault can lay hands on."""

    call: Call
    answer: Callable[[Call], Awaitable[Reply]]
    """Runs the honest endpoint; refusals come back as replies."""
    receive: Receive
    send: Send
    clock: SandboxClock


async def misbehave(fault: Fault, stage: Stage) -> None:
    spoil = _SPOILERS.get(fault.kind)
    if spoil is not None:
        reply = spoil(await stage.answer(stage.call), fault.options, stage.clock)
        await send_reply(stage.send, reply, stage.clock)
    else:
        await _ON_THE_WIRE[fault.kind](fault.options, stage)


# Spoilers: honest reply in, worse reply out.

Options = Mapping[str, Any]


def _members(reply: Reply) -> dict[str, Any]:
    """The members of a JSON object body; nothing for any other body."""
    if reply.content_type != b"application/json":
        return {}
    value = json.loads(reply.body)
    return value if isinstance(value, dict) else {}


def _status(reply: Reply, options: Options, clock: SandboxClock) -> Reply:
    code, body, after = options["code"], options["body"], options["retry_after"]
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if after is not None:
        if options["retry_after_as"] == "http-date" and isinstance(after, int):
            after = http_date(clock.now() + after)
        headers = ((b"retry-after", str(after).encode("latin-1")),)
    if body is None and code < 300:
        # Another kind of success: the honest body under another number.
        return reply._replace(status=code, headers=reply.headers + headers)
    if body is None or isinstance(body, str):
        return text(code, body or "upstream fault", *headers)
    return as_json(code, body, *headers)


def _html_200(reply: Reply, options: Options, clock: SandboxClock) -> Reply:
    return html(200, "We will be right back")


def _truncated_json(reply: Reply, options: Options, clock: SandboxClock) -> Reply:
    return reply._replace(body=reply.body[: len(reply.body) // 2])


def _duplicate_keys(reply: Reply, options: Options, clock: SandboxClock) -> Reply:
    members = _members(reply)
    decoys = b"".join(b'"%s": "duplicate", ' % name.encode() for name in members)
    return reply._replace(body=b"{" + decoys + reply.body.lstrip()[1:]) if members else reply


def _with_members(reply: Reply, **changes: Any) -> Reply:
    members = _members(reply)
    return reply._replace(body=json.dumps({**members, **changes}).encode()) if members else reply


def _set_fields(reply: Reply, options: Options, clock: SandboxClock) -> Reply:
    return _with_members(reply, **options["fields"])


def _missing_expiry(reply: Reply, options: Options, clock: SandboxClock) -> Reply:
    members = {k: v for k, v in _members(reply).items() if k not in ("expires_in", "expires_at")}
    return reply._replace(body=json.dumps(members).encode()) if members else reply


def _expires_in(reply: Reply, options: Options, clock: SandboxClock) -> Reply:
    # Whichever of the two the operation answers with: NMI has an instant, OAuth a duration.
    name = "expires_at" if "expires_at" in _members(reply) else "expires_in"
    return _with_members(reply, **{name: options["value"]})


def _past_expiry(reply: Reply, options: Options, clock: SandboxClock) -> Reply:
    seconds = int(options["seconds"])
    if "expires_at" in _members(reply):
        return _with_members(reply, expires_at=rfc3339(int(clock.now()) - seconds))
    return _with_members(reply, expires_in=-seconds)


# On the wire: how the answer travels, or does not.


async def _latency(options: Options, stage: Stage) -> None:
    if not await wire.gone_within(stage.receive, options["seconds"]):
        await send_reply(stage.send, await stage.answer(stage.call), stage.clock)


async def _hang(options: Options, stage: Stage) -> None:
    await wire.until_gone(stage.receive)


async def _reset(options: Options, stage: Stage) -> None:
    wire.reset(wire.transport_of(stage.call.scope))
    await wire.until_gone(stage.receive)


async def _close_midway(options: Options, stage: Stage) -> None:
    transport = wire.transport_of(stage.call.scope)
    reply = await stage.answer(stage.call)
    await stage.send(start(reply, stage.clock, len(reply.body)))
    await _send_part(stage.send, reply.body[: len(reply.body) // 2])
    transport.close()
    await wire.until_gone(stage.receive)


async def _slow_drip(options: Options, stage: Stage) -> None:
    reply = await stage.answer(stage.call)
    await stage.send(start(reply, stage.clock, len(reply.body)))
    for position in range(len(reply.body)):
        if await wire.gone_within(stage.receive, options["seconds"]):
            return
        await _send_part(stage.send, reply.body[position : position + 1])
    await stage.send({"type": "http.response.body", "body": b""})


async def _huge_body(options: Options, stage: Stage) -> None:
    """Valid JSON with the honest members in it: only a limit on size can refuse this."""
    reply = await stage.answer(stage.call)
    opening = _padding_opens(reply)
    size = max(options["bytes"], len(opening) + 2)
    length = size if options["declare_length"] else None
    await stage.send(start(reply._replace(content_type=b"application/json"), stage.clock, length))
    await _send_part(stage.send, opening)
    if await _pad(stage, size - len(opening) - 2):
        await stage.send({"type": "http.response.body", "body": b'"}'})


async def _endless_body(options: Options, stage: Stage) -> None:
    reply = await stage.answer(stage.call)
    await stage.send(start(reply._replace(content_type=b"application/json"), stage.clock, None))
    await _send_part(stage.send, _padding_opens(reply))
    await _pad(stage, None)


def _padding_opens(reply: Reply) -> bytes:
    return json.dumps({**_members(reply), "padding": ""}).encode().removesuffix(b'"}')


async def _pad(stage: Stage, count: int | None) -> bool:
    """Sends `count` bytes, or for ever; says whether anyone was there until the end."""
    async with wire.watching(stage.receive) as gone:
        while count is None or count > 0:
            # `send` returns at once while the socket takes everything, and always after a
            # disconnect: without this the loop would never again run anything else.
            await asyncio.sleep(0)
            if gone.done():
                return False
            part = _CHUNK if count is None else _CHUNK[:count]
            await _send_part(stage.send, part)
            count = count if count is None else count - len(part)
    return True


async def _send_part(send: Send, part: bytes) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": True})


_SPOILERS: Final[Mapping[str, Callable[[Reply, Options, SandboxClock], Reply]]] = {
    "status": _status,
    "html-200": _html_200,
    "truncated-json": _truncated_json,
    "duplicate-keys": _duplicate_keys,
    "set-fields": _set_fields,
    "missing-expiry": _missing_expiry,
    "expires-in": _expires_in,
    "past-expiry": _past_expiry,
}

_ON_THE_WIRE: Final[Mapping[str, Callable[[Options, Stage], Awaitable[None]]]] = {
    "latency": _latency,
    "hang": _hang,
    "reset": _reset,
    "close-midway": _close_midway,
    "slow-drip": _slow_drip,
    "huge-body": _huge_body,
    "endless-body": _endless_body,
}
