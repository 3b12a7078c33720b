/**
 * Keeps a session of token-broker; see README.md. Apache-2.0
 * @typedef {Readonly<{session_token: string, output: any, expires_in: number, rotate_in: number,
 *   handle?: string}>} Session
 */
const TIMEOUT = 1e4;
const SLACK = 2e3;

const now = () => performance.now();
const drift = () => Date.now() - now();
const sleep = (ms) => new Promise((go) => setTimeout(go, ms));

export class SessionError extends Error {
	constructor(details, cause) {
		super(details.detail, { cause });
		this.name = "SessionError";
		this.details = details;
		this.problem = details.type?.split(":").pop();
		const kinds = { 401: "auth", 403: "permission", 404: "permission", 410: "expired" };
		/** @type {"auth" | "permission" | "expired" | "network" | "server"} */
		this.kind = kinds[details.status] || (details.status ? "server" : "network");
	}
}

/**
 * @param {{broker?: string, profile: string, authorize?: (why: {renew: boolean}) => any,
 *   parameters?: any, share?: string, fetch?: typeof fetch}} options
 */
export function createSessionClient(options) {
	const { broker = "", profile, authorize, parameters, share, fetch: send = fetch } = options;
	const name = JSON.stringify(["token-broker", broker, profile, share, parameters]);
	const channel = share ? new BroadcastChannel(name) : null;
	const closing = new AbortController();
	const { signal: closed } = closing;
	/** @type {any} */
	let held, failure, refused;
	let intent = "";
	let failures = 0;
	let retryAt = 0;
	let waiting = [];

	const timer = setInterval(tick, 1e3);
	const sure = () => Math.abs(drift() - held.drift) < SLACK;
	const tell = (type, detail) => client.dispatchEvent(new CustomEvent(type, { detail }));
	const news = () => new Promise((go) => (waiting.push(go), tick()));
	const wake = () => waiting.splice(0).forEach((go) => go());

	/** 0: unusable, 1: nearly over, 2: due, 3: fresh */
	function state() {
		const left = held?.until - now();
		if (!(left > 1e3) || !sure() || held.session_token == refused) return 0;
		return left < held.floor ? 1 : now() > held.due ? 2 : 3;
	}

	async function ask(path, body, signal = closed, renew = false) {
		let response;
		let answer;
		try {
			const bearer = authorize && { Authorization: `Bearer ${await authorize({ renew })}` };
			response = await send(`${broker}/v1/${path}`, {
				method: "POST",
				headers: { "Content-Type": "application/json", "Idempotency-Key": intent, ...bearer },
				body: JSON.stringify(body),
				credentials: authorize ? "omit" : "include",
				keepalive: true,
				signal: AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT)]),
			});
			answer = JSON.parse((await response.text()) || "{}");
		} catch (error) {
			signal.throwIfAborted();
			if (!response || response.ok) throw new SessionError({}, error);
		}
		const { status, headers } = response;
		if (response.ok) return answer;
		if (status == 401 && authorize && !renew) return ask(path, body, signal, true);
		throw new SessionError({ status, retry_after: headers.get("retry-after"), ...answer });
	}

	function hold(answer, at, doubt = 0) {
		const { expires_in, rotate_in = Infinity } = answer;
		const type = held ? "rotated" : "session";
		held = {
			...answer,
			until: at + expires_in * 1e3,
			due: at + rotate_in * 1e3,
			floor: Math.min(3e4, expires_in * 100),
			drift: drift() + doubt,
			warned: 0,
			get expires_in() {
				return (this.until - now()) / 1e3;
			},
			get rotate_in() {
				return (this.due - now()) / 1e3;
			},
		};
		tell(type, held);
		wake();
	}

	function show() {
		const fit = held?.reuse != "single_use" && state() > 2;
		if (fit) channel?.postMessage({ ...held, at: Date.now() });
	}

	async function next() {
		const began = now();
		let answer;
		if (channel && !held) {
			channel.postMessage("ask");
			await sleep(150);
		}
		const { handle, due } = held ?? {};
		try {
			if (handle && !sure()) {
				const { expires_in } = await ask("sessions/check", { handle });
				held.until = began + expires_in * 1e3;
				held.drift = drift();
			}
			if (state() > 2) return;
			if (due < Infinity) answer = await ask("sessions/rotate", { handle });
		} catch (error) {
			if (error.kind != "expired") throw error;
		}
		if (!answer) {
			intent ||= `${now()}-${Math.random()}`;
			answer = await ask(`profiles/${profile}/sessions`, { parameters });
			intent = "";
		}
		if (!(answer.expires_in > 0)) throw new SessionError({});
		hold(answer, began);
		show();
	}

	async function work() {
		let led;
		const lead = () => (led = next());
		retryAt = Infinity;
		failure = undefined;
		try {
			const locked = channel && navigator.locks?.request(name, lead);
			await Promise.race([locked, sleep(SLACK)]).catch(() => {});
			await (led || lead());
			failures = 0;
			retryAt = now() + 1e3;
		} catch (error) {
			if (closed.aborted) return;
			failure = error.details ? error : new SessionError({}, error);
			if (failure.details.status < 429) intent = "";
			const wait = Math.max(+failure.details.retry_after || 0, Math.min(60, 2 ** failures++));
			retryAt = now() + wait * (1e3 + Math.random() * 500);
			tell("error", failure);
		}
		wake();
	}

	function tick() {
		if (state() == 1 && !held.warned++) tell("expiring", held);
		const asked = waiting[0] || (held?.due < Infinity && !document.hidden);
		if (asked && state() < 3 && now() >= retryAt) work();
	}

	/** @param {{instead?: string, signal?: AbortSignal}} [wish] @returns {Promise<Session>} */
	async function session({ instead, signal = closed } = {}) {
		const stop = AbortSignal.any([signal, closed]);
		const until = now() + TIMEOUT;
		if (instead == held?.session_token) refused = instead;
		hurry();
		for (let waited; state() < 2; waited = true) {
			stop.throwIfAborted();
			if (failure) {
				if (state()) break;
				if (failure.details.status < 429 ? waited : retryAt > until) throw failure;
			}
			stop.onabort = wake;
			await news();
			stop.onabort = null;
		}
		if (held.reuse == "single_use") refused = held.session_token;
		return held;
	}

	const token = async (...wish) => (await session(...wish)).session_token;
	const output = async (...wish) => (await session(...wish)).output;

	function close() {
		closing.abort();
		clearInterval(timer);
		channel?.close();
		wake();
	}

	function hurry() {
		if (failure && failure.kind != "server") retryAt = Math.min(retryAt, now() + 1e3);
		tick();
	}

	for (const type of ["pageshow", "online", "focus", "visibilitychange"]) {
		addEventListener(type, hurry, { signal: closed });
	}
	channel?.addEventListener("message", ({ data }) => {
		const age = Math.abs(Date.now() - data.at);
		if (data == "end") close(), tell("error", new SessionError({ status: 410 }));
		else if (data == "ask") show();
		else if (!(data.issued_at <= held?.issued_at)) hold(data, now() - age, age);
	});
	const client = Object.assign(new EventTarget(), {
		session,
		token,
		output,
		act: (action, data = {}, more = {}) =>
			ask("sessions/actions/" + action, { handle: held?.handle, data, ...more }),
		close,
		async end() {
			channel?.postMessage("end");
			close();
			const handle = held?.handle;
			if (handle) await ask("sessions/end", { handle }, AbortSignal.timeout(TIMEOUT));
		},
		async *[Symbol.asyncIterator]() {
			for (let last; ; last = held) {
				while (held == last) {
					if (closed.aborted) return;
					await news();
				}
				yield held;
			}
		},
		async fetchSessionId() {
			const { output, expires_in } = await session();
			return { ...output, expiresAt: Date.now() + expires_in * 1e3 };
		},
		fetchClientSecret: () => token(),
		paymentSession: () => output(),
		authCallback: (_, done) => token().then((found) => done(null, found), done),
		tokenWillExpire: (device) => token().then((found) => device.updateToken(found)),
	});
	return client;
}
