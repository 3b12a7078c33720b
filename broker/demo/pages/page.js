/**
 * Small things that the panels share: elements, times, fingerprints, and the lists that grow.
 *
 * Text goes in as text (`textContent`), never as markup: the pages' policy has Trusted Types on,
 * and no policy that could make any.
 */

/**
 * @param {string} name
 * @param {Record<string, string>} [attributes]
 * @param {...(Node | string)} children
 */
export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same for drawings. */
export function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

/** @returns {HTMLElement} */
export function byId(id) {
  return document.getElementById(id);
}

// Taken before anything can shift it: what is written down here is the true time of day, also
// while the page's `Date` is a wrong one.
export const TrueDate = Date;
const CLOCK = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

/** For people: now, or that moment of performance.now(), by the clock that nobody can set. */
export function timeOfDay(at = performance.now()) {
  return new TrueDate(performance.timeOrigin + at);
}

/** 16:05:03, as people write it here */
export function clockText(date) {
  return CLOCK.format(date);
}

/** 1:07 */
export function minutes(seconds) {
  const whole = Math.max(0, Math.ceil(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** What may be shown of a token: eight digits of its SHA-256, which lead nowhere. */
export async function fingerprintOf(token) {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(token));
  const bytes = [...new Uint8Array(digest).subarray(0, 4)];
  return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A list with the newest line on top, and an end; what is said again is counted. */
export class Log {
  /** @param {HTMLElement} place */
  constructor(place, most = 120) {
    this.list = place.appendChild(element("ol"));
    this.most = most;
  }

  /** @param {string} tag @param {string} text @param {"good"|"warn"|"bad"|"accent"|""} [tone] */
  add(tag, text, tone = "") {
    const said = `${tag} ${text}`;
    if (said === this.last?.said) {
      this.last.times += 1;
      this.last.line.lastElementChild.textContent = `${text} (${this.last.times} times)`;
      return this.last.line;
    }
    const now = timeOfDay();
    const line = element(
      "li",
      {},
      element("time", { datetime: now.toISOString() }, clockText(now)),
      element("span", { class: `tag ${tone}`.trim() }, tag),
      element("span", {}, text),
    );
    this.list.prepend(line);
    while (this.list.childElementCount > this.most) {
      this.list.lastElementChild.remove();
    }
    this.last = { said, line, times: 1 };
    return line;
  }
}
