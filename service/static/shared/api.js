/* Calls of the API. The API key is kept in this tab alone, and is forgotten when the tab is closed. */

const BASE = new URL("../../../", import.meta.url); // The service may lie below a prefix of a proxy; the digest of the files is a folder.
const STORAGE_NAME = "bergson-key";
let refusalListener = () => {};

/** Returns the address of a path of the service. */
export const addressOf = (path) => new URL(path, BASE).href;

export const storedKey = () => sessionStorage.getItem(STORAGE_NAME) ?? "";

export function storeKey(key) {
  if (key) sessionStorage.setItem(STORAGE_NAME, key);
  else sessionStorage.removeItem(STORAGE_NAME);
}

export const authorizationHeader = () => (storedKey() ? { Authorization: `Bearer ${storedKey()}` } : {});

/** Sets the function that is called, with the server's message, when the server refuses the key or misses one. */
export function onRefusal(listener) {
  refusalListener = listener;
}

/** Returns the error of a response: its message is the problem's detail, and it has the problem's other fields. */
async function readProblem(response) {
  const body = await response.json().catch(() => null);
  const error = new Error(body?.detail ?? `${response.status} ${response.statusText}`);
  const retryAfter = Number(response.headers.get("Retry-After"));
  return Object.assign(error, {
    title: body?.title ?? "Failed",
    code: body?.code ?? "error",
    errors: body?.errors ?? [],
    requestId: body?.request_id,
    status: response.status,
    retryAfterS: retryAfter > 0 ? retryAfter : null,
  });
}

async function request(path, options) {
  const sentKey = storedKey();
  let response;
  try {
    response = await fetch(addressOf(path), { ...options, headers: { ...authorizationHeader(), ...options.headers } });
  } catch (cause) {
    if (cause.name === "AbortError") throw cause;
    throw Object.assign(new Error("The server does not answer."), { title: "No connection", code: "no_connection" });
  }
  if (response.ok) return response;
  const error = await readProblem(response);
  if (error.status === 401 && sentKey === storedKey()) refusalListener(error.message);
  throw error;
}

/** Returns the JSON that a call answers, or null for an empty answer. Throws what `readProblem` describes. */
export async function call(path, options = {}) {
  const response = await request(path, { ...options, headers: { Accept: "application/json", ...options.headers } });
  return response.json().catch(() => null);
}

/** Returns a request without the fields that say nothing, as people would write it. */
export const withoutNulls = (request) =>
  Object.fromEntries(Object.entries(request).filter(([, value]) => value !== null && value !== undefined));

/** Sends `body` as JSON. */
export const post = (path, body, options = {}) =>
  call(path, {
    ...options, method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });

function parseEvent(block) {
  const event = { event: "message", data: "", id: "" };
  for (const line of block.split("\n")) {
    const [name, ...rest] = line.split(": ");
    if (name in event) event[name] = rest.join(": ");
  }
  return event;
}

/** Yields the server-sent events after `lastId` until the stream ends. An EventSource could not send an API key. */
export async function* events(path, signal, lastId) {
  const headers = { Accept: "text/event-stream", ...(lastId ? { "Last-Event-ID": lastId } : {}) };
  const response = await request(path, { signal, headers });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (let read = await reader.read(); !read.done; read = await reader.read()) {
      const blocks = (text + read.value).split("\n\n");
      text = blocks.pop();
      yield* blocks.map(parseEvent).filter((event) => event.data);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
