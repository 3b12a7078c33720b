"""The five calls of Checkout.com's Sessions API.

Authorisation first, then the session, then the body: an answer may tell a stranger nothing about
sessions, and a wrong scope nothing about states.
"""

import hmac
from typing import Final, NamedTuple

from broker.sandbox.checkout import Checkout
from broker.sandbox.complaints import complaint, json_object, wrong_scope
from broker.sandbox.exchange import Call, RefusedError, Reply
from broker.sandbox.settings import SandboxSettings
from broker.sandbox.threeds_answers import stamped, unauthorised, unprocessable, view
from broker.sandbox.threeds_flow import Sessions, WrongStateError
from broker.sandbox.threeds_outcomes import plan_of
from broker.sandbox.threeds_rules import CHANNELS, faults_of_request, faults_of_variant
from broker.sandbox.threeds_session import Session

_ANY_SCOPE: Final = frozenset({"sessions", "sessions:app", "sessions:browser"})
_FAULTY: Final = "unprocessable_entity"
_SCOPES_OF_CHANNEL: Final = {
    "app": frozenset({"sessions", "sessions:app"}),
    "browser": frozenset({"sessions", "sessions:browser"}),
}


class _Caller(NamedTuple):
    """Who asks: a bearer's scopes, or (None) whoever holds the session's own secret."""

    scopes: frozenset[str] | None

    @property
    def by_secret(self) -> bool:
        return self.scopes is None

    def must_have(self, wanted: frozenset[str]) -> None:
        if self.scopes is not None and not self.scopes & wanted:
            raise wrong_scope()

    def must_serve(self, channel: str) -> None:
        self.must_have(_SCOPES_OF_CHANNEL.get(channel, _ANY_SCOPE))


class ThreeDsApi:
    """One method for each call."""

    def __init__(self, settings: SandboxSettings, checkout: Checkout, sessions: Sessions) -> None:
        self._settings = settings
        self._checkout = checkout
        self._sessions = sessions

    def create(self, call: Call) -> Reply:
        caller = self._bearer(call)
        request = json_object(call, _FAULTY)
        if codes := faults_of_request(request):
            raise unprocessable(*codes)
        if channel_data := request.get("channel_data"):
            caller.must_serve(channel_data["channel"])
        source = request["source"]
        plan = plan_of(source)
        if plan is None:
            raise unprocessable(f"source_{source['type']}_invalid")
        base = call.base_url(self._settings.issuer_base_url)
        session = self._sessions.create(request, plan, base)
        return self._told(201 if session.status != "pending" else 202, session, caller)

    def read(self, call: Call) -> Reply:
        caller, session = self._opened(call)
        channel = call.header(b"channel")
        if channel is not None and channel not in CHANNELS:
            raise unprocessable("channel_invalid")
        return self._told(200, session, caller, channel)

    def collect_data(self, call: Call) -> Reply:
        caller, session = self._free(call)
        channel_data = json_object(call, _FAULTY)
        if codes := faults_of_variant(channel_data, "channel", CHANNELS):
            raise unprocessable(*codes)
        caller.must_serve(channel_data["channel"])
        if session.hosted and channel_data["channel"] == "merchant_initiated":
            raise unprocessable("channel_invalid")
        try:
            self._sessions.collect(session, channel_data)
        except WrongStateError:
            raise _wrong_state() from None
        return self._told(200, session, caller)

    def issuer_fingerprint(self, call: Call) -> Reply:
        caller, session = self._free(call)
        caller.must_serve("browser")
        completion = json_object(call, _FAULTY).get("three_ds_method_completion")
        if completion not in ("Y", "N", "U"):
            fault = "required" if completion is None else "invalid"
            raise unprocessable(f"three_ds_method_completion_{fault}")
        if session.channel == "app":
            raise complaint(403, "operation_not_allowed", "three_ds_method_not_supported_for_app")
        if not session.plan.has_method and not session.hosted:
            code = "three_ds_method_not_supported_without_url"
            raise complaint(403, "operation_not_allowed", code)
        try:
            self._sessions.fingerprint(session)
        except WrongStateError:
            raise _wrong_state() from None
        return self._told(200, session, caller)

    async def complete(self, call: Call) -> Reply:
        _, session = self._free(call)
        try:
            accepted = await self._sessions.complete(session)
        except WrongStateError:
            raise _wrong_state() from None
        if not accepted:
            # The status is not known of the real one; 502 because it is the callback's fault.
            raise complaint(502, "callback_failed", "session_callback_failed")
        return stamped(204)

    def _told(
        self, status: int, session: Session, caller: _Caller, channel: str | None = None
    ) -> Reply:
        told = view(
            session,
            self._sessions.now(),
            by_secret=caller.by_secret,
            redirect_link=self._settings.checkout_redirect_link,
            channel=channel,
        )
        return stamped(status, told)

    def _bearer(self, call: Call) -> _Caller:
        try:
            caller = _Caller(frozenset(self._checkout.authorised_scopes(call)))
        except RefusedError:
            raise unauthorised() from None
        caller.must_have(_ANY_SCOPE)
        return caller

    def _opened(self, call: Call) -> tuple[_Caller, Session]:
        """The caller and the session: a bearer token opens all of them, a secret its own."""
        session = self._sessions.by_id(call.path_parameter("id"))
        sent = call.header(b"authorization") or ""
        if sent.startswith("sek_"):
            # What a secret does not open might as well not exist: 401 for both.
            if session is None or not self._opens(sent, session):
                raise unauthorised()
            return _Caller(None), session
        caller = self._bearer(call)
        if session is None:
            raise complaint(404, "not_found", "session_not_found")
        return caller, session

    def _opens(self, unverified_secret: str, session: Session) -> bool:
        sent = unverified_secret.encode(errors="replace")
        same = hmac.compare_digest(sent, session.secret.encode())
        return same and self._sessions.secret_is_live(session)

    def _free(self, call: Call) -> tuple[_Caller, Session]:
        """The same, for an action: one at a time on each session."""
        caller, session = self._opened(call)
        if session.busy:
            raise complaint(409, "duplicate_requests_detected", "session_already_in_use")
        return caller, session


def _wrong_state() -> RefusedError:
    return complaint(403, "operation_not_allowed", "update_not_allowed_due_to_state")
