"""What a request to Checkout.com's Sessions must look like, and the code of each fault in it.

All faults are found before any is told, as the real API does: `source_number_invalid` beside
`currency_required`.  Unknown members are let pass.  A code names a member and never a value,
because the values are card numbers.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import urlsplit

Good: TypeAlias = Callable[[Any], bool]


class Field(NamedTuple):
    """One member: what is good for it, or which members it has itself."""

    good: "Good | Mapping[str, Field]"
    required: bool = False


Fields: TypeAlias = Mapping[str, Field]


def examine(value: Mapping[str, Any], fields: Fields, prefix: str = "") -> list[str]:
    """The error codes of `value`; null is as good as absent."""
    codes: list[str] = []
    for name, field in fields.items():
        member, code = value.get(name), f"{prefix}{name}"
        if member is None:
            codes += [f"{code}_required"] if field.required else []
        elif not isinstance(field.good, Mapping):
            codes += [] if field.good(member) else [f"{code}_invalid"]
        elif isinstance(member, dict):
            codes += examine(member, field.good, f"{code}_")
        else:
            codes.append(f"{code}_invalid")
    return codes


def text(longest: int, shortest: int = 1) -> Good:
    return lambda value: isinstance(value, str) and shortest <= len(value) <= longest


def pattern(expression: str) -> Good:
    compiled = re.compile(expression)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def one_of(*values: str) -> Good:
    return lambda value: isinstance(value, str) and value in values


def integer(least: int, most: int = 2**53) -> Good:
    return lambda value: type(value) is int and least <= value <= most


def boolean(value: Any) -> bool:
    return isinstance(value, bool)


def list_of(good: Good) -> Good:
    return lambda value: isinstance(value, list) and bool(value) and all(map(good, value))


_URL: Final = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+([/?#][^\s\"<>\\]*)?")


def is_url(value: Any) -> bool:
    """http or https to a plain host: what is put into headers and pages must not break them."""
    if not isinstance(value, str) or len(value) > 256 or not value.isprintable():
        return False
    try:
        return _URL.fullmatch(value) is not None and bool(urlsplit(value).hostname)
    except ValueError:
        return False


def is_card_number(value: Any) -> bool:
    """13 to 19 digits whose last is the check digit of ISO/IEC 7812-1."""
    if not isinstance(value, str) or not re.fullmatch("[0-9]{13,19}", value):
        return False
    doubled = [int(digit) * (1 + position % 2) for position, digit in enumerate(value[::-1])]
    return sum(digit - 9 if digit > 9 else digit for digit in doubled) % 10 == 0


SCHEMES: Final = (
    "visa", "mastercard", "amex", "jcb", "diners", "discover", "cartes_bancaires", "upi",
)  # fmt: skip
_UUID: Final = pattern("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_ADDRESS: Final[Fields] = {
    "address_line1": Field(text(50, 0)),
    "address_line2": Field(text(50, 0)),
    "address_line3": Field(text(50, 0)),
    "city": Field(text(50, 0)),
    "state": Field(text(3, 0)),
    "zip": Field(text(16, 0)),
    "country": Field(pattern("[A-Z]{2}")),
}
_PHONE: Final[Fields] = {
    "country_code": Field(pattern("[0-9]{1,3}"), required=True),
    "number": Field(pattern("[0-9]{1,15}"), required=True),
}
_ANY_SOURCE: Final[Fields] = {
    "scheme": Field(one_of(*SCHEMES)),
    "billing_address": Field(_ADDRESS),
    "home_phone": Field(_PHONE),
    "mobile_phone": Field(_PHONE),
    "work_phone": Field(_PHONE),
    "email": Field(text(254)),
}
_CARD_DATES: Final[Fields] = {
    "expiry_month": Field(integer(1, 12), required=True),
    "expiry_year": Field(integer(2000, 2999), required=True),
    "name": Field(text(45, 2)),
    "stored": Field(boolean),
}
SOURCES: Final[Mapping[str, Fields]] = {
    "card": {"number": Field(is_card_number, required=True), **_CARD_DATES, **_ANY_SOURCE},
    "id": {"id": Field(pattern(r"src_\w{1,96}"), required=True), **_ANY_SOURCE},
    "token": {"token": Field(pattern(r"tok_\w{1,96}"), required=True), **_ANY_SOURCE},
    "network_token": {
        "token": Field(pattern("[0-9]{9,19}"), required=True),
        **_CARD_DATES,
        **_ANY_SOURCE,
    },
}
COMPLETIONS: Final[Mapping[str, Fields]] = {
    "hosted": {
        "success_url": Field(is_url, required=True),
        "failure_url": Field(is_url, required=True),
        "callback_url": Field(is_url),
    },
    "non_hosted": {"callback_url": Field(is_url), "challenge_notification_url": Field(is_url)},
}
CHANNELS: Final[Mapping[str, Fields]] = {
    "browser": {
        "three_ds_method_completion": Field(one_of("Y", "N", "U")),
        "accept_header": Field(text(2048), required=True),
        "java_enabled": Field(boolean, required=True),
        "javascript_enabled": Field(boolean, required=True),
        "language": Field(text(12), required=True),
        "color_depth": Field(pattern("[0-9]{1,2}"), required=True),
        "screen_height": Field(pattern("[0-9]{1,6}"), required=True),
        "screen_width": Field(pattern("[0-9]{1,6}"), required=True),
        "timezone": Field(pattern("[+-]?[0-9]{1,4}"), required=True),
        "user_agent": Field(text(2048), required=True),
        "ip_address": Field(pattern("[0-9a-fA-F.:]{2,45}"), required=True),
        "iframe_payment_allowed": Field(boolean),
        "user_agent_client_hint": Field(text(2048)),
    },
    "app": {
        "sdk_app_id": Field(_UUID, required=True),
        "sdk_max_timeout": Field(integer(5), required=True),
        "sdk_ephem_pub_key": Field(
            {name: Field(text(256), required=True) for name in ("kty", "crv", "x", "y")},
            required=True,
        ),
        "sdk_reference_number": Field(text(32), required=True),
        "sdk_encrypted_data": Field(text(64000), required=True),
        "sdk_transaction_id": Field(_UUID, required=True),
        "sdk_interface_type": Field(one_of("native", "html", "both"), required=True),
        "sdk_ui_elements": Field(
            list_of(one_of("text", "single_select", "multi_select", "oob", "html_other")),
            required=True,
        ),
    },
    "merchant_initiated": {
        "request_type": Field(
            one_of(
                "recurring_transaction", "installment_transaction", "add_card",
                "maintain_card_information", "account_verification", "split_or_delayed_shipment",
                "top_up", "mail_order", "telephone_order", "whitelist_status_check",
                "other_payment",
            ),
            required=True,
        )
    },
}  # fmt: skip
_REQUEST: Final[Fields] = {
    "currency": Field(pattern("[A-Z]{3}"), required=True),
    "amount": Field(integer(0)),
    "processing_channel_id": Field(pattern(r"pc_\w{26}")),
    "marketplace": Field({"sub_entity_id": Field(pattern(r"ent_\w{26}"))}),
    "authentication_type": Field(
        one_of("regular", "recurring", "installment", "maintain_card", "add_card")
    ),
    "authentication_category": Field(one_of("payment", "non_payment")),
    "challenge_indicator": Field(
        one_of(
            "no_preference", "no_challenge_requested", "challenge_requested",
            "challenge_requested_mandate", "low_value", "trusted_listing",
            "trusted_listing_prompt", "transaction_risk_assessment", "data_share",
        )
    ),
    "transaction_type": Field(
        one_of(
            "goods_service", "check_acceptance", "account_funding", "quasi_card_transaction",
            "prepaid_activation_and_load",
        )
    ),
    "reference": Field(text(100)),
    "billing_descriptor": Field({"name": Field(text(25)), "city": Field(text(13))}),
    "shipping_address": Field(_ADDRESS),
    "shipping_address_matches_billing": Field(boolean),
    "recurring": Field(
        {"days_between_payments": Field(integer(1)), "expiry": Field(pattern("[0-9]{8}"))}
    ),
    "installment": Field(
        {
            "number_of_payments": Field(integer(2), required=True),
            "days_between_payments": Field(integer(1)),
            "expiry": Field(pattern("[0-9]{8}")),
        }
    ),
    "preferred_experiences": Field(list_of(one_of("3ds", "google_spa"))),
}  # fmt: skip


def faults_of_request(request: Mapping[str, Any]) -> list[str]:
    codes = examine(request, _REQUEST)
    codes += faults_of_variant(request.get("source"), "type", SOURCES, "source")
    codes += faults_of_variant(request.get("completion"), "type", COMPLETIONS, "completion")
    channel_data = request.get("channel_data")
    if channel_data is not None:
        codes += faults_of_variant(channel_data, "channel", CHANNELS, "channel_data")
    if request.get("authentication_type") in ("recurring", "installment"):
        if request.get("amount") is None:
            codes.append("amount_required")
        elif request["amount"] == 0:
            codes.append("amount_invalid")
    return codes or _faults_together(request)


def _faults_together(request: Mapping[str, Any]) -> list[str]:
    """What is wrong only because of something else in the request."""
    channel = (request.get("channel_data") or {}).get("channel")
    if request["completion"]["type"] == "hosted" and channel == "app":
        return ["hosted_not_supported_for_app"]
    if request["completion"]["type"] == "hosted" and channel == "merchant_initiated":
        return ["channel_data_invalid"]
    return []


def faults_of_variant(
    value: object, key: str, variants: Mapping[str, Fields], name: str = ""
) -> list[str]:
    """Faults of an object whose `key` says which members it must have."""
    prefix = f"{name}_" if name else ""
    if value is None:
        return [f"{name}_required"]
    if not isinstance(value, dict):
        return [f"{name}_invalid"]
    kind = value.get(key)
    if kind is None:
        return [f"{prefix}{key}_required"]
    if not isinstance(kind, str) or kind not in variants:
        return [f"{prefix}{key}_invalid"]
    return examine(value, variants[kind], prefix)
