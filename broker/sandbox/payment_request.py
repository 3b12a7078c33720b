"""What is wrong with a payment session request, said in the error codes of the API.

All faults at once, in the order of the reference.  Members that it does not require are left
alone: they are the payment's business, and must never be a reason to refuse here.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

_CURRENCY = re.compile("[A-Z]{3}")
_COUNTRY = re.compile("[A-Z]{2}")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,7})?(Z|[+-]\d\d:\d\d)?", re.ASCII)
_LONGEST_URL = 1024


def faults_of(request: dict[str, Any], now: float) -> list[str]:
    rules: list[tuple[tuple[str, ...], Callable[[Any], bool]]] = [
        (("amount",), _is_amount),
        (("currency",), _matching(_CURRENCY)),
        (("billing", "address", "country"), _matching(_COUNTRY)),
        (("success_url",), _is_url),
        (("failure_url",), _is_url),
    ]
    faults = [fault for path, valid in rules if (fault := _fault(request, path, valid))]
    expires_on = request.get("expires_on")
    if expires_on is not None and not _is_future(expires_on, now):
        faults.append("expires_on_invalid")
    return faults


def instant(expires_on: str) -> float:
    """Epoch seconds of an ISO 8601 time.

    The official Python SDK sends a naive datetime without an offset: taken as UTC, a guess.
    """
    time = datetime.fromisoformat(expires_on)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _fault(request: Any, path: tuple[str, ...], valid: Callable[[Any], bool]) -> str | None:
    """The code names how far along its path the value got: billing_address_required."""
    value = request
    for depth, name in enumerate(path, start=1):
        told = "_".join(path[:depth])
        if not isinstance(value, dict):
            return f"{'_'.join(path[: depth - 1])}_invalid"
        value = value.get(name)
        if value is None or value == "":
            return f"{told}_required"
    return None if valid(value) else f"{told}_invalid"


def _is_amount(value: Any) -> bool:
    return type(value) is int and value >= 0


def _matching(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_url(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > _LONGEST_URL:
        return False
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _is_future(value: Any, now: float) -> bool:
    if not isinstance(value, str) or not _INSTANT.fullmatch(value):
        return False
    try:
        return instant(value) > now
    except ValueError:
        return False
