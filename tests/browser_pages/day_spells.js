/**
 * What befalls a machine, its network and a tab in a day: naps, freezes, offline spells, outages,
 * tabs in the background, clocks that are set or run fast. Drawn by the world's dice, some before
 * the day begins, some by what happens.
 */

const SECOND = 1e3;
const MINUTE = 60e3;
const HOUR = 3600e3;

export class Spells {
  /** ask: what the component does. */
  constructor(world, network, ask) {
    this.world = world;
    this.network = network;
    this.ask = ask;
    this.counts = { naps: 0, freezes: 0, offline: 0, outages: 0, hidden: 0, steps: 0 };
    this.quiet = 0; // reasons for the component not to ask
    world.doze = (after) => world.in(after, () => this.nap(this.someNap()));
  }

  chance(of) {
    return this.world.random() < of;
  }

  pick(...of) {
    return of[Math.floor(this.world.random() * of.length)];
  }

  /** Short ones are as frequent as ten times as long ones. */
  between(low, high) {
    return low * (high / low) ** this.world.random();
  }

  someNap() {
    return this.pick(
      this.between(0.3 * SECOND, 5 * SECOND),
      this.between(5 * SECOND, 10 * MINUTE),
      this.between(20 * MINUTE, 2 * HOUR),
    );
  }

  plan(day) {
    const spread = (times, what) => {
      for (let i = 0; i < times; i++) this.world.at(this.world.random() * day, what);
    };
    spread(4, () => this.nap(this.between(0.3 * SECOND, 5 * SECOND)));
    spread(4, () => this.nap(this.between(10 * SECOND, 20 * MINUTE)));
    spread(1, () => this.nap(this.between(1 * HOUR, 5 * HOUR)));
    spread(3, () => this.freeze(this.between(10 * SECOND, 40 * MINUTE)));
    spread(5, () => this.goOffline(this.between(10 * SECOND, 25 * MINUTE)));
    spread(4, () => this.outage(this.between(20 * SECOND, 20 * MINUTE)));
    spread(6, () => this.hide(this.between(1 * MINUTE, 60 * MINUTE)));
    spread(3, () => this.step(this.pick(-1, 1) * HOUR));
    spread(4, () => this.step(this.pick(-5, 5) * SECOND));
    spread(5, () => this.slew());
  }

  nap(length) {
    const { world } = this;
    this.counts.naps += 1;
    world.leave(true);
    world.in(length, () => {
      world.back(true);
      const battery = 600 * (world.random() - 0.5); // by which the clock that went on is wrong
      if (length > 10 * SECOND) world.wall += battery;
      const moment = () => this.pick(0, 0, 5, 300);
      world.in(moment(), () => world.unpack());
      if (this.chance(0.6)) world.in(moment(), () => world.dispatch("visibilitychange", "focus"));
      if (this.chance(0.6)) world.in(moment(), () => this.ask());
    });
  }

  /** As in the back/forward cache: nothing runs, clocks go on. */
  freeze(length) {
    const { world } = this;
    this.counts.freezes += 1;
    world.leave(false);
    world.in(length, () => {
      world.back(false);
      world.in(0, () => world.unpack());
      world.in(this.pick(0, 5), () => world.dispatch("pageshow", "visibilitychange"));
    });
  }

  goOffline(length) {
    const { world, network } = this;
    const told = this.chance(0.7);
    this.counts.offline += 1;
    world.offline += 1;
    world.change("unreachable", 1);
    if (told) world.dispatch("offline");
    world.in(length, () => {
      world.offline -= 1;
      world.change("unreachable", -1);
      network.troubled();
      if (told) world.dispatch("online");
    });
  }

  outage(length) {
    const { world, network } = this;
    if (network.outage) return;
    this.counts.outages += 1;
    network.outage = this.pick("503", "503", "429", "html", "hangs");
    world.change("unreachable", 1);
    world.in(length, () => {
      network.outage = undefined;
      world.change("unreachable", -1);
      network.troubled();
    });
  }

  hide(length) {
    const { world } = this;
    const quiet = this.chance(0.5) ? 1 : 0;
    this.counts.hidden += 1;
    const turn = (by) => () => {
      world.change("hidden", by);
      this.quiet += by * quiet;
      world.dispatch("visibilitychange", ...(by < 0 && this.chance(0.5) ? ["focus"] : []));
    };
    world.deliver(turn(1));
    world.in(length, () => world.deliver(turn(-1)));
  }

  step(by) {
    this.counts.steps += 1;
    this.world.step(by);
  }

  /** The time service makes the wall clock run fast or slow; on some systems the other as well. */
  slew() {
    const rate = 1 + this.pick(-500, 0, 500) / 1e6;
    this.world.rates = { wall: rate, mono: this.chance(0.5) ? rate : 1 };
  }
}
