"""The login page of the development identity provider: a plain form, in light and dark."""

from collections.abc import Mapping
from html import escape
from importlib import resources
from itertools import islice
from typing import Final

from broker.sandbox.exchange import Reply
from broker.sandbox.html_page import form, page

_STYLE: Final = (resources.files("broker.sandbox") / "embed" / "login.css").read_text("utf-8")
_MOST: Final = 12
"""People on one page; the benchmarks know thousands."""


def choice(people: Mapping[str, Mapping[str, object]], origin: str) -> Reply:
    """Who may log in, a button each.  The form has no action: it goes back to its own address."""
    buttons = "".join(
        f'<button type="submit" name="user" value="{escape(user)}">'
        f"Sign in as {escape(_described(user, claims))}</button>"
        for user, claims in islice(people.items(), _MOST)
    )
    body = (
        "<p>This is a development identity provider. It asks for no password.</p>"
        + form(None, {}, buttons)
        + f"<p>Afterwards you are back at <strong>{escape(origin)}</strong>.</p>"
    )
    return page(200, "Sign in", body, forms_to=[origin], style=_STYLE, framed=False)


def notice(status: int, title: str, sentence: str) -> Reply:
    body = f"<p>{escape(sentence)}</p>"
    return page(status, title, body, forms_to=None, style=_STYLE, framed=False)


def _described(user: str, claims: Mapping[str, object]) -> str:
    """`Ada, owner of 100200300`."""
    role, merchant = claims.get("role"), claims.get("merchant_id")
    name = user.capitalize()
    if role is None:
        return name
    return f"{name}, {role} of {merchant}" if merchant else f"{name}, {role}"
