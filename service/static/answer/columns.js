/* Proponents and opponents side by side. */

import { html, useMemo } from "../shared/html.js";
import { Explain, Note } from "../shared/parts.js";
import { PERCENTILE, SCORE } from "./definitions.js";
import { foldNearCopies } from "./near_copies.js";
import { ResultCard } from "./result_card.js";

function Column({ title, kind, rows, context }) {
  const groups = useMemo(() => foldNearCopies(rows), [rows]);
  return html`<section class=${`column ${kind}`} aria-label=${title}>
    <h3>${title}<${Explain} name="a score">${SCORE} ${PERCENTILE}<//></h3>
    ${groups.length === 0 && html`<${Note}>No document.<//>`}
    <ol class="results">${groups.map(({ row, copies }) =>
      html`<${ResultCard} key=${row.id} row=${row} copies=${copies} context=${context} />`)}</ol>
  </section>`;
}

export function Columns({ answer, context }) {
  return html`<div class="columns">
    ${answer.results && html`<${Column} title="Made it more likely" kind="proponents" rows=${answer.results} context=${context} />`}
    ${answer.opponents && html`<${Column} title="Made it less likely" kind="opponents" rows=${answer.opponents} context=${context} />`}
  </div>`;
}
