"""The shop's server, as far as a cardholder's browser sees it: where hosted pages, the issuer's
challenge and its 3DS method lead back to.

What stands in the address or is posted proves nothing, is not read and not shown: the page is told
that somebody is back, and asks its own backend.
"""

from typing import Final

from broker.sandbox.exchange import Call, Reply
from broker.sandbox.html_page import page

_TOLD: Final = {
    "success": "Thank you. The shop now asks its backend how the authentication ended.",
    "failure": "That did not work. The shop now asks its backend how the authentication ended.",
    "3ds-return": "Thank you. The shop now asks its backend how the authentication ended.",
}
_TELL: Final = """
const to = new URLSearchParams(location.search).get("to");
const page = window.opener ?? (window.parent === window ? null : window.parent);
if (to && page) page.postMessage("3ds-return", to);
if (to && window.opener) window.close();
"""
"""To the page of the origin that the address names (the shop wrote it there), and to no other."""


def back(call: Call) -> Reply:
    told = _TOLD.get(call.path_parameter("outcome"))
    if told is None:
        return page(404, "No such page", "<p>The shop has no such page.</p>")
    return page(200, "Back in the shop", f"<p>{told}</p>", script=_TELL)
