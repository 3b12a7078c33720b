"""Logging in at the sandbox: the page, the code, the cookie, and who may call from a browser."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest
from authlib.integrations.httpx_client import AsyncOAuth2Client  # type: ignore[import-untyped]
from joserfc import jwt
from joserfc.jwk import KeySet
from playwright.async_api import async_playwright

from tests.browsing import executable
from tests.pages import _sight
from tests.test_sandbox import NOON, World, run, world
from tests.test_sandbox_report import served

PAGE = "http://127.0.0.1:8080"
BACK = f"{PAGE}/?tab=1"
VERIFIER = "v" * 43
CHALLENGE = (
    base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
)
ASKED = {
    "response_type": "code",
    "client_id": "demo",
    "redirect_uri": BACK,
    "state": "s&t=ä",
    "code_challenge": CHALLENGE,
    "code_challenge_method": "S256",
}
FOREIGN = ("https://app.shop.example", "http://127.0.0.1.shop.example:8080", "null")


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in ASKED.items() if key != name}


async def authorize(w: World, **changes: str) -> httpx2.Response:
    return await w.http.get("/idp/authorize", params={**ASKED, **changes})


async def choose(w: World, user: str, **changes: str) -> httpx2.Response:
    return await w.http.post("/idp/authorize", params={**ASKED, **changes}, data={"user": user})


def returned(answer: httpx2.Response) -> dict[str, str]:
    """What a redirect to the page says; the page's own query is there still."""
    assert answer.status_code == 303
    parts = urlsplit(answer.headers["location"])
    assert f"{parts.scheme}://{parts.netloc}{parts.path}" == f"{PAGE}/"
    said = dict(parse_qsl(parts.query))
    assert said.pop("tab") == "1"
    return said


async def redeem(w: World, code: str, **changes: Any) -> httpx2.Response:
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "code_verifier": VERIFIER,
        "redirect_uri": BACK,
        "client_id": "demo",
        **changes,
    }
    data = {key: value for key, value in form.items() if value is not None}
    return await w.http.post("/idp/token", data=data)


def test_a_person_logs_in_and_the_page_gets_a_token_that_stands_for_them() -> None:
    """Page, choice, code, token: a JWT of the issuer for the broker, and the state unharmed."""

    async def scene(w: World) -> None:
        page = await authorize(w)
        sight = _sight(page)
        assert (sight.status, sight.title, sight.form.method) == (200, "Sign in", "post")
        assert list(sight.form.buttons) == [
            "Sign in as Ada, owner of 100200300",
            "Sign in as Bob, accountant of 100200301",
            "Sign in as Eve, guest",
        ]
        # Its form has no action, and so keeps the query that it was asked with.
        assert sight.form.action == ""
        said = returned(await choose(w, "ada"))
        assert said.keys() == {"code", "state"}
        assert said["state"] == ASKED["state"]
        answer = await redeem(w, said["code"])
        assert answer.headers["cache-control"] == "no-store"
        token = answer.json()
        assert (token["token_type"], token["expires_in"]) == ("Bearer", 600)
        keys = KeySet.import_key_set((await w.http.get("/idp/jwks")).json())
        claims = jwt.decode(token["access_token"], keys).claims
        assert claims.pop("jti")
        assert claims == {
            "iss": f"{w.url}/idp",
            "sub": "ada",
            "aud": "token-broker",
            "role": "owner",
            "merchant_id": "100200300",
            "iat": int(NOON),
            "nbf": int(NOON),
            "exp": int(NOON) + 600,
        }

    run(scene, clock=lambda: NOON)


def test_authlib_logs_in_by_the_addresses_of_the_metadata() -> None:
    """A foreign library walks the whole flow, PKCE included, from the discovery document."""

    async def scene(w: World) -> None:
        metadata = (await w.http.get("/idp/.well-known/openid-configuration")).json()
        assert metadata["code_challenge_methods_supported"] == ["S256"]
        assert metadata["token_endpoint_auth_methods_supported"] == ["none"]
        client = AsyncOAuth2Client(
            "demo",
            redirect_uri=BACK,
            code_challenge_method="S256",
            token_endpoint_auth_method="none",
            verify=False,
            trust_env=False,
        )
        async with client:
            url, state = client.create_authorization_url(
                metadata["authorization_endpoint"], code_verifier=VERIFIER
            )
            answer = await w.http.post(url, data={"user": "bob"})
            token = await client.fetch_token(
                metadata["token_endpoint"],
                authorization_response=answer.headers["location"],
                state=state,
                code_verifier=VERIFIER,
            )
        assert token["access_token"].count(".") == 2

    run(scene)


def test_the_login_page_runs_nothing_and_leads_only_back_to_the_page_that_asked() -> None:
    """No script, no frame, one style, told by its digest; the form may lead here and to the one
    origin."""

    async def scene(w: World) -> None:
        page = await authorize(w)
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["referrer-policy"] == "no-referrer"
        [style] = re.findall("<style>(.*?)</style>", page.text, re.DOTALL)
        assert "prefers-color-scheme: dark" in style
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert page.headers["content-security-policy"] == (
            f"default-src 'none'; base-uri 'none'; form-action 'self' {PAGE}; "
            f"style-src 'sha256-{digest}'; require-trusted-types-for 'script'; trusted-types 'none'; "
            "frame-ancestors 'none'"
        )
        assert "<script" not in page.text
        assert "style=" not in page.text

    run(scene)


def test_names_of_people_come_escaped() -> None:
    """Whatever the settings call somebody, the page shows it and runs nothing of it."""

    async def scene(w: World) -> None:
        page = await authorize(w)
        assert "<b>" not in page.text
        assert returned(await choose(w, '"><b>')).keys() == {"code", "state"}

    run(scene, idp_users={'"><b>': {"role": "<b>", "merchant_id": '"<b>'}})


@pytest.mark.parametrize(
    "changes",
    [
        {"code_verifier": "w" * 43},
        {"code_verifier": VERIFIER[:42]},
        {"code_verifier": "ä" * 43},
        # The challenge itself is what anybody could read in the address.
        {"code_verifier": CHALLENGE},
        {"redirect_uri": f"{PAGE}/"},
        {"redirect_uri": BACK.replace("127.0.0.1", "localhost")},
        {"client_id": "other-demo"},
    ],
)
def test_a_code_is_worth_nothing_without_what_it_was_asked_with(changes: dict[str, str]) -> None:
    """Another verifier, address or client is invalid_grant, and the code is spent by the try."""

    async def scene(w: World) -> None:
        code = returned(await choose(w, "ada"))["code"]
        for attempt in (await redeem(w, code, **changes), await redeem(w, code)):
            assert (attempt.status_code, attempt.json()) == (400, {"error": "invalid_grant"})
            assert attempt.headers["cache-control"] == "no-store"

    run(scene, idp_login_clients=frozenset({"demo", "other-demo"}))


def test_a_code_is_good_once_and_for_a_minute() -> None:
    """A second redemption fails, and so does a first one that comes 60 seconds late."""
    now = [NOON]

    async def scene(w: World) -> None:
        code = returned(await choose(w, "ada"))["code"]
        now[0] = NOON + 59.9
        assert (await redeem(w, code)).status_code == 200
        assert (await redeem(w, code)).json() == {"error": "invalid_grant"}
        late = returned(await choose(w, "ada"))["code"]
        assert late != code
        now[0] += 60
        assert (await redeem(w, late)).json() == {"error": "invalid_grant"}

    run(scene, clock=lambda: now[0])


def test_codes_under_way_are_bounded() -> None:
    """A thousand are kept; one more pushes out the oldest."""

    async def scene(w: World) -> None:
        await choose(w, "ada")
        codes = [returned(await authorize(w))["code"] for _ in range(1001)]
        assert (await redeem(w, codes[0])).status_code == 400
        assert (await redeem(w, codes[1])).status_code == 200

    run(scene)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
        ({"client_id": "nobody"}, "invalid_client"),
        ({"client_id": None}, "invalid_client"),
        ({"code_verifier": None}, "invalid_request"),
        ({"redirect_uri": ""}, "invalid_request"),
        ({}, "invalid_grant"),
    ],
)
def test_a_faulty_redemption_is_a_typed_400(changes: dict[str, Any], error: str) -> None:
    """Each fault at the token endpoint has OAuth's word for it."""

    async def scene(w: World) -> None:
        answer = await redeem(w, "never-issued", **changes)
        assert (answer.status_code, answer.json()) == (400, {"error": error})

    run(scene)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({**ASKED, "response_type": "token"}, "unsupported_response_type"),
        (without("response_type"), "unsupported_response_type"),
        (without("code_challenge"), "invalid_request"),
        (without("code_challenge_method"), "invalid_request"),
        ({**ASKED, "code_challenge_method": "plain"}, "invalid_request"),
        ({**ASKED, "code_challenge": CHALLENGE + "="}, "invalid_request"),
        ({**ASKED, "prompt": "none login"}, "invalid_request"),
        ({**ASKED, "prompt": "none"}, "login_required"),
    ],
)
def test_what_is_wrong_with_a_request_is_told_to_the_page(
    asked: dict[str, str], error: str
) -> None:
    """Only S256 will do, and `prompt=none` with nobody logged in is login_required; state is kept."""

    async def scene(w: World) -> None:
        answer = await w.http.get("/idp/authorize", params=asked)
        assert returned(answer) == {"error": error, "state": ASKED["state"]}
        assert answer.headers["referrer-policy"] == "no-referrer"

    run(scene)


@pytest.mark.parametrize(
    "changes",
    [
        {"client_id": "nobody"},
        {"redirect_uri": ""},
        {"redirect_uri": "https://127.0.0.1/"},
        {"redirect_uri": "http://app.shop.example/"},
        {"redirect_uri": "http://127.0.0.1.shop.example/"},
        {"redirect_uri": "http://127.0.0.1@shop.example/"},
        {"redirect_uri": "http://user@localhost/"},
        {"redirect_uri": "http://localhost\\@shop.example/"},
        {"redirect_uri": "http://localhost:8080/\\"},
        {"redirect_uri": "http://localhost:8080/#here"},
        {"redirect_uri": "http://localhost:80801/x y"},
        {"redirect_uri": "http://localhost;script-src *"},
        {"redirect_uri": "http://localhost/\r\nx: y"},
        {"redirect_uri": "javascript:alert(1)//http://localhost"},
    ],
)
def test_nobody_is_sent_to_an_address_that_is_not_of_this_machine(changes: dict[str, str]) -> None:
    """An unknown client or a foreign or odd address is a 400 page, for login and logout alike."""

    async def scene(w: World) -> None:
        answers = [await authorize(w, **changes), await choose(w, "ada", **changes)]
        if "redirect_uri" in changes:
            answers.append(await w.http.get("/idp/logout", params=changes))
        for answer in answers:
            assert answer.status_code == 400
            assert "location" not in answer.headers
            assert "set-cookie" not in answer.headers
            assert "form-action 'none'" in answer.headers["content-security-policy"]
            assert "shop.example" not in answer.text

    run(scene)


def test_somebody_who_is_not_known_cannot_be_chosen() -> None:
    """A name that is no button of the page is a 400 page and no login."""

    async def scene(w: World) -> None:
        for user in ("mallory", ""):
            answer = await choose(w, user)
            assert (answer.status_code, answer.headers.get("set-cookie")) == (400, None)

    run(scene)


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 400), ("same-site", 400), ("same-origin", 303)]
)
def test_no_other_page_logs_somebody_in(site: str, status: int) -> None:
    """Login CSRF: a form of another page that chooses a person is refused and sets no cookie."""

    async def scene(w: World) -> None:
        w.http.headers["sec-fetch-site"] = site
        answer = await choose(w, "bob")
        assert answer.status_code == status
        assert ("set-cookie" in answer.headers) is (status == 303)

    run(scene)


def test_a_login_is_remembered_until_it_is_forgotten() -> None:
    """After one choice `prompt=none` gives a code, `prompt=login` asks again, logout forgets."""

    async def scene(w: World) -> None:
        chosen = await choose(w, "bob")
        name, _, attributes = chosen.headers["set-cookie"].partition("; ")
        assert name.startswith("idp_login=login_")
        assert attributes == "Path=/idp; Max-Age=28800; HttpOnly; SameSite=Lax"
        for prompt in ({}, {"prompt": "none"}):
            said = returned(await authorize(w, **prompt))
            token = (await redeem(w, said["code"])).json()["access_token"]
            seen = await w.http.post(
                "/idp/introspect",
                data={"token": token},
                auth=("introspect", "introspect-secret"),
            )
            assert seen.json()["sub"] == "bob"
        assert (await authorize(w, prompt="login")).status_code == 200
        left = await w.http.get("/idp/logout", params={"redirect_uri": BACK})
        assert (left.status_code, left.headers["location"]) == (303, BACK)
        assert "Max-Age=0" in left.headers["set-cookie"]
        assert returned(await authorize(w, prompt="none"))["error"] == "login_required"
        assert (await w.http.get("/idp/logout")).status_code == 200

    run(scene)


def test_a_login_cookie_of_another_sandbox_is_nobody() -> None:
    """Cookies know no ports: what another sandbox set, or anybody made up, is not a login."""

    async def scene(w: World) -> None:
        for value in ("login_AAAA", "ada", "st_x", ""):
            answer = await w.http.get(
                "/idp/authorize",
                params={**ASKED, "prompt": "none"},
                headers={"Cookie": f"idp_login={value}"},
            )
            assert returned(answer)["error"] == "login_required"

    run(scene)


def test_a_login_ends_after_a_working_day() -> None:
    """Eight hours after the choice, `prompt=none` finds nobody, whatever the browser kept."""
    now = [NOON]

    async def scene(w: World) -> None:
        cookie = (await choose(w, "ada")).headers["set-cookie"].partition(";")[0]
        w.http.cookies.clear()
        for later, found in ((28_799, "code"), (28_800, "error")):
            now[0] = NOON + later
            answer = await w.http.get(
                "/idp/authorize", params={**ASKED, "prompt": "none"}, headers={"Cookie": cookie}
            )
            assert found in returned(answer)

    run(scene, clock=lambda: now[0])


def test_chromium_follows_the_form_back_to_the_page_and_remembers_the_login() -> None:
    """The page's own policy lets its redirect through; the next visit needs no form, in a frame
    of another port neither."""

    async def main() -> None:
        async with world() as w, served(w.url) as address, async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=executable())
            try:
                page = await browser.new_page()
                page.set_default_timeout(5_000)
                told: list[str] = []
                page.on("console", lambda message: told.append(message.text))
                back = address.replace("localhost", "127.0.0.1")
                url = httpx2.URL(f"{w.url}/idp/authorize", params={**ASKED, "redirect_uri": back})
                await page.goto(str(url))
                await page.get_by_role("button", name="Sign in as Ada").click()
                await page.wait_for_url(f"{back}?code=*")
                silent = url.copy_merge_params({"prompt": "none"})
                await page.evaluate(
                    """(src) => {
                          const frame = document.createElement("iframe");
                          frame.src = src;
                          return new Promise((resolve) => {
                            frame.onload = () => resolve();
                            document.body.append(frame);
                          });
                        }""",
                    str(silent),
                )
                assert page.frames[1].url.startswith(f"{back}?code=")
                assert [text for text in told if "form-action" in text] == []
            finally:
                await browser.close()

    asyncio.run(main())


# Who may call from a browser


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000", "http://localhost"])
def test_pages_of_this_machine_may_ask_for_tokens_and_give_orders(origin: str) -> None:
    """Preflight, answer and refusal all say so to the very origin, and to no cache for another."""

    async def scene(w: World) -> None:
        for method, path, methods in (
            ("POST", "/idp/token", "GET, POST"),
            ("POST", "/_sandbox/revoke", "POST"),
            ("DELETE", "/_sandbox/faults", "GET, POST, DELETE"),
            ("GET", "/_sandbox/calls", "GET"),
            ("GET", "/_sandbox/sessions/sid_x", "GET, POST"),
        ):
            asked = {
                "Origin": origin,
                "Access-Control-Request-Method": method,
                "Access-Control-Request-Headers": "content-type",
            }
            before = (await w.http.get("/_sandbox/calls")).json()
            preflight = await w.http.options(path, headers=asked)
            assert preflight.status_code == 204
            assert preflight.headers["access-control-allow-methods"] == methods
            assert "content-type" in preflight.headers["access-control-allow-headers"]
            # A question of the browser's is no call of anybody's.
            assert (await w.http.get("/_sandbox/calls")).json() == before
            answer = await w.http.request(method, path, headers={"Origin": origin})
            for said in (preflight, answer):
                assert said.headers["access-control-allow-origin"] == origin
                assert said.headers["vary"] == "origin"
                assert "access-control-allow-credentials" not in said.headers

    run(scene)


@pytest.mark.parametrize("origin", FOREIGN)
def test_pages_from_elsewhere_may_not_even_post_blindly(origin: str) -> None:
    """A foreign page, or one without an origin, gets 403 and what it asked for is not done."""

    async def scene(w: World) -> None:
        order = {"operation": "nmi.session", "kind": "hang"}
        headers = {"Origin": origin}
        for answer in (
            await w.http.post("/_sandbox/faults", json=order, headers=headers),
            await w.http.get("/_sandbox/calls", headers=headers),
            await w.http.options(
                "/_sandbox/faults", headers={**headers, "Access-Control-Request-Method": "POST"}
            ),
            await w.http.get("/idp/token?user=ada", headers=headers),
        ):
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers
        assert (await w.http.get("/_sandbox/faults")).json() == {"faults": []}

    run(scene)


def test_what_no_script_calls_is_open_to_no_script() -> None:
    """The login page and the upstreams' own APIs answer without any CORS header."""

    async def scene(w: World) -> None:
        headers = {"Origin": PAGE}
        for answer in (
            await w.http.get("/idp/authorize", params=ASKED, headers=headers),
            await w.http.post("/nmi/api/v1/sessions", json={}, headers=headers),
            await w.http.post("/checkout/access/connect/token", headers=headers),
        ):
            assert "access-control-allow-origin" not in answer.headers

    run(scene)
