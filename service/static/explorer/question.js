/* A question as the form holds it, as a request to the service, and as the address of the page. */

export const RESULT_COUNTS = [5, 10, 20, 32];

export const EMPTY_QUESTION = Object.freeze({
  index: "",
  profile: "default",
  mode: "prompt",
  prompt: "",
  completion: "",
  messages: [{ role: "user", content: "" }, { role: "assistant", content: "" }],
  top_k: 10,
  shades: true,
  words: true,
  order: "influence",
  exact: false,
  fold: "", // by words, in the page; otherwise the `group_by` of the service
});

/** Returns the body of `POST /attribute` for what the form holds. */
export function makeRequest(asked) {
  // The sums of groups are those of the scores of the index, which have no parts and no other order.
  const question = asked.fold ? { ...asked, shades: false, order: "influence", exact: false } : asked;
  const text = question.mode === "chat" ? { messages: question.messages }
    : { prompt: question.prompt, completion: question.completion || null }; // null lets the model generate one
  return {
    index: question.index, ...text, top_k: question.top_k, direction: "both", profile: question.profile,
    include: ["text", "metadata", ...(question.shades ? ["tokens"] : []), ...(question.words ? ["words"] : []),
      ...(question.exact ? [] : ["background"])], // exact scores are on another scale than those of random documents
    order: question.order === "influence" ? null : question.order,
    rescore: question.exact ? 200 : null,
    group_by: question.fold || null,
  };
}

/** Returns what the form holds for a request, so that a question can be changed and asked again. */
export function makeQuestion(request) {
  return {
    ...EMPTY_QUESTION,
    index: request.index,
    profile: request.profile ?? "default",
    mode: request.messages ? "chat" : "prompt",
    prompt: request.prompt ?? "",
    completion: request.completion ?? "",
    messages: request.messages ?? EMPTY_QUESTION.messages,
    top_k: request.top_k ?? 10,
    shades: (request.include ?? []).includes("tokens"),
    words: (request.include ?? []).includes("words"),
    order: request.order ?? "influence",
    exact: Boolean(request.rescore),
    fold: request.group_by ?? "",
  };
}

/** Returns a request without the fields that say nothing, as people would write it. */
export const withoutNulls = (request) =>
  Object.fromEntries(Object.entries(request).filter(([, value]) => value !== null && value !== undefined));

/** Returns the fragment of the page's address that asks a request. A fragment is never sent to a server. */
export const makeFragment = (request) => `#${new URLSearchParams({ ask: JSON.stringify(withoutNulls(request)) })}`;

/** Returns the view that a fragment names: `{name: "start"}`, `{name: "build"}`, a request or a link. */
export function readFragment(fragment) {
  const fields = new URLSearchParams(fragment.slice(1));
  if (fields.has("build")) return { name: "build" };
  if (fields.get("link")) return { name: "link", id: fields.get("link") };
  try {
    const request = JSON.parse(fields.get("ask") ?? "null");
    const isQuestion = request && typeof request === "object" && typeof request.index === "string";
    return isQuestion ? { name: "ask", request } : { name: "start" };
  } catch {
    return { name: "start" };
  }
}
