"""The sandbox over real sockets, judged where possible by clients that others wrote."""

import asyncio
import base64
import contextlib
import json
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote_plus

import aiohttp
import httpx2
import pytest
import uvloop
from authlib.integrations.base_client.errors import OAuthError  # type: ignore[import-untyped]
from authlib.integrations.httpx_client import AsyncOAuth2Client  # type: ignore[import-untyped]
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata  # type: ignore[import-untyped]
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError
from joserfc.jwk import KeySet
from starlette.testclient import TestClient

from broker.sandbox.app import build
from broker.sandbox.faults import KINDS
from broker.sandbox.serving import RunningSandbox, serve
from broker.sandbox.settings import SandboxSettings

GATEWAY = {"api_key": "sandbox-nmi-key", "merchant_id": "100200300", "environment": "sandbox"}
CHECKOUT_SECRET = "sandbox+secret/with=chars=="
TOKEN_PATH = "/checkout/access/connect/token"
SESSIONS = "/nmi/api/v1/sessions"
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
FORM = {
    "grant_type": "client_credentials",
    "client_id": "ack_sandbox",
    "client_secret": CHECKOUT_SECRET,
    "scope": "sessions:browser",
}


@dataclass
class World:
    """A running sandbox with a plain client for it."""

    running: RunningSandbox
    http: httpx2.AsyncClient

    @property
    def url(self) -> str:
        return self.running.url

    async def mint(self, **changes: Any) -> httpx2.Response:
        return await self.http.post(SESSIONS, json={"gateway": {**GATEWAY, **changes}})

    async def fault(self, operation: str, kind: str, **options: Any) -> None:
        body = {"operation": operation, "kind": kind, **options}
        assert (await self.http.post("/_sandbox/faults", json=body)).status_code == 201

    async def calls(self, operation: str) -> int:
        return int((await self.http.get("/_sandbox/calls")).json()[operation])

    async def until_called(self, operation: str, times: int = 1) -> None:
        while await self.calls(operation) < times:
            await asyncio.sleep(0.001)

    async def idp_token(self, **fields: Any) -> str:
        answer = await self.http.post("/idp/token", data=fields)
        return str(answer.json()["access_token"])

    async def ping(self, token: str) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return await self.http.get("/checkout/api/ping", headers=headers)

    async def report(self, token: str) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return await self.http.get("/nmi/api/v1/report", headers=headers)


@contextlib.asynccontextmanager
async def world(**settings: Any) -> AsyncIterator[World]:
    # No TLS on loopback: loading the certificate bundle would cost more than the test.
    # trust_env off: a proxy of the developer's machine must not see loopback traffic.
    async with (
        serve(SandboxSettings(**settings)) as running,
        httpx2.AsyncClient(base_url=running.url, verify=False, trust_env=False, timeout=10) as http,
    ):
        yield World(running, http)


def run(
    scene: Callable[[World], Awaitable[None]],
    loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
    **settings: Any,
) -> None:
    async def main() -> None:
        async with asyncio.timeout(10), world(**settings) as there:
            await scene(there)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


# NMI


def test_a_minted_session_opens_the_report_of_its_merchant() -> None:
    """A gateway session is 201, lasts 900 seconds, is not to be stored, and is worth something."""

    async def scene(w: World) -> None:
        answer = await w.mint()
        assert answer.status_code == 201
        assert answer.headers["cache-control"] == "no-store"
        assert set(answer.json()) == {"session_token", "expires_at"}
        assert answer.json()["expires_at"] == "2026-11-20T12:15:00Z"
        report = await w.report(answer.json()["session_token"])
        assert report.json() == {
            "variant": "gateway",
            "merchant_id": "100200300",
            "transactions": [],
            "session_expires_at": "2026-11-20T12:15:00Z",
        }

    run(scene, clock=lambda: NOON)


def test_a_merchant_central_session_needs_only_its_own_key() -> None:
    """merchant-central takes its own key and no merchant; a gateway key is refused there."""

    async def scene(w: World) -> None:
        good = await w.http.post(SESSIONS, json={"merchant-central": {"api_key": "sandbox-mc-key"}})
        assert good.status_code == 201
        report = await w.report(good.json()["session_token"])
        assert (report.json()["variant"], report.json()["merchant_id"]) == (
            "merchant-central",
            None,
        )
        bad = await w.http.post(SESSIONS, json={"merchant-central": {"api_key": "sandbox-nmi-key"}})
        assert bad.status_code == 401

    run(scene)


@pytest.mark.parametrize(
    "headers", [{"Authorization": "Bearer sandbox-nmi-key"}, {"X-Api-Key": "sandbox-nmi-key"}]
)
def test_the_api_key_may_travel_in_a_header_but_not_twice(headers: dict[str, str]) -> None:
    """Either header does for the body's api_key; header and body together are refused."""

    async def scene(w: World) -> None:
        keyless = {k: v for k, v in GATEWAY.items() if k != "api_key"}
        one = await w.http.post(SESSIONS, json={"gateway": keyless}, headers=headers)
        assert one.status_code == 201
        two = await w.http.post(SESSIONS, json={"gateway": GATEWAY}, headers=headers)
        assert two.status_code == 422

    run(scene)


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"gateway": GATEWAY, "merchant-central": {}}, 422, "must not both be set"),
        ({}, 422, "one of gateway and merchant-central"),
        ([], 422, "must be an object"),
        ({"gateway": "x"}, 422, "gateway must be an object"),
        ({"gateway": {**GATEWAY, "api_key": "guess"}}, 401, "Unauthorized"),
        ({"gateway": {**GATEWAY, "api_key": "\ud800"}}, 401, "Unauthorized"),
        ({"gateway": {**GATEWAY, "api_key": ""}}, 401, "Unauthorized"),
        ({"gateway": {**GATEWAY, "merchant_id": ""}}, 422, "merchant_id is required"),
        ({"gateway": {**GATEWAY, "merchant_id": 7}}, 422, "merchant_id must be a string"),
        ({"gateway": {**GATEWAY, "environment": "moon"}}, 422, "environment"),
    ],
)
def test_a_faulty_session_request_is_refused_in_opaque_text(
    body: Any, status: int, named: str
) -> None:
    """Each fault has its status and a plain text that names it, and none repeats the key."""

    async def scene(w: World) -> None:
        answer = await w.http.post(
            SESSIONS,
            content=json.dumps(body),
            headers={"Content-Type": "application/json", "Accept": "application/json"},
        )
        assert answer.status_code == status
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert named in answer.text
        assert "sandbox-nmi-key" not in answer.text

    run(scene)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "text/plain"}, b"{}", 415),
        ({"Content-Type": "application/json", "Accept": "text/html"}, b"{}", 406),
        ({"Content-Type": "application/json"}, b"{", 400),
        ({"Content-Type": "application/json"}, b"[" * 60_000, 400),
        ({"Content-Type": "application/json"}, b" " * 70_000, 413),
    ],
)
def test_a_session_request_must_be_small_json_and_accept_json(
    headers: dict[str, str], body: bytes, status: int
) -> None:
    """Wrong media type, unacceptable answer, no JSON, absurd nesting and size are refused."""

    async def scene(w: World) -> None:
        answer = await w.http.post(SESSIONS, content=body, headers=headers)
        assert answer.status_code == status

    run(scene)


def test_a_session_token_dies_on_time_and_cannot_be_forged() -> None:
    """At its expiry a token is worth nothing; neither is one with a changed character."""
    now = [NOON]

    async def scene(w: World) -> None:
        token = (await w.mint()).json()["session_token"]
        swapped = token[:10] + ("A" if token[10] != "A" else "B") + token[11:]
        for forged in (swapped, token[:-6], "st_", "nonsense", "st_!"):
            assert (await w.report(forged)).status_code == 401
        now[0] = NOON + 899.9
        assert (await w.report(token)).status_code == 200
        now[0] = NOON + 900
        assert (await w.report(token)).status_code == 401

    run(scene, clock=lambda: now[0])


# Checkout.com


def oauth_client(w: World, method: str, client_id: str, secret: str) -> AsyncOAuth2Client:
    return AsyncOAuth2Client(
        client_id,
        secret,
        scope="sessions:browser",
        token_endpoint_auth_method=method,
        verify=False,
        trust_env=False,
    )


@pytest.mark.parametrize(
    ("method", "client_id", "secret"),
    [
        ("client_secret_post", "ack_sandbox", CHECKOUT_SECRET),
        ("client_secret_basic", "ack_tame", "tame-secret"),
        # Authlib does not form-encode the halves of Basic (RFC 6749 section 2.3.1) itself.
        ("client_secret_basic", "ack_sandbox", quote_plus(CHECKOUT_SECRET)),
    ],
)
def test_authlib_fetches_a_token_that_opens_the_api(
    method: str, client_id: str, secret: str
) -> None:
    """Authlib gets a bearer token by form body and by Basic, and the API takes it."""

    async def scene(w: World) -> None:
        async with oauth_client(w, method, client_id, secret) as client:
            token = await client.fetch_token(w.url + TOKEN_PATH, grant_type="client_credentials")
            assert {k: token[k] for k in ("token_type", "expires_in", "scope")} == {
                "token_type": "Bearer",
                "expires_in": 3600,
                "scope": "sessions:browser",
            }
            answer = await client.get(w.url + "/checkout/api/ping")
            assert (answer.status_code, answer.json()["pong"]) == (200, True)

    run(scene, checkout_clients={"ack_sandbox": CHECKOUT_SECRET, "ack_tame": "tame-secret"})


def test_basic_with_an_unencoded_plus_is_a_wrong_secret() -> None:
    """Authlib's raw Basic turns the plus of the secret into a space, as at a strict server."""

    async def scene(w: World) -> None:
        client = oauth_client(w, "client_secret_basic", "ack_sandbox", CHECKOUT_SECRET)
        async with client:
            with pytest.raises(OAuthError, match="invalid_client"):
                await client.fetch_token(w.url + TOKEN_PATH, grant_type="client_credentials")

    run(scene)


def test_the_access_token_looks_like_the_real_one() -> None:
    """An RS256 at+jwt with Checkout.com's claims; without a scope it has all that the key has."""

    async def scene(w: World) -> None:
        form = {k: v for k, v in FORM.items() if k != "scope"}
        answer = await w.http.post(TOKEN_PATH, data=form)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        head, body, _ = answer.json()["access_token"].split(".")
        header, claims = (
            json.loads(base64.urlsafe_b64decode(x + "=" * (-len(x) % 4))) for x in (head, body)
        )
        assert (header["typ"], header["alg"]) == ("at+jwt", "RS256")
        assert claims["exp"] - claims["iat"] == 3600
        assert claims["nbf"] == claims["iat"] == int(NOON)
        assert claims["client_id"] == "ack_sandbox"
        assert claims["scope"] == answer.json()["scope"].split()
        assert set(claims) == {
            *("nbf", "exp", "iss", "aud", "client_id", "cko_client_id"),
            *("cko_entity_id", "jti", "iat", "scope"),
        }

    run(scene, clock=lambda: NOON)


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({**FORM, "client_secret": "wrong"}, "invalid_client"),
        ({**FORM, "client_id": "ack_other"}, "invalid_client"),
        ({**FORM, "scope": "sessions:browser admin"}, "invalid_scope"),
        ({**FORM, "grant_type": "password"}, "unsupported_grant_type"),
        ({k: v for k, v in FORM.items() if k != "grant_type"}, "invalid_request"),
        ({**FORM, "scope": ["sessions", "flow"]}, "invalid_request"),
    ],
)
def test_a_faulty_token_request_is_a_typed_400(form: dict[str, Any], error: str) -> None:
    """Every refusal of the token endpoint is 400 with the OAuth error and nothing else."""

    async def scene(w: World) -> None:
        answer = await w.http.post(TOKEN_PATH, data=form)
        assert (answer.status_code, answer.json()) == (400, {"error": error})

    run(scene)


def test_client_credentials_sent_both_ways_must_agree() -> None:
    """Basic and form credentials together are served if they say the same, the Basic ones encoded
    or (as the official SDK does) not; two that differ, or a bearer token beside the form, are
    invalid_request, and so is a JSON body."""
    encoded = (quote_plus("ack_sandbox"), quote_plus(CHECKOUT_SECRET))
    cases = [
        (FORM, encoded, 200),
        (FORM, ("ack_sandbox", CHECKOUT_SECRET), 200),
        (FORM, ("ack_sandbox", "another"), 400),
        (FORM, ("ack_other", CHECKOUT_SECRET), 400),
        ({k: v for k, v in FORM.items() if k != "client_secret"}, encoded, 400),
    ]

    async def scene(w: World) -> None:
        for form, auth, status in cases:
            both = await w.http.post(TOKEN_PATH, data=form, auth=auth)
            assert both.status_code == status
            assert status == 200 or both.json() == {"error": "invalid_request"}
        bearer = {"Authorization": "Bearer x"}
        for refused in (
            await w.http.post(TOKEN_PATH, data=FORM, headers=bearer),
            await w.http.post(TOKEN_PATH, json=FORM),
        ):
            assert (refused.status_code, refused.json()) == (400, {"error": "invalid_request"})

    run(scene)


def test_a_wrong_prefix_is_a_406_html_page_and_not_an_oauth_error() -> None:
    """Any other path under the prefix is 406 HTML; the right path by GET is 405."""

    async def scene(w: World) -> None:
        wrong = await w.http.post("/checkout/wrong/connect/token", data=FORM)
        assert wrong.status_code == 406
        assert wrong.headers["content-type"] == "text/html; charset=utf-8"
        got = await w.http.get(TOKEN_PATH)
        assert (got.status_code, got.headers["allow"]) == (405, "POST")

    run(scene)


def test_the_api_refuses_tokens_that_are_missing_out_of_scope_expired_or_revoked() -> None:
    """401 with an empty body for no, old or revoked tokens; 403 JSON for the wrong scope."""
    now = [NOON]

    async def scene(w: World) -> None:
        token = (await w.http.post(TOKEN_PATH, data=FORM)).json()["access_token"]
        assert (await w.ping(token)).status_code == 200
        other = (await w.http.post(TOKEN_PATH, data={**FORM, "scope": "flow"})).json()
        denied = await w.ping(other["access_token"])
        assert (denied.status_code, denied.json()["error_type"]) == (403, "operation_not_allowed")
        for bad in ("x", token[:-8], await w.idp_token(user="ada")):
            refused = await w.ping(bad)
            assert (refused.status_code, refused.content) == (401, b"")
        assert (await w.http.post("/_sandbox/revoke")).status_code == 204
        assert (await w.ping(token)).status_code == 401
        fresh = (await w.http.post(TOKEN_PATH, data=FORM)).json()["access_token"]
        assert (await w.ping(fresh)).status_code == 200
        now[0] += 3600
        assert (await w.ping(fresh)).status_code == 401

    run(scene, clock=lambda: now[0])


# Identity provider


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")  # RFC 9864; it is still what IdPs send
@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_joserfc_validates_a_token_by_discovery_and_jwks(algorithm: str) -> None:
    """From the issuer alone a foreign library finds the keys and accepts the token."""

    async def scene(w: World) -> None:
        issuer = f"{w.url}/idp"
        metadata = (await w.http.get(f"{issuer}/.well-known/openid-configuration")).json()
        keys = await w.http.get(metadata["jwks_uri"])
        assert keys.headers["cache-control"] == "max-age=300"
        token = await w.idp_token(user="ada", alg=algorithm, lifetime=60)
        decoded = jwt.decode(token, KeySet.import_key_set(keys.json()), algorithms=[algorithm])
        jwt.JWTClaimsRegistry(
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": "token-broker"},
            exp={"essential": True},
            nbf={"essential": True},
        ).validate(decoded.claims)
        assert decoded.claims["exp"] - decoded.claims["iat"] == 60
        assert {k: decoded.claims[k] for k in ("sub", "role", "merchant_id")} == {
            "sub": "ada",
            "role": "owner",
            "merchant_id": "100200300",
        }

    run(scene)


def test_authlib_accepts_the_metadata_at_both_well_known_addresses() -> None:
    """RFC 8414 path insertion and OpenID discovery give the same, valid document."""

    async def scene(w: World) -> None:
        inserted = await w.http.get("/.well-known/oauth-authorization-server/idp")
        appended = await w.http.get("/idp/.well-known/openid-configuration")
        assert inserted.json() == appended.json()
        metadata = AuthorizationServerMetadata(inserted.json())
        assert metadata["issuer"] == f"{w.url}/idp"
        # Authlib's own checks insist on https, which loopback does not have.
        for check in ("response_types_supported", "grant_types_supported"):
            getattr(metadata, f"validate_{check}")()
        assert await w.calls("idp.discovery") == 2

    run(scene)


def test_the_issuer_can_be_given() -> None:
    """With issuer_base_url set, tokens and metadata say it whatever Host was asked for."""

    async def scene(w: World) -> None:
        metadata = (await w.http.get("/idp/.well-known/openid-configuration")).json()
        assert metadata["issuer"] == "https://sandbox.example/idp"

    run(scene, issuer_base_url="https://sandbox.example/")


def test_a_shell_gets_a_bare_token() -> None:
    """format=text or Accept: text/plain answers the token and nothing else."""

    async def scene(w: World) -> None:
        by_query = await w.http.get("/idp/token?user=bob&format=text")
        by_header = await w.http.get("/idp/token?user=bob", headers={"Accept": "text/plain"})
        for answer in (by_query, by_header):
            assert answer.headers["content-type"] == "text/plain; charset=utf-8"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.text.count(".") == 2
            assert answer.text.strip() == answer.text

    run(scene)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "user=mallory",
        "user=ada&client=reports-backend",
        "client=x",
        "user=ada&alg=none",
        "user=ada&lifetime=soon",
        "user=ada&lifetme=5",
        "user=ada&user=bob",
    ],
)
def test_a_faulty_request_for_an_identity_is_refused(query: str) -> None:
    """Unknown people, services, algorithms, fields and lifetimes are 400."""

    async def scene(w: World) -> None:
        assert (await w.http.get(f"/idp/token?{query}")).status_code == 400

    run(scene)


def test_authlib_introspects_user_and_service_tokens() -> None:
    """RFC 7662 by Basic: live tokens are active with their facts, others merely inactive."""

    async def scene(w: World) -> None:
        service = await w.idp_token(client="reports-backend")
        user = await w.idp_token(user="eve")
        expired = await w.idp_token(user="eve", lifetime=-1)
        async with oauth_client(w, "client_secret_basic", "introspect", "introspect-secret") as c:

            async def introspect(token: str) -> dict[str, Any]:
                answer = await c.introspect_token(w.url + "/idp/introspect", token)
                found: dict[str, Any] = answer.json()
                return found

            found = await introspect(service)
            assert (found["active"], found["client_id"]) == (True, "reports-backend")
            assert found["scope"] == "access-tokens:read"
            found = await introspect(user)
            assert (found["active"], found["sub"], found["role"]) == (True, "eve", "guest")
            for dead in (expired, "svc_x", "a.b.c", user[:-5] + "AAAAA"):
                assert await introspect(dead) == {"active": False}

    run(scene)


def test_introspection_is_only_for_its_clients() -> None:
    """Without the right Basic credentials introspection is 401 with a challenge."""

    async def scene(w: World) -> None:
        for auth in ("introspect", "introspect:wrong", "nobody:introspect-secret"):
            headers = {"Authorization": f"Basic {base64.b64encode(auth.encode()).decode()}"}
            answer = await w.http.post("/idp/introspect", data={"token": "x"}, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Basic ")

    run(scene)


@pytest.mark.parametrize(
    ("cookie", "status"),
    [
        ("shop_session=ada-session", 200),
        ("theme=dark; shop_session=ada-session", 200),
        ("shop_session=ada", 401),
        ("shop_session=mallory-session", 401),
        ("other=ada-session", 401),
    ],
)
def test_whoami_knows_people_by_their_shop_cookie(cookie: str, status: int) -> None:
    """The cookie of a known user answers subject and claims; every other one is 401."""

    async def scene(w: World) -> None:
        answer = await w.http.get("/idp/whoami", headers={"Cookie": cookie})
        assert answer.status_code == status
        if status == 200:
            claims = {"role": "owner", "merchant_id": "100200300"}
            assert answer.json() == {"subject": "ada", "claims": claims}

    run(scene)


@pytest.mark.parametrize("keep", [True, False])
def test_key_rotation_replaces_every_key_and_keeps_the_old_ones_only_if_told(keep: bool) -> None:
    """New kids sign at once; the outgoing keys stay published unless they are to vanish."""

    async def scene(w: World) -> None:
        async def keys() -> KeySet:
            return KeySet.import_key_set((await w.http.get("/idp/jwks")).json())

        old_token, old_kids = await w.idp_token(user="ada"), {k.kid for k in await keys()}
        answer = await w.http.post("/_sandbox/rotate-keys", json={"keep_previous": keep})
        new_kids = set(answer.json()["kids"])
        assert len(new_kids) == 3
        assert not new_kids & old_kids
        published = await keys()
        assert {k.kid for k in published} == (new_kids | old_kids if keep else new_kids)
        jwt.decode(await w.idp_token(user="ada"), published, algorithms=["RS256"])
        if keep:
            jwt.decode(old_token, published, algorithms=["RS256"])
        else:
            with pytest.raises(InvalidKeyIdError):
                jwt.decode(old_token, published, algorithms=["RS256"])

    run(scene)


# Control plane


def test_calls_are_counted_and_reset_forgets_counts_faults_and_skew() -> None:
    """Each operation has a counter from the start; reset brings all of it back to nought."""

    async def scene(w: World) -> None:
        before = (await w.http.get("/_sandbox/calls")).json()
        assert before == dict.fromkeys(before, 0)
        assert {"nmi.session", "checkout.token", "idp.jwks", "idp.whoami"} < set(before)
        await w.mint()
        await w.mint(api_key="wrong")
        assert await w.calls("nmi.session") == 2
        await w.fault("nmi.session", "html-200")
        await w.http.post("/_sandbox/clock", json={"skew_seconds": 500})
        assert (await w.http.post("/_sandbox/reset")).status_code == 204
        assert (await w.http.get("/_sandbox/calls")).json() == before
        assert (await w.http.get("/_sandbox/faults")).json() == {"faults": []}
        assert (await w.mint()).json()["expires_at"] == "2026-11-20T12:15:00Z"

    run(scene, clock=lambda: NOON)


def test_a_skewed_server_is_wrong_in_everything_it_says() -> None:
    """The skew moves the Date header, what is minted and what counts as expired."""

    async def scene(w: World) -> None:
        token = (await w.mint()).json()["session_token"]
        await w.http.post("/_sandbox/clock", json={"skew_seconds": 3600})
        answer = await w.mint()
        assert parsedate_to_datetime(answer.headers["date"]).timestamp() == NOON + 3600
        assert answer.json()["expires_at"] == "2026-11-20T13:15:00Z"
        assert (await w.report(token)).status_code == 401

    run(scene, clock=lambda: NOON)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("faults", {"operation": "nmi.sesion", "kind": "hang"}),
        ("faults", {"operation": "nmi.session", "kind": "hagn"}),
        ("faults", {"operation": ["nmi.session"], "kind": "hang"}),
        ("faults", {"operation": "nmi.session", "kind": {}}),
        ("faults", {"operation": "nmi.session", "kind": "hang", "seconds": 1}),
        ("faults", {"operation": "nmi.session", "kind": "hang", "times": 0}),
        ("faults", {"operation": "nmi.session", "kind": "hang", "times": True}),
        ("faults", {"operation": "nmi.session", "kind": "status"}),
        ("faults", {"operation": "nmi.session", "kind": "status", "code": 1000}),
        ("faults", {"operation": "nmi.session", "kind": "status", "code": 429, "retry_after": []}),
        (
            "faults",
            {"operation": "nmi.session", "kind": "status", "code": 429, "retry_after": "5\r\nx: y"},
        ),
        ("faults", {"operation": "nmi.session", "kind": "latency", "seconds": float("inf")}),
        ("faults", ["hang"]),
        ("clock", {"skew_seconds": "much"}),
        ("clock", {"skew_seconds": float("nan")}),
        ("rotate-keys", {"keep": True}),
    ],
)
def test_a_misspelt_order_to_the_control_plane_is_refused(path: str, body: Any) -> None:
    """Unknown names, kinds, options and values are 400 with a reason, never quietly ignored."""

    async def scene(w: World) -> None:
        answer = await w.http.post(f"/_sandbox/{path}", content=json.dumps(body))
        assert answer.status_code == 400
        assert answer.json()["error"]

    run(scene)


def test_faults_happen_in_order_as_often_as_told_and_only_to_their_operation() -> None:
    """The oldest matching fault happens, counts down and gives way; others are untouched."""

    async def scene(w: World) -> None:
        await w.fault("nmi.session", "status", code=503, times=2)
        await w.fault("nmi.session", "status", code=500, times=1)
        await w.fault("idp.whoami", "html-200")
        assert [(await w.mint()).status_code for _ in range(4)] == [503, 503, 500, 201]
        faults = (await w.http.get("/_sandbox/faults")).json()["faults"]
        assert faults == [{"operation": "idp.whoami", "kind": "html-200", "times": None}]
        assert (await w.http.delete("/_sandbox/faults")).status_code == 204
        assert (await w.http.get("/idp/whoami")).status_code == 401

    run(scene)


# Faults: the answer


def test_latency_delays_an_honest_answer() -> None:
    """The answer is what it would have been, and not before its time."""

    async def scene(w: World) -> None:
        await w.fault("nmi.session", "latency", seconds=0.15)
        began = time.monotonic()
        assert (await w.mint()).status_code == 201
        assert time.monotonic() - began >= 0.15

    run(scene)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"code": 503}, (503, None, "upstream fault")),
        ({"code": 429, "retry_after": 7, "body": "slow down"}, (429, "7", "slow down")),
        ({"code": 503, "retry_after": "soon", "body": {"e": 1}}, (503, "soon", '{"e": 1}')),
        (
            {"code": 503, "retry_after": 60, "retry_after_as": "http-date"},
            (503, "Fri, 20 Nov 2026 12:01:00 GMT", "upstream fault"),
        ),
    ],
)
def test_a_status_fault_answers_as_told(options: dict[str, Any], expected: Any) -> None:
    """Code, body and Retry-After, in seconds, as a date, or absurd, are the ones given."""

    async def scene(w: World) -> None:
        await w.fault("nmi.session", "status", **options)
        answer = await w.mint()
        seen = (answer.status_code, answer.headers.get("retry-after"), answer.text)
        assert seen == expected

    run(scene, clock=lambda: NOON)


def test_another_success_status_keeps_the_honest_body() -> None:
    """The token endpoint can be told to say 201, which some accounts have been seen to get."""

    async def scene(w: World) -> None:
        await w.fault("checkout.token", "status", code=201)
        answer = await w.http.post(TOKEN_PATH, data=FORM)
        assert answer.status_code == 201
        assert (await w.ping(answer.json()["access_token"])).status_code == 200

    run(scene)


def test_html_200_is_a_page_where_json_should_be() -> None:
    """The status is 200, the type text/html, the body no JSON."""

    async def scene(w: World) -> None:
        await w.fault("nmi.session", "html-200")
        answer = await w.mint()
        assert (answer.status_code, answer.headers["content-type"]) == (
            200,
            "text/html; charset=utf-8",
        )
        assert answer.text.startswith("<!DOCTYPE html>")

    run(scene)


def test_truncated_json_is_whole_http_and_half_json() -> None:
    """The message is complete by its Content-Length and the JSON in it is not."""

    async def scene(w: World) -> None:
        await w.fault("nmi.session", "truncated-json")
        answer = await w.mint()
        assert answer.status_code == 201
        assert len(answer.content) == int(answer.headers["content-length"])
        with pytest.raises(json.JSONDecodeError):
            answer.json()

    run(scene)


def test_duplicate_keys_are_each_member_twice() -> None:
    """Every member comes once as a decoy and once honestly; which counts is the reader's choice."""

    async def scene(w: World) -> None:
        await w.fault("nmi.session", "duplicate-keys")
        pairs = json.loads((await w.mint()).content, object_pairs_hook=list)
        assert [name for name, _ in pairs] == ["session_token", "expires_at"] * 2
        assert [value for _, value in pairs[:2]] == ["duplicate", "duplicate"]
        assert (await w.report(pairs[2][1])).status_code == 200

    run(scene)


@pytest.mark.parametrize(
    ("kind", "options", "nmi_expiry", "oauth_expiry"),
    [
        ("missing-expiry", {}, None, None),
        ("past-expiry", {}, "2026-11-20T11:59:00Z", -60),
        ("past-expiry", {"seconds": 3600}, "2026-11-20T11:00:00Z", -3600),
        ("expires-in", {"value": "3600"}, "3600", "3600"),
        ("expires-in", {"value": -1}, -1, -1),
        ("expires-in", {"value": [1e9]}, [1e9], [1e9]),
    ],
)
def test_expiry_faults_touch_the_expiry_only(
    kind: str, options: dict[str, Any], nmi_expiry: Any, oauth_expiry: Any
) -> None:
    """Each expiry fault spoils expires_at or expires_in, and the token beside it stays good."""

    async def scene(w: World) -> None:
        await w.fault("nmi.session", kind, **options)
        await w.fault("checkout.token", kind, **options)
        session = (await w.mint()).json()
        assert session.get("expires_at") == nmi_expiry
        assert (await w.report(session["session_token"])).status_code == 200
        token = (await w.http.post(TOKEN_PATH, data=FORM)).json()
        assert token.get("expires_in") == oauth_expiry
        assert (await w.ping(token["access_token"])).status_code == 200

    run(scene, clock=lambda: NOON)


def test_set_fields_changes_members_of_the_answer() -> None:
    """A scope as an array, as a library's mock has it, is one such change."""

    async def scene(w: World) -> None:
        await w.fault("checkout.token", "set-fields", fields={"scope": ["sessions:browser"]})
        token = (await w.http.post(TOKEN_PATH, data=FORM)).json()
        assert token["scope"] == ["sessions:browser"]
        assert (await w.ping(token["access_token"])).status_code == 200

    run(scene)


@pytest.mark.parametrize("declare", [True, False])
def test_a_huge_body_is_valid_json_of_the_size_ordered(declare: bool) -> None:
    """N bytes of JSON with the honest members in it, announced or not: only a limit helps."""

    async def scene(w: World) -> None:
        await w.fault("nmi.session", "huge-body", bytes=3_000_000, declare_length=declare)
        answer = await w.mint()
        assert len(answer.content) == 3_000_000
        assert ("content-length" in answer.headers) is declare
        assert set(answer.json()) == {"session_token", "expires_at", "padding"}

    run(scene)


# Faults: the wire


@pytest.mark.parametrize("loop", LOOPS)
def test_a_reset_is_a_reset(loop: str) -> None:
    """The client's socket sees ECONNRESET, not a tidy end."""

    async def scene(w: World) -> None:
        await w.fault("nmi.session", "reset")
        reader, writer = await asyncio.open_connection(w.running.host, w.running.port)
        writer.write(b"POST /nmi/api/v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()
        async with aiohttp.ClientSession() as client:
            with pytest.raises(aiohttp.ClientOSError, match="reset by peer"):
                await client.post(w.url + SESSIONS, json={"gateway": GATEWAY})

    run(scene, LOOPS[loop])


@pytest.mark.parametrize("loop", LOOPS)
def test_close_midway_ends_in_the_middle_of_the_body(loop: str) -> None:
    """Headers promise a whole body; half of it comes, then a tidy end of the connection."""

    async def scene(w: World) -> None:
        await w.fault("nmi.session", "close-midway", times=1)
        async with aiohttp.ClientSession() as client:
            answer = await client.post(w.url + SESSIONS, json={"gateway": GATEWAY})
            assert answer.status == 201
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
            promised = int(answer.headers["content-length"])
        await w.fault("nmi.session", "close-midway", times=1)
        body = json.dumps({"gateway": GATEWAY}).encode()
        reader, writer = await asyncio.open_connection(w.running.host, w.running.port)
        writer.write(
            b"POST /nmi/api/v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Accept: */*\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        _, _, half = (await reader.read()).partition(b"\r\n\r\n")
        assert len(half) == promised // 2
        writer.close()

    run(scene, LOOPS[loop])


def test_a_slow_drip_comes_byte_by_byte_and_is_complete() -> None:
    """Many small pieces, with the pause before each, and the honest body in the end."""

    async def scene(w: World) -> None:
        await w.fault("idp.whoami", "slow-drip", seconds=0.002)
        began = time.monotonic()
        cookie = {"Cookie": "shop_session=eve-session"}
        async with w.http.stream("GET", "/idp/whoami", headers=cookie) as answer:
            pieces = [piece async for piece in answer.aiter_raw()]
        assert json.loads(b"".join(pieces)) == {"subject": "eve", "claims": {"role": "guest"}}
        length = int(answer.headers["content-length"])
        assert time.monotonic() - began >= 0.002 * length
        assert len(pieces) > length / 4

    run(scene)


async def sandbox_is_idle(others: set[asyncio.Task[Any]]) -> None:
    """Returns when no task of the sandbox is left but its server: the claim is that it does."""
    while asyncio.all_tasks() - others:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("hang", {}),
        ("latency", {"seconds": 3600}),
        ("slow-drip", {"seconds": 3600}),
        ("endless-body", {}),
        ("huge-body", {"bytes": 10**15}),
    ],
)
def test_a_held_request_ends_when_the_client_leaves(
    kind: str, options: dict[str, Any], loop: str
) -> None:
    """After the client is gone nothing of its request runs on, and the server serves others."""

    async def scene(w: World) -> None:
        await w.fault("nmi.session", kind, **options)
        before = asyncio.all_tasks()
        client = asyncio.create_task(swallow(w))
        await w.until_called("nmi.session")
        client.cancel()
        await asyncio.gather(client, return_exceptions=True)
        await sandbox_is_idle(before)
        await w.http.delete("/_sandbox/faults")
        assert (await w.mint()).status_code == 201

    run(scene, LOOPS[loop])


async def swallow(w: World) -> None:
    """Reads whatever comes, keeping none of it, on a connection of its own."""
    async with (
        httpx2.AsyncClient(verify=False, trust_env=False, timeout=None) as client,
        client.stream("POST", w.url + SESSIONS, json={"gateway": GATEWAY}) as answer,
    ):
        async for _ in answer.aiter_raw():
            pass


def test_an_endless_body_goes_on_past_any_limit_without_starving_the_server() -> None:
    """A hundred million bytes come and more would, while other requests are answered."""

    async def scene(w: World) -> None:
        await w.fault("nmi.session", "endless-body")
        seen = 0
        async with w.http.stream("POST", SESSIONS, json={"gateway": GATEWAY}) as answer:
            async for piece in answer.aiter_raw():
                seen += len(piece)
                if seen > 100_000_000:
                    break
            assert await w.calls("nmi.session") == 1

    run(scene)


def test_a_client_that_leaves_inside_its_request_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Half a request and a close leave no task, no count and nothing in the log."""

    async def scene(w: World) -> None:
        await w.calls("nmi.session")
        before = asyncio.all_tasks()
        _, writer = await asyncio.open_connection(w.running.host, w.running.port)
        writer.write(b"POST /nmi/api/v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        await writer.drain()
        writer.close()
        await sandbox_is_idle(before)
        assert await w.calls("nmi.session") == 0

    run(scene)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_every_kind_of_fault_leaves_the_log_clean(caplog: pytest.LogCaptureFixture) -> None:
    """No fault is an error inside the sandbox, and no token or key reaches a log line."""

    async def scene(w: World) -> None:
        required: dict[str, dict[str, Any]] = {
            "status": {"code": 503},
            "expires-in": {"value": 1},
            "set-fields": {"fields": {}},
        }
        for kind in set(KINDS) - {"hang", "slow-drip", "latency", "endless-body", "huge-body"}:
            await w.fault("nmi.session", kind, times=1, **required.get(kind, {}))
            with contextlib.suppress(httpx2.TransportError):
                await w.mint()
        assert (await w.mint()).status_code == 201

    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.WARNING, logger="httpcore2")
    run(scene)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert "sandbox-nmi-key" not in caplog.text
    assert "st_" not in caplog.text


def test_a_wire_fault_without_the_server_is_an_error_and_not_an_answer() -> None:
    """Under another server a reset cannot happen, and must not look as if it had."""
    client = TestClient(build(SandboxSettings()))
    client.post("/_sandbox/faults", json={"operation": "nmi.session", "kind": "reset"})
    with pytest.raises(RuntimeError, match="needs the server"):
        client.post(SESSIONS)


# Serving


@pytest.mark.parametrize("loop", LOOPS)
def test_the_server_stops_at_once_though_a_hang_holds_it(loop: str) -> None:
    """Leaving the context cuts held and idle connections and leaves no task behind."""

    async def main() -> None:
        async with world() as w:
            await w.fault("nmi.session", "hang")
            held = asyncio.create_task(w.mint())
            await w.until_called("nmi.session")
            leaving = time.monotonic()
        with pytest.raises(httpx2.TransportError):
            await held
        assert time.monotonic() - leaving < 0.5
        assert asyncio.all_tasks() == {asyncio.current_task()}
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(w.running.host, w.running.port)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_answers_do_not_wait_for_delayed_acknowledgements(loop: str) -> None:
    """Fifty requests on one connection take a fraction of the 40 ms each that Nagle would add."""

    async def scene(w: World) -> None:
        began = time.monotonic()
        for _ in range(50):
            assert (await w.mint()).status_code == 201
        assert time.monotonic() - began < 50 * 0.040 / 2

    run(scene, LOOPS[loop])


def test_serving_leaves_the_process_alone() -> None:
    """Signal handlers and the loggers of uvicorn are afterwards and meanwhile what they were."""
    access = logging.getLogger("uvicorn.access")

    def state() -> tuple[Any, ...]:
        handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
        return handlers, access.propagate, list(access.handlers), access.level

    async def main() -> None:
        before = state()
        async with serve():
            assert state() == before
        assert state() == before

    asyncio.run(main())


def test_a_port_can_be_given_and_a_taken_one_is_an_os_error() -> None:
    """The given port is listened on; a second server there fails with the system's reason."""

    async def main() -> None:
        async with serve() as first:
            with pytest.raises(OSError, match="in use"):
                async with serve(port=first.port):
                    pass
        async with serve(port=first.port) as again:
            assert again.url == first.url

    asyncio.run(main())


def test_an_exception_in_the_context_stops_the_server_and_comes_through() -> None:
    """The body's own exception is what the caller sees, and the port is free."""

    async def main() -> None:
        with pytest.raises(LookupError, match="mine"):
            async with serve() as there:
                raise LookupError("mine")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(there.host, there.port)

    asyncio.run(main())


def test_a_seed_makes_opaque_tokens_repeatable() -> None:
    """Two sandboxes with one seed and clock mint the same sessions; other seeds mint others."""

    async def first_token(seed: int | None) -> str:
        async with world(seed=seed, clock=lambda: NOON) as w:
            return str((await w.mint()).json()["session_token"])

    async def main() -> None:
        one, same, other = await first_token(1), await first_token(1), await first_token(2)
        assert one == same
        assert one != other

    asyncio.run(main())


def test_settings_keep_keys_out_of_their_repr() -> None:
    """What would be a secret elsewhere is in no repr here either."""
    shown = repr(SandboxSettings())
    for secret in ("sandbox-nmi-key", "sandbox-mc-key", CHECKOUT_SECRET, "introspect-secret"):
        assert secret not in shown
