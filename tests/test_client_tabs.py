"""Tabs that share a chain: real tabs of a real Chromium, the real broker, the sandbox's upstream.

Nothing is played but a clock. What counts as a mint is what the sandbox was asked for. Tabs are
frozen, stopped, closed and sent elsewhere as a person's machine does it to them; sessions are of
seven seconds where a test waits for their end, and of minutes where a token is said to be refused.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page

from broker.demo import demo_config, demo_secrets
from broker.sandbox.serving import serve
from broker.sandbox.settings import SandboxSettings
from tests import tabs
from tests.browsing import Contexts, Sandboxed, Site, site
from tests.test_serving import process

LIFE = 7
"""Seconds that a session of `transactions-minute` lives here."""
SHARED = {"profile": "transactions", "share": "ada"}
BRIEF = {"profile": "transactions-minute", "share": "ada"}


@dataclass(frozen=True)
class World(Sandboxed):
    """A broker of these tests' own, its sandbox, and a site whose pages use it."""

    broker: str
    pages: Site

    def mints(self) -> int:
        """Sessions that the upstream was asked for since the sandbox was reset."""
        calls = self.calls()
        names = ("nmi.session", "nmi-minute.session", "checkout.payment-session")
        return sum(int(calls.get(name, 0)) for name in names)

    def tab(self, context: BrowserContext, origin: str = "") -> Page:
        page = context.new_page()
        page.goto(f"{origin or self.pages.origin}/tabs-tab.html")
        return page

    def start(self, page: Page, user: str = "ada", **options: Any) -> Page:
        """A client in this tab."""
        given = {"broker": self.broker, "bearer": self.bearer(user), **SHARED, **options}
        page.evaluate("(options) => start(options)", given)
        return page


@pytest.fixture(name="_sandbox", scope="module")
def _running_sandbox() -> Iterator[str]:
    found: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        settings = SandboxSettings(nmi_minute_session_seconds=LIFE, idp_token_seconds=3600)
        async with serve(settings) as running:
            over = asyncio.Event()
            found.set_result((running.url, asyncio.get_running_loop(), over))
            await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    url, loop, over = found.result(20)
    yield url
    loop.call_soon_threadsafe(over.set)
    thread.join(20)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(name="_world", scope="module")
def _running_world(_sandbox: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with site() as pages:
        port, settings = _free_port(), SandboxSettings()
        text = demo_config(port, 0, _sandbox).decode()
        text = text.replace("origins: [", f'origins: ["{pages.origin}", "{pages.localhost}", ')
        text = text.replace("30/minute", "1000/minute").replace("60/minute", "1000/minute")
        path = tmp_path_factory.mktemp("tabs") / "broker.yaml"
        path.write_text(text)
        [key] = settings.nmi_gateway_keys
        [checkout] = settings.checkout_clients.items()
        secrets = demo_secrets(key, checkout, ("introspect", "introspect-secret"), "x" * 32)
        with process("serve", "-c", str(path), env=secrets) as told:
            yield World(_sandbox, told.ready()[0], pages)


@pytest.fixture(name="world")
def _fresh_world(_world: World) -> World:
    _world.order("reset")
    return _world


def ask(page: Page, **wish: Any) -> dict[str, Any]:
    """What the client of a tab gives a component now."""
    found: dict[str, Any] = page.evaluate("(wish) => ask(wish)", wish)
    return found


def begin(page: Page, **wish: Any) -> None:
    """The same, not waited for: `answer` has it."""
    page.evaluate("(wish) => begin(wish)", wish)


def answered(*pages: Page) -> list[dict[str, Any]]:
    for page in pages:
        until(page, "answer")
    return [page.evaluate("() => answer") for page in pages]


def story(page: Page, *types: str) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = page.evaluate("() => story")
    return [one for one in told if not types or one["type"] in types]


def until(page: Page, condition: str, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not page.evaluate(f"() => {condition}"):
        assert time.monotonic() < end, f"{condition} never came true: {story(page)}"
        time.sleep(0.02)


def opened(there: BrowserContext, world: World, tabs_wanted: int, **options: Any) -> list[Page]:
    """So many tabs that share a session, and hold it."""
    pages = [world.start(world.tab(there), **options) for _ in range(tabs_wanted)]
    assert len({ask(page)["token"] for page in pages}) == 1
    return pages


def leading(world: World, page: Page, token: str, seconds: float = 1.5) -> None:
    """This tab's rotation is under way, and takes so long upstream."""
    before = world.mints()
    fault = {"operation": "nmi.session", "kind": "latency", "seconds": seconds, "times": 1}
    world.order("faults", **fault)
    begin(page, instead=token)
    while world.mints() == before:  # a client lets a second pass between two attempts
        page.evaluate("() => 0")


# Twenty tabs


def test_twenty_tabs_share_one_chain(
    context: Contexts, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """One mint when twenty tabs begin together, and one for each rotation, those that come with
    time and those that a refused token brings; all hold the new token within two seconds."""
    there = context()
    pages = [world.tab(there) for _ in range(20)]
    for page in pages:
        world.start(page, **BRIEF)
    for page in pages:
        begin(page)
    assert len({one["token"] for one in answered(*pages)}) == world.mints() == 1
    for page in pages:
        until(page, "story.length >= 3", 30)
    time.sleep(1.1)  # sessions are told apart by the second of their birth
    begin(pages[7], instead=story(pages[7])[-1]["token"])
    for page in pages:
        until(page, "story.length >= 4")
    told = [story(page) for page in pages]
    assert {tuple(one["type"] for one in tab[:4]) for tab in told} == {
        ("session", *["rotated"] * 3)
    }
    spreads = []
    for number in range(4):
        assert len({tab[number]["token"] for tab in told}) == 1
        times = [tab[number]["at"] for tab in told]
        spreads.append((max(times) - min(times)) / 1000)
    assert max(spreads) < 2
    assert world.mints() == max(len(tab) for tab in told)
    assert len({ask(page)["token"] for page in pages}) == 1
    say(capsys, f"20 tabs hold one token within {max(spreads):.3f} s; {world.mints()} mints")


def say(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with capsys.disabled():
        print(f"\n{text}")


def test_a_leader_that_is_closed_while_it_mints(context: Contexts, world: World) -> None:
    """What the first tab's mint brings is lost with it, once: the others then share one more."""
    there = context()
    pages = [world.start(world.tab(there)) for _ in range(4)]
    world.order("faults", operation="nmi.session", kind="latency", seconds=1, times=1)
    begin(pages[0])
    while not world.mints():
        pages[0].evaluate("() => 0")
    for page in pages[1:]:
        begin(page)
    pages.pop(0).close()
    assert len({one["token"] for one in answered(*pages)}) == 1
    assert world.mints() == 2


def test_a_tab_that_comes_later_takes_over_what_there_is(context: Contexts, world: World) -> None:
    """A new tab asks the others before it mints: it has their token, and what is left of it."""
    there = context()
    [first] = opened(there, world, 1)
    later = world.start(world.tab(there))
    one, other = ask(first), ask(later)
    assert one["token"] == other["token"]
    assert abs(one["left"] - other["left"] - (other["at"] - one["at"]) / 1000) < 0.5
    assert world.mints() == 1


def test_only_alike_tabs_share(context: Contexts, world: World) -> None:
    """Neither a tab with another text, profile or parameters, nor one without a text, nor one of
    another origin has the token."""
    there = context()
    opened(there, world, 2)
    others: list[dict[str, Any]] = [{"share": "bob"}, BRIEF, {"parameters": {}}, {"share": None}]
    tokens = {ask(world.start(world.tab(there), **other))["token"] for other in others}
    tokens.add(ask(world.start(world.tab(there, world.pages.localhost)))["token"])
    assert len(tokens) == 5
    assert world.mints() == 6


def test_what_is_for_one_use_is_not_shared(context: Contexts, world: World) -> None:
    """A payment session is never another tab's, nor given twice; and none is made in vain when a
    lock that was waited for comes at last."""
    there = context()
    pages = [world.start(world.tab(there), profile="checkout-flow") for _ in range(2)]
    assert len({ask(page)["token"] for page in [*pages, pages[0]]}) == world.mints() == 3
    hog = world.start(world.tab(there), profile="checkout-flow")
    hog.evaluate(
        "() => { navigator.locks.request(named, () =>"
        " new Promise((free) => { globalThis.free = free; })); }"
    )
    until(hog, "!!globalThis.free")
    begin(pages[1])
    answered(pages[1])
    hog.evaluate("() => free()")
    time.sleep(0.3)
    assert world.mints() == 4


# A leader that fails the others


@pytest.mark.parametrize(("asleep", "rotations"), [(tabs.frozen, 1), (tabs.stopped, 2)])
def test_a_leader_asleep_costs_others_less_than_two_seconds(
    context: Contexts, world: World, asleep: Any, rotations: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its rotation under way, its lock held: the others have the successor within two seconds, and
    the next one, refused at once, within two more (the pause of a second after an attempt, and up to
    one until the client looks again). Awake it has the newest, whatever its own request brings; no
    mint is in vain."""
    leader, *others = opened(context(), world, 3)
    token = ask(leader)["token"]
    leading(world, leader, token)
    with asleep(leader):
        times = []
        for _ in range(rotations):
            for page in others:
                begin(page, instead=token)
            began = time.time()
            first, second = answered(*others)
            assert token != first["token"] == second["token"]
            token = first["token"]
            times.append(max(first["at"], second["at"]) / 1000 - began)
    assert world.mints() == 1 + rotations
    time.sleep(0.5)
    assert ask(leader)["token"] == token
    for page in (leader, *others):
        told = [one["token"] for one in story(page)]
        assert told[-1] == token
        assert len(set(told)) == len(told), "a session was thrown back, or told twice"
        assert all(one["left"] > 0 for one in story(page))
    assert not story(leader, "error")
    assert [ask(page)["token"] for page in others] == [token] * 2
    assert world.mints() == 1 + rotations
    say(
        capsys,
        f"leader {asleep.__name__}: the others waited {', '.join(map('{:.3f} s'.format, times))}",
    )
    assert times.pop(0) < 2
    assert all(waited < 4 for waited in times)


@pytest.mark.parametrize("going", ["close", "navigate"])
def test_a_leader_that_goes_leaves_its_successor(
    context: Contexts, world: World, going: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Closed, or gone to another page, while its rotation is under way: the others have what it
    asked for within two seconds, and nothing is minted twice."""
    leader, *others = opened(context(), world, 3)
    token = ask(leader)["token"]
    leading(world, leader, token, 1)
    for page in others:
        begin(page, instead=token)
    began = time.time()
    if going == "close":
        leader.close()
    else:
        leader.goto("about:blank")
    first, second = answered(*others)
    assert token != first["token"] == second["token"]
    assert world.mints() == 2
    waited = max(first["at"], second["at"]) / 1000 - began
    say(capsys, f"leader gone ({going}): the others waited {waited:.3f} s")
    assert waited < 2


def test_a_tab_from_the_back_forward_cache_goes_on(context: Contexts, world: World) -> None:
    """Restored it has its session at once; while the others rotated meanwhile, it has theirs,
    whether the browser kept the page or not."""
    tab, other = opened(context(), world, 2)
    token = ask(tab)["token"]
    tab.goto(f"{world.pages.origin}/empty.html")
    assert tabs.back(tab) is True
    assert ask(tab)["token"] == token
    tab.goto(f"{world.pages.origin}/empty.html")
    newer = ask(other, instead=token)["token"]
    if not tabs.back(tab):
        world.start(tab)
    assert ask(tab)["token"] == newer
    assert world.mints() == 2


SET_BACK = """() => {
  const real = Date.now.bind(Date);
  let last = performance.now();
  let shift = 0;
  const look = () => {
    const gap = performance.now() - last;
    last += gap;
    if (gap > 1500) shift += gap;
  };
  setInterval(look, 50);
  Date.now = () => { look(); return real() - shift; };
}"""
"""As long as the tab was stopped, so far its clock is set back."""


def test_a_message_that_waited_is_not_trusted(context: Contexts, world: World) -> None:
    """A session that came while the tab was stopped, its clock set back by just as much meanwhile,
    is not given away before the server said what is left of it; nor where the clock is right."""
    sender, *sleepers = opened(context(), world, 3)
    token, asked = ask(sender)["token"], []
    sleepers[0].evaluate(SET_BACK)
    for page in sleepers:
        page.on("request", lambda request: asked.append(request.url.partition("/v1/")[2]))
    with tabs.stopped(*sleepers):
        newer = ask(sender, instead=token)["token"]
        time.sleep(2.3)
    for page in sleepers:
        assert ask(page)["token"] == newer
    assert asked == ["sessions/check"] * 2
    assert abs(ask(sender)["left"] - ask(sleepers[0])["left"]) < 2
    assert world.mints() == 2


# Logging out, and pages that err


def test_logging_out_in_one_tab_closes_all(context: Contexts, world: World) -> None:
    """`end` in one tab: components of the others get AbortError, also those that wait, their
    clients say "end", their iterators end; and to end twice does no harm."""
    there = context(expected="410")
    one, *others = opened(there, world, 3)
    token = ask(one)["token"]
    world.order("faults", operation="nmi.session", kind="hang")
    for page in others:
        page.evaluate("() => { globalThis.seen = 0; globalThis.over = (async () =>"
                      " { for await (const _ of client) seen += 1; })(); }")  # fmt: skip
        begin(page, instead=token)
    one.evaluate("() => client.end()")
    for page, found in zip(others, answered(*others), strict=True):
        assert found == ask(page) == {"error": "AbortError"}
        assert [told["type"] for told in story(page)] == ["session", "end"]
        assert page.evaluate("() => over.then(() => seen)") == 1
        again = "() => client.end().then(() => 'ended', (error) => error.kind)"
        assert page.evaluate(again) == "expired"
    assert ask(one) == {"error": "AbortError"}


def test_two_users_with_one_text(context: Contexts, world: World) -> None:
    """A page that gives two users the same text shows one what is the other's: that is its own
    mistake. But nobody is stuck with it: refused, Bob has a session of his own."""
    ada, bob = context(expected="403"), "bob"
    [hers] = opened(ada, world, 1)
    his = world.start(world.tab(ada), bob)
    token = ask(his)["token"]
    assert token == ask(hers)["token"]
    own = ask(his, instead=token)
    assert own.get("token", token) != token
    assert world.mints() == 2


def test_without_web_locks_tabs_share_over_the_channel(context: Contexts, world: World) -> None:
    """As on plain http, where there are none: one chain, and one mint where nobody else begins."""
    there = context()
    there.add_init_script("Object.defineProperty(navigator, 'locks', { value: undefined });")
    pages = opened(there, world, 3)
    token = ask(pages[0])["token"]
    time.sleep(1.1)
    newer = ask(pages[1], instead=token)["token"]
    for page in pages:
        until(page, "story.length === 2")
        assert ask(page)["token"] == newer
    assert pages[0].evaluate("() => navigator.locks === undefined")
    assert world.mints() == 2


NONSENSE = """[null, undefined, 0, "x", "end ", {}, [], { at: 1 }, { at: Date.now(), issued_at: 5 },
  new Map([["issued_at", "2999"]]), { issued_at: null, expires_in: 1e9, at: Date.now() },
  { session_token: "theirs", expires_in: 1e9, at: Date.now() }, new Date(), new Error("end"),
  new Array(1e5).fill({ x: 1 }), new ArrayBuffer(1e6)]"""


def test_nonsense_on_the_channel_is_ignored(context: Contexts, world: World) -> None:
    """What other scripts of the origin say there throws nothing, changes no session and mints
    nothing; and the client still hears its own."""
    tab, other = opened(context(), world, 2)
    token = ask(tab)["token"]
    sent = f"for (const one of {NONSENSE}) talk.postMessage(one)"
    other.evaluate(f"() => {{ const talk = new BroadcastChannel(named); {sent}; talk.close(); }}")
    time.sleep(1.1)
    newer = ask(other, instead=token)["token"]
    until(tab, "story.length >= 2")
    assert [one["token"] for one in story(tab)] == [token, newer]
    assert ask(tab)["token"] == newer
    assert world.mints() == 2


def test_listeners_may_do_anything(context: Contexts, world: World) -> None:
    """A listener that throws, asks, or closes the client disturbs neither it nor other tabs."""
    there = context(expected="listener")
    tab, other, third = (world.start(world.tab(there)) for _ in range(3))
    tab.evaluate("""() => {
      client.addEventListener("session", () => { throw new Error("listener"); });
      client.addEventListener("session", async () => { globalThis.inside = await ask(); });
    }""")
    other.evaluate("() => client.addEventListener('session', () => client.close())")
    tokens = [ask(page).get("token") for page in (tab, third)]
    until(tab, "globalThis.inside")
    assert tab.evaluate("() => inside.token") == tokens[0] == tokens[1]
    assert ask(other) == {"error": "AbortError"}
    third.evaluate("() => { client.close(); client.close(); }")
    assert ask(tab, instead=tokens[0])["token"] != tokens[0]
    assert world.mints() == 2
