/**
 * The drawing of a client's life: a bar for each session, from its arrival to its end, solid for
 * as long as it was the one in use; and signs for errors and for what a person broke.
 *
 * It is drawn anew each second, at the width it has, so that its letters keep their size. Looks
 * are in report.css. Times are milliseconds of performance.now().
 */

import { byId, clockText, drawn, timeOfDay } from "/demo/page.js";

const HEIGHT = 132;
const LANES = [8, 40]; // sessions overlap, so neighbours lie on two lanes
const BAR = 26;
const SIGNS = 88; // the baseline of the signs
const AXIS = 102;
const LEAST = 180_000; // the drawing begins with three minutes, and grows
const MOST = 600_000; // until it shows ten,
const LIVES = 2.5; // or for long sessions this many of their lives
const LABEL = 68; // pixels that a name or a time needs
const STEPS = [30, 60, 120, 300, 600, 1200].map((seconds) => seconds * 1000);
const FACES = { error: "✕", broken: "▲", mended: "△" };

export class Timeline {
  #sessions = [];
  #signs = [];
  #began = performance.now();
  #span = byId("span");
  #svg = drawn("svg", { role: "img", height: HEIGHT });

  /** @param {HTMLElement} place */
  constructor(place) {
    place.append(this.#svg);
    new ResizeObserver(() => this.#draw()).observe(place);
    setInterval(() => document.hidden || this.#draw(), 1000);
  }

  /** Another client: what the last one held is no longer in use. */
  begin() {
    this.#close();
  }

  /** A session arrived; `name` of what is returned may be set later. */
  session(session) {
    this.#close();
    const now = performance.now();
    const lane = this.#sessions.length % LANES.length;
    const bar = { session, from: now, life: session.expires_in * 1000, lane, name: "" };
    this.#sessions.push(bar);
    queueMicrotask(() => this.#draw());
    return bar;
  }

  /** @param {"error" | "broken" | "mended"} kind */
  mark(kind, text) {
    this.#signs.push({ kind, text, at: performance.now() });
    this.#draw();
  }

  #close() {
    const open = this.#sessions.at(-1);
    if (open?.session) {
      open.replaced = performance.now();
      open.until = endOf(open);
      open.session = undefined; // and with it goes the token
    }
  }

  #draw() {
    const width = this.#svg.parentElement.clientWidth;
    if (width === 0) {
      return;
    }
    const now = performance.now();
    const [start, end] = this.#window(now);
    const x = (at) => ((at - start) / (end - start)) * width;
    this.#forget(start);
    this.#span.textContent = `the last ${Math.round(this.#past() / 60_000)} minutes`;
    this.#svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.#svg.setAttribute("width", String(width));
    this.#svg.replaceChildren(
      drawn("title", {}, this.#inWords()),
      ...axis(start, end, x, width),
      ...this.#gaps(now, x),
      ...this.#sessions.flatMap((bar) => drawBar(bar, now, x)),
      line("now", x(now)),
      ...this.#signs.map((sign) => drawSign(sign, x)),
    );
  }

  /** It begins full, and then it moves. */
  #window(now) {
    const start = Math.max(this.#began, now - this.#past());
    return [start - 2000, Math.max(start + LEAST, now + 1.15 * this.#life())];
  }

  #past() {
    return Math.max(MOST, LIVES * this.#life());
  }

  #life() {
    return this.#sessions.at(-1)?.life ?? 60_000;
  }

  #forget(start) {
    this.#sessions = this.#sessions.filter((bar) => bar.session || bar.until > start);
    this.#signs = this.#signs.filter((sign) => sign.at > start);
  }

  /** Where no session was in force between one and the next. */
  #gaps(now, x) {
    return this.#sessions.flatMap((bar, index) => {
      const from = Math.min(endOf(bar), bar.replaced ?? Infinity);
      const to = this.#sessions[index + 1]?.from ?? now;
      return to - from > 500 ? [block("gap", x(from), x(to), LANES[0], LANES[1] + BAR)] : [];
    });
  }

  #inWords() {
    const errors = this.#signs.filter((sign) => sign.kind === "error").length;
    const { length } = this.#sessions;
    return `${length} ${length === 1 ? "session" : "sessions"} and ${errors} ${
      errors === 1 ? "error" : "errors"
    } since ${clockText(timeOfDay(this.#window(performance.now())[0]))}`;
  }
}

/** For the one in use the client is asked, which may have learnt better since. */
function endOf(bar) {
  return bar.until ?? performance.now() + bar.session.expires_in * 1000;
}

function drawBar(bar, now, x) {
  const until = endOf(bar);
  const used = Math.min(bar.replaced ?? now, until);
  const [top, bottom] = [LANES[bar.lane], LANES[bar.lane] + BAR];
  const parts = [
    block("rest", x(bar.from), x(until), top, bottom),
    block(bar.session ? "used current" : "used", x(bar.from), x(used), top, bottom),
  ];
  if (bar.session?.rotate_in > 0) {
    const due = x(now + bar.session.rotate_in * 1000);
    parts.push(drawn("line", { class: "due", x1: due, x2: due, y1: top - 3, y2: bottom + 3 }));
  }
  if (x(used) - x(bar.from) > LABEL + 8) {
    const place = { class: "name", x: Math.max(0, x(bar.from)) + 8, y: top + BAR / 2 + 4 };
    parts.push(drawn("text", place, bar.name));
  }
  return parts;
}

function drawSign({ kind, text, at }, x) {
  const attributes = { class: `sign ${kind}`, x: x(at), y: SIGNS, "text-anchor": "middle" };
  return drawn("text", attributes, drawn("title", {}, text), FACES[kind]);
}

function axis(start, end, x, width) {
  const enough = (step) => x(start + step) - x(start) >= LABEL + 12;
  const step = STEPS.find(enough) ?? STEPS.at(-1);
  const midnight = timeOfDay().setHours(0, 0, 0, 0) - performance.timeOrigin;
  const parts = [drawn("line", { class: "axis", x1: 0, x2: width, y1: AXIS, y2: AXIS })];
  for (let at = start + step - ((start - midnight) % step); at < end; at += step) {
    const place = x(at);
    parts.push(drawn("line", { class: "axis", x1: place, x2: place, y1: AXIS, y2: AXIS + 4 }));
    if (place > LABEL / 2 && place < width - LABEL / 2) {
      const label = { class: "tick", x: place, y: AXIS + 20, "text-anchor": "middle" };
      parts.push(drawn("text", label, clockText(timeOfDay(at))));
    }
  }
  return parts;
}

function line(kind, x) {
  return drawn("line", { class: kind, x1: x, x2: x, y1: 0, y2: AXIS });
}

function block(kind, from, to, top, bottom) {
  const width = Math.max(0, to - from);
  return drawn("rect", { class: kind, x: from, y: top, width, height: bottom - top, rx: 5 });
}
