"""The vendor's side of a component: the script that a shop embeds, and the API that it reads.

Open to scripts of any origin, as at the real one, since the session token is what opens it.  Its
rows are made up from the merchant and the time; it must never hold any that are real.
"""

import hashlib
from importlib import resources
from typing import Final

from broker.sandbox.clock import SandboxClock, rfc3339
from broker.sandbox.exchange import NO_STORE, Call, RefusedError, Reply, as_json
from broker.sandbox.opaque import OpaqueTokens

_EVERY: Final = 20
"""Seconds between two transactions: a report that stands still would look like one that broke."""
_SHOWN: Final = 8
_BRANDS: Final = ("Visa", "Mastercard", "Amex", "Discover")


class NmiReport:
    """What the browser of a shop's user fetches from NMI itself."""

    def __init__(self, clock: SandboxClock, tokens: OpaqueTokens) -> None:
        self._clock = clock
        self._tokens = tokens
        script = (resources.files("broker.sandbox") / "embed" / "report.js").read_bytes()
        headers = (
            (b"cache-control", b"no-cache"),
            (b"cross-origin-resource-policy", b"cross-origin"),
            (b"x-content-type-options", b"nosniff"),
        )
        self._script = Reply(200, b"text/javascript; charset=utf-8", script, headers)

    def script(self, call: Call) -> Reply:
        return self._script

    def transactions(self, call: Call) -> Reply:
        opened = self._tokens.open(call.bearer() or "")
        if opened is None:
            reason = "session token is missing, unknown, expired or revoked"
            challenge = (b"www-authenticate", b"Bearer")
            raise RefusedError(as_json(401, {"error": reason}, challenge, *NO_STORE))
        merchant = opened[1][1]
        newest = int(self._clock.now()) // _EVERY
        rows = [_row(merchant, slot, newest) for slot in range(newest, newest - _SHOWN, -1)]
        return as_json(200, {"merchant_id": merchant or None, "rows": rows}, *NO_STORE)


def _row(merchant: str, slot: int, newest: int) -> dict[str, str]:
    drawn = hashlib.sha256(f"{merchant}/{slot}".encode(errors="replace")).digest()
    cents = 100 + int.from_bytes(drawn[:2], "big")
    settled = "declined" if drawn[2] % 8 == 0 else "settled"
    last_four = int.from_bytes(drawn[4:6], "big") % 10_000
    return {
        "id": f"txn_{drawn.hex()[:12]}",
        "at": rfc3339(slot * _EVERY),
        "amount": f"{cents // 100}.{cents % 100:02}",
        "currency": "USD",
        "card": f"{_BRANDS[drawn[3] % len(_BRANDS)]} {last_four:04}",
        "status": "pending" if slot == newest else settled,
    }
