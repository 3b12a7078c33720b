/**
 * A simulated day of one page with one client, a component that asks, and an oracle that knows the
 * truth. `simulate(seed)` gives the day's numbers and what was `wrong` in it. The client is the one
 * at `?client=`, imported when nothing of the real time can be seen any more.
 */

import { Broker, FLOOR, LIFE, rotatesIn } from "./day_broker.js";
import { minimum } from "./day_minimum.js";
import { Network } from "./day_network.js";
import { Spells } from "./day_spells.js";
import { World, install, realNow, seeded } from "./day_world.js";

const DAY = 86400e3;
/** Seconds that a session has at least when it is given, though the time service make
 * performance.now() 500 ppm slow. */
const LEAST = 1;
/** Seconds by which a client takes a session for older than it is: whole seconds, the way there. */
const BLUR = 2.5;
/** Seconds awake after which a call has been answered: in a tab that is seen, in a hidden one. */
const PATIENCE = { seen: 25, hidden: 150 };
/** Seconds awake after the last trouble in which calls may still be refused: the longest back-off,
 * and a minute's timer. */
const AFTERMATH = 160;

/** Seconds by which a session may be replaced before its time: what answers take. */
const EARLY = 5;
/** Milliseconds of the grace that are enough to hear what was lost the first time, unless that
 * often in a row something went wrong before: then the client waits longer than that. */
const CHANCE = 40e3;
const TRIES = 4;

let world;
install(() => world);
const module = new URLSearchParams(location.search).get("client");
const { SessionError, createSessionClient } = await import(module);

class Component {
  constructor(client, broker, network, seed) {
    Object.assign(this, { client, broker, network });
    this.name = `day ${seed}`;
    this.asks = [];
    this.open = new Set();
    this.wrong = [];
    this.given = 0;
    this.rejected = 0;
    this.least = LIFE;
    this.longest = { seen: 0, hidden: 0, aftermath: 0 };
  }

  /** Asks each few seconds, more often when the end is near. */
  live(spells) {
    const left = this.left();
    if (left < 40 && left > 0 && spells.chance(0.04)) {
      world.in(spells.between(10, 2000), () => spells.nap(spells.between(300, 1950)));
    }
    if (!spells.quiet) this.ask();
    const near = left < 15 && left > -5;
    world.in(near ? spells.between(100, 1000) : spells.between(1000, 12000), () =>
      this.live(spells),
    );
  }

  left() {
    const { known } = this.network;
    return known ? this.broker.left(known.session) : -Infinity;
  }

  ask() {
    if (world.is("away")) return;
    const { known } = this.network;
    const sure = known && known.odd == world.odd;
    const call = { now: world.now, awake: world.awake, left: this.left() };
    call.good = sure && call.left > FLOOR + BLUR ? known.session.token : undefined;
    call.fair = sure && !world.is("hidden") && call.left > PATIENCE.seen;
    this.asks.push(world.now);
    this.open.add(call);
    const how = ["token", "session", "output"][this.asks.length % 3];
    this.client[how]().then(
      (got) => this.take(call, got.session_token ?? got.sessionToken ?? got),
      (error) => this.miss(call, error),
    );
  }

  take(call, token) {
    const left = this.broker.left(this.broker.byToken.get(token));
    this.given += 1;
    this.least = Math.min(this.least, left);
    if (left < LEAST) this.fault(call, `was given what had ${left.toFixed(3)} s left`);
    if (call.good && token != call.good) this.fault(call, `was given ${token}, not ${call.good}`);
    this.settle(call);
  }

  miss(call, error) {
    if (!this.open.has(call)) return; // the day is over
    const since = (world.awake - this.network.trouble) / 1000;
    this.rejected += 1;
    const well = !world.is("unreachable");
    if (well) this.longest.aftermath = Math.max(this.longest.aftermath, since);
    if (!(error instanceof SessionError)) this.fault(call, `was refused with ${error}`);
    if (call.fair) this.fault(call, `was refused with ${call.left} s left`);
    if (well && since > AFTERMATH) {
      this.fault(call, `was refused ${since} s after the last trouble`);
    }
    this.settle(call);
  }

  settle(call) {
    this.open.delete(call);
    if (call.good && world.now > call.now) this.fault(call, "was kept waiting");
    this.patience(call);
  }

  patience(call) {
    const waited = (world.awake - call.awake) / 1000;
    const kind = world.is("hidden") || world.lastHidden >= call.awake ? "hidden" : "seen";
    this.longest[kind] = Math.max(this.longest[kind], waited);
    if (waited > PATIENCE[kind]) this.fault(call, `waited ${waited} s, ${kind}`);
  }

  fault(call, what) {
    this.wrong.push(`${this.name}, ${(call.now / 1000).toFixed(3)} s: an ask ${what}`);
  }
}

/** One day; `seed` tells which. */
export async function simulate(seed) {
  const began = realNow();
  world = new World(seeded(seed), { standsStill: seed % 2 == 1 });
  const draws = (number) => seeded(seed * 100003 + number);
  const broker = new Broker(world, draws, () => early());
  const network = new Network(world, broker);
  const failures = []; // how often in a row it had failed before each mint
  const early = () => {
    const soon = (network.known?.due - world.now) / 1000;
    failures.push(network.failures);
    if (soon > EARLY) component.wrong.push(`day ${seed}: a session was replaced ${soon} s early`);
  };
  const client = createSessionClient({
    broker: "https://broker.example",
    profile: "transactions",
    authorize: (why) => network.authorize(why),
    fetch: (...given) => network.fetch(...given),
  });
  const component = new Component(client, broker, network, seed);
  const spells = new Spells(world, network, () => component.ask());
  spells.plan(DAY);
  world.in(1000, () => component.live(spells));
  await world.run(DAY);
  component.open.forEach((call) => component.patience(call));
  component.open.clear();
  client.close();
  const lost = broker.sessions.filter(({ heard }) => !heard);
  for (const { number, chance } of lost) {
    if (chance > CHANCE && failures[number] < TRIES) {
      component.wrong.push(`day ${seed}: session ${number} was never heard of`);
    }
  }
  return {
    seed,
    wrong: component.wrong,
    asks: component.asks.length,
    given: component.given,
    rejected: component.rejected,
    mints: broker.sessions.length,
    minimum: minimum({
      changes: world.changes,
      asks: component.asks,
      end: DAY,
      rotateIn: (number) => rotatesIn(LIFE, draws(number)()),
      life: LIFE,
      floor: FLOOR,
    }),
    lost: lost.length,
    calls: broker.calls,
    refusals: network.refusals,
    counts: spells.counts,
    least: component.least,
    longest: component.longest,
    steps: world.steps,
    took: realNow() - began,
  };
}
