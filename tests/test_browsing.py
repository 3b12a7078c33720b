"""The harness of the browser tests does what it says; what it cannot do, no browser test shows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Page

from tests import tabs
from tests.browsing import Contexts, Demo, Site, artefacts, executable, shot, site

TICKS = """() => {
  globalThis.ticks = 0;
  globalThis.pause = 0;
  let last = performance.now();
  setInterval(() => {
    ticks += 1;
    pause = Math.max(pause, performance.now() - last);
    last = performance.now();
  }, 20);
}"""


@pytest.fixture(name="away", scope="module")
def _away() -> Iterator[Site]:
    with site({"/other.html": "<!doctype html><title>Other</title>"}) as away:
        yield away


@pytest.fixture(name="page")
def _page(context: Contexts, away: Site) -> Page:
    page = context().new_page()
    page.goto(f"{away.origin}/empty.html")
    return page


def ticks(page: Page, seconds: float) -> int:
    before: int = page.evaluate("() => ticks")
    time.sleep(seconds)
    after: int = page.evaluate("() => ticks")
    return after - before


def test_a_page_of_the_real_broker_opens_and_is_kept_as_a_picture(
    context: Contexts, demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chromium reads what the demo serves; the picture goes where the environment says."""
    page = context().new_page()
    page.goto(f"{demo.public}/v1/openapi.json")
    assert '"openapi"' in page.content()
    monkeypatch.setenv("TOKEN_BROKER_ARTEFACTS", str(tmp_path / "kept"))
    assert shot(page, "a-name") == tmp_path / "kept" / "a-name.png"
    assert (tmp_path / "kept" / "a-name.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.delenv("TOKEN_BROKER_ARTEFACTS")
    assert artefacts() == Path(__file__).parents[1] / ".artefacts"


@pytest.mark.usefixtures("_chromiums")
def test_other_tests_may_use_asyncio_while_a_browser_waits() -> None:
    """Between browser tests no loop runs in this thread, though the driver's is there."""
    asyncio.run(asyncio.sleep(0))


def test_the_demo_is_reset_and_signs_people_in(demo: Demo) -> None:
    """The run's one demo mints for ada, and its sandbox forgets what earlier tests did."""
    url = f"{demo.public}/v1/profiles/transactions/sessions"
    bearer = {"authorization": f"Bearer {demo.bearer()}"}
    assert httpx2.post(url, headers=bearer, trust_env=False).status_code == 201
    assert demo.calls()["nmi.session"] == 1
    demo.order("reset")
    assert demo.calls()["nmi.session"] == 0


def test_an_error_on_a_page_is_not_overlooked(context: Contexts, away: Site) -> None:
    """What a page throws, what its console calls an error, and what fails to load is unexpected
    unless announced."""
    page = context().new_page()
    page.goto(f"{away.origin}/empty.html")
    page.evaluate("() => { setTimeout(() => { throw new Error('thrown') }); }")
    page.evaluate("() => { Promise.reject(new Error('dropped')); }")
    page.evaluate("() => console.error('said')")
    page.evaluate("() => fetch('/nothing-here')")
    context.close()
    announced = ["thrown", "dropped", "said", "404.*nothing-here"]
    for words in announced:
        context.expected = [one for one in announced if one != words]
        assert len(context.unexpected()) == 1, words
    context.expected = announced
    assert not context.unexpected()


def test_chromium_is_found_or_its_absence_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The environment's word comes first; without Chromium a test is skipped, in CI it fails."""
    mine = tmp_path / "mine"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    monkeypatch.setenv("TOKEN_BROKER_CHROMIUM", str(mine))
    assert executable() == str(mine)
    monkeypatch.delenv("TOKEN_BROKER_CHROMIUM")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="NOT tested"):
        executable()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="NOT tested"):
        executable()
    (tmp_path / "chromium-browser").symlink_to(mine)
    assert executable() == str(tmp_path / "chromium-browser")


def test_a_hidden_tab_is_hidden_and_its_timers_are_throttled(page: Page) -> None:
    """Behind another tab the page is told so, and its timers fire about once a second, not fifty times;
    before and after it is in front."""
    page.evaluate(TICKS)
    page.evaluate("() => { globalThis.seen = []; document.onvisibilitychange = () => "
                  "seen.push(document.visibilityState); }")  # fmt: skip
    assert ticks(page, 0.5) > 10
    with tabs.hidden(page):
        time.sleep(1)
        assert ticks(page, 3) < 15
    assert ticks(page, 0.5) > 10
    assert page.evaluate("() => seen") == ["hidden", "visible"]


def test_a_long_hidden_tab_is_woken_once_a_minute(context: Contexts, away: Site) -> None:
    """Chromium's intensive throttling, after two seconds instead of five minutes."""
    page = context(tabs.THROTTLED).new_page()
    page.goto(f"{away.origin}/empty.html")
    page.evaluate(TICKS)
    with tabs.hidden(page):
        time.sleep(4)
        assert ticks(page, 4) <= 2


def test_tabs_of_a_context_do_not_hide_one_another(context: Contexts, away: Site) -> None:
    """Unless told, every tab of a context is visible, also those that a page opened."""
    there = context()
    pages = [there.new_page() for _ in range(3)]
    for page in pages:
        page.goto(f"{away.origin}/empty.html")
    with pages[0].expect_popup() as popup:
        pages[0].evaluate("() => { open('/other.html'); }")
    popup.value.wait_for_load_state()
    for page in [*pages, popup.value]:
        assert page.evaluate("() => document.visibilityState") == "visible"


def test_a_frozen_tab_does_nothing(page: Page) -> None:
    """Frozen, no timer fires; then the page goes on. It is told of both."""
    page.evaluate(TICKS)
    page.evaluate("() => { globalThis.seen = []; for (const name of ['freeze', 'resume'])"
                  " document.addEventListener(name, () => seen.push(name)); }")  # fmt: skip
    with tabs.frozen(page):
        assert ticks(page, 1.5) == 0
        assert page.evaluate("() => seen") == ["freeze"]
    assert page.evaluate("() => seen") == ["freeze", "resume"]
    assert ticks(page, 0.5) > 10


def test_a_stopped_tab_gets_no_time_and_clocks_go_on(context: Contexts, away: Site) -> None:
    """As in a machine asleep: the tab's process does not run, others' do, performance.now() has
    moved on when it wakes, and no timer fired more than once for it."""
    sleeper, other = context().new_page(), context().new_page()
    for page in (sleeper, other):
        page.goto(f"{away.origin}/empty.html")
        page.evaluate(TICKS)
    counted, began = sleeper.evaluate("() => [ticks, performance.now()]")
    with tabs.stopped(sleeper):
        assert ticks(other, 1.5) > 30
    sleeper.evaluate("() => new Promise((go) => { setTimeout(go, 100); })")
    after, ended, pause = sleeper.evaluate("() => [ticks, performance.now(), pause]")
    assert pause > 1400
    assert after - counted <= (ended - began - pause) / 20 + 4


def test_tabs_of_one_context_stop_alone(context: Contexts, away: Site) -> None:
    """Each tab has a process of its own, so that one of those that share can be stopped."""
    there = context()
    pages = [there.new_page() for _ in range(4)]
    for page in pages:
        page.goto(f"{away.origin}/empty.html")
    assert len({tabs.renderer(page) for page in pages}) == 4


def test_a_tab_can_be_offline(context: Contexts, page: Page) -> None:
    """Offline, fetch fails and the page is told; then both are well again."""
    context.expected.append("ERR_INTERNET_DISCONNECTED")
    page.evaluate("() => { globalThis.seen = []; for (const name of ['offline', 'online'])"
                  " addEventListener(name, () => seen.push(name)); }")  # fmt: skip
    fetched = "() => fetch('/empty.html').then(() => true, () => false)"
    with tabs.offline(page.context):
        assert page.evaluate("() => navigator.onLine") is False
        assert page.evaluate(fetched) is False
    assert page.evaluate(fetched) is True
    assert page.evaluate("() => seen") == ["offline", "online"]


def test_a_tab_can_be_slow(page: Page) -> None:
    """Latency is added to each request, and the processor is slowed."""
    fetched = """async () => {
      const start = performance.now();
      await fetch("/empty.html", {cache: "no-store"});
      return performance.now() - start;
    }"""
    worked = """() => {
      const start = performance.now();
      for (let i = 0, x = 0; i < 2e7; i += 1) x = (x + i) % 7;
      return performance.now() - start;
    }"""
    page.evaluate(worked)
    quick = min(page.evaluate(worked) for _ in range(3))
    with tabs.slow(page, latency=0.4, processor=8):
        assert page.evaluate(fetched) > 400
        assert page.evaluate(worked) > 2 * quick
    assert min(page.evaluate(fetched) for _ in range(5)) < 400


@pytest.mark.parametrize("shift", [3600, -3600], ids=["fast", "slow"])
def test_the_wall_clock_can_be_wrong(page: Page, shift: int) -> None:
    """`Date` is an hour off, in every way to ask it, at once and after a reload; performance.now()
    and given dates are not."""
    asks = "() => [Date.now(), +new Date(), Date.parse(Date()), +new Date(5), performance.now()]"
    tabs.shift_clock(page, shift)
    for _ in range(2):
        *nows, given, monotonic = page.evaluate(asks)
        for now in nows:
            assert abs(now / 1000 - time.time() - shift) < 5
        assert given == 5
        assert monotonic < 60_000
        assert page.evaluate("() => new Date() instanceof Date && Date.UTC(1970, 0) === 0")
        page.reload()
    tabs.shift_clock(page, 0)
    assert abs(page.evaluate("() => Date.now()") / 1000 - time.time()) < 5


def test_a_clock_can_be_wrong_from_the_start(context: Contexts, away: Site) -> None:
    """A context's clock is shifted before its pages' own scripts run."""
    there = context()
    tabs.shift_clock(there, -3600)
    page = there.new_page()
    page.goto(f"{away.origin}/empty.html")
    assert abs(page.evaluate("() => Date.now()") / 1000 - time.time() + 3600) < 5


def test_a_page_comes_back_from_the_cache_as_it_was(page: Page, away: Site) -> None:
    """Going back restores the page with its variables; `back` knows that from a load."""
    page.evaluate("() => { globalThis.mark = 7; }")
    page.goto(f"{away.origin}/other.html")
    assert tabs.back(page) is True
    assert page.evaluate("() => [mark, document.title]") == [7, "Empty"]
    page.goto(f"{away.origin}/other.html")
    page.goto(f"{away.origin}/empty.html")
    assert page.title() == "Empty"


def test_a_page_that_may_not_be_cached_is_loaded_anew(page: Page, away: Site) -> None:
    """With an unload handler a page is not kept, and `back` says so."""
    page.evaluate("() => { globalThis.mark = 7; addEventListener('unload', () => {}); }")
    with site({"/far.html": "<!doctype html><title>Far</title>"}) as far:
        page.goto(f"{far.origin}/far.html")
        assert tabs.back(page) is False
    assert page.evaluate("() => [typeof mark, document.title]") == ["undefined", "Empty"]


def test_another_site_has_other_headers_and_another_origin(context: Contexts) -> None:
    """A site's headers are in force: what its policy forbids fails, and is an error."""
    policy = {"Content-Security-Policy": "default-src 'none'"}
    with site({"/": "<!doctype html><title>x</title><script>mark = 1</script>"}, policy) as strict:
        page = context(expected="Content Security Policy").new_page()
        page.goto(f"{strict.localhost}/?query=1")
        assert page.evaluate("() => [typeof mark, origin]") == ["undefined", strict.localhost]
        assert "/?query=1" in strict.asked
    context.close()
    assert context.errors


COOKIE = {"Set-Cookie": "mark=1; Path=/; SameSite=None; Secure; HttpOnly"}
EMBEDS = """(address) => new Promise((resolve) => {
  const frame = document.createElement("iframe");
  frame.src = address;
  frame.onload = resolve;
  document.body.append(frame);
})"""


@pytest.mark.parametrize("allowed", [True, False])
def test_third_party_cookies_are_blocked_when_told(context: Contexts, allowed: bool) -> None:
    """A cookie goes to its own site's pages always; from another site's page (fetch or frame) only
    where third-party cookies are allowed."""
    with site({"/": "<title>x</title>"}, COOKIE) as shop, site() as portal:
        page = context(third_party_cookies=allowed).new_page()
        page.goto(f"{shop.origin}/")
        assert not shop.cookies[-1]
        page.goto(f"{shop.origin}/")
        assert shop.cookies[-1] == "mark=1"
        page.goto(f"{portal.localhost}/empty.html")
        ask = "(address) => fetch(address, {mode: 'no-cors', credentials: 'include'}).then(() => 1)"
        page.evaluate(ask, f"{shop.origin}/?fetch")
        assert (shop.cookies[-1] == "mark=1") is allowed
        page.evaluate(EMBEDS, f"{shop.origin}/?frame")
        assert (shop.cookies[-1] == "mark=1") is allowed
        assert shop.asked[-2:] == ["/?fetch", "/?frame"]
