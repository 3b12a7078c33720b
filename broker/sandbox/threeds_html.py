"""The pages that a cardholder sees: the issuer's and the payment page's.

No secret and no card number is ever in one.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from broker.sandbox.exchange import Reply
from broker.sandbox.html_page import form, page

_SUBMIT: Final = "document.forms[0].submit()"
_FILL: Final = """
const f = document.forms[0].elements, s = window.screen;
f.javascript_enabled.value = "true";
f.language.value = navigator.language.slice(0, 12);
f.color_depth.value = String(s.colorDepth);
f.screen_height.value = String(s.height);
f.screen_width.value = String(s.width);
f.timezone.value = String(new Date().getTimezoneOffset());
"""
_ANSWERS: Final = (("approve", "Approve"), ("fail", "Fail"), ("cancel", "Cancel"))


def posting_on(title: str, url: str, fields: Mapping[str, str]) -> Reply:
    """A page that posts `fields` to `url`, by itself where it may."""
    body = form(url, fields, '<button type="submit">Continue</button>')
    return page(200, title, body, forms_to=(url,), script=_SUBMIT)


def challenge(
    merchant: str, amount: str, fields: Mapping[str, str], leads_to: Sequence[str | None]
) -> Reply:
    buttons = " ".join(
        f'<button type="submit" name="answer" value="{value}">{label}</button>'
        for value, label in _ANSWERS
    )
    body = (
        f"<p>Sandbox Bank asks: did you mean to pay <strong>{escape(amount)}</strong> to "
        f"<strong>{escape(merchant)}</strong>?</p>"
        + form("/checkout/acs/challenge/answer", fields, buttons)
    )
    return page(200, "Confirm your payment", body, forms_to=leads_to)


def browser_data(
    merchant: str, amount: str, defaults: Mapping[str, str], leads_to: Sequence[str | None]
) -> Reply:
    """The hosted page.  Its form has no action: it goes back to the address it came from."""
    body = f"<p>Pay <strong>{escape(amount)}</strong> to <strong>{escape(merchant)}</strong>.</p>"
    body += form(None, defaults, '<button type="submit">Continue</button>')
    return page(
        200, "Authenticate your payment", body, forms_to=leads_to, script=_FILL, framed=False
    )
