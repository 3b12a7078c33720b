/**
 * A broker as its contract has it, in a `World`: sessions of 900 s, handles whose successor is the
 * same for all who ask within the grace, chains that end, idempotency keys. It knows when each
 * session really ends.
 */

export const LIFE = 900;
export const FLOOR = 30;
const GRACE = 60;
const MAX_CHAIN = 8 * 3600;
const ROTATE_AT = 0.75;
const ROTATE_SPREAD = 0.08;

/** What the server says of a session with so many seconds left, as broker/schedule.py has it. */
export function rotatesIn(left, draw) {
  const point = LIFE * (1 - ROTATE_AT + ROTATE_SPREAD * (2 * draw - 1));
  return Math.max(1, Math.floor(left - point));
}

export class Broker {
  /** draws: by a session's number, what gives its numbers from 0 to 1: one for each answer.
   * minting: called before each mint. */
  constructor(world, draws, minting) {
    this.world = world;
    this.draws = draws;
    this.minting = minting;
    this.sessions = [];
    this.byToken = new Map();
    this.byHandle = new Map();
    this.byKey = new Map();
    this.calls = { mint: 0, rotate: 0, check: 0, repeated: 0 };
  }

  left(session) {
    return (session.ends - this.world.now) / 1000;
  }

  mint(before) {
    this.minting();
    const number = this.sessions.length;
    const { now } = this.world;
    const session = {
      number,
      token: `token-${number}`,
      handle: `handle-${number}`,
      issued: now,
      ends: now + LIFE * 1000,
      began: before ? before.began : now,
      heard: false,
      chance: 0, // to hear of it: how much of the grace the page could have asked again in
      draw: this.draws(number),
    };
    this.sessions.push(session);
    const { reach } = this.world;
    this.world.in(GRACE * 1000, () => (session.chance = this.world.reach - reach));
    this.byToken.set(session.token, session);
    this.byHandle.set(session.handle, session);
    return session;
  }

  answer(path, body, key) {
    if (path == "profiles/transactions/sessions") return this.answerMint(body, key);
    const session = this.byHandle.get(body.handle);
    if (!session) return problem(400, "malformed-request");
    if (path == "sessions/check") {
      this.calls.check += 1;
      return [200, {}, { expires_in: Math.max(0, Math.floor(this.left(session))) }];
    }
    if (path == "sessions/rotate") return this.answerRotate(session);
    return problem(404, "not-found");
  }

  answerMint(body, key) {
    this.calls.mint += 1;
    const text = JSON.stringify(body);
    const known = this.byKey.get(key);
    if (known && known.text != text) return problem(422, "invalid-parameters");
    if (known && this.left(known.session) > FLOOR) return this.give(known.session, true);
    const session = this.mint();
    if (key) this.byKey.set(key, { text, session });
    return this.give(session);
  }

  answerRotate(session) {
    this.calls.rotate += 1;
    const { now } = this.world;
    const { successor } = session;
    if (successor) {
      const kept = Math.min(GRACE * 1000, LIFE * 1000);
      if (now > successor.issued + kept) return problem(410, "handle-expired");
      return this.give(successor, true);
    }
    const over = now > Math.floor(session.ends / 1000) * 1000 + GRACE * 1000;
    if (over || now > session.began + MAX_CHAIN * 1000) return problem(410, "handle-expired");
    session.successor = this.mint(session);
    return this.give(session.successor);
  }

  give(session, repeated = false) {
    if (repeated) this.calls.repeated += 1;
    const left = this.left(session);
    const rotateIn = rotatesIn(left, session.draw());
    const at = (moment) => new Date(1795252000000 + moment).toISOString().slice(0, 19) + "Z";
    const body = {
      profile: "transactions",
      session_token: session.token,
      issued_at: at(session.issued),
      expires_at: at(session.ends),
      expires_in: Math.floor(left),
      reuse: "per_caller",
      output: { sessionToken: session.token },
      rotate_in: rotateIn,
      handle: session.handle,
    };
    return [201, {}, body];
  }
}

/** An answer that is none: status, headers, body. */
export function problem(status, slug, headers = {}) {
  return [status, headers, { type: `urn:token-broker:problem:${slug}`, status, detail: slug }];
}
