"""The demo's 3-D Secure page in a real browser: whole authentications, and what comes between."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from playwright.sync_api import FrameLocator, Locator, Page, Response, Route, expect

from tests.browsing import Contexts, Demo, artefacts, shot

CARDS = {
    "frictionless": ("Frictionless", "Approved"),
    "challenged": ("Challenged", "Approved"),
    "attempted": ("Attempted", "Attempted"),
    "failed": ("Failed", "Declined"),
}
"""What to choose, and how it ends."""
DONE = re.compile(r"^done in \d+(\.\d)? m?s$")
TOKENS = ("session_token", "session_secret", "access_token", "handle", "code_verifier")


class Shopper:
    """A signed-in person at the page, and every secret that the browser was told meanwhile."""

    def __init__(self, page: Page, demo: Demo) -> None:
        self.page = page
        self.demo = demo
        self.minted: dict[str, Any] = {}
        self.secrets: set[str] = set()
        self.urls: list[str] = []
        page.context.on("request", lambda request: self.urls.append(request.url))
        page.on("response", self._hear)
        page.goto(f"{demo.public}/3ds")
        self.press("Sign in")
        self.press("Sign in as Ada")
        expect(self.page.locator("#name")).to_have_text(re.compile("ada", re.IGNORECASE))

    def _hear(self, answer: Response) -> None:
        if answer.request.method != "POST" or "json" not in answer.headers.get("content-type", ""):
            return
        told = json.loads(answer.body())
        self.secrets |= {told[name] for name in TOKENS if name in told}
        if answer.url.endswith("/sessions") and "output" in told:
            self.minted = told

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=re.compile(f"^{name}")).click()

    def choose(self, card: str, *, hosted: bool = False, method: bool = False) -> None:
        page = self.page
        page.get_by_role("radio", name=re.compile(f"^{card}")).check()
        page.get_by_role("radio", name=re.compile("^Hosted" if hosted else "^Non-hosted")).check()
        page.get_by_role("checkbox", name=re.compile("3DS method")).set_checked(method)

    def start(self, card: str, *, hosted: bool = False, method: bool = False) -> None:
        self.choose(card, hosted=hosted, method=method)
        self.press("Authenticate")

    @property
    def dialog(self) -> Locator:
        return self.page.get_by_role("dialog")

    @property
    def bank(self) -> FrameLocator:
        """What the issuer shows in the dialog."""
        return self.dialog.frame_locator("iframe")

    def challenged(self, **options: bool) -> None:
        """Begins one, up to the issuer's question."""
        self.start("Challenged", **options)
        expect(self.bank.get_by_role("button", name="Approve")).to_be_visible()

    def payment_page(self) -> Page:
        """Opens Checkout.com's page from the dialog."""
        with self.page.expect_popup() as opened:
            self.press("Open the payment page")
        expect(opened.value.get_by_role("button", name="Continue")).to_be_visible()
        return opened.value

    def ends(self, title: str) -> None:
        """It is over: the result stands there and has the focus, nothing is left of the issuer."""
        result = self.page.locator("#result")
        expect(result.locator(".tag")).to_have_text(title)
        expect(self.page.get_by_role("heading", name="Result").last).to_be_focused()
        expect(self.page.locator("#now")).to_contain_text(f"{title}. ")
        expect(result).to_contain_text("Time taken")
        expect(self.dialog).to_have_count(0)
        expect(self.page.locator("iframe, [aria-current=step]")).to_have_count(0)
        expect(self.page.get_by_role("button", name="Authenticate")).to_be_enabled()

    def steps(self) -> dict[str, str]:
        """Each step that is shown, by its title, and where it stands."""
        return {
            item.locator("h3").inner_text(): DONE.sub("done", item.locator(".tag").inner_text())
            for item in self.page.locator("#steps > li:visible").all()
        }

    def acts(self, action: str = "status") -> int:
        """The status of the broker's answer to an action, asked with what the page has."""
        answer = self.page.request.post(
            f"{self.demo.public}/v1/sessions/actions/{action}",
            data={"handle": self.minted["handle"]},
            headers={"authorization": f"Bearer {self.demo.bearer()}"},
        )
        return answer.status

    def has_leaked(self) -> list[str]:
        """Where anything secret is that should be in memory only."""
        kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, name])"
        places = {
            "page": self.page.content(),
            "storage": self.page.evaluate(kept),
            "addresses": "\n".join(self.urls),
        }
        assert len(self.secrets) >= 3
        return [where for where, text in places.items() if any(s in text for s in self.secrets)]


@pytest.fixture(name="shopper")
def _shopper(context: Contexts, demo: Demo) -> Shopper:
    return Shopper(context().new_page(), demo)


# --- the four ways ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [False, True], ids=["", "method"])
@pytest.mark.parametrize("card", CARDS)
def test_non_hosted(shopper: Shopper, card: str, method: bool) -> None:
    """The page does what is next until nothing is, and shows each step as done or not needed, the
    status at the end, and no secret anywhere: neither on the page nor in storage or an address."""
    choice, title = CARDS[card]
    challenged = card == "challenged"
    shopper.start(choice, method=method)
    if challenged:
        shopper.bank.get_by_role("button", name="Approve").click()
    shopper.ends(title)
    assert shopper.steps() == {
        "Session": "done",
        "Browser\u2019s data": "done",
        "3DS method": "done" if method else "not needed",
        "Challenge": "done" if challenged else "not needed",
        "Completion": "done",
        "Result": title.lower(),
    }
    expect(shopper.page.locator("#facts")).to_contain_text(
        shopper.minted["output"]["transaction_id"]
    )
    log = shopper.page.locator("#log")
    assert log.get_by_text("3DS method done: Y").count() == int(method)
    assert shopper.has_leaked() == []
    shot(shopper.page, f"3ds-{card}{'-method' if method else ''}")


@pytest.mark.parametrize("card", CARDS)
def test_hosted(shopper: Shopper, card: str) -> None:
    """Checkout.com's page runs in a window of its own, which closes when it has led back to the
    shop; the page then reads the status."""
    choice, title = CARDS[card]
    shopper.start(choice, hosted=True)
    expect(shopper.dialog.get_by_role("heading", name="Go on at Checkout.com")).to_be_focused()
    other = shopper.payment_page()
    shopper.page.screenshot(path=artefacts() / "3ds-hosted-dialog.png")
    with other.expect_event("close"):
        other.get_by_role("button", name="Continue").click()
        if card == "challenged":
            other.get_by_role("button", name="Approve").click()
    shopper.ends(title)
    assert shopper.steps() == {"Session": "done", "Hosted page": "done", "Result": title.lower()}
    assert shopper.has_leaked() == []
    shot(shopper.page, f"3ds-hosted-{card}")


@pytest.mark.parametrize("hosted", [False, True], ids=["frame", "window"])
def test_the_return_is_noticed_at_once(shopper: Shopper, hosted: bool) -> None:
    """The word of the shop's page, in the frame or from the window, makes the page look: though
    its timers stand still, so that it would never ask by itself."""
    page = shopper.page
    page.clock.install()
    page.clock.pause_at(time.time() + 60)
    shopper.start("Challenged", hosted=hosted)
    bank: FrameLocator | Page = shopper.bank
    if hosted:
        bank = shopper.payment_page()
        bank.get_by_role("button", name="Continue").click()
    bank.get_by_role("button", name="Approve").click()
    shopper.ends("Approved")
    expect(page.locator("#log")).to_contain_text("sent you back to the shop")


@pytest.mark.parametrize(
    ("button", "title"), [("Approve", "Approved"), ("Fail", "Declined"), ("Cancel", "Cancelled")]
)
def test_what_the_bank_is_answered(shopper: Shopper, button: str, title: str) -> None:
    """Each of the answers to the bank's question has its own end on the page, and the frame in
    which it was asked is fenced, has a title, and is gone."""
    shopper.challenged()
    frame = shopper.dialog.locator("iframe")
    expect(frame).to_have_attribute("sandbox", "allow-forms allow-scripts allow-same-origin")
    expect(frame).to_have_attribute("title", "Your bank asks you to confirm the payment")
    shopper.bank.get_by_role("button", name=button).click()
    shopper.ends(title)
    assert shopper.steps()["Challenge"] == "done"


# --- the person -------------------------------------------------------------------------------


def test_by_keyboard_alone(shopper: Shopper) -> None:
    """From the first radio button to the result nothing but keys is needed: the focus goes into
    the dialog by itself, from there to the bank's buttons, and to the result at the end."""
    page = shopper.page
    page.get_by_role("radio", name=re.compile("^Frictionless")).focus()
    for key in ("ArrowDown", "Tab", "Tab", "Tab", "Enter"):
        page.keyboard.press(key)
    expect(shopper.dialog.get_by_role("heading")).to_be_focused()
    expect(shopper.bank.get_by_role("button", name="Approve")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Cancel payment")).to_be_focused()
    for _ in range(3):  # the frame's document is a stop of its own for some
        page.keyboard.press("Tab")
        if shopper.bank.locator(":focus").count():
            break
    expect(shopper.bank.get_by_role("button", name="Approve")).to_be_focused()
    page.keyboard.press("Enter")
    shopper.ends("Approved")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.closest('.board') !== null")


@pytest.mark.parametrize("way", ["Escape", "button", "hosted"])
def test_closing_is_cancelling(shopper: Shopper, way: str) -> None:
    """Who closes the dialog has cancelled: nothing goes on, the handle is dead on the server, and
    the next try begins with a session of its own."""
    page = shopper.page
    if way == "hosted":
        shopper.start("Challenged", hosted=True)
        other = shopper.payment_page()
    else:
        shopper.challenged()
    with page.expect_response("**/v1/sessions/end"):
        if way == "Escape":
            page.keyboard.press("Escape")
        else:
            shopper.press("Cancel payment")
    if way == "hosted" and not other.is_closed():
        other.wait_for_event("close")
    shopper.ends("Cancelled")
    steps = shopper.steps()
    assert steps["Hosted page" if way == "hosted" else "Challenge"] == "cancelled"
    assert steps["Result"] == "not reached"
    assert shopper.acts() == 410
    shot(page, f"3ds-cancelled-{way}")
    first = shopper.minted["output"]["id"]
    shopper.start("Frictionless")
    shopper.ends("Approved")
    assert shopper.minted["output"]["id"] != first


def test_closed_after_the_answer(shopper: Shopper) -> None:
    """Who closes the dialog when the bank had its answer already is not told otherwise."""
    shopper.challenged()
    shopper.demo.order(f"sessions/{shopper.minted['output']['id']}", status="approved")
    shopper.page.keyboard.press("Escape")
    shopper.ends("Approved")
    assert shopper.steps()["Completion"] == "done"


def test_stopped(shopper: Shopper) -> None:
    """While it runs nothing else can be chosen or begun, the focus is with what happens, and it
    can be stopped."""
    page = shopper.page
    page.route("**/actions/collect-data", lambda _route: None)  # never answered
    shopper.start("Challenged")
    expect(page.get_by_role("heading", name="What happens")).to_be_focused()
    expect(page.get_by_role("button", name="Authenticate")).to_be_disabled()
    expect(page.get_by_role("radio", name=re.compile("^Hosted"))).to_be_disabled()
    current = page.locator("[aria-current=step]")
    expect(current.get_by_role("heading")).to_have_text("Browser\u2019s data")
    expect(page.locator("#now")).to_have_text("Step 2 of 6: The page tells about this browser.")
    shopper.press("Stop")
    shopper.ends("Stopped")


# --- what goes wrong ------------------------------------------------------------------------------


def test_the_bank_waits_no_longer(shopper: Shopper) -> None:
    """A challenge that nobody answers ends at the bank; the page finds out by asking, as nobody
    tells it."""
    shopper.challenged()
    shopper.press("Let the bank\u2019s time run out")
    shopper.ends("Timed out")
    expect(shopper.page.locator("#facts")).to_contain_text("expired")
    shot(shopper.page, "3ds-timed-out")


def test_the_session_is_over(context: Contexts, demo: Demo) -> None:
    """A session that ended under the page is told as that, and one begins anew by one press."""
    shopper = Shopper(context(expected=["410"]).new_page(), demo)
    shopper.challenged()
    ended = shopper.page.request.post(
        f"{demo.public}/v1/sessions/end",
        data={"handle": shopper.minted["handle"]},
        headers={"authorization": f"Bearer {demo.bearer()}"},
    )
    assert ended.status == 204
    shopper.ends("Session over")
    expect(shopper.page.locator("#facts")).to_contain_text("handle-expired")
    shot(shopper.page, "3ds-expired")
    shopper.start("Frictionless")
    shopper.ends("Approved")


@pytest.mark.parametrize("times", [1, None], ids=["once", "always"])
def test_nothing_minted(context: Contexts, demo: Demo, times: int | None) -> None:
    """Where minting fails the page says so while the client tries again; where it is no use, that
    is the result, with the broker's word for it."""
    shopper = Shopper(context(expected=["50[234]", "422"]).new_page(), demo)
    passing = {"code": 500, "times": times}
    refusal = {"code": 422, "body": {"error_codes": ["source_token_invalid"]}}
    fault = passing if times else refusal
    demo.order("faults", operation="checkout.session", kind="status", **fault)
    shopper.start("Frictionless")
    if times:
        expect(shopper.page.locator("#log")).to_contain_text("the broker is in trouble")
        shopper.ends("Approved")
    else:
        shopper.ends("Failed")
        steps = shopper.steps()
        assert (steps["Session"], steps["Result"]) == ("failed", "not reached")
        expect(shopper.page.locator("#facts")).to_contain_text("invalid-parameters")


def test_offline_for_a_while(context: Contexts, demo: Demo) -> None:
    """Without a network the page says so, keeps the bank's page open and goes on when it is back."""
    shopper = Shopper(context(expected=["ERR_INTERNET_DISCONNECTED"]).new_page(), demo)
    shopper.challenged()
    shopper.page.context.set_offline(True)
    trouble = shopper.dialog.get_by_text("For the moment: no network")
    expect(trouble).to_be_visible()
    shopper.page.screenshot(path=artefacts() / "3ds-offline.png")
    shopper.page.context.set_offline(False)
    expect(trouble).to_be_hidden()
    shopper.bank.get_by_role("button", name="Approve").click()
    shopper.ends("Approved")


def test_cancelled_while_offline(context: Contexts, demo: Demo) -> None:
    """Closing does not wait for a network."""
    shopper = Shopper(context(expected=["ERR_INTERNET_DISCONNECTED"]).new_page(), demo)
    shopper.challenged()
    shopper.page.context.set_offline(True)
    expect(shopper.dialog.get_by_text("For the moment: no network")).to_be_visible()
    shopper.page.keyboard.press("Escape")
    shopper.ends("Cancelled")


@pytest.mark.parametrize("action", ["collect-data", "issuer-fingerprint", "complete"])
def test_a_lost_answer(context: Contexts, demo: Demo, action: str) -> None:
    """An action whose answer was lost is not done a second time: the page asks what became of it."""
    shopper = Shopper(context(expected=["ERR_FAILED"]).new_page(), demo)
    passed: list[int] = []

    def lose(route: Route) -> None:
        passed.append(route.fetch().status)
        route.abort()

    shopper.page.route(f"**/actions/{action}", lose)
    shopper.start("Frictionless", method=True)
    shopper.ends("Approved")
    assert passed in ([200], [204])
    expect(shopper.page.locator("#log")).to_contain_text("no network")


def test_a_3ds_method_that_says_nothing(shopper: Shopper) -> None:
    """After ten seconds without a word from the issuer's 3DS method the page goes on without."""
    page = shopper.page
    seen: list[str] = []

    def silent(route: Route) -> None:
        seen.append(route.request.post_data or "")
        page.clock.fast_forward(10_000)
        route.fulfill(body="<p>Nothing.</p>", content_type="text/html")

    page.clock.install()
    page.context.route("**/acs/method", silent)
    shopper.start("Frictionless", method=True)
    shopper.ends("Approved")
    assert len(seen) == 1
    expect(page.locator("#log")).to_contain_text("no word in ten seconds: U")


def test_a_blocked_window(shopper: Shopper) -> None:
    """Where the browser blocks the window the person is told, and a window that was closed too
    early opens again where it was: that is no cancelling."""
    page = shopper.page
    page.evaluate("void (window.allowed = window.open, window.open = () => null)")
    shopper.start("Challenged", hosted=True)
    shopper.press("Open the payment page")
    expect(shopper.dialog.get_by_text("Your browser blocked the window")).to_be_visible()
    page.evaluate("void (window.open = window.allowed)")
    other = shopper.payment_page()
    expect(shopper.dialog.get_by_text("Your browser blocked the window")).to_be_hidden()
    other.get_by_role("button", name="Continue").click()
    expect(other.get_by_role("button", name="Approve")).to_be_visible()
    other.close()
    with page.expect_popup() as opened:
        shopper.press("Open the payment page")
    opened.value.get_by_role("button", name="Approve").click()
    shopper.ends("Approved")


SENT = """([origin, fromFrame]) => {
  const source = fromFrame ? document.querySelector("iframe").contentWindow : window;
  dispatchEvent(new MessageEvent("message", { data: "3ds-return", origin, source }));
}"""


def test_messages_of_others(shopper: Shopper) -> None:
    """Word of the return is taken from the shop's origin in the challenge's own frame, and from no
    other; and though it is taken, it is not believed: the status decides."""
    page = shopper.page
    shopper.challenged()
    shop = shopper.demo.sandbox
    said = shopper.dialog.get_by_text("You are back.")
    others = [(shop, False), (shopper.demo.public, True), ("null", True), (f"{shop}.example", True)]
    for origin, from_frame in others:
        page.evaluate(SENT, [origin, from_frame])
        page.evaluate("new Promise(requestAnimationFrame)")
        expect(said).to_be_hidden()
    page.evaluate(SENT, [shop, True])
    expect(said).to_be_visible()
    with page.expect_response("**/actions/status") as answer:
        pass
    assert answer.value.json()["status"] == "challenged"
    expect(shopper.bank.get_by_role("button", name="Approve")).to_be_visible()


# --- looks ----------------------------------------------------------------------------------------


def test_nobody_signed_in(context: Contexts, demo: Demo) -> None:
    """Who is not signed in can do that and nothing else."""
    page = context().new_page()
    page.goto(f"{demo.public}/3ds")
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    expect(page.locator("#board")).to_be_hidden()
    shot(page, "3ds-signed-out")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_looks(context: Contexts, demo: Demo, scheme: Any, width: int) -> None:
    """Narrow or wide, light or dark: nothing is wider than the window, in the dialog neither."""
    page = context(color_scheme=scheme, viewport={"width": width, "height": 740}).new_page()
    shopper = Shopper(page, demo)
    shopper.challenged()
    page.screenshot(path=artefacts() / f"3ds-dialog-{scheme}-{width}.png")
    wider = "[document.documentElement, document.querySelector('dialog')]"
    fits = f"{wider}.every((box) => box.scrollWidth <= box.clientWidth)"
    assert page.evaluate(fits)
    shopper.bank.get_by_role("button", name="Approve").click()
    shopper.ends("Approved")
    assert page.evaluate(fits)
    shot(page, f"3ds-{scheme}-{width}")
