/**
 * The machine of a simulated day: true time, two clocks that may be wrong, timers, the page's
 * events. `install` puts them in the place of the globals that a page has; what is imported after
 * that lives in simulated time alone. Times are milliseconds; `now` is the truth, which no page can
 * read.
 */

/** Numbers from 0 to 1 that are the same for the same seed. */
export function seeded(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** What the time really is. */
export const realNow = performance.now.bind(performance);

/** A real task later, so that all promises have said what they had to say. */
const settled = () => scheduler.postTask(() => {}, { priority: "user-blocking" });

export class World {
  /** standsStill: performance.now() does while the machine sleeps. */
  constructor(random, { standsStill }) {
    this.random = random;
    this.standsStill = standsStill;
    this.now = 0;
    this.awake = 0; // how much of it timers could run in
    this.reach = 0; // how much of it the page was awake, online and seen
    this.mono = 5000 + random() * 1e6;
    this.wall = 1795252000000;
    this.rates = { mono: 1, wall: 1 };
    this.odd = 0; // how often the clocks fell out with each other
    this.states = { away: 0, unreachable: 0, hidden: 0 }; // how many reasons there are for each
    this.changes = [{ at: 0, away: false, unreachable: false, hidden: false }];
    this.timers = new Map();
    this.lastTimer = 0;
    this.agenda = [];
    this.inbox = [];
    this.offline = 0; // how many reasons for that
    this.still = 0; // how many naps in which performance.now() stands still
    this.lastHidden = -Infinity; // when, awake, that began or ended
    this.steps = 0;
    this.touched = false; // by what the page did in this step
    this.page = new EventTarget();
  }

  /** Something happens at that moment, whether anybody is awake or not. */
  at(when, what) {
    const entry = { when: Math.max(when, this.now), what };
    let low = 0;
    for (let high = this.agenda.length; low < high; ) {
      const middle = (low + high) >> 1;
      if (this.agenda[middle].when > entry.when) low = middle + 1;
      else high = middle;
    }
    this.agenda.splice(low, 0, entry); // the next one stands last
  }

  in(delay, what) {
    this.at(this.now + delay, what);
  }

  /** Something comes to the page: now, or when it is awake again (or, then, perhaps `lost`). */
  deliver(what, lost = what) {
    if (this.is("away")) this.inbox.push(() => (this.random() < 0.3 ? lost() : what()));
    else what();
  }

  dispatch(...types) {
    this.deliver(() => types.forEach((type) => this.page.dispatchEvent(new Event(type))));
  }

  is(state) {
    return this.states[state] > 0;
  }

  /** One reason more (1) or less (-1) for a state. */
  change(state, by) {
    this.states[state] += by;
    if (state == "hidden") this.lastHidden = this.awake;
    const is = (name) => this.is(name);
    this.changes.push({
      at: this.now,
      away: is("away"),
      unreachable: is("unreachable"),
      hidden: is("hidden"),
    });
  }

  /** Nobody is at home: asleep, or frozen with clocks that go on. */
  leave(asleep) {
    this.change("away", 1);
    if (asleep && this.standsStill) this.still += 1;
  }

  back(asleep) {
    if (asleep && this.standsStill) {
      this.still -= 1;
      this.odd += 1;
    }
    this.change("away", -1);
  }

  /** What came meanwhile. */
  unpack() {
    if (!this.is("away")) this.inbox.splice(0).forEach((deliver) => deliver());
  }

  /** Somebody sets the clock. */
  step(by) {
    this.wall += by;
    this.odd += 1;
  }

  setTimer(callback, delay = 0, every = false, ...given) {
    this.touched = true;
    const id = ++this.lastTimer;
    const wait = Math.max(+delay || 0, 1);
    this.timers.set(id, { due: this.mono + wait, callback: () => callback(...given), every, wait });
    return id;
  }

  /** When the first timer fires, by performance.now(): in a hidden tab on the minute. */
  firstTimer() {
    let found;
    for (const [id, { due }] of this.timers) if (!found || due < found.due) found = { id, due };
    if (found) found.due = Math.max(found.due, this.mono);
    if (found && this.is("hidden")) found.due = Math.ceil(found.due / 6e4) * 6e4;
    return found;
  }

  fire(id) {
    const timer = this.timers.get(id);
    if (timer.every) timer.due = this.mono + timer.wait;
    else this.timers.delete(id);
    timer.callback();
  }

  advance(to) {
    const passed = to - this.now;
    this.now = to;
    if (!this.is("away")) this.awake += passed;
    if (!["away", "unreachable", "hidden"].some((state) => this.is(state))) this.reach += passed;
    if (!this.still) this.mono += passed * this.rates.mono;
    this.wall += passed * this.rates.wall;
  }

  /** Until all that a step set off is done. (Most are ticks that touch nothing, and quick.) */
  async quiet() {
    for (let turn = 0; turn < 4 && !this.touched; turn++) await null;
    if (this.touched) await settled();
    this.touched = false;
  }

  async run(end) {
    while (this.now < end) {
      const event = this.agenda.at(-1);
      const timer = this.is("away") ? undefined : this.firstTimer();
      const fires = timer ? this.now + (timer.due - this.mono) / this.rates.mono : Infinity;
      if (event && event.when <= fires) {
        this.agenda.pop();
        this.touched = true;
        this.advance(event.when);
        event.what();
      } else {
        this.advance(Math.min(fires, end));
        this.mono = Math.max(this.mono, timer?.due ?? 0); // not a rounding before it
        if (fires < end) this.fire(timer.id);
      }
      this.steps += 1;
      await this.quiet();
    }
  }
}

/** From now on the page lives in `world()`. */
export function install(world) {
  const RealDate = Date;
  const put = (object, name, what) =>
    Object.defineProperty(object, name, { configurable: true, ...what });
  put(performance, "now", { value: () => world().mono });
  globalThis.Date = class extends RealDate {
    constructor(...given) {
      super(...(given.length ? given : [Math.floor(world().wall)]));
    }
    static now() {
      return Math.floor(world().wall);
    }
  };
  globalThis.setTimeout = (callback, delay, ...given) =>
    world().setTimer(callback, delay, false, ...given);
  globalThis.setInterval = (callback, delay, ...given) =>
    world().setTimer(callback, delay, true, ...given);
  globalThis.clearTimeout = globalThis.clearInterval = (id) => void world().timers.delete(id);
  AbortSignal.timeout = (delay) => {
    const ending = new AbortController();
    const reason = new DOMException("signal timed out", "TimeoutError");
    world().setTimer(() => ending.abort(reason), delay);
    return ending.signal;
  };
  Math.random = () => world().random();
  globalThis.addEventListener = (...given) => world().page.addEventListener(...given);
  globalThis.removeEventListener = (...given) => world().page.removeEventListener(...given);
  document.addEventListener = globalThis.addEventListener;
  put(document, "hidden", { get: () => world().is("hidden") });
  put(document, "visibilityState", { get: () => (document.hidden ? "hidden" : "visible") });
  put(navigator, "onLine", { get: () => !world().offline });
  globalThis.fetch = () => Promise.reject(new Error("not over the network that there is"));
}
