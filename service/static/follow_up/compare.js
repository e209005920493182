/* Two answers in two columns, with what moved: of two indexes, profiles, spans of checkpoints or behaviours. */

import { post, withoutNulls } from "../shared/api.js";
import { AnswerView } from "../answer/answer_view.js";
import { scoreScale, shadeScale } from "../answer/tokens.js";
import { useBehaviours } from "../behaviours/use_behaviours.js";
import { html, useEffect, useMemo, useState } from "../shared/html.js";
import { Note, Problem, Skeleton } from "../shared/parts.js";

/** Returns the rank of each document of an answer; opponents count separately. */
function ranksOf(answer) {
  const entries = (rows, side) => (rows ?? []).map((row) => [`${side} ${row.id}`, row.rank]);
  return new Map([...entries(answer.results, "+"), ...entries(answer.opponents, "-")]);
}

/** Says where a document stands in the other answer. */
function movedText(row, otherRanks) {
  const rank = otherRanks.get(`${row.score < 0 ? "-" : "+"} ${row.id}`);
  if (rank === undefined) return "not in the other answer";
  if (rank === row.rank) return "same rank in the other answer";
  return `${rank > row.rank ? "▲" : "▼"} ${Math.abs(rank - row.rank)}, rank ${rank} in the other answer`;
}

/** Returns the share of documents that both answers name as proponents. */
export function commonShare(first, second) {
  const ids = new Set((first.results ?? []).map(({ id }) => id));
  const common = (second.results ?? []).filter(({ id }) => ids.has(id)).length;
  return { common, total: Math.max(ids.size, (second.results ?? []).length) };
}

const checkpointText = (between) => (between ? `learned from checkpoint ${between[0]} to ${between[1]}` : "all checkpoints");
const isSame = (first, second) => JSON.stringify(first ?? null) === JSON.stringify(second ?? null);

/** Returns groups `[title, [[name, change of the request], …]]` of what a question can be compared with. */
export function comparisons(request, indexes, { profiles, checkpoints }, behaviours) {
  const { index, profile = "default", between = null, behaviour } = request;
  const spans = checkpoints < 2 || behaviour ? [] : [null, ...Array.from({ length: checkpoints - 1 }, (_, number) => [number, number + 1])];
  const others = behaviour ? behaviours.filter(({ name }) => name !== behaviour) : [];
  return [
    ["Another index", indexes.filter((name) => name !== index).map((name) => [name, { index: name, profile: "default", between: null }])],
    ["Another profile", profiles.filter((name) => name !== profile).map((name) => [name, { profile: name }])],
    ["Other steps of the training", spans.filter((span) => !isSame(span, between)).map((span) => [checkpointText(span), { between: span }])],
    ["Another behaviour", others.map(({ name }) => [name, { behaviour: name, instead_of_behaviour: null }])],
  ].filter(([, choices]) => choices.length);
}

/** Returns what tells a request from another one, as a title. */
function titleOf(request, other) {
  if (request.index !== other.index) return request.index;
  if (!isSame(request.behaviour, other.behaviour)) return request.behaviour;
  if (!isSame(request.between, other.between)) return checkpointText(request.between);
  return request.profile ?? "default";
}

/** The choice of what to compare with. */
export function CompareChoice({ request, indexes, index, onCompare }) {
  const { items } = useBehaviours(request.index, Boolean(request.behaviour));
  const groups = comparisons(request, indexes, index, items ?? []);
  const changes = groups.flatMap(([, choices]) => choices.map(([, change]) => change));
  if (!groups.length) return null;
  const choose = (event) => {
    const change = changes[Number(event.target.value)];
    if (event.target.value !== "" && change) onCompare(change);
    event.target.value = "";
  };
  let number = 0;
  return html`<select class="compare-choice" aria-label="Compare with" onChange=${choose}>
    <option value="">Compare with…</option>
    ${groups.map(([title, choices]) => html`<optgroup label=${title}>
      ${choices.map(([name]) => html`<option value=${number++}>${name}</option>`)}</optgroup>`)}
  </select>`;
}

const isText = ({ messages, behaviour }) => !messages && !behaviour;

/** @param change The change of the request that asks for the other answer. */
export function Comparison({ request, answer, change, onEnd }) {
  const [reply, setReply] = useState({ answer: null, error: null });
  const [tries, setTries] = useState(0);
  const completion = isText(request) ? { completion: answer.query.completion } : {};
  const otherRequest = withoutNulls({ ...request, ...completion, ...change });
  useEffect(() => {
    setReply({ answer: null, error: null });
    const controller = new AbortController();
    post("attribute", otherRequest, { signal: controller.signal })
      .then((second) => setReply({ answer: second, error: null }), (error) => error.name !== "AbortError" && setReply({ answer: null, error }));
    return () => controller.abort();
  }, [JSON.stringify(otherRequest), tries]);
  const { answer: second, error } = reply;
  const scales = useMemo(() => second && { shade: shadeScale([answer, second]), score: scoreScale([answer, second]) }, [answer, second]);
  const back = html`<button type="button" class="quiet end" onClick=${onEnd}>Back to one answer</button>`;
  if (error) return html`<${Problem} error=${error} onRetry=${() => setTries(tries + 1)} /><p class="row">${back}</p>`;
  if (!second) return html`<p class="row">${back}</p><${Skeleton} lines=${6} label="The other answer is being computed" />`;
  const { common, total } = commonShare(answer, second);
  const view = (asked, shown, other, against) => {
    const name = titleOf(asked, other);
    const ranks = ranksOf(against);
    const movedFrom = (row) => html`<span class="moved faint">${movedText(row, ranks)}</span>`;
    return html`<section class="compared" aria-label=${name}><h2>${name}</h2>
      <${AnswerView} request=${asked} answer=${shown} scales=${scales} tools=${{ movedFrom, onFilter: null }} /></section>`;
  };
  return html`<div class="row"><${Note}>${`${common} of ${total} documents that made it more likely are in both.`}<//>${back}</div>
    <div class="comparison">${view(request, answer, otherRequest, second)}${view(otherRequest, second, request, answer)}</div>`;
}
