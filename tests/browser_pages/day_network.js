/**
 * The road to the broker of a simulated day, as the client's `fetch` and `authorize`: answers that
 * are slow, cut, lost after the work was done or never come, callers that are refused, outages,
 * machines that fall asleep while an answer is under way. It remembers what the page has heard.
 */

import { problem } from "./day_broker.js";

/** What may go wrong with a request, and how often. */
const FATES = [
  [0.01, "lost"], // the work is done, the answer is not heard
  [0.005, "silent"], // likewise, and nothing is heard at all
  [0.005, "cut"], // likewise, in the middle of the body
  [0.005, "hangs"], // before any work
  [0.01, "503"],
  [0.01, "429"],
  [0.005, "html"],
  [0.01, "401"],
  [0.02, "doze"], // the machine falls asleep while the answer is under way
];
const SLUGS = { 503: "upstream-unavailable", 429: "rate-limited", 401: "unauthenticated" };
/** How long a bearer of the broker's caller is good. */
const BEARER = 3600e3;

export class Network {
  constructor(world, broker) {
    this.world = world;
    this.broker = broker;
    this.outage = undefined; // or: which of the fates
    this.trouble = -Infinity; // when, awake, something last went wrong
    this.refusals = 0;
    this.known = undefined; // the session that the page heard of last, and how odd clocks were then
    this.last = {};
    this.failures = 0; // in a row
    this.bearer = 0; // when it was issued
  }

  troubled() {
    this.trouble = this.world.awake;
  }

  async authorize({ renew }) {
    const { world } = this;
    world.touched = true;
    if (renew) {
      await new Promise((go, no) => world.in(50, () => world.deliver(go, no)));
      if (world.offline) throw new TypeError("Failed to fetch");
      this.bearer = world.now;
    }
    return String(this.bearer);
  }

  fetch(url, init) {
    this.world.touched = true;
    return new Promise((resolve, reject) => new Call(this, url, init, resolve, reject).leave());
  }

  fate() {
    if (this.outage) return this.outage;
    let draw = this.world.random();
    for (const [chance, fate] of FATES) if ((draw -= chance) < 0) return fate;
    return "well";
  }

  /** The page has read an answer that says something of a session. */
  heard({ path, body, odd, worked }, answer) {
    if (path == "sessions/check") {
      if (this.known?.session.handle == body.handle) this.known.odd = odd;
    } else {
      const session = this.broker.byToken.get(answer.session_token);
      session.heard = true;
      this.known = { session, odd, due: worked + answer.rotate_in * 1000 };
    }
  }
}

/** One request, and its way there and back. */
class Call {
  constructor(network, url, { headers, body, signal }, resolve, reject) {
    const { world, last } = network;
    Object.assign(this, { network, world, signal, resolve, reject });
    this.path = new URL(url).pathname.slice("/v1/".length);
    this.body = JSON.parse(body);
    this.key = headers["Idempotency-Key"];
    this.bearer = Number(headers.Authorization?.slice("Bearer ".length));
    // Of requests that follow upon each other, the client may count from the first.
    this.odd = world.now - last.over < 100 ? last.odd : world.odd;
    this.over = undefined; // when
    network.last = this;
  }

  settle(how, what) {
    if (this.over !== undefined) return;
    this.over = this.world.now;
    how(what);
  }

  failed() {
    this.network.troubled();
    this.network.failures += 1;
  }

  fail(why = new TypeError("Failed to fetch")) {
    if (this.over === undefined) this.failed();
    this.settle(this.reject, why);
  }

  leave() {
    const { network, signal, world } = this;
    if (signal.aborted) return this.fail(signal.reason);
    signal.addEventListener("abort", () => this.fail(signal.reason));
    if (world.offline) return world.in(3, () => world.deliver(() => this.fail()));
    this.fate = network.fate();
    if (!["well", "doze"].includes(this.fate)) network.troubled();
    if (this.fate == "hangs") return;
    this.latency = 10 + 390 * world.random() ** 2;
    world.in(this.latency, () => this.arrive());
  }

  /** The request is at the broker, unless the way was cut meanwhile. */
  arrive() {
    const { fate, latency, world } = this;
    if (world.offline) return world.deliver(() => this.fail());
    const answer = this.work();
    this.worked = world.now;
    if (fate == "doze") world.doze(latency / 2);
    if (fate == "silent") return;
    world.in(latency, () => {
      if (fate == "lost" || (world.offline && world.random() < 0.5)) {
        world.deliver(() => this.fail());
      } else {
        world.deliver(() => this.settle(this.resolve, this.response(answer)), () => this.fail());
      }
    });
  }

  work() {
    const { fate, network, world } = this;
    if (fate == "html") return [502, {}, "<h1>Bad gateway</h1>"];
    const refused = world.now < this.bearer + BEARER ? fate : "401";
    if (!SLUGS[refused]) return network.broker.answer(this.path, this.body, this.key);
    network.refusals += 1;
    const wait = { "retry-after": String(1 + Math.floor(world.random() * 20)) };
    return problem(+refused, SLUGS[refused], refused != "401" && world.random() < 0.7 ? wait : {});
  }

  /** Its headers are there; the body may take a while yet. */
  response([status, headers, body]) {
    const { world } = this;
    const response = { ok: status < 300, status, headers: new Headers(headers) };
    if (!response.ok && status != 410) this.failed();
    const read = (go, no) => {
      this.over = undefined;
      Object.assign(this, { resolve: go, reject: no });
      const end = () => {
        if (this.fate == "cut" || this.over !== undefined) return this.fail();
        this.settle(go, typeof body == "string" ? body : JSON.stringify(body));
        if (status != 410 && !response.ok) return;
        this.network.failures = 0;
        if (response.ok) this.network.heard(this, body);
      };
      const slow = this.fate == "cut" || world.random() < 0.1;
      world.in(slow ? 200 * world.random() : 0, () => world.deliver(end, () => this.fail()));
    };
    response.text = () => new Promise(read);
    response.json = async () => JSON.parse(await response.text());
    return response;
  }
}
