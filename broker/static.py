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
_LONGEST = 1024
"""Bytes of a field that are looked into: nobody here is known, and to look costs time."""
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
        shared = [*headers, (b"vary", b"accept-encoding")]
        kind = (b"content-type", KINDS[suffix])
        self.plain = _Form(body, [kind], shared)
        self.gzip = _Form(self.packed, [kind, (b"content-encoding", b"gzip")], shared)

    async def answer(self, scope: Scope, _receive: Receive, _record: Record) -> Reply:
        """For GET and HEAD (RFC 9110 §12.5.3, §13.1.2). The replies are shared: nobody changes
        them."""
        fields = scope["fields"]
        wants = _PACKED.search(fields.get(b"accept-encoding", b"")[:_LONGEST])
        form = self.gzip if wants else self.plain
        held: bytes | None = fields.get(b"if-none-match")
        return form.unchanged if held is not None and names(held, form.etag) else form.whole


class _Form:
    """A representation (RFC 9110 §3.2): its tag, itself, and that it is the same."""

    def __init__(self, body: bytes, own: list[Header], shared: list[Header]) -> None:
        """own: headers of the whole only."""
        digest = base64.urlsafe_b64encode(hashlib.sha256(body).digest()[:18])
        self.etag = b'"' + digest + b'"'
        same = [(b"etag", self.etag), *shared]
        self.whole = Reply(200, body, [*own, *same])
        self.unchanged = Reply(304, headers=same)


def names(tags: bytes, etag: bytes) -> bool:
    """Does an If-None-Match, which compares weakly, name this version?"""
    return tags.strip() == b"*" or etag in _TAG.findall(tags[:_LONGEST])


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
