"""The sandbox's idea of the time: a given clock, plus a skew that can be set while it runs.

A server whose clock is wrong is wrong everywhere, in the Date header as in its expiries, so
nothing in the sandbox may read the time except from here.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import formatdate


class SandboxClock:
    """Epoch seconds, and the two ways of writing them that the upstreams use."""

    __slots__ = ("_date", "_date_second", "_source", "skew")

    def __init__(self, source: Callable[[], float]) -> None:
        self._source = source
        self._date = b""
        self._date_second = -1
        self.skew = 0.0

    def now(self) -> float:
        return self._source() + self.skew

    def date_header(self) -> bytes:
        # Formatted once per second of sandbox time: it is sent with every answer.
        second = int(self.now())
        if second != self._date_second:
            self._date = http_date(second).encode("ascii")
            self._date_second = second
        return self._date


def http_date(epoch: float) -> str:
    return formatdate(epoch, usegmt=True)


def rfc3339(epoch: int) -> str:
    return datetime.fromtimestamp(epoch, UTC).isoformat()[:-6] + "Z"
