"""How an authentication will end, chosen by the magic value in its source.

Tokens, stored cards and card numbers choose alike; N is one of frictionless, challenge, decline,
reject, attempt, unavailable:

    tok_N, src_N                  that outcome; more characters may follow
    tok_N_method, src_N_method    the same, and the card's issuer has a 3DS method
    tok_invalid, src_invalid      422 source_token_invalid, source_id_invalid
    any other tok_ or src_        frictionless
    card or network token         by the table `CARDS`; any other number is frictionless

A card number is looked up here and forgotten: nothing may keep one.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple


class Plan(NamedTuple):
    """What will happen: the outcome's name, and whether there is a 3DS method first."""

    outcome: str
    has_method: bool = False


CARDS: Final[Mapping[str, Plan]] = MappingProxyType(
    {
        "4485040371536584": Plan("frictionless"),
        "5436031030606378": Plan("frictionless"),
        "4000000000003014": Plan("frictionless", has_method=True),
        "4242424242424242": Plan("challenge"),
        "5200000000000015": Plan("challenge"),
        "4000000000003022": Plan("challenge", has_method=True),
        "4000000000003030": Plan("decline"),
        "4000000000003048": Plan("reject"),
        "4000000000003055": Plan("attempt"),
        "4000000000003063": Plan("unavailable"),
    }
)
"""What live tests of the .NET SDK see of the first and of the challenged Visa; the rest is ours."""


class Verdict(NamedTuple):
    """What the issuer says, in the members of the answer."""

    status: str
    response_code: str
    eci: str = ""
    """Of Visa; the others write it in their own numbers.  Empty: no proof, no cryptogram."""
    status_reason: str | None = None
    response_status_reason: str | None = None
    cardholder_info: str | None = None


_CALL_US: Final = "Please contact your bank."

VERDICTS: Final[Mapping[str, Verdict]] = MappingProxyType(
    {
        "frictionless": Verdict("approved", "Y", "05"),
        "challenge": Verdict("challenged", "C"),
        "attempt": Verdict("attempted", "A", "06"),
        "decline": Verdict("declined", "N", "", "ares_status", "01", _CALL_US),
        "reject": Verdict("rejected", "R", "", "ares_status", "11", _CALL_US),
        "unavailable": Verdict("unavailable", "U", "", "ares_status", "22"),
        # No cardholder is there to be challenged: "3RI transaction not supported".
        "challenge-without-cardholder": Verdict("unavailable", "U", "", "ares_status", "21"),
        # After a challenge.
        "approve": Verdict("approved", "Y", "05"),
        "fail": Verdict("declined", "N", "", "rreq_status", "01"),
        "cancel": Verdict("challenge_abandoned", "N", "", "rreq_status", "26"),
        "timeout": Verdict("expired", "N", "", "rreq_status", "14"),
        # Nobody was asked in time.
        "lapse": Verdict("expired", ""),
    }
)

_ISSUER: Final = ("frictionless", "challenge", "decline", "reject", "attempt", "unavailable")
_MASTERCARD_ECI: Final = {"05": "02", "06": "01"}


def eci_of(verdict: Verdict, scheme: str) -> str | None:
    if scheme == "mastercard":
        return _MASTERCARD_ECI.get(verdict.eci)
    return verdict.eci or None


def plan_of(source: Mapping[str, Any]) -> Plan | None:
    """None: the value says that it is invalid."""
    value = source_value(source)
    if source["type"] in ("card", "network_token"):
        return CARDS.get(value, Plan("frictionless"))
    chosen = value[4:]
    if chosen.startswith("invalid"):
        return None
    for outcome in _ISSUER:
        if chosen.startswith(outcome):
            return Plan(outcome, chosen.removeprefix(outcome).startswith("_method"))
    return Plan("frictionless", chosen.startswith("method"))


def source_value(source: Mapping[str, Any]) -> str:
    member = {"card": "number", "id": "id"}.get(source["type"], "token")
    return str(source[member])


def scheme_of(source: Mapping[str, Any]) -> str:
    """As the source says, else by its first digits; a token of ours is a Visa."""
    if source.get("scheme"):
        return str(source["scheme"])
    number = source_value(source)
    by_two = {"34": "amex", "37": "amex", "35": "jcb", "30": "diners", "36": "diners"}
    by_one = {"2": "mastercard", "5": "mastercard", "6": "discover"}
    return by_two.get(number[:2]) or by_one.get(number[:1]) or "visa"
