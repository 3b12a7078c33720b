"""Files that are served as they are: the browser's module, and the pages of the demo.

Read once, at start; what an answer needs is ready then. Which file is asked for is found by looking
its whole path up among those that were read: a request's path never becomes a file's. Must not hold
anything that is not for everybody.
"""

from __future__ import annotations

import base64
import gzip
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
_PACKED = re.compile(
    rb"(?:^|[\s,])gzip(?!\s*;\s*q=0(?:\.0*)?\s*(?:,|$))(?=[\s;,]|$)", re.IGNORECASE
)
_TAG = re.compile(rb'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


class Static:
    """One file's bytes with the answers that there are: all of it, packed or not, or that it is the
    same."""

    def __init__(self, body: bytes, suffix: str, *headers: Header) -> None:
        """suffix: one of KINDS. headers: what each answer has."""
        self.body = body
        self.packed = gzip.compress(body, 9, mtime=0)
        self.integrity = "sha384-" + base64.b64encode(hashlib.sha384(body).digest()).decode()
        self.etag, self.packed_etag = _tag(body), _tag(self.packed)
        shared = (*headers, (b"vary", b"accept-encoding"))
        whole = [(b"content-type", KINDS[suffix]), *shared, (b"etag", self.etag)]
        packed = [*whole[:-1], (b"content-encoding", b"gzip"), (b"etag", self.packed_etag)]
        self._plain = Reply(200, body, whole), Reply(304, headers=whole[1:])
        self._gzip = (
            Reply(200, self.packed, packed),
            Reply(304, headers=[*shared, (b"etag", self.packed_etag)]),
        )

    async def answer(self, scope: Scope, _receive: Receive, _record: Record) -> Reply:
        """For GET and HEAD (RFC 9110 §12.5.3, §13.1.2). The replies are shared: nobody changes
        them."""
        fields = scope["fields"]
        wants = _PACKED.search(fields.get(b"accept-encoding", b""))
        whole, unchanged = self._gzip if wants else self._plain
        held: bytes | None = fields.get(b"if-none-match")
        return unchanged if held is not None and self.is_named(held) else whole

    def is_named(self, tags: bytes) -> bool:
        """Is this the version of an If-None-Match, which compares weakly? Packed or not, it is."""
        named = _TAG.findall(tags)
        return tags.strip() == b"*" or self.etag in named or self.packed_etag in named


def _tag(body: bytes) -> bytes:
    return b'"' + base64.urlsafe_b64encode(hashlib.sha256(body).digest()[:18]) + b'"'


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
