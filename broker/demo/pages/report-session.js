/**
 * The panel that counts down what is left of the session, and until its successor.
 *
 * It asks the session each time and keeps no clock of its own: `expires_in` and `rotate_in` are
 * counted by the client, which knows when this machine slept or its clock was set.
 */

import { byId, clockText, fingerprintOf, minutes } from "/demo/page.js";

const TICK = 250; // milliseconds: so that no second is skipped

export class SessionPanel {
  #session;
  #life = 1;
  #seen = 0;
  #failed = false;
  #closed = false;
  #parts = Object.fromEntries(
    ["state", "left", "life", "rotates", "fingerprint", "seen", "clock"]
      .map((id) => [id, byId(id)]),
  );

  constructor() {
    setInterval(() => this.#show(), TICK);
  }

  /** Before another client begins. */
  clear() {
    this.#session = undefined;
    this.#failed = false;
    this.#closed = false;
    this.#seen = 0;
    write(this.#parts.fingerprint, "–");
    this.#show();
  }

  /** The client is closed, and no other has begun. */
  close() {
    this.#session = undefined;
    this.#closed = true;
    this.#show();
  }

  listenTo(client) {
    client.addEventListener("session", (event) => this.#take(event.detail));
    client.addEventListener("rotated", (event) => this.#take(event.detail));
    client.addEventListener("error", () => {
      this.#failed = true;
    });
  }

  async #take(session) {
    this.#session = session;
    this.#life = session.expires_in;
    this.#failed = false;
    this.#seen += 1;
    this.#show();
    write(this.#parts.fingerprint, await fingerprintOf(session.session_token));
  }

  #show() {
    const left = this.#session?.expires_in ?? 0;
    const until = this.#session?.rotate_in;
    const [state, tone] = this.#state(left);
    write(this.#parts.state, state);
    this.#parts.state.className = `tag ${tone}`;
    write(this.#parts.left, this.#session ? minutes(left) : "–:––");
    write(this.#parts.rotates, this.#rotation(left, until));
    write(this.#parts.seen, String(this.#seen));
    write(this.#parts.clock, clockText(new Date()));
    const { style } = this.#parts.life;
    style.setProperty("--left", String(share(left / this.#life)));
    style.setProperty("--mark", String(share((left - (until ?? left)) / this.#life)));
  }

  #state(left) {
    if (!this.#session) {
      return this.#failed || this.#closed ? ["no session", "bad"] : ["starting", ""];
    }
    if (left <= 0) {
      return ["over", "bad"];
    }
    return this.#failed ? ["in use, retrying", "warn"] : ["in use", "good"];
  }

  #rotation(left, until) {
    if (this.#closed) {
      return "The client is closed.";
    }
    if (!this.#session) {
      return this.#failed ? "The client tries again." : "The first session is on its way.";
    }
    if (left <= 0) {
      return "Nothing is given out until the next one.";
    }
    return until > 0 ? `Its successor is due in ${minutes(until)}` : "Its successor is due now";
  }
}

function share(value) {
  return Math.min(1, Math.max(0, value));
}

/** Only what is different: a page that writes the same text four times a second repaints it. */
function write(node, text) {
  if (node.textContent !== text) {
    node.textContent = text;
  }
}
