"""What callers show and read: their JWTs, and the bodies that come back."""

from __future__ import annotations

import base64
import hmac
import json
import time
from typing import Any

from tests.chaos import config
from tests.chaos.judge import merchant_of


def jwt(issuer: str, subject: str, **claims: Any) -> str:
    """HS256, good for two days: a clock that is an hour off must not matter."""
    key = {"pages": config.PAGES_KEY, "services": config.SERVICES_KEY}[issuer]
    now = int(time.time())
    told = {"iss": issuer, "aud": "token-broker", "sub": subject, "exp": now + 172_800, **claims}
    parts = [{"alg": "HS256", "typ": "JWT"}, told]
    signed = b".".join(_packed(json.dumps(part).encode()) for part in parts)
    return (signed + b"." + _packed(hmac.digest(key.encode(), signed, "sha256"))).decode()


def read(raw: bytes) -> dict[str, Any]:
    """The members of a JSON object; a proxy's own error page has none."""
    try:
        told = json.loads(raw or b"{}")
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _packed(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def page_jwt(subject: str) -> str:
    return jwt("pages", subject, role="owner", merchant_id=merchant_of(subject))
