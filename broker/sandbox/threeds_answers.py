"""How Checkout.com answers about a session: its members, its links, its refusals.

A session secret opens a smaller view than a bearer token: `session_secret`, `cryptogram`, `eci`
and `certificates` must never be in it.
"""

import base64
import json
from typing import Any, Final

from broker.sandbox.clock import rfc3339
from broker.sandbox.complaints import complaint, stamps
from broker.sandbox.exchange import RefusedError, Reply, as_json
from broker.sandbox.threeds_outcomes import eci_of
from broker.sandbox.threeds_session import Session, category_of

_DAY: Final = 86_400
"""So long after its creation does a session tell its cryptogram."""

_BLIND: Final[dict[str | None, frozenset[str]]] = {
    "app": frozenset({"issuer_fingerprint", "redirect_cardholder"}),
    "merchant_initiated": frozenset(
        {"issuer_fingerprint", "redirect_cardholder", "challenge_cardholder"}
    ),
}
"""Actions that a channel cannot do; the `channel` header of a GET takes them out."""


def stamped(status: int, value: Any = None) -> Reply:
    """An answer with the headers that every answer of this API has."""
    return Reply(status, headers=stamps()) if value is None else as_json(status, value, *stamps())


def unprocessable(*codes: str) -> RefusedError:
    return complaint(422, "unprocessable_entity", *codes)


def unauthorised() -> RefusedError:
    return RefusedError(stamped(401))


def view(
    session: Session,
    now: float,
    *,
    by_secret: bool,
    redirect_link: str = "redirect_url",
    channel: str | None = None,
) -> dict[str, Any]:
    """A session as its reader may see it; null members are left out."""
    actions = [a for a in session.next_actions() if a not in _BLIND.get(channel, ())]
    told = {**_facts(session), "next_actions": actions, **_result(session, now)}
    told["_links"] = _links(session, actions, redirect_link)
    if not by_secret:
        told["session_secret"] = session.secret
        if not session.hosted:
            told["certificates"] = {
                "ds_public": "c2FuZGJveCBEUyBwdWJsaWMga2V5",
                "ca_public": "c2FuZGJveCBDQSBwdWJsaWMga2V5",
                "ca_public_all": ["c2FuZGJveCBDQSBwdWJsaWMga2V5"],
            }
    else:
        told = {k: v for k, v in told.items() if k not in ("cryptogram", "eci")}
    return {name: member for name, member in told.items() if member is not None}


def _facts(session: Session) -> dict[str, Any]:
    request = session.request
    return {
        "id": session.id,
        "transaction_id": session.transaction_id,
        "scheme": session.scheme,
        "amount": request.get("amount", 0),
        "currency": request["currency"],
        "completed": session.completed,
        "challenged": session.challenged,
        "authentication_type": request.get("authentication_type", "regular"),
        "authentication_category": category_of(session),
        "challenge_indicator": request.get("challenge_indicator", "no_preference"),
        "transaction_type": request.get("transaction_type", "goods_service"),
        "reference": request.get("reference"),
        "status": session.status,
        "protocol_version": "2.2.0",
        "authentication_date": rfc3339(int(session.created_at)),
        "experience": "3ds",
        "ds": {
            "ds_id": "A000000003",
            "reference_number": "SANDBOX.DS 17 0001",
            "transaction_id": session.ds_id,
        },
        "card": {
            "instrument_id": session.instrument_id,
            "fingerprint": session.fingerprint,
            "metadata": {
                "card_type": "CREDIT",
                "card_category": "CONSUMER",
                "issuer_name": "Sandbox Bank",
                "issuer_country": "GB",
                "product_id": "F",
                "product_type": "Sandbox Classic",
            },
        },
    }


def _result(session: Session, now: float) -> dict[str, Any]:
    """What the authentication has come to, as soon as the scheme has been asked."""
    verdict, proof = session.verdict, session.proof
    if verdict is None:
        return {}
    if not verdict.response_code:
        return {"approved": False}
    live = proof is not None and now < session.created_at + _DAY
    result: dict[str, Any] = {
        "approved": session.approved if session.finished else None,
        "status_reason": verdict.status_reason,
        "response_code": verdict.response_code,
        "response_status_reason": verdict.response_status_reason,
        "cardholder_info": verdict.cardholder_info,
        "cryptogram": proof.cryptogram if proof and live else None,
        "eci": eci_of(verdict, session.scheme),
        "xid": proof.xid if proof else None,
        "flow_type": "challenged" if session.challenged else "frictionless",
        "scheme_info": {"name": session.scheme, "score": "12"},
        # Nothing came back from there.
        "acs": None if verdict.response_code == "U" else _acs(session),
    }
    if session.challenged:
        ended = 0 if session.status == "challenged" else 1
        result["3ds"] = {"challenge_request": creq(session), "interaction_counter": f"{ended:02}"}
    return result


def _acs(session: Session) -> dict[str, Any]:
    acs: dict[str, Any] = {
        "reference_number": "SANDBOX.ACS 17 0001",
        "transaction_id": session.acs_id,
        "operator_id": "SANDBOX-ACS-OPERATOR",
        "challenge_mandated": bool(session.challenged),
    }
    if session.challenged:
        acs |= {"authentication_type": "02", "url": f"{session.base}/checkout/acs/challenge"}
        if session.channel == "app":
            acs["signed_content"] = "eyJhbGciOiJub25lIn0.c2FuZGJveA."
    if session.status == "challenge_abandoned":
        acs["challenge_cancel_reason"] = "cardholder_cancel"
    elif session.status == "expired":
        acs["challenge_cancel_reason"] = "challenge_timed_out"
    return acs


def _links(session: Session, actions: list[str], redirect_link: str) -> dict[str, Any]:
    own = f"{session.base}/checkout/api/sessions/{session.id}"
    links: dict[str, str | None] = {"self": own}
    for name in ("success_url", "failure_url", "callback_url"):
        links[name] = session.completion(name)
    if "redirect_cardholder" in actions:
        links[redirect_link] = f"{session.base}/checkout/pay/{session.page_token}"
    if "collect_channel_data" in actions:
        links["collect_channel_data"] = f"{own}/collect-data"
    if "issuer_fingerprint" in actions:
        links["issuer_fingerprint"] = f"{own}/issuer-fingerprint"
        links["three_ds_method_url"] = f"{session.base}/checkout/acs/method"
    if "complete" in actions:
        links["complete"] = f"{own}/complete"
    return {name: {"href": href} for name, href in links.items() if href is not None}


def creq(session: Session) -> str:
    """EMV 3DS 2.2.0: the challenge request that the browser carries to the ACS."""
    return base64url_json(
        {
            "threeDSServerTransID": session.transaction_id,
            "acsTransID": session.acs_id,
            "messageType": "CReq",
            "messageVersion": "2.2.0",
            "challengeWindowSize": "05",
        }
    )


def base64url_json(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
