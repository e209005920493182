/* Calls of the API, with the key of this tab: it goes when the tab is closed, and to no other. */

const NAME = "bergson-key";
let refused = () => {};

export const key = () => sessionStorage.getItem(NAME) ?? "";

export function keepKey(value) {
  if (value) sessionStorage.setItem(NAME, value);
  else sessionStorage.removeItem(NAME);
}

export const authorization = () => (key() ? { Authorization: `Bearer ${key()}` } : {});

/** Call `listener` with what the server says when it lets nobody in without a valid key. */
export function onRefusal(listener) {
  refused = listener;
}

async function request(path, options) {
  const sent = key();
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...authorization(), ...options.headers } });
  } catch {
    throw new Error("The server does not answer.");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const error = new Error(body?.detail ?? `${response.status} ${response.statusText}`);
  error.title = body?.title ?? "Failed";
  error.requestId = body?.request_id;
  error.status = response.status;
  if (error.status === 401 && sent === key()) refused(error.message);
  throw error;
}

/** The answer of a call. Throws an Error whose message is the problem's detail. */
export async function call(path, options = {}) {
  const response = await request(path, { ...options, headers: { Accept: "application/json", ...options.headers } });
  return response.json().catch(() => null);
}

function parsed(block) {
  const event = { event: "message", data: "", id: "" };
  for (const line of block.split("\n")) {
    const [name, ...rest] = line.split(": ");
    if (name in event) event[name] = rest.join(": ");
  }
  return event;
}

/** The server-sent events after `lastId`, one by one, to the end of the stream. An EventSource could send no key. */
export async function* events(path, signal, lastId) {
  const headers = { Accept: "text/event-stream", ...(lastId ? { "Last-Event-ID": lastId } : {}) };
  const response = await request(path, { signal, headers });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (let read = await reader.read(); !read.done; read = await reader.read()) {
      const blocks = (text + read.value).split("\n\n");
      text = blocks.pop();
      yield* blocks.map(parsed).filter((event) => event.data);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
