/**
 * Sign-in at the development identity provider: OAuth 2 authorization code with PKCE (RFC 7636).
 *
 * The user's JWT lives in a variable of this module's closure and nowhere else: never in storage,
 * in an address or in the page. Only while the person is away at the identity provider does
 * sessionStorage hold something: the state and the PKCE verifier, which are worthless alone.
 *
 * A shop would use its own identity provider's library here. What token-broker needs of it is no
 * more than `bearer()` and `renew()`.
 */

import { base64url } from "/demo/tools.js";

const CLIENT = "demo";
const UNDER_WAY = "demo-login";

/** Any address of this origin would do, as long as it runs nothing: a frame is to land there. */
const LANDING = new URL(import.meta.url).href;

/** Only the person can help: `redirectToLogin` again. */
export class LoginOver extends Error {
  name = "LoginOver";
}

/** @typedef {{
 *   name: string,
 *   subject: string,
 *   bearer: () => Promise<string>,
 *   renew: () => Promise<string>,
 *   signOut: () => void,
 * }} User */

/**
 * Finishes a sign-in that came back, else signs in silently where the person still has a login
 * at the identity provider.
 * @param {string} sandbox origin of the identity provider
 * @returns {Promise<User | null>} null while nobody is signed in
 */
export async function signIn(sandbox) {
  const { hostname } = new URL(sandbox);
  if (location.hostname !== hostname) {
    // As `localhost` this page is of another site: the frame below would not be sent the cookie.
    location.hostname = hostname;
    return new Promise(() => {}); // this document is over
  }
  const token = (await returned(sandbox)) ?? (await silently(sandbox));
  return token && user(sandbox, token);
}

/** Leaves the page for the identity provider's; `signIn` finishes it when the person is back. */
export async function redirectToLogin(sandbox) {
  const request = await newRequest(location.origin + location.pathname);
  const { state, verifier } = request;
  sessionStorage.setItem(UNDER_WAY, JSON.stringify({ state, verifier, search: location.search }));
  location.assign(authorizeUrl(sandbox, request));
}

/** The token for the code in the address, if there is one and it is the answer to our request. */
async function returned(sandbox) {
  const answer = new URLSearchParams(location.search);
  if (!answer.has("state")) {
    return null;
  }
  const kept = JSON.parse(sessionStorage.getItem(UNDER_WAY) ?? "{}");
  sessionStorage.removeItem(UNDER_WAY);
  // At once: a code does not stay in the address bar, the history or a bookmark.
  history.replaceState(null, "", location.pathname + (kept.search ?? ""));
  const request = { ...kept, redirectUri: location.origin + location.pathname };
  return exchange(sandbox, request, answer).catch(() => null);
}

/** The same without leaving the page: in a hidden frame, with `prompt=none`. */
async function silently(sandbox) {
  const request = await newRequest(LANDING);
  const frame = document.createElement("iframe");
  frame.hidden = true;
  frame.title = "Silent sign-in";
  frame.src = `${authorizeUrl(sandbox, request)}&prompt=none`;
  const loaded = new Promise((resolve) => {
    frame.addEventListener("load", resolve, { once: true });
    setTimeout(resolve, 5_000);
  });
  document.body.append(frame);
  await loaded;
  try {
    // Readable only if the identity provider sent the frame back to our own origin.
    const answer = new URLSearchParams(frame.contentWindow.location.search);
    return await exchange(sandbox, request, answer);
  } catch {
    return null;
  } finally {
    frame.remove();
  }
}

async function newRequest(redirectUri) {
  const verifier = base64url(crypto.getRandomValues(new Uint8Array(32)));
  const state = base64url(crypto.getRandomValues(new Uint8Array(16)));
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(verifier));
  return { verifier, state, redirectUri, challenge: base64url(new Uint8Array(digest)) };
}

function authorizeUrl(sandbox, { redirectUri, state, challenge }) {
  const query = new URLSearchParams({
    response_type: "code",
    client_id: CLIENT,
    redirect_uri: redirectUri,
    state,
    code_challenge: challenge,
    code_challenge_method: "S256",
  });
  return `${sandbox}/idp/authorize?${query}`;
}

/** Code and verifier for a token; null where the identity provider said no. */
async function exchange(sandbox, { verifier, state, redirectUri }, answer) {
  // Another state is somebody else's answer: this is what stops login CSRF.
  if (!answer.has("code") || !state || answer.get("state") !== state) {
    return null;
  }
  const asked = performance.now();
  const response = await fetch(`${sandbox}/idp/token`, {
    method: "POST",
    body: new URLSearchParams({
      grant_type: "authorization_code",
      code: answer.get("code"),
      code_verifier: verifier,
      redirect_uri: redirectUri,
      client_id: CLIENT,
    }),
  });
  if (!response.ok) {
    return null;
  }
  const { access_token: jwt, expires_in: seconds } = await response.json();
  // On the clock that nobody can set; half a minute early, so that it is good when it arrives.
  return { jwt, claims: claimsOf(jwt), until: asked + (seconds - 30) * 1000 };
}

/** @returns {User} */
function user(sandbox, first) {
  let token = first;
  let renewing = null;

  async function replace() {
    const next = await silently(sandbox);
    if (next === null) {
      throw new LoginOver("the login at the identity provider is over");
    }
    if (next.claims.sub !== first.claims.sub) {
      throw new LoginOver("somebody else has signed in at the identity provider");
    }
    token = next;
    return token.jwt;
  }

  /** Many may ask at once; one frame is enough. */
  function renew() {
    renewing ??= replace().finally(() => {
      renewing = null;
    });
    return renewing;
  }

  const { sub: subject, name = subject } = first.claims;
  return Object.freeze({
    name,
    subject,
    bearer: async () => (performance.now() < token.until ? token.jwt : renew()),
    renew,
    signOut() {
      const back = new URLSearchParams({ redirect_uri: location.origin + location.pathname });
      location.assign(`${sandbox}/idp/logout?${back}`);
    },
  });
}

/** For the greeting only: to read a JWT is not to verify it, and no browser has to. */
function claimsOf(jwt) {
  const payload = jwt.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
  const bytes = Uint8Array.from(atob(payload), (character) => character.charCodeAt(0));
  return JSON.parse(new TextDecoder().decode(bytes));
}
