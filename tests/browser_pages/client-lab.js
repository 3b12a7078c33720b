/**
 * The client on a page whose clocks and network are played: time passes when a test says so, and
 * answers are what a test says. All names here are global. Must not decide what is right.
 */
import { createSessionClient, SessionError } from "/v1/client.js";

const START = 5000; // performance.now() when this page begins, in milliseconds
const WALL = 1_900_000_000_000;
const timers = new Map();
let at = 0; // milliseconds
let serial = 0;

const clock = { skew: 0, get now() { return at / 1000; } };

performance.now = () => START + at;
Date.now = () => WALL + at + clock.skew;
globalThis.setTimeout = (run, wait = 0) => arm(run, Math.max(wait, 1));
globalThis.setInterval = (run, wait) => arm(run, wait, wait);
globalThis.clearTimeout = globalThis.clearInterval = (id) => { timers.delete(id); };
AbortSignal.timeout = (wait) => {
  const control = new AbortController();
  arm(() => control.abort(new DOMException("", "TimeoutError")), wait, 0, true);
  return control.signal;
};

function arm(run, wait, every = 0, ofSignal = false) {
  timers.set((serial += 1), { run, due: at + wait, every, ofSignal });
  return serial;
}

/** Timers that a page would still have; those of AbortSignal.timeout keep nothing alive. */
const armed = () => [...timers.values()].filter((timer) => !timer.ofSignal).length;

/** Lets everything happen that happens at this moment. */
async function settle() {
  for (let round = 0; round < 6; round += 1) {
    await new Promise((go) => {
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = () => { port1.close(); go(); };
      port2.postMessage(0);
    });
  }
}

/** So many seconds pass. */
async function pass(seconds) {
  const end = at + seconds * 1000;
  await settle();
  for (;;) {
    const [next] = [...timers].sort((a, b) => a[1].due - b[1].due);
    if (!next || next[1].due > end) break;
    const [id, timer] = next;
    at = Math.max(at, timer.due);
    if (timer.every) timer.due = at + timer.every; else timers.delete(id);
    timer.run();
    await settle();
  }
  at = end;
  await settle();
}

/** The machine sleeps for so many seconds: no timer fires in them. */
function nap(seconds) {
  at += seconds * 1000;
}

const calls = []; // what was sent
const answers = []; // functions of the call: what is answered next; then `usual` is
const usual = {};
const clients = [];
let minted = 0;

async function network(url, init) {
  const { headers, signal, credentials, keepalive, method } = init;
  if (!usual.deaf) signal.throwIfAborted(); // as fetch does: nothing is sent
  const call = {
    at: clock.now, path: url.split("/v1/")[1], body: JSON.parse(init.body), url, method,
    key: headers["Idempotency-Key"], bearer: headers.Authorization, credentials, keepalive,
  };
  calls.push(call);
  return new Promise((resolve, reject) => {
    if (!usual.deaf) signal.addEventListener("abort", () => reject(signal.reason));
    const next = () => (answers.shift() ?? usual.always ?? broker)(call);
    Promise.resolve().then(next).then(resolve, reject);
  });
}

function broker({ path }) {
  if (path === "sessions/end") return say(204, "")();
  if (path === "sessions/check") return say(200, { expires_in: 600 })();
  if (path.startsWith("sessions/actions/")) return say(200, { done: path.split("/")[2] })();
  return session()();
}

/** A session as the broker would answer; fields change it, and undefined leaves one out. */
function session(fields = {}) {
  return () => {
    minted += 1;
    const shown = `t${minted}`;
    return say(201, {
      profile: "p", session_token: shown, output: { sessionToken: shown, expiresAt: 1 },
      handle: `h${minted}`, reuse: "per_caller", issued_at: new Date(WALL + at).toISOString(),
      ...usual.answer, ...fields,
    })();
  };
}

const say = (status, body, headers = {}) => () => ({
  status, ok: status < 300, headers: new Headers(headers),
  text: async () => (typeof body === "string" ? body : JSON.stringify(body)),
});
const problem = (status, slug, more = {}) =>
  say(status, { type: `urn:token-broker:problem:${slug}`, status, title: "T", ...more });
const cut = () => { throw new TypeError("Failed to fetch"); };
const never = () => new Promise(() => {});

/** An answer that is given when the test says: `answers.push(late.answer)`, `late.give(say(…))`. */
function held() {
  const { promise, resolve } = Promise.withResolvers();
  return { answer: () => promise, give: (answer) => resolve(answer()) };
}

const asked = []; // what `authorize` was asked
const events = []; // [type, when, token or kind]
const tokens = () => events.filter(([type]) => type !== "error").map(([, , token]) => token);
const sent = (path) => calls.filter((call) => call.path.includes(path));
const gaps = (list = calls) => list.slice(1).map((call, index) => call.at - list[index].at);

function make(options = {}) {
  const client = createSessionClient({
    broker: "https://broker.example", profile: "p", fetch: network,
    authorize: ({ renew }) => { asked.push(renew); return "bearer"; }, ...options,
  });
  clients.push(client);
  for (const type of ["session", "rotated", "expiring", "error"]) {
    client.addEventListener(type, ({ detail }) =>
      events.push([type, clock.now, type === "error" ? detail.kind : detail.session_token]));
  }
  return client;
}

/** What becomes of a promise: `seen.state` is "waiting", "given" or the name of its error. */
function watch(promise) {
  const seen = { state: "waiting", value: undefined, kind: undefined, at: undefined };
  promise.then(
    (value) => Object.assign(seen, { state: "given", value, at: clock.now }),
    (error) => Object.assign(seen, { state: error.name, kind: error.kind, at: clock.now, error }),
  );
  return seen;
}

/** The tab is hidden or shown, as far as scripts can see. */
function hide(hidden) {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange", { bubbles: true }));
}

/** As a page newly loaded: for the next test. */
function fresh() {
  clients.splice(0).forEach((client) => client.close());
  timers.clear();
  for (const list of [calls, answers, asked, events]) list.length = 0;
  at = clock.skew = minted = 0;
  Object.assign(usual, { always: null, deaf: false, answer: { expires_in: 900, rotate_in: 690 } });
  delete document.hidden;
  delete globalThis.addEventListener;
}

fresh();
Object.assign(globalThis, {
  SessionError, answers, armed, asked, calls, clock, cut, events, fresh, gaps, held, hide, make,
  nap, network, never, pass, problem, say, sent, session, settle, tokens, usual, watch,
});
