"""The store in a Redis or Valkey server, a master behind sentinels, or a cluster.

It makes replicas one; it never makes them depend on it. Every call ends within the deadline,
whatever the server does, and what has been failing for seconds is asked again only by a probe, in
the background. Nothing lies there in plain text, and an answer that does not open is not there.
Neither a value nor the URL may come into an error or a log line.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from limits.aio.storage import RedisStorage, SlidingWindowCounterSupport

from broker.errors import ConfigError, Fault
from broker.flights import Spawn
from broker.loop_time import LoopTime
from broker.metrics import Metrics
from broker.model import Secret
from broker.schedule import Clock
from broker.state.addresses import Line, dialer, parse_address
from broker.state.health import Health
from broker.state.redis_link import Command, Link, cause_of, is_broken, is_timeout, leads_elsewhere
from broker.state.redis_scripts import Scripts
from broker.state.store import Again, Claim, Kept, Put, StoreDown, StoreFailed
from broker.state.store_watch import Watch
from broker.state.vault import Vault

T = TypeVar("T")


class RedisStore:
    """A `Store`. See there what its methods promise. Make it inside the running loop."""

    def __init__(
        self,
        url: Secret,
        vault: Vault,
        clock: Clock,
        metrics: Metrics,
        spawn: Spawn,
        *,
        loop_time: LoopTime | None = None,
        timeout: float = 0.25,
        prefix: str = "token-broker",
        ca_file: str | None = None,
    ) -> None:
        """timeout: running seconds for a whole call, waiting for a connection and making one
        included. Raises ConfigError for a URL, a file or an installation that is of no use."""
        try:
            address = parse_address(url.reveal())
        except ValueError as exc:
            raise ConfigError([Fault("/state/url", str(exc))]) from None
        loop_time = loop_time or LoopTime()
        dial = dialer(address, timeout=timeout, ca_file=ca_file)
        self._link = Link(dial, timeout=timeout, loop_time=loop_time, spawn=spawn)
        self._scripts = Scripts(vault, prefix)
        self._health = Health()
        self._metrics = metrics
        self._closed = False
        self._watch = Watch(self._link, self._scripts, self._health, clock, loop_time, metrics)
        self._windows = _Windows(self._link, f"{prefix}:windows", self._count)
        self._watching = spawn(self._watch.run())

    @property
    def windows(self) -> SlidingWindowCounterSupport:
        return self._windows

    def when_back(self, again: Again) -> None:
        self._watch.again = again

    def missed(self) -> None:
        self._watch.owe("not told")

    async def get(self, names: Sequence[str]) -> list[Kept | None]:
        if not names:
            return []
        answers = await self._send("get", [self._scripts.read(name) for name in names])
        pairs = zip(names, answers, strict=True)
        return [self._scripts.opened(name, *answer) for name, answer in pairs]

    async def put(self, items: Sequence[Put]) -> list[bool]:
        if not items:
            return []
        taken = await self._send("put", [self._scripts.write(item) for item in items])
        return [bool(one) for one in taken]

    async def delete_if(self, name: str, value: bytes) -> None:
        await self._send("delete", [self._scripts.forget(name, value)])

    async def claim(self, name: str, owner: str, seconds: float) -> tuple[Claim, Kept | None]:
        command = self._scripts.claim(name, owner, seconds)
        try:
            ((mine, value, left),) = await self._send("claim", [command])
        except StoreFailed:
            raise
        except StoreDown:
            return Claim.ERROR, None
        return Claim.ACQUIRED if mine else Claim.HELD, self._scripts.opened(name, value, left)

    async def extend(self, name: str, owner: str, seconds: float) -> bool:
        try:
            (extended,) = await self._send("extend", [self._scripts.extend(name, owner, seconds)])
        except StoreDown:
            return True
        return bool(extended)

    async def release(self, name: str, owner: str) -> None:
        with contextlib.suppress(StoreDown):  # the claim ends by itself
            await self._send("release", [self._scripts.free(name, owner)])

    async def close(self) -> None:
        """Ends the watch and the connections, within the deadline."""
        self._closed = True
        self._watching.cancel()
        await asyncio.wait((self._watching,))  # which ends its own connection, within the deadline
        await self._link.close()

    async def _send(self, operation: str, commands: Sequence[Command]) -> list[Any]:
        return await self._call(operation, lambda: self._link.send(commands))

    async def _count(self, work: Callable[[], Awaitable[T]]) -> T:
        self._watch.count = self._windows.try_on
        return await self._call("hit", work)

    async def _call(self, operation: str, work: Callable[[], Awaitable[T]]) -> T:
        """Raises StoreDown at once while the operation is away, else StoreFailed for whatever goes
        wrong. Tries once more where a connection had ended, or led to a server that says it is not
        the one to ask."""
        if self._closed or self._health.is_away(operation):
            self._metrics.store_answered(operation, "down")
            raise StoreDown("down")
        if self._watch.is_settling:
            self._metrics.store_answered(operation, "down")
            raise StoreFailed("settling")
        for is_first in (True, False):
            line = self._link.line
            try:
                result = await self._link.called(work)
            except Exception as exc:  # noqa: BLE001  (also the library's own slips are no outage)
                cause = cause_of(exc)
                self._metrics.store_answered(operation, "timeout" if is_timeout(cause) else "error")
                once_more = is_first and not self._closed
                if once_more and leads_elsewhere(exc):
                    self._link.redial(line)
                    self._watch.owe("other server")
                elif not (once_more and is_broken(exc)):
                    self._watch.failed(operation, cause)
                    # not `from exc`: the library's texts repeat names and arguments
                    away = self._health.is_away(operation)
                    raise (StoreDown if away else StoreFailed)(cause) from None
            else:
                self._metrics.store_answered(operation, "ok")
                self._health.worked(operation)
                return result
        raise AssertionError("the last try returns or raises")


class _Windows(RedisStorage):
    """The library's own counters, over our client and within our deadline."""

    STORAGE_SCHEME = None  # type: ignore[assignment]

    def __init__(
        self, link: Link, prefix: str, call: Callable[[Callable[[], Awaitable[Any]]], Any]
    ) -> None:
        self._link = link
        self._call = call
        super().__init__("redis://", implementation="redispy", key_prefix=prefix)
        link.replaced = self.bridge.register_scripts

    def configure_bridge(self) -> None:
        bridge: Any = self.bridge
        bridge.storage = self._link.line.client
        bridge.connection_getter = lambda _readonly: self._link.line.client

    async def try_on(self, line: Line) -> None:
        """Counts over another line, by every command that counting needs: in a new window, and in
        one that moves on, as a window that is half as long as the next one does."""
        bridge: Any = self.bridge
        key = f"probe:{secrets.token_hex(8)}"
        names = (self._previous_window_key(key), self._current_window_key(key))
        keys = [bridge.prefixed_key(name) for name in names]
        for seconds in (1, 3):
            arguments = [1_000_000, seconds, 1]
            await bridge.lua_acquire_sliding_window(keys, arguments, client=line.client)

    async def acquire_sliding_window_entry(
        self, key: str, limit: int, expiry: int, amount: int = 1
    ) -> bool:
        hit = super().acquire_sliding_window_entry
        return bool(await self._call(lambda: hit(key, limit, expiry, amount)))

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        look = super().get_sliding_window
        window: tuple[int, float, int, float] = await self._call(lambda: look(key, expiry))
        return window

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        clear = super().clear_sliding_window
        await self._call(lambda: clear(key, expiry))
