"""Files that are served as they are: the browser's module, and the pages of the demo.

Read once, at start; what an answer needs is ready then. Which file is asked for is found by looking
its whole path up among those that were read: a request's path never becomes a file's. Must not hold
anything that is not for everybody.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from starlette.types import Receive, Scope

from broker.audit import Record
from broker.wire import Header, Reply

ANY_ORIGIN: Header = (b"access-control-allow-origin", b"*")
"""For what is the same for everybody and tells of nobody. Never beside anything else."""
CLIENT = Path(__file__).parent / "client"
"""The browser's module: no Python in it."""
KINDS = {
    ".css": b"text/css; charset=utf-8",
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".json": b"application/json",
    ".svg": b"image/svg+xml",
    ".ts": b"text/plain; charset=utf-8",
}
"""Content types by suffix. What has another suffix is not served."""
_TAG = re.compile(rb'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


class Static:
    """One file's bytes with the two answers that there are: all of it, or that it is the same."""

    def __init__(self, body: bytes, suffix: str, *headers: Header) -> None:
        """suffix: one of KINDS. headers: what each answer has."""
        self.body = body
        self.etag = _base64(hashlib.sha256(body).digest()[:18], quoted=True)
        self.integrity = "sha384-" + _base64(hashlib.sha384(body).digest()).decode()
        same = [(b"etag", self.etag), *headers]
        self._whole = Reply(200, body, [(b"content-type", KINDS[suffix]), *same])
        self._unchanged = Reply(304, headers=same)

    async def answer(self, scope: Scope, _receive: Receive, _record: Record) -> Reply:
        """For GET and HEAD (RFC 9110 §13.1.2). The replies are shared: nobody changes them."""
        held: bytes | None = scope["fields"].get(b"if-none-match")
        return self._unchanged if held is not None and self.is_named(held) else self._whole

    def is_named(self, tags: bytes) -> bool:
        """Is this the version of an If-None-Match, which compares weakly?"""
        return tags.strip() == b"*" or self.etag in _TAG.findall(tags)


def _base64(raw: bytes, *, quoted: bool = False) -> bytes:
    return b'"' + base64.urlsafe_b64encode(raw) + b'"' if quoted else base64.b64encode(raw)


def client_files() -> Mapping[str, Static]:
    """The browser's module and its types, by path. They are public, and load from any page, a frame
    without an origin included."""
    headers = (
        (b"cache-control", b"max-age=300"),
        ANY_ORIGIN,
        (b"cross-origin-resource-policy", b"cross-origin"),
    )
    files = [CLIENT / "client.js", CLIENT / "client.d.ts"]
    return {f"/v1/{file.name}": Static(file.read_bytes(), file.suffix, *headers) for file in files}
