"""Checkout.com's own SDK judges the sandbox: what it cannot work with is not Checkout.com.

The SDK is blocking, so the sandbox runs in a thread of its own, with a real port.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests
from checkout_sdk.checkout_api import CheckoutApi
from checkout_sdk.checkout_sdk import CheckoutSdk
from checkout_sdk.common.common import Phone
from checkout_sdk.common.enums import Country, Currency
from checkout_sdk.environment import Environment
from checkout_sdk.exception import CheckoutApiException, CheckoutAuthorizationException
from checkout_sdk.http_client_interface import HttpClientBuilderInterface
from checkout_sdk.oauth_scopes import OAuthScopes
from checkout_sdk.payments.sessions import sessions as flow
from checkout_sdk.sessions import sessions as threeds
from checkout_sdk.sessions.sessions_client import SessionsClient

from broker.sandbox.serving import serve
from broker.sandbox.settings import SandboxSettings

DEADLINE = 20.0
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
CLIENT = ("ack_sandbox", "sandbox+secret/with=chars==")
KEY = "sk_sbox_sandboxsandboxsandboxsandbo"


class Sandbox:
    """A sandbox in a thread, whose clock stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = NOON
        self._started: Future[str] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self._thread.start()
        self.url = self._started.result(DEADLINE)
        self.http = requests.Session()
        # A proxy of the developer's machine must not see loopback traffic.
        self.http.trust_env = False

    async def _main(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        settings = SandboxSettings(clock=self.time)
        try:
            async with serve(settings) as running:
                self._started.set_result(running.url)
                await self._over.wait()
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
            raise

    def time(self) -> float:
        return self.now.timestamp()

    def close(self) -> None:
        self.http.close()
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()

    def calls(self, operation: str) -> int:
        return int(self.http.get(f"{self.url}/_sandbox/calls").json()[operation])

    def environment(self) -> Environment:
        api = f"{self.url}/checkout/api/"
        return Environment(
            base_uri=api,
            authorization_uri=f"{self.url}/checkout/access/connect/token",
            files_uri=api,
            transfers_uri=api,
            balances_uri=api,
            forward_uri=api,
            identity_uri=api,
            is_sandbox=True,
        )

    def built(self, builder: Any) -> CheckoutApi:
        """What `builder` builds, for this sandbox and by its HTTP client."""
        builder.environment(self.environment()).http_client_builder(_Client(self.http))
        with warnings.catch_warnings():
            # The SDK would put the merchant's subdomain before the host, and 127.0.0.1 has none:
            # its other way, which it deprecates aloud, leaves the addresses as they are given.
            warnings.filterwarnings("ignore", r"use_legacy_domain\(\)", DeprecationWarning)
            # Whatever is built, it makes a risk client too, which complains of being made.
            warnings.filterwarnings("ignore", "Risk endpoints", DeprecationWarning)
            return builder.use_legacy_domain().build()

    def by_oauth(self, *scopes: str, client: tuple[str, str] = CLIENT, at: str = "") -> CheckoutApi:
        builder = CheckoutSdk.builder().oauth().client_credentials(*client).scopes(list(scopes))
        return self.built(builder.authorization_uri(f"{self.url}{at}") if at else builder)

    def by_key(self, key: str = KEY) -> CheckoutApi:
        return self.built(CheckoutSdk.builder().secret_key(key))


class _Client(HttpClientBuilderInterface):
    def __init__(self, session: requests.Session) -> None:
        self._session = session

    def get_client(self) -> requests.Session:
        return self._session


@pytest.fixture(scope="module")
def shared() -> Iterator[Sandbox]:
    sandbox = Sandbox()
    try:
        yield sandbox
    finally:
        sandbox.close()


@pytest.fixture
def sandbox(shared: Sandbox) -> Sandbox:
    """The module's sandbox, at noon and with nothing counted."""
    shared.now = NOON
    shared.http.post(f"{shared.url}/_sandbox/reset")
    return shared


@contextlib.contextmanager
def refused(status: int, error_type: str | None, *codes: str) -> Iterator[None]:
    """The SDK raises, and tells all that the refusal told."""
    with pytest.raises(CheckoutApiException) as caught:
        yield
    error = caught.value
    assert (error.http_metadata.status_code, error.error_type) == (status, error_type)
    assert error.error_details == (list(codes) if error_type else None)
    assert error.request_id
    assert error.request_id == error.http_metadata.headers["Cko-Request-Id"]


def token_of(api: CheckoutApi) -> Any:
    return api.sessions._configuration.credentials.get_access_token()


# Tokens


@pytest.mark.parametrize(
    "scopes",
    [
        [OAuthScopes.SESSIONS_BROWSER],
        [OAuthScopes.SESSIONS_APP, OAuthScopes.SESSIONS_BROWSER],
        ["sessions"],
    ],
)
def test_it_gets_a_token_that_opens_the_api(sandbox: Sandbox, scopes: list[str]) -> None:
    """Its client credentials, sent in the form and as Basic at once, are served; it keeps the
    token for an hour, and the API takes it."""
    api = sandbox.by_oauth(*scopes)
    token = token_of(api)
    assert token.token_type == "Bearer"
    left = token.expiration_date - datetime.now()
    assert timedelta(seconds=3590) < left <= timedelta(seconds=3600)
    answer = sandbox.http.get(
        f"{sandbox.url}/checkout/api/ping", headers={"Authorization": f"Bearer {token.token}"}
    )
    assert answer.json() == {"pong": True, "scope": " ".join(scopes)}
    assert token_of(api) is token
    assert sandbox.calls("checkout.token") == 1


@pytest.mark.parametrize(
    ("client", "scope", "at", "told"),
    [
        ((CLIENT[0], "wrong"), "sessions:app", "", "error: (invalid_client)"),
        ((CLIENT[0], CLIENT[1].replace("+", " ")), "sessions:app", "", "error: (invalid_client)"),
        (("ack_other", CLIENT[1]), "sessions:app", "", "error: (invalid_client)"),
        (CLIENT, OAuthScopes.BALANCES, "", "error: (invalid_scope)"),
        (CLIENT, "sessions:app", "/checkout/wrong/connect/token", "status: (406)"),
    ],
)
def test_it_understands_why_there_is_no_token(
    sandbox: Sandbox, client: tuple[str, str], scope: str, at: str, told: str
) -> None:
    """A wrong secret or id, a scope that the key lacks and a wrong prefix are told apart."""
    with pytest.raises(CheckoutAuthorizationException) as caught:
        sandbox.by_oauth(scope, client=client, at=at)
    assert str(caught.value).endswith(told)


# Flow


def payment_request(**changes: Any) -> flow.PaymentSessionsRequest:
    request = flow.PaymentSessionsRequest()
    request.amount = 1000
    request.currency = Currency.GBP
    request.billing = flow.SessionBilling()
    request.billing.address = flow.BillingAddress()
    request.billing.address.country = Country.GB
    request.success_url = "https://shop.example/success"
    request.failure_url = "https://shop.example/failure"
    for name, value in changes.items():
        setattr(request, name, value)
    return request


def submission(session_data: str) -> flow.SubmitPaymentSessionRequest:
    request = flow.SubmitPaymentSessionRequest()
    request.session_data = session_data
    return request


def test_it_creates_a_payment_session(sandbox: Sandbox) -> None:
    """Its own request classes are accepted, and its response object holds the published members
    and the others."""
    customer = flow.SessionPaymentCustomerRequest()
    customer.email = "ada@shop.example"
    request = payment_request(
        reference="ORD-1",
        customer=customer,
        processing_channel_id="pc_" + "a" * 26,
        enabled_payment_methods=[flow.PaymentMethodsType.CARD],
        capture_on=NOON + timedelta(days=1),
        locale=flow.Locale.EN_GB,
    )
    made = sandbox.by_key().payment_sessions.create_payment_sessions(request)
    assert made.http_metadata.status_code == 201
    assert made.id.startswith("ps_")
    assert made.payment_session_secret.startswith("pss_")
    assert made.payment_session_token
    assert made._links.self.href.endswith(f"/payment-sessions/{made.id}")
    assert made.ledger_sequence > 2**64
    assert made.merchant_name == "Zoë & Café ☕ 東京 🛒"
    assert [method.type for method in made.payment_methods] == ["card", "googlepay"]


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({"amount": -5, "currency": "pounds"}, ["amount_invalid", "currency_invalid"]),
        ({"billing": flow.SessionBilling()}, ["billing_address_required"]),
        ({"expires_on": NOON - timedelta(seconds=1)}, ["expires_on_invalid"]),
    ],
)
def test_it_is_told_what_is_wrong_with_a_payment_session(
    sandbox: Sandbox, changes: dict[str, Any], codes: list[str]
) -> None:
    """Faults arrive with their status, type, codes and request id."""
    api = sandbox.by_key()
    with refused(422, "request_invalid", *codes):
        api.payment_sessions.create_payment_sessions(payment_request(**changes))


def test_a_wrong_key_is_a_bare_401(sandbox: Sandbox) -> None:
    """Another key of the right format is refused without a body; the SDK takes the request id from
    the header then."""
    api = sandbox.by_key("sk_sbox_otherotherotherotherother22")
    with refused(401, None):
        api.payment_sessions.create_payment_sessions(payment_request())


def test_by_oauth_it_refuses_flow_by_itself(sandbox: Sandbox) -> None:
    """This SDK allows Flow by secret key only, though others (and the sandbox) allow OAuth."""
    api = sandbox.by_oauth(OAuthScopes.PAYMENT_SESSIONS)
    with pytest.raises(CheckoutAuthorizationException, match="SECRET_KEY"):
        api.payment_sessions.create_payment_sessions(payment_request())
    assert sandbox.calls("checkout.payment-session") == 0


@pytest.mark.parametrize(
    ("session_data", "status", "told"),
    [
        ("sandbox-approved", 201, "Approved"),
        ("sandbox-declined", 201, "Declined"),
        ("sandbox-action-required", 202, "Action Required"),
    ],
)
def test_it_submits_a_payment_session(
    sandbox: Sandbox, session_data: str, status: int, told: str
) -> None:
    """Its submission ends as the session data says, with 202 to be told from 201."""
    sessions = sandbox.by_key().payment_sessions
    made = sessions.create_payment_sessions(payment_request())
    paid = sessions.submit_payment_session(made.id, submission(session_data))
    assert (paid.http_metadata.status_code, paid.status) == (status, told)
    assert paid.id.startswith("pay_")


def test_it_is_told_why_a_payment_session_cannot_be_submitted(sandbox: Sandbox) -> None:
    """Unknown is 404; expired, by a datetime of its own with an offset or without, is 422."""
    sessions = sandbox.by_key().payment_sessions
    with refused(404, "not_found", "payment_session_not_found"):
        sessions.submit_payment_session("ps_unknown", submission("sandbox-approved"))
    soon = NOON + timedelta(minutes=5)
    made = [
        sessions.create_payment_sessions(payment_request(expires_on=expires_on))
        for expires_on in (soon, soon.replace(tzinfo=None))
    ]
    sandbox.now = soon - timedelta(seconds=1)
    for session in made:
        sessions.submit_payment_session(session.id, submission("sandbox-approved"))
    sandbox.now = soon
    for session in made:
        with refused(422, "request_invalid", "payment_session_expired"):
            sessions.submit_payment_session(session.id, submission("sandbox-approved"))


# Sessions


def a_source(kind: str, outcome: str = "frictionless") -> threeds.SessionSource:
    """A source of its own class with each of its members, that ends in `outcome`."""
    source: Any
    if kind == "card":
        source = threeds.SessionCardSource()
        source.number = NUMBERS[outcome]
    elif kind == "id":
        source = threeds.SessionIdSource()
        source.id = f"src_{outcome}"
    elif kind == "token":
        source = threeds.SessionTokenSource()
        source.token = f"tok_{outcome}"
        source.store_for_future_use = False
    else:
        source = threeds.NetworkTokenSource()
        source.token = NUMBERS[outcome]
        source.stored = False
    if kind in ("card", "network_token"):
        source.expiry_month, source.expiry_year, source.name = 12, 2030, "Ada Lovelace"
    source.email = "ada@shop.example"
    source.scheme = threeds.SessionScheme.VISA
    source.billing_address = threeds.SessionAddress()
    source.billing_address.address_line1 = "1 High Street"
    source.billing_address.address_line3 = "Flat 2"
    source.billing_address.city = "London"
    source.billing_address.zip = "W1T 4TP"
    source.billing_address.country = Country.GB
    source.home_phone = Phone()
    source.home_phone.country_code, source.home_phone.number = "44", "0204567895"
    return source


NUMBERS = {
    "frictionless": "4485040371536584",
    "challenge": "4242424242424242",
    "frictionless_method": "4000000000003014",
    "challenge_method": "4000000000003022",
    "decline": "4000000000003030",
}


def browser(**changes: Any) -> threeds.BrowserSession:
    data = threeds.BrowserSession()
    data.accept_header = "Accept:  *.*, q=0.1"
    data.java_enabled = data.javascript_enabled = True
    data.language = "FR-fr"
    data.color_depth = "16"
    data.screen_height, data.screen_width = "1080", "1920"
    data.timezone = "60"
    data.user_agent = "Mozilla/5.0 (Windows NT 10.0; Win64; x64)"
    data.ip_address = "1.12.123.255"
    for name, value in changes.items():
        setattr(data, name, value)
    return data


def app(**changes: Any) -> threeds.AppSession:
    data = threeds.AppSession()
    data.sdk_app_id = "dbd64fcb-c19a-4728-8849-e3d50bfdde39"
    data.sdk_max_timeout = 5
    data.sdk_encrypted_data = "{}"
    data.sdk_ephem_pub_key = threeds.SdkEphemeralPublicKey()
    data.sdk_ephem_pub_key.kty, data.sdk_ephem_pub_key.crv = "EC", "P-256"
    data.sdk_ephem_pub_key.x = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU"
    data.sdk_ephem_pub_key.y = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"
    data.sdk_reference_number = "3DS_LOA_SDK_PPFU_020100_00007"
    data.sdk_transaction_id = "b2385523-a66c-4907-ac3c-91848e8c0067"
    data.sdk_interface_type = threeds.SdkInterfaceType.BOTH
    data.sdk_ui_elements = list(threeds.UIElements)
    for name, value in changes.items():
        setattr(data, name, value)
    return data


def merchant_initiated() -> threeds.MerchantInitiatedSession:
    data = threeds.MerchantInitiatedSession()
    data.request_type = threeds.RequestType.RECURRING_TRANSACTION
    return data


CHANNELS = {"browser": browser, "app": app, "merchant_initiated": merchant_initiated}


def hosted() -> threeds.HostedCompletionInfo:
    completion = threeds.HostedCompletionInfo()
    completion.success_url = "https://shop.example/success"
    completion.failure_url = "https://shop.example/failure"  # type: ignore[assignment]
    return completion


def session_request(
    source: threeds.SessionSource, channel: str | None = None, **changes: Any
) -> threeds.SessionRequest:
    request = threeds.SessionRequest()
    request.source = source
    request.amount, request.currency = 6540, Currency.USD
    request.processing_channel_id = "pc_" + "a" * 26
    request.marketplace = threeds.SessionMarketplaceData()
    request.marketplace.sub_entity_id = "ent_" + "a" * 26
    request.challenge_indicator = threeds.SessionChallengeIndicator.NO_PREFERENCE
    request.billing_descriptor = threeds.SessionsBillingDescriptor()
    request.billing_descriptor.name = "SUPERHEROES.COM"
    request.reference = "ORD-5023-4E89"
    request.transaction_type = threeds.TransactionType.GOODS_SERVICE
    request.completion = threeds.NonHostedCompletionInfo()
    if channel is not None:
        request.channel_data = CHANNELS[channel]()
    for name, value in changes.items():
        setattr(request, name, value)
    return request


@pytest.fixture
def sessions(sandbox: Sandbox) -> SessionsClient:
    return sandbox.by_oauth(OAuthScopes.SESSIONS_APP, OAuthScopes.SESSIONS_BROWSER).sessions


@pytest.mark.parametrize("channel", [None, *CHANNELS])
@pytest.mark.parametrize("kind", ["card", "id", "token", "network_token"])
def test_it_creates_a_session_of_each_source_and_channel(
    sessions: SessionsClient, kind: str, channel: str | None
) -> None:
    """Its own request classes are accepted, in all combinations: 202 while the channel's data are
    missing, 201 and approved once a frictionless source has them."""
    made = sessions.request_session(session_request(a_source(kind), channel))
    assert len(made.id) == 30
    assert len(made.session_secret) == 48
    assert (made.scheme, made.amount, made.currency) == ("visa", 6540, "USD")
    if channel is None:
        assert (made.http_metadata.status_code, made.status) == (202, "pending")
        assert made.next_actions == ["collect_channel_data"]
        assert made._links.collect_channel_data.href.endswith(f"/sessions/{made.id}/collect-data")
    else:
        assert (made.http_metadata.status_code, made.status) == (201, "approved")
        assert (made.response_code, made.approved, made.next_actions) == ("Y", True, ["complete"])
        assert (made.eci, bool(made.cryptogram)) == ("05", True)


@pytest.mark.parametrize(
    ("channel", "status", "told", "code", "actions"),
    [
        ("browser", 201, "challenged", "C", ["challenge_cardholder"]),
        ("app", 201, "challenged", "C", ["challenge_cardholder"]),
        ("merchant_initiated", 201, "unavailable", "U", ["complete"]),
    ],
)
def test_a_challenge_needs_a_cardholder(
    sessions: SessionsClient, channel: str, status: int, told: str, code: str, actions: list[str]
) -> None:
    """The card of the SDK's live tests is challenged in browser and app, and cannot be without."""
    made = sessions.request_session(session_request(a_source("card", "challenge"), channel))
    assert (made.http_metadata.status_code, made.status) == (status, told)
    assert (made.response_code, made.next_actions) == (code, actions)
    if told == "challenged":
        assert made.acs.url.endswith("/checkout/acs/challenge")
        assert getattr(made, "3ds").challenge_request
        with refused(403, "operation_not_allowed", "update_not_allowed_due_to_state"):
            sessions.complete_session(made.id)


@pytest.mark.parametrize("channel", [None, "browser"])
def test_it_creates_a_hosted_session(sessions: SessionsClient, channel: str | None) -> None:
    """Hosted is 202 with the page to send the cardholder to, whether data came with it or not."""
    request = session_request(a_source("token", "challenge"), channel, completion=hosted())
    made = sessions.request_session(request)
    assert (made.http_metadata.status_code, made.status) == (202, "pending")
    assert made.next_actions == ["redirect_cardholder"]
    assert made._links.redirect_url.href.startswith("http://127.0.0.1:")
    assert made._links.success_url.href == "https://shop.example/success"
    assert made._links.failure_url.href == "https://shop.example/failure"
    updated = sessions.update_session(made.id, browser(), made.session_secret)
    assert updated.status == "challenged"
    assert not hasattr(updated._links, "redirect_url")


def test_a_session_secret_opens_less_than_a_bearer(sessions: SessionsClient) -> None:
    """Read with the bearer and with the raw secret, the session is the same, but for what only the
    merchant may see."""
    made = sessions.request_session(session_request(a_source("token"), "browser"))
    by_bearer = sessions.get_session_details(made.id)
    by_secret = sessions.get_session_details(made.id, made.session_secret)
    hidden = {"session_secret", "cryptogram", "eci", "certificates"}
    assert set(vars(by_bearer)) - set(vars(by_secret)) == hidden
    assert set(vars(by_secret)) < set(vars(by_bearer))
    for answer in (by_bearer, by_secret):
        assert answer.http_metadata.status_code == 200
        assert (answer.id, answer.status, answer.completed) == (made.id, "approved", False)
    assert by_bearer.cryptogram == made.cryptogram


@pytest.mark.parametrize("with_secret", [False, True], ids=["bearer", "secret"])
@pytest.mark.parametrize("channel", list(CHANNELS))
def test_it_collects_data_and_completes(
    sessions: SessionsClient, channel: str, with_secret: bool
) -> None:
    """A session without channel data takes them later, and is completed once, with 204; all by the
    bearer or all by the secret."""
    made = sessions.request_session(session_request(a_source("token")))
    secret = made.session_secret if with_secret else None
    updated = sessions.update_session(made.id, CHANNELS[channel](), secret)
    assert (updated.http_metadata.status_code, updated.status) == (200, "approved")
    assert hasattr(updated, "session_secret") is not with_secret
    with refused(403, "operation_not_allowed", "update_not_allowed_due_to_state"):
        sessions.update_session(made.id, CHANNELS[channel](), secret)
    done = sessions.complete_session(made.id, secret)
    assert set(vars(done)) == {"http_metadata"}
    assert done.http_metadata.status_code == 204
    with refused(403, "operation_not_allowed", "update_not_allowed_due_to_state"):
        sessions.complete_session(made.id, secret)
    read = sessions.get_session_details(made.id, secret)
    assert (read.completed, read.next_actions) == (True, [])


def test_a_hosted_session_takes_what_the_live_tests_send_it(sessions: SessionsClient) -> None:
    """The live tests of the official SDKs tell a hosted session how the 3DS method went, and give
    it the data of an app: 200 for both, the first without effect, the second the end."""
    for secret in (False, True):
        made = sessions.request_session(
            session_request(a_source("card", "challenge"), completion=hosted())
        )
        by = (made.session_secret,) if secret else ()
        told = sessions.update_3ds_method_completion(
            made.id, method(threeds.ThreeDsMethodCompletion.Y), *by
        )
        assert (told.http_metadata.status_code, told.status) == (200, "pending")
        assert told.next_actions == ["redirect_cardholder"]
        assert hasattr(told, "session_secret") is not secret
        ended = sessions.update_session(made.id, app(), *by)
        assert (ended.http_metadata.status_code, ended.status) == (200, "unavailable")
        assert ended.next_actions == []
        assert set(vars(ended._links)) == {"self", "success_url", "failure_url"}


def method(completion: threeds.ThreeDsMethodCompletion) -> threeds.ThreeDsMethodCompletionRequest:
    request = threeds.ThreeDsMethodCompletionRequest()
    request.three_ds_method_completion = completion
    return request


@pytest.mark.parametrize("first", ["data", "method"])
@pytest.mark.parametrize("completion", list(threeds.ThreeDsMethodCompletion))
@pytest.mark.parametrize("with_secret", [False, True], ids=["bearer", "secret"])
def test_it_tells_how_the_3ds_method_went(
    sessions: SessionsClient, completion: Any, first: str, with_secret: bool
) -> None:
    """Where the issuer has a 3DS method, the session waits for the data and for the method, in
    either order; the `U` that the SDK always puts among the data is not an answer."""
    made = sessions.request_session(session_request(a_source("token", "challenge_method")))
    secret = made.session_secret if with_secret else None
    assert made.next_actions == ["collect_channel_data", "issuer_fingerprint"]
    assert made._links.three_ds_method_url.href.startswith("http")

    def collect() -> Any:
        return sessions.update_session(made.id, browser(), secret)

    def tell() -> Any:
        return sessions.update_3ds_method_completion(made.id, method(completion), secret)

    steps = [(collect, "issuer_fingerprint"), (tell, "collect_channel_data")]
    (one, left), (other, _) = steps if first == "data" else reversed(steps)
    assert (one().status, sessions.get_session_details(made.id).next_actions) == ("pending", [left])
    last = other()
    assert (last.status, last.next_actions) == ("challenged", ["challenge_cardholder"])
    with refused(403, "operation_not_allowed", "update_not_allowed_due_to_state"):
        tell()


def test_a_session_needs_a_scope_of_its_channel(sandbox: Sandbox) -> None:
    """A token for something else creates nothing, and one of the app no browser session."""
    elsewhere = sandbox.by_oauth(OAuthScopes.FX).sessions
    with refused(403, "operation_not_allowed", "operation_not_allowed_for_scope"):
        elsewhere.request_session(session_request(a_source("token")))
    of_app = sandbox.by_oauth(OAuthScopes.SESSIONS_APP).sessions
    of_app.request_session(session_request(a_source("token"), "app"))
    with refused(403, "operation_not_allowed", "operation_not_allowed_for_scope"):
        of_app.request_session(session_request(a_source("token"), "browser"))


def test_it_is_told_what_is_wrong_with_a_session(
    sandbox: Sandbox, sessions: SessionsClient
) -> None:
    """Faults of each call arrive with their status, type, codes and request id."""
    empty = threeds.SessionRequest()
    with refused(
        422,
        "unprocessable_entity",
        "currency_required",
        "source_number_required",
        "source_expiry_month_required",
        "source_expiry_year_required",
        "completion_required",
    ):
        sessions.request_session(empty)
    with refused(422, "unprocessable_entity", "source_token_invalid"):
        sessions.request_session(session_request(a_source("token", "invalid")))
    with refused(422, "unprocessable_entity", "hosted_not_supported_for_app"):
        sessions.request_session(session_request(a_source("token"), "app", completion=hosted()))
    with refused(404, "not_found", "session_not_found"):
        sessions.get_session_details("sid_" + "a" * 26)
    made = sessions.request_session(session_request(a_source("token")))
    with refused(422, "unprocessable_entity", "ip_address_invalid"):
        sessions.update_session(made.id, browser(ip_address="somewhere"))
    other = sessions.request_session(session_request(a_source("token")))
    for secret in (other.session_secret, "sek_" + "a" * 44):
        with refused(401, None):
            sessions.get_session_details(made.id, secret)
    sandbox.http.post(f"{sandbox.url}/_sandbox/revoke")
    with refused(401, None):
        sessions.get_session_details(made.id)


@pytest.mark.parametrize(
    ("answer", "status", "approved"),
    [
        ("approve", "approved", True),
        ("fail", "declined", False),
        ("cancel", "challenge_abandoned", False),
    ],
)
def test_it_sees_a_challenge_through(
    sandbox: Sandbox, sessions: SessionsClient, answer: str, status: str, approved: bool
) -> None:
    """From the request over the cardholder's answer, given to the bank as a browser gives it, to
    completion: the SDK reads each state as it is."""
    made = sessions.request_session(session_request(a_source("token", "challenge"), "browser"))
    creq = {"creq": getattr(made, "3ds").challenge_request}
    page = sandbox.http.post(made.acs.url, data=creq)
    assert (page.status_code, page.headers["content-type"].split(";")[0]) == (200, "text/html")
    given = {"acsTransID": made.acs.transaction_id, "answer": answer}
    assert sandbox.http.post(f"{made.acs.url}/answer", data=given).status_code == 200
    read = sessions.get_session_details(made.id)
    assert (read.status, read.approved, read.challenged) == (status, approved, True)
    assert hasattr(read, "cryptogram") is approved
    assert read.next_actions == ["complete"]
    assert sessions.complete_session(made.id).http_metadata.status_code == 204
    assert sessions.get_session_details(made.id).completed is True


def test_a_session_that_waits_too_long_is_expired(
    sandbox: Sandbox, sessions: SessionsClient
) -> None:
    """Nothing but its status says that a session has expired."""
    made = sessions.request_session(session_request(a_source("token")))
    assert not [name for name in vars(made) if "expire" in name]
    sandbox.now = NOON + timedelta(seconds=SandboxSettings().checkout_session_seconds)
    read = sessions.get_session_details(made.id)
    assert (read.status, read.next_actions) == ("expired", [])
    with refused(403, "operation_not_allowed", "update_not_allowed_due_to_state"):
        sessions.update_session(made.id, browser())
