/**
 * The report page, from the top: `connect` is the integration, and all that a shop would write.
 * The rest of this file, and the files beside it, show on a page what goes on underneath.
 */

import { createSessionClient } from "/v1/client.js";
import { LoginOver, redirectToLogin, signIn } from "/demo/login.js";
import { byId } from "/demo/page.js";
import { Breaks } from "/demo/report-breaks.js";
import { Calls } from "/demo/report-calls.js";
import { SessionPanel } from "/demo/report-session.js";
import { Story } from "/demo/report-story.js";

/** A report component that always has a session, and the client that sees to it. */
function connect(user, { profile, share }, fetch) {
  const client = createSessionClient({
    profile,
    authorize: ({ renew }) => (renew ? user.renew() : user.bearer()),
    share: share ? user.subject : undefined, // one session for all tabs of this person
    fetch, // only for the buttons of this page that break it: leave it out
  });
  const report = document.createElement("nmi-transactions-report");
  report.fetchSessionId = client.fetchSessionId;
  report.addEventListener("unauthorized", (event) => {
    // Revoked before its time. What goes wrong here is told by the client's "error" event as well.
    client.session({ instead: event.detail.token }).catch(() => {});
  });
  return { client, report };
}

const { sandbox } = await (await fetch("/demo.json")).json();
try {
  const [user] = await Promise.all([signIn(sandbox), import(`${sandbox}/nmi/embed/report.js`)]);
  byId("starting").hidden = true;
  byId(user ? "board" : "entrance").hidden = false;
  if (user) {
    open(user);
  }
} catch (error) {
  byId("starting").textContent = "The sandbox does not answer. Load this page again once it runs.";
  throw error;
}
for (const id of ["sign-in", "sign-in-again"]) {
  byId(id).addEventListener("click", () => redirectToLogin(sandbox));
}

/** Everything there is to see once somebody is signed in. */
function open(user) {
  const story = new Story();
  const calls = new Calls(sandbox);
  const breaks = new Breaks(sandbox, (text, mended) => story.broke(text, mended));
  const panel = new SessionPanel();
  let client;

  /** Anew for each choice of profile and sharing. */
  function begin(choice) {
    client?.close();
    panel.clear();
    story.begin(choice);
    const made = connect(user, choice, calls.watching(breaks.around((...call) => fetch(...call))));
    client = made.client;
    story.listenTo(client);
    panel.listenTo(client);
    breaks.listenTo(client);
    client.addEventListener("error", ({ detail }) => {
      const over = detail.kind === "auth" || detail.cause instanceof LoginOver;
      byId("again").hidden = !over;
    });
    endOf(client).then(() => {
      if (client === made.client) {
        panel.close();
        byId("again").hidden = false;
      }
    });
    byId("again").hidden = true;
    byId("report").replaceChildren(made.report);
  }

  byId("name").textContent = user.name;
  byId("who").hidden = false;
  byId("sign-out").addEventListener("click", async (event) => {
    event.currentTarget.disabled = true;
    const last = client;
    client = null;
    await last.end().catch(() => {}); // the broker may be away; the login is to end all the same
    await breaks.mend();
    user.signOut();
  });
  onChoice(begin);
}

/** The sessions of a client, one after the other, until it is closed: also by another tab. */
async function endOf(client) {
  try {
    for await (const session of client) {
      void session; // the events have told it
    }
  } catch {
    // What went wrong was an event as well.
  }
}

/** Which profile, and whether tabs share. It stands in the address, so that a second tab agrees. */
function onChoice(begin) {
  const form = /** @type {HTMLFormElement} */ (byId("choices"));
  const { profile, share } = form.elements;

  function chosen() {
    const query = new URLSearchParams({ profile: profile.value, share: share.checked ? "1" : "0" });
    byId("second").href = `/?${query}`;
    history.replaceState(null, "", `/?${query}`);
    begin({ profile: profile.value, share: share.checked });
  }

  const asked = new URLSearchParams(location.search);
  profile.value = asked.get("profile");
  if (profile.value === "") {
    profile.value = "transactions-minute";
  }
  share.checked = asked.get("share") !== "0";
  form.addEventListener("change", chosen);
  form.addEventListener("submit", (event) => event.preventDefault());
  chosen();
}
