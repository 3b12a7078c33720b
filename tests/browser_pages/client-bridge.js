/**
 * A `fetch` for a frame without an origin, whose own requests the broker refuses: the page around
 * it makes them. Each side has one function. Must not pass on any request but those of the broker.
 */

/** The page: makes the requests of that frame, to that broker only. */
export function offerFetch(frame, broker) {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = async ({ data: { url, ...init }, ports: [answer] }) => {
    try {
      if (!url.startsWith(`${broker}/v1/`)) throw new TypeError("Not the broker's");
      const response = await fetch(url, init);
      answer.postMessage([await response.text(), response.status, [...response.headers]]);
    } catch (error) {
      answer.postMessage([String(error)]);
    }
  };
  frame.contentWindow.postMessage("fetch", "*", [port2]);
}

/** The frame: a `fetch` for `createSessionClient`; a signal cannot be passed on. */
export async function takeFetch() {
  const port = await new Promise((go) => {
    addEventListener("message", ({ data, ports }) => data === "fetch" && go(ports[0]));
  });
  return (url, { method, headers, body, credentials }) => new Promise((resolve, reject) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = ({ data: [text, status, fields] }) => {
      if (!status) reject(new TypeError(text));
      else resolve(new Response(status === 204 ? null : text, { status, headers: fields }));
    };
    port.postMessage({ url, method, headers, body, credentials }, [port2]);
  });
}
