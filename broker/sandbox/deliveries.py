"""What Checkout.com sends of its own accord: callbacks of sessions, and signed webhooks.

At least once, in no order, and tried again on a schedule.  Nothing but this machine is ever
contacted: the sandbox takes addresses from whoever asks.  A failed delivery may never fail the
sandbox; bodies hold cryptograms and are never listed.
"""

import asyncio
import hmac
import ipaddress
import json
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import httpx2

from broker.sandbox.clock import SandboxClock, rfc3339
from broker.sandbox.settings import SandboxSettings

_KEPT: Final = 1000
"""Attempts and events that are remembered; older ones are forgotten."""


class _Parcel(NamedTuple):
    url: str
    kind: str
    event_id: str
    body: bytes
    headers: Mapping[str, str]


class Deliveries:
    """The post office: `callback` waits for its answer, `publish` does not."""

    def __init__(self, settings: SandboxSettings, clock: SandboxClock) -> None:
        self._clock = clock
        self._schedule = settings.checkout_delivery_retries
        self._timeout = settings.checkout_delivery_timeout
        self.targets = dict(settings.checkout_webhooks)
        self._events: OrderedDict[str, tuple[str, bytes]] = OrderedDict()
        self._attempts: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._tasks: set[asyncio.Task[bool]] = set()
        self._client: httpx2.AsyncClient | None = None

    def attempts(self) -> list[dict[str, Any]]:
        return list(self._attempts)

    def publish(self, kind: str, event: Mapping[str, Any]) -> None:
        """A webhook to every target; `event` has its id."""
        event_id = str(event["id"])
        self._events[event_id] = (kind, json.dumps(event).encode())
        if len(self._events) > _KEPT:
            self._events.popitem(last=False)
        self.redeliver(event_id)

    def redeliver(self, event_id: str) -> bool:
        """Sends an event (again); false when it is not known."""
        found = self._events.get(event_id)
        if found is None:
            return False
        kind, body = found
        for url, key in self.targets.items():
            headers = {"cko-signature": hmac.digest(key.encode(), body, "sha256").hex()}
            self._in_background(_Parcel(url, kind, event_id, body, headers))
        return True

    async def callback(self, url: str, session_id: str, result: Mapping[str, Any]) -> bool:
        """Whether the callback was accepted, sooner or later.  It is not signed."""
        return await self._deliver(_callback(url, session_id, result))

    def callback_later(self, url: str, session_id: str, result: Mapping[str, Any]) -> None:
        self._in_background(_callback(url, session_id, result))

    async def close(self) -> None:
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _in_background(self, parcel: _Parcel) -> None:
        task = asyncio.create_task(self._deliver(parcel))
        # The loop keeps only weak references to its tasks.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, parcel: _Parcel) -> bool:
        if not is_here(parcel.url):
            self._note(parcel, "refused: not on this machine")
            return False
        for pause in (0.0, *self._schedule):
            await asyncio.sleep(pause)
            status = await self._send(parcel)
            self._note(parcel, status)
            if isinstance(status, int) and 200 <= status < 300:
                return True
        return False

    async def _send(self, parcel: _Parcel) -> int | str:
        headers = {"content-type": "application/json", **parcel.headers}
        try:
            answer = await self._http().post(parcel.url, content=parcel.body, headers=headers)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            return type(error).__name__
        return answer.status_code

    def _http(self) -> httpx2.AsyncClient:
        if self._client is None:
            self._client = httpx2.AsyncClient(
                # Only this machine is contacted (see is_here), under whatever certificate.
                verify=False,
                trust_env=False,
                timeout=self._timeout,
                follow_redirects=False,
            )
        return self._client

    def _note(self, parcel: _Parcel, status: int | str) -> None:
        self._attempts.append(
            {
                # Never the query: people put keys there.
                "path": urlsplit(parcel.url).path,
                "kind": parcel.kind,
                "event_id": parcel.event_id,
                "status": status,
                "at": rfc3339(int(self._clock.now())),
            }
        )


def _callback(url: str, session_id: str, result: Mapping[str, Any]) -> _Parcel:
    return _Parcel(url, "callback", session_id, json.dumps(result).encode(), {})


def is_here(url: str) -> bool:
    """Whether `url` names this machine: loopback by address, or `localhost`."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme not in ("http", "https"):
            return False
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
