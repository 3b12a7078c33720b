"""The store in a Redis or Valkey server, a master behind sentinels, or a cluster.

It makes replicas one; it never makes them depend on it. Every call ends within the deadline,
whatever the server does, and a server that failed three times in a row is asked again only by a
probe, in the background. Nothing lies there in plain text, and an answer that does not open is not
there. Neither a value nor the URL may come into an error or a log line.

Each operation is one round trip of small scripts, sent whole (EVAL), as a script that is only named
would be lost with every restart, failover and SCRIPT FLUSH. A value is `{prefix:name}`, its claim
`{prefix:name}:claim`: in a cluster, what stands in braces decides where both of them are. A value
is framed as a short keyed digest of the plain text and the sealed text, so that "if it is still
this" can be decided there, where sealing twice gives two texts.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import structlog
from limits.aio.storage import RedisStorage, SlidingWindowCounterSupport

from broker.errors import ConfigError, Fault
from broker.flights import Spawn
from broker.metrics import Metrics
from broker.model import Secret
from broker.schedule import Clock
from broker.state.addresses import MOST_CONNECTIONS, connect, parse_address
from broker.state.store import Claim, Kept, Put, StoreDown
from broker.state.vault import TAG_BYTES, Vault

T = TypeVar("T")
FAILURES = 3
"""In a row, after which the server is down: one lost packet is not an outage."""
PROBE_EVERY = 0.5
"""Seconds, give or take a quarter, so that replicas do not come back in step."""
PROBE_WITHIN = 1.0
"""Seconds for it: nobody waits, and a cluster's map over TLS may take longer than a deadline."""
MOST_OWED = 10_000
"""Durable puts that wait for the server, of some hundred bytes each."""
_BATCH = 100

_READ = "return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}"
_FREE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"
_WRITE = """
local mine = ARGV[3] ~= '' and redis.call('GET', KEYS[2]) == ARGV[3]
local late = ARGV[3] ~= '' and not mine and redis.call('EXISTS', KEYS[1], KEYS[2]) > 0
if tonumber(ARGV[2]) > 0 and not late then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
if mine then redis.call('DEL', KEYS[2]) end
return late and 0 or 1
"""
# A claim that would outlive what anybody claims for (a restored dump, a clock set back) is none.
_CLAIM = """
local mine = redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2])
if not mine then
  local left = redis.call('PTTL', KEYS[2])
  if redis.call('GET', KEYS[2]) == ARGV[1] or left < 0 or left > tonumber(ARGV[2]) then
    mine = redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
  end
end
return {mine and 1 or 0, redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}
"""
_EXTEND = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_FORGET = f"""
local tag = redis.call('GETRANGE', KEYS[1], 0, {TAG_BYTES - 1})
for _, candidate in ipairs(ARGV) do
  if tag == candidate then redis.call('DEL', KEYS[1]) end
end
"""
_log = structlog.get_logger("store")
_Command = tuple[str, tuple[str, ...], tuple[str | bytes | int, ...]]
"""A script, its keys, its arguments."""


class RedisStore:
    """A `Store`. See there what its methods promise."""

    def __init__(
        self,
        url: Secret,
        vault: Vault,
        clock: Clock,
        metrics: Metrics,
        spawn: Spawn,
        *,
        timeout: float = 0.25,
        prefix: str = "token-broker",
        ca_file: str | None = None,
    ) -> None:
        """timeout: seconds for a whole call, waiting for a connection and making one included.
        Raises ConfigError for a URL, a file or an installation that is of no use."""
        try:
            address = parse_address(url.reveal())
        except ValueError as exc:
            raise ConfigError([Fault("/state/url", str(exc))]) from None
        self._line = connect(address, timeout=timeout, ca_file=ca_file)
        self._vault = vault
        self._clock = clock
        self._metrics = metrics
        self._spawn = spawn
        self._timeout = timeout
        self._prefix = prefix
        self._places = asyncio.Semaphore(MOST_CONNECTIONS)
        self._failures = 0
        self._down = False
        self._mending: asyncio.Task[Any] | None = None
        self._owed: OrderedDict[str, tuple[Put, float]] = OrderedDict()
        self._windows = _Windows(self._line.client, f"{prefix}:windows", self._call)
        metrics.store_up(True)

    @property
    def windows(self) -> SlidingWindowCounterSupport:
        return self._windows

    async def get(self, names: Sequence[str]) -> list[Kept | None]:
        if not names:
            return []
        commands: list[_Command] = [(_READ, (self._key(name),), ()) for name in names]
        answers = await self._call("get", lambda: self._send(commands))
        pairs = zip(names, answers, strict=True)
        return [self._opened(name, *answer) for name, answer in pairs]

    async def put(self, items: Sequence[Put]) -> list[bool]:
        if not items:
            return []
        now = self._clock.monotonic()
        try:
            taken = await self._call("put", lambda: self._send(list(map(self._writing, items))))
        except StoreDown:
            for item in items:
                if item.durable and item.seconds > 0:
                    self._owe(item, now + item.seconds)
            raise
        for item in items:
            self._owed.pop(item.name, None)
        return [bool(one) for one in taken]

    async def delete_if(self, name: str, value: bytes) -> None:
        if name in self._owed and self._owed[name][0].value == value:
            del self._owed[name]
        key = self._key(name)
        command: _Command = (_FORGET, (key,), tuple(self._vault.tags(key, value)))
        await self._call("delete", lambda: self._send([command]))

    async def claim(self, name: str, owner: str, seconds: float) -> tuple[Claim, Kept | None]:
        lasting = max(1, int(seconds * 1000))
        command: _Command = (_CLAIM, self._keys(name), (owner, lasting))
        try:
            ((mine, value, left),) = await self._call("claim", lambda: self._send([command]))
        except StoreDown:
            return Claim.ERROR, None
        return Claim.ACQUIRED if mine else Claim.HELD, self._opened(name, value, left)

    async def extend(self, name: str, owner: str, seconds: float) -> bool:
        command: _Command = (_EXTEND, self._keys(name)[1:], (owner, max(1, int(seconds * 1000))))
        try:
            (extended,) = await self._call("extend", lambda: self._send([command]))
        except StoreDown:
            return True
        return bool(extended)

    async def release(self, name: str, owner: str) -> None:
        command: _Command = (_FREE, self._keys(name)[1:], (owner,))
        with contextlib.suppress(StoreDown):  # the claim ends by itself
            await self._call("release", lambda: self._send([command]))

    async def close(self) -> None:
        """Ends the probe and the connections, within the deadline. What is still owed is lost."""
        self._down = True  # so that a call that comes late opens no new connection
        if self._mending is not None:
            self._mending.cancel()
        try:
            await self._bounded(self._line.close)
        except Exception:  # noqa: BLE001  (there is nobody left to tell)
            return

    def _key(self, name: str) -> str:
        return f"{{{self._prefix}:{name}}}"

    def _keys(self, name: str) -> tuple[str, str]:
        key = self._key(name)
        return key, f"{key}:claim"

    def _writing(self, item: Put) -> _Command:
        key = self._key(item.name)
        framed = self._vault.tags(key, item.value)[0] + self._vault.seal(key, item.value)
        return _WRITE, self._keys(item.name), (framed, int(item.seconds * 1000), item.owner)

    def _opened(self, name: str, framed: bytes | None, left: int) -> Kept | None:
        """left: milliseconds; under nought for what never ends, which nobody here has put."""
        if framed is None or left <= 0:
            return None
        value = self._vault.open(self._key(name), framed[TAG_BYTES:])
        return None if value is None else Kept(value, left / 1000)

    async def _send(self, commands: Sequence[_Command]) -> list[Any]:
        """All of them at once, and their answers."""
        if len(commands) == 1:
            ((script, keys, arguments),) = commands
            client = self._line.client
            return [await client.execute_command("EVAL", script, len(keys), *keys, *arguments)]
        pipeline = self._line.client.pipeline(transaction=False)
        for script, keys, arguments in commands:
            pipeline.execute_command("EVAL", script, len(keys), *keys, *arguments)
        answers: list[Any] = await pipeline.execute()
        return answers

    async def _call(self, operation: str, work: Callable[[], Awaitable[T]]) -> T:
        """Raises StoreDown for whatever goes wrong, at once while the server counts as down."""
        if self._down:
            self._metrics.store_answered(operation, "down")
            raise StoreDown("down")
        try:
            result = await self._bounded(work)
        except Exception as exc:  # noqa: BLE001  (also the library's own slips are no outage)
            cause = type(exc).__name__
            # by its name, as the library's own is no TimeoutError
            self._metrics.store_answered(operation, "timeout" if "Timeout" in cause else "error")
            self._failed(cause)
            # not `from exc`: the library's texts repeat names and arguments
            raise StoreDown(cause) from None
        self._metrics.store_answered(operation, "ok")
        self._failures = 0
        return result

    async def _bounded(self, work: Callable[[], Awaitable[T]], least: float = 0.0) -> T:
        """What `work` gives, within the deadline, or TimeoutError.

        In a task of its own, which is cancelled once and by us only: then the library closes the
        connection, whose late answer must not be taken for another's, and gives its place back,
        however the caller left. And the deadline holds though a library swallow a cancellation."""
        task = self._spawn(self._in_place(work))
        task.add_done_callback(_seen)
        try:
            await asyncio.wait((task,), timeout=max(least, self._timeout))
        finally:
            task.cancel()
        if not task.done() or task.cancelled():
            raise TimeoutError
        result: T = task.result()
        return result

    async def _in_place(self, work: Callable[[], Awaitable[T]]) -> T:
        """Never more calls at once than connections: with none left, the library fails at once."""
        async with self._places:
            return await work()

    def _failed(self, cause: str) -> None:
        self._failures += 1
        if self._failures >= FAILURES and not self._down:
            self._down = True
            self._metrics.store_up(False)
            _log.warning("store_down", cause=cause)
            self._mend_soon()

    def _owe(self, item: Put, until: float) -> None:
        self._owed[item.name] = (item, until)
        self._owed.move_to_end(item.name)
        if len(self._owed) > MOST_OWED:
            self._owed.popitem(last=False)
        self._mend_soon()

    def _mend_soon(self) -> None:
        if self._mending is None or self._mending.done():
            self._mending = self._spawn(self._mend())

    async def _mend(self) -> None:
        """Until the server takes writes again, and has been told what it is owed."""
        while self._down or self._owed:
            await self._clock.sleep(PROBE_EVERY * random.uniform(0.75, 1.25))  # noqa: S311  (jitter)
            try:
                await self._bounded(self._probe, PROBE_WITHIN)
                await self._pay()
            except Exception:  # noqa: BLE001, S112  (whatever it is, it is tried again)
                continue
            if self._down:
                self._down, self._failures = False, 0
                self._metrics.store_up(True)
                _log.warning("store_up")

    async def _probe(self) -> None:
        """Over a new connection, and a write: a server that is full, or has become a replica,
        answers every PING."""
        if self._down:
            await self._line.drop()
        await self._line.client.set(self._key("probe"), b"", px=1000)

    async def _pay(self) -> None:
        while self._owed:
            batch = list(islice(self._owed.items(), _BATCH))
            now = self._clock.monotonic()
            items = [replace(item, seconds=until - now) for _, (item, until) in batch]
            commands = [self._writing(item) for item in items if item.seconds > 0]
            if commands:
                await self._bounded(lambda commands=commands: self._send(commands))  # type: ignore[misc]
            for name, owed in batch:
                if self._owed.get(name) is owed:  # else a newer one came in the meantime
                    del self._owed[name]


class _Windows(RedisStorage):
    """The library's own counters, over our client and within our deadline."""

    STORAGE_SCHEME = None  # type: ignore[assignment]

    def __init__(
        self, client: Any, prefix: str, call: Callable[[str, Callable[[], Awaitable[Any]]], Any]
    ) -> None:
        self._client = client
        self._call = call
        super().__init__("redis://", implementation="redispy", key_prefix=prefix)

    def configure_bridge(self) -> None:
        bridge: Any = self.bridge
        bridge.storage = self._client
        bridge.connection_getter = lambda _readonly: self._client

    async def acquire_sliding_window_entry(
        self, key: str, limit: int, expiry: int, amount: int = 1
    ) -> bool:
        hit = super().acquire_sliding_window_entry
        return bool(await self._call("hit", lambda: hit(key, limit, expiry, amount)))

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        look = super().get_sliding_window
        window: tuple[int, float, int, float]
        window = await self._call("hit", lambda: look(key, expiry))
        return window

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        clear = super().clear_sliding_window
        await self._call("hit", lambda: clear(key, expiry))


def _seen(task: asyncio.Task[Any]) -> None:
    """An error after the deadline is nobody's any more."""
    if not task.cancelled():
        task.exception()
