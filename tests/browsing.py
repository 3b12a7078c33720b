"""A real browser for tests: one headless Chromium for the whole run, and what is done to its tabs.

    def test_a_page(context, demo):                # fixtures, from tests/conftest.py
        page = context().new_page()
        page.goto(demo.public)

`context` gives contexts (profiles of their own) that end with the test, and fails it for every
error on a page or its console that it was not told of: `context(expected=["401"])`. What is done to
tabs (hide, freeze, stop, slow, offline, wrong clock, back) stands in tests/tabs.py. Where there is
no Chromium the test is skipped, and says so; in CI it fails. Never used with a broker that anybody
else uses, and never downloads a browser.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Error,
    Page,
    Playwright,
    WebError,
    sync_playwright,
)

from tests import tabs
from tests.test_serving import Process, process

ROOT = Path(__file__).parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
FAILED = pytest.StashKey[bool]()
"""Whether a test did; tests/conftest.py notes it."""
PAGES = Path(__file__).with_name("browser_pages")
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
NOT_THESE = (  # Playwright's own, which would make tabs behave better than anybody's do
    "--disable-back-forward-cache", "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows", "--disable-renderer-backgrounding",
)  # fmt: skip


def executable() -> str:
    """Where Chromium is; without one the test is skipped, and in CI it fails."""
    told = os.environ.get("TOKEN_BROKER_CHROMIUM")
    found = shutil.which(told) if told else next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        reason = (
            f"{told or 'chromium'} is not installed: what only a browser can show was NOT tested"
        )
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def artefacts() -> Path:
    """Where screenshots go."""
    place = Path(os.environ.get("TOKEN_BROKER_ARTEFACTS") or ROOT / ".artefacts")
    place.mkdir(parents=True, exist_ok=True)
    return place


def shot(page: Page, name: str) -> Path:
    """A picture of the whole page, kept."""
    path = artefacts() / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    return path


class Chromiums:
    """The Chromiums of this run by what they were started with: one, unless a test needs another.

    Between tests nobody else's `asyncio.run` may find the driver's loop running in this thread.
    """

    def __init__(self, playwright: Playwright, program: str, place: Path) -> None:
        self._playwright = playwright
        self._program = program
        self._place = place
        self._running: dict[tuple[object, ...], Browser] = {}
        self.loop = asyncio.get_running_loop()

    def get(self, *flags: str, third_party_cookies: bool = True) -> Browser:
        """flags: more of the command line's."""
        kind = (*flags, third_party_cookies)
        if kind not in self._running:
            self._running[kind] = self._playwright.chromium.launch(
                executable_path=self._wrapped(len(self._running), third_party_cookies),
                chromium_sandbox=os.geteuid() != 0,
                args=[*FLAGS, *flags],
                ignore_default_args=list(NOT_THESE),
            )
        return self._running[kind]

    def _wrapped(self, number: int, third_party_cookies: bool) -> Path:
        blocked = {"cookie_controls_mode": 0 if third_party_cookies else 1}
        relay = Path(__file__).with_name("chromium_relay.py")
        preferences = json.dumps({"profile": blocked})
        words = shlex.join([sys.executable, str(relay), self._program, preferences])
        script = self._place / f"chromium-{number}"
        script.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        script.chmod(0o755)
        return script

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """While this lasts browsers can be used, and `asyncio.run` cannot."""
        asyncio._set_running_loop(self.loop)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    def close(self) -> None:
        while self._running:
            self._running.popitem()[1].close()


@pytest.fixture(scope="session")
def _chromiums(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromiums]:
    program = executable()
    with sync_playwright() as playwright:
        chromiums = Chromiums(playwright, program, tmp_path_factory.mktemp("chromium"))
        asyncio._set_running_loop(None)
        try:
            yield chromiums
        finally:
            asyncio._set_running_loop(chromiums.loop)  # `stop` wants it, too
            chromiums.close()


@pytest.fixture
def browser(_chromiums: Chromiums) -> Iterator[Browser]:
    """The Chromium of this run, in use by this test."""
    with _chromiums.awake():
        yield _chromiums.get()


class Contexts:
    """Makes contexts, and remembers what went wrong in them."""

    def __init__(self, chromiums: Chromiums) -> None:
        self._chromiums = chromiums
        self._opened: list[BrowserContext] = []
        self.errors: list[str] = []
        self.expected: list[str] = []

    def __call__(
        self,
        *flags: str,
        expected: Sequence[str] = (),
        third_party_cookies: bool = True,
        **options: Any,
    ) -> BrowserContext:
        """expected: patterns of errors that may happen. options: as `Browser.new_context` has.
        With flags, or without third-party cookies, it is a context of another Chromium."""
        browser = self._chromiums.get(*flags, third_party_cookies=third_party_cookies)
        made = browser.new_context(**options)
        self.expected += [expected] if isinstance(expected, str) else list(expected)
        made.on("console", self._console)
        made.on("weberror", self._error)
        made.on("page", tabs.keep_visible)
        made.add_init_script(tabs.RESTORED)
        made.set_default_timeout(20_000)
        self._opened.append(made)
        return made

    def _console(self, message: ConsoleMessage) -> None:
        where = message.location
        if message.type == "error" and not where["url"].endswith("/favicon.ico"):
            self.errors.append(f"console: {message.text} ({where['url']}:{where['lineNumber']})")

    def _error(self, error: WebError) -> None:
        self.errors.append(f"page: {error.error}")

    def unexpected(self) -> list[str]:
        return [e for e in self.errors if not any(re.search(p, e) for p in self.expected)]

    def shots(self, name: str) -> None:
        """A picture of every open tab, as far as they let themselves be drawn."""
        pages = [page for context in self._opened for page in context.pages]
        for number, page in enumerate(pages):
            with contextlib.suppress(Error):
                page.screenshot(path=artefacts() / f"{name}-{number}.png", timeout=3000)

    def close(self) -> None:
        while self._opened:
            self._opened.pop().close()


@pytest.fixture
def context(_chromiums: Chromiums, request: pytest.FixtureRequest) -> Iterator[Contexts]:
    """Gives contexts: `page = context().new_page()`. Of a test that fails, its tabs are drawn."""
    contexts = Contexts(_chromiums)
    with _chromiums.awake():
        try:
            yield contexts
        finally:
            if request.node.stash.get(FAILED, False):
                contexts.shots("failed-" + re.sub(r"\W+", "-", request.node.name))
            contexts.close()
    assert not (wrong := contexts.unexpected()), "errors on the page:\n- " + "\n- ".join(wrong)


@dataclass(frozen=True)
class Sandboxed:
    """What has a sandbox of its own; its origin."""

    sandbox: str

    def order(self, what: str, **body: Any) -> None:
        """Tells the sandbox something: `order("reset")`, `order("revoke", nmi=True)`."""
        url = f"{self.sandbox}/_sandbox/{what}"
        httpx2.post(url, json=body, trust_env=False).raise_for_status()

    def calls(self) -> dict[str, Any]:
        """How often each of the sandbox's operations was called since it was reset."""
        answer = httpx2.get(f"{self.sandbox}/_sandbox/calls", trust_env=False)
        calls: dict[str, Any] = answer.raise_for_status().json()
        return calls

    def bearer(self, user: str = "ada") -> str:
        """A JWT of the development identity provider."""
        url = f"{self.sandbox}/idp/token?user={user}&format=text"
        return httpx2.get(url, trust_env=False).raise_for_status().text.strip()


@dataclass(frozen=True)
class Demo(Sandboxed):
    """A running `token-broker demo`: its process, and the origins of its two listeners."""

    process: Process
    public: str
    ops: str


@contextlib.contextmanager
def running_demo() -> Iterator[Demo]:
    """A demo of its own, on free ports."""
    ports = ("--port", "0", "--ops-port", "0", "--sandbox-port", "0")
    with process("demo", *ports, "--ready-fd", "1") as told:
        where = json.loads(told.line_with('"sandbox": '))
        yield Demo(where["sandbox"], told, where["public"], where["ops"])
        assert told.end() == 0


@pytest.fixture(scope="session")
def _demo() -> Iterator[Demo]:
    with running_demo() as running:
        yield running


@pytest.fixture
def demo(_demo: Demo) -> Demo:
    """The demo of this run, its sandbox as if newly started."""
    _demo.order("reset")
    return _demo


@dataclass
class Site:
    """Somebody else's web server: one port is two sites, `origin` and `localhost`.

    It gives what stands in tests/browser_pages/ and in `pages` (path: text), under `headers`, and
    remembers what it was asked for, and with which cookies.
    """

    headers: dict[str, str] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    cookies: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def localhost(self) -> str:
        """The same pages; another site for cookies, another origin for everything."""
        return f"http://localhost:{self.port}"

    def find(self, path: str) -> bytes | None:
        if path in self.pages:
            return self.pages[path].encode()
        file = PAGES / path.removeprefix("/")
        return file.read_bytes() if file.parent == PAGES and file.is_file() else None


@contextlib.contextmanager
def site(
    pages: dict[str, str] | None = None, headers: dict[str, str] | None = None
) -> Iterator[Site]:
    """A site of its own on a free port: `site(headers={"Content-Security-Policy": "…"})`."""
    told = Site(headers or {}, pages or {})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path != "/favicon.ico":
                told.asked.append(self.path)
                told.cookies.append(self.headers.get("Cookie", ""))
            body = told.find(path)
            self.send_response(404 if body is None else 200)
            kind = TYPES.get(Path(path).suffix, "text/html; charset=utf-8")
            for name, value in {"Content-Type": kind, **told.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        told.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield told
        finally:
            server.shutdown()
            thread.join()
