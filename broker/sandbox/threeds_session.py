"""One session: what is known of it, and what follows from that alone.

A session never holds its card number, and nothing here may change one: that is `threeds_flow`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from broker.sandbox.threeds_outcomes import Plan, Verdict, eci_of

STATUSES: Final = (
    "pending", "processing", "challenged", "challenge_abandoned", "expired", "approved",
    "attempted", "unavailable", "declined", "rejected",
)  # fmt: skip
_GOOD: Final = ("approved", "attempted")
_UNFINISHED: Final = ("pending", "processing", "challenged")


class Proof(NamedTuple):
    """What only the merchant may see."""

    cryptogram: str
    xid: str


@dataclass(slots=True, repr=False)
class Session:
    """One authentication.  What opens a page of it cannot be guessed from what is told of it."""

    id: str
    secret: str
    transaction_id: str
    page_token: str
    acs_id: str
    ds_id: str

    base: str
    """Where its links point: the sandbox as its creator called it."""
    created_at: float
    request: Mapping[str, Any]
    plan: Plan
    scheme: str
    instrument_id: str
    fingerprint: str

    status: str = "pending"
    channel: str | None = None
    method_done: bool = False
    method_seen: bool = False
    challenged: bool | None = None
    challenged_at: float = 0.0
    verdict: Verdict | None = None
    proof: Proof | None = None
    completed: bool = False
    busy: bool = False
    """An action is under way: the real API refuses others meanwhile."""

    @property
    def hosted(self) -> bool:
        return bool(self.request["completion"]["type"] == "hosted")

    @property
    def finished(self) -> bool:
        return self.status not in _UNFINISHED

    @property
    def approved(self) -> bool:
        return self.status in _GOOD

    def completion(self, name: str) -> str | None:
        url: str | None = self.request["completion"].get(name)
        return url

    def next_actions(self) -> list[str]:
        if self.status == "challenged":
            return ["challenge_cardholder"]
        if self.status == "pending" and self.hosted:
            return ["redirect_cardholder"]
        if self.status == "pending":
            collect = ["collect_channel_data"] if self.channel is None else []
            return collect + (["issuer_fingerprint"] if self._wants_method() else [])
        can_complete = self.finished and self.status != "expired"
        return ["complete"] if can_complete and not self.completed else []

    def _wants_method(self) -> bool:
        browser = self.channel in (None, "browser")
        return browser and self.plan.has_method and not self.method_done

    def ready(self) -> bool:
        """Whether the issuer can be asked now."""
        if self.status != "pending" or self.channel is None:
            return False
        # Hosted pages see to the method themselves.
        return self.hosted or not self._wants_method()


def result_of(session: Session) -> dict[str, Any]:
    """What a callback says."""
    verdict, proof = session.verdict, session.proof
    result = {
        "session_id": session.id,
        "amount": session.request.get("amount", 0),
        "currency": session.request["currency"],
        "status": session.status,
        "authentication_type": session.request.get("authentication_type", "regular"),
        "authentication_category": category_of(session),
        "reference": session.request.get("reference"),
        "approved": session.approved,
        "protocol_version": "2.2.0",
        "response_code": (verdict and verdict.response_code) or None,
        "response_reason": verdict and verdict.response_status_reason,
        "cryptogram": proof and proof.cryptogram,
        "eci": verdict and eci_of(verdict, session.scheme),
        "xid": proof and proof.xid,
        "cardholder_info": verdict and verdict.cardholder_info,
        "challenged": session.challenged,
    }
    return {name: value for name, value in result.items() if value is not None}


def category_of(session: Session) -> str:
    """Without an amount there is nothing to pay."""
    default = "payment" if "amount" in session.request else "non_payment"
    return str(session.request.get("authentication_category", default))
