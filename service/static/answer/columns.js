/* Proponents and opponents side by side. */

import { html, useMemo, useState } from "../shared/html.js";
import { Explain, Note } from "../shared/parts.js";
import { INTERVAL, PERCENTILE, SCORE, STATES } from "./definitions.js";
import { foldNearCopies } from "./near_copies.js";
import { ResultCard } from "./result_card.js";

function Column({ title, kind, rows, context }) {
  const groups = useMemo(() => (rows.some(({ group }) => group) ? rows.map((row) => ({ row, copies: [] })) : foldNearCopies(rows)), [rows]);
  return html`<section class=${`column ${kind}`} aria-label=${title}>
    <h3>${title}<${Explain} name="a score">${SCORE} ${PERCENTILE} ${rows.some(({ interval }) => interval) && INTERVAL}<//></h3>
    ${groups.length === 0 && html`<${Note}>No document.<//>`}
    <ol class="results">${groups.map(({ row, copies }) =>
      html`<${ResultCard} key=${row.id} row=${row} copies=${copies} context=${context} />`)}</ol>
  </section>`;
}

const CHOICES = [["all", "All"], ["states", "States it"], ["moved", "Moved it only"]];
const isChosen = (row, choice) => choice === "all" || Boolean(row.words?.states) === (choice === "states");

/** Tells documents that state the completion from those that only moved the model. */
function WordChoice({ choice, onChoose }) {
  return html`<p class="row word-choice"><span class="switch" role="group" aria-label="Which documents">${CHOICES.map(([value, text]) =>
    html`<button type="button" aria-pressed=${choice === value} onClick=${() => onChoose(value)}>${text}</button>`)}</span>
    <${Explain} name="stating it">${STATES}<//></p>`;
}

export function Columns({ answer, context }) {
  const [choice, setChoice] = useState("all");
  const all = [...(answer.results ?? []), ...(answer.opponents ?? [])];
  const column = (title, kind, rows) => rows && html`<${Column} title=${title} kind=${kind} rows=${rows.filter((row) => isChosen(row, choice))} context=${context} />`;
  return html`${all.some(({ words }) => words) && html`<${WordChoice} choice=${choice} onChoose=${setChoice} />`}
  <div class="columns">
    ${column("Made it more likely", "proponents", answer.results)}
    ${column("Made it less likely", "opponents", answer.opponents)}
  </div>`;
}
