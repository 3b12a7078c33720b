/**
 * A 3-D Secure authentication from the first word to the result, as the page of a shop runs it.
 *
 * Checkout.com says at each step what is next (`next_actions`); the page does that, and asks again.
 * The broker holds the keys, adds what only a server may say, and lets out what a page may know.
 * Nothing that the issuer's frame says is believed: it only hastens the next reading of the status.
 */

import { base64url, pause, unless } from "/demo/tools.js";

const WAITS = { first: 1000, longest: 5000, factor: 1.5 }; // between two readings, in ms
const METHOD_LIMIT = 10_000; // EMV 3-D Secure gives the issuer's 3DS method ten seconds, in ms
const FAILURES = 5; // of one step in a row, before the page gives up

/** The person closed the issuer's page before it had an answer. */
export class Cancelled extends Error {
  name = "Cancelled";
}

/**
 * Gives the last state that the broker told: `{id, status, …}`. Rejects with `Cancelled`, with a
 * `SessionError`, or with the reason of the signal that ended it (`TimeoutError`, `AbortError`).
 *
 * client: of `createSessionClient`, made for this authentication alone, as its session is
 * views: where the issuer's pages are shown: `fingerprint`, `challenge` and `redirect`
 * returnUrl: of the shop's server, where the issuer's 3DS method posts to when it is done
 * tell: called as `tell(event, detail)` with what happens, for whoever watches
 * signal: ends it from outside. Whatever the end, the client is its maker's to close
 */
export async function authenticate({ client, views, returnUrl, tell, signal: outside }) {
  // 1. Mint. The page says what is paid with; amount, currency and reference are not its to say.
  tell("step", { step: "session" });
  const session = await client.session({ signal: outside });
  const signal = AbortSignal.any([outside, AbortSignal.timeout(session.expires_in * 1000)]);

  // 2. Do what is next, until nothing is.
  let { session_secret: _, ...state } = session.output; // the secret is the client's
  tell("minted", { session, state });
  try {
    while (!isOver(state)) {
      state = await next(state);
      tell("state", { state });
    }
  } catch (error) {
    throw signal.aborted ? signal.reason : error;
  }

  // 3. The status is for the person to see. Whether to take the money is decided by the shop's
  // server, which reads the result itself: a page can be made to say anything.
  return state;

  function next(state) {
    switch (state.next_actions[0]) {
      case "collect_channel_data":
        tell("step", { step: "device" });
        return act("collect-data", { channel_data: browserData() });
      case "issuer_fingerprint":
        tell("step", { step: "method" });
        return fingerprint(state);
      case "challenge_cardholder":
        tell("step", { step: "challenge" });
        return answered(views.challenge(state.acs.url, { creq: state["3ds"].challenge_request }));
      case "redirect_cardholder": // hosted: Checkout.com's own page does all of the above
        tell("step", { step: "hosted" });
        return answered(views.redirect(state._links.redirect_url.href));
      case "complete":
        tell("step", { step: "complete" });
        return act("complete");
      default: // nothing for the page to do, and not over yet: the issuer is being asked
        return pause(WAITS.first, signal).then(() => status(signal));
    }
  }

  /** The 3DS method: the issuer looks at the device, in a frame that nobody sees. */
  async function fingerprint(state) {
    const data = {
      threeDSServerTransID: state.transaction_id,
      threeDSMethodNotificationURL: returnUrl,
    };
    const form = { threeDSMethodData: base64url(new TextEncoder().encode(JSON.stringify(data))) };
    const url = state._links.three_ds_method_url.href;
    const seen = await views.fingerprint(url, form, METHOD_LIMIT, signal);
    tell("fingerprinted", { seen });
    return act("issuer-fingerprint", { three_ds_method_completion: seen ? "Y" : "U" });
  }

  /** While the cardholder is at the issuer's page: reads the status until it is another one.
   * view: `returned`, a promise of when to look at once; `cancelled`, a signal; `close()` */
  async function answered(view) {
    const either = AbortSignal.any([signal, view.cancelled]);
    let hints = [view.returned.then(() => true)];
    try {
      for (let wait = WAITS.first; ; wait = Math.min(wait * WAITS.factor, WAITS.longest)) {
        if (await Promise.race([...hints, pause(wait, either)])) {
          tell("returned");
          hints = []; // it is said once; what is left is to wait
          wait = WAITS.first;
        }
        const state = await status(either);
        if (!isWithCardholder(state)) {
          return state;
        }
      }
    } catch (error) {
      if (signal.aborted || !view.cancelled.aborted) {
        throw error;
      }
      // Perhaps the answer was given before the page was closed.
      const state = await unless(signal, client.act("status")).catch(() => undefined);
      if (state && !isWithCardholder(state)) {
        return state;
      }
      throw new Cancelled("The issuer's page was closed before it had an answer.");
    } finally {
      view.close();
    }
  }

  /** One action. Where its answer is lost nobody knows whether it was done: that is asked. */
  async function act(action, data) {
    for (let failures = 0; ; failures += 1) {
      try {
        tell("asks", { action });
        const state = await unless(signal, client.act(action, data));
        return "status" in state ? state : await status(signal); // `complete` answers nothing
      } catch (error) {
        await hindered(error, failures, signal);
      }
      const state = await status(signal);
      if (!state.next_actions.includes(NEXT_ACTIONS[action])) {
        return state;
      }
    }
  }

  /** What the session is now; goes on asking through what passes, such as being offline. */
  async function status(until) {
    for (let failures = 0; ; failures += 1) {
      try {
        const state = await unless(until, client.act("status"));
        tell("read", { state });
        return state;
      } catch (error) {
        await hindered(error, failures, until);
      }
    }
  }

  /** Waits where waiting may help, and throws the error where it will not. */
  async function hindered(error, failures, until) {
    until.throwIfAborted();
    const { status, retry_after: asked } = error.details ?? {};
    const busy = status === 429 || status >= 500;
    if (error.kind !== "network" && !(busy && failures < FAILURES)) {
      throw error;
    }
    tell("hindered", { error });
    const longest = Math.min(WAITS.first * 2 ** failures, WAITS.longest);
    const wait = Math.max(asked * 1000 || 0, longest * (0.5 + Math.random() / 2));
    await pause(wait, until, "online");
  }
}

/** What Checkout.com calls the broker's actions. */
const NEXT_ACTIONS = {
  "collect-data": "collect_channel_data",
  "issuer-fingerprint": "issuer_fingerprint",
  complete: "complete",
};

function isOver({ status, next_actions: actions }) {
  return actions.length === 0 && !["pending", "processing", "challenged"].includes(status);
}

function isWithCardholder({ next_actions: actions }) {
  return ["challenge_cardholder", "redirect_cardholder"].includes(actions[0]);
}

/** What only the browser knows of itself. What a server sees better (IP address, User-Agent and
 * Accept) is added by the broker. */
function browserData() {
  const depths = [48, 32, 24, 16, 15, 8, 4, 1]; // what EMV 3-D Secure knows; some screens have 30
  return {
    channel: "browser",
    java_enabled: false,
    javascript_enabled: true,
    language: navigator.language.slice(0, 12),
    color_depth: String(depths.find((depth) => depth <= screen.colorDepth)),
    screen_height: String(screen.height),
    screen_width: String(screen.width),
    timezone: String(new Date().getTimezoneOffset()),
  };
}
