"""Puts the sandbox together: settings in, one Starlette app out.

The only module that knows every upstream and every path.  It must stay free of middleware: what
it adds to a request is what the benchmarks subtract.
"""

import contextlib
import inspect
import random
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, cast

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from broker.sandbox.checkout import Checkout
from broker.sandbox.clock import SandboxClock
from broker.sandbox.control import Control
from broker.sandbox.deliveries import Deliveries
from broker.sandbox.exchange import AwaitedEndpoint, Endpoint
from broker.sandbox.idp import IdentityProvider
from broker.sandbox.issuing import Issuing
from broker.sandbox.login import Login
from broker.sandbox.nmi import Nmi
from broker.sandbox.nmi_report import NmiReport
from broker.sandbox.opaque import OpaqueTokens
from broker.sandbox.operations import AwaitedOperation, Exchange, Ledger, Operation
from broker.sandbox.origins import Cors, any_origin, loopback_only
from broker.sandbox.payment_sessions import PaymentSessions
from broker.sandbox.settings import SandboxSettings
from broker.sandbox.shop import back
from broker.sandbox.threeds_api import ThreeDsApi
from broker.sandbox.threeds_control import ThreeDsControl
from broker.sandbox.threeds_flow import Sessions
from broker.sandbox.threeds_pages import ThreeDsPages

Row = tuple[str, str, str, Endpoint | AwaitedEndpoint]
"""Path, operation, methods, endpoint."""

_SESSION: Final = "/checkout/api/sessions/{id}"
_READ_BY: Final = {
    "nmi.embed": any_origin,
    "nmi.transactions": any_origin,
    "idp.token": loopback_only,
}
"""Operations that scripts of pages call; the other pages' forms and links need no leave."""


def build(settings: SandboxSettings) -> Starlette:
    clock = SandboxClock(settings.clock)
    random_bytes = _random_bytes(settings.seed)
    nmi_sessions = OpaqueTokens("st_", clock, random_bytes)
    nmi = Nmi(settings, clock, nmi_sessions, settings.nmi_session_seconds)
    minute = Nmi(settings, clock, nmi_sessions, settings.nmi_minute_session_seconds)
    checkout = Checkout(settings, clock)
    flow = PaymentSessions(settings, clock, checkout, random_bytes)
    issuing = Issuing(settings, checkout)
    deliveries = Deliveries(settings, clock)
    sessions = Sessions(settings, clock, deliveries, random_bytes)
    threeds = ThreeDsApi(settings, checkout, sessions)
    idp = IdentityProvider(settings, clock, OpaqueTokens("svc_", clock, random_bytes))
    login = Login(settings, clock, idp, OpaqueTokens("login_", clock, random_bytes))

    rows = [
        *_operations(nmi, checkout),
        *_page_operations(minute, NmiReport(clock, nmi_sessions)),
        *_idp_operations(idp, login),
        *_flow_operations(flow, issuing),
        *_threeds_operations(threeds, ThreeDsPages(sessions)),
    ]
    ledger = Ledger([name for _, name, _, _ in rows])
    controls = [
        *_controls(Control(ledger, clock, checkout, idp, nmi_sessions)),
        *_threeds_controls(ThreeDsControl(sessions, deliveries)),
    ]
    routes = [
        *(Route(row[0], _operation(row, clock, ledger)) for row in rows),
        # Last of its prefix: what is nothing else is a wrong account prefix.
        Route("/checkout/{rest:path}", Exchange(checkout.elsewhere, "", clock)),
        *(Route(row[0], _control(row, clock)) for row in controls),
    ]
    app = Starlette(routes=routes, lifespan=_closing(deliveries))
    # No real upstream redirects a wrong slash, and a broker that followed would hide the fault.
    app.router.redirect_slashes = False
    return app


def _operation(row: Row, clock: SandboxClock, ledger: Ledger) -> ASGIApp:
    _, name, methods, endpoint = row
    if inspect.iscoroutinefunction(endpoint):
        return AwaitedOperation(name, endpoint, methods, clock, ledger)
    operation = Operation(name, cast("Endpoint", endpoint), methods, clock, ledger)
    leave = _READ_BY.get(name)
    return Cors(operation, leave, methods, clock) if leave else operation


def _control(row: tuple[str, str, Endpoint], clock: SandboxClock) -> ASGIApp:
    _, methods, endpoint = row
    return Cors(Exchange(endpoint, methods, clock), loopback_only, methods, clock)


def _closing(deliveries: Deliveries) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    """A lifespan at whose end nothing of the sandbox is under way any more."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await deliveries.close()

    return lifespan


def _operations(nmi: Nmi, checkout: Checkout) -> list[Row]:
    # Routes are tried in order, and only the first is ever benchmarked.
    return [
        ("/nmi/api/v1/sessions", "nmi.session", "POST", nmi.create_session),
        ("/nmi/api/v1/report", "nmi.report", "GET HEAD", nmi.report),
        ("/checkout/access/connect/token", "checkout.token", "POST", checkout.token),
        ("/checkout/api/ping", "checkout.ping", "GET HEAD", checkout.ping),
    ]


def _page_operations(minute: Nmi, report: NmiReport) -> list[Row]:
    return [
        ("/nmi-minute/api/v1/sessions", "nmi-minute.session", "POST", minute.create_session),
        ("/nmi/embed/report.js", "nmi.embed", "GET HEAD", report.script),
        (
            "/nmi/api/v1/reports/transactions",
            "nmi.transactions",
            "GET HEAD",
            report.transactions,
        ),
    ]


def _idp_operations(idp: IdentityProvider, login: Login) -> list[Row]:
    return [
        ("/idp/jwks", "idp.jwks", "GET HEAD", idp.jwks),
        ("/idp/.well-known/openid-configuration", "idp.discovery", "GET HEAD", idp.discovery),
        # RFC 8414 section 3.1: the well-known part goes between host and issuer path.
        ("/.well-known/oauth-authorization-server/idp", "idp.discovery", "GET HEAD", idp.discovery),
        ("/idp/authorize", "idp.authorize", "GET POST", login.authorize),
        ("/idp/logout", "idp.logout", "GET", login.logout),
        ("/idp/token", "idp.token", "GET POST", login.token),
        ("/idp/introspect", "idp.introspect", "POST", idp.introspect),
        ("/idp/whoami", "idp.whoami", "GET HEAD", idp.whoami),
    ]


def _flow_operations(flow: PaymentSessions, issuing: Issuing) -> list[Row]:
    payments = "/checkout/api/payment-sessions"
    return [
        (payments, "checkout.payment-session", "POST", flow.create),
        (f"{payments}/{{id}}/submit", "checkout.payment-session-submit", "POST", flow.submit),
        (
            "/checkout/api/issuing/access/connect/token",
            "checkout.cardholder-token",
            "POST",
            issuing.token,
        ),
    ]


def _threeds_operations(threeds: ThreeDsApi, pages: ThreeDsPages) -> list[Row]:
    return [
        ("/checkout/api/sessions", "checkout.session", "POST", threeds.create),
        (_SESSION, "checkout.session-read", "GET HEAD", threeds.read),
        (f"{_SESSION}/collect-data", "checkout.collect-data", "PUT", threeds.collect_data),
        (
            f"{_SESSION}/issuer-fingerprint",
            "checkout.issuer-fingerprint",
            "PUT",
            threeds.issuer_fingerprint,
        ),
        (f"{_SESSION}/complete", "checkout.complete", "POST", threeds.complete),
        ("/checkout/acs/method", "checkout.acs-method", "POST", pages.method),
        ("/checkout/acs/challenge", "checkout.acs-challenge", "POST", pages.challenge),
        ("/checkout/acs/challenge/answer", "checkout.acs-answer", "POST", pages.answer),
        ("/checkout/pay/{token}", "checkout.pay", "GET POST", pages.pay),
        ("/shop/{outcome}", "shop.back", "GET HEAD POST", back),
    ]


def _controls(control: Control) -> list[tuple[str, str, Endpoint]]:
    return [
        ("/_sandbox/calls", "GET", control.calls),
        ("/_sandbox/reset", "POST", control.reset),
        ("/_sandbox/faults", "GET POST DELETE", control.faults),
        ("/_sandbox/revoke", "POST", control.revoke),
        ("/_sandbox/rotate-keys", "POST", control.rotate_keys),
        ("/_sandbox/clock", "POST", control.clock),
    ]


def _threeds_controls(control: ThreeDsControl) -> list[tuple[str, str, Endpoint]]:
    return [
        ("/_sandbox/sessions/{id}", "GET POST", control.session),
        ("/_sandbox/webhooks", "GET POST DELETE", control.webhooks),
        ("/_sandbox/deliveries", "GET", control.deliveries),
        ("/_sandbox/redeliver", "POST", control.redeliver),
    ]


def _random_bytes(seed: int | None) -> Callable[[int], bytes]:
    if seed is None:
        return secrets.token_bytes
    # Repeatable on request: these tokens open nothing but the sandbox itself.
    return random.Random(seed).randbytes  # noqa: S311  (a seed is for tests that want the same tokens again)
