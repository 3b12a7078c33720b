/**
 * What the client reports, twice: as a drawing, and in words that screen readers read out.
 *
 * Never a token: of each session the page knows a fingerprint.
 */

import { byId, fingerprintOf, Log, minutes } from "/demo/page.js";
import { Timeline } from "/demo/report-timeline.js";

export class Story {
  #log = new Log(byId("story"));
  #timeline = new Timeline(byId("timeline"));
  #last;

  /** A client begins. */
  begin({ profile, share }) {
    this.#last = undefined;
    this.#timeline.begin();
    this.#log.add("client", `${profile}, ${share ? "shared with other tabs" : "this tab only"}`);
  }

  /** A person has broken, or mended, something. */
  broke(text, mended) {
    this.#timeline.mark(mended ? "mended" : "broken", text);
    this.#log.add("you", text);
  }

  listenTo(client) {
    client.addEventListener("session", ({ detail }) => this.#began(detail));
    client.addEventListener("rotated", ({ detail }) => this.#rotated(detail));
    client.addEventListener("expiring", ({ detail }) => this.#expiring(detail));
    client.addEventListener("error", ({ detail }) => this.#failed(detail));
  }

  async #began(session) {
    const bar = this.#timeline.session(session);
    this.#last = { session, name: fingerprintOf(session.session_token) };
    const [life, due] = [minutes(session.expires_in), minutes(session.rotate_in ?? 0)];
    bar.name = await this.#last.name;
    this.#log.add(
      "session",
      `${bar.name} begins, with ${life} to live and a successor due in ${due}`,
      "accent",
    );
  }

  async #rotated(session) {
    const before = this.#last;
    const left = before?.session.expires_in ?? 0;
    const bar = this.#timeline.session(session);
    this.#last = { session, name: fingerprintOf(session.session_token) };
    bar.name = await this.#last.name;
    const old = (await before?.name) ?? "another tab’s";
    const spare = left > 0 ? `${minutes(left)} before the end` : "after the end";
    this.#log.add("rotated", `${old} → ${bar.name}, ${spare}`, "good");
  }

  async #expiring(session) {
    const left = minutes(session.expires_in);
    const name = await fingerprintOf(session.session_token);
    this.#log.add("expiring", `${name} has ${left} left and no successor yet`, "warn");
  }

  #failed(error) {
    this.#timeline.mark("error", error.kind);
    const { status, retry_after: seconds } = error.details;
    const told = [error.kind, error.problem, status].filter(Boolean).join(" · ");
    const wait = seconds ? `; the broker says: not before ${seconds} s` : "";
    this.#log.add("error", told + wait, "bad");
  }
}
