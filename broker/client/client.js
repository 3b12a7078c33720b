/**
 * See README.md. Apache-2.0
 * @typedef {{handle: string, session_token: string, output: any, expires_in: number,
 * rotate_in: number}} Session
 */
const TIMEOUT = 1e4;
const SLACK = 1500;
const now = () => performance.now();
const drift = () => Date.now() - now();
const sleep = (ms) => new Promise((go) => setTimeout(go, ms));

export class SessionError extends Error {
	constructor(details, cause) {
		super(details.detail, { cause });
		this.name = "SessionError";
		this.details = details;
		this.problem = details.type?.split?.(":").pop();
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
	const name = JSON.stringify([broker, profile, parameters, share]);
	const channel = share ? new BroadcastChannel(name) : null;
	const client = new EventTarget();
	const closing = new AbortController();
	const { signal: closed } = closing;
	/** @type {any} */
	let held, failure, refused;
	let waiting = [];
	let calm = drift();
	let intent = "";
	let failures = 0;
	let retryAt = 0;

	const timer = setInterval(tick, 1e3);
	const off = () => Math.abs(drift() - calm);
	const tell = (type, detail) => client.dispatchEvent(new CustomEvent(type, { detail }));
	const news = () => new Promise((go) => (waiting.push(go), tick()));
	const single = () => held.reuse == "single_use";
	const wake = () => waiting.splice(0).forEach((go) => go());

	/** 0: unusable, 1: nearly over, 2: due, 3: fresh */
	function state() {
		if (off() > SLACK) calm = NaN;
		const left = held?.until - now() - off();
		if (!(left > SLACK) || held.session_token == refused) return 0;
		return left < held.floor ? 1 : left < held.lead ? 2 : 3;
	}

	async function ask(path, body, signal = closed, renew = false) {
		let response, answer, at, then;
		try {
			const bearer = authorize && { Authorization: `Bearer ${await authorize({ renew })}` };
			at = now();
			then = drift();
			response = await send(`${broker}/v1/${path}`, {
				method: "POST",
				headers: { "Content-Type": "application/json", "Idempotency-Key": intent, ...bearer },
				body: JSON.stringify(body),
				credentials: authorize ? "omit" : "include",
				keepalive: true,
				redirect: "error",
				signal: AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT)]),
			});
			answer = { ...JSON.parse((await response.text()) || null) };
		} catch (error) {
			signal.throwIfAborted();
			if (!response || response.ok) throw new SessionError({}, error);
		}
		signal.throwIfAborted();
		if (response.ok) return [answer, at, then];
		const { status, headers } = response;
		if (authorize && status == 401 && !renew) return ask(path, body, signal, true);
		throw new SessionError({ retry_after: headers.get("retry-after"), ...answer, status });
	}

	function hold(answer, at) {
		const { expires_in, rotate_in = expires_in } = answer;
		const type = held ? "rotated" : "session";
		held = {
			...answer,
			until: at + expires_in * 1e3,
			lead: Math.min(expires_in - rotate_in, expires_in / 1.1) * 1e3,
			floor: Math.min(30, expires_in / 10) * 1e3,
			warned: 0,
			get expires_in() {
				return (this.until - now()) / 1e3;
			},
			get rotate_in() {
				return this.expires_in - this.lead / 1e3;
			},
		};
		intent = "";
		tell(type, held);
		wake();
	}

	function show() {
		if (state() > 2 && !single()) channel?.postMessage({ ...held, at: Date.now() });
	}

	async function next() {
		if (channel && !held) {
			channel.postMessage("ask");
			await sleep(150);
		}
		const was = held;
		const { handle, lead } = was ?? {};
		let found;
		try {
			while (lead && !(off() < SLACK)) {
				const [{ expires_in }, at, then] = await ask("sessions/check", { handle });
				if (held != was) return;
				was.until = at + expires_in * 1e3;
				calm = then;
			}
			if (state() > 2) return;
			if (lead) found = await ask("sessions/rotate", { handle });
		} catch (error) {
			if (!/exp|perm/.test(error.kind)) throw error;
		}
		if (held != was) return;
		intent ||= `${now()}-${Math.random()}`;
		found ??= await ask(`profiles/${profile}/sessions`, { parameters });
		const [answer, at, then] = found;
		if (held != was) return;
		const { session_token, expires_in } = answer;
		if (!(expires_in > 1 && session_token) || session_token == refused) throw new SessionError({});
		calm = then;
		hold(answer, at);
		show();
	}

	async function work() {
		let led;
		const lead = () => (led = next());
		retryAt = Infinity;
		failure = undefined;
		try {
			const signal = AbortSignal.timeout(SLACK);
			if (channel) await navigator.locks?.request(name, { signal }, lead).catch(() => {});
			await (led || lead());
			failures = 0;
			retryAt = now() + 1e3;
		} catch (error) {
			if (closed.aborted) return;
			failure = error.details ? error : new SessionError({}, error);
			const { status, retry_after } = failure.details;
			const wait = Math.min(300, Math.max(+retry_after || 0, Math.min(30, 2 ** failures++)));
			retryAt = now() + wait * (1e3 + Math.random() * 500);
			if (status < 429) intent = "";
			tell("error", failure);
		}
		wake();
	}

	function tick() {
		if (state() == 1 && !held.warned++) tell("expiring", held);
		if (state() < 3 && now() >= retryAt && (waiting[0] || (held?.lead && !document.hidden))) work();
	}

	/** @returns {Promise<Session>} */
	async function session({ instead = "", signal = closed } = {}) {
		const stop = AbortSignal.any([signal, closed]);
		const until = now() + TIMEOUT;
		if (instead == held?.session_token) refused = instead;
		for (let waited; stop.throwIfAborted(), state() < 2; waited = true) {
			if (failure) {
				if (state()) break;
				if (retryAt > until || (waited && failure.details.status < 429)) throw failure;
			}
			stop.onabort = wake;
			await news();
			stop.onabort = null;
		}
		if (single()) refused = held.session_token;
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
		const age = Math.abs(Date.now() - data?.at);
		if (data == "end") close(), tell("end");
		if (data == "ask") show();
		if (data?.issued_at > (held?.issued_at ?? "")) {
			if (age > SLACK) calm = NaN;
			hold(data, now() - age);
		}
	});
	return Object.assign(client, {
		session,
		token,
		output,
		act: async (action, data = {}, more = {}) =>
			(await ask("sessions/actions/" + action, { handle: held?.handle, data, ...more }))[0],
		close,
		async end() {
			const handle = held?.handle;
			if (!closed.aborted) channel?.postMessage("end");
			close();
			if (handle) await ask("sessions/end", { handle }, AbortSignal.any([]));
			held = undefined;
		},
		async *[Symbol.asyncIterator]() {
			for (let last; !closed.aborted; ) {
				if (held == last || !state()) await news();
				else yield (last = held);
			}
		},
		async fetchSessionId() {
			const { output, expires_in } = await session();
			return { ...output, expiresAt: Date.now() + expires_in * 1e3 };
		},
		fetchClientSecret: () => token(),
		paymentSession: () => output(),
		authCallback: (_, done) => token().then((found) => done(null, found), done),
		tokenWillExpire: (device) => token().then((found) => device.updateToken(found), () => {}),
	});
}
