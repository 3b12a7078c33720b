/**
 * The buttons that break things. Each says in a sentence what the client should then be seen doing.
 *
 * What is upstream is broken at the sandbox, by its control plane; what is in this browser, here:
 * the client's `fetch` is led through `around`, and the page's `Date` is replaced.
 */

import { TrueDate, byId, element } from "/demo/page.js";
import { unless } from "/demo/tools.js";

const HOUR = 3_600_000;
const UPSTREAM_SKEW = 600; // seconds: ten sessions of a minute
const SEEN = 2_000; // milliseconds: so long a session is over before its successor may come
const MINTS = ["nmi.session", "nmi-minute.session"]; // as the sandbox calls them
const CHAIN = /\/(sessions|sessions\/rotate)$/; // what mints or rotates, and nothing else

export class Breaks {
  #sandbox;
  #report;
  #toggles = new Map();
  #offline = false;
  #held = null; // while rotations are held back: {over: Promise, end: () => void}
  #session;

  /** @param {(text: string, mended: boolean) => void} report is told what a person did */
  constructor(sandbox, report) {
    this.#sandbox = sandbox;
    this.#report = report;
    this.#build();
    byId("mend").addEventListener("click", () => this.mend());
    this.#readFaults();
  }

  /** The same `fetch`, as long as nothing is broken. */
  around(fetch) {
    return async (url, options) => {
      if (this.#offline) {
        throw new TypeError("Failed to fetch"); // in a browser's own words
      }
      if (this.#held && CHAIN.test(new URL(url, location).pathname)) {
        await unless(options.signal, this.#held.over); // as `fetch` does, where it comes first
      }
      return fetch(url, options);
    };
  }

  listenTo(client) {
    const take = ({ detail }) => {
      this.#session = detail;
    };
    client.addEventListener("session", take);
    client.addEventListener("rotated", take);
  }

  /** As if nothing had been pressed, here and at the sandbox. */
  async mend() {
    for (const [words] of this.#toggles) {
      await this.#set(words, false);
    }
    await this.#order("faults", "DELETE");
    await this.#order("clock", "POST", { skew_seconds: 0 });
  }

  #build() {
    this.#toggle(
      "Upstream down",
      "NMI answers 503. The report goes on with the session it has while the client tries " +
        "again, ever more slowly; once this is mended, it rotates by itself.",
      (on) => this.#fail(on),
    );
    this.#button(
      "Revoke the session",
      "NMI forgets its sessions. The report’s next read is refused (401), the client gets " +
        "another session at once, and the report goes on.",
      () => this.#order("revoke", "POST", { nmi: true }),
    );
    this.#toggle(
      "Let it expire",
      "Nothing that rotates gets through until the session is over: “expiring”, then a gap in " +
        "which the report is given nothing, then a successor.",
      (on) => this.#hold(on),
    );
    this.#toggle(
      "Clock +1 h",
      "This page’s Date jumps an hour ahead. The countdown does not: the client notices, asks the " +
        "broker once how much is left, and carries on.",
      (on) => this.#shift(on, HOUR, "Clock −1 h"),
    );
    this.#toggle(
      "Clock −1 h",
      "The same an hour back: nothing that is over is taken for fresh.",
      (on) => this.#shift(on, -HOUR, "Clock +1 h"),
    );
    this.#toggle(
      "Upstream clock +10 min",
      "NMI’s clock jumps: what it issued is over at once, the report is refused, and the next " +
        "session is dated ten minutes ahead. The countdown still shows a minute.",
      (on) => this.#order("clock", "POST", { skew_seconds: on ? UPSTREAM_SKEW : 0 }),
    );
    this.#toggle(
      "Offline",
      "The client’s requests fail. It keeps what it has, says “network”, and rotates the moment " +
        "it is online again.",
      (on) => this.#cut(on),
    );
  }

  /** One that is over at once. */
  #button(words, see, act) {
    const button = place(words, see);
    button.addEventListener("click", () => this.#act(words, false, act));
  }

  /** One that stays pressed. */
  #toggle(words, see, act) {
    const button = place(words, see);
    button.ariaPressed = "false";
    button.addEventListener("click", () => this.#set(words, button.ariaPressed !== "true"));
    this.#toggles.set(words, { button, act });
  }

  /** Presses or releases it, unless it is so already. */
  async #set(words, on) {
    const { button, act } = this.#toggles.get(words);
    if ((button.ariaPressed === "true") !== on) {
      button.ariaPressed = String(on);
      await this.#act(words, !on, () => act(on));
    }
  }

  async #act(words, mended, act) {
    this.#report(mended ? `${words}: over` : words, mended);
    try {
      await act();
    } catch {
      this.#report(`${words}: the sandbox did not take the order`, mended);
    }
  }

  async #order(what, method, body) {
    const response = await fetch(`${this.#sandbox}/_sandbox/${what}`, {
      method,
      body: body && JSON.stringify(body),
    });
    if (!response.ok) {
      throw new Error(`the sandbox answered ${response.status}`);
    }
    return response;
  }

  async #fail(on) {
    if (!on) {
      await this.#order("faults", "DELETE");
      return;
    }
    for (const operation of MINTS) {
      await this.#order("faults", "POST", { operation, kind: "status", code: 503 });
    }
  }

  /** Faults outlive this page: another tab may have set some, or this one before a reload. */
  async #readFaults() {
    const { faults } = await (await this.#order("faults", "GET")).json();
    if (faults.some((fault) => MINTS.includes(fault.operation))) {
      this.#toggles.get("Upstream down").button.ariaPressed = "true";
    }
  }

  #hold(on) {
    this.#held?.end();
    this.#held = null;
    if (on) {
      const { promise: over, resolve: end } = Promise.withResolvers();
      this.#held = { over, end };
      this.#endHoldAfter(this.#session);
    }
  }

  /** By itself: once the session has been over for a moment, or if another tab brought the next. */
  #endHoldAfter(session) {
    const held = this.#held;
    const timer = setInterval(() => {
      if (this.#held !== held) {
        clearInterval(timer);
      } else if (this.#session !== session || !session || session.expires_in <= 0) {
        clearInterval(timer);
        setTimeout(() => this.#held === held && this.#set("Let it expire", false), SEEN);
      }
    }, 200);
  }

  async #shift(on, milliseconds, opposite) {
    if (on) {
      await this.#set(opposite, false);
    }
    globalThis.Date = on ? shifted(milliseconds) : TrueDate;
  }

  #cut(on) {
    this.#offline = on;
    window.dispatchEvent(new Event(on ? "offline" : "online"));
  }
}

/** A button in the list, with the sentence that belongs to it. */
function place(words, see) {
  const list = byId("breaks");
  const id = `see-${list.childElementCount}`;
  const attributes = { class: "button", type: "button", "aria-describedby": id };
  const button = element("button", attributes, words);
  list.append(element("li", {}, button, element("p", { class: "hint", id }, see)));
  return button;
}

/** A Date that is wrong by so much, as on a machine whose clock was set. */
function shifted(milliseconds) {
  const now = () => TrueDate.now() + milliseconds;
  return new Proxy(TrueDate, {
    construct: (date, parts) => new date(...(parts.length > 0 ? parts : [now()])),
    get: (date, name) => (name === "now" ? now : date[name]),
  });
}
