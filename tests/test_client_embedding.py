"""The browser's client on other people's pages: other origins, cookies, frames, strict policies.

A broker of this module's own, since its origins and its callers must be known before it starts; the
sandbox is that of the run's demo.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Frame, Page

from tests.browsing import Contexts, Demo, Site, site
from tests.test_serving import process

ROOT = Path(__file__).parents[1]
SHARED_BY_ALL = {"Access-Control-Allow-Origin": "*"}
FRAMES = """<!doctype html><title>Frames</title>
<iframe id="same" sandbox="allow-scripts allow-same-origin" src="/empty.html"></iframe>
<iframe id="opaque" sandbox="allow-scripts" src="/empty.html"></iframe>"""
CONFIG = """
server: {{public: {{host: 127.0.0.1, port: 0}}, ops: {{host: 127.0.0.1, port: 0}}}}
keys: {{env: SEAL}}
callers:
  shop-users: {{type: jwt, issuer: "{sandbox}/idp", audience: token-broker}}
  legacy-shop: {{type: forward_auth, url: "{whoami}/whoami", cookies: [sid]}}
profiles:
  p:
    preset: nmi
    base_url: {sandbox}/nmi-minute/api/v1
    api_key: {{env: KEY}}
    gateway: {{merchant_id: "100200300", environment: sandbox}}
    allow:
      callers: [shop-users, legacy-shop]
      origins: ["{portal.origin}", "{portal.localhost}", "{strict.origin}"]
    rotation: {{}}
    rate_limit: 1000/minute
"""
ENV = {"SEAL": "s" * 32, "KEY": "sandbox-nmi-key"}


@dataclass
class Embedding:
    """A broker, pages that are listed with it, one whose policy is strict, and one not listed."""

    demo: Demo
    broker: str
    whoami: str
    portal: Site
    strict: Site
    stranger: Site

    def mints(self) -> int:
        return int(self.demo.calls()["nmi-minute.session"])


class Whoami(BaseHTTPRequestHandler):
    """The shop's own server: /login gives its cookie, /whoami says whose that is."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        known = "sid=1" in self.headers.get("Cookie", "")
        body = b'{"subject": "ada"}' if known else b"{}"
        self.send_response(200 if known or self.path == "/login" else 401)
        if self.path == "/login":
            self.send_header("Set-Cookie", "sid=1; Path=/; SameSite=None; Secure; HttpOnly")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(name="whoami", scope="module")
def _whoami() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Whoami) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(name="_embedding", scope="module")
def _module_embedding(
    _demo: Demo, whoami: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Embedding]:
    path = tmp_path_factory.mktemp("embedding") / "broker.yaml"
    with site({"/frames.html": FRAMES}, SHARED_BY_ALL) as portal, site() as strict:
        told = {"sandbox": _demo.sandbox, "whoami": whoami, "portal": portal, "strict": strict}
        path.write_text(CONFIG.format(**told))
        with process("serve", "-c", str(path), env=ENV) as running, site() as stranger:
            broker, _ = running.ready()
            yield Embedding(_demo, broker, whoami, portal, strict, stranger)


@pytest.fixture(name="told")
def _told(_embedding: Embedding, demo: Demo) -> Embedding:
    """As of the module, with the sandbox as if newly started."""
    return _embedding


RUN = """async ({ broker, bearer, rotates, options }) => {
  const { createSessionClient } = await import(`${broker}/v1/client.js`);
  const authorize = bearer ? () => bearer : undefined;
  const bridge = globalThis.bridged ? { fetch: await globalThis.bridged } : {};
  const client = createSessionClient({ broker, profile: "p", authorize, ...options, ...bridge });
  const asking = client.session();
  const first = await Promise.race([
    asking.catch(({ kind, problem }) => ({ kind, problem })),
    new Promise((go) => client.addEventListener("error", ({ detail: { kind, problem } }) =>
      go({ kind, problem }))),
  ]);
  if (first.kind) {
    client.close();
    asking.catch(() => {});
    return { kind: first.kind, problem: first.problem || "" };
  }
  const next = rotates && (await client.session({ instead: first.session_token }));
  await client.end();
  return { other: next && next.handle !== first.handle, left: first.expires_in };
}"""


def run(
    where: Page | Frame,
    told: Embedding,
    *,
    bearer: bool = True,
    rotates: bool = False,
    **options: Any,
) -> Any:
    """Mints, rotates if told (which takes a second or two) and ends there; or of what kind the
    first error is."""
    shown = told.demo.bearer() if bearer else None
    wanted = {"broker": told.broker, "bearer": shown, "rotates": rotates, "options": options}
    return where.evaluate(RUN, wanted)


def worked(answer: dict[str, Any]) -> bool:
    return answer.get("other") is not None and 50 < answer["left"] <= 60


def rotated(answer: dict[str, Any]) -> bool:
    return worked(answer) and answer["other"] is True


# Other origins


@pytest.mark.parametrize("host", ["origin", "localhost"])
def test_it_works_from_another_origin_that_is_listed(
    context: Contexts, told: Embedding, host: str
) -> None:
    """The module loads from the broker; a mint, a rotation (tried from another site) and an end
    pass CORS, from a page of the same site and of another."""
    page = context().new_page()
    page.goto(f"{getattr(told.portal, host)}/empty.html")
    away = host == "localhost"
    answer = run(page, told, rotates=away)
    assert rotated(answer) if away else worked(answer)
    assert told.mints() == (2 if away else 1)


def test_it_is_refused_from_an_origin_that_is_not_listed(
    context: Contexts, told: Embedding
) -> None:
    """A browser does not let the page see why: kind "network". Nothing was minted."""
    page = context(expected=["CORS", "ERR_FAILED"]).new_page()
    page.goto(f"{told.stranger.origin}/empty.html")
    assert run(page, told) == {"kind": "network", "problem": ""}
    assert told.mints() == 0


# Cookies


def test_cookies_of_the_same_site_are_enough(context: Contexts, told: Embedding) -> None:
    """Without `authorize` the shop's cookie says who it is; without that, kind "auth"."""
    page = context(expected=["401"]).new_page()
    page.goto(f"{told.portal.origin}/empty.html")
    assert run(page, told, bearer=False) == {"kind": "auth", "problem": "unauthenticated"}
    assert told.mints() == 0
    page.goto(f"{told.whoami}/login")
    page.goto(f"{told.portal.origin}/empty.html")
    assert worked(run(page, told, bearer=False))


def test_cookies_are_not_sent_beside_a_bearer(context: Contexts, told: Embedding) -> None:
    """`authorize` alone says who it is, also where the shop's cookie lies about."""
    page = context().new_page()
    page.goto(f"{told.whoami}/login")
    page.goto(f"{told.portal.origin}/empty.html")
    sent: list[bool] = []
    page.on("request", lambda request: sent.append("cookie" in request.all_headers()))
    assert worked(run(page, told))
    assert sent
    assert not any(sent)


@pytest.mark.parametrize("allowed", [True, False])
def test_blocked_third_party_cookies_are_of_kind_auth(
    context: Contexts, told: Embedding, allowed: bool
) -> None:
    """From another site's page the cookie works while third-party cookies do; where they are
    blocked the error is typed, nothing is minted, and a bearer works."""
    page = context(third_party_cookies=allowed, expected=["401"]).new_page()
    page.goto(f"{told.whoami}/login")
    page.goto(f"{told.portal.localhost}/empty.html")
    answer = run(page, told, bearer=False)
    if allowed:
        assert worked(answer)
    else:
        assert answer == {"kind": "auth", "problem": "unauthenticated"}
        assert told.mints() == 0
        assert worked(run(page, told))


# Frames


def framed(page: Page, told: Embedding, name: str) -> Frame:
    page.goto(f"{told.portal.origin}/frames.html")
    handle = page.query_selector(f"#{name}")
    assert handle is not None
    frame = handle.content_frame()
    assert frame is not None
    frame.wait_for_load_state()
    return frame


@pytest.mark.parametrize("share", [None, "ada"])
def test_it_works_in_a_sandboxed_frame_with_an_origin(
    context: Contexts, told: Embedding, share: str | None
) -> None:
    """`allow-scripts allow-same-origin`: as on the page itself."""
    frame = framed(context().new_page(), told, "same")
    assert worked(run(frame, told, share=share))


@pytest.mark.parametrize("share", [None, "ada"])
def test_a_frame_without_an_origin_is_refused(
    context: Contexts, told: Embedding, share: str | None
) -> None:
    """The module loads there, and sharing does not break it; requests of `Origin: null` are refused
    by design: anybody's frame has that origin."""
    frame = framed(context(expected=["CORS", "ERR_FAILED"]).new_page(), told, "opaque")
    assert frame.evaluate("() => origin") == "null"
    assert run(frame, told, share=share) == {"kind": "network", "problem": ""}
    assert told.mints() == 0


@pytest.mark.parametrize("share", [None, "ada"])
def test_a_frame_without_an_origin_may_be_given_a_fetch(
    context: Contexts, told: Embedding, share: str | None
) -> None:
    """The page around it makes the requests, over a MessagePort: all works."""
    page = context().new_page()
    frame = framed(page, told, "opaque")
    bridge = f"{told.portal.origin}/client-bridge.js"
    frame.evaluate(
        """async (bridge) => {
      const { takeFetch } = await import(bridge);
      globalThis.bridged = takeFetch();
    }""",
        bridge,
    )
    page.evaluate(
        """async ([bridge, broker]) => {
      (await import(bridge)).offerFetch(document.querySelector("#opaque"), broker);
    }""",
        [bridge, told.broker],
    )
    answer = run(frame, told, share=share, rotates=share is None)
    assert worked(answer) if share else rotated(answer)
    assert told.mints() == (1 if share else 2)


# Strict policies and integrity

LOADS = """
globalThis.loads = [];
globalThis.violations = [];
for (const type of ["load", "error"]) {
  document.addEventListener(type, ({ target }) => target.src && loads.push(type), true);
}
addEventListener("securitypolicyviolation", (event) =>
  violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


@pytest.fixture(name="printed", scope="module")
def _printed(_embedding: Embedding) -> str:
    """The line that `token-broker client` prints for a page."""
    command = [sys.executable, "-m", "broker", "client", "--broker", _embedding.broker]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = re.search(r"<script .*</script>", done.stdout)
    assert found, done.stdout
    return found[0]


def policed(context: Contexts, told: Embedding, tag: str, **options: Any) -> Page:
    """A page of that tag, whose policy lets it load from the broker, talk to the broker, and
    nothing else."""
    told.strict.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src {told.broker}; connect-src {told.broker}; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    told.strict.pages["/policed.html"] = f"<!doctype html><title>Strict</title>{tag}"
    page = context(**options).new_page()
    page.add_init_script(LOADS)
    page.goto(f"{told.strict.origin}/policed.html")
    return page


def test_it_keeps_a_strict_policy_with_trusted_types(
    context: Contexts, told: Embedding, printed: str
) -> None:
    """`default-src 'none'`, only the broker's scripts and connections, no Trusted Types policy:
    all works, sharing included, and nothing is violated."""
    page = policed(context, told, printed)
    assert worked(run(page, told, share="ada"))
    assert page.evaluate("() => [loads, violations]") == [["load"], []]


def test_the_policy_of_these_tests_is_in_force(context: Contexts, told: Embedding) -> None:
    """So that the claim above claims something: a string as a script, and another host, fail."""
    page = policed(context, told, "", expected=["TrustedScript", "Content Security Policy", "CSP"])
    page.evaluate(
        """async (elsewhere) => {
      try { document.createElement("script").text = "1"; } catch {}
      await fetch(elsewhere).catch(() => {});
    }""",
        told.stranger.origin,
    )
    assert len(page.evaluate("() => violations")) == 2


def test_a_wrong_integrity_loads_nothing(context: Contexts, told: Embedding, printed: str) -> None:
    """The printed hash is that of what is served; another one keeps the module out."""
    wrong = re.sub(r"sha384-.{8}", "sha384-AAAAAAAA", printed)
    assert wrong != printed
    page = policed(context, told, wrong, expected=["integrity", "digest"])
    assert page.evaluate("() => loads") == ["error"]


def test_the_module_is_revalidated_not_loaded_again(context: Contexts, told: Embedding) -> None:
    """With the ETag it was loaded with: the second time only headers travel."""
    page = context().new_page()
    page.goto(f"{told.broker}/v1/openapi.json")
    sizes = page.evaluate("""async () => {
      const load = async () => (await fetch("/v1/client.js", { cache: "no-cache" })).text();
      const same = (await load()) === (await load());
      const [first, second] = performance.getEntriesByName(`${origin}/v1/client.js`);
      return [same, first.transferSize > first.encodedBodySize, second.transferSize,
        second.encodedBodySize];
    }""")
    assert sizes[:2] == [True, True]
    assert 0 < sizes[2] <= 300 < sizes[3]
