"""Puts the sandbox together: settings in, one Starlette app out.

The only module that knows every upstream and every path.  It must stay free of middleware: what
it adds to a request is what the benchmarks subtract.
"""

import random
import secrets
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.routing import Route

from broker.sandbox.checkout import Checkout
from broker.sandbox.clock import SandboxClock
from broker.sandbox.control import Control
from broker.sandbox.exchange import Endpoint
from broker.sandbox.idp import IdentityProvider
from broker.sandbox.nmi import Nmi
from broker.sandbox.opaque import OpaqueTokens
from broker.sandbox.operations import Exchange, Ledger, Operation
from broker.sandbox.settings import SandboxSettings

Row = tuple[str, str, str, Endpoint]
"""Path, operation, methods, endpoint."""


def build(settings: SandboxSettings) -> Starlette:
    clock = SandboxClock(settings.clock)
    random_bytes = _random_bytes(settings.seed)
    nmi = Nmi(settings, clock, OpaqueTokens("st_", clock, random_bytes))
    checkout = Checkout(settings, clock)
    idp = IdentityProvider(settings, clock, OpaqueTokens("svc_", clock, random_bytes))

    rows = _operations(nmi, checkout, idp)
    ledger = Ledger([name for _, name, _, _ in rows])
    control = Control(ledger, clock, checkout, idp)
    routes = [
        *(
            Route(path, Operation(name, f, methods, clock, ledger))
            for path, name, methods, f in rows
        ),
        # Last of its prefix: what is nothing else is a wrong account prefix.
        Route("/checkout/{rest:path}", Exchange(checkout.elsewhere, "", clock)),
        *(Route(path, Exchange(f, methods, clock)) for path, methods, f in _controls(control)),
    ]
    app = Starlette(routes=routes)
    # No real upstream redirects a wrong slash, and a broker that followed would hide the fault.
    app.router.redirect_slashes = False
    return app


def _operations(nmi: Nmi, checkout: Checkout, idp: IdentityProvider) -> list[Row]:
    # Routes are tried in order, and only the first is ever benchmarked.
    return [
        ("/nmi/api/v1/sessions", "nmi.session", "POST", nmi.create_session),
        ("/nmi/api/v1/report", "nmi.report", "GET HEAD", nmi.report),
        ("/checkout/access/connect/token", "checkout.token", "POST", checkout.token),
        ("/checkout/api/ping", "checkout.ping", "GET HEAD", checkout.ping),
        ("/idp/jwks", "idp.jwks", "GET HEAD", idp.jwks),
        ("/idp/.well-known/openid-configuration", "idp.discovery", "GET HEAD", idp.discovery),
        # RFC 8414 section 3.1: the well-known part goes between host and issuer path.
        ("/.well-known/oauth-authorization-server/idp", "idp.discovery", "GET HEAD", idp.discovery),
        ("/idp/token", "idp.token", "GET POST", idp.token),
        ("/idp/introspect", "idp.introspect", "POST", idp.introspect),
        ("/idp/whoami", "idp.whoami", "GET HEAD", idp.whoami),
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


def _random_bytes(seed: int | None) -> Callable[[int], bytes]:
    if seed is None:
        return secrets.token_bytes
    # Repeatable on request: these tokens open nothing but the sandbox itself.
    return random.Random(seed).randbytes  # noqa: S311  (a seed is for tests that want the same tokens again)
