"""The sandbox's payment sessions (Flow) and cardholder tokens (Issuing), over real sockets."""

from __future__ import annotations

import base64
import json
import re
import time
from decimal import Decimal
from typing import Any
from urllib.parse import quote_plus

import httpx2
import pytest

from broker.sandbox.settings import SandboxSettings
from tests.test_sandbox import CHECKOUT_SECRET, FORM, NOON, TOKEN_PATH, World, run

KEY = "sk_sbox_sandboxsandboxsandboxsandbo"
BY_KEY = {"Authorization": f"Bearer {KEY}"}
PAYMENTS = "/checkout/api/payment-sessions"
CARDHOLDER_PATH = "/checkout/api/issuing/access/connect/token"
REQUEST: dict[str, Any] = {
    "amount": 1000,
    "currency": "GBP",
    "billing": {"address": {"country": "GB"}},
    "success_url": "https://shop.example/success",
    "failure_url": "https://shop.example/failure",
}
CARDHOLDER_FORM = {
    "grant_type": "client_credentials",
    "client_id": "ack_sandbox",
    "client_secret": CHECKOUT_SECRET,
    "cardholder_id": "crh_" + "abcdefghijklmnopqrstuvwxyz",
    "single_use": "true",
}


async def create(w: World, **changes: Any) -> httpx2.Response:
    body = {name: value for name, value in {**REQUEST, **changes}.items() if value is not ...}
    return await w.http.post(PAYMENTS, json=body, headers=BY_KEY)


async def submit(w: World, session: str, session_data: Any) -> httpx2.Response:
    body = {"session_data": session_data}
    return await w.http.post(f"{PAYMENTS}/{session}/submit", json=body, headers=BY_KEY)


def check_refusal(answer: httpx2.Response, status: int, error_type: str, *codes: str) -> None:
    body = answer.json()
    assert (answer.status_code, body["error_type"], body["error_codes"]) == (
        status,
        error_type,
        list(codes),
    )
    assert set(body) == {"request_id", "error_type", "error_codes"}
    assert body["request_id"] == answer.headers["cko-request-id"]
    assert answer.headers["cache-control"] == "no-store"


# Payment sessions


def test_a_payment_session_has_the_published_members() -> None:
    """201 with id, secret, token and a link to itself; not to be stored; no expiry anywhere."""

    async def scene(w: World) -> None:
        answer = await create(w)
        assert answer.status_code == 201
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cko-request-id"].startswith("req-")
        assert answer.headers["cko-version"]
        told = answer.json()
        assert re.fullmatch(r"ps_[0-9A-Za-z]{27}", told["id"])
        assert re.fullmatch(
            r"pss_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", told["payment_session_secret"]
        )
        prefix, token = told["payment_session_token"].split(":")
        assert prefix == "YmFzZTY0"
        assert json.loads(base64.b64decode(token))["id"] == told["id"]
        assert told["_links"] == {"self": {"href": f"{w.url}{PAYMENTS}/{told['id']}"}}
        assert not re.search("expir|ttl|2026", answer.text)
        again = (await create(w)).json()
        for member in ("id", "payment_session_secret", "payment_session_token"):
            assert again[member] != told[member]

    run(scene, clock=lambda: NOON)


def test_a_payment_session_has_members_that_reading_spoils() -> None:
    """The unpublished members hold what a parse and a dump lose: trailing zeros, integers beyond
    64 bits, a minus zero, raw and escaped letters, null, nothing, and names full of marks."""

    async def scene(w: World) -> None:
        text = (await create(w)).text
        told = json.loads(text, parse_float=Decimal)
        assert str(told["amount_display"]) == "1.10"
        assert told["ledger_sequence"] > 2**64
        assert str(told["tiny"]) == "-0.0"
        assert str(told["precise"]) == "1.0E+2"
        assert told["merchant_name"] == "Zoë & Café ☕ 東京 🛒"
        assert "東京 🛒" in text
        assert r'"Caf\u00e9\/1"' in text
        assert told["mode"] is None
        assert told["x-flow.experiments/ab~test"]["arm-1"] == {}
        assert told["x-flow.experiments/ab~test"]["weights"][1:] == [[], None, True]
        assert told[""] == []
        for spoilt in (json.dumps(json.loads(text)), json.dumps(told, default=str)):
            assert spoilt != text

    run(scene)


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({"amount": ...}, ["amount_required"]),
        ({"amount": -1}, ["amount_invalid"]),
        ({"amount": 10.0}, ["amount_invalid"]),
        ({"amount": "10"}, ["amount_invalid"]),
        ({"amount": True}, ["amount_invalid"]),
        ({"currency": ...}, ["currency_required"]),
        ({"currency": None}, ["currency_required"]),
        ({"currency": "gbp"}, ["currency_invalid"]),
        ({"currency": 826}, ["currency_invalid"]),
        ({"billing": ...}, ["billing_required"]),
        ({"billing": "GB"}, ["billing_invalid"]),
        ({"billing": {}}, ["billing_address_required"]),
        ({"billing": {"address": []}}, ["billing_address_invalid"]),
        ({"billing": {"address": {"city": "x"}}}, ["billing_address_country_required"]),
        ({"billing": {"address": {"country": "GBR"}}}, ["billing_address_country_invalid"]),
        ({"success_url": ""}, ["success_url_required"]),
        ({"success_url": "shop.example"}, ["success_url_invalid"]),
        ({"success_url": "https://[x"}, ["success_url_invalid"]),
        ({"success_url": "ftp://shop.example/x"}, ["success_url_invalid"]),
        ({"success_url": "https:///path"}, ["success_url_invalid"]),
        ({"success_url": "https://x/" + "x" * 1024}, ["success_url_invalid"]),
        ({"failure_url": ...}, ["failure_url_required"]),
        ({"failure_url": "javascript:alert(1)"}, ["failure_url_invalid"]),
        ({"failure_url": 1}, ["failure_url_invalid"]),
        ({"expires_on": "2026-11-20T12:00:00Z"}, ["expires_on_invalid"]),
        ({"expires_on": "2026-11-20T13:30:00+02:00"}, ["expires_on_invalid"]),
        ({"expires_on": "2026-11-20T11:59:59"}, ["expires_on_invalid"]),
        ({"expires_on": "2026-11-21"}, ["expires_on_invalid"]),
        ({"expires_on": "2026-13-21T12:00:00Z"}, ["expires_on_invalid"]),
        ({"expires_on": "soon"}, ["expires_on_invalid"]),
        ({"expires_on": 1795262400}, ["expires_on_invalid"]),
        (
            {"amount": ..., "currency": 1, "billing": ..., "failure_url": ..., "expires_on": ""},
            ["amount_required", "currency_invalid", "billing_required", "failure_url_required", "expires_on_invalid"],
        ),
    ],
)  # fmt: skip
def test_a_faulty_payment_session_request_names_every_fault(
    changes: dict[str, Any], codes: list[str]
) -> None:
    """Each faulty member has its code, all of them in one 422 of type request_invalid."""

    async def scene(w: World) -> None:
        check_refusal(await create(w, **changes), 422, "request_invalid", *codes)

    run(scene, clock=lambda: NOON)


@pytest.mark.parametrize(
    "changes",
    [
        {"amount": 0},
        {"expires_on": None},
        {"expires_on": "2026-11-20T12:00:01Z"},
        {"expires_on": "2026-11-20T12:00:00.5Z"},
        {"expires_on": "2026-11-20T12:00:01"},
        {"expires_on": "2026-11-20T14:00:01+02:00"},
        {"expires_on": "9999-12-31T23:59:59-23:59"},
        {"metadata": {"any": ["thing", None]}, "locale": 7},
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "XXX-5", "XXX5"])
def test_what_a_payment_session_request_may_say(
    changes: dict[str, Any], zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nought is an amount; a time has any offset, or none for UTC wherever the sandbox runs; and
    what is not required is not read."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()

    async def scene(w: World) -> None:
        assert (await create(w, **changes)).status_code == 201

    try:
        run(scene, clock=lambda: NOON)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("path", [PAYMENTS, f"{PAYMENTS}/ps_x/submit"])
@pytest.mark.parametrize(
    "sent",
    [
        None,
        KEY,
        f"Basic {KEY}",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY}x",
        "Bearer é",
        "Bearer pk_sbox_sandboxsandboxsandboxsandbo",
    ],
)
def test_without_a_key_or_token_the_answer_is_an_empty_401(path: str, sent: str | None) -> None:
    """No key, a key without `Bearer`, and a wrong key are 401 without a body."""

    async def scene(w: World) -> None:
        headers = {} if sent is None else {"Authorization": sent.encode("latin-1")}
        answer = await w.http.post(path, json=REQUEST, headers=headers)  # type: ignore[arg-type]
        assert (answer.status_code, answer.content) == (401, b"")
        assert answer.headers["cko-request-id"].startswith("req-")

    run(scene)


def test_an_oauth_token_does_for_the_key_if_its_scope_does() -> None:
    """With the scope `payment-sessions` a bearer token creates and submits; with another it is
    403, and once expired or revoked 401."""
    now = [NOON]

    async def scene(w: World) -> None:
        async def token(scope: str) -> dict[str, str]:
            answer = await w.http.post(TOKEN_PATH, data={**FORM, "scope": scope})
            return {"Authorization": f"Bearer {answer.json()['access_token']}"}

        wrong = await token("sessions:browser gateway")
        answer = await w.http.post(PAYMENTS, json=REQUEST, headers=wrong)
        check_refusal(answer, 403, "operation_not_allowed", "operation_not_allowed_for_scope")
        right = await token("payment-sessions")
        made = await w.http.post(PAYMENTS, json=REQUEST, headers=right)
        assert made.status_code == 201
        submitted = f"{PAYMENTS}/{made.json()['id']}/submit"
        paid = await w.http.post(
            submitted, json={"session_data": "sandbox-approved"}, headers=right
        )
        assert paid.status_code == 201
        answer = await w.http.post(submitted, json={}, headers=wrong)
        check_refusal(answer, 403, "operation_not_allowed", "operation_not_allowed_for_scope")
        now[0] += 3600
        assert (await w.http.post(PAYMENTS, json=REQUEST, headers=right)).status_code == 401
        fresh = await token("payment-sessions")
        await w.http.post("/_sandbox/revoke")
        assert (await w.http.post(PAYMENTS, json=REQUEST, headers=fresh)).status_code == 401
        assert (await create(w)).status_code == 201

    run(scene, clock=lambda: now[0])


@pytest.mark.parametrize(
    ("media_type", "body", "status"),
    [
        ("text/plain", b"{}", 415),
        ("application/json", b"{", 422),
        ("application/json", b"", 422),
        ("application/json", b"[]", 422),
        ("application/json", b"[" * 60_000, 422),
        ("application/json", b"\xff", 422),
        ("application/json", b" " * 70_000, 413),
    ],
)
def test_a_payment_session_request_must_be_a_small_json_object(
    media_type: str, body: bytes, status: int
) -> None:
    """Another media type is 415, what is no object is 422, and what is too large is 413."""

    async def scene(w: World) -> None:
        headers = {**BY_KEY, "Content-Type": media_type}
        answer = await w.http.post(PAYMENTS, content=body, headers=headers)
        assert answer.status_code == status
        if status == 422:
            check_refusal(answer, 422, "request_invalid", "request_body_malformed")

    run(scene)


def test_each_setting_of_payment_sessions_takes_effect() -> None:
    """Other keys and another lifetime can be set; the keys stay out of the repr."""
    now = [NOON]
    other = "sk_sbox_otherotherotherotherother22"
    settings = {
        "checkout_secret_keys": frozenset({other, KEY}),
        "checkout_payment_session_seconds": 5,
    }

    async def scene(w: World) -> None:
        headers = {"Authorization": f"Bearer {other}"}
        assert (await w.http.post(PAYMENTS, json=REQUEST, headers=headers)).status_code == 201
        session = (await create(w)).json()["id"]
        now[0] += 4.9
        assert (await submit(w, session, "sandbox-approved")).status_code == 201
        now[0] += 0.1
        answer = await submit(w, session, "sandbox-approved")
        check_refusal(answer, 422, "request_invalid", "payment_session_expired")

    run(scene, clock=lambda: now[0], **settings)
    assert KEY not in repr(SandboxSettings())


# Submitting


@pytest.mark.parametrize(
    ("session_data", "status", "expected"),
    [
        ("sandbox-approved", 201, {"status": "Approved", "type": "card"}),
        (
            "sandbox-declined",
            201,
            {"status": "Declined", "type": "card", "decline_reason": "insufficient_funds"},
        ),
        (
            "sandbox-action-required",
            202,
            {
                "status": "Action Required",
                "type": "card",
                "action": {"type": "redirect", "url": "https://acs.example.test/challenge"},
            },
        ),
    ],
)
def test_session_data_decides_what_becomes_of_a_payment(
    session_data: str, status: int, expected: dict[str, Any]
) -> None:
    """Approved and declined are 201, action required is 202; each try is a payment of its own."""

    async def scene(w: World) -> None:
        session = (await create(w)).json()["id"]
        tries = [await submit(w, session, session_data) for _ in range(2)]
        for answer in tries:
            payment = answer.json()
            assert re.fullmatch("pay_[a-z2-7]{26}", payment.pop("id"))
            assert (answer.status_code, payment) == (status, expected)
            assert answer.headers["cache-control"] == "no-store"
        assert tries[0].json()["id"] != tries[1].json()["id"]

    run(scene)


@pytest.mark.parametrize(
    ("session_data", "code"),
    [
        (None, "session_data_required"),
        ("", "session_data_required"),
        ("something", "session_data_invalid"),
        (7, "session_data_invalid"),
        ({"sandbox": "approved"}, "session_data_invalid"),
        ([], "session_data_invalid"),
    ],
)
def test_faulty_session_data_is_refused(session_data: Any, code: str) -> None:
    """Missing session_data and any that the sandbox did not publish are 422."""

    async def scene(w: World) -> None:
        session = (await create(w)).json()["id"]
        check_refusal(await submit(w, session, session_data), 422, "request_invalid", code)

    run(scene)


def test_an_unknown_payment_session_is_404() -> None:
    """A session that was never made is 404 not_found, whatever is sent for it."""

    async def scene(w: World) -> None:
        for session in ("ps_" + "0" * 27, "nonsense", "é"):
            answer = await submit(w, session, "sandbox-approved")
            check_refusal(answer, 404, "not_found", "payment_session_not_found")

    run(scene)


@pytest.mark.parametrize("expires_on", ["2026-11-20T12:01:00Z", "2026-11-20T14:01:00+02:00"])
def test_a_payment_session_dies_at_its_expires_on(expires_on: str) -> None:
    """Until its instant a session can be submitted, from then on it is 422 by the sandbox's clock,
    the skew of the control plane included."""
    now = [NOON]

    async def scene(w: World) -> None:
        session = (await create(w, expires_on=expires_on)).json()["id"]
        now[0] += 59.9
        assert (await submit(w, session, "sandbox-declined")).status_code == 201
        await w.http.post("/_sandbox/clock", json={"skew_seconds": 0.1})
        answer = await submit(w, session, "sandbox-approved")
        check_refusal(answer, 422, "request_invalid", "payment_session_expired")

    run(scene, clock=lambda: now[0])


def test_only_so_many_payment_sessions_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest session is forgotten for the newest once the table is full."""
    monkeypatch.setattr("broker.sandbox.payment_sessions._REMEMBERED", 2)

    async def scene(w: World) -> None:
        first, second, third = [(await create(w)).json()["id"] for _ in range(3)]
        answer = await submit(w, first, "sandbox-approved")
        check_refusal(answer, 404, "not_found", "payment_session_not_found")
        for session in (second, third):
            assert (await submit(w, session, "sandbox-approved")).status_code == 201

    run(scene)


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        (PAYMENTS, "checkout.payment-session"),
        (f"{PAYMENTS}/ps_x/submit", "checkout.payment-session-submit"),
        (CARDHOLDER_PATH, "checkout.cardholder-token"),
    ],
)
def test_each_is_an_operation_with_its_count_and_faults(path: str, operation: str) -> None:
    """Calls are counted under the operation's name, faults happen, and only POST is allowed."""

    async def scene(w: World) -> None:
        await w.fault(operation, "status", code=503, times=1)
        assert (await w.http.post(path)).status_code == 503
        got = await w.http.get(path)
        assert (got.status_code, got.headers["allow"]) == (405, "POST")
        assert await w.calls(operation) == 2

    run(scene)


def test_what_is_beside_the_paths_is_a_wrong_prefix() -> None:
    """A payment session cannot be read, and a longer path is no operation: 406 HTML."""

    async def scene(w: World) -> None:
        session = (await create(w)).json()["id"]
        for path in (f"{PAYMENTS}/{session}", f"{PAYMENTS}/a/b/submit", f"{PAYMENTS}/"):
            assert (await w.http.post(path, json={}, headers=BY_KEY)).status_code == 406

    run(scene)


# Issuing


@pytest.mark.parametrize(
    ("changes", "single_use"),
    [
        ({}, True),
        ({"single_use": "false"}, False),
        ({"single_use": ...}, False),
    ],
)
def test_a_cardholder_token_is_for_its_cardholder(
    changes: dict[str, Any], single_use: bool
) -> None:
    """A bearer token of 900 seconds that tells, inside, its cardholder and whether it is for one
    use; it opens nothing that is not Issuing's."""

    async def scene(w: World) -> None:
        form = {k: v for k, v in {**CARDHOLDER_FORM, **changes}.items() if v is not ...}
        answer = await w.http.post(CARDHOLDER_PATH, data=form)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        told = answer.json()
        token = told.pop("access_token")
        assert told == {
            "token_type": "Bearer",
            "expires_in": 900,
            "scope": "issuing:card-management-read",
        }
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        assert claims["cardholder_id"] == CARDHOLDER_FORM["cardholder_id"]
        assert claims["single_use"] is single_use
        assert claims["client_id"] == "ack_sandbox"
        assert claims["exp"] - claims["iat"] == 900
        assert (await w.ping(token)).status_code == 403
        answer = await w.http.post(
            PAYMENTS, json=REQUEST, headers={"Authorization": f"Bearer {token}"}
        )
        assert answer.status_code == 403

    run(scene)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"client_secret": "wrong"}, "invalid_client"),
        ({"client_secret": ...}, "invalid_client"),
        ({"client_id": "ack_other"}, "invalid_client"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": ...}, "invalid_request"),
        ({"cardholder_id": ...}, "invalid_request"),
        ({"cardholder_id": ""}, "invalid_request"),
        ({"cardholder_id": "crh_short"}, "invalid_request"),
        ({"cardholder_id": "crd_" + "a" * 26}, "invalid_request"),
        ({"cardholder_id": "crh_" + "a" * 26 + "\n"}, "invalid_request"),
        ({"single_use": "yes"}, "invalid_request"),
        ({"single_use": "True"}, "invalid_request"),
        ({"cardholder_id": ["crh_" + "a" * 26] * 2}, "invalid_request"),
    ],
)
def test_a_faulty_cardholder_token_request_is_a_typed_400(
    changes: dict[str, Any], error: str
) -> None:
    """Every refusal is 400 with the OAuth error and nothing else."""

    async def scene(w: World) -> None:
        form = {k: v for k, v in {**CARDHOLDER_FORM, **changes}.items() if v is not ...}
        answer = await w.http.post(CARDHOLDER_PATH, data=form)
        assert (answer.status_code, answer.json()) == (400, {"error": error})
        assert answer.headers["cache-control"] == "no-store"

    run(scene)


def test_a_cardholder_token_takes_its_client_from_the_form() -> None:
    """A bearer token beside the form does no harm (the official SDKs send one); Basic instead of
    the form is no client, and JSON no form."""

    async def scene(w: World) -> None:
        bearer = {"Authorization": "Bearer anything"}
        answer = await w.http.post(CARDHOLDER_PATH, data=CARDHOLDER_FORM, headers=bearer)
        assert answer.status_code == 200
        form = {k: v for k, v in CARDHOLDER_FORM.items() if not k.startswith("client_")}
        auth = (quote_plus("ack_sandbox"), quote_plus(CHECKOUT_SECRET))
        answer = await w.http.post(CARDHOLDER_PATH, data=form, auth=auth)
        assert (answer.status_code, answer.json()) == (400, {"error": "invalid_client"})
        answer = await w.http.post(CARDHOLDER_PATH, json=CARDHOLDER_FORM)
        assert (answer.status_code, answer.json()) == (400, {"error": "invalid_request"})

    run(scene)


def test_how_long_a_cardholder_token_lives_can_be_set() -> None:
    """Its lifetime has a setting of its own, and the API host's 401 after it."""
    now = [NOON]

    async def scene(w: World) -> None:
        told = (await w.http.post(CARDHOLDER_PATH, data=CARDHOLDER_FORM)).json()
        assert told["expires_in"] == 30
        now[0] += 29.9
        assert (await w.ping(told["access_token"])).status_code == 403
        now[0] += 0.1
        assert (await w.ping(told["access_token"])).status_code == 401

    run(scene, clock=lambda: now[0], checkout_cardholder_token_seconds=30)
