"""The demo's report page as tests see it: its parts by name, and what can be measured of it."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import Locator, Page, expect

from tests.browsing import Contexts, Demo

SOON = 15_000  # milliseconds: the report reads each three seconds, this many times over
FAILED = "Failed to load resource"  # Chromium's line for each answer of 400 and more

VIOLATIONS = """
globalThis.violations = [];
addEventListener("securitypolicyviolation", (event) =>
  violations.push(`${event.violatedDirective} ${event.blockedURI}`));
globalThis.shifted = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) shifted += entry.value;
}).observe({ type: "layout-shift", buffered: true });
"""


def page_of(context: Contexts, *, expected: str = "^$", **options: Any) -> Page:
    made = context(expected=[expected], **options)
    made.add_init_script(VIOLATIONS)
    return made.new_page()


def sign_in(page: Page, demo: Demo, who: str = "Ada", query: str = "") -> Page:
    page.goto(f"{demo.public}/{query}")
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.get_by_role("button", name=who).click()
    expect(page.locator("#board")).to_be_visible()
    return page


def report(page: Page) -> Locator:
    return page.locator("nmi-transactions-report")


def said(page: Page, text: str) -> Locator:
    """Lines of the log of what the client reported."""
    return page.locator("#story li").filter(has_text=re.compile(text))


def called(page: Page, text: str) -> Locator:
    """Lines of the log of calls."""
    return page.locator("#wire li").filter(has_text=re.compile(text))


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def fingerprint(page: Page) -> str:
    shown = page.locator("#fingerprint")
    expect(shown).to_have_text(re.compile("^[0-9a-f]{8}$"))
    return shown.inner_text()


def left(page: Page) -> int:
    """Seconds of the countdown."""
    minutes, seconds = page.locator("#left").inner_text().split(":")
    return int(minutes) * 60 + int(seconds)


def later(page: Page, seconds: int) -> None:
    """So much time has passed for the page; timers that came due in it run once, as after sleep."""
    page.clock.fast_forward(seconds * 1000)


def mints(demo: Demo) -> int:
    calls = demo.calls()
    return int(calls["nmi.session"] + calls["nmi-minute.session"])


EVERYTHING = """() => {
  const inner = [...document.querySelectorAll("*")].map((node) => node.shadowRoot?.innerHTML ?? "");
  const kept = [localStorage, sessionStorage, history.state, document.cookie, location.href];
  return document.documentElement.outerHTML + inner.join() + JSON.stringify(kept);
}"""


FOCUS = """() => {
  let node = document.activeElement;
  while (node.shadowRoot?.activeElement) node = node.shadowRoot.activeElement;
  const style = getComputedStyle(node);
  const ring = style.outlineStyle === "auto" ? 2 : parseFloat(style.outlineWidth);
  const words = node.innerText || node.getAttribute("aria-label") || "";
  return [words, node === document.body ? 9 : ring];
}"""


CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const parent = (node) => node.parentElement ?? node.getRootNode().host;
  const behind = (node) => {
    for (; node; node = parent(node)) {
      const colour = rgba(getComputedStyle(node).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255];
  };
  const light = ([...rgb]) => rgb.slice(0, 3).map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const ratio = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [];
  const look = (root) => {
    for (const node of root.querySelectorAll("*")) {
      if (node.shadowRoot) look(node.shadowRoot);
      const style = getComputedStyle(node);
      if (!node.checkVisibility() || node.closest("svg")) continue;
      if ([...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim())) {
        const got = ratio(rgba(style.color), behind(node));
        if (got < 4.5) found.push(`${node.textContent.trim().slice(0, 40)}: ${got.toFixed(2)}`);
      }
      if (node.matches(".button, input") && node.matches(":not(.primary)")) {
        const got = ratio(rgba(style.borderTopColor), behind(parent(node)));
        if (got < 3) found.push(`border of ${node.textContent || node.name}: ${got.toFixed(2)}`);
      }
    }
  };
  look(document);
  const bars = [...document.querySelectorAll("svg .name, svg .tick, svg .sign")].map((node) => {
    const bar = document.querySelector("svg rect.used");
    const under = node.matches(".name") ? rgba(getComputedStyle(bar).fill) : behind(node);
    return [node.textContent, ratio(rgba(getComputedStyle(node).fill), under)];
  });
  return [...found, ...bars.filter(([, got]) => got < 4.5).map(String)];
}"""


SMALL = """() => [...document.querySelectorAll("button, .choice, nav a, .second")]
  .filter((node) => node.checkVisibility())
  .map((node) => [node.textContent.trim(), node.getBoundingClientRect()])
  .filter(([, box]) => box.height < 24 || box.width < 24).map(([text]) => text)"""


STRUCTURE = """() => {
  const found = [];
  const all = (selector) => [...document.querySelectorAll(selector)];
  const levels = all("h1, h2, h3, h4").filter((node) => node.checkVisibility())
    .map((node) => Number(node.localName[1]));
  if (levels.filter((level) => level === 1).length !== 1) found.push("not one h1");
  levels.forEach((level, index) => {
    if (level > (levels[index - 1] ?? 0) + 1) found.push(`h${level} comes too early`);
  });
  const ids = all("[id]").map((node) => node.id);
  ids.filter((id, index) => ids.indexOf(id) !== index).forEach((id) => found.push(`twice: ${id}`));
  for (const name of ["aria-labelledby", "aria-describedby", "for"]) {
    for (const node of all(`[${name}]`)) {
      for (const id of node.getAttribute(name).split(" ")) {
        if (!document.getElementById(id)) found.push(`${name} names no ${id}`);
      }
    }
  }
  for (const node of all("button, a, input, select")) {
    const words = node.textContent || node.ariaLabel || node.labels?.[0]?.textContent;
    if (!words?.trim()) found.push(`no name: ${node.outerHTML}`);
  }
  if (!document.documentElement.lang || !document.title) found.push("no language, or no title");
  const inline = all("[style]:not(#life), [onclick], script:not([src])");
  if (inline.length) found.push("something inline");
  return found;
}"""
