"""The demo's report page is for everybody: keyboards, screen readers, small and dark screens."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browsing import Contexts, Demo, shot
from tests.report_page import (
    CONTRAST,
    FAILED,
    FOCUS,
    SMALL,
    SOON,
    STRUCTURE,
    page_of,
    press,
    report,
    said,
    sign_in,
)


def test_it_can_be_used_from_the_keyboard_alone(context: Contexts, demo: Demo) -> None:
    """Signing in, breaking, mending and signing out, with Tab, Enter and Space; focus is seen."""
    page = page_of(context, expected=FAILED)
    page.goto(demo.public)
    expect(page.get_by_role("button", name="Sign in", exact=True)).to_be_visible()
    tab_to(page, "Skip to the content")
    page.keyboard.press("Enter")
    tab_to(page, "Sign in")
    page.keyboard.press("Enter")
    page.wait_for_url("**/idp/authorize**")
    tab_to(page, "Ada")
    page.keyboard.press("Enter")
    expect(said(page, "begins, with")).to_have_count(1)
    tab_to(page, "Clock +1 h")
    page.keyboard.press("Space")
    pressed = page.locator("#breaks [aria-pressed=true]")
    expect(pressed).to_have_count(1)
    tab_to(page, "Mend all", back=True)
    page.keyboard.press("Enter")
    expect(pressed).to_have_count(0)
    tab_to(page, "Sign out", back=True)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Sign in", exact=True)).to_be_visible()


def tab_to(page: Page, words: str, *, back: bool = False) -> None:
    """Tab until what has the focus says these words; each stop on the way must be visible."""
    for _ in range(40):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        words_there, outline = page.evaluate(FOCUS)
        assert outline >= 2, f"no ring around {words_there!r}"
        if words in words_there:
            return
    raise AssertionError(f"{words!r} cannot be reached")


LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "narrow": {"viewport": {"width": 360, "height": 800}},
}


@pytest.mark.parametrize("look", LOOKS)
def test_it_can_be_read(context: Contexts, demo: Demo, look: str) -> None:
    """Contrast of all text 4.5:1 (WCAG AA), of borders of controls 3:1; nothing wider than the
    screen; what is pressed is 24 pixels or more; nothing has jumped. Pictures are kept."""
    page = page_of(context, expected=FAILED, **LOOKS[look])
    page.goto(demo.public)
    expect(page.get_by_role("button", name="Sign in", exact=True)).to_be_visible()
    assert page.evaluate(CONTRAST) == []
    shot(page, f"report-{look}-signed-out")
    sign_in(page, demo)
    expect(report(page)).to_have_attribute("data-state", "live", timeout=SOON)
    press(page, "Revoke the session")
    press(page, "Clock +1 h")
    expect(said(page, " → ")).to_have_count(1, timeout=SOON)
    page.wait_for_timeout(1_500)  # until no row flashes
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(SMALL) == []
    assert page.evaluate("shifted") < 0.05
    shot(page, f"report-{look}")


def test_it_makes_sense_to_a_screen_reader(context: Contexts, demo: Demo) -> None:
    """One h1 and no level left out, landmarks, a name for each control, no dangling reference."""
    page = sign_in(page_of(context, expected=FAILED), demo)
    expect(said(page, "begins, with")).to_have_count(1)
    assert page.evaluate(STRUCTURE) == []
    expect(page.get_by_role("banner")).to_have_count(1)
    expect(page.get_by_role("main")).to_have_count(1)
    expect(page.get_by_role("navigation", name="Demo")).to_have_count(1)
    expect(page.get_by_role("timer", name="Time left")).to_be_visible()
    for name in ("Report", "Session", "What the client did", "Break something", "Calls"):
        expect(page.get_by_role("region", name=name, exact=True)).to_be_visible()
    expect(page.get_by_role("log", name="The same in words, newest first")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("1 session and 0 errors since"))).to_be_visible()
    down = page.get_by_role("button", name="Upstream down")
    expect(down).to_have_accessible_description(re.compile("^NMI answers 503"))
    expect(page.get_by_role("group", name="Profile").get_by_role("radio")).to_have_count(2)


def test_who_wants_less_motion_gets_none(context: Contexts, demo: Demo) -> None:
    """With prefers-reduced-motion nothing on the page is animated for longer than a frame."""
    page = sign_in(page_of(context, expected=FAILED, reduced_motion="reduce"), demo)
    expect(page.locator("tr.changed").first).to_be_visible(timeout=SOON)
    longest = "Math.max(0, ...document.getAnimations().map((a) => a.effect.getTiming().duration))"
    assert page.evaluate(longest) < 16
