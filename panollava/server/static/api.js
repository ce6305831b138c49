// Requests to the server: the key, errors as texts of the page, and answers that arrive in pieces.

const STORED = "panollava.key";
let key = "";
try {
    key = sessionStorage.getItem(STORED) ?? "";
} catch {
    // Where the browser stores nothing, the key lasts as long as the page.
}

/** An error with the name of its text (see texts.json) and the values in it. */
export class Failure extends Error {
    constructor(name, values = {}, status = 0) {
        super(values.message ?? name);
        this.text = name;
        this.values = values;
        this.status = status;
    }
}

export const hasKey = () => key !== "";

/** Sets the key that all later requests send. */
export function useKey(value) {
    key = value;
    try {
        sessionStorage.setItem(STORED, value);
    } catch {
        // As above.
    }
}

/** Sends a request; every answer that is not a success is a Failure. */
async function request(path, options = {}) {
    const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    let answer;
    try {
        answer = await fetch(path, { ...options, headers });
    } catch (error) {
        throw error.name === "AbortError" ? error : new Failure("error.network");
    }
    if (!answer.ok) {
        throw await failure(answer);
    }
    return answer;
}

async function failure(answer) {
    const { status } = answer;
    if (status === 401) {
        return new Failure("error.key", {}, status);
    }
    if (status === 429) {
        const seconds = Number.parseInt(answer.headers.get("Retry-After") ?? "", 10);
        return new Failure("error.busy", { seconds: Number.isNaN(seconds) ? 5 : seconds }, status);
    }
    try {
        const { message } = (await answer.json()).error;
        return new Failure("error.server", { message: String(message) }, status);
    } catch {
        return new Failure("error.status", { status }, status);
    }
}

const posted = (body, signal) => ({
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
});

const pathOf = (picture, part = "", query = {}) =>
    `api/pictures/${encodeURIComponent(picture)}${part}${part && "?"}${new URLSearchParams(query)}`;

export const info = async () => (await request("api/info")).json();

export const picture = async (id, signal) => (await request(pathOf(id), { signal })).blob();

export const views = async (id, model, signal) => (await request(pathOf(id, "/views", { model }), { signal })).json();

export const boxes = async (id, model, signal) => (await request(pathOf(id, "/boxes", { model }), { signal })).json();

export const mask = async (id, model, signal) => (await request(pathOf(id, "/mask", { model }), { signal })).blob();

export const similar = async (id, query, signal) => heatMap(await request(pathOf(id, "/similar", query), { signal }));

export const attention = async (body, signal) => heatMap(await request("api/attention", posted(body, signal)));

/** Sends the bytes of a file; the answer has the picture's id. */
export async function upload(file, signal) {
    const headers = { "Content-Type": file.type };
    return (await request("api/pictures", { method: "POST", headers, body: file, signal })).json();
}

async function heatMap(answer) {
    const range = (answer.headers.get("X-Range") ?? "").match(/-?\d+(?:\.\d+)?(?:e[+-]?\d+)?/gi) ?? [];
    return { blob: await answer.blob(), low: range[0] ?? "?", high: range[1] ?? "?" };
}

/**
 * Asks a question.
 *
 * `onPiece` is called with each piece of the answer. The result is the event that ends it:
 * `{answer, finish_reason, tokens}`.
 */
export async function ask(body, signal, onPiece) {
    const answer = await request("api/ask", posted(body, signal));
    for await (const event of events(answer.body)) {
        if (event.error) {
            throw new Failure("error.server", { message: String(event.error.message) });
        }
        if (typeof event.answer === "string") {
            return event;
        }
        if (typeof event.text === "string") {
            onPiece(event.text);
        }
    }
    throw new Failure("error.cut");
}

/** The JSON values of a text/event-stream. */
async function* events(stream) {
    const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
    let waiting = "";
    try {
        for (;;) {
            let piece;
            try {
                piece = await reader.read();
            } catch (error) {
                throw error.name === "AbortError" ? error : new Failure("error.cut");
            }
            if (piece.done) {
                return;
            }
            const lines = (waiting + piece.value).split(/\r?\n/);
            waiting = lines.pop();
            for (const line of lines) {
                if (line.startsWith("data:")) {
                    const data = line.slice(5).trim();
                    if (data.startsWith("{")) {
                        yield JSON.parse(data);
                    }
                }
            }
        }
    } finally {
        reader.cancel().catch(() => {});
    }
}
