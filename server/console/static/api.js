// The server's public API. Keys stay in this tab (sessionStorage) and travel in headers alone.

const BASE = new URL("..", import.meta.url);
const ADMIN = "inference-guard key";
const MODELS = "inference-guard key for models";

export class Failure extends Error {
  constructor(message, { status = 0, code = "", param = "", guard = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, guard });
  }
}

export const keys = {
  get admin() { return sessionStorage.getItem(ADMIN) ?? ""; },
  set admin(key) { put(ADMIN, key); },
  /** Models may be asked with another key than the administrator's, whose role asks none. */
  get models() { return sessionStorage.getItem(MODELS) ?? ""; },
  set models(key) { put(MODELS, key); },
};

function put(name, key) {
  if (key) sessionStorage.setItem(name, key);
  else sessionStorage.removeItem(name);
}

async function send(method, path, { body, key = keys.admin, signal, accept = "application/json" } = {}) {
  const headers = { accept };
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const options = { method, headers, signal, credentials: "omit", cache: "no-store" };
  if (body !== undefined) options.body = JSON.stringify(body);
  let response;
  try {
    response = await fetch(new URL(path, BASE), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server does not answer. Is it running, and reachable from here?");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  let answer = {};
  try { answer = await response.json(); } catch { /* not from this server */ }
  const { message, code, param } = answer.error ?? {};
  const text = message ?? `The server answered with status ${response.status}.`;
  return new Failure(text, { status: response.status, code, param, guard: answer.guard ?? null });
}

export const call = async (method, path, options) => (await send(method, path, options)).json();

export const get = (path, options) => call("GET", path, options);

export const post = (path, body, options) => call("POST", path, { ...options, body });

export const text = async (path, options) => (await send("GET", path, options)).text();

/** The data of the events of a stream, as they come; ends with the stream. */
export async function* events(method, path, options = {}) {
  const response = await send(method, path, { accept: "text/event-stream", ...options });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
        if (!data) continue;
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error?.message) throw new Failure(event.error.message, { code: event.error.code, guard: event.guard ?? null });
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** All items of a list that comes in pages, up to `most`. */
export async function all(path, most = 1000) {
  const found = [];
  let after = "";
  while (found.length < most) {
    const joint = path.includes("?") ? "&" : "?";
    const page = await get(`${path}${after && `${joint}after=${encodeURIComponent(after)}`}`);
    found.push(...page.data);
    if (!page.has_more) break;
    after = page.last_id;
  }
  return found;
}
