"""The login page of the development identity provider: a plain form, in light and dark.

Everything shown comes escaped, and nothing runs: the policy allows one style sheet and no script.
"""

from collections.abc import Mapping
from html import escape
from importlib import resources
from itertools import islice
from typing import Final

from broker.sandbox.exchange import NO_STORE, Call, Reply

STYLE_PATH: Final = "/idp/login.css"
_MOST: Final = 12
"""People on one page; the benchmarks know thousands."""

_HEADERS: Final = (
    *NO_STORE,
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class Style:
    """The page's style sheet, read once."""

    def __init__(self) -> None:
        sheet = (resources.files("broker.sandbox") / "embed" / "login.css").read_bytes()
        headers = ((b"cache-control", b"no-cache"), (b"x-content-type-options", b"nosniff"))
        self._reply = Reply(200, b"text/css; charset=utf-8", sheet, headers)

    def sheet(self, call: Call) -> Reply:
        return self._reply


def choice(people: Mapping[str, Mapping[str, object]], origin: str) -> Reply:
    """Who may log in, a button each.  The form has no action: it goes back to its own address."""
    buttons = "".join(
        f'<button type="submit" name="user" value="{escape(user)}">'
        f"Sign in as {escape(_described(user, claims))}</button>"
        for user, claims in islice(people.items(), _MOST)
    )
    body = (
        "<p>This is a development identity provider. It asks for no password.</p>"
        f'<form method="post">{buttons}</form>'
        f"<p>Afterwards you are back at <strong>{escape(origin)}</strong>.</p>"
    )
    # Browsers count the redirect that answers a form as part of where the form leads.
    return _page(200, "Sign in", body, forms_to=f"'self' {origin}")


def notice(status: int, title: str, sentence: str) -> Reply:
    return _page(status, title, f"<p>{escape(sentence)}</p>", forms_to="'none'")


def _described(user: str, claims: Mapping[str, object]) -> str:
    """`Ada, owner of 100200300`."""
    role, merchant = claims.get("role"), claims.get("merchant_id")
    name = user.capitalize()
    if role is None:
        return name
    return f"{name}, {role} of {merchant}" if merchant else f"{name}, {role}"


def _page(status: int, title: str, body: str, *, forms_to: str) -> Reply:
    policy = (
        "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'; "
        f"form-action {forms_to}; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    text = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        '</title><meta name="viewport" content="width=device-width">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="stylesheet" href="{STYLE_PATH}"></head>'
        f"<body><main><h1>{escape(title)}</h1>{body}</main></body></html>"
    )
    headers = (*_HEADERS, (b"content-security-policy", policy.encode()))
    return Reply(status, b"text/html; charset=utf-8", text.encode(errors="replace"), headers)
