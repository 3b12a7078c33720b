"""Where the cardholder's browser goes: the issuer's 3DS method and challenge, the hosted page.

The addresses of these pages are all that opens them, so none can be guessed from a session's id,
and what leaves them says no more than which session it was.
"""

import base64
import binascii
import contextlib
import json
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from broker.sandbox.exchange import Call, RefusedError, Reply
from broker.sandbox.html_page import notice, see_other
from broker.sandbox.threeds_answers import base64url_json
from broker.sandbox.threeds_flow import Sessions, WrongStateError
from broker.sandbox.threeds_html import browser_data, challenge, posting_on
from broker.sandbox.threeds_rules import CHANNELS, examine, is_url
from broker.sandbox.threeds_session import Session

_DECIMALS: Final = {"JPY": 0, "KRW": 0, "BHD": 3, "KWD": 3, "OMR": 3, "TND": 3}
_SESSION_DATA: Final = "threeDSSessionData"
_BROWSER_DEFAULTS: Final = {
    "java_enabled": "false",
    "javascript_enabled": "false",
    "language": "en",
    "color_depth": "24",
    "screen_height": "1080",
    "screen_width": "1920",
    "timezone": "0",
}
"""What is said of a browser that runs no script."""


class ThreeDsPages:
    """One method for each page."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def method(self, call: Call) -> Reply:
        """EMV 3DS: seen once, and the shop's frame is told so."""
        data = _decoded(call.form().get("threeDSMethodData", ""))
        session = self._sessions.by_key("method", str(data.get("threeDSServerTransID")))
        if session is None:
            raise _no_such("3DS method")
        session.method_seen = True
        url = data.get("threeDSMethodNotificationURL")
        if url is None:
            return notice(200, "3DS method", "Your device has been seen.")
        if not is_url(url):
            raise RefusedError(notice(400, "3DS method", "The notification URL is no URL."))
        told = {"threeDSServerTransID": session.transaction_id}
        return posting_on("3DS method", url, {"threeDSMethodData": base64url_json(told)})

    def challenge(self, call: Call) -> Reply:
        fields = call.form()
        creq = _decoded(fields.get("creq", ""))
        session = self._sessions.by_key("acs", str(creq.get("acsTransID")))
        if session is None or creq.get("threeDSServerTransID") != session.transaction_id:
            raise _no_such("challenge")
        return _challenge(session, fields.get(_SESSION_DATA))

    def answer(self, call: Call) -> Reply:
        fields = call.form()
        session = self._sessions.by_key("acs", fields.get("acsTransID", ""))
        answer = fields.get("answer")
        if session is None or answer not in ("approve", "fail", "cancel"):
            raise _no_such("challenge")
        # Whoever comes back to it late is sent where the first answer led.
        with contextlib.suppress(WrongStateError):
            self._sessions.answer_challenge(session, answer)
        return _onward(session, fields.get(_SESSION_DATA))

    def pay(self, call: Call) -> Reply:
        """The hosted page: shown, posted, and then wherever the session has got to."""
        session = self._sessions.by_key("page", call.path_parameter("token"))
        if session is None:
            raise RefusedError(notice(404, "Not found", "There is no such payment."))
        if call.method == "POST" and session.status == "pending":
            session.method_seen = session.plan.has_method
            self._sessions.collect(session, _browser_data(call))
        if session.status == "pending":
            leads_to = (session.completion("success_url"), session.completion("failure_url"))
            return browser_data(_merchant(session), _amount(session), _BROWSER_DEFAULTS, leads_to)
        if session.status == "challenged":
            return _challenge(session, None)
        return _onward(session, None)


def _challenge(session: Session, session_data: str | None) -> Reply:
    if session.status != "challenged":
        return _onward(session, session_data)
    fields = {"acsTransID": session.acs_id}
    if session_data is not None:
        fields[_SESSION_DATA] = session_data
    leads_to = (session.completion("success_url"), session.completion("failure_url"))
    return challenge(_merchant(session), _amount(session), fields, leads_to)


def _onward(session: Session, session_data: str | None) -> Reply:
    """Where the cardholder goes after the bank."""
    if not session.finished:
        raise _no_such("challenge")
    if session.hosted:
        url = session.completion("success_url" if session.approved else "failure_url")
        return see_other(_with_session(url or "", session.id))
    url = session.completion("challenge_notification_url")
    if url is None:
        return notice(200, "Thank you", "You may close this window.")
    cres = {
        "threeDSServerTransID": session.transaction_id,
        "acsTransID": session.acs_id,
        "messageType": "CRes",
        "messageVersion": "2.2.0",
        "transStatus": "Y" if session.approved else "N",
    }
    fields = {"cres": base64url_json(cres)}
    if session_data is not None:
        fields[_SESSION_DATA] = session_data
    return posting_on("Back to the shop", url, fields)


def _with_session(url: str, session_id: str) -> str:
    parts = urlsplit(url)
    query = f"{parts.query}&" if parts.query else ""
    return urlunsplit(parts._replace(query=f"{query}cko-session-id={session_id}"))


def _browser_data(call: Call) -> dict[str, Any]:
    """What the form says, with what only a server sees of a browser."""
    sent = {**_BROWSER_DEFAULTS, **call.form()}
    client = call.scope.get("client") or ("127.0.0.1", 0)
    data = {
        "channel": "browser",
        **{name: sent[name] for name in _BROWSER_DEFAULTS},
        "java_enabled": sent["java_enabled"] == "true",
        "javascript_enabled": sent["javascript_enabled"] == "true",
        "accept_header": call.header(b"accept") or "*/*",
        "user_agent": call.header(b"user-agent") or "unknown",
        "ip_address": client[0],
    }
    if examine(data, CHANNELS["browser"]):
        raise RefusedError(notice(400, "Not understood", "Your browser sent nonsense."))
    return data


def _merchant(session: Session) -> str:
    return str(session.request.get("billing_descriptor", {}).get("name") or "Sandbox Shop")


def _amount(session: Session) -> str:
    currency = session.request["currency"]
    minor = session.request.get("amount", 0)
    decimals = _DECIMALS.get(currency, 2)
    whole, part = divmod(minor, 10**decimals)
    return f"{whole}.{part:0{decimals}} {currency}" if decimals else f"{whole} {currency}"


def _decoded(encoded: str) -> dict[str, Any]:
    """base64url JSON, as EMV 3DS sends it; nothing for anything else."""
    try:
        padded = encoded.rstrip("=") + "=" * (-len(encoded.rstrip("=")) % 4)
        value = json.loads(base64.b64decode(padded, b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _no_such(what: str) -> RefusedError:
    return RefusedError(notice(400, "Not understood", f"There is no such {what}."))
