"""What the browser's client does, claim by claim, with clocks and a network that the test plays.

The page is tests/browser_pages/client-lab.js in a real Chromium; each scene is JavaScript that runs
in it, where minutes take milliseconds. Nothing here may need a broker: what only real requests and
real tabs can show stands in test_client_live.py, other people's pages in test_client_embedding.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from broker.errors import problem_types
from tests.browsing import Chromiums, Contexts, Site, site

MODULE = Path(__file__).parents[1] / "broker" / "client" / "client.js"

Scene = Callable[..., Any]


@pytest.fixture(name="away", scope="module")
def _away() -> Iterator[Site]:
    with site({"/v1/client.js": MODULE.read_text()}) as away:
        yield away


@pytest.fixture(name="laboratory", scope="module")
def _laboratory(_chromiums: Chromiums, away: Site) -> Iterator[tuple[Contexts, Page]]:
    contexts = Contexts(_chromiums)
    with _chromiums.awake():
        page = contexts().new_page()
        page.goto(f"{away.origin}/client-lab.html")
    yield contexts, page
    with _chromiums.awake():
        contexts.close()


@pytest.fixture(name="scene")
def _scene(_chromiums: Chromiums, laboratory: tuple[Contexts, Page]) -> Iterator[Scene]:
    """Runs JavaScript in a laboratory that was tidied up, with `given` in it; what it returns is
    the answer. No error may be left on the page."""
    contexts, page = laboratory
    contexts.errors.clear()

    def play(script: str, given: Any = None) -> Any:
        return page.evaluate("async (given) => {" + script + "}", given)

    with _chromiums.awake():
        page.evaluate("() => fresh()")
        yield play
        page.evaluate("() => settle()")
    assert not contexts.unexpected()


# The first session, and its successors


def test_ten_that_ask_at_once_cost_one_mint(scene: Scene) -> None:
    """Concurrent askers, of whichever way to ask, share one flight and get the same session."""
    told = scene("""
      const client = make();
      const asking = [client.session(), client.token(), client.fetchSessionId()];
      const ten = [...asking, ...Array.from({ length: 7 }, () => client.token())].map(watch);
      await pass(3);
      return { calls, states: ten.map((one) => one.state), token: ten[1].value, armed: armed() };
    """)
    assert told["states"] == ["given"] * 10
    [call] = told["calls"]
    assert call["path"] == "profiles/p/sessions"
    assert (call["method"], call["url"][:23]) == ("POST", "https://broker.example/")
    assert call["bearer"] == "Bearer bearer"
    assert told["token"] == "t1"
    assert told["armed"] == 1, "one tick, no timer else"


def test_nothing_is_asked_before_somebody_asks(scene: Scene) -> None:
    """A client that nobody asks sends nothing, whatever happens to its tab."""
    assert (
        scene("""
      make();
      for (const type of ["focus", "online", "pageshow"]) dispatchEvent(new Event(type));
      await pass(30);
      return calls;
    """)
        == []
    )


def test_a_mint_carries_its_parameters(scene: Scene) -> None:
    """What the options say is what the request says."""
    told = scene("""
      await make({ parameters: { source: "card" } }).session();
      return calls[0].body;
    """)
    assert told == {"parameters": {"source": "card"}}


@pytest.mark.parametrize(("given", "wanted"), [(True, "omit"), (False, "include")])
def test_cookies_are_sent_where_there_is_no_bearer(scene: Scene, given: bool, wanted: str) -> None:
    """With `authorize` no cookie is sent; without it cookies are, and no Authorization."""
    told = scene(
        "await make(given ? {} : { authorize: undefined }).session(); return calls;", given
    )
    assert [call["credentials"] for call in told] == [wanted]
    assert (told[0].get("bearer") is not None) is given


def test_it_rotates_when_the_server_said(scene: Scene) -> None:
    """At rotate_in, within a tick, by the handle; the old one is given until then."""
    told = scene("""
      const client = make();
      await client.session();
      await pass(689);
      const before = [await client.token(), calls.length];
      await pass(3);
      return { before, after: await client.token(), calls, events };
    """)
    assert told["before"] == ["t1", 1]
    assert told["after"] == "t2"
    mint, rotation = told["calls"]
    assert (rotation["path"], rotation["body"]) == ("sessions/rotate", {"handle": "h1"})
    assert 690 <= rotation["at"] - mint["at"] <= 691.1
    assert [event[0] for event in told["events"]] == ["session", "rotated"]


def test_each_successor_has_its_successor(scene: Scene) -> None:
    """A whole working day of sessions of a minute: one mint, one rotation each 45 seconds."""
    told = scene("""
      usual.answer = { expires_in: 60, rotate_in: 45 };
      await make().session();
      await pass(600);
      return { mints: sent("profiles/").length, at: sent("rotate").map((call) => call.at),
        handles: sent("rotate").map((call) => call.body.handle) };
    """)
    assert told["mints"] == 1
    assert told["handles"] == [f"h{number}" for number in range(1, len(told["handles"]) + 1)]
    assert len(told["handles"]) == 13
    assert all(45 <= b - a <= 46.5 for a, b in zip(told["at"], told["at"][1:], strict=False))


def test_a_session_tells_what_is_left_of_it(scene: Scene) -> None:
    """`expires_in` and `rotate_in` are of the moment at which they are read."""
    told = scene("""
      const session = await make().session();
      await pass(100);
      return [session.expires_in, session.rotate_in, session.handle, session.reuse];
    """)
    assert told == [pytest.approx(800, abs=0.1), pytest.approx(590, abs=0.1), "h1", "per_caller"]


def test_what_an_answer_takes_is_not_life(scene: Scene) -> None:
    """An answer that was eight seconds on its way is not believed to have begun its life now."""
    left = scene("""
      const late = held();
      answers.push(late.answer);
      const asking = watch(make().session());
      await pass(8);
      late.give(session());
      await pass(0);
      return asking.value.expires_in;
    """)
    assert left == pytest.approx(892, abs=0.1)


# Failure


def test_an_early_failure_keeps_the_token_in_service(scene: Scene) -> None:
    """Rotation fails for two minutes: who asks gets the old token at once; then the successor."""
    told = scene("""
      const client = make();
      await client.session();
      usual.always = problem(503, "upstream-unavailable");
      const got = [];
      for (let seconds = 0; seconds < 810; seconds += 10) {
        const asking = watch(client.token());
        await settle();
        got.push(asking.value);
        await pass(10);
      }
      usual.always = null;
      await pass(90);
      return { given: [...new Set(got)], after: await client.token(),
        mints: sent("profiles/").length, errors: events.filter(([type]) => type === "error") };
    """)
    assert told["given"] == ["t1"]
    assert told["after"] == "t2"
    assert told["mints"] == 1
    assert {kind for _, _, kind in told["errors"]} == {"server"}


@pytest.mark.parametrize("down", ["cut", "never", 'problem(503, "overloaded")', "say(200, '<p>')"])
def test_an_expired_token_is_never_given(scene: Scene, down: str) -> None:
    """A broker that is down for minutes: somebody asks each second, in three ways, and what is
    given always has more than a second left; when it is back, all that wait are given one."""
    told = scene(f"""
      usual.answer = {{ expires_in: 60, rotate_in: 45 }};
      const client = make();
      const bad = [], waiting = [];
      const look = (found) => {{ if (!(found.expires_in > 1)) bad.push(found.expires_in); }};
      (async () => {{ for await (const one of client) look(one); }})();
      for (let second = 0; second < 200; second += 1) {{
        if (second === 30) usual.always = {down};
        if (second === 150) usual.always = null;
        client.session().then(look, () => {{}});
        client.fetchSessionId().then(
          (one) => {{ if (one.expiresAt < Date.now() + 1000) bad.push(one); }}, () => {{}});
        await pass(1);
      }}
      await pass(80);
      const last = watch(client.session());
      await settle();
      return {{ bad, last: last.state, mints: sent("profiles/").length }};
    """)
    assert told["bad"] == []
    assert told["last"] == "given"
    assert told["mints"] <= 2


def test_an_expired_token_is_not_the_first_of_an_iterator(scene: Scene) -> None:
    """Who begins to iterate after the only session has ended waits for another."""
    told = scene("""
      usual.answer = { expires_in: 60, rotate_in: undefined, handle: undefined };
      const client = make();
      await client.session();
      await pass(90);
      const next = watch(client[Symbol.asyncIterator]().next());
      await pass(2);
      return next.value.value.session_token;
    """)
    assert told == "t2"


def test_back_off_doubles_up_to_half_a_minute_with_jitter(scene: Scene) -> None:
    """1, 2, 4 … 30 s, each up to half as much longer, and a tick; never twice the same course."""
    told = scene("""
      usual.answer = { expires_in: 3600, rotate_in: 400 };
      const courses = [];
      for (let course = 0; course < 2; course += 1) {
        const client = make();
        usual.always = null;
        await client.session();
        usual.always = problem(503, "upstream-unavailable");
        calls.length = 0;
        await pass(1100);
        client.close();
        courses.push(gaps());
      }
      return courses;
    """)
    for course in told:
        assert len(course) >= 11
        for number, gap in enumerate(course):
            wait = min(30, 2**number)
            assert wait <= gap <= wait * 1.5 + 1.01, (number, gap)
    assert told[0] != told[1]
    assert len({round(gap) for course in told for gap in course if gap >= 30}) > 2


def test_back_off_begins_anew_after_success(scene: Scene) -> None:
    """Failures that are over are not held against the next ones."""
    told = scene("""
      usual.answer = { expires_in: 3600, rotate_in: 400 };
      const client = make();
      await client.session();
      answers.push(...Array(4).fill(cut));
      while (tokens().length < 2) await pass(1);
      const count = calls.length;
      usual.always = cut;
      await pass(416);
      return gaps(calls.slice(count));
    """)
    assert 1 <= told[0] <= 2.51


RETRY_AFTER = [
    'problem(503, "upstream-unavailable", { retry_after: 7 })',
    'problem(429, "rate-limited", { retry_after: 7 }, { "Retry-After": "7" })',
    'say(503, "<h1>Sorry</h1>", { "Retry-After": "7" })',
    'say(429, "", { "Retry-After": "7" })',
]


@pytest.mark.parametrize("answer", RETRY_AFTER)
def test_retry_after_is_honoured(scene: Scene, answer: str) -> None:
    """From the body of a problem and from the header of what is none; whoever hurries."""
    told = scene(f"""
      answers.push({answer});
      const client = make();
      let last;
      for (let second = 0; second < 13; second += 1) {{
        for (const type of ["focus", "online", "pageshow"]) dispatchEvent(new Event(type));
        last = watch(client.token());
        await pass(1);
      }}
      return {{ gaps: gaps(), state: last.state, errors: events.filter(([e]) => e === "error") }};
    """)
    [gap] = told["gaps"]
    assert 7 <= gap <= 7 * 1.5 + 1.01
    assert told["state"] == "given"
    assert [kind for _, _, kind in told["errors"]] == ["server"]


def test_who_asks_does_not_wait_for_a_long_retry_after(scene: Scene) -> None:
    """Told to come back in a minute, a call fails at once, and says when; no request is made."""
    told = scene("""
      answers.push(problem(429, "rate-limited", { retry_after: 60 }));
      const client = make();
      const asking = watch(client.token());
      await pass(1);
      const again = watch(client.token());
      await pass(1);
      return { first: [asking.state, asking.kind, asking.error.details.retry_after],
        again: again.state, calls: calls.length };
    """)
    assert told == {"first": ["SessionError", "server", 60], "again": "SessionError", "calls": 1}


BROKEN = {
    "cut": "cut",
    "html-502": 'say(502, "<html>Bad gateway</html>")',
    "html-200": 'say(200, "<html>Please log in to the WLAN</html>")',
    "truncated": """say(201, '{"session_token": "t1", "expir')""",
    "empty": 'say(200, "")',
    "empty-204": 'say(204, "")',
    "object": "say(200, {})",
    "null": "say(200, null)",
    "false": "say(200, false)",
    "list": "say(200, [])",
    "text": 'say(200, JSON.stringify("x"))',
    "number": "say(200, 7)",
    "no-expiry": 'say(201, { session_token: "x", handle: "h" })',
    "no-token": "say(201, { expires_in: 900 })",
    "null-token": "say(201, { session_token: null, expires_in: 900, rotate_in: 690 })",
    "words": 'say(201, { session_token: "x", expires_in: "soon" })',
    "over": 'say(201, { session_token: "x", expires_in: 0 })',
    "nearly-over": 'say(201, { session_token: "x", expires_in: 1, handle: "h", rotate_in: 0 })',
    "below-zero": 'say(201, { session_token: "x", expires_in: -5 })',
    "problem-of-null": "say(500, null)",
    "problem-of-odd-type": "say(500, { type: 7 })",
    "problem-of-text": """say(500, '"oh"')""",
    "permission": 'problem(403, "not-permitted")',
    "unauthenticated": 'problem(401, "unauthenticated")',
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_mint_is_a_typed_error_and_no_busy_loop(scene: Scene, broken: str) -> None:
    """A call fails as a SessionError within 12 s, after a few attempts a second or more apart; no
    session comes of it, and when all is well again, the next call gets one."""
    told = scene(f"""
      usual.always = {BROKEN[broken]};
      const client = make();
      const asking = watch(client.token());
      await pass(12);
      const told = {{ state: asking.state, kind: asking.kind, is: asking.error instanceof
        SessionError, gaps: gaps(sent("profiles/").filter((_, i) => i === 0 || !asked[i])),
        count: calls.length, good: events.filter(([type]) => type !== "error") }};
      usual.always = null;
      const again = watch(client.token());
      await pass(20);
      return {{ ...told, again: again.state }};
    """)
    assert (told["state"], told["is"]) == ("SessionError", True)
    assert told["kind"] in ("auth", "permission", "network", "server")
    assert all(gap >= 1 for gap in told["gaps"])
    assert told["count"] <= 5
    assert told["good"] == []
    assert told["again"] == "given"


@pytest.mark.parametrize("broken", [name for name in BROKEN if name != "permission"])
def test_a_broken_rotation_costs_no_mint(scene: Scene, broken: str) -> None:
    """The chain stays, the valid token is given, attempts are a second or more apart, and then the
    same handle is rotated."""
    told = scene(f"""
      const client = make();
      await client.session();
      usual.always = {BROKEN[broken]};
      await pass(720);
      const asking = watch(client.token());
      await settle();
      const good = asking.value;
      usual.always = null;
      await pass(120);
      return {{ good, mints: sent("profiles/").length, after: await client.token(),
        gaps: gaps(sent("rotate").filter((call, i, all) => call.at !== all[i - 1]?.at)),
        handles: [...new Set(sent("rotate").map((call) => call.body.handle))] }};
    """)
    assert told["good"] == "t1"
    assert told["mints"] == 1
    assert told["handles"] == ["h1"]
    assert all(gap >= 1 for gap in told["gaps"])
    assert told["after"] == "t2"


@pytest.mark.parametrize("answer", ["cut", 'problem(403, "not-permitted")', "session()",
                                    'problem(401, "unauthenticated")', "say(200, {})"])  # fmt: skip
def test_no_two_attempts_within_a_second(scene: Scene, answer: str) -> None:
    """However often somebody asks, refuses what was given, or the tab wakes, attempts are a second
    apart; what is asked again after a 401 is the same attempt."""
    told = scene(f"""
      usual.always = {answer};
      const client = make();
      let last;
      for (let step = 0; step < 200; step += 1) {{
        for (const type of ["focus", "online", "pageshow"]) dispatchEvent(new Event(type));
        client.token({{ instead: last }}).then((found) => {{ last = found; }}, () => {{}});
        await pass(0.1);
      }}
      return gaps(calls.filter((_, index) => !asked[index]));
    """)
    assert told
    assert all(gap >= 1 for gap in told), told


def test_an_answer_that_never_comes_does_not_hang_the_caller(scene: Scene) -> None:
    """It is a typed error after ten seconds or so, and the next call gets what it asks for."""
    told = scene("""
      usual.always = never;
      const client = make();
      const asking = watch(client.token());
      await pass(13);
      usual.always = null;
      const again = watch(client.token());
      await pass(13);
      return [asking.state, asking.kind, again.state];
    """)
    assert told == ["SessionError", "network", "given"]


def test_a_bearer_that_never_comes_leaves_the_caller_free(scene: Scene) -> None:
    """No request is made without it; a call can be taken back, and goes on when it comes."""
    told = scene("""
      const { promise, resolve } = Promise.withResolvers();
      const client = make({ authorize: () => promise });
      const control = new AbortController();
      const mine = watch(client.token({ signal: control.signal }));
      const other = watch(client.token());
      await pass(60);
      control.abort();
      await settle();
      const before = [mine.state, calls.length];
      resolve("bearer");
      await pass(2);
      return [...before, other.value];
    """)
    assert told == ["AbortError", 0, "t1"]


# Errors by kind


def test_a_401_asks_for_another_bearer_once(scene: Scene) -> None:
    """`authorize({renew: true})` once, the same request again at once, and it goes on."""
    told = scene("""
      answers.push(problem(401, "unauthenticated"));
      const bearers = ["old", "new"];
      const token = await make({ authorize: ({ renew }) => { asked.push(renew); return bearers[+renew]; } })
        .token();
      return { token, asked, calls, at: clock.now, events };
    """)
    assert told["asked"] == [False, True]
    assert [call["bearer"] for call in told["calls"]] == ["Bearer old", "Bearer new"]
    assert told["calls"][0]["key"] == told["calls"][1]["key"]
    assert told["at"] == 0
    assert [event[0] for event in told["events"]] == ["session"]


def test_a_second_401_is_an_error_of_kind_auth(scene: Scene) -> None:
    """Where the new bearer is refused as well, that is told at once, and not asked a third time."""
    told = scene("""
      usual.always = problem(401, "unauthenticated");
      const asking = watch(make().token());
      await pass(20);
      return [asking.kind, asking.at, asked.length, events];
    """)
    assert told == ["auth", 0, 2, [["error", 0, "auth"]]]


def test_a_401_of_cookies_is_not_asked_again(scene: Scene) -> None:
    """Without `authorize` there is nothing to renew."""
    told = scene("""
      usual.always = problem(401, "unauthenticated");
      const asking = watch(make({ authorize: undefined }).token());
      await pass(20);
      return [asking.kind, calls.length];
    """)
    assert told == ["auth", 1]


KINDS = {
    "unauthenticated": "auth",
    "not-permitted": "permission",
    "origin-not-allowed": "permission",
    "unknown-profile": "permission",
    "not-found": "permission",
    "handle-expired": "expired",
}


@pytest.mark.parametrize("one", problem_types(), ids=lambda one: one.slug)
def test_each_problem_has_its_kind(scene: Scene, one: Any) -> None:
    """Every problem type of the broker: kind, slug, status, words and details; one "error" event;
    what will not change by itself fails at once."""
    told = scene(
        """
      const client = make();
      await client.session();
      usual.always = problem(given.status, given.slug, { detail: "Why.", instance: "urn:uuid:1" });
      const asking = watch(client.act("status"));
      await pass(0);
      const { name, message, problem: slug, kind, details } = asking.error;
      const fresh = make();
      const minting = watch(fresh.token());
      await pass(0);
      return { name, message, slug, kind, details, fails: minting.state };
    """,
        {"slug": one.slug, "status": one.status},
    )
    assert (told["name"], told["message"], told["slug"]) == ("SessionError", "Why.", one.slug)
    assert told["kind"] == KINDS.get(one.slug, "server")
    assert told["details"]["status"] == one.status
    assert told["details"]["instance"] == "urn:uuid:1"
    if one.slug != "handle-expired":
        assert told["fails"] == ("SessionError" if one.status < 429 else "waiting")


# Lost answers


def test_the_lost_answer_of_a_mint_is_asked_for_again(scene: Scene) -> None:
    """The same Idempotency-Key and body until there is an answer, so that nothing is minted twice;
    the next mint has another key."""
    told = scene("""
      usual.answer = { expires_in: 60, rotate_in: undefined, handle: undefined };
      answers.push(cut, say(201, '{"session_to'), say(502, "<p>"));
      const client = make({ parameters: { a: 1 } });
      client[Symbol.asyncIterator]().next(); // waits longer than a call does
      await pass(100);
      watch(client.token());
      await pass(0);
      return calls.map((call) => [call.key, call.body]);
    """)
    keys = [key for key, _ in told]
    assert len(keys) == 5
    assert len(set(keys[:4])) == 1
    assert keys[4] != keys[0]
    assert all(keys)
    assert all(body == {"parameters": {"a": 1}} for _, body in told)


def test_a_refused_key_is_not_used_for_ever(scene: Scene) -> None:
    """An answer was lost, and what the mint carries has changed since: the broker refuses the key
    for its other body (422), and the next call brings another one."""
    told = scene("""
      const parameters = { a: 1 };
      const client = make({ parameters });
      answers.push(cut, problem(422, "invalid-parameters"));
      watch(client.token());
      await pass(1);
      parameters.a = 2;
      await pass(8);
      await client.token();
      return calls.map((call) => [call.key, call.body.parameters.a]);
    """)
    assert [a for _, a in told] == [1, 2, 2]
    keys = [key for key, _ in told]
    assert keys[0] == keys[1] != keys[2]


def test_the_lost_answer_of_a_rotation_is_asked_for_again(scene: Scene) -> None:
    """By the same handle, to which the broker gives the same successor."""
    told = scene("""
      const client = make();
      await client.session();
      answers.push(cut, say(201, '{"sess'), cut);
      await pass(720);
      return [calls.slice(1).map((call) => [call.path, call.body]), tokens()];
    """)
    assert told == [[["sessions/rotate", {"handle": "h1"}]] * 4, ["t1", "t2"]]


@pytest.mark.parametrize(
    "over", ['problem(410, "handle-expired")', 'problem(403, "not-permitted")']
)
def test_a_chain_that_is_over_is_followed_by_another(scene: Scene, over: str) -> None:
    """410 on rotate, or 403, as another person is signed in now: the client mints at once, nobody
    notices."""
    told = scene(f"""
      const client = make();
      await client.session();
      answers.push({over});
      await pass(692);
      return {{ paths: calls.map((call) => call.path), events, token: await client.token() }};
    """)
    assert told["paths"] == ["profiles/p/sessions", "sessions/rotate", "profiles/p/sessions"]
    assert [event[0] for event in told["events"]] == ["session", "rotated"]
    assert told["token"] == "t2"


# Who asks for what


def test_a_refused_token_is_not_given_again(scene: Scene) -> None:
    """Many that say `instead` cost one rotation, and nobody gets the refused one, asked how ever."""
    told = scene("""
      const client = make();
      const first = await client.token();
      await pass(5);
      const many = Array.from({ length: 9 }, () => client.token({ instead: first }));
      const seen = [...many, client.output({ instead: first }), client.token()].map(watch);
      await pass(2);
      const late = watch(client.token({ instead: first }));
      await settle();
      return { given: seen.map((one) => one.value), late: late.value,
        paths: calls.map((call) => call.path) };
    """)
    assert told["paths"] == ["profiles/p/sessions", "sessions/rotate"]
    assert [value for value in told["given"] if isinstance(value, str)] == ["t2"] * 10
    assert told["given"][9]["sessionToken"] == "t2"
    assert told["late"] == "t2"


def test_a_refused_token_that_comes_again_is_an_error(scene: Scene) -> None:
    """Where the broker has nothing but that token, a call fails within 12 s, and not for ever."""
    told = scene("""
      usual.always = session({ session_token: "same" });
      const client = make();
      await client.token();
      await pass(5);
      calls.length = 0;
      const asking = watch(client.token({ instead: "same" }));
      await pass(13);
      return [asking.state, calls.length];
    """)
    assert told[0] == "SessionError"
    assert told[1] <= 5


SINGLE = 'usual.answer = { expires_in: 600, reuse: "single_use", handle: "h" };'


def test_a_single_use_token_is_given_once(scene: Scene) -> None:
    """Each call gets another one, and so does each of three that ask at once."""
    told = scene(
        SINGLE
        + """
      const client = make();
      const seen = [client.token(), client.token(), client.fetchClientSecret()].map(watch);
      await pass(8);
      seen.push(watch(client.token()));
      await pass(8);
      return [seen.map((one) => one.value), calls.map((call) => call.path)];
    """
    )
    given, paths = told
    assert None not in given
    assert len(set(given)) == 4
    assert paths == ["profiles/p/sessions"] * 4


def test_what_does_not_rotate_is_minted_when_asked_for(scene: Scene) -> None:
    """Not before: neither when it is nearly over, nor when it is, nor when the tab wakes."""
    told = scene("""
      usual.answer = { expires_in: 60, rotate_in: undefined, handle: undefined };
      const client = make();
      const { rotate_in } = await client.session();
      await pass(300);
      for (const type of ["focus", "online", "pageshow"]) dispatchEvent(new Event(type));
      await pass(5);
      const before = calls.length;
      const token = await client.token();
      return { before, token, after: calls.length, later: rotate_in >= 59 };
    """)
    assert told == {"before": 1, "token": "t2", "after": 2, "later": True}


def test_near_its_end_who_asks_waits_for_the_successor(scene: Scene) -> None:
    """Under a tenth of the life a call gets the successor; where that fails, what there is."""
    told = scene("""
      usual.answer = { expires_in: 100, rotate_in: undefined, handle: undefined };
      const client = make();
      await client.token();
      await pass(92);
      const late = held();
      answers.push(late.answer);
      const asking = watch(client.token());
      await pass(1);
      const before = asking.state;
      late.give(session());
      await pass(0);
      await pass(92);
      answers.push(cut);
      const failing = watch(client.token());
      await pass(0);
      return [before, asking.value, failing.value];
    """)
    assert told == ["waiting", "t2", "t2"]


# Stopping


def test_who_aborts_leaves_the_others_waiting(scene: Scene) -> None:
    """An aborted call rejects at once with AbortError; the flight goes on for the others."""
    told = scene("""
      const late = held();
      answers.push(late.answer);
      const client = make();
      const control = new AbortController();
      const mine = watch(client.token({ signal: control.signal }));
      const others = watch(client.token());
      await pass(3);
      control.abort();
      await settle();
      const then = [mine.state, mine.at, others.state];
      late.give(session());
      await pass(0);
      return [then, others.value, calls.length];
    """)
    assert told == [["AbortError", 3, "waiting"], "t1", 1]


def test_who_has_aborted_before_gets_nothing(scene: Scene) -> None:
    """Neither a request nor a session, whether there is one or not."""
    told = scene("""
      const client = make();
      const signal = AbortSignal.abort();
      const first = watch(client.token({ signal }));
      await pass(2);
      const sent = calls.length;
      await client.token();
      const second = watch(client.token({ signal }));
      await settle();
      return [first.state, sent, second.state];
    """)
    assert told == ["AbortError", 0, "AbortError"]


LISTENERS = """
  const added = [], removed = [];
  const { addEventListener: add } = EventTarget.prototype;
  globalThis.addEventListener = function (type, run, options) {
    added.push(type);
    options?.signal?.addEventListener("abort", () => removed.push(type));
    return add.call(globalThis, type, run, options);
  };
"""


@pytest.mark.parametrize("busy", ["idle", "waiting", "failing"])
def test_a_closed_client_is_silent(scene: Scene, busy: str) -> None:
    """What waits rejects with AbortError at once; no timer, no listener, no request is left."""
    told = scene(
        LISTENERS
        + """
      const none = armed();
      const client = make();
      if (given === "idle") await client.session();
      if (given === "waiting") answers.push(never);
      if (given === "failing") usual.always = cut;
      const seen = given === "idle" ? [] : [client.token(), client.output()].map(watch);
      const iterating = client[Symbol.asyncIterator]();
      const stepping = given === "idle" ? watch(iterating.next()) : null;
      if (stepping) await settle();
      seen.push(...(given === "idle" ? [watch(client.token({ instead: "t1" }))] : []));
      const next = watch(iterating.next());
      await pass(given === "failing" ? 0.5 : 0);
      const count = calls.length;
      client.close();
      await settle();
      const states = seen.map((one) => one.state);
      for (const type of added) dispatchEvent(new Event(type));
      await pass(1000);
      return { states, more: calls.length - count, armed: armed() - none, added, removed,
        done: next.value?.done, bearers: asked.length - count };
    """,
        busy,
    )
    assert told["states"] == ["AbortError"] * len(told["states"])
    assert told["states"]
    assert told["more"] == 0
    assert told["bearers"] == 0
    assert told["armed"] == 0
    assert sorted(told["added"]) == sorted(told["removed"])
    assert len(told["added"]) == 4
    assert told["done"] is True


@pytest.mark.parametrize("how", ["close", "end"])
def test_a_client_that_is_over_gives_nothing(scene: Scene, how: str) -> None:
    """After close() and end() every call rejects with AbortError, though a session was there;
    nothing is sent."""
    told = scene(
        """
      const client = make();
      await client.session();
      await client[given]();
      const before = calls.length;
      const again = [client.token(), client.session({ instead: "t1" }), client.fetchSessionId(),
        client.act("status")].map(watch);
      await pass(15);
      return { states: again.map((one) => one.state), before, after: calls.length };
    """,
        how,
    )
    assert told["states"] == ["AbortError"] * 4
    assert told["before"] == told["after"]


@pytest.mark.parametrize("how", ["close", "end"])
@pytest.mark.parametrize("deaf", [False, True], ids=["fetch", "fetch-without-signal"])
@pytest.mark.parametrize("what", ["mint", "rotate"])
def test_a_late_answer_changes_nothing(scene: Scene, how: str, deaf: bool, what: str) -> None:
    """What arrives after close() or end() dispatches nothing and is nobody's, though a `fetch` that
    was given (over a MessagePort) may know of no signal."""
    told = scene(
        """
      usual.deaf = given.deaf;
      const client = make();
      if (given.what === "rotate") await client.session();
      const late = held();
      answers.push(late.answer);
      const asking = watch(client.token({ instead: "t1" }));
      await pass(2);
      const count = events.length;
      const over = client[given.how]();
      await pass(1);
      late.give(session());
      await pass(5);
      await over;
      return [asking.state, events.slice(count), sent("end").length];
    """,
        {"how": how, "deaf": deaf, "what": what},
    )
    assert told[:2] == ["AbortError", []]
    assert told[2] == (how == "end" and what == "rotate")


def test_a_late_bearer_sends_nothing(scene: Scene) -> None:
    """Where `authorize` answers after close(), no request follows (of a browser's own `fetch`)."""
    told = scene("""
      const { promise, resolve } = Promise.withResolvers();
      const client = make({ authorize: () => promise });
      const asking = watch(client.token());
      await pass(1);
      client.close();
      resolve("bearer");
      await pass(5);
      return [asking.state, calls.length, events];
    """)
    assert told == ["AbortError", 0, []]


@pytest.mark.parametrize("then", ["", "client.close();"])
def test_an_end_posts_its_handle_once(scene: Scene, then: str) -> None:
    """Whatever is called after it; `keepalive`, so that a page that goes away does not stop it."""
    told = scene(f"""
      const client = make();
      await client.session();
      const ending = watch(client.end());
      {then}
      await pass(30);
      return [ending.state, calls.slice(1)];
    """)
    state, calls = told
    assert state == "given"
    assert [call["path"] for call in calls] == ["sessions/end"]
    assert calls[0]["body"] == {"handle": "h1"}
    assert calls[0]["keepalive"] is True


def test_an_end_that_failed_can_be_said_again(scene: Scene) -> None:
    """A broker that was away when somebody logged out is told once more; one that knows, not."""
    told = scene("""
      const client = make();
      await client.session();
      answers.push(problem(503, "overloaded"));
      const states = [];
      for (let time = 0; time < 3; time += 1) {
        const ending = watch(client.end());
        await pass(30);
        states.push(ending.state);
      }
      return [states, calls.slice(1).map((call) => call.path)];
    """)
    assert told == [["SessionError", "given", "given"], ["sessions/end"] * 2]


def test_an_end_of_nothing_sends_nothing(scene: Scene) -> None:
    """No session was there: nothing to end, and no error."""
    told = scene("""
      const ending = watch(make().end());
      await pass(1);
      return [ending.state, calls];
    """)
    assert told == ["given", []]


def test_an_end_that_comes_too_late_says_so(scene: Scene) -> None:
    """Of a chain that was over the caller hears kind "expired"; of a dead network, and of one that
    never answers, "network"."""
    told = scene("""
      const seen = [];
      for (const answer of [problem(410, "handle-expired"), cut, never]) {
        const client = make();
        await client.session();
        answers.push(answer);
        const ending = watch(client.end());
        await pass(11);
        seen.push(ending.kind);
      }
      return seen;
    """)
    assert told == ["expired", "network", "network"]


# The iterator


def test_an_iterator_gives_the_present_one_and_each_successor(scene: Scene) -> None:
    """In order, none twice, for each that iterates; it ends with close()."""
    told = scene("""
      usual.answer = { expires_in: 60, rotate_in: 45 };
      const client = make();
      await client.session();
      const seen = [[], []], done = [];
      for (const list of seen) {
        (async () => {
          for await (const one of client) list.push([one.session_token, clock.now]);
          done.push(list.length);
        })();
      }
      await pass(140);
      client.close();
      await settle();
      return { seen, done };
    """)
    for list_ in told["seen"]:
        assert [token for token, _ in list_] == ["t1", "t2", "t3", "t4"]
        assert list_[0][1] == 0
    assert told["done"] == [4, 4]


def test_an_iterator_mints_the_first(scene: Scene) -> None:
    """Who iterates has asked."""
    told = scene("""
      const next = watch(make()[Symbol.asyncIterator]().next());
      await pass(0);
      return next.value.value.session_token;
    """)
    assert told == "t1"


def test_a_slow_consumer_misses_no_session(scene: Scene) -> None:
    """Who is busy while the successor comes gets it afterwards, at once; of several, the last."""
    told = scene("""
      usual.answer = { expires_in: 60, rotate_in: 45 };
      const client = make();
      const seen = [];
      (async () => {
        for await (const one of client) {
          seen.push([one.session_token, clock.now]);
          await new Promise((go) => setTimeout(go, seen.length === 1 ? 50_000 : 100_000));
        }
      })();
      await pass(160);
      return seen;
    """)
    assert [token for token, _ in told] == ["t1", "t2", "t4"]
    assert [when for _, when in told] == [0, pytest.approx(50, abs=0.1), pytest.approx(150, abs=1)]


def test_a_break_leaves_nothing_behind(scene: Scene) -> None:
    """After `break` nobody waits: in a hidden tab nothing is fetched any more."""
    told = scene("""
      const client = make();
      for await (const one of client) break;
      hide(true);
      await pass(2000);
      return [calls.length, armed()];
    """)
    assert told == [1, 1]


# Events


def test_events_come_once_each(scene: Scene) -> None:
    """`session` for the first, `rotated` for each after it, `expiring` once where there is no
    successor in time, `error` for each failed attempt; with what they are about."""
    told = scene("""
      usual.answer = { expires_in: 100, rotate_in: 75 };
      await make().session();
      await pass(80);
      usual.always = problem(503, "overloaded");
      await pass(85);
      usual.always = null;
      await pass(20);
      return { events, failed: calls.filter((call) => call.at > 149 && call.at < 165).length };
    """)
    events = told["events"]
    assert [e for e in events if e[0] == "session"] == [["session", 0, "t1"]]
    assert [e[2] for e in events if e[0] == "rotated"][:2] == ["t2", "t3"]
    [expiring] = [e for e in events if e[0] == "expiring"]
    assert expiring[2] == "t2"
    assert 165 <= expiring[1] <= 167.1
    errors = [e for e in events if e[0] == "error"]
    assert len(errors) == told["failed"]
    assert {kind for _, _, kind in errors} == {"server"}


@pytest.mark.parametrize(("life", "lead"), [(60, 6), (100, 10), (900, 30), (86400, 30)])
def test_expiring_leaves_a_tenth_of_the_life(scene: Scene, life: int, lead: int) -> None:
    """Or thirty seconds, where that is less."""
    at = scene(
        """
      usual.answer = { expires_in: given, rotate_in: undefined, handle: undefined };
      make().session();
      await settle();
      nap(given - 40);
      await pass(40);
      return events.filter(([type]) => type === "expiring").map(([, when]) => when);
    """,
        life,
    )
    assert len(at) == 1
    assert life - lead - 0.01 <= at[0] <= life - lead + 1.01


# Adapters


def test_adapters_work_without_their_object(scene: Scene) -> None:
    """Each as a component gets it, taken off the client."""
    told = scene("""
      const client = make();
      const { fetchSessionId, fetchClientSecret, paymentSession, authCallback, tokenWillExpire,
        session, token, output, act, close, end } = client;
      const called = [], updated = [];
      const device = { updateToken: (given) => updated.push(given) };
      const found = [await fetchSessionId(), await fetchClientSecret(), await paymentSession()];
      await authCallback({ clientId: "c" }, (...given) => called.push(given));
      await tokenWillExpire(device);
      const plain = [(await session()).session_token, await token(), (await output()).sessionToken,
        await act("status")];
      await end();
      close();
      return { found, called, updated, plain };
    """)
    nmi, secret, flow = told["found"]
    assert nmi["sessionToken"] == "t1"
    assert secret == "t1"
    assert flow == {"sessionToken": "t1", "expiresAt": 1}
    assert told["called"] == [[None, "t1"]]
    assert told["updated"] == ["t1"]
    assert told["plain"] == ["t1", "t1", "t1", {"done": "status"}]


@pytest.mark.parametrize("wrong", [0, 3600, -3600])
def test_nmi_is_told_in_this_machines_own_time(scene: Scene, wrong: int) -> None:
    """`expiresAt` is right by the clock that the component reads, however wrong that is."""
    left = scene(
        """
      clock.skew = given * 1000;
      const client = make();
      await client.session();
      await pass(100);
      return (await client.fetchSessionId()).expiresAt - Date.now();
    """,
        wrong,
    )
    assert left == pytest.approx(800_000, abs=100)


def test_adapters_tell_their_components_of_failure(scene: Scene) -> None:
    """Ably's callback gets the error, once; functions reject with it."""
    told = scene("""
      usual.always = problem(403, "not-permitted");
      const client = make();
      const called = [];
      client.authCallback({}, (...given) => called.push(given));
      const others = [client.fetchSessionId(), client.fetchClientSecret(), client.paymentSession()];
      const seen = others.map(watch);
      await pass(1);
      return [called.map(([error, token]) => [error.name, error.kind, token]),
        seen.map((one) => one.kind)];
    """)
    assert told == [[["SessionError", "permission", None]], ["permission"] * 3]


def test_a_device_gets_each_token_once(scene: Scene) -> None:
    """Twilio's event, fired for each token: the device gets the successor."""
    told = scene("""
      usual.answer = { expires_in: 60, rotate_in: undefined, handle: undefined };
      const client = make();
      const updated = [];
      const device = { updateToken: (given) => updated.push(given) };
      await client.tokenWillExpire(device);
      for (let round = 0; round < 3; round += 1) {
        await pass(55);
        await client.tokenWillExpire(device);
      }
      return updated;
    """)
    assert told == ["t1", "t2", "t3", "t4"]


def test_a_device_whose_token_cannot_be_had_leaves_no_loose_rejection(scene: Scene) -> None:
    """`device.on` drops what a listener returns: the client's "error" event tells of it."""
    told = scene("""
      const loose = [];
      const scene = new AbortController();
      addEventListener("unhandledrejection", (event) => {
        event.preventDefault();
        loose.push(event.reason.name);
      }, scene);
      usual.always = problem(403, "not-permitted");
      make().tokenWillExpire({ updateToken: () => {} });
      await pass(3);
      scene.abort();
      return [loose, events];
    """)
    assert told == [[], [["error", 0, "permission"]]]


# Actions


def test_an_action_speaks_of_the_newest_session(scene: Scene) -> None:
    """Handle, data and what is added; the answer as it is, {} where there is none."""
    told = scene("""
      const client = make();
      const session = await client.session();
      const plain = await client.act("status");
      answers.push(say(204, ""));
      const nothing = await client.act("collect-data", { a: 1 },
        { session_token: session.session_token });
      return { plain, nothing, calls: calls.slice(1).map(({ path, body }) => [path, body]) };
    """)
    assert told["plain"] == {"done": "status"}
    assert told["nothing"] == {}
    assert told["calls"] == [
        ["sessions/actions/status", {"handle": "h1", "data": {}}],
        [
            "sessions/actions/collect-data",
            {"handle": "h1", "data": {"a": 1}, "session_token": "t1"},
        ],
    ]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [("cut", "network"), ('problem(409, "action-not-allowed")', "server"),
     ('problem(503, "overloaded", { retry_after: 1 })', "server"),
     ('problem(410, "handle-expired")', "expired"), ('say(502, "<p>")', "server"),
     ('say(200, "<p>")', "network"), ("say(500, { type: 7 })", "server")],
)  # fmt: skip
def test_an_action_that_fails_is_not_tried_again(scene: Scene, answer: str, kind: str) -> None:
    """It fails at once, typed; no retry, no mint, no "error" event, and the session stays."""
    told = scene(f"""
      const client = make();
      await client.session();
      answers.push({answer});
      const acting = watch(client.act("status"));
      await pass(30);
      return [acting.state, acting.kind, acting.at, calls.length, await client.token(), events];
    """)
    assert told == ["SessionError", kind, 0, 2, "t1", [["session", 0, "t1"]]]


def test_an_action_renews_the_bearer_once(scene: Scene) -> None:
    """As every request does."""
    told = scene("""
      const client = make();
      await client.session();
      answers.push(problem(401, "unauthenticated"));
      return [await client.act("status"), asked];
    """)
    assert told == [{"done": "status"}, [False, False, True]]


def test_an_action_without_a_session_mints_none(scene: Scene) -> None:
    """The broker is asked, and refuses."""
    told = scene("""
      usual.always = problem(400, "malformed-request");
      const acting = watch(make().act("status"));
      await pass(5);
      return [acting.kind, calls.map((call) => call.path)];
    """)
    assert told == ["server", ["sessions/actions/status"]]


# Tabs and clocks


def test_a_hidden_tab_rotates_when_asked_or_shown(scene: Scene) -> None:
    """Not by itself: neither when due nor when over. Who asks near the end gets the successor; when
    it is shown, what is due is fetched at once."""
    told = scene("""
      const client = make();
      await client.session();
      hide(true);
      await pass(890);
      const hidden = calls.length;
      const token = await client.token();
      const asked = calls.length;
      await pass(1100);
      const later = calls.length;
      hide(false);
      await settle();
      return { hidden, token, asked, later, shown: calls.length };
    """)
    assert told == {"hidden": 1, "token": "t2", "asked": 2, "later": 2, "shown": 3}


def test_a_hidden_tab_that_is_iterated_goes_on(scene: Scene) -> None:
    """Who waits for the successor has asked for it."""
    told = scene("""
      const client = make();
      const seen = [];
      (async () => { for await (const one of client) seen.push(one.session_token); })();
      await pass(1);
      hide(true);
      await pass(1400);
      return seen;
    """)
    assert told == ["t1", "t2", "t3"]


@pytest.mark.parametrize(
    ("failing", "least", "most"),
    [
        ("cut", 0, 2.1),
        ('problem(403, "not-permitted")', 0, 2.1),
        ('problem(503, "overloaded")', 3, 99),
    ],
)
def test_who_is_back_online_is_served_soon(
    scene: Scene, failing: str, least: float, most: float
) -> None:
    """What did not arrive, or was refused, is tried within two seconds of `online`, however long
    the back-off had become; what the broker itself put off is not."""
    took = scene(f"""
      const client = make();
      await client.session();
      usual.always = {failing};
      await pass(730);
      const last = calls.at(-1).at;
      while (calls.at(-1).at === last) await pass(0.5);
      usual.always = null;
      const began = clock.now;
      dispatchEvent(new Event("online"));
      while (tokens().length < 2) await pass(0.1);
      return events.at(-1)[1] - began;
    """)
    assert least <= took <= most


@pytest.mark.parametrize("type_", ["focus", "pageshow", "online", "visibilitychange"])
def test_a_tab_that_wakes_looks_at_once(scene: Scene, type_: str) -> None:
    """After a sleep in which no timer fired, the event alone brings the successor."""
    told = scene(
        """
      const client = make();
      await client.session();
      await pass(5);
      nap(700);
      dispatchEvent(new Event(given));
      await settle();
      return [clock.now, tokens()];
    """,
        type_,
    )
    assert told == [705, ["t1", "t2"]]


def test_a_nap_past_the_end_gives_no_expired_token(scene: Scene) -> None:
    """Who asks first after a night gets a new one, though no tick and no event came before."""
    told = scene("""
      const client = make();
      await client.session();
      nap(8 * 3600);
      const asking = watch(client.token());
      await settle();
      return [asking.value, calls.length];
    """)
    assert told == ["t2", 2]


@pytest.mark.parametrize("skew", [3600, -3600, 3, -3])
def test_a_clock_that_was_set_asks_what_is_left(scene: Scene, skew: int) -> None:
    """`check` is asked once by its handle, the token is not given before the answer, and then it is
    the same one; nothing is minted."""
    told = scene(
        """
      const client = make();
      await client.session();
      await pass(10);
      const late = held();
      answers.push(late.answer);
      clock.skew = given * 1000;
      const many = [client.token(), client.token(), client.session()].map(watch);
      await pass(1);
      const before = many.map((one) => one.state);
      late.give(say(200, { expires_in: 880 }));
      await pass(0);
      const left = (await client.session()).expires_in;
      await pass(60);
      return { before, given: many[0].value, left, calls: calls.slice(1), events };
    """,
        skew,
    )
    assert told["before"] == ["waiting"] * 3
    assert told["given"] == "t1"
    assert told["left"] == pytest.approx(879, abs=0.2)
    assert [(c["path"], c["body"]) for c in told["calls"]] == [("sessions/check", {"handle": "h1"})]
    assert [event[0] for event in told["events"]] == ["session"]


def test_a_machine_whose_monotonic_clock_stood_still(scene: Scene) -> None:
    """It slept an hour, and performance.now() did not count it: the session is over, says the
    broker, and a successor is fetched before anything is given."""
    told = scene("""
      const client = make();
      await client.session();
      await pass(10);
      clock.skew = 3_600_000;
      answers.push(say(200, { expires_in: 0 }));
      const asking = watch(client.token());
      await pass(1);
      return [asking.value, calls.map((call) => call.path)];
    """)
    assert told == ["t2", ["profiles/p/sessions", "sessions/check", "sessions/rotate"]]


def test_what_a_check_says_moves_the_rotation_too(scene: Scene) -> None:
    """A monotonic clock that stood still has moved `rotate_in` as well: the successor is fetched as
    far before the end as it would have been, not in the last seconds."""
    told = scene("""
      const client = make();
      await client.session();
      await pass(10);
      clock.skew = 600_000;
      answers.push(say(200, { expires_in: 290 }));
      await pass(200);
      return sent("rotate").map((call) => call.at);
    """)
    assert len(told) == 1
    assert told[0] <= 95


@pytest.mark.parametrize("answer", ["cut", 'problem(503, "overloaded")', 'say(200, "<p>")',
                                    "say(200, {})", "say(200, null)"])  # fmt: skip
def test_without_a_check_nothing_is_given(scene: Scene, answer: str) -> None:
    """Where the broker cannot say what is left, the call fails, typed; nothing is minted."""
    told = scene(f"""
      const client = make();
      await client.session();
      await pass(10);
      usual.always = {answer};
      clock.skew = 3_600_000;
      const asking = watch(client.token());
      await pass(13);
      return [asking.state, asking.kind, sent("profiles/").length, tokens()];
    """)
    assert told[0] == "SessionError"
    assert told[1] in ("network", "server")
    assert told[2:] == [1, ["t1"]]


def test_a_check_of_a_dead_chain_is_followed_by_another(scene: Scene) -> None:
    """410: the session was ended meanwhile, another chain begins."""
    told = scene("""
      const client = make();
      await client.session();
      await pass(10);
      clock.skew = -3_600_000;
      answers.push(problem(410, "handle-expired"));
      const asking = watch(client.token());
      await pass(1);
      return [asking.value, calls.map((call) => call.path)];
    """)
    assert told == ["t2", ["profiles/p/sessions", "sessions/check", "profiles/p/sessions"]]


def test_a_clock_that_drifts_slowly_is_no_alarm(scene: Scene) -> None:
    """A second or so in a session's life: nothing is asked."""
    told = scene("""
      const client = make();
      await client.session();
      for (let step = 0; step < 60; step += 1) {
        clock.skew += 20;
        await pass(10);
      }
      return calls.length;
    """)
    assert told == 1


def test_what_the_clocks_may_be_off_is_taken_from_what_is_left(scene: Scene) -> None:
    """A second or so that one of them does not know of: a session that may have less than a
    second left is not given."""
    told = scene("""
      usual.answer = { expires_in: 60, rotate_in: undefined, handle: undefined };
      const client = make();
      await client.session();
      await pass(57.8);
      clock.skew = 1200;
      answers.push(cut);
      const asking = watch(client.token());
      await pass(5);
      return [asking.value, calls.length];
    """)
    assert told == ["t2", 3]
