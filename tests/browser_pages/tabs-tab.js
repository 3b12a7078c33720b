/**
 * One of several tabs, as tests/test_client_tabs.py drives it: `start` makes a client, `ask` asks
 * it as a component would, and `story` is all that it said, with the wall clock's milliseconds.
 */
const TYPES = ["session", "rotated", "expiring", "error", "end"];

globalThis.story = [];

/** How the client names its channel and its lock: `named`. */
globalThis.BroadcastChannel &&= class extends BroadcastChannel {
  constructor(name) {
    super(name);
    globalThis.named ??= name;
  }
};

/** What was handed out, and what was left of it then. */
const given = ({ session_token: token, expires_in: left }) => ({ token, left, at: Date.now() });
const refused = ({ name: error, kind }) => (kind ? { error, kind } : { error });

globalThis.start = async ({ broker, bearer, ...options }) => {
  const { createSessionClient } = await import(`${broker}/v1/client.js`);
  const client = createSessionClient({ broker, authorize: () => bearer, ...options });
  for (const type of TYPES) {
    client.addEventListener(type, ({ detail }) => {
      story.push({ type, ...(detail && (type === "error" ? refused(detail) : given(detail))) });
    });
  }
  globalThis.client = client;
};

globalThis.ask = (wish) => client.session(wish).then(given, refused);

/** A component that waits for its answer while the test does something else: `answer` has it. */
globalThis.begin = (wish) => {
  globalThis.answer = undefined;
  ask(wish).then((found) => { globalThis.answer = found; });
};
