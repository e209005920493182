/* A question as the form holds it, as a request to the service, and as the address of the page. */

import { withoutNulls } from "../shared/api.js";

export const RESULT_COUNTS = [5, 10, 20, 32, 100];

/** Most documents on a side with shades: the model reads each of them again. */
export const MAX_SHADED = 32;

export const EMPTY_QUESTION = Object.freeze({
  index: "",
  profile: "default",
  mode: "prompt",
  prompt: "",
  completion: "",
  messages: [{ role: "user", content: "" }, { role: "assistant", content: "" }],
  behaviour: "",
  instead_of_behaviour: "",
  between: null,
  top_k: 10,
  shades: true,
  words: true,
  order: "influence",
  exact: false,
  fold: "", // by words, in the page; otherwise the `group_by` of the service
});

/** What of a question another index may not have. */
export const NEW_INDEX = Object.freeze({ profile: "default", fold: "", behaviour: "", instead_of_behaviour: "", between: null });

/**
 * Returns the fields of the form that do not go with the others, with the values that they have instead. The sums of
 * groups are those of the scores of the index, which have no parts and no other order; a behaviour has no words, no
 * whole gradients, and is kept over all checkpoints. The service shades at most 32 documents in each direction.
 */
export function unavailable({ fold, mode, between, top_k: count }) {
  return {
    ...(count > MAX_SHADED ? { shades: false } : {}),
    ...(fold ? { shades: false, order: "influence", exact: false } : {}),
    ...(mode === "behaviour" ? { words: false, order: "influence", exact: false, between: null } : {}),
    ...(between ? { exact: false } : {}),
  };
}

function askedText({ mode, messages, behaviour, instead_of_behaviour: other, prompt, completion }) {
  if (mode === "chat") return { messages };
  if (mode === "behaviour") return { behaviour, instead_of_behaviour: other || null };
  return { prompt, completion: completion || null }; // null lets the model generate one
}

/** Returns the body of `POST /attribute` for what the form holds. */
export function makeRequest(asked) {
  const question = { ...asked, ...unavailable(asked) };
  return {
    index: question.index, ...askedText(question), top_k: question.top_k, direction: "both", profile: question.profile,
    include: ["text", "metadata", ...(question.shades ? ["tokens"] : []), ...(question.words ? ["words"] : []),
      ...(question.exact ? [] : ["background"])], // exact scores are on another scale than those of random documents
    order: question.order === "influence" ? null : question.order,
    rescore: question.exact ? 200 : null,
    group_by: question.fold || null,
    between: question.between,
  };
}

/** Returns what the form holds for a request, so that a question can be changed and asked again. */
export function makeQuestion(request) {
  return {
    ...EMPTY_QUESTION,
    index: request.index,
    profile: request.profile ?? "default",
    mode: request.behaviour ? "behaviour" : request.messages ? "chat" : "prompt",
    behaviour: request.behaviour ?? "",
    instead_of_behaviour: request.instead_of_behaviour ?? "",
    between: request.between ?? null,
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
