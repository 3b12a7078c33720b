"""What a sandbox knows before its first request: keys, clients, people, lifetimes.

Everything has a default, so that `SandboxSettings()` is a working world.  The defaults are
printed in the README: nothing here may ever be a secret somewhere else.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


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
    return {"reports-backend": "access-tokens:read"}


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
    checkout_ping_scopes: frozenset[str] = frozenset(
        {"sessions", "sessions:app", "sessions:browser"}
    )

    idp_users: Mapping[str, Mapping[str, object]] = field(default_factory=_idp_users)
    idp_services: Mapping[str, str] = field(default_factory=_idp_services)
    """Service name to the scope its opaque tokens carry."""
    idp_introspection_clients: Mapping[str, str] = field(
        default_factory=_introspection_clients, repr=False
    )
    idp_token_seconds: int = 600
    idp_jwks_max_age: int = 300

    issuer_base_url: str | None = None
    """Absent: taken from the Host header of each request, so that any free port will do."""

    clock: Callable[[], float] = time.time
    """Epoch seconds; the skew of the control plane is added to it."""
    seed: int | None = None
    """Makes opaque values repeatable.  Signing keys are always new."""
