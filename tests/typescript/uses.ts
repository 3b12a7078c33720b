// Every part of the client's public face, as a page written in TypeScript uses it. Compiled against
// client.d.ts, never run. Each line under an @ts-expect-error must NOT compile.
import { createSessionClient, SessionError } from "token-broker-client";
import type { Session } from "token-broker-client";

const stop = new AbortController();

const client = createSessionClient({
  broker: "https://broker.example",
  profile: "transactions",
  authorize: async ({ renew }) => (renew ? "a newer one" : "a bearer"),
  parameters: { merchant: 7, nested: { list: [1, "two", null] } },
  share: "user-1",
  signal: stop.signal,
  fetch: (input, init) => fetch(input, init),
});
createSessionClient({ profile: "by-cookie" });
createSessionClient({ profile: "p", parameters: () => ({ amount: 1 }) });
createSessionClient({ profile: "p", authorize: () => "at once" });

async function uses(): Promise<void> {
  const session: Session = await client.session();
  await client.session({ signal: stop.signal });
  await client.session({ instead: session.token, signal: stop.signal });
  const token: string = await client.token();
  const again: string = await client.token({ instead: token });
  const profile: string = session.profile;
  const left: number = session.expiresIn;
  const due: number | undefined = session.rotateIn;
  const reuse: "per_caller" | "shared" | "single_use" = session.reuse;
  const output: { key: string } = await client.output({ instead: again });
  const same: { key: string } = session.output;
  const done: { status: string } | undefined = await client.act("authenticate", { a: 1 });
  await client.act("cancel");
  await client.act("pay", {}, { signal: stop.signal, withToken: true });
  console.log(profile, left, due?.toFixed(), reuse, output, same, done);

  for await (const one of client) {
    const next: Session = one;
    console.log(next.token.length);
  }

  client.addEventListener("session", (event) => event.detail.token.length);
  client.addEventListener("rotated", (event) => event.detail.expiresIn.toFixed());
  client.addEventListener("expiring", (event) => event.detail.profile.length, { once: true });
  client.addEventListener("error", (event) => event.detail.kind.length);
  const listener = (event: CustomEvent<Session>): void => console.log(event.detail.token);
  client.addEventListener("session", listener);
  client.removeEventListener("session", listener);

  try {
    await client.end();
  } catch (error) {
    if (!(error instanceof SessionError)) throw error;
    const kind: "auth" | "permission" | "expired" | "network" | "server" = error.kind;
    const problem: string | undefined = error.problem;
    const status: number | undefined = error.status;
    const wait: number | undefined = error.retryAfter;
    const request: string | undefined = error.requestId;
    console.log(kind, problem, status, wait, request, error.errors, error.message);
    // @ts-expect-error: there are five kinds
    if (error.kind === "timeout") return;
  }
  client.close();
}

// The adapters, handed over as they are to what expects these shapes.
const nmi: { fetchSessionId: () => Promise<{ sessionToken: string; expiresAt: string }> } = {
  fetchSessionId: client.fetchSessionId,
};
const stripe: { fetchClientSecret: () => Promise<string> } = {
  fetchClientSecret: client.fetchClientSecret,
};
type Answered = (error: string | null, token: string | null) => void;
const ably: { authCallback: (params: object, done: Answered) => void } = {
  authCallback: client.authCallback,
};
const twilio = {
  on(_: "tokenWillExpire", __: (device: { updateToken(token: string): void }) => unknown): void {},
};
twilio.on("tokenWillExpire", client.tokenWillExpire);
const flow: Promise<{ id: string }> = client.paymentSession();
console.log(uses, nmi, stripe, ably, flow);

// @ts-expect-error: a profile must be named
createSessionClient({ broker: "https://broker.example" });
// @ts-expect-error: options must be given
createSessionClient();
// @ts-expect-error: no such option
createSessionClient({ profile: "p", storage: "local" });
// @ts-expect-error: a profile is a name
createSessionClient({ profile: 7 });
// @ts-expect-error: `share` is text that stands for one person
createSessionClient({ profile: "p", share: true });
// @ts-expect-error: an action has a name
client.act();
// @ts-expect-error: a refused token is text
client.token({ instead: 7 });
// @ts-expect-error: a token is not there at once
client.token().length;
// @ts-expect-error: no such event
client.addEventListener("rotation", (event: CustomEvent<Session>) => event.detail.token);
// @ts-expect-error: what failed is not a session
client.addEventListener("error", (event) => event.detail.token);
// @ts-expect-error: sessions are frozen
client.session().then((session) => (session.token = "mine"));
