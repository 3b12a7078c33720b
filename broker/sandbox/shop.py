"""Where a hosted page sends the cardholder back to: the shop, which believes nothing of it.

What stands in the address proves nothing, and is not shown; the shop asks its own backend.
"""

from typing import Final

from broker.sandbox.exchange import Call, Reply
from broker.sandbox.threeds_html import page

_TOLD: Final = {
    "success": "Thank you. The shop now asks its backend how the authentication ended.",
    "failure": "That did not work. The shop now asks its backend how the authentication ended.",
}


def back(call: Call) -> Reply:
    told = _TOLD.get(call.path_parameter("outcome"))
    if told is None:
        return page(404, "No such page", "<p>The shop has no such page.</p>")
    return page(200, "Back in the shop", f"<p>{told}</p>")
