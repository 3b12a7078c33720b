"""The browser's client against a real broker, in real tabs: over HTTP, with handles that the broker
sealed, and with what happens to tabs in real life.

What a request does not need a broker or a tab for stands in test_client.py, where time is played.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page, Route

from tests import tabs
from tests.browsing import Contexts, Demo

Open = Callable[..., Page]

SETUP = """async (given) => {
  const { createSessionClient } = await import("/v1/client.js");
  globalThis.events = [];
  globalThis.bearers = [given.bearer];
  globalThis.ends = {};  // of each token, on performance.now()
  globalThis.lives = [];  // how much life was left of what was given
  const patched = async (url, init) => {
    const began = performance.now();
    const answer = await fetch(url, init);
    if (answer.status !== 201) return answer;
    const told = { ...await answer.json(), ...given.answer };
    ends[told.session_token] = began + told.expires_in * 1000;
    return new Response(JSON.stringify(told), { status: 201 });
  };
  globalThis.make = (options = {}) => {
    const client = createSessionClient({
      profile: "transactions-minute", authorize: ({ renew }) => bearers[renew ? 1 : 0],
      ...(given.answer ? { fetch: patched } : {}), ...options,
    });
    for (const type of ["session", "rotated", "expiring", "error"]) {
      client.addEventListener(type, ({ detail }) =>
        events.push([type, detail.session_token ?? detail.kind, performance.now()]));
    }
    return client;
  };
  globalThis.client = make();
  globalThis.askAlways = (every) => setInterval(async () => {
    const token = await client.token().catch(() => null);
    if (token) lives.push(ends[token] - performance.now());
  }, every);
}"""


@pytest.fixture(name="opened")
def _opened(context: Contexts, demo: Demo) -> Open:
    """Opens a page of the broker's own origin with a client on it, signed in as ada; `answer`
    changes members of the sessions that the broker gives it."""

    def opened(*flags: str, answer: dict[str, Any] | None = None, **options: Any) -> Page:
        page = context(*flags, **options).new_page()
        page.goto(f"{demo.public}/v1/openapi.json")
        page.evaluate(SETUP, {"bearer": demo.bearer(), "answer": answer})
        return page

    return opened


def mints(demo: Demo) -> int:
    return int(demo.calls()["nmi-minute.session"])


def wait(page: Page, asked: str, seconds: float) -> float:
    """Until that is true on the page: how long it took."""
    began = time.monotonic()
    while not page.evaluate(f"() => {asked}"):
        assert time.monotonic() < began + seconds, f"not within {seconds} s: {asked}"
        time.sleep(0.02)
    return time.monotonic() - began


def rotates(demo: Demo, handle: str) -> int:
    """The status of a rotation of this handle by somebody else."""
    headers = {"authorization": f"Bearer {demo.bearer()}"}
    url = f"{demo.public}/v1/sessions/rotate"
    return httpx2.post(url, json={"handle": handle}, headers=headers, trust_env=False).status_code


def test_ten_askers_cost_the_upstream_one_call(opened: Open, demo: Demo) -> None:
    """And one more when all of them refuse what they were given; then the real handle is good for
    what is asked of it."""
    page = opened(expected=["409"])
    told = page.evaluate("""async () => {
      const ten = await Promise.all(Array.from({ length: 10 }, () => client.token()));
      const next = await Promise.all(ten.map((instead) => client.token({ instead })));
      const session = await client.session();
      const acted = await client.act("status").catch((error) => [error.kind, error.problem]);
      await client.end();
      return { ten: [...new Set(ten)], next: [...new Set(next)], acted, handle: session.handle,
        left: session.expires_in };
    }""")
    assert len(told["ten"]) == len(told["next"]) == 1
    assert told["ten"] != told["next"]
    assert told["acted"] == ["server", "action-not-allowed"]
    assert 50 < told["left"] < 60
    assert mints(demo) == 2
    assert rotates(demo, told["handle"]) == 410


@pytest.mark.parametrize("what", ["mint", "rotate"])
def test_an_answer_that_is_lost_is_not_minted_twice(
    opened: Open, demo: Demo, context: Contexts, what: str
) -> None:
    """The broker has answered, the answer is lost on its way: the retry costs nothing upstream."""
    page = opened(expected=["ERR_FAILED"])
    lost: list[dict[str, Any]] = []

    def lose(route: Route) -> None:
        if lost:
            route.fallback()
        else:
            lost.append(json.loads(route.fetch().body()))
            route.abort()

    first = page.evaluate("() => client.token()") if what == "rotate" else None
    page.route("**/v1/sessions/rotate" if first else "**/v1/profiles/**", lose)
    token = page.evaluate("(instead) => client.token({ instead })", first)
    assert token == lost[0]["session_token"]
    assert mints(demo) == (2 if first else 1)


def test_a_bearer_that_is_over_is_renewed(opened: Open, demo: Demo, context: Contexts) -> None:
    """The broker's real 401, then the renewed bearer: one session, no error."""
    page = opened(expected=["401"])
    told = page.evaluate("""async () => {
      bearers.unshift("over");
      await client.session();
      return events.map(([type]) => type);
    }""")
    assert told == ["session"]
    assert mints(demo) == 1


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"profile": "nothing-like-it"}, ["permission", "unknown-profile", 404]),
        ({"parameters": {"no": 1}}, ["server", "invalid-parameters", 422]),
        ({"profile": "checkout-3ds"}, ["server", "invalid-parameters", 422]),
        ({"authorize": None}, ["auth", "unauthenticated", 401]),
    ],
)
def test_the_brokers_own_refusals(opened: Open, options: dict[str, Any], wanted: list[Any]) -> None:
    """As the real broker words them: kind, slug, status."""
    told = opened(expected=["4.."]).evaluate(
        """(options) => make(options).session().catch(
      ({ kind, problem, details }) => [kind, problem, details.status])""",
        options,
    )
    assert told == wanted


def test_an_upstream_that_is_down_is_a_server_error(opened: Open, demo: Demo) -> None:
    """The broker's own problem, with its Retry-After, and later a session."""
    fault = {"kind": "status", "code": 503, "retry_after": 1, "times": 1}
    demo.order("faults", operation="nmi-minute.session", **fault)
    page = opened(expected=["503"])
    assert page.evaluate("() => client.token()")
    [error, session] = page.evaluate("() => events")
    assert error[:2] == ["error", "server"]
    assert session[0] == "session"
    assert session[2] - error[2] >= 1000


def test_single_use_sessions_of_the_real_broker(opened: Open, demo: Demo) -> None:
    """Flow gets the upstream's own object, another for each call; actions of 3-D Secure work on the
    newest."""
    told = opened().evaluate("""async () => {
      const flow = make({ profile: "checkout-flow" });
      const two = await Promise.all([flow.paymentSession(), flow.paymentSession()]);
      const source = { type: "token", token: "tok_frictionless" };
      const secure = make({ profile: "checkout-3ds", parameters: { source } });
      const { output, session_token } = await secure.session();
      const status = await secure.act("status", {}, { session_token });
      return { two, output, status };
    }""")
    one, other = told["two"]
    assert one["id"].startswith("ps_")
    assert one["id"] != other["id"]
    assert told["status"]["id"] == told["output"]["id"]


# Nothing is left lying about

LEFT = """async () => {
  const bases = await indexedDB.databases();
  const places = {
    local: { ...localStorage }, session: { ...sessionStorage }, bases, cookie: document.cookie,
    caches: await caches.keys(), url: location.href, state: history.state, name: window.name,
    html: document.documentElement.outerHTML, referrer: document.referrer,
    loaded: performance.getEntries().map((entry) => entry.toJSON()),
    globals: Object.keys(globalThis),
  };
  return JSON.stringify(places);
}"""


def test_no_token_is_left_lying_about(opened: Open, demo: Demo) -> None:
    """After sessions, a rotation, errors, an action and an end, no token, handle or bearer stands
    in storage, a cookie, an address, the page or the console."""
    page = opened(expected=["4..", "ERR_FAILED"])
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(
        request.url + request.headers.get("referer", "")))  # fmt: skip
    secrets = page.evaluate("""async () => {
      const mine = make({ share: "ada" });
      const bearer = bearers[0];
      const one = await mine.session();
      const other = await mine.session({ instead: one.session_token });
      await mine.act("status").catch(() => {});
      bearers[0] = "wrong-bearer-" + bearer.slice(-20);
      await mine.act("status").catch(() => {});
      bearers[0] = bearer;
      await mine.fetchSessionId();
      const errors = await make({ profile: "none" }).session().catch((error) => [error.message,
        String(error.stack), JSON.stringify(error), JSON.stringify(error.details)]);
      await mine.end();
      globalThis.errors = errors;
      return [one.session_token, one.handle, other.session_token, other.handle, bearer,
        bearer.slice(-20)];
    }""")
    left = json.loads(page.evaluate(LEFT))
    assert not [name for name in ("local", "session", "bases", "caches", "cookie") if left[name]]
    found = json.dumps(left) + json.dumps(page.evaluate("() => errors"))
    found += json.dumps([said, addresses, page.context.cookies()])
    assert len(found) > 1000
    assert all(len(secret) >= 20 for secret in secrets)
    assert not [secret for secret in secrets if secret in found]


# What happens to tabs


def test_a_machine_that_slept_gives_no_expired_token(opened: Open, demo: Demo) -> None:
    """The tab stood still past the end of its session; somebody asks all the time, also at the
    first moment after waking."""
    page = opened(answer={"expires_in": 2.4, "rotate_in": 1.2})
    page.evaluate("() => { askAlways(20); }")
    wait(page, "lives.length > 3", 5)
    with tabs.stopped(page):
        time.sleep(2.5)
    count = page.evaluate("() => lives.length")
    wait(page, f"lives.length > {count} + 3", 5)
    assert min(page.evaluate("() => lives")) > 500
    assert mints(demo) >= 2


def test_a_tab_that_was_offline_recovers_soon(opened: Open, demo: Demo) -> None:
    """The old token is given while there is no network; two seconds or so after there is, the next."""
    page = opened(answer={"expires_in": 20, "rotate_in": 2}, expected=["ERR_INTERNET_DISCONNECTED"])
    page.evaluate("() => client.session()")
    with tabs.offline(page.context):
        wait(page, "events.some(([type]) => type === 'error')", 12)
        assert page.evaluate("() => client.token()") == page.evaluate("() => events[0][1]")
    took = wait(page, "events.some(([type]) => type === 'rotated')", 8)
    assert took < 4


def test_the_first_session_comes_soon_after_an_offline_start(opened: Open) -> None:
    """A call that was made offline is answered when the network is there, and need not be made
    again."""
    page = opened(expected=["ERR_INTERNET_DISCONNECTED"])
    with tabs.offline(page.context):
        page.evaluate("() => { client.token().then((token) => { globalThis.token = token; }); }")
        time.sleep(1.5)
    assert wait(page, "globalThis.token", 8) < 4


def test_a_page_from_the_back_forward_cache_is_fresh(opened: Open, demo: Demo) -> None:
    """Restored after its session ended: the next call gets a fresh one, and `pageshow` has sent for
    it before somebody asks."""
    page = opened(answer={"expires_in": 2.2, "rotate_in": 2})
    first = page.evaluate("() => client.token()")
    page.goto(f"{demo.public}/v1/client.js")
    time.sleep(2.3)
    assert tabs.back(page) is True
    began = time.monotonic()
    wait(page, "events.some(([type]) => type === 'rotated')", 5)
    assert time.monotonic() - began < 2.5
    token = page.evaluate("() => client.token()")
    assert token != first
    assert page.evaluate("(token) => ends[token] - performance.now()", token) > 1000


def test_a_hidden_tab_leaves_its_session_alone(opened: Open, demo: Demo) -> None:
    """It does not rotate by itself; who asks there is served at once; shown again, what is due is
    fetched at once."""
    page = opened(answer={"expires_in": 12, "rotate_in": 1.2})
    page.evaluate("() => client.session()")
    with tabs.hidden(page):
        time.sleep(2.2)
        assert mints(demo) == 1
        assert page.evaluate("() => client.token()") == page.evaluate("() => events[0][1]")
    assert wait(page, "events.length > 1", 3) < 2.5
    assert mints(demo) == 2


def test_a_long_hidden_tab_serves_who_asks(opened: Open, demo: Demo) -> None:
    """Its timers fire once a minute, its session ended meanwhile: a call gets a fresh one at once."""
    page = opened(tabs.THROTTLED, answer={"expires_in": 2.4, "rotate_in": 2.2})
    first = page.evaluate("() => client.token()")
    with tabs.hidden(page):
        time.sleep(2.8)
        assert mints(demo) == 1
        began = time.monotonic()
        token = page.evaluate("() => client.token()")
        assert time.monotonic() - began < 2.5
        assert page.evaluate("(token) => ends[token] - performance.now()", token) > 1000
    assert token != first


def test_a_clock_that_was_set_costs_a_check(opened: Open, demo: Demo) -> None:
    """The machine's clock jumps by an hour, either way: the real broker is asked once what is left,
    and the same token is given; nothing is minted, and the component is told its time by the new
    clock."""
    pages = {shift: opened() for shift in (3600, -3600)}
    asked: list[str] = []
    for shift, page in pages.items():
        page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
        page.evaluate("async () => { globalThis.first = await client.token(); }")
        tabs.shift_clock(page, shift)
        page.evaluate("() => { globalThis.next = client.fetchSessionId(); }")
    for page in pages.values():
        same, left = page.evaluate("""async () => {
          const { sessionToken, expiresAt } = await next;
          return [sessionToken === first, expiresAt - Date.now()];
        }""")
        assert same
        assert 50_000 < left <= 60_000
    assert asked.count("check") == 2
    assert mints(demo) == 2


# The end


@pytest.mark.parametrize(
    "then",
    ["", "client.close();", "location.href = '/v1/client.js';", "location.reload();"],
    ids=["alone", "close", "navigation", "reload"],
)
def test_an_end_arrives(opened: Open, demo: Demo, then: str) -> None:
    """The chain is over at the broker, whatever the page does directly after end()."""
    page = opened()
    handle = page.evaluate("async () => (await client.session()).handle")
    posted: list[str] = []
    page.context.on("request", lambda request: posted.append(request.url))
    page.evaluate("() => { client.end().catch(() => {}); " + then + " }")
    until = time.monotonic() + 3
    while (status := rotates(demo, handle)) != 410 and time.monotonic() < until:
        time.sleep(0.05)
    assert status == 410
    assert len([url for url in posted if url.endswith("/sessions/end")]) == 1


def test_an_end_arrives_though_the_tab_is_closed(opened: Open, demo: Demo) -> None:
    """`keepalive`: the request outlives its page."""
    page = opened()
    page.context.new_page()
    handle = page.evaluate("async () => (await client.session()).handle")
    page.evaluate("() => { client.end(); }")
    page.close()
    until = time.monotonic() + 3
    while (status := rotates(demo, handle)) != 410 and time.monotonic() < until:
        time.sleep(0.05)
    assert status == 410


def test_a_closed_client_asks_for_nothing_more(opened: Open, demo: Demo) -> None:
    """A call that was under way rejects with AbortError, and no request follows when one would be
    due and the tab wakes."""
    page = opened(answer={"expires_in": 50, "rotate_in": 0.5}, expected=["ERR_ABORTED"])
    told = page.evaluate("""async () => {
      await client.session();
      const other = make();
      const asking = other.token().catch((error) => error.name);
      await new Promise((go) => setTimeout(go));
      other.close();
      client.close();
      return asking;
    }""")
    assert told == "AbortError"
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    time.sleep(1.1)
    page.evaluate("() => { for (const t of ['focus', 'online']) dispatchEvent(new Event(t)); }")
    time.sleep(0.2)
    page.evaluate("() => 0")
    assert not asked
