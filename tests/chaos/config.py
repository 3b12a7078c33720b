"""The configuration of a chaos world's brokers, and the secrets that it refers to.

The lives are short enough to see several of in a row, and the floors high enough to be reached.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

PAGES_KEY = "pages-" + "k" * 32
SERVICES_KEY = "services-" + "k" * 32
SECRETS = {
    "seal": "s" * 43,
    "pages": PAGES_KEY,
    "services": SERVICES_KEY,
    "nmi": "sandbox-nmi-key",
    "checkout-id": "ack_sandbox",
    "checkout-secret": "sandbox+secret/with=chars==",
}
"""By file name; those of upstreams are the sandbox's own, and worth nothing."""
BUDGET = 6.0
"""`server.request_budget`: below the default, so that what hangs does not hold a row up;
four fifths of it are above the life of a dead replica's claim (3 s)."""
NMI_FLOOR = 300.0
ACCESS_LIFE = 3600.0
FLOW_LIFE = 1800.0


def put_secrets(directory: Path) -> None:
    directory.mkdir()
    for name, value in SECRETS.items():
        (directory / name).write_text(value)


def file(directory: Path, name: str) -> dict[str, str]:
    return {"file": str(directory / name)}


def config(secrets: Path, upstream: str, tokens: str) -> dict[str, Any]:
    """upstream, tokens: the sandbox's address as called for sessions, and for access tokens."""
    return {
        "server": {
            "public": {"host": "127.0.0.1", "port": 0},
            "ops": {"host": "127.0.0.1", "port": 0},
            "request_budget": f"{BUDGET:.0f}s",
            "drain_delay": "0s",
            "shutdown_grace": "8s",
            "warm_up": "5s",
            "reload_interval": "250ms",
        },
        "keys": file(secrets, "seal"),
        "callers": {
            "pages": _issuer("pages", secrets),
            "services": _issuer("services", secrets),
        },
        "credentials": {
            "checkout": {
                "token_url": f"{tokens}/checkout/access/connect/token",
                "client_id": file(secrets, "checkout-id"),
                "client_secret": file(secrets, "checkout-secret"),
                "scope": ["payment-sessions", "sessions:browser"],
                "timeout": "2s",
                "expose_to": ["services"],
            }
        },
        "profiles": {
            "nmi": {
                "preset": "nmi",
                "base_url": f"{upstream}/nmi/api/v1",
                "api_key": file(secrets, "nmi"),
                "gateway": {"merchant_id": "${claims.merchant_id}", "environment": "sandbox"},
                "allow": {"callers": ["pages"], "require": {"role": ["owner"]}},
                "rotation": {"max_chain": "8h", "grace": "60s"},
                "min_remaining": f"{NMI_FLOOR:.0f}s",
            },
            "flow": {
                "preset": "checkout/flow",
                "credential": "checkout",
                "base_url": f"{upstream}/checkout/api",
                "amount": 6540,
                "currency": "GBP",
                "billing": {"address": {"country": "GB"}},
                "success_url": "https://shop.example/success",
                "failure_url": "https://shop.example/failure",
                "allow": {"callers": ["pages"]},
            },
        },
    }


def _issuer(name: str, secrets: Path) -> dict[str, Any]:
    """Short `cache`: a clock that was stepped must meet the checks anew."""
    return {
        "type": "jwt",
        "issuer": name,
        "audience": "token-broker",
        "shared_secret": file(secrets, name),
        "cache": "2s",
    }


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with the members of `changes`, at any depth."""
    found = copy.deepcopy(base)
    for key, value in changes.items():
        known = found.get(key)
        both = isinstance(known, dict) and isinstance(value, dict)
        found[key] = merged(known, value) if both else value
    return found


def write(path: Path, told: dict[str, Any]) -> None:
    """In one step, as a volume of Kubernetes changes its files."""
    aside = path.with_suffix(".new")
    aside.write_text(yaml.safe_dump(told, sort_keys=False))
    aside.replace(path)
