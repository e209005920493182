/* The same question to another index or with another profile, in two columns, with what moved. */

import { post } from "../shared/api.js";
import { AnswerView } from "../answer/answer_view.js";
import { scoreScale, shadeScale } from "../answer/tokens.js";
import { html, useEffect, useMemo, useState } from "../shared/html.js";
import { Note, Problem, Skeleton } from "../shared/parts.js";

/** Returns the rank of each document of an answer; opponents count separately. */
function ranksOf(answer) {
  const entries = (rows, side) => (rows ?? []).map((row) => [`${side} ${row.id}`, row.rank]);
  return new Map([...entries(answer.results, "+"), ...entries(answer.opponents, "-")]);
}

/** Says where a document stands in the other answer. */
function movedText(row, otherRanks, otherName) {
  const rank = otherRanks.get(`${row.score < 0 ? "-" : "+"} ${row.id}`);
  if (rank === undefined) return `not in ${otherName}`;
  if (rank === row.rank) return `= ${otherName}`;
  return `${rank > row.rank ? "▲" : "▼"} ${Math.abs(rank - row.rank)}, ${rank} in ${otherName}`;
}

/** Returns the share of documents that both answers name as proponents. */
export function commonShare(first, second) {
  const ids = new Set((first.results ?? []).map(({ id }) => id));
  const common = (second.results ?? []).filter(({ id }) => ids.has(id)).length;
  return { common, total: Math.max(ids.size, (second.results ?? []).length) };
}

/** The choice of what to compare with. */
export function CompareChoice({ request, indexes, profiles, onCompare }) {
  const others = [
    ...indexes.filter((name) => name !== request.index).map((name) => ({ index: name, profile: "default" })),
    ...profiles.filter((name) => name !== (request.profile ?? "default")).map((name) => ({ index: request.index, profile: name })),
  ];
  if (!others.length) return null;
  const choose = (event) => {
    const other = others[Number(event.target.value)];
    if (other) onCompare(other);
    event.target.value = "";
  };
  return html`<select class="compare-choice" aria-label="Compare with" onChange=${choose}>
    <option value="">Compare with…</option>
    ${others.map(({ index, profile }, number) => html`<option value=${number}>${index === request.index ? `profile ${profile}` : `index ${index}`}</option>`)}
  </select>`;
}

export function Comparison({ request, answer, other, onEnd }) {
  const [reply, setReply] = useState({ answer: null, error: null });
  const otherRequest = { ...request, ...other, completion: request.messages ? undefined : answer.query.completion };
  useEffect(() => {
    setReply({ answer: null, error: null });
    const controller = new AbortController();
    post("attribute", otherRequest, { signal: controller.signal })
      .then((second) => setReply({ answer: second, error: null }), (error) => error.name !== "AbortError" && setReply({ answer: null, error }));
    return () => controller.abort();
  }, [JSON.stringify(otherRequest)]);
  const { answer: second, error } = reply;
  const scales = useMemo(() => second && { shade: shadeScale([answer, second]), score: scoreScale([answer, second]) }, [answer, second]);
  if (error) return html`<${Problem} error=${error} /><button type="button" class="quiet" onClick=${onEnd}>Back to one answer</button>`;
  if (!second) return html`<${Skeleton} lines=${6} label="The other index is being asked" />`;
  const names = request.index === other.index ? [request.profile ?? "default", other.profile] : [request.index, other.index];
  const { common, total } = commonShare(answer, second);
  const view = (shown, against, name, otherName) => {
    const ranks = ranksOf(against);
    const movedFrom = (row) => html`<span class="moved faint">${movedText(row, ranks, otherName)}</span>`;
    return html`<section class="compared" aria-label=${name}><h2>${name}</h2>
      <${AnswerView} request=${request} answer=${shown} scales=${scales} tools=${{ movedFrom, onFilter: null }} /></section>`;
  };
  return html`<div class="row"><${Note}>${`${common} of ${total} documents that made it more likely are in both.`}<//>
      <button type="button" class="quiet end" onClick=${onEnd}>Back to one answer</button></div>
    <div class="comparison">${view(answer, second, names[0], names[1])}${view(second, answer, names[1], names[0])}</div>`;
}
