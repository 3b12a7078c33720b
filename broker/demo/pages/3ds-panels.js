/**
 * The panels of the 3-D Secure page: the steps as they go by, and what came of them. They are told
 * what happened and know no way to ask.
 */

import { byId, element } from "/demo/page.js";
import { SessionError } from "/v1/client.js";

const DOING = {
  session: "The broker mints a session",
  device: "The page tells about this browser",
  method: "The bank looks at this device",
  challenge: "The bank asks you",
  hosted: "Checkout.com’s page has the word",
  complete: "The authentication is completed",
  result: "Done",
};

/** The steps, one of which is the current one. */
export class Steps {
  constructor() {
    this.all = [...byId("steps").children];
    this.current = null;
    this.timer = 0;
  }

  /** All to come again; those of another profile go out of sight. */
  reset(profile) {
    this.#leave();
    this.current = null;
    for (const item of this.all) {
      item.hidden = "of" in item.dataset && item.dataset.of !== profile;
      this.#mark(item, "to-come", "to come");
    }
    byId("now").textContent = "Choose a card, then authenticate.";
    byId("clock").textContent = "";
  }

  begin(step) {
    const item = this.all.find((one) => one.dataset.step === step);
    if (item === this.current) {
      return; // once more the same
    }
    this.#pass(item);
    this.current = item;
    this.since = performance.now();
    this.first ??= this.since;
    item.setAttribute("aria-current", "step");
    this.recover();
    this.timer = setInterval(() => this.#count(), 100);
  }

  /** The current step cannot go on for the moment. */
  hinder(words) {
    if (!this.current) {
      return;
    }
    this.#mark(this.current, "warn", words);
    byId("now").textContent = `${DOING[this.current.dataset.step]}: ${words}.`;
  }

  recover() {
    if (this.current && this.current.dataset.state !== "current") {
      this.#mark(this.current, "current", "under way");
      const doing = DOING[this.current.dataset.step];
      byId("now").textContent = `${this.#number(this.current)}: ${doing}.`;
    }
  }

  /** result: `tone`, `title`, `words`; of a step that broke off, the end stands there. */
  finish({ tone, title, words, brokeOff }, took) {
    const last = this.all.at(-1);
    if (brokeOff) {
      this.#leave();
      this.#mark(this.current, tone, title.toLowerCase());
      for (const item of this.all.slice(this.all.indexOf(this.current) + 1)) {
        this.#mark(item, "skipped", "not reached");
      }
    } else {
      this.#pass(last);
      this.#mark(last, tone, title.toLowerCase());
    }
    this.current = null;
    byId("now").textContent = `${title}. ${words}`;
    byId("clock").textContent = seconds(took);
  }

  /** What lies between the current step and this one was not needed. */
  #pass(item) {
    const shown = this.all.filter((one) => !one.hidden);
    const [from, to] = [shown.indexOf(this.current), shown.indexOf(item)];
    if (this.current) {
      const took = performance.now() - this.since;
      this.#leave();
      this.#mark(this.current, "good", `done in ${seconds(took)}`);
    }
    for (const skipped of shown.slice(from + 1, to)) {
      this.#mark(skipped, "skipped", "not needed");
    }
  }

  #leave() {
    clearInterval(this.timer);
    this.current?.removeAttribute("aria-current");
    if (!this.current) {
      this.first = undefined;
    }
  }

  #mark(item, state, words) {
    const tag = item.querySelector("[data-state]");
    item.dataset.state = state;
    tag.className = `tag ${state === "current" ? "accent" : state}`;
    tag.textContent = words;
  }

  #number(item) {
    const shown = this.all.filter((one) => !one.hidden);
    return `Step ${shown.indexOf(item) + 1} of ${shown.length}`;
  }

  #count() {
    byId("clock").textContent = `${((performance.now() - this.first) / 1000).toFixed(1)} s`;
  }
}

/** What each status means to the person, and what the shop does with it. */
const STATUSES = {
  approved: [
    "good",
    "Approved",
    "Your bank has confirmed that it is you. The shop can take the payment.",
  ],
  attempted: [
    "good",
    "Attempted",
    "Your bank takes no part, the card’s scheme answers for it. The shop can take the payment.",
  ],
  declined: ["bad", "Declined", "Your bank has not confirmed that it is you. Nothing is charged."],
  rejected: ["bad", "Rejected", "Your bank wants no such payment. Nothing is charged."],
  unavailable: [
    "warn",
    "Unavailable",
    "Your bank could not be asked. The shop decides whether it takes that risk.",
  ],
  challenge_abandoned: ["warn", "Cancelled", "You cancelled at your bank. Nothing is charged."],
  expired: ["warn", "Timed out", "Your bank waited too long for an answer. Nothing is charged."],
};

const ERRORS = {
  expired: ["warn", "Session over", "The session has ended. Nothing is charged; begin anew."],
  auth: ["bad", "Signed out", "The broker does not know you any more. Sign in again."],
  permission: ["bad", "Not allowed", "The broker does not give you this."],
  network: ["bad", "No network", "The broker cannot be reached. Nothing is charged; try again."],
  server: ["bad", "Failed", "Something failed on the way. Nothing is charged; try again."],
};

/** Shows how it ended; gives it as `{tone, title, words, brokeOff}`. */
export function showResult({ state, error, took }) {
  const known = error ? ended(error) : STATUSES[state.status];
  const [tone, title, words] = known ?? ["warn", state.status, "A status that this page does not know."];
  const tag = byId("result-status");
  tag.className = `tag ${tone}`;
  tag.textContent = title;
  byId("result-words").className = `notice ${tone}`;
  byId("result-words").textContent = words;
  const facts = error ? factsOfError(error) : factsOf(state);
  const rows = [...facts, ["Time taken", seconds(took)]].filter(([, value]) => value !== undefined);
  byId("facts").replaceChildren(
    ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
  );
  byId("answer").textContent = JSON.stringify(state ?? { problem: error.problem }, null, 2);
  byId("answer").parentElement.hidden = !state;
  return { tone, title, words, brokeOff: Boolean(error) };
}

function ended(error) {
  if (error instanceof SessionError) {
    return ERRORS[error.kind] ?? ERRORS.server;
  }
  switch (error.name) {
    case "Cancelled":
      return ["warn", "Cancelled", "You left before your bank had an answer. Nothing is charged."];
    case "AbortError":
      return ["warn", "Stopped", "You stopped it. Nothing is charged."];
    case "TimeoutError":
      return ["warn", "Timed out", "The session’s time is over. Nothing is charged; begin anew."];
    default:
      console.error(error); // a defect of this page, and nothing with a secret in it
      return ERRORS.server;
  }
}

function factsOf(state) {
  return [
    ["Status", state.status],
    ["Reason", state.status_reason],
    ["Your bank says", state.cardholder_info],
    ["Challenged", state.challenged ? "yes" : "no"],
    ["Scheme, protocol", `${state.scheme ?? "–"}, ${state.protocol_version ?? "–"}`],
    ["3DS server’s transaction", state.transaction_id],
    ["ACS’s transaction", state.acs?.transaction_id],
    ["Liability, ECI, cryptogram", "for the shop’s server only"],
  ];
}

function factsOfError(error) {
  return [
    ["Kind", error.kind ?? error.name],
    ["Problem", error.problem],
    ["Request", error.details?.instance?.split(":").pop()],
  ];
}

function seconds(milliseconds) {
  const long = milliseconds >= 950;
  return long ? `${(milliseconds / 1000).toFixed(1)} s` : `${Math.round(milliseconds)} ms`;
}
