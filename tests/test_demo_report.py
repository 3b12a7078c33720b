"""The report page of the demo: what it claims beside each button is what happens.

Driven as a person would, against the real demo in a real Chromium. Where minutes must pass, the
page's clocks are Playwright's; the servers' are never touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, Response, expect

from tests.browsing import Contexts, Demo
from tests.report_page import (
    EVERYTHING,
    FAILED,
    SOON,
    called,
    fingerprint,
    later,
    left,
    mints,
    page_of,
    press,
    report,
    said,
    sign_in,
)

BACK = "Clock \N{MINUS SIGN}1 h"


@pytest.fixture(name="page")
def _page(context: Contexts, demo: Demo) -> Iterator[Page]:
    """Signed in as Ada; the sandbox is mended afterwards."""
    page = sign_in(page_of(context, expected=FAILED), demo)
    expect(report(page)).to_have_attribute("data-state", "live", timeout=SOON)
    yield page
    assert page.evaluate("violations") == []
    demo.order("clock", skew_seconds=0)


@pytest.fixture(name="clocked")
def _clocked(context: Contexts, demo: Demo) -> Iterator[Page]:
    """As `page`, with clocks that a test can put forward."""
    page = page_of(context, expected=FAILED)
    page.clock.install()
    sign_in(page, demo)
    expect(report(page)).to_have_attribute("data-state", "live", timeout=SOON)
    yield page
    assert page.evaluate("violations") == []
    demo.order("clock", skew_seconds=0)


# The way in and out


def test_a_person_signs_in_and_sees_the_report(page: Page) -> None:
    """Code and PKCE at the identity provider; afterwards no code is left in the address."""
    expect(page.locator("#name")).to_have_text(re.compile("ada", re.IGNORECASE))
    expect(report(page).get_by_role("row")).to_have_count(9)
    expect(said(page, "begins, with")).to_have_count(1)
    assert 50 <= left(page) <= 60
    assert re.search(r"/\?profile=transactions-minute&share=1$", page.url)
    assert page.evaluate("sessionStorage.length + localStorage.length") == 0


def test_a_reload_signs_in_without_asking(page: Page) -> None:
    """The identity provider remembers the person; the page keeps nothing."""
    page.reload()
    expect(report(page)).to_have_attribute("data-state", "live", timeout=SOON)
    assert "code=" not in page.url


def test_as_localhost_it_is_the_same_demo(page: Page, demo: Demo) -> None:
    """The page goes where the identity provider's cookie is not a third party's, and signs in."""
    page.goto(demo.public.replace("127.0.0.1", "localhost"))
    expect(report(page)).to_have_attribute("data-state", "live", timeout=SOON)
    assert page.url.startswith(f"{demo.public}/?")


def test_signing_out_ends_the_session_and_the_login(page: Page, demo: Demo) -> None:
    """The chain is ended at the broker, and a reload asks who one is."""
    with page.expect_response("**/v1/sessions/end") as ended:
        press(page, "Sign out")
    assert ended.value.status == 204
    expect(page.get_by_role("button", name="Sign in", exact=True)).to_be_visible()
    page.goto(demo.public)
    expect(page.get_by_role("button", name="Sign in", exact=True)).to_be_visible()


def test_a_login_that_is_over_is_said_to_be(clocked: Page, demo: Demo) -> None:
    """Signed out elsewhere: once a new JWT is needed the page asks to sign in, and that helps."""
    clocked.request.get(f"{demo.sandbox}/idp/logout", params={"redirect_uri": demo.public})
    later(clocked, 600)
    expect(clocked.get_by_role("alert")).to_contain_text("Your login is over", timeout=SOON)
    clocked.get_by_role("button", name="Sign in again").click()
    clocked.get_by_role("button", name="Ada").click()
    expect(report(clocked)).to_have_attribute("data-state", "live", timeout=SOON)


def test_signing_out_in_one_tab_ends_the_others(page: Page) -> None:
    """A tab that shared the session has none any more, and says why."""
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Open a second tab").click()
    second = opened.value
    expect(report(second)).to_have_attribute("data-state", "live", timeout=SOON)
    press(second, "Sign out")
    expect(page.get_by_role("alert")).to_contain_text("signed out in another tab")
    expect(page.locator("#state")).to_have_text("no session")


def test_an_answer_that_was_not_asked_for_signs_nobody_in(context: Contexts, demo: Demo) -> None:
    """A code with a state of somebody else's is dropped, from the address too (login CSRF)."""
    page = page_of(context)
    page.goto(f"{demo.public}/?code=stolen&state=stolen")
    expect(page.get_by_role("button", name="Sign in", exact=True)).to_be_visible()
    assert page.url == f"{demo.public}/"
    assert demo.calls()["idp.token"] == 0


def test_one_who_may_not_see_it_is_told_so(context: Contexts, demo: Demo) -> None:
    """Eve's login is good, her role is not: the client says "permission", and gives no session."""
    page = sign_in(page_of(context, expected=FAILED), demo, "Eve")
    expect(said(page, "permission · not-permitted · 403")).to_have_count(1)
    expect(page.locator("#state")).to_have_text("no session")
    assert mints(demo) == 0


def test_no_token_is_ever_shown_or_kept(context: Contexts, demo: Demo) -> None:
    """Neither JWT, session token nor handle: on the page, in storage, an address or the console."""
    secrets: set[str] = set()
    heard: list[str] = []

    def read(response: Response) -> None:
        if response.ok and re.search(r"/sessions(/rotate)?$|/idp/token$", response.url):
            answer = response.json()
            names = ("access_token", "session_token", "handle")
            secrets.update(answer[name] for name in names if name in answer)

    page = page_of(context, expected=FAILED)
    page.on("response", read)
    page.on("console", lambda message: heard.append(message.text))
    page.on("request", lambda request: heard.append(request.url))
    sign_in(page, demo)
    first = fingerprint(page)
    press(page, "Revoke the session")
    expect(said(page, f"{first} → ")).to_have_count(1, timeout=SOON)
    heard.append(page.evaluate(EVERYTHING))
    assert len(secrets) == 5
    assert not [secret for secret in secrets if secret in "\n".join(heard)]


# Rotation, and what one breaks


def test_a_session_is_replaced_when_its_successor_is_due(clocked: Page, demo: Demo) -> None:
    """One mint upstream; the drawing has a second bar, the words say which replaced which."""
    before = fingerprint(clocked)
    expect(clocked.locator("#timeline rect.used")).to_have_count(1)
    later(clocked, 52)
    expect(said(clocked, f"{before} → [0-9a-f]{{8}}, 0:0[0-9] before the end")).to_have_count(1)
    expect(clocked.locator("#timeline rect.used")).to_have_count(2)
    expect(clocked.locator("#timeline title").first).to_have_text(
        re.compile("^2 sessions and 0 err")
    )
    assert fingerprint(clocked) != before
    assert left(clocked) >= 50
    assert mints(demo) == 2
    expect(called(clocked, "POST /v1/sessions/rotate · 201")).to_have_count(1)
    expect(called(clocked, "nmi-minute.session \\+[12]").first).to_be_visible()
    row = clocked.get_by_role("row", name="nmi-minute.session")
    expect(row).to_have_class("changed")
    expect(row.get_by_role("cell")).to_have_text("2")


def test_upstream_down(clocked: Page) -> None:
    """The report goes on while the client tries again; mended, it rotates by itself."""
    before = fingerprint(clocked)
    press(clocked, "Upstream down")
    expect(clocked.get_by_role("button", name="Upstream down")).to_have_attribute(
        "aria-pressed", "true"
    )
    later(clocked, 50)
    expect(said(clocked, "server · upstream-unavailable · 503").first).to_be_visible()
    expect(clocked.locator("#state")).to_have_text("in use, retrying")
    expect(report(clocked)).to_have_attribute("data-state", "live")
    assert fingerprint(clocked) == before
    press(clocked, "Upstream down")
    expect(said(clocked, f"{before} → ")).to_have_count(1, timeout=30_000)
    expect(clocked.locator("#timeline .sign.error").first).to_be_attached()


def test_revoke_the_session(page: Page, demo: Demo) -> None:
    """The report is refused and the client gets another session: one mint, and it goes on."""
    before = fingerprint(page)
    press(page, "Revoke the session")
    expect(said(page, f"{before} → ")).to_have_count(1, timeout=SOON)
    expect(report(page)).to_have_attribute("data-state", "live")
    assert mints(demo) == 2


def test_let_it_expire(clocked: Page) -> None:
    """Held until it is over: "expiring", a gap with nothing to give, and then a successor."""
    before = fingerprint(clocked)
    press(clocked, "Let it expire")
    later(clocked, 48)
    later(clocked, 7)
    expect(said(clocked, f"{before} has 0:0[0-9] left and no successor yet")).to_have_count(1)
    later(clocked, 6)
    expect(clocked.locator("#state")).to_have_text("over")
    expect(said(clocked, f"{before} → [0-9a-f]{{8}}, after the end")).to_have_count(
        1, timeout=30_000
    )
    expect(clocked.locator("#timeline rect.gap")).to_have_count(1)
    button = clocked.get_by_role("button", name="Let it expire")
    expect(button).to_have_attribute("aria-pressed", "false")
    expect(report(clocked)).to_have_attribute("data-state", "live", timeout=SOON)


@pytest.mark.parametrize("name", ["Clock +1 h", BACK])
def test_a_clock_that_was_set(page: Page, demo: Demo, name: str) -> None:
    """The countdown goes on as it was; the broker is asked once; nothing is minted."""
    before, counted = fingerprint(page), left(page)
    press(page, name)
    expect(called(page, "POST /v1/sessions/check · 200")).to_have_count(1, timeout=30_000)
    page.wait_for_timeout(4_000)
    assert counted - 40 < left(page) <= counted
    expect(called(page, "/v1/sessions/check")).to_have_count(1)
    assert fingerprint(page) == before
    assert mints(demo) == 1
    expect(report(page)).to_have_attribute("data-state", "live")


def test_one_clock_at_a_time(page: Page) -> None:
    """The other clock button releases the first; what is written down keeps the true time."""
    press(page, "Clock +1 h")
    press(page, BACK)
    ahead = page.get_by_role("button", name="Clock +1 h")
    expect(ahead).to_have_attribute("aria-pressed", "false")
    assert page.evaluate(
        "(Date.now() - performance.timeOrigin - performance.now()) / 60000 | 0"
    ) in (
        -60,
        -59,
    )
    press(page, "Mend all")
    expect(page.locator("#breaks [aria-pressed=true]")).to_have_count(0)
    assert page.evaluate("new Date() - performance.timeOrigin - performance.now() < 5000")


def test_the_upstreams_clock(page: Page) -> None:
    """Ten minutes ahead, what it issued is over: another session, and still a minute to count."""
    before = fingerprint(page)
    press(page, "Upstream clock +10 min")
    expect(said(page, f"{before} → ")).to_have_count(1, timeout=SOON)
    expect(report(page)).to_have_attribute("data-state", "live")
    assert 45 <= left(page) <= 60


def test_offline(clocked: Page) -> None:
    """It keeps what it has and says "network"; online again, it rotates at once."""
    before = fingerprint(clocked)
    press(clocked, "Offline")
    later(clocked, 50)
    expect(said(clocked, "error.*network").first).to_be_visible(timeout=SOON)
    expect(report(clocked)).to_have_attribute("data-state", "live")
    assert fingerprint(clocked) == before
    press(clocked, "Offline")
    expect(said(clocked, f"{before} → ")).to_have_count(1, timeout=3_000)


def test_two_tabs_share_one_session(page: Page, demo: Demo) -> None:
    """The second tab has the first one's session, and a revoked one costs both a single mint."""
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Open a second tab").click()
    second = opened.value
    expect(report(second)).to_have_attribute("data-state", "live", timeout=SOON)
    before = fingerprint(page)
    assert fingerprint(second) == before
    assert mints(demo) == 1
    press(page, "Revoke the session")
    for tab in (page, second):
        expect(said(tab, f"{before} → ")).to_have_count(1, timeout=SOON)
        expect(report(tab)).to_have_attribute("data-state", "live", timeout=SOON)
    assert fingerprint(page) == fingerprint(second)
    assert mints(demo) == 2


def test_a_tab_may_keep_to_itself_and_take_the_long_profile(page: Page, demo: Demo) -> None:
    """Both choices begin anew, and stand in the address for the next tab."""
    page.get_by_label("Share one session with my other tabs").uncheck()
    expect(said(page, "begins, with")).to_have_count(2)
    page.get_by_role("radio", name="transactions 15 minutes").check()
    expect(said(page, "begins, with (14:5|15:0)")).to_have_count(1)
    assert page.url.endswith("/?profile=transactions&share=0")
    link = page.get_by_role("link", name="Open a second tab")
    expect(link).to_have_attribute("href", "/?profile=transactions&share=0")
    assert demo.calls()["nmi.session"] == 1
