"""Addresses: one spelling for each, and no secret over plain http, wherever the address came from."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from broker.errors import ConfigError, Fault
from tests.checkout import config, faults, shop, tree
from tests.harness import problem

HOSTED = {"type": "hosted", "failure_url": "https://shop.example/f"}
REASON = "an address on a network begins with https://"


@pytest.mark.parametrize(
    ("completion", "at"),
    [
        ({**HOSTED, "success_url": "http://shop.example/s"}, "/success_url"),
        ({**HOSTED, "success_url": "HTTP://shop.example/s"}, "/success_url"),
        ({"type": "non_hosted", "callback_url": "http://broker.example/v1/callbacks/p"}, "/callback_url"),
        ({"type": "non_hosted", "challenge_notification_url": "http://10.0.0.1/"}, "/challenge_notification_url"),
    ],
)  # fmt: skip
def test_plain_http_in_the_file(completion: dict[str, str], at: str) -> None:
    """What is posted or appended there is secret too: a fault, in its place."""
    assert faults(config(completion=completion)) == [Fault(f"/profiles/p/completion{at}", REASON)]


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "[::1]", "shop.localhost"])
def test_this_machine_is_no_network(host: str) -> None:
    """Loopback is for trying things out."""
    assert faults(config(completion={**HOSTED, "success_url": f"http://{host}/s"})) == []


@pytest.mark.parametrize("text", ["http://no.address/here", "see http://shop.example"])
def test_a_text_is_no_address(text: str) -> None:
    """Only what is declared as a URL is one."""
    assert faults(config(reference=text)) == []


@pytest.mark.parametrize(
    ("url", "token", "status"),
    [
        ("${claims.back}", {"back": "https://shop.example/x"}, 202),
        ("${claims.back}", {"back": "http://shop.example/x"}, 403),
        ("${claims.back}", {"back": "javascript:alert(1)"}, 403),
        ("https://shop.example/${claims.back}", {"back": "x"}, 202),
        ("https://${claims.back}/x", {"back": "u:p@shop.example"}, 403),
        ("${claims.back}", {"back": "https://shop.example/\r\n"}, 403),
    ],
)
def test_plain_http_by_a_hole(url: str, token: dict[str, str], status: int) -> None:
    """What a claim makes of it is looked at again, before anything is sent."""

    async def story() -> None:
        async with shop(config(completion={**HOSTED, "success_url": url})) as s:
            answer = await s.mint(token=s.token(**token))
            assert answer.status_code == status
            assert len(s.upstream.requests) == (status == 202)

    asyncio.run(story())


def test_plain_http_from_the_trusted() -> None:
    """422 with its place."""

    async def story() -> None:
        text = config(
            completion="${parameters.end}", parameters__end={"like": "completion", "trusted": True}
        )
        async with shop(text) as s:
            bad = {"end": {**HOSTED, "success_url": "http://shop.example"}}
            answer = await s.mint(parameters=bad, token=s.backend)
            assert (answer.status_code, problem(answer)) == (422, "invalid-parameters")
            assert answer.json()["errors"] == [
                {"pointer": "/parameters/end/success_url", "reason": REASON}
            ]
            assert s.upstream.requests == []

    asyncio.run(story())


def _environment(base_url: str, token_url: str, **more: Any) -> list[Fault]:
    told = tree(base_url=base_url, **more)
    told["credentials"]["checkout"]["token_url"] = token_url
    return faults(json.dumps(told))


SANDBOX, LIVE = (
    "its tokens are of sandbox, base_url is production",
    "its tokens are of production, base_url is sandbox",
)
SB, PB = "https://{}api.sandbox.checkout.com", "https://{}api.checkout.com"
ST, PT = (
    "https://{}access.sandbox.checkout.com/connect/token",
    "https://{}access.checkout.com/connect/token",
)
MIXED = Fault("/profiles/p/base_url", "its account prefix is not that of the token_url")


@pytest.mark.parametrize(
    ("base_url", "token_url", "expected"),
    [
        (SB.format("abcd1234."), ST.format("abcd1234."), []),
        (PB.format("abcd1234."), PT.format("abcd1234."), []),
        (SB.format(""), ST.format(""), []),
        (SB.format("pl-abcd1234."), ST.format("pl-abcd1234."), []),
        (PB.format("abcd1234."), ST.format("abcd1234."), [Fault("/profiles/p/credential", SANDBOX)]),
        (SB.format("abcd1234."), PT.format("abcd1234."), [Fault("/profiles/p/credential", LIVE)]),
        (PB.format("abcd1234."), ST.format("other000."), [Fault("/profiles/p/credential", SANDBOX)]),
        (SB.format("other000."), ST.format("abcd1234."), [MIXED]),
        (PB.format("other000."), PT.format("abcd1234."), [MIXED]),
        (SB.format(""), ST.format("abcd1234."), [MIXED]),
        (PB.format("ABCD1234."), ST.format("abcd1234."), [Fault("/profiles/p/credential", SANDBOX)]),
        (PB.format("abcd1234.") + ":443", ST.format("abcd1234."), [Fault("/profiles/p/credential", SANDBOX)]),
        (PB.format("abcd1234.") + ".", ST.format("abcd1234."), [Fault("/profiles/p/credential", SANDBOX)]),
        (PB.format("abcd1234.") + "/", ST.format("abcd1234."), [Fault("/profiles/p/credential", SANDBOX)]),
        (PB.format("abcd1234."), "https://ABCD1234.access.sandbox.checkout.com:443/connect/token", [Fault("/profiles/p/credential", SANDBOX)]),
        ("https://proxy.shop.example", ST.format("abcd1234."), []),
        (SB.format("abcd1234."), "https://proxy.shop.example/token", []),
    ],
)  # fmt: skip
def test_environments_do_not_mix(base_url: str, token_url: str, expected: list[Fault]) -> None:
    """Tokens of the sandbox for production, or the reverse, or of another account: however the
    addresses are spelt. An address of our own is of no environment."""
    assert _environment(base_url, token_url) == expected


FLOW = {
    "source": None, "channel_data": None, "completion": None, "webhook_key": None,
    "parameters": {}, "credential": None, "secret_key": {"env": "SK"},
    "billing": {"address": {"country": "GB"}},
    "success_url": "https://shop.example/a", "failure_url": "https://shop.example/b",
}  # fmt: skip


@pytest.mark.parametrize(
    ("base_url", "key", "good"),
    [
        (SB.format("abcd1234."), "sk_sbox_x", True),
        (SB.format("abcd1234."), "sk_test_x", True),
        (SB.format("abcd1234."), "sk_x", False),
        (SB.format("abcd1234."), "pk_sbox_x", False),
        (PB.format("abcd1234."), "sk_x", True),
        (PB.format("abcd1234."), "sk_sbox_x", False),
        (PB.format("abcd1234."), "sk_test_x", False),
        (PB.format("abcd1234."), "pk_x", False),
        (PB.format("ABCD1234.") + ":443/", "sk_sbox_x", False),
        ("https://proxy.shop.example", "anything", True),
    ],
)
def test_a_key_of_another_environment_ends_the_start(base_url: str, key: str, good: bool) -> None:
    """By its looks, told without the key."""
    name = "sandbox" if "sandbox" in base_url else "production"

    async def story() -> list[Fault]:
        try:
            async with shop(config("checkout/flow", **FLOW, base_url=base_url), env={"SK": key}):
                return []
        except ConfigError as exc:
            return list(exc.faults)

    reason = f"env:SK: is no key of {name}, where base_url leads"
    expected = [] if good else [Fault("/profiles/p/secret_key", reason)]
    found = asyncio.run(story())
    assert found == expected
