"""The pages that people see, as HTML: plain forms that work without JavaScript.

Everything shown comes escaped, and nothing runs or looks but what the policy names by its digest.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final
from urllib.parse import quote, urlsplit

from broker.sandbox.exchange import NO_STORE, Reply

_STYLE: Final = """
:root { color-scheme: light dark; --line: #7e879c; --quiet: #555e73; --strong: #0a5c55; }
@media (prefers-color-scheme: dark) {
  :root { --line: #727d96; --quiet: #a5aec2; --strong: #6fd6c6; }
}
body { margin: 0; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
main { box-sizing: border-box; max-width: 30rem; margin: 0 auto; padding: 1.25rem 1.5rem; }
h1 { margin: 0 0 0.75rem; font-size: 1.25rem; color: var(--strong); }
p { margin: 0 0 1.25rem; color: var(--quiet); }
strong { color: CanvasText; }
button {
  margin: 0 0.25rem 0.5rem 0; padding: 0.5rem 1rem; border: 1px solid var(--line);
  border-radius: 0.5rem; background: transparent; color: inherit; font: inherit; cursor: pointer;
}
button:first-of-type { border-color: var(--strong); background: var(--strong); color: Canvas; }
:focus-visible { outline: 3px solid var(--strong); outline-offset: 2px; }
"""


def _digest(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def page(
    status: int,
    title: str,
    body: str,
    *,
    forms_to: Sequence[str | None] | None = (),
    style: str = _STYLE,
    script: str | None = None,
    framed: bool = True,
) -> Reply:
    """`forms_to`: URLs that its forms may lead to, besides this server; browsers count redirects,
    too.  None: it has no forms."""
    leads = ["'none'"] if forms_to is None else ["'self'", *map(_origin, filter(None, forms_to))]
    policy = ["default-src 'none'", "base-uri 'none'"]
    policy.append(" ".join(["form-action", *dict.fromkeys(leads)]))
    policy.append(f"style-src {_digest(style)}")
    policy.append("require-trusted-types-for 'script'; trusted-types 'none'")
    if script is not None:
        policy.append(f"script-src {_digest(script)}")
    if not framed:
        policy.append("frame-ancestors 'none'")
    tail = "" if script is None else f"<script>{script}</script>"
    text = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        '</title><meta name="viewport" content="width=device-width">'
        f"<style>{style}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{body}</main>{tail}</body></html>"
    )
    headers = (
        *NO_STORE,
        (b"content-security-policy", "; ".join(policy).encode()),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
    )
    return Reply(status, b"text/html; charset=utf-8", text.encode(errors="replace"), headers)


def notice(status: int, title: str, sentence: str) -> Reply:
    return page(status, title, f"<p>{escape(sentence)}</p>")


def see_other(url: str) -> Reply:
    location = quote(url, safe="%/:=&?~#+!$,;'@()*[]").encode()
    return Reply(303, headers=(*NO_STORE, (b"location", location)))


def form(action: str | None, fields: Mapping[str, str], inside: str) -> str:
    target = "" if action is None else f' action="{escape(action)}"'
    hidden = "".join(
        f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">'
        for name, value in fields.items()
    )
    return f'<form method="post"{target}>{hidden}{inside}</form>'


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
