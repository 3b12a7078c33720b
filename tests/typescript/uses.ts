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
  fetch: (input, init) => fetch(input, init),
});
createSessionClient({ profile: "by-cookie" });
createSessionClient({ profile: "p", authorize: () => "at once" });

async function uses(): Promise<void> {
  const session: Session = await client.session();
  await client.session({ signal: stop.signal });
  await client.session({ instead: session.session_token, signal: stop.signal });
  const token: string = await client.token();
  const again: string = await client.token({ instead: token });
  const left: number = session.expires_in;
  const due: number = session.rotate_in;
  const handle: string = session.handle;
  const output: { key: string } = await client.output({ instead: again });
  const same: { key: string } = session.output;
  const done: { status: string } | undefined = await client.act("authenticate", { a: 1 });
  await client.act("cancel");
  await client.act("pay", {}, { session_token: token });
  console.log(left, due, handle, output, same, done);

  for await (const one of client) {
    const next: Session = one;
    console.log(next.session_token.length);
  }

  const changed = (event: Event): void => {
    const { detail } = event as CustomEvent<Session>;
    console.log(detail.expires_in);
  };
  client.addEventListener("session", changed);
  client.addEventListener("rotated", changed, { once: true });
  client.removeEventListener("session", changed);

  try {
    await client.end();
  } catch (error) {
    if (!(error instanceof SessionError)) throw error;
    const kind: "auth" | "permission" | "expired" | "network" | "server" = error.kind;
    const problem: string | undefined = error.problem;
    console.log(kind, problem, error.details.status, error.message, error.cause);
    // @ts-expect-error: there are five kinds
    if (error.kind === "timeout") return;
  }
  client.close();
}

// The adapters, handed over as they are to what expects these shapes.
const nmi: { fetchSessionId: () => Promise<{ sessionToken: string; expiresAt: number }> } = {
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
client.session({ instead: 7 });
// @ts-expect-error: a token is not there at once
client.token().length;
