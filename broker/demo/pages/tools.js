/** Three small things that sign-in and payment need and the language lacks. */

/** Base64url without padding, as PKCE (RFC 7636) and EMV 3-D Secure want it. */
export function base64url(bytes) {
  const text = btoa(String.fromCharCode(...bytes));
  return text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/**
 * Waits so many milliseconds; less, where `window` has an event of the name `until` before. Where
 * the signal is aborted it rejects with the signal's reason.
 */
export function pause(milliseconds, signal, until = undefined) {
  return new Promise((resolve, reject) => {
    const over = new AbortController();
    const timer = setTimeout(end, milliseconds);
    function end() {
      clearTimeout(timer);
      over.abort();
      return signal.aborted ? reject(signal.reason) : resolve(undefined);
    }
    if (signal.aborted) {
      end();
      return;
    }
    signal.addEventListener("abort", end, { signal: over.signal });
    if (until) {
      window.addEventListener(until, end, { signal: over.signal });
    }
  });
}

/** What the promise gives, unless the signal is aborted before: then it rejects with its reason. */
export function unless(signal, promise) {
  return new Promise((resolve, reject) => {
    const settled = new AbortController();
    const stop = () => reject(signal.reason);
    signal.addEventListener("abort", stop, { signal: settled.signal });
    promise.then(resolve, reject).finally(() => settled.abort());
    signal.throwIfAborted();
  });
}
