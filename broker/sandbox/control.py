"""The control plane of the sandbox: what a test or a curious reader says to it.

Everything a fault drill needs without a restart.  No upstream has anything like it, so the broker
must never call it.
"""

import json
from typing import Any

from broker.sandbox.checkout import Checkout
from broker.sandbox.clock import SandboxClock
from broker.sandbox.exchange import Call, RefusedError, Reply, as_json
from broker.sandbox.faults import FaultError, parse_fault
from broker.sandbox.idp import IdentityProvider
from broker.sandbox.opaque import OpaqueTokens
from broker.sandbox.operations import Ledger


class Control:
    """One method for each thing that can be told or asked."""

    def __init__(
        self,
        ledger: Ledger,
        clock: SandboxClock,
        checkout: Checkout,
        idp: IdentityProvider,
        nmi_sessions: OpaqueTokens,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._checkout = checkout
        self._idp = idp
        self._nmi_sessions = nmi_sessions

    def calls(self, call: Call) -> Reply:
        return as_json(200, self._ledger.calls)

    def reset(self, call: Call) -> Reply:
        """Counts, faults and skew; what was issued stays valid, as after any deployment."""
        self._ledger.reset()
        self._clock.skew = 0.0
        return Reply(204)

    def faults(self, call: Call) -> Reply:
        if call.method == "POST":
            try:
                fault = parse_fault(json_object(call), frozenset(self._ledger.calls))
            except FaultError as error:
                raise bad_order(str(error)) from None
            self._ledger.faults.add(fault)
            return as_json(201, fault.as_dict())
        if call.method == "DELETE":
            self._ledger.faults.clear()
            return Reply(204)
        return as_json(200, {"faults": self._ledger.faults.as_list()})

    def revoke(self, call: Call) -> Reply:
        """Every access token of the API; with `nmi`, every component session of NMI instead."""
        order = json_object(call)
        nmi = order.pop("nmi", False)
        if not isinstance(nmi, bool) or order:
            raise bad_order("only nmi, true or false, is understood")
        if nmi:
            self._nmi_sessions.revoke_everything()
        else:
            self._checkout.revoke_everything()
        return Reply(204)

    def rotate_keys(self, call: Call) -> Reply:
        request = json_object(call)
        keep = request.pop("keep_previous", True)
        if not isinstance(keep, bool) or request:
            raise bad_order("only keep_previous, true or false, is understood")
        return as_json(200, {"kids": self._idp.keys.rotate(keep_previous=keep)})

    def clock(self, call: Call) -> Reply:
        skew = json_object(call).get("skew_seconds")
        if not isinstance(skew, int | float) or isinstance(skew, bool) or not abs(skew) <= 1e9:
            raise bad_order("skew_seconds must be a number")
        self._clock.skew = skew
        return as_json(200, {"skew_seconds": skew})


def json_object(call: Call) -> dict[str, Any]:
    try:
        value = json.loads(call.body or b"{}")
    except (ValueError, RecursionError):
        raise bad_order("the body is not JSON") from None
    if not isinstance(value, dict):
        raise bad_order("the body must be an object")
    return value


def bad_order(reason: str) -> RefusedError:
    return RefusedError(as_json(400, {"error": reason}))
