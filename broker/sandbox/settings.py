"""What a sandbox knows before its first request: keys, clients, people, lifetimes.

Everything has a default, so that `SandboxSettings()` is a working world.  The defaults are
printed in the README: nothing here may ever be a secret somewhere else.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal


def _checkout_clients() -> Mapping[str, str]:
    # `+`, `/` and `=` are in the secret on purpose: a client that does not form-encode its
    # secret works with every tame one and fails with the real ones, which contain all three.
    return {"ack_sandbox": "sandbox+secret/with=chars=="}


def _idp_users() -> Mapping[str, Mapping[str, object]]:
    return {
        "ada": {"role": "owner", "merchant_id": "100200300"},
        "bob": {"role": "accountant", "merchant_id": "100200301"},
        "eve": {"role": "guest"},
    }


def _idp_services() -> Mapping[str, str]:
    return {"reports-backend": "access-tokens:read", "shop-backend": "results:read"}


def _introspection_clients() -> Mapping[str, str]:
    return {"introspect": "introspect-secret"}


@dataclass(frozen=True, slots=True)
class SandboxSettings:
    """One sandbox.  Fields that hold keys stay out of the repr, from habit rather than need."""

    nmi_gateway_keys: frozenset[str] = field(default=frozenset({"sandbox-nmi-key"}), repr=False)
    nmi_merchant_central_keys: frozenset[str] = field(
        default=frozenset({"sandbox-mc-key"}), repr=False
    )
    nmi_environments: frozenset[str] = frozenset({"sandbox", "production"})
    nmi_session_seconds: int = 900
    nmi_minute_session_seconds: int = 60
    """Of the second account: short enough to watch a few rotations."""

    checkout_clients: Mapping[str, str] = field(default_factory=_checkout_clients, repr=False)
    checkout_token_seconds: int = 3600
    checkout_scopes: tuple[str, ...] = (
        "sessions",
        "sessions:app",
        "sessions:browser",
        "payment-sessions",
        "gateway",
        "flow",
        "fx",
    )
    checkout_secret_keys: frozenset[str] = field(
        default=frozenset({"sk_sbox_sandboxsandboxsandboxsandbo"}), repr=False
    )
    checkout_payment_session_seconds: int = 3600
    """Without an expires_on.  Nobody publishes the real one."""
    checkout_cardholder_token_seconds: int = 900
    checkout_session_seconds: float = 900
    """3DS sessions; nobody publishes how long the real ones wait, nor any of these lifetimes."""
    checkout_challenge_seconds: float = 300
    checkout_secret_seconds: float = 3600
    checkout_sessions_kept: int = 10_000
    checkout_redirect_link: Literal["redirect_url", "redirect"] = "redirect_url"
    """The reference and a guide of Checkout.com disagree on how this link is spelt."""
    checkout_webhooks: Mapping[str, str] = field(default_factory=dict, repr=False)
    """URL on this machine to the key that signs what is sent there."""
    checkout_delivery_retries: tuple[float, ...] = (0.2, 0.5, 1.0)
    """Seconds before each further attempt at a callback or webhook."""
    checkout_delivery_timeout: float = 5.0

    checkout_ping_scopes: frozenset[str] = frozenset(
        {"sessions", "sessions:app", "sessions:browser"}
    )

    idp_users: Mapping[str, Mapping[str, object]] = field(default_factory=_idp_users)
    idp_services: Mapping[str, str] = field(default_factory=_idp_services)
    """Service name to the scope its opaque tokens carry."""
    idp_introspection_clients: Mapping[str, str] = field(
        default_factory=_introspection_clients, repr=False
    )
    idp_login_clients: frozenset[str] = frozenset({"demo"})
    """Public clients, whose pages may send people to the login page."""
    idp_token_seconds: int = 600
    idp_jwks_max_age: int = 300

    issuer_base_url: str | None = None
    """Absent: taken from the Host header of each request, so that any free port will do."""

    clock: Callable[[], float] = time.time
    """Epoch seconds; the skew of the control plane is added to it."""
    seed: int | None = None
    """Makes opaque values repeatable.  Signing keys are always new."""
