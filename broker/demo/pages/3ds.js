/**
 * The 3-D Secure page: what the person chooses, sees and presses. The authentication itself is in
 * `3ds-flow.js`, the places for the issuer's pages are in `3ds-views.js`; this shows what they do.
 *
 * The session's secret stays in the client. Here only its fingerprint is asked for and shown.
 */

import { createSessionClient } from "/v1/client.js";
import { authenticate } from "/demo/3ds-flow.js";
import { Steps, showResult } from "/demo/3ds-panels.js";
import { createViews } from "/demo/3ds-views.js";
import { redirectToLogin, signIn } from "/demo/login.js";
import { Log, byId, fingerprintOf } from "/demo/page.js";

const { sandbox } = await (await fetch("/demo.json")).json();

// The sandbox also plays the shop's server: it takes the issuer's posts, and tells this page.
const RETURN_URL = `${sandbox}/shop/3ds-return?to=${encodeURIComponent(location.origin)}`;

const log = new Log(byId("log"));
const steps = new Steps();
const views = createViews(byId("issuer"), sandbox);
let current = null; // the authentication under way: {client, controller, id}

const user = await signIn(sandbox).catch((error) => {
  byId("starting").textContent = "The sandbox does not answer. Load this page again once it runs.";
  throw error;
});
byId("starting").hidden = true;
byId("sign-in").addEventListener("click", () => redirectToLogin(sandbox));
if (user === null) {
  byId("entrance").hidden = false;
} else {
  open();
}

function open() {
  byId("name").textContent = user.name;
  byId("who").hidden = byId("board").hidden = false;
  byId("sign-out").addEventListener("click", () => {
    current?.controller.abort();
    user.signOut();
  });
  byId("order").addEventListener("change", () => steps.reset(choice().profile));
  byId("order").addEventListener("submit", (event) => {
    event.preventDefault();
    run(choice());
  });
  byId("stop").addEventListener("click", () => current?.controller.abort());
  byId("lapse").addEventListener("click", lapse);
  steps.reset(choice().profile);
}

function choice() {
  const data = new FormData(byId("order"));
  const token = data.get("card") + (data.get("method") ? "_method" : "");
  return { profile: data.get("profile"), token };
}

/** One authentication from the button to the result. */
async function run({ profile, token }) {
  const controller = new AbortController();
  // One client for each: a session is for one payment, and ends with it.
  const client = createSessionClient({
    profile,
    authorize: ({ renew }) => (renew ? user.renew() : user.bearer()),
    parameters: { source: { type: "token", token } },
  });
  client.addEventListener("error", ({ detail }) => tell("hindered", { error: detail }));
  current = { client, controller };
  byId("result").hidden = true;
  steps.reset(profile);
  busy(true);
  const began = performance.now();
  const end = { state: null, error: null };
  try {
    const { signal } = controller;
    end.state = await authenticate({ client, views, returnUrl: RETURN_URL, tell, signal });
  } catch (error) {
    end.error = error;
  }
  if (end.error) {
    // Nobody goes on with it, so its handle shall die on the server, too: now or with its time.
    client.end().catch(() => {});
  } else {
    client.close();
  }
  current = null;
  busy(false);
  finish(end, performance.now() - began);
}

function finish({ state, error }, took) {
  const result = showResult({ state, error, took });
  steps.finish(result, took);
  log.add("page", result.words, result.tone);
  byId("result").hidden = false;
  byId("result-title").focus();
}

/** While an authentication is under way nothing else can be chosen, and no second one begun. */
function busy(is) {
  byId("choices").disabled = byId("start").disabled = is;
  byId("stop").disabled = !is;
  if (is) {
    byId("progress-title").focus(); // a disabled button would lose it
  }
}

/** What the flow tells, for those who watch. */
const HEARD = {
  step: ({ step }) => steps.begin(step),
  minted({ session, state }) {
    current.id = state.id;
    log.add("broker", `minted ${state.id}, which lives ${Math.round(session.expires_in / 60)} min`);
    fingerprintOf(session.session_token).then((digits) => {
      log.add("page", `keeps its secret in memory; fingerprint ${digits}`);
    });
    HEARD.state({ state });
  },
  asks: ({ action }) => log.add("page", `act("${action}")`),
  fingerprinted({ seen }) {
    const words = seen ? "3DS method done: Y" : "no word in ten seconds: U";
    log.add("issuer", words, seen ? "" : "warn");
  },
  returned: () => log.add("issuer", "sent you back to the shop, which says so"),
  read() {
    steps.recover();
    byId("trouble").hidden = true;
  },
  state({ state }) {
    HEARD.read();
    const next = state.next_actions.join(", ") || "nothing";
    log.add("broker", `status ${state.status}; next: ${next}`, "accent");
  },
  hindered({ error }) {
    const words = error.kind === "network" ? "no network" : "the broker is in trouble";
    steps.hinder(words);
    byId("trouble").textContent = `For the moment: ${words}. The page goes on trying.`;
    byId("trouble").hidden = false;
    log.add("page", `${words} (${error.problem ?? "no answer"})`, "warn");
  },
};

function tell(event, detail) {
  HEARD[event]?.(detail);
}

/** Demo only: the sandbox's issuer gives up waiting for the cardholder. */
async function lapse() {
  if (current?.id) {
    const body = JSON.stringify({ status: "expired" });
    const headers = { "content-type": "application/json" };
    await fetch(`${sandbox}/_sandbox/sessions/${current.id}`, { method: "POST", body, headers });
  }
}
