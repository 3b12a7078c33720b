/**
 * Who called whom: what the client asks of the broker, as it does it, and what the sandbox counted.
 *
 * Method, path and status only. Headers and bodies carry tokens and handles, and stay unread.
 */

import { byId, element, Log } from "/demo/page.js";

const EACH = 1000; // milliseconds between two looks at the sandbox's counters

export class Calls {
  #sandbox;
  #counts;
  #rows = new Map();
  #table = byId("calls");
  #state = byId("calls-state");
  #log = new Log(byId("wire"));
  #latest = {};

  constructor(sandbox) {
    this.#sandbox = sandbox;
    this.#look();
    setInterval(() => document.hidden || this.#look(), EACH);
  }

  /** The same `fetch`, with a line for each call that a client makes through it. */
  watching(fetch) {
    return async (url, options) => {
      const asked = performance.now();
      const told = (outcome, tone) => {
        const took = Math.round(performance.now() - asked);
        const what = `${options.method ?? "GET"} ${new URL(url, location).pathname}`;
        this.#latest = {};
        this.#log.add("to the broker", `${what} · ${outcome}, ${took}\u00a0ms`, tone);
      };
      try {
        const response = await fetch(url, options);
        told(response.status, response.ok ? "accent" : "bad");
        return response;
      } catch (error) {
        told(error.name === "AbortError" ? "given up" : "no answer", "bad");
        throw error;
      }
    };
  }

  async #look() {
    let counts;
    try {
      counts = await (await fetch(`${this.#sandbox}/_sandbox/calls`)).json();
    } catch {
      this.#say("the sandbox does not answer");
      return;
    }
    this.#say("the sandbox is asked each second");
    const before = this.#counts;
    this.#counts = counts;
    const more = new Map();
    for (const [operation, count] of Object.entries(counts)) {
      const grown = count - (before?.[operation] ?? 0);
      if (count > 0 && (grown !== 0 || !this.#rows.has(operation))) {
        this.#write(operation, count, before !== undefined);
      }
      if (before !== undefined && grown > 0) {
        more.set(operation, grown);
      }
    }
    this.#note(more);
  }

  /** One line for each change; a line that says the same as the one above it is added to it. */
  #note(more) {
    const key = [...more.keys()].join();
    if (key === "") {
      return;
    }
    if (this.#latest.key === key) {
      for (const [operation, before] of this.#latest.more) {
        more.set(operation, before + more.get(operation));
      }
    }
    const words = [...more].map(([operation, grown]) => `${operation} +${grown}`).join(", ");
    if (this.#latest.key === key) {
      this.#latest.line.lastElementChild.textContent = words;
    } else {
      this.#latest.line = this.#log.add("at the sandbox", words);
    }
    Object.assign(this.#latest, { key, more });
  }

  #write(operation, count, flash) {
    let row = this.#rows.get(operation);
    if (!row) {
      const name = element("th", { scope: "row", class: "mono" }, operation);
      row = element("tr", {}, name, element("td", { class: "number" }));
      this.#rows.set(operation, row);
      this.#table.append(row);
    }
    row.lastElementChild.textContent = String(count);
    row.classList.remove("changed");
    if (flash) {
      void row.offsetWidth; // or the browser sees no change, and does not begin the flash anew
      row.classList.add("changed");
    }
  }

  #say(text) {
    if (this.#state.textContent !== text) {
      this.#state.textContent = text;
    }
  }
}
