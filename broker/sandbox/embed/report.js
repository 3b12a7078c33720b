/**
 * <nmi-transactions-report>: a stand-in for a vendor's embedded report.
 *
 *   import "https://vendor.example/nmi/embed/report.js";
 *   const report = document.createElement("nmi-transactions-report");
 *   report.fetchSessionId = async () => ({ sessionToken, expiresAt });
 *   document.body.append(report);
 *
 * `fetchSessionId` is asked for a session before the one in hand expires, and after one was
 * refused; `expiresAt` is in epoch milliseconds of this machine's clock. While it rejects, the
 * report says so and asks again every few seconds.
 *
 * A refused session is told by the event "unauthorized" (`detail: { token }`) before the next one
 * is asked for. The attribute `data-state` is "waiting", "live", "refused" or "unreachable".
 *
 * The session token is held in a private field and sent to the vendor's own API: never written to
 * the page, an address, storage or the console.
 */

/** @typedef {{ sessionToken: string, expiresAt: number }} VendorSession */

/**
 * @typedef {object} Transaction
 * @property {string} id
 * @property {string} at RFC 3339
 * @property {string} amount decimal
 * @property {string} currency ISO 4217
 * @property {string} card
 * @property {string} status
 */

const API = new URL("/nmi/api/v1/reports/transactions", import.meta.url);

/** Between two readings, and between two requests for a session where there is none. */
const PAUSE_MS = 3_000;

/** A session with less left than this is replaced. It is used to its end if none comes. */
const MARGIN_MS = 5_000;

/** An answer that takes longer is none. */
const PATIENCE_MS = 10_000;

const COLUMNS = ["Time", "Card", "Amount", "Status"];

const STYLE = new CSSStyleSheet();
STYLE.replaceSync(`
  :host { display: block; color: inherit; font: inherit; }
  :host([hidden]) { display: none; }
  .frame { overflow-x: auto; }
  table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
  caption { padding: 0.25rem 0; font-weight: 600; text-align: start; }
  th, td { padding: 0.4rem 0.75rem 0.4rem 0; text-align: start; white-space: nowrap; }
  th, td { border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent); }
  th:nth-child(3), td:nth-child(3) { text-align: end; }
  p { margin: 0.5rem 0; }
`);

class TransactionsReport extends HTMLElement {
  /** @type {(() => Promise<VendorSession>) | undefined} */
  #fetchSessionId;
  /** @type {VendorSession | undefined} */
  #session;
  /** The request for a session that is under way. @type {Promise<void> | undefined} */
  #asking;
  /** The token that the API refused last: it is not sent again. */
  #refusedToken = "";
  /** How many were refused since one was accepted. */
  #refusals = 0;
  /** What the table shows, so that an unchanged one is left alone. */
  #shown = "";
  /** Ends all that goes on: timers, requests, waiting. @type {AbortController | undefined} */
  #running;

  #status = element("p", { role: "status", part: "status" });
  #caption = element("caption", {}, "Transactions");
  #body = element("tbody");
  #readAt = element("p", { part: "read-at" });

  constructor() {
    super();
    const heads = COLUMNS.map((name) => element("th", { scope: "col" }, name));
    const table = element("table", { part: "table" });
    table.append(this.#caption, element("thead"), this.#body);
    table.tHead.append(element("tr"));
    table.tHead.rows[0].append(...heads);
    // A wide table scrolls by itself, also from the keyboard.
    const frame = element("div", { class: "frame", tabindex: "0", role: "group" });
    frame.setAttribute("aria-label", "Transactions");
    frame.append(table);

    const shadow = this.attachShadow({ mode: "open" });
    shadow.adoptedStyleSheets = [STYLE];
    shadow.append(this.#status, frame, this.#readAt);
  }

  get fetchSessionId() {
    return this.#fetchSessionId;
  }

  /** Another function is another user: what the last one gave is forgotten. */
  set fetchSessionId(ask) {
    this.#fetchSessionId = ask;
    if (this.isConnected) {
      this.#start();
    }
  }

  connectedCallback() {
    // Set before this module was loaded, the property hides the accessor of the class.
    if (Object.hasOwn(this, "fetchSessionId")) {
      const ask = this.fetchSessionId;
      delete this.fetchSessionId;
      this.#fetchSessionId = ask;
    }
    this.#start();
  }

  disconnectedCallback() {
    this.#stop();
  }

  #start() {
    this.#stop();
    this.#show({ merchant_id: null, rows: [] });
    this.#readAt.textContent = "";
    if (typeof this.#fetchSessionId !== "function") {
      this.#say("waiting", "This report needs a function fetchSessionId to begin.");
      return;
    }
    this.#say("waiting", "Waiting for a session.");
    this.#running = new AbortController();
    this.#run(this.#running.signal);
  }

  #stop() {
    this.#running?.abort();
    this.#running = undefined;
    this.#session = undefined;
    this.#asking = undefined;
    this.#refusedToken = "";
    this.#refusals = 0;
  }

  /** @param {AbortSignal} signal */
  async #run(signal) {
    while (!signal.aborted) {
      const milliseconds = await this.#round(signal);
      await pause(milliseconds, signal);
    }
  }

  /** One reading. @param {AbortSignal} signal @returns {Promise<number>} when to come again */
  async #round(signal) {
    const session = await this.#sessionToUse(signal);
    if (signal.aborted) {
      return 0;
    }
    if (session === undefined) {
      this.#say("waiting", "There is no session just now. Asking again every few seconds.");
      return PAUSE_MS;
    }
    const answer = await read(session, signal);
    if (signal.aborted) {
      return 0;
    }
    if (answer.status === 401) {
      return this.#refused(session);
    }
    this.#refusals = 0;
    if (answer.report === undefined) {
      this.#say("unreachable", "The report cannot be read just now. Trying again.");
      return PAUSE_MS;
    }
    this.#show(answer.report);
    this.#readAt.textContent = `Last read at ${new Date().toLocaleTimeString()}.`;
    this.#say("live", "The report is live.");
    return PAUSE_MS;
  }

  /**
   * The session in hand, for as long as it is good; a new one is asked for in time, and waited
   * for only where there is nothing to go on with.
   * @param {AbortSignal} signal
   */
  async #sessionToUse(signal) {
    if (timeLeft(this.#session) > MARGIN_MS) {
      return this.#session;
    }
    this.#asking ??= this.#ask(signal);
    if (timeLeft(this.#session) > 0) {
      return this.#session;
    }
    if (this.dataset.state !== "waiting" && this.#refusals === 0) {
      this.#say("waiting", "Waiting for a session.");
    }
    await this.#asking;
    return timeLeft(this.#session) > 0 ? this.#session : undefined;
  }

  /** Never rejects: to have no session is a state of this report, not an error. */
  async #ask(signal) {
    let given;
    try {
      given = await this.#fetchSessionId();
    } catch {
      // Why is the page's business; an error's text might hold anything.
    }
    if (signal.aborted) {
      return;
    }
    this.#asking = undefined;
    if (isSession(given) && given.sessionToken !== this.#refusedToken) {
      this.#session = given;
    }
  }

  /** @param {VendorSession} session */
  #refused({ sessionToken: token }) {
    this.#session = undefined;
    this.#refusedToken = token;
    this.#refusals += 1;
    this.#say("refused", "The session was refused. Asking for another.");
    this.dispatchEvent(new CustomEvent("unauthorized", { detail: { token } }));
    // At once the first time; a row of refusals is no reason to run in circles.
    return this.#refusals === 1 ? 0 : PAUSE_MS;
  }

  /** Only changes are written: a live region is read aloud. */
  #say(state, sentence) {
    this.dataset.state = state;
    if (this.#status.textContent !== sentence) {
      this.#status.textContent = sentence;
    }
  }

  #show(report) {
    const shown = JSON.stringify(report);
    if (shown === this.#shown) {
      return;
    }
    this.#shown = shown;
    const whose = report.merchant_id === null ? "" : ` of merchant ${report.merchant_id}`;
    this.#caption.textContent = `Transactions${whose}`;
    this.#body.replaceChildren(...report.rows.map(row));
  }
}

/**
 * One reading of the API.
 * @param {VendorSession} session
 * @param {AbortSignal} signal
 * @returns {Promise<{ status: number, report?: { merchant_id: string, rows: Transaction[] } }>}
 */
async function read({ sessionToken }, signal) {
  try {
    const response = await fetch(API, {
      headers: { Authorization: `Bearer ${sessionToken}` },
      cache: "no-store",
      credentials: "omit",
      referrerPolicy: "no-referrer",
      signal: AbortSignal.any([signal, AbortSignal.timeout(PATIENCE_MS)]),
    });
    const body = await response.json();
    const good = response.ok && Array.isArray(body?.rows) && body.rows.every((row) => row?.at);
    return { status: response.status, report: good ? body : undefined };
  } catch {
    // Offline, too slow, no JSON, or aborted: nothing was read.
    return { status: 0 };
  }
}

/** @param {VendorSession | undefined} session */
function timeLeft(session) {
  return session === undefined ? 0 : session.expiresAt - Date.now();
}

function isSession(given) {
  return typeof given?.sessionToken === "string" && Number.isFinite(given.expiresAt);
}

/** @param {Transaction} transaction */
function row({ at, card, amount, currency, status }) {
  const time = element("time", { datetime: at }, new Date(at).toLocaleTimeString());
  const cells = [time, card, `${amount} ${currency}`, status].map((content) => {
    const cell = element("td");
    cell.append(content);
    return cell;
  });
  const line = element("tr");
  line.append(...cells);
  return line;
}

function element(name, attributes = {}, text = "") {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) {
    made.setAttribute(attribute, value);
  }
  made.textContent = text;
  return made;
}

/** @param {number} milliseconds @param {AbortSignal} signal that ends it early */
function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(done, signal.aborted ? 0 : milliseconds);
    signal.addEventListener("abort", done, { once: true });
    function done() {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    }
  });
}

if (!customElements.get("nmi-transactions-report")) {
  customElements.define("nmi-transactions-report", TransactionsReport);
}
