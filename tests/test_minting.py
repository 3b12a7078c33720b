"""Mint, rotate, end, act: the use cases, through the real app, on a clock that stands still."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import CONFIG, NMI_KEY, Broker, broker, problem
from tests.support import settle


def run(story: Any) -> None:
    asyncio.run(story)


def with_broker(test: Any) -> Any:
    """Runs an async story with a fresh broker as its argument."""

    def wrapped() -> None:
        async def story() -> None:
            async with broker() as told:
                await test(told)

        run(story())

    wrapped.__doc__ = test.__doc__
    wrapped.__name__ = test.__name__
    return wrapped


@with_broker
async def test_mint_answers_what_the_contract_says(told: Broker) -> None:
    """A mint answers 201 with token, times, handle, and what `fetchSessionId` resolves to."""
    answer = await told.mint()
    assert answer.status_code == 201
    body = answer.json()
    handle, rotate_in = body.pop("handle"), body.pop("rotate_in")
    assert body == {
        "profile": "transactions",
        "session_token": "st_token_0001",
        "issued_at": "2026-11-20T12:00:00Z",
        "expires_at": "2026-11-20T12:15:00Z",
        "expires_in": 900,
        "reuse": "per_caller",
        "output": {"sessionToken": "st_token_0001", "expiresAt": 1795176900000},
    }
    assert 900 * 0.67 - 1 <= rotate_in <= 900 * 0.83
    assert handle.count(".") == 4
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["cache-status"] == "token-broker; fwd=miss; ttl=900; detail=minted"
    assert answer.headers["content-type"] == "application/json"


@with_broker
async def test_the_secret_goes_in_last_and_the_merchant_comes_from_claims(told: Broker) -> None:
    """NMI gets the key in the body beside the claimed merchant, and never both variants."""
    await told.mint()
    assert told.nmi.bodies == [
        {"gateway": {"merchant_id": "100200300", "environment": "sandbox", "api_key": NMI_KEY}}
    ]
    assert "authorization" not in told.nmi.headers[0]


@pytest.mark.parametrize(
    ("header", "expected"),
    [("X-Api-Key", NMI_KEY), ("Authorization", f"Bearer {NMI_KEY}")],
)
def test_the_key_can_travel_in_a_header(header: str, expected: str) -> None:
    """With `api_key_in: header` the key is in that header only, and not in the body."""
    config = CONFIG.replace(
        "    gateway:\n", f"    api_key_in: header\n    api_key_header: {header}\n    gateway:\n", 1
    )
    key = "plain-key+/=%"

    async def story() -> None:
        async with broker(config, env={"NMI_KEY": key}) as told:
            assert (await told.mint()).status_code == 201
            assert told.nmi.headers[0][header] == expected.replace(NMI_KEY, key)
            assert told.nmi.bodies == [
                {"gateway": {"merchant_id": "100200300", "environment": "sandbox"}}
            ]

    run(story())


@with_broker
async def test_rotation_replaces_a_live_session(told: Broker) -> None:
    """A handle buys a new token and a new handle in the same chain, for one upstream call."""
    first = (await told.mint()).json()
    await told.clock.advance(600)
    answer = await told.rotate(first["handle"])
    second = answer.json()
    assert answer.status_code == 201
    assert second["session_token"] == "st_token_0002"
    assert second["expires_in"] == 900
    assert second["handle"] != first["handle"]
    assert len(told.nmi.bodies) == 2
    assert told.audit[0]["chain"] == told.audit[1]["chain"]


@with_broker
async def test_tabs_that_rotate_together_share_one_successor(told: Broker) -> None:
    """Twenty tabs that show one handle at once get one successor for one upstream call."""
    handle = (await told.mint()).json()["handle"]
    await told.clock.advance(600)
    answers = await asyncio.gather(*(told.rotate(handle) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {201}
    assert {answer.json()["session_token"] for answer in answers} == {"st_token_0002"}
    assert len({answer.json()["handle"] for answer in answers}) == 1
    assert len({answer.json()["rotate_in"] for answer in answers}) > 1
    assert len(told.nmi.bodies) == 2
    outcomes = {"on_time": 1.0, "deduplicated": 19.0}
    for outcome, count in outcomes.items():
        found = told.sample("broker_rotations_total", profile="transactions", outcome=outcome)
        assert found == count


@with_broker
async def test_a_retry_within_grace_gets_the_same_successor(told: Broker) -> None:
    """Within the grace window a rotated handle still gets its successor; after it, 410."""
    handle = (await told.mint()).json()["handle"]
    await told.clock.advance(600)
    first = await told.rotate(handle)
    await told.clock.advance(59)
    again = await told.rotate(handle)
    assert again.json()["session_token"] == first.json()["session_token"]
    assert again.json()["expires_in"] == 841
    assert again.headers["cache-status"] == "token-broker; hit; ttl=841; detail=deduplicated"
    await told.clock.advance(2)
    late = await told.rotate(handle)
    assert (late.status_code, problem(late)) == (410, "handle-expired")
    assert len(told.nmi.bodies) == 2


@with_broker
async def test_a_leaver_does_not_take_the_rotation_along(told: Broker) -> None:
    """When the tab that began a rotation goes away, the other still gets the successor."""
    handle = (await told.mint()).json()["handle"]
    gate = asyncio.Event()
    transport: Any = told.app._transport
    transport.before = gate.wait
    leaver = asyncio.create_task(told.rotate(handle))
    await settle()
    stayer = asyncio.create_task(told.rotate(handle))
    await settle()
    leaver.cancel()
    await settle()
    gate.set()
    answer = await stayer
    assert answer.status_code == 201
    assert len(told.nmi.bodies) == 2
    with pytest.raises(asyncio.CancelledError):
        await leaver


@pytest.mark.parametrize(("after", "status"), [(900, 201), (959, 201), (962, 410), (90000, 410)])
def test_an_expired_session_rotates_within_grace_only(after: float, status: int) -> None:
    """Up to a minute after expiry a handle still rotates (counted as late); then never."""

    async def story() -> None:
        async with broker() as told:
            token = told.jwt(exp=int(told.clock.now().timestamp()) + 200_000)
            handle = (await told.mint(token=token)).json()["handle"]
            await told.clock.advance(after)
            assert (await told.rotate(handle, token=token)).status_code == status

    run(story())


@with_broker
async def test_a_chain_has_a_longest_life(told: Broker) -> None:
    """Rotation after rotation, a chain ends eight hours after its first mint."""
    token = told.jwt(exp=int(told.clock.now().timestamp()) + 100_000)
    handle = (await told.mint(token=token)).json()["handle"]
    for _ in range(48):
        await told.clock.advance(600)
        answer = await told.rotate(handle, token=token)
        assert answer.status_code == 201
        handle = answer.json()["handle"]
    await told.clock.advance(1)
    assert problem(await told.rotate(handle, token=token)) == "handle-expired"


@with_broker
async def test_end_kills_every_handle_of_the_chain(told: Broker) -> None:
    """After `end` no handle of the chain rotates, neither the one shown nor its successors."""
    first = (await told.mint()).json()["handle"]
    second = (await told.rotate(first)).json()["handle"]
    answer = await told.end(first)
    assert (answer.status_code, answer.content) == (204, b"")
    for handle in (first, second):
        assert problem(await told.rotate(handle)) == "handle-expired"
        assert problem(await told.end(handle)) == "handle-expired"
    assert len(told.nmi.bodies) == 2


@with_broker
async def test_check_tells_what_a_session_has_left(told: Broker) -> None:
    """A page whose clocks were set asks what its session has left, whole seconds of the broker's
    own count, down to 0; the upstream is not asked."""
    handle = (await told.mint()).json()["handle"]
    for passed, left in [(0, 900), (10.5, 889), (600, 289), (600, 0)]:
        told.clock.pass_(passed)
        answer = await told.post("/v1/sessions/check", {"handle": handle})
        assert (answer.status_code, answer.json()) == (200, {"expires_in": left})
        assert answer.headers["cache-control"] == "no-store"
    assert len(told.nmi.bodies) == 1
    assert [line["operation"] for line in told.audit] == ["mint", *["check"] * 4]


@with_broker
async def test_check_is_for_those_who_could_have_it_now(told: Broker) -> None:
    """Nobody learns of another's session, nor anything of one that was ended, or that policy or the
    caller's claims would not let them have today."""
    handle = (await told.mint()).json()["handle"]
    check = "/v1/sessions/check", {"handle": handle}
    for token, slug in [
        (told.jwt("bob"), "not-permitted"),
        (told.jwt(role="guest"), "not-permitted"),
        (told.jwt(merchant_id="999"), "handle-expired"),
        ("", "unauthenticated"),
    ]:
        assert problem(await told.post(*check, token=token)) == slug
    assert problem(await told.post(*check, origin="https://evil.example")) == "origin-not-allowed"
    assert (await told.post(*check)).status_code == 200
    await told.end(handle)
    assert problem(await told.post(*check)) == "handle-expired"


@with_broker
async def test_an_end_during_a_rotation_wins(told: Broker) -> None:
    """A chain ended while its successor is being minted hands that successor to nobody."""
    handle = (await told.mint()).json()["handle"]
    gate = asyncio.Event()
    transport: Any = told.app._transport
    transport.before = gate.wait
    rotating = asyncio.create_task(told.rotate(handle))
    await settle()
    assert (await told.end(handle)).status_code == 204
    gate.set()
    assert problem(await rotating) == "handle-expired"


@with_broker
async def test_a_handle_is_no_credential(told: Broker) -> None:
    """Another subject, or the same subject of another issuer, gets nothing for a handle."""
    handle = (await told.mint()).json()["handle"]
    for token in (told.jwt("bob"), told.jwt(issuer="other-backend")):
        answer = await told.rotate(handle, token=token)
        assert (answer.status_code, problem(answer)) == (403, "not-permitted")
        assert (await told.end(handle, token=token)).status_code == 403
    assert problem(await told.rotate(handle, token="")) == "unauthenticated"


@with_broker
async def test_rotation_asks_policy_again(told: Broker) -> None:
    """Who lost the role since the mint cannot rotate, but can still log out."""
    handle = (await told.mint()).json()["handle"]
    demoted = told.jwt(role="guest")
    answer = await told.rotate(handle, token=demoted)
    assert (answer.status_code, problem(answer)) == (403, "not-permitted")
    refused = told.sample("broker_rotations_total", profile="transactions", outcome="refused")
    assert refused == 1
    assert (await told.end(handle, token=demoted)).status_code == 204


def test_profiles_without_rotation_say_so() -> None:
    """Without `rotation` there is neither handle nor rotate_in; a handle that outlived a change of
    configuration gets 409."""

    async def story() -> None:
        fixed = CONFIG.replace("    rotation: {max_chain: 8h, grace: 60s}\n", "")
        async with broker() as before, broker(fixed) as after:
            handle = (await before.mint()).json()["handle"]
            body = (await after.mint()).json()
            assert body.keys().isdisjoint({"handle", "rotate_in"})
            answer = await after.rotate(handle)
            assert (answer.status_code, problem(answer)) == (409, "rotation-not-supported")

    run(story())


@with_broker
async def test_who_may_not_mint(told: Broker) -> None:
    """No role: 403. No merchant claim: 403, not an empty text. A caller the profile does not list:
    404, as for a profile that is not there. Nobody: 401. None of them costs an upstream call."""
    cases = [
        (told.jwt(role=None), 403, "not-permitted"),
        (told.jwt(role="guest"), 403, "not-permitted"),
        (told.jwt(merchant_id=None), 403, "not-permitted"),
        (told.jwt(merchant_id=""), 403, "not-permitted"),
        (told.jwt(merchant_id=["1", "2"]), 403, "not-permitted"),
        (told.jwt(merchant_id={"api_key": "x"}), 403, "not-permitted"),
        (told.jwt(merchant_id="../x"), 403, "not-permitted"),
        (told.jwt(issuer="other-backend"), 404, "unknown-profile"),
        ("garbage", 401, "unauthenticated"),
    ]
    for token, status, slug in cases:
        answer = await told.mint(token=token)
        assert (answer.status_code, problem(answer)) == (status, slug)
    assert problem(await told.mint(profile="nowhere")) == "unknown-profile"
    assert told.nmi.bodies == []


CHOOSING = CONFIG.replace(
    """    gateway:
      merchant_id: ${claims.merchant_id}
      environment: sandbox
""",
    """    gateway: ${parameters.gateway}
    merchant-central: ${parameters.merchant-central}
    merchant_from_parameters: true
    parameters:
      gateway:
        type: object
        properties:
          merchant_id: {type: string, required: true, enum: ["1", "2"]}
          environment: {type: string, required: true}
      merchant-central:
        type: object
        properties: {merchant_id: {type: string, required: true}}
      note: {type: string, max_length: 5}
""",
)


def test_a_request_may_choose_one_variant_where_the_profile_says_so() -> None:
    """Exactly one of gateway and merchant-central goes through; both or neither is a 422 that
    names both; what does not fit is told by place, never by value."""

    async def story() -> None:
        async with broker(CHOOSING) as told:
            gateway = {"merchant_id": "1", "environment": "sandbox"}
            central = {"merchant_id": "9"}
            one = await told.mint({"parameters": {"gateway": gateway}})
            assert one.status_code == 201
            other = await told.mint({"parameters": {"merchant-central": central}})
            assert other.status_code == 201
            assert told.nmi.bodies == [
                {"gateway": {**gateway, "api_key": NMI_KEY}},
                {"merchant-central": {**central, "api_key": NMI_KEY}},
            ]
            for parameters in ({"gateway": gateway, "merchant-central": central}, {}):
                answer = await told.mint({"parameters": parameters})
                assert (answer.status_code, problem(answer)) == (422, "invalid-parameters")
                assert "gateway and merchant-central" in answer.json()["detail"]
            bad = await told.mint(
                {"parameters": {"gateway": {"merchant_id": "666"}, "note": "too long", "zz": 1}}
            )
            assert bad.status_code == 422
            assert {fault["pointer"] for fault in bad.json()["errors"]} == {
                "/parameters/gateway/merchant_id",
                "/parameters/gateway/environment",
                "/parameters/note",
                "/parameters",
            }
            assert not any(word in bad.text for word in ("666", "too long", "zz"))
            assert len(told.nmi.bodies) == 2

    run(story())


@with_broker
async def test_both_variants_are_named_also_where_no_parameter_is_declared(told: Broker) -> None:
    """A browser that sends gateway and merchant-central to a fixed profile is told of both."""
    answer = await told.mint({"parameters": {"gateway": {}, "merchant-central": {}}})
    assert (answer.status_code, problem(answer)) == (422, "invalid-parameters")
    assert "gateway and merchant-central" in answer.json()["errors"][0]["reason"]


@with_broker
async def test_an_idempotency_key_mints_once(told: Broker) -> None:
    """Same caller, key and body: same session, one upstream call. Another body: 422. Another
    caller: another session. Once the session is too old to hand out: a new one."""
    first = await told.mint(idempotency_key="k1")
    await told.clock.advance(100)
    again = await told.mint(idempotency_key="k1")
    assert again.json()["session_token"] == first.json()["session_token"]
    assert again.json()["handle"] == first.json()["handle"]
    assert again.json()["expires_in"] == 800
    assert again.headers["cache-status"] == "token-broker; hit; ttl=800; detail=replayed"
    other = await told.mint(idempotency_key="k1", token=told.jwt("bob"))
    assert other.json()["session_token"] == "st_token_0002"
    await told.clock.advance(501)
    renewed = await told.mint(idempotency_key="k1")
    assert renewed.json()["session_token"] == "st_token_0003"


def test_an_idempotency_key_belongs_to_one_body() -> None:
    """The same key with another body is 422, whether the first is done or still under way."""

    async def story() -> None:
        async with broker(CHOOSING) as told:
            bodies = [
                {"parameters": {"gateway": {"merchant_id": name, "environment": "sandbox"}}}
                for name in ("1", "2")
            ]
            both = await asyncio.gather(
                *(told.mint(body, idempotency_key="k") for body in bodies for _ in range(3))
            )
            assert [answer.status_code for answer in both] == [201] * 3 + [422] * 3
            again = await told.mint(bodies[1], idempotency_key="k")
            assert (again.status_code, problem(again)) == (422, "invalid-parameters")
            assert len(told.nmi.bodies) == 1

    run(story())


@with_broker
async def test_concurrent_retries_with_one_key_mint_once(told: Broker) -> None:
    """Fifty requests at once under one key cost one upstream call."""
    answers = await asyncio.gather(*(told.mint(idempotency_key="k") for _ in range(50)))
    assert {answer.json()["session_token"] for answer in answers} == {"st_token_0001"}
    assert len(told.nmi.bodies) == 1


@with_broker
async def test_a_failed_mint_is_not_remembered(told: Broker) -> None:
    """A key whose mint failed may be tried again."""
    told.nmi.answer = lambda _: httpx2.Response(503)
    assert (await told.mint(idempotency_key="k")).status_code == 503
    told.nmi.answer = None
    assert (await told.mint(idempotency_key="k")).status_code == 201


@pytest.mark.parametrize("key", ["x" * 256, ""])
def test_an_idempotency_key_has_a_form(key: str) -> None:
    """A key of no or too many characters is 400."""

    async def story() -> None:
        async with broker() as told:
            assert problem(await told.mint(idempotency_key=key)) == "malformed-request"

    run(story())


@with_broker
async def test_min_fresh_is_met_or_refused(told: Broker) -> None:
    """`Cache-Control: min-fresh=N` gets at least N seconds, or 412; never less."""
    assert (await told.mint(cache_control="min-fresh=900")).status_code == 201
    answer = await told.mint(cache_control="no-cache, min-fresh=901")
    assert (answer.status_code, problem(answer)) == (412, "min-fresh-not-met")


@pytest.mark.parametrize(("life", "status"), [(301, 201), (299, 502)])
def test_a_session_under_its_floor_is_never_handed_out(life: int, status: int) -> None:
    """A session that the upstream made shorter than `min_remaining` is nonsense, not an answer."""

    async def story() -> None:
        async with broker() as told:
            told.nmi.answer = lambda _: told.nmi.session(life)
            answer = await told.mint()
            assert answer.status_code == status
            below = told.sample(
                "broker_tokens_served_below_floor_total", kind="session", source="transactions"
            )
            assert below == 0

    run(story())


@with_broker
async def test_fifteen_minutes_where_the_upstream_names_no_expiry(told: Broker) -> None:
    """Without `expires_at` an NMI session counts as fifteen minutes long."""
    told.nmi.answer = lambda _: httpx2.Response(200, json={"session_token": "st_no_expiry"})
    body = (await told.mint()).json()
    assert (body["expires_in"], body["expires_at"]) == (900, "2026-11-20T12:15:00Z")


def _json(tree: Any, status: int = 200) -> httpx2.Response:
    return httpx2.Response(status, json=tree)


_HTML = httpx2.Response(200, html="<html>sign in</html>")
_BAD_ANSWERS: dict[str, tuple[httpx2.Response, int, str]] = {
    "html with 200": (_HTML, 502, "upstream-nonsense"),
    "empty": (httpx2.Response(200), 502, "upstream-nonsense"),
    "array": (_json([1]), 502, "upstream-nonsense"),
    "truncated": (httpx2.Response(200, content=b'{"session_token": "st'), 502, "upstream-nonsense"),
    "duplicate keys": (
        httpx2.Response(200, content=b'{"session_token": "a", "session_token": "b"}'),
        502,
        "upstream-nonsense",
    ),
    "no token": (_json({"expires_at": "2026-11-20T12:15:00Z"}), 502, "upstream-nonsense"),
    "null token": (_json({"session_token": None}), 502, "upstream-nonsense"),
    "empty token": (_json({"session_token": ""}), 502, "upstream-nonsense"),
    "number token": (_json({"session_token": 5}), 502, "upstream-nonsense"),
    "token with a line break": (_json({"session_token": "a\r\nb"}), 502, "upstream-nonsense"),
    "past expiry": (
        _json({"session_token": "st", "expires_at": "2026-11-20T11:59:59Z"}),
        502,
        "upstream-nonsense",
    ),
    "expiry in words": (
        _json({"session_token": "st", "expires_at": "soon"}),
        502,
        "upstream-nonsense",
    ),
    "expiry far away": (
        _json({"session_token": "st", "expires_at": "9999-12-31T23:59:59Z"}),
        201,
        "",
    ),
    "too large": (httpx2.Response(200, content=b" " * 2_000_000), 502, "upstream-nonsense"),
    "redirect": (
        httpx2.Response(302, headers={"location": "https://evil.example/"}),
        502,
        "upstream-nonsense",
    ),
    "401": (httpx2.Response(401, text="Invalid API key nmi-key"), 502, "upstream-refused"),
    "422": (httpx2.Response(422, text="both given"), 502, "upstream-refused"),
    "429": (
        httpx2.Response(429, headers={"retry-after": "17"}),
        503,
        "upstream-unavailable",
    ),
    "500": (httpx2.Response(500), 503, "upstream-unavailable"),
}


@pytest.mark.parametrize("name", _BAD_ANSWERS)
def test_bad_answers_of_the_upstream(name: str) -> None:
    """Whatever the upstream says, the caller gets a session that is good or a typed problem, and
    not a word of the upstream's."""
    response, status, slug = _BAD_ANSWERS[name]

    async def story() -> None:
        async with broker() as told:
            told.nmi.answer = lambda _: response
            answer = await told.mint()
            assert answer.status_code == status
            if slug:
                assert problem(answer) == slug
                assert "nmi-key" not in answer.text
            if name == "429":
                assert answer.headers["retry-after"] == "17"
            if name == "expiry far away":
                assert answer.json()["expires_in"] == 86400

    run(story())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["session_token", "expires_at", "x"]), inner, max_size=3
                )
            ),
            max_leaves=6,
        ).map(lambda tree: json.dumps(tree).encode()),
    ),
    st.sampled_from([200, 201, 202, 204, 302, 400, 401, 404, 429, 500, 599]),
)
def test_any_answer_is_a_session_or_a_problem(content: bytes, status: int) -> None:
    """No bytes an upstream may send make the broker crash or hand out a token it did not get."""

    async def story() -> None:
        async with broker() as told:
            told.nmi.answer = lambda _: httpx2.Response(status, content=content)
            answer = await told.mint()
            assert answer.status_code in (201, 502, 503)
            if answer.status_code == 201:
                assert answer.json()["session_token"] == json.loads(content)["session_token"]
            else:
                assert problem(answer).startswith("upstream-")

    run(story())


@with_broker
async def test_an_absolute_expiry_is_read_by_the_upstreams_clock(told: Broker) -> None:
    """Where the upstream's Date is an hour off ours, its expiry still means fifteen minutes."""
    date = {"date": "Fri, 20 Nov 2026 13:00:00 GMT"}
    body = {"session_token": "st", "expires_at": "2026-11-20T13:15:00Z"}
    told.nmi.answer = lambda _: httpx2.Response(200, json=body, headers=date)
    answer = (await told.mint()).json()
    assert (answer["expires_in"], answer["expires_at"]) == (900, "2026-11-20T12:15:00Z")


@with_broker
async def test_steps_of_the_wall_clock_change_no_remaining_life(told: Broker) -> None:
    """An hour's step of the wall clock makes a replayed session neither older nor younger."""
    forever = told.jwt(exp=int(told.clock.now().timestamp()) + 100_000)
    await told.mint(idempotency_key="k", token=forever)
    for step in (3600, -7200):
        told.clock.step(step)
        await told.clock.advance(100)
        answer = await told.mint(idempotency_key="k", token=forever)
        if step > 0:
            assert answer.json()["expires_in"] == 800
    assert len(told.nmi.bodies) == 1


def test_rate_limits_are_per_caller_and_profile() -> None:
    """Three a minute: the fourth mint of one caller is 429 with when to come again; another
    caller's is not; shared successors are not counted."""

    async def story() -> None:
        config = CONFIG + "    rate_limit: 3/minute\n"
        async with broker(config) as told:
            handle = (await told.mint()).json()["handle"]
            for _ in range(5):
                assert (await told.rotate(handle)).status_code == 201
            assert (await told.mint()).status_code == 201
            refused = await told.mint()
            assert (refused.status_code, problem(refused)) == (429, "rate-limited")
            wait = int(refused.headers["retry-after"])
            assert 0 < wait <= 61
            assert refused.headers["ratelimit-policy"] == '"mint";q=3;w=60'
            assert refused.headers["ratelimit"] == f'"mint";r=0;t={wait}'
            assert refused.json()["retry_after"] == wait
            assert (await told.mint(token=told.jwt("bob"))).status_code == 201
            await told.clock.advance(wait)
            assert (await told.mint()).status_code == 201

    run(story())


ACTING = """
summary: an upstream with actions, an access token and a way to revoke
reuse: per_caller
settings: {limit: {type: integer, minimum: 1, maximum: 9}}
authorization: {access_token: true}
request: {method: POST, path: /sessions, json: {limit: "${settings.limit}", key: "${uuid4}"}}
answer:
  statuses: [201, 202]
  token: /secret
  id: /id
  expiry: {at: /ttl, as: seconds}
output: verbatim
actions:
  status:
    request: {method: GET, path: "/sessions/${session.id}"}
    output: {state: /state, inner: /deep/er}
  collect:
    request:
      method: PUT
      path: /sessions/${session.id}/data
      json: {ip: "${request.ip}", agent: "${request.user_agent}", data: "${data.answer}"}
    data: {answer: {type: string, required: true, enum: [Y, N]}}
    statuses: [204]
    conflict: [403]
revoke: {method: DELETE, path: "/sessions/${session.id}"}
"""

ACTING_CONFIG = """
keys: [{env: SEAL}]
callers:
  shop-users:
    {type: jwt, issuer: shop-backend, audience: token-broker, shared_secret: {env: ISSUER_KEY}}
  backend:
    {type: jwt, issuer: other-backend, audience: token-broker, shared_secret: {env: ISSUER_KEY}}
credentials:
  acme:
    token_url: https://login.acme.example/token
    client_id: {env: NMI_KEY}
    client_secret: {env: NMI_KEY}
    scope: [make]
    expose_to: [backend]
profiles:
  acme:
    preset: ./acme.yaml
    base_url: https://api.acme.example/v1
    credential: acme
    limit: 5
    allow: {callers: [shop-users]}
"""


class FakeAcme:
    """Plays an upstream with OAuth: one access token at a time is good."""

    def __init__(self) -> None:
        self.issued = 0
        self.calls: list[tuple[str, str, str]] = []
        self.revoked: set[str] = set()
        self.status = 200
        self.created = 201
        self.name = "sid/1 ?"
        self.created_with: dict[str, Any] = {}

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.host == "login.acme.example":
            self.issued += 1
            body = {"access_token": f"at-{self.issued}", "token_type": "Bearer", "expires_in": 3600}
            return httpx2.Response(200, json={**body, "scope": "make"})
        bearer = request.headers["authorization"].removeprefix("Bearer ")
        self.calls.append((request.method, request.url.path, bearer))
        if bearer in self.revoked:
            return httpx2.Response(401)
        if request.method == "POST":
            self.created_with = json.loads(request.content)
            told = {"secret": "s3cret", "id": self.name, "ttl": "600"}
            told |= {"extra": {"kept": [1, None]}}  # type: ignore[dict-item]
            return httpx2.Response(self.created, json=told)
        if request.method == "GET":
            state = {"state": "pending", "cryptogram": "never", "deep": {"er": 1}}
            return httpx2.Response(self.status, json=state)
        self.body = json.loads(request.content) if request.content else None
        return httpx2.Response(204 if self.status == 200 else self.status)


def acting(test: Any) -> Any:
    def wrapped(tmp_path: Path) -> None:
        (tmp_path / "acme.yaml").write_text(ACTING)

        async def story() -> None:
            acme = FakeAcme()
            async with broker(ACTING_CONFIG, acme, base=tmp_path) as told:
                await test(told, acme)

        run(story())

    wrapped.__doc__ = test.__doc__
    wrapped.__name__ = test.__name__
    return wrapped


@acting
async def test_a_preset_file_of_ones_own_is_an_upstream(told: Broker, acme: FakeAcme) -> None:
    """A data file beside the configuration makes a new upstream: bearer from the credential,
    verbatim output, expiry as a numeric text, no rotation but a handle for its actions."""
    answer = await told.mint(profile="acme")
    body = answer.json()
    assert answer.status_code == 201
    assert body["output"] == {
        "secret": "s3cret",
        "id": "sid/1 ?",
        "ttl": "600",
        "extra": {"kept": [1, None]},
    }
    assert body["expires_in"] == 600
    assert "rotate_in" not in body
    assert "handle" in body
    assert acme.calls == [("POST", "/v1/sessions", "at-1")]
    acme.created = 202
    assert (await told.mint(profile="acme")).status_code == 202


@acting
async def test_a_revoked_access_token_costs_one_token_and_no_mint(
    told: Broker, acme: FakeAcme
) -> None:
    """Twenty mints that meet a revoked token all succeed, for one new token request."""
    await told.mint(profile="acme")
    await told.clock.advance(1)
    acme.revoked.add("at-1")
    answers = await asyncio.gather(*(told.mint(profile="acme") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {201}
    assert acme.issued == 2


@acting
async def test_a_token_that_stays_refused_is_tried_twice_only(told: Broker, acme: FakeAcme) -> None:
    """An upstream that refuses the new token too gets two calls, and the caller a 502."""
    acme.revoked |= {"at-1", "at-2", "at-3"}
    transport: Any = told.app._transport
    transport.before = lambda: told.clock.pass_(0.01)
    answer = await told.mint(profile="acme")
    assert (answer.status_code, problem(answer)) == (502, "upstream-refused")
    assert [call[2] for call in acme.calls] == ["at-1", "at-2"]


@acting
async def test_actions_answer_only_what_the_preset_lets_out(told: Broker, acme: FakeAcme) -> None:
    """`status` gives the declared members; `collect-data` style actions send observed values; ids
    are percent-encoded into the path; a conflict upstream is action-not-allowed."""
    handle = (await told.mint(profile="acme")).json()["handle"]

    async def act(name: str, data: Any = None, **options: Any) -> httpx2.Response:
        body = {"handle": handle} | ({} if data is None else {"data": data})
        return await told.post(f"/v1/sessions/actions/{name}", body, **options)

    answer = await act("status")
    assert (answer.status_code, answer.json()) == (200, {"state": "pending", "inner": 1})
    assert acme.calls[-1][:2] == ("GET", "/v1/sessions/sid/1 ?")
    done = await act("collect", {"answer": "Y"}, user_agent="Browser/1")
    assert (done.status_code, done.content) == (204, b"")
    assert acme.body == {"ip": "192.0.2.1", "agent": "Browser/1", "data": "Y"}
    for name, data, slug in (
        ("collect", {"answer": "Z"}, "invalid-parameters"),
        ("collect", {}, "invalid-parameters"),
        ("collect", {"answer": "Y", "more": 1}, "invalid-parameters"),
        ("nothing", None, "action-not-allowed"),
    ):
        assert problem(await act(name, data)) == slug
    acme.status = 403
    assert problem(await act("collect", {"answer": "Y"})) == "action-not-allowed"
    assert problem(await told.rotate(handle)) == "rotation-not-supported"
    await told.clock.advance(601)
    assert problem(await act("status")) == "handle-expired"


@acting
async def test_end_revokes_upstream_where_it_can(told: Broker, acme: FakeAcme) -> None:
    """`end` calls the preset's revocation; that it fails does not keep the chain alive."""
    for status in (200, 500):
        acme.status = status
        handle = (await told.mint(profile="acme")).json()["handle"]
        assert (await told.end(handle)).status_code == 204
        assert acme.calls[-1][0] == "DELETE"
        answer = await told.post("/v1/sessions/actions/status", {"handle": handle})
        assert problem(answer) == "handle-expired"


@acting
async def test_access_tokens_are_for_services_that_were_named(told: Broker, acme: FakeAcme) -> None:
    """GET /v1/access-tokens gives the cached token to `expose_to` callers, never to a browser."""
    service = {"authorization": f"Bearer {told.jwt(issuer='other-backend')}"}

    async def get(name: str = "acme", **headers: str) -> httpx2.Response:
        return await told.client.get(f"/v1/access-tokens/{name}", headers={**service, **headers})

    answer = await get()
    assert answer.json() == {
        "access_token": "at-1",
        "token_type": "Bearer",
        "expires_in": 3600,
        "scope": "make",
    }
    assert answer.headers["cache-control"] == "no-store"
    await told.clock.advance(60)
    again = await get()
    assert again.json()["expires_in"] == 3540
    assert again.headers["cache-status"] == "token-broker; hit; ttl=3540; detail=cache"
    assert acme.issued == 1
    assert problem(await get("nothing")) == "unknown-profile"
    assert problem(await get(authorization=f"Bearer {told.jwt()}")) == "unknown-profile"
    assert problem(await get(origin="https://app.shop.example")) == "origin-not-allowed"
    assert problem(await get(**{"sec-fetch-site": "same-origin"})) == "origin-not-allowed"
    assert problem(await get(cookie="a=b")) == "origin-not-allowed"
    assert problem(await get(**{"cache-control": "min-fresh=4000"})) == "min-fresh-not-met"
    assert acme.issued == 1


@with_broker
async def test_a_changed_merchant_does_not_continue_a_session(told: Broker) -> None:
    """When the merchant in the caller's claims changes, the old handle is over, and an
    Idempotency-Key of before does not bring the old merchant's session."""
    handle = (await told.mint(idempotency_key="k")).json()["handle"]
    moved = told.jwt(merchant_id="100200999")
    assert problem(await told.rotate(handle, token=moved)) == "handle-expired"
    again = await told.mint(idempotency_key="k", token=moved)
    assert (again.status_code, problem(again)) == (422, "invalid-parameters")
    assert (await told.rotate(handle)).status_code == 201


@with_broker
async def test_an_ended_session_is_not_replayed(told: Broker) -> None:
    """After a logout the same Idempotency-Key makes a new session."""
    first = (await told.mint(idempotency_key="k")).json()
    await told.end(first["handle"])
    again = (await told.mint(idempotency_key="k")).json()
    assert again["session_token"] == "st_token_0002"
    assert (await told.rotate(again["handle"])).status_code == 201


@with_broker
async def test_a_wish_that_cannot_be_met_costs_no_session(told: Broker) -> None:
    """Once it is known how long sessions live, a longer `min-fresh` is refused without a mint."""
    await told.mint()
    for _ in range(5):
        answer = await told.mint(cache_control="min-fresh=99999")
        assert (answer.status_code, problem(answer)) == (412, "min-fresh-not-met")
    assert len(told.nmi.bodies) == 1


@with_broker
async def test_a_failed_rotation_can_be_tried_again(told: Broker) -> None:
    """While the upstream is down a rotation is 503 and counted; the handle stays good."""
    handle = (await told.mint()).json()["handle"]
    told.nmi.answer = lambda _: httpx2.Response(503)
    assert (await told.rotate(handle)).status_code == 503
    told.nmi.answer = None
    assert (await told.rotate(handle)).status_code == 201
    for outcome in ("failed", "on_time"):
        assert told.sample("broker_rotations_total", profile="transactions", outcome=outcome) == 1


@with_broker
async def test_what_may_have_happened_is_counted(told: Broker) -> None:
    """An answer that cannot be read, or that never came, may hide a session: it is counted."""
    told.nmi.answer = lambda _: httpx2.Response(201, content=b'{"session_tok')
    await told.mint()
    assert told.sample("broker_unknown_mints_total", profile="transactions") == 1
    labels = {"upstream": "transactions", "operation": "session"}
    assert told.sample("broker_upstream_requests_total", outcome="nonsense", **labels) == 1


@acting
async def test_the_unique_value_is_not_the_callers_to_choose(told: Broker, acme: FakeAcme) -> None:
    """`${uuid4}` differs for each request, whatever X-Request-Id it brings."""
    same = {"x_request_id": "11111111-1111-4111-8111-111111111111"}
    seen = set()
    for _ in range(3):
        await told.mint(profile="acme", **same)
        seen.add(acme.created_with["key"])
    assert len(seen) == 3
    assert same["x_request_id"] not in seen


@acting
async def test_a_refused_permission_does_not_hammer_the_token_endpoint(
    told: Broker, acme: FakeAcme
) -> None:
    """An upstream that refuses every access token costs two token requests, not one a mint."""
    acme.revoked |= {f"at-{number}" for number in range(100)}
    transport: Any = told.app._transport
    transport.before = lambda: told.clock.pass_(0.01)
    for _ in range(10):
        assert problem(await told.mint(profile="acme")) == "upstream-refused"
    assert acme.issued == 2


@acting
async def test_actions_of_one_session_take_turns(told: Broker, acme: FakeAcme) -> None:
    """Three actions at once on one session reach the upstream one after the other; another
    session's is not held up."""
    handle = (await told.mint(profile="acme")).json()["handle"]
    acme.name = "another"
    other = (await told.mint(profile="acme")).json()["handle"]
    gate = asyncio.Event()
    transport: Any = told.app._transport
    transport.before = gate.wait
    transport.calls.clear()
    path = "/v1/sessions/actions/status"
    asking = [asyncio.create_task(told.post(path, {"handle": handle})) for _ in range(3)]
    await settle()
    assert len(transport.calls) == 1
    asking.append(asyncio.create_task(told.post(path, {"handle": other})))
    await settle()
    assert len(transport.calls) == 2
    gate.set()
    assert [(await task).status_code for task in asking] == [200] * 4


@acting
async def test_a_name_upstream_stays_in_its_path_segment(told: Broker, acme: FakeAcme) -> None:
    """A session's own name upstream never leaves its path segment."""
    for name in ("..", ".", ""):
        acme.name = name
        answer = await told.mint(profile="acme")
        if answer.status_code == 201:
            shown = {"handle": answer.json()["handle"]}
            asked = await told.post("/v1/sessions/actions/status", shown)
            assert problem(asked) == "action-not-allowed"
    assert all(method == "POST" for method, _, _ in acme.calls)


@pytest.mark.parametrize(
    ("told_of", "extra", "status"),
    [
        ({"sub": "reports", "client_id": "reports"}, "", 200),
        ({"sub": "reports", "client_id": "reports", "username": "reports"}, "", 200),
        ({"sub": "ada", "client_id": "shop"}, "", 403),
        ({"sub": "ada", "username": "ada"}, "", 403),
        ({"sub": "ada", "client_id": "ada", "username": "Ada Lovelace"}, "", 403),
        ({"sub": "ada"}, "", 403),
        ({"sub": "reports", "scope": "a tokens"}, "scope: tokens", 200),
        ({"sub": "ada", "scope": "a b"}, "scope: tokens", 401),
    ],
)
def test_a_persons_token_gets_no_access_token(
    told_of: dict[str, str], extra: str, status: int
) -> None:
    """Where introspection vouches for people and services alike, only a client's own token gets an
    access token; where the configuration names the services' scope, that decides."""

    def upstreams(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/introspect":
            return httpx2.Response(200, json={"active": True, **told_of})
        answer = {"access_token": "at", "token_type": "Bearer", "expires_in": 3600, "scope": "make"}
        return httpx2.Response(200, json=answer)

    config = (
        CONFIG.replace(
            "callers:\n",
            f"""callers:
  reports-backend:
    type: introspection
    url: https://login.example/introspect
    client_id: {{env: NMI_KEY}}
    client_secret: {{env: NMI_KEY}}
    {extra}
""",
            1,
        )
        + """
credentials:
  acme:
    token_url: https://login.acme.example/token
    client_id: {env: NMI_KEY}
    client_secret: {env: NMI_KEY}
    expose_to: [reports-backend]
"""
    )

    async def story() -> None:
        async with broker(config, upstreams) as told:
            headers = {"authorization": "Bearer opaque-token"}
            answer = await told.client.get("/v1/access-tokens/acme", headers=headers)
            assert answer.status_code == status, answer.text

    run(story())


def _unknown(told: Broker) -> float | None:
    return told.sample("broker_unknown_mints_total", profile="acme")


async def _in_time(told: Broker) -> httpx2.Response:
    """A mint, while time passes for what is tried again."""
    minting = asyncio.create_task(told.mint(profile="acme"))
    await told.clock.advance(5)
    answer: httpx2.Response = await minting
    return answer


def test_what_cannot_have_happened_is_not_counted(tmp_path: Path) -> None:
    """No access token, no session; nor where a 401 is followed by no new token."""
    (tmp_path / "acme.yaml").write_text(ACTING)
    nonsense = httpx2.Response(200, content=b"{")
    acme = FakeAcme()

    def upstream(request: httpx2.Request) -> httpx2.Response:
        is_token = request.url.host == "login.acme.example"
        if failing == "token" and is_token:
            return nonsense
        if failing == "renewal" and is_token and acme.issued:
            return nonsense
        return acme(request)

    failing = "token"

    async def story() -> None:
        nonlocal failing
        async with broker(ACTING_CONFIG, upstream, base=tmp_path) as told:
            assert (await _in_time(told)).status_code >= 500
            assert not _unknown(told)
            failing = ""
            await told.clock.advance(120)
            assert (await told.mint(profile="acme")).status_code == 201
            await told.clock.advance(1)
            failing = "renewal"
            acme.revoked.add("at-1")
            assert (await _in_time(told)).status_code >= 500
            assert not _unknown(told)

    run(story())


def test_a_callers_leaving_may_hide_a_session(tmp_path: Path) -> None:
    """The request's own time is spent while the upstream works: 504, and it is counted."""
    (tmp_path / "acme.yaml").write_text(ACTING)
    acme = FakeAcme()

    async def story() -> None:
        text = "server: {request_budget: 100ms}\n" + ACTING_CONFIG
        async with broker(text, acme, base=tmp_path) as told:
            assert (await told.mint(profile="acme")).status_code == 201
            transport: Any = told.app._transport
            transport.before = asyncio.Event().wait
            answer = await told.mint(profile="acme")
            assert (answer.status_code, problem(answer)) == (504, "upstream-timeout")
            assert _unknown(told) == 1

    run(story())


@acting
async def test_an_end_is_no_less_an_end_where_the_upstream_fails(
    told: Broker, acme: FakeAcme
) -> None:
    """204 for the page, whatever the revocation is answered; the handle is over."""
    for status in (500, 403, 404, 418):
        handle = (await told.mint(profile="acme")).json()["handle"]
        acme.status = status
        assert (await told.end(handle)).status_code == 204
        acme.status = 200
        assert problem(await told.post("/v1/sessions/actions/status", {"handle": handle})) == (
            "handle-expired"
        )
