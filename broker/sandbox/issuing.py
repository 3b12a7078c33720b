"""Issuing: the token endpoint that makes one bearer token for one cardholder's device.

The client check is the token endpoint's own.  A cardholder token must never carry a scope that
opens anything else of the API.
"""

import re

from broker.sandbox.checkout import (
    Checkout,
    check_grant,
    credentials_in,
    oauth_error,
    token_form,
)
from broker.sandbox.exchange import Call, Reply
from broker.sandbox.settings import SandboxSettings

_CARDHOLDER = re.compile(r"crh_[a-z0-9]{26}")
_SINGLE_USE = {"true": True, "false": False}

_SCOPES = ["issuing:card-management-read"]
"""A guess: that a scope is told is published, which one is not."""


class Issuing:
    """One endpoint, in the shape of OAuth with two fields more."""

    def __init__(self, settings: SandboxSettings, checkout: Checkout) -> None:
        self._seconds = settings.checkout_cardholder_token_seconds
        self._checkout = checkout

    def token(self, call: Call) -> Reply:
        form = token_form(call)
        # Only the body: the official SDKs for .NET and Node send a bearer token besides.
        client_id = self._checkout.known_client(*credentials_in(form))
        check_grant(form)
        cardholder = form.get("cardholder_id", "")
        single_use = _SINGLE_USE.get(form.get("single_use", "false"))
        if not _CARDHOLDER.fullmatch(cardholder) or single_use is None:
            raise oauth_error("invalid_request")
        return self._checkout.granted(
            call, client_id, _SCOPES, self._seconds, cardholder_id=cardholder, single_use=single_use
        )
