"""What happens to sessions: every step, every expiry, and who is told of it.

Every change of a session happens here, between two awaits at the most, and expiry is noticed
whenever one is looked at.  Nothing here may know HTTP.
"""

import base64
import hmac
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

from broker.sandbox.clock import SandboxClock, rfc3339
from broker.sandbox.deliveries import Deliveries
from broker.sandbox.settings import SandboxSettings
from broker.sandbox.threeds_outcomes import VERDICTS, Plan, Verdict, scheme_of, source_value
from broker.sandbox.threeds_session import Proof, Session, result_of

_FORCED: Final[Mapping[str, str]] = {
    "challenged": "challenge",
    "challenge_abandoned": "cancel",
    "expired": "lapse",
    "approved": "approve",
    "attempted": "attempt",
    "unavailable": "unavailable",
    "declined": "fail",
    "rejected": "reject",
}
_KEPT_OF_REQUEST: Final = (
    "amount", "currency", "authentication_type", "authentication_category", "challenge_indicator",
    "transaction_type", "reference", "billing_descriptor", "completion",
)  # fmt: skip


class WrongStateError(Exception):
    """The session is not waiting for this."""


class Sessions:
    """All sessions, and the only hand that changes them."""

    def __init__(
        self,
        settings: SandboxSettings,
        clock: SandboxClock,
        deliveries: Deliveries,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._deliveries = deliveries
        self._random_bytes = random_bytes
        self._key = random_bytes(32)
        self._by_id: OrderedDict[str, Session] = OrderedDict()
        self._by_key: dict[tuple[str, str], Session] = {}

    def create(self, request: Mapping[str, Any], plan: Plan, base: str) -> Session:
        source, completion = request["source"], request["completion"]
        session = Session(
            id=f"sid_{self._name(16)}",
            # 32 bytes: 44 characters, of which the last is always a `=`, as in the wild.
            secret="sek_" + base64.b64encode(self._random_bytes(32)).decode(),
            transaction_id=self._uuid(),
            page_token=self._name(20),
            acs_id=self._uuid(),
            ds_id=self._uuid(),
            base=base,
            created_at=self._clock.now(),
            request={k: request[k] for k in _KEPT_OF_REQUEST if request.get(k) is not None},
            plan=plan,
            scheme=scheme_of(source),
            instrument_id=source["id"] if source["type"] == "id" else f"src_{self._name(16)}",
            fingerprint=_name_of(self._digest(source_value(source))),
        )
        self._keep(session)
        self._publish("authentication_started", session)
        channel_data = request.get("channel_data")
        # Hosted pages collect for themselves; the real API answers 202 all the same.
        if channel_data is not None and completion["type"] != "hosted":
            self.collect(session, channel_data)
        return session

    def by_id(self, session_id: str) -> Session | None:
        return self._up_to_date(self._by_id.get(session_id))

    def by_key(self, kind: str, key: str) -> Session | None:
        """By what a page has of it: its `page` token, or the id that `acs` or `method` know."""
        return self._up_to_date(self._by_key.get((kind, key)))

    def collect(self, session: Session, channel_data: Mapping[str, Any]) -> None:
        if session.status != "pending" or session.channel is not None:
            raise WrongStateError
        session.channel = channel_data["channel"]
        # The official SDKs always send a U: it is the default, and answers nothing.
        if channel_data.get("three_ds_method_completion") in ("Y", "N"):
            session.method_done = True
        self._advance(session)

    def fingerprint(self, session: Session) -> None:
        if session.status != "pending" or session.method_done:
            raise WrongStateError
        if session.hosted:
            # Without effect, says a live test of the .NET SDK: the hosted page sees to it.
            return
        session.method_done = True
        self._advance(session)

    def answer_challenge(self, session: Session, answer: str) -> None:
        """`answer` is approve, fail or cancel."""
        if session.status != "challenged":
            raise WrongStateError
        self._conclude(session, VERDICTS[answer])

    async def complete(self, session: Session) -> bool:
        """Whether the callback, if there is one, was accepted."""
        if "complete" not in session.next_actions():
            raise WrongStateError
        session.busy = True
        try:
            url = session.completion("callback_url")
            result = result_of(session)
            return url is None or await self._deliveries.callback(url, session.id, result)
        finally:
            session.completed = True
            session.busy = False

    def force(self, session: Session, status: str) -> None:
        """For tests: as if the rest of the world had done it."""
        session.completed = False
        late = status == "expired" and session.status == "challenged"
        if status in _FORCED:
            self._conclude(session, VERDICTS["timeout" if late else _FORCED[status]])
        else:
            session.status, session.verdict, session.proof = status, None, None

    def secret_is_live(self, session: Session) -> bool:
        return self._clock.now() < session.created_at + self._settings.checkout_secret_seconds

    def now(self) -> float:
        return self._clock.now()

    def _advance(self, session: Session) -> None:
        if not session.ready():
            return
        outcome = session.plan.outcome
        if outcome == "challenge" and session.channel == "merchant_initiated":
            outcome = "challenge-without-cardholder"
        if session.hosted and session.channel == "app":
            # As a live test of the .NET SDK found it.
            outcome = "unavailable"
        self._conclude(session, VERDICTS[outcome])

    def _conclude(self, session: Session, verdict: Verdict) -> None:
        session.status, session.verdict = verdict.status, verdict
        if verdict.status == "challenged":
            session.challenged, session.challenged_at = True, self._clock.now()
            return
        session.challenged = bool(session.challenged)
        session.proof = Proof(self._base64(20), self._base64(20)) if verdict.eci else None
        if session.hosted:
            session.completed = True
            if url := session.completion("callback_url"):
                self._deliveries.callback_later(url, session.id, result_of(session))
        if verdict.status == "expired":
            reason = "ChallengeExpired" if session.challenged else None
            self._publish("authentication_expired", session, reason)
        else:
            told = "approved" if session.approved else "failed"
            self._publish(f"authentication_{told}", session, verdict.status_reason)

    def _up_to_date(self, session: Session | None) -> Session | None:
        if session is not None and not session.finished:
            limit, since = self._settings.checkout_session_seconds, session.created_at
            late = "lapse"
            if session.status == "challenged":
                limit, since = self._settings.checkout_challenge_seconds, session.challenged_at
                late = "timeout"
            if self._clock.now() >= since + limit:
                self._conclude(session, VERDICTS[late])
        return session

    def _keep(self, session: Session) -> None:
        self._by_id[session.id] = session
        for key in _keys_of(session):
            self._by_key[key] = session
        if len(self._by_id) > self._settings.checkout_sessions_kept:
            _, oldest = self._by_id.popitem(last=False)
            for key in _keys_of(oldest):
                self._by_key.pop(key, None)

    def _publish(self, kind: str, session: Session, reason: str | None = None) -> None:
        if not self._deliveries.targets:
            return
        event_id = f"evt_{self._name(16)}"
        result = result_of(session)
        told = ("session_id", "currency", "response_code", "eci", "xid", "reference")
        data = {name: result[name] for name in told if name in result}
        if reason is not None:
            data["reason"] = reason
        event = {
            "id": event_id,
            "type": kind,
            "version": "1.0.0",
            "created_on": rfc3339(int(self._clock.now())),
            # A string here and an integer everywhere else, as in the wild.
            "data": {**data, "amount": str(result["amount"]), "type": session.channel or "browser"},
            "_links": {
                "self": {"href": f"{session.base}/checkout/api/workflows/events/{event_id}"}
            },
        }
        self._deliveries.publish(kind, event)

    def _digest(self, value: str) -> bytes:
        """The same card has the same fingerprint, from which nobody finds the card."""
        return hmac.digest(self._key, value.encode(), "sha256")[:16]

    def _name(self, size: int) -> str:
        return _name_of(self._random_bytes(size))

    def _uuid(self) -> str:
        return str(uuid.UUID(bytes=self._random_bytes(16), version=4))

    def _base64(self, size: int) -> str:
        return base64.b64encode(self._random_bytes(size)).decode()


def _keys_of(session: Session) -> list[tuple[str, str]]:
    keys = [("acs", session.acs_id), ("method", session.transaction_id)]
    return [*keys, ("page", session.page_token)] if session.hosted else keys


def _name_of(raw: bytes) -> str:
    """Lower-case base32, as the real ids look: 16 bytes are 26 characters."""
    return base64.b32encode(raw).decode().rstrip("=").lower()
