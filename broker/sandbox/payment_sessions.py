"""Flow: payment sessions, which a backend creates and a browser component takes in whole.

The answer is made to betray a client that reads it instead of passing it on: it has members that
no published schema knows, of the kinds that a parse and a dump do not survive.  No answer may
tell when its session expires.
"""

import base64
import hmac
import json
import uuid
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from broker.sandbox.checkout import Checkout
from broker.sandbox.clock import SandboxClock
from broker.sandbox.complaints import INVALID, complaint, json_object, stamps, wrong_scope
from broker.sandbox.exchange import Call, Reply, as_json
from broker.sandbox.payment_request import faults_of, instant
from broker.sandbox.settings import SandboxSettings

_SCOPE = "payment-sessions"
_REMEMBERED = 4096
"""Sessions kept; the oldest is forgotten first, so that a benchmark cannot fill the memory."""

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"

_UNPUBLISHED = (
    '"amount_display":1.10,"ledger_sequence":36893488147419103233,"tiny":-0.0,"precise":1.0E+2,'
    '"merchant_name":"Zoë & Café ☕ 東京 \U0001f6d2","merchant_slug":"Caf\\u00e9\\/1","mode":null,'
    '"x-flow.experiments/ab~test":{"arm-1":{},"weights":[0.10,[],null,true]},'
    '"payment_methods":[{"type":"card","card_schemes":["Visa","Mastercard"]},{"type":"googlepay"}],'
    '"feature_flags":{}, "" : [ ]'
)
"""JSON text and not a value: each spelling is the point."""

_OUTCOMES: dict[str, tuple[int, dict[str, Any]]] = {
    "sandbox-approved": (201, {"status": "Approved", "type": "card"}),
    "sandbox-declined": (
        201,
        {"status": "Declined", "type": "card", "decline_reason": "insufficient_funds"},
    ),
    "sandbox-action-required": (
        202,
        {
            "status": "Action Required",
            "type": "card",
            "action": {"type": "redirect", "url": "https://acs.example.test/challenge"},
        },
    ),
}
"""What each session_data brings; anything else is no session_data of ours."""


class PaymentSessions:
    """Two endpoints, and as much memory as the second needs of the first."""

    def __init__(
        self,
        settings: SandboxSettings,
        clock: SandboxClock,
        checkout: Checkout,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._checkout = checkout
        self._random_bytes = random_bytes
        self._expiries: OrderedDict[str, float] = OrderedDict()

    def create(self, call: Call) -> Reply:
        self._authorise(call)
        request = json_object(call)
        now = self._clock.now()
        faults = faults_of(request, now)
        if faults:
            raise complaint(422, INVALID, *faults)
        session_id = f"ps_{self._word(_BASE62, 27)}"
        expires_on = request.get("expires_on")
        lifetime = self._settings.checkout_payment_session_seconds
        self._remember(session_id, now + lifetime if expires_on is None else instant(expires_on))
        published = json.dumps(self._published(call, session_id))
        # The members of no schema stand among the others, not after them.
        body = f"{{{_UNPUBLISHED},{published[1:]}"
        return Reply(201, b"application/json", body.encode(), stamps())

    def submit(self, call: Call) -> Reply:
        self._authorise(call)
        session_id = str(call.scope["path_params"]["id"])
        expires_at = self._expiries.get(session_id)
        if expires_at is None:
            raise complaint(404, "not_found", "payment_session_not_found")
        session_data = json_object(call).get("session_data")
        if session_data in (None, ""):
            raise complaint(422, INVALID, "session_data_required")
        if expires_at <= self._clock.now():
            # A guess: neither status nor code of an expired session is published.
            raise complaint(422, INVALID, "payment_session_expired")
        if not isinstance(session_data, str) or session_data not in _OUTCOMES:
            raise complaint(422, INVALID, "session_data_invalid")
        status, outcome = _OUTCOMES[session_data]
        payment = {"id": f"pay_{self._word(_BASE32, 26)}", **outcome}
        return as_json(status, payment, *stamps())

    def _authorise(self, call: Call) -> None:
        sent = (call.bearer() or "").encode()
        keys = self._settings.checkout_secret_keys
        if any(hmac.compare_digest(sent, key.encode()) for key in keys):
            return
        if _SCOPE not in self._checkout.authorised_scopes(call):
            raise wrong_scope()

    def _published(self, call: Call, session_id: str) -> dict[str, Any]:
        base = call.base_url(self._settings.issuer_base_url)
        inside = json.dumps({"id": session_id, "nonce": self._word(_BASE62, 12)}).encode()
        return {
            "id": session_id,
            "payment_session_secret": f"pss_{uuid.UUID(bytes=self._random_bytes(16), version=4)}",
            # The colon and the prefix (itself "base64" in base64) are the real one's.
            "payment_session_token": f"YmFzZTY0:{base64.b64encode(inside).decode()}",
            "_links": {"self": {"href": f"{base}/checkout/api/payment-sessions/{session_id}"}},
        }

    def _remember(self, session_id: str, expires_at: float) -> None:
        self._expiries[session_id] = expires_at
        if len(self._expiries) > _REMEMBERED:
            self._expiries.popitem(last=False)

    def _word(self, alphabet: str, length: int) -> str:
        return "".join(alphabet[byte % len(alphabet)] for byte in self._random_bytes(length))
