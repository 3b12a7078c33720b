"""What happens to tabs in real life, done to them by a test: hidden, frozen, asleep, slow, offline,
restored from the back/forward cache, on a machine whose clock is wrong.

All but `shift_clock`, `slow` and `back` are context managers, and end as they began. Nothing here
imitates what Chromium can really do; only a clock is played.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

from playwright.sync_api import BrowserContext, CDPSession, Error, Page

THROTTLED = "--enable-features=IntensiveWakeUpThrottling:grace_period_seconds/2"
"""For `context(THROTTLED)`: tabs that were hidden for two seconds, instead of five minutes, are
woken once a minute."""

_KEPT_VISIBLE: dict[Page, CDPSession] = {}

_BURST = "() => { const end = performance.now() + 150; while (performance.now() < end); }"

CLOCK = """(() => {
  const Real = Date;
  let shift = SHIFT;
  globalThis.Date = class Date extends Real {
    constructor(...given) { if (given.length) super(...given); else super(Real.now() + shift); }
    static now() { return Real.now() + shift; }
  };
  globalThis.Date = new Proxy(globalThis.Date, {
    apply: () => new globalThis.Date().toString(),
  });
  globalThis.__shiftClock = (milliseconds) => { shift = milliseconds; };
})();
"""


def keep_visible(page: Page) -> None:
    """As Playwright does it: the tab believes that it is in front. (`context` does it to all.)"""
    with contextlib.suppress(Error):  # closed meanwhile
        _KEPT_VISIBLE[page] = page.context.new_cdp_session(page)
        page.once("close", _forget)
        _focus(page, True)


def _forget(page: Page) -> None:
    _KEPT_VISIBLE.pop(page, None)


def _focus(page: Page, enabled: bool) -> None:
    order = "Emulation.setFocusEmulationEnabled"  # `by`: so that the relay lets it pass
    _KEPT_VISIBLE[page].send(order, {"enabled": enabled, "by": "tests"})


@contextlib.contextmanager
def hidden(page: Page) -> Iterator[None]:
    """In the background, behind another tab: `visibilitychange`, timers once a second."""
    other = page.context.new_page()
    _focus(page, False)
    other.bring_to_front()
    _until(page, "document.visibilityState", "hidden")
    try:
        yield
    finally:
        page.bring_to_front()
        _focus(page, True)
        other.close()
        _until(page, "document.visibilityState", "visible")


@contextlib.contextmanager
def frozen(page: Page) -> Iterator[None]:
    """Hidden, and frozen as Chromium does to save power: no timer runs, no answer arrives.
    `freeze` and `resume` are dispatched. Such a page can still be asked by `evaluate`."""
    with hidden(page), cdp(page) as session:
        session.send("Page.setWebLifecycleState", {"state": "frozen"})
        try:
            yield
        finally:
            session.send("Page.setWebLifecycleState", {"state": "active"})


@contextlib.contextmanager
def stopped(*pages: Page) -> Iterator[None]:
    """The renderer processes of these tabs get no time at all, as in a machine that sleeps; clocks
    go on. Nothing may be asked of the page meanwhile: it would not answer."""
    found = sorted({renderer(page) for page in pages})
    for process in found:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in found:
            os.kill(process, signal.SIGCONT)


def renderer(page: Page) -> int:
    """The process that runs this tab: the one that is busy when the tab is."""
    browser = page.context.browser
    assert browser is not None
    session = browser.new_browser_cdp_session()
    try:
        for _ in range(5):
            before = _processor_time(session)
            page.evaluate(_BURST)
            spent = {i: t - before.get(i, 0.0) for i, t in _processor_time(session).items()}
            busiest = max(spent, key=lambda i: spent[i])
            if [i for i in spent if spent[i] > spent[busiest] * 0.5] == [busiest]:
                return busiest
    finally:
        session.detach()
    raise AssertionError(f"which process runs {page.url} cannot be told: {spent}")


def _processor_time(session: CDPSession) -> dict[int, float]:
    told: list[dict[str, Any]] = session.send("SystemInfo.getProcessInfo")["processInfo"]
    return {one["id"]: one["cpuTime"] for one in told if one["type"] == "renderer"}


@contextlib.contextmanager
def offline(context: BrowserContext) -> Iterator[None]:
    """No network for all tabs of the context: `offline` and `online` are dispatched."""
    context.set_offline(True)
    try:
        yield
    finally:
        context.set_offline(False)


@contextlib.contextmanager
def slow(page: Page, *, processor: float = 1, latency: float = 0) -> Iterator[None]:
    """A processor that is so many times slower; a network with so many seconds of latency."""
    with cdp(page) as session:
        session.send("Network.enable")
        session.send("Emulation.setCPUThrottlingRate", {"rate": processor})
        network = {"offline": False, "downloadThroughput": -1, "uploadThroughput": -1}
        session.send("Network.emulateNetworkConditions", {**network, "latency": latency * 1000})
        yield


def shift_clock(target: BrowserContext | Page, seconds: float) -> None:
    """`Date` is so many seconds off: for a context before its pages are opened, for a page at once
    and in whatever it loads next. Timers and `performance.now()` go on as they were."""
    script = CLOCK.replace("SHIFT", str(round(seconds * 1000)))
    if isinstance(target, Page):
        change = "if (globalThis.__shiftClock) { __shiftClock(%d); } else { %s }"
        target.evaluate("() => { " + change % (round(seconds * 1000), script) + " }")
    target.add_init_script(script)


def back(page: Page) -> bool:
    """Goes back in the tab's history: whether that page came from the back/forward cache, as it
    was, or was loaded anew. (Playwright's own `go_back` waits for a load that never comes.)"""
    mark = "globalThis.__left"
    with contextlib.suppress(Error):  # gone before it could answer
        page.evaluate(f"() => {{ {mark} = true; history.back(); }}")
    until = time.monotonic() + 10
    while True:
        with contextlib.suppress(Error):  # between two documents
            if page.evaluate(f"() => !{mark} && document.readyState === 'complete'"):
                break
        assert time.monotonic() < until, "the tab did not go back"
        time.sleep(0.02)
    return bool(page.evaluate("() => globalThis.__restored === true"))


RESTORED = """
addEventListener("pageshow", (event) => { globalThis.__restored = event.persisted; });
"""


@contextlib.contextmanager
def cdp(page: Page) -> Iterator[CDPSession]:
    """The DevTools protocol with this tab; what was set over it ends with it."""
    session = page.context.new_cdp_session(page)
    try:
        yield session
    finally:
        session.detach()


def _until(page: Page, asked: str, wanted: object) -> None:
    until = time.monotonic() + 10
    while (got := page.evaluate(f"() => {asked}")) != wanted:
        assert time.monotonic() < until, f"{asked} stayed {got!r}, never {wanted!r}"
        time.sleep(0.01)
