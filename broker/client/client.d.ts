export type Session = {
    handle: string;
    session_token: string;
    output: any;
    expires_in: number;
    rotate_in: number;
};
export declare class SessionError extends Error {
    details: any;
    problem: any;
    /** @type {"auth" | "permission" | "expired" | "network" | "server"} */
    kind: "auth" | "permission" | "expired" | "network" | "server";
    constructor(details: any, cause: any);
}
/**
 * @param {{broker?: string, profile: string, authorize?: (why: {renew: boolean}) => any,
 *   parameters?: any, share?: string, fetch?: typeof fetch}} options
 */
export declare function createSessionClient(options: {
    broker?: string;
    profile: string;
    authorize?: (why: {
        renew: boolean;
    }) => any;
    parameters?: any;
    share?: string;
    fetch?: typeof fetch;
}): EventTarget & {
    session: ({ instead, signal }?: {
        instead?: string | undefined;
        signal?: AbortSignal | undefined;
    }) => Promise<Session>;
    token: (...wish: any[]) => Promise<string>;
    output: (...wish: any[]) => Promise<any>;
    act: (action: any, data?: {}, more?: {}) => Promise<any>;
    close: () => void;
    end(): Promise<void>;
    [Symbol.asyncIterator](): AsyncGenerator<any, void, unknown>;
    fetchSessionId(): Promise<any>;
    fetchClientSecret: () => Promise<string>;
    paymentSession: () => Promise<any>;
    authCallback: (_: any, done: any) => Promise<any>;
    tokenWillExpire: (device: any) => Promise<any>;
};
