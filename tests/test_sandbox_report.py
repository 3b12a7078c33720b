"""The vendor's report of the sandbox: its API over sockets, its web component in a real browser."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from aiohttp import web
from playwright.async_api import async_playwright

import broker.sandbox
from tests.browsing import executable
from tests.test_sandbox import GATEWAY, NOON, World, run, world

API = "/nmi/api/v1/reports/transactions"
EMBED = "/nmi/embed/report.js"
MINUTE = "/nmi-minute/api/v1/sessions"
SHOP = "https://app.shop.example"
SCRIPT = (Path(broker.sandbox.__file__).parent / "embed" / "report.js").read_text()


async def report(w: World, token: str, **headers: str) -> httpx2.Response:
    return await w.http.get(API, headers={"Authorization": f"Bearer {token}", **headers})


async def minted(w: World, path: str = "/nmi/api/v1/sessions", **changes: str) -> str:
    answer = await w.http.post(path, json={"gateway": {**GATEWAY, **changes}})
    assert answer.status_code == 201
    return str(answer.json()["session_token"])


# The API


def test_a_session_opens_the_transactions_of_its_merchant() -> None:
    """Eight rows, newest first, the newest pending; another merchant has others."""

    async def scene(w: World) -> None:
        answer = await report(w, await minted(w))
        assert answer.headers["cache-control"] == "no-store"
        body = answer.json()
        assert body.keys() == {"merchant_id", "rows"}
        assert body["merchant_id"] == "100200300"
        rows = body["rows"]
        assert [row["at"] for row in rows[:3]] == [
            "2026-11-20T12:00:00Z",
            "2026-11-20T11:59:40Z",
            "2026-11-20T11:59:20Z",
        ]
        assert len({row["id"] for row in rows}) == len(rows) == 8
        for row in rows:
            assert row.keys() == {"id", "at", "amount", "currency", "card", "status"}
            assert re.fullmatch(r"\d+\.\d\d", row["amount"])
            assert re.fullmatch(r"[A-Z]\w+ \d{4}", row["card"])
        assert rows[0]["status"] == "pending"
        assert {row["status"] for row in rows[1:]} <= {"settled", "declined"}
        other = (await report(w, await minted(w, merchant_id="7"))).json()
        assert not {row["id"] for row in rows} & {row["id"] for row in other["rows"]}
        central = await w.http.post(
            "/nmi/api/v1/sessions", json={"merchant-central": {"api_key": "sandbox-mc-key"}}
        )
        whole = await report(w, central.json()["session_token"])
        assert whole.json()["merchant_id"] is None

    run(scene, clock=lambda: NOON)


def test_a_transaction_comes_every_twenty_seconds_and_stays_what_it_was() -> None:
    """Twenty seconds on, there is one row more on top and the others moved down unchanged."""
    now = [NOON]

    async def scene(w: World) -> None:
        token = await minted(w)
        before = (await report(w, token)).json()["rows"]
        now[0] += 19
        assert (await report(w, token)).json()["rows"] == before
        now[0] += 1
        after = (await report(w, token)).json()["rows"]
        assert after[2:] == before[1:7]
        assert after[1] == {**before[0], "status": after[1]["status"]}

    run(scene, clock=lambda: now[0])


def test_the_minute_account_mints_sessions_of_a_minute_that_the_report_takes() -> None:
    """The same keys, sixty seconds, one report for both; each account counts its own calls."""
    now = [NOON]

    async def scene(w: World) -> None:
        answer = await w.http.post(MINUTE, json={"gateway": GATEWAY})
        assert answer.json()["expires_at"] == "2026-11-20T12:01:00Z"
        token = answer.json()["session_token"]
        now[0] += 59.9
        assert (await report(w, token)).status_code == 200
        now[0] += 0.1
        assert (await report(w, token)).status_code == 401
        wrong = await w.http.post(MINUTE, json={"gateway": {**GATEWAY, "api_key": "guess"}})
        assert wrong.status_code == 401
        assert (await w.calls("nmi-minute.session"), await w.calls("nmi.session")) == (2, 0)

    run(scene, clock=lambda: now[0])


def test_unknown_expired_and_revoked_sessions_are_one_401() -> None:
    """Why a token is worth nothing is not told; that it is not, any page may read."""
    now = [NOON]

    async def scene(w: World) -> None:
        old = await minted(w)
        now[0] += 900
        revoked = await minted(w)
        await w.http.post("/_sandbox/revoke", json={"nmi": True})
        answers = [await report(w, token, Origin=SHOP) for token in (old, revoked, "st_x")]
        answers.append(await w.http.get(API, headers={"Origin": SHOP}))
        for answer in answers:
            assert answer.status_code == 401
            assert answer.json() == {
                "error": "session token is missing, unknown, expired or revoked"
            }
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["access-control-allow-origin"] == "*"

    run(scene, clock=lambda: now[0])


def test_revoking_sessions_is_asked_for_by_name() -> None:
    """`{"nmi": true}` ends the sessions of both accounts and nothing else; without it, none ends."""

    async def scene(w: World) -> None:
        token = await minted(w)
        for order in (None, {"nmi": False}):
            assert (await w.http.post("/_sandbox/revoke", json=order or {})).status_code == 204
            assert (await report(w, token)).status_code == 200
        of_a_minute = await minted(w, MINUTE)
        person = await w.idp_token(user="ada")
        form = {"grant_type": "client_credentials", "client_id": "ack_sandbox"}
        form["client_secret"] = "sandbox+secret/with=chars=="
        access = (await w.http.post("/checkout/access/connect/token", data=form)).json()
        assert (await w.http.post("/_sandbox/revoke", json={"nmi": True})).status_code == 204
        for dead in (token, of_a_minute):
            assert (await report(w, dead)).status_code == 401
        assert (await w.ping(access["access_token"])).status_code == 200
        seen = await w.http.post(
            "/idp/introspect", data={"token": person}, auth=("introspect", "introspect-secret")
        )
        assert seen.json()["active"] is True
        assert (await report(w, await minted(w))).status_code == 200
        for order in ({"nmi": 1}, {"NMI": True}, {"nmi": True, "idp": True}):
            assert (await w.http.post("/_sandbox/revoke", json=order)).status_code == 400

    run(scene)


def test_any_page_may_read_the_report_and_embed_the_script() -> None:
    """As at a vendor: preflight and answers are for `*`, without credentials, faults included."""

    async def scene(w: World) -> None:
        preflight = await w.http.options(
            API,
            headers={
                "Origin": SHOP,
                "Access-Control-Request-Method": "GET",
                "Access-Control-Request-Headers": "authorization",
            },
        )
        assert preflight.status_code == 204
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        assert await w.calls("nmi.transactions") == 0
        token = await minted(w)
        await w.fault("nmi.transactions", "status", code=503, times=1)
        for answer, status in (
            (preflight, 204),
            (await report(w, token, Origin=SHOP), 503),
            (await report(w, token, Origin=SHOP), 200),
            (await w.http.get(EMBED, headers={"Origin": SHOP}), 200),
        ):
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in answer.headers

    run(scene)


def test_the_script_is_served_as_it_lies_beside_the_code() -> None:
    """A module, for every origin, not to be sniffed, and checked for newer ones on each load."""

    async def scene(w: World) -> None:
        answer = await w.http.get(EMBED)
        assert answer.text == SCRIPT
        assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
        assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"

    run(scene)


def test_the_script_has_no_place_where_a_token_could_stay() -> None:
    """No storage, no console, no markup from strings, no code from strings, in 350 short lines."""
    for word in ("console\\.[a-z]", "Storage", "indexedDB", "cookie", "innerHTML", "outerHTML",
                 "insertAdjacentHTML", "document\\.write", "eval\\(", "Function\\("):  # fmt: skip
        assert not re.search(word, SCRIPT), word
    lines = SCRIPT.splitlines()
    assert len(lines) <= 350
    assert max(map(len, lines)) <= 100


# The component

STRICT = (
    "default-src 'none'; script-src 'self' {sandbox}; connect-src {sandbox}; frame-src 'self' {sandbox} http://127.0.0.1:*; base-uri 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
PAGE = '<!DOCTYPE html><html lang="en"><title>Shop</title><script type="module" src="/shop.js"></script>'
SHOP_SCRIPT = """
const report = document.createElement("nmi-transactions-report");
report.fetchSessionId = () => window.ask();
report.addEventListener("unauthorized", (event) => window.refused(event.detail.token));
document.body.append(report);
window.report = report;
await import("{sandbox}/nmi/embed/report.js");
"""


class Shop:
    """A shop's page with the report in it, and the test in the place of its backend."""

    def __init__(self, w: World, page: Any) -> None:
        self.w = w
        self.page = page
        self.asked = 0
        self.refused: list[str] = []
        self.told: list[str] = []
        self.seconds = 900.0
        self.answer: Callable[[], Awaitable[dict[str, Any]]] = self.session
        self.under_way = 0
        page.on("request", lambda _: self.count(1))
        page.on("requestfinished", lambda _: self.count(-1))
        page.on("requestfailed", lambda _: self.count(-1))

    def count(self, more: int) -> None:
        self.under_way += more

    async def session(self) -> dict[str, Any]:
        now = await self.page.evaluate("Date.now()")
        return {"sessionToken": await minted(self.w), "expiresAt": now + self.seconds * 1000}

    async def ask(self) -> dict[str, Any]:
        self.asked += 1
        self.count(1)
        try:
            return await self.answer()
        finally:
            self.count(-1)

    def hear(self, token: str) -> None:
        self.refused.append(token)

    async def until(self, state: str) -> None:
        await self.page.locator(f"[data-state={state}]").wait_for(timeout=5_000)

    async def status(self) -> str:
        return str(await self.page.get_by_role("status").inner_text())

    async def pass_(self, seconds: float) -> None:
        """Lets the page's time pass, one pause of the component after another, each when what the
        one before it asked for is there: its patience is counted in the same time."""
        for _ in range(round(seconds / 3)):
            await self.page.clock.run_for(3_000)
            await asyncio.sleep(0.05)
            while self.under_way:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def served(sandbox: str) -> AsyncIterator[str]:
    """The shop's page over a socket of its own: what a browser is made to believe has no address,
    and may then not call this machine (Local Network Access)."""
    policy = {"Content-Security-Policy": STRICT.format(sandbox=sandbox)}
    script = SHOP_SCRIPT.replace("{sandbox}", sandbox)

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html", headers=policy)

    async def module(_: web.Request) -> web.Response:
        return web.Response(text=script, content_type="text/javascript")

    app = web.Application()
    app.add_routes([web.get("/", page), web.get("/shop.js", module)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://localhost:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def shop(w: World, **changes: Any) -> AsyncIterator[Shop]:
    """A page of another origin than the sandbox's, whose clock can be told to run ahead."""
    async with async_playwright() as playwright, served(w.url) as address:
        browser = await playwright.chromium.launch(executable_path=executable())
        try:
            page = await browser.new_page()
            there = Shop(w, page)
            for name, value in changes.items():
                setattr(there, name, value)
            page.on("console", lambda message: there.told.append(message.text))
            page.on("pageerror", lambda error: there.told.append(str(error)))
            await page.clock.install()
            await page.expose_function("ask", there.ask)
            await page.expose_function("refused", there.hear)
            await page.goto(address)
            report_there = page.locator("nmi-transactions-report[data-state]")
            await report_there.wait_for(state="attached", timeout=5_000)
            yield there
        finally:
            await browser.close()


def in_browser(scene: Callable[[Shop], Awaitable[None]], **changes: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), world() as w, shop(w, **changes) as there:
            await scene(there)

    asyncio.run(main())


def test_the_report_is_an_accessible_table_under_a_strict_policy() -> None:
    """Caption, column heads and rows stand there, no policy is hurt, and no token is in the page."""

    async def scene(s: Shop) -> None:
        await s.until("live")
        table = s.page.get_by_role("table", name="Transactions of merchant 100200300")
        assert await table.get_by_role("columnheader").all_inner_texts() == [
            *("Time", "Card", "Amount", "Status"),
        ]
        assert await table.get_by_role("row").count() == 9
        assert await s.page.get_by_role("status").get_attribute("role") == "status"
        assert await s.status() == "The report is live."
        assert s.told == []
        seen = await s.page.evaluate(
            "document.documentElement.outerHTML + report.shadowRoot.innerHTML"
        )
        assert "st_" not in seen

    in_browser(scene)


def test_the_report_reads_every_three_seconds_with_one_session() -> None:
    """Half a minute is ten readings more, and no session more; a table that is the same stays."""

    async def scene(s: Shop) -> None:
        await s.until("live")
        before = await s.w.calls("nmi.transactions")
        await s.pass_(30)
        await s.w.until_called("nmi.transactions", before + 9)
        assert await s.w.calls("nmi.transactions") <= before + 11
        assert s.asked == 1

    in_browser(scene)


def test_the_next_session_is_asked_for_before_the_last_one_ends() -> None:
    """Through three minutes of sessions of 30 seconds, none is ever refused."""

    async def scene(s: Shop) -> None:
        await s.until("live")
        await s.pass_(180)
        assert 6 <= s.asked <= 9
        assert s.refused == []
        assert s.told == []

    in_browser(scene, seconds=30.0)


def test_a_refused_session_is_told_and_replaced_at_once() -> None:
    """After a revocation the page hears which token it was, and the report goes on with another."""

    async def scene(s: Shop) -> None:
        await s.until("live")
        await s.w.http.post("/_sandbox/revoke", json={"nmi": True})
        before = await s.w.calls("nmi.transactions")
        await s.page.clock.run_for(3_000)
        await s.w.until_called("nmi.transactions", before + 1)
        await s.page.clock.run_for(1)
        await s.w.until_called("nmi.transactions", before + 2)
        await s.until("live")
        assert s.asked == 2
        assert [token[:3] for token in s.refused] == ["st_"]

    in_browser(scene)


def test_sessions_that_are_all_refused_do_not_set_the_report_spinning() -> None:
    """Where every session is refused, one is asked for per pause and the report says so."""

    async def dead() -> dict[str, Any]:
        dead.count = getattr(dead, "count", 0) + 1  # type: ignore[attr-defined]
        return {"sessionToken": f"st_dead_{dead.count}", "expiresAt": 9e15}  # type: ignore[attr-defined]

    async def scene(s: Shop) -> None:
        await s.until("refused")
        await s.pass_(30)
        assert 8 <= s.asked <= 13
        assert await s.status() == "The session was refused. Asking for another."

    in_browser(scene, answer=dead)


def test_without_a_session_the_report_waits_and_asks_again() -> None:
    """While the page has none it says so once, asks every three seconds, and recovers alone."""

    async def none() -> dict[str, Any]:
        raise RuntimeError("st_secret")

    async def scene(s: Shop) -> None:
        await s.until("waiting")
        said = await s.page.evaluate(
            """() => {
              window.said = [];
              const status = report.shadowRoot.querySelector("[role=status]");
              new MutationObserver(() => said.push(status.textContent))
                .observe(status, { childList: true, characterData: true, subtree: true });
            }"""
        )
        assert said is None
        await s.pass_(15)
        assert 4 <= s.asked <= 7
        assert await s.status() == "There is no session just now. Asking again every few seconds."
        assert len(await s.page.evaluate("said")) <= 1
        s.answer = s.session
        await s.pass_(6)
        await s.until("live")
        assert s.told == []

    in_browser(scene, answer=none)


def test_a_report_that_cannot_be_read_keeps_its_rows_and_says_so() -> None:
    """5xx, half JSON or a cut line are words and the last rows; the session is kept meanwhile."""

    async def scene(s: Shop) -> None:
        await s.until("live")
        for kind in (
            {"kind": "status", "code": 503},
            {"kind": "truncated-json"},
            {"kind": "reset"},
        ):
            order = {"operation": "nmi.transactions", **kind}
            await s.w.http.post("/_sandbox/faults", json=order)
            await s.pass_(6)
            await s.until("unreachable")
            assert await s.page.get_by_role("row").count() == 9
            await s.w.http.delete("/_sandbox/faults")
            await s.pass_(6)
            await s.until("live")
        assert s.asked == 1

    in_browser(scene)


def test_a_report_that_left_the_page_is_quiet() -> None:
    """Once removed it neither reads nor asks; put back, it begins again with a new session."""

    async def scene(s: Shop) -> None:
        await s.until("live")
        await s.page.evaluate("report.remove()")
        before = await s.w.calls("nmi.transactions")
        await s.pass_(30)
        assert (await s.w.calls("nmi.transactions"), s.asked) == (before, 1)
        await s.page.evaluate("document.body.append(report)")
        await s.w.until_called("nmi.transactions", before + 1)
        assert s.asked == 2

    in_browser(scene)
