/**
 * Where the issuer's pages are shown: a frame that nobody sees (3DS method), a frame in a dialog
 * (challenge), a window of their own (the hosted page, which refuses to be framed).
 *
 * They end at the shop's server: the issuer posts there, and the answer is a page of one line,
 * `(opener ?? parent).postMessage("3ds-return", ORIGIN)`. That carries nothing, since
 * anybody could have posted: it means that it is worth asking the broker now.
 */

/*
 * What an issuer's page may do in our frame, and no more: post its forms, run its scripts, and be
 * of its own origin, without which it has no cookies, and its messages no origin to check. It may
 * not lead the top window away, nor open windows, dialogs or downloads. (Browsers warn of the last
 * two together, which are no fence for pages of our own origin: none of ours is ever shown there.)
 */
const SANDBOX = "allow-forms allow-scripts allow-same-origin";

/**
 * @param {HTMLDialogElement} dialog
 * @param {string} shop the origin of the shop's server, from which messages are taken
 */
export function createViews(dialog, shop) {
  const part = (name) => dialog.querySelector(`[data-part="${name}"]`);

  /** Calls back when the shop's page says, in that very frame or window, that it was reached. */
  function onReturn(view, callback, signal) {
    const listen = (event) => {
      if (event.origin === shop && event.source === view && event.data === "3ds-return") {
        callback(true);
      }
    };
    window.addEventListener("message", listen, { signal });
  }

  /** The 3DS method. Gives whether the issuer answered within the limit (in ms). */
  async function fingerprint(url, form, limit, signal) {
    const frame = newFrame("3ds-method", "Your bank recognises this device");
    frame.hidden = true;
    document.body.append(frame);
    const over = new AbortController();
    try {
      return await new Promise((resolve, reject) => {
        signal.addEventListener("abort", () => reject(signal.reason), { signal: over.signal });
        setTimeout(resolve, limit, false);
        onReturn(frame.contentWindow, resolve, over.signal);
        post(url, form, frame.name);
      });
    } finally {
      over.abort();
      frame.remove();
    }
  }

  /** The challenge, in a frame in the dialog. */
  function challenge(url, form) {
    const frame = newFrame("3ds-challenge", "Your bank asks you to confirm the payment");
    frame.className = "issuer-frame";
    const view = open("challenge", [frame]);
    onReturn(frame.contentWindow, view.arrive, view.closed);
    post(url, form, frame.name);
    return view;
  }

  /** The hosted page. A window opens at a click only, else the browser takes it for advertising. */
  function redirect(url) {
    let other = null;
    const view = open("hosted", []);
    const show = () => {
      // The opener stays known to that window: so does the shop's page find back at the end.
      other = window.open(url, "3ds-hosted", "popup,width=520,height=680");
      part("blocked").hidden = other !== null;
      part("opened").hidden = other === null;
      if (other !== null) {
        onReturn(other, view.arrive, view.closed);
      }
    };
    part("open").addEventListener("click", show, { signal: view.closed });
    view.closed.addEventListener("abort", () => other?.close());
    return view;
  }

  /** Opens the dialog: focus moves into it, and back to where it was when it closes. */
  function open(kind, content) {
    const over = new AbortController();
    const cancelled = new AbortController();
    const { promise: returned, resolve: arrive } = Promise.withResolvers();

    function cancel() {
      dialog.close(); // at once, whatever the network does
      cancelled.abort();
    }
    for (const words of dialog.querySelectorAll("[data-of]")) {
      words.hidden = words.dataset.of !== kind;
    }
    part("place").replaceChildren(...content);
    part("cancel").addEventListener("click", cancel, { signal: over.signal });
    dialog.addEventListener("cancel", cancel, { signal: over.signal }); // the Escape key
    for (const notice of ["opened", "blocked", "returned"]) {
      part(notice).hidden = true;
    }
    returned.then(() => {
      part("returned").hidden = false;
    });
    dialog.showModal();
    part("title").focus();

    return {
      arrive,
      returned,
      cancelled: cancelled.signal,
      closed: over.signal,
      close() {
        over.abort();
        dialog.close();
        part("place").replaceChildren();
      },
    };
  }

  return { fingerprint, challenge, redirect };
}

function newFrame(name, title) {
  const frame = document.createElement("iframe");
  frame.name = name;
  frame.title = title;
  frame.sandbox = SANDBOX;
  return frame;
}

/** Posts a form into a frame: EMV 3-D Secure has no other way in. */
function post(url, fields, target) {
  const form = document.createElement("form");
  form.method = "post";
  form.action = url;
  form.target = target;
  form.hidden = true;
  for (const [name, value] of Object.entries(fields)) {
    const field = document.createElement("input");
    field.type = "hidden";
    field.name = name;
    field.value = value;
    form.append(field);
  }
  document.body.append(form);
  form.submit();
  form.remove();
}
