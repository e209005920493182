/* One result: its text first, then what is known about its influence, then what can be done with it. */

import { formatChange, formatProbability, formatScore, formatValue, shorten } from "../shared/format.js";
import { html, useMemo, useState } from "../shared/html.js";
import { Badge } from "../shared/parts.js";
import { STRENGTHS } from "./definitions.js";
import { GroupMembers } from "./group_members.js";
import { SampleText } from "./sample_text.js";
import { rowParts } from "./tokens.js";

/** The score as a number and as a bar, which has the same scale in the whole page. */
function Score({ row, scale }) {
  const percent = scale > 0 ? (100 * Math.abs(row.score)) / scale : 0;
  return html`<span class="score">
    <span class="number strong">${formatScore(row.score)}</span>
    <span class="track" aria-hidden="true"><span class=${row.score < 0 ? "fill negative" : "fill"} style=${{ width: `${percent.toFixed(1)}%` }}></span></span>
  </span>`;
}

/** Says how the score stands against random documents; for opponents, how many score higher. */
function percentileText({ score, percentile }) {
  if (percentile === null || percentile === undefined) return null;
  if (score >= 0 || percentile >= 50) return `higher than ${percentile.toFixed(2)} %`;
  return percentile === 0 ? "lower than all random documents" : `lower than ${(100 - percentile).toFixed(2)} %`;
}

const MAX_CHIPS = 8;

/** A value of the metadata as a button: a click keeps only the documents with the same value. */
function Chip({ column, value, onFilter }) {
  const text = html`<b>${shorten(column)}</b> ${shorten(formatValue(value))}`;
  if (!onFilter || value === null || typeof value === "object") return html`<span class="chip">${text}</span>`;
  return html`<button type="button" class="chip" title="Show only documents like this" onClick=${() => onFilter(column, value)}>${text}</button>`;
}

function Metadata({ metadata, onFilter }) {
  const [isWhole, setWhole] = useState(false);
  const items = Object.entries(metadata ?? {}).flatMap(([column, value]) => (Array.isArray(value) ? value : [value]).map((item) => [column, item]));
  return html`${(isWhole ? items : items.slice(0, MAX_CHIPS)).map(([column, value]) => html`<${Chip} column=${column} value=${value} onFilter=${onFilter} />`)}
    ${items.length > MAX_CHIPS && !isWhole && html`<button type="button" class="link" onClick=${() => setWhole(true)}>${items.length - MAX_CHIPS} more</button>`}`;
}

/** What unlearning the document alone did to the completion. */
function Verified({ verified, before }) {
  const { log_probability: change } = verified;
  const moved = before === undefined || change === null ? ""
    : `: ${formatProbability(Math.exp(before))} → ${formatProbability(Math.min(1, Math.exp(before + change)))}`;
  const text = change === null ? "Unlearned: the step broke the model"
    : `Unlearned, the completion's log-probability changes by ${formatChange(change)}${moved}`;
  return html`<p class=${`verified ${change !== null && change < 0 ? "down" : "up"}`}>${text}</p>`;
}

function Copies({ copies, context }) {
  const [isOpen, setOpen] = useState(false);
  if (!copies.length) return null;
  const label = copies.length === 1 ? "1 near copy" : `${copies.length} near copies`;
  return html`<div class="copies">
    <button type="button" class="link" aria-expanded=${isOpen} onClick=${() => setOpen(!isOpen)}>${isOpen ? "Hide" : "Show"} ${label}</button>
    ${isOpen && html`<ul>${copies.map((row) => html`<${ResultCard} key=${row.id} row=${row} copies=${[]} context=${context} />`)}</ul>`}
  </div>`;
}

/**
 * @param row A result of the API.
 * @param copies Results that say almost the same.
 * @param context What all cards share: `scales`, `before` (the log-probability before any step), `onFilter`, `onOpen`, `basket`, `onBasket`.
 */
export function ResultCard({ row, copies, context }) {
  const { scales, before, onFilter, onOpen, basket, onBasket, movedFrom } = context;
  const parts = useMemo(() => rowParts(row), [row]);
  const percentile = percentileText(row);
  return html`<li class="result" tabindex="-1" data-place=${`${row.score < 0 ? "-" : "+"}${row.rank}`}>
    ${parts ? html`<${SampleText} parts=${parts} scale=${scales.shade} label=${`Document ${row.id}`} />`
      : html`<p class="sample-text faint">This API key sees no texts.</p>`}
    <div class="result-facts">
      <span class="rank" aria-label=${`Rank ${row.rank}`}>${row.rank}</span>
      <${Score} row=${row} scale=${scales.score} />
      ${percentile && html`<span class="faint">${percentile}</span>`}
      ${row.interval && html`<span class="faint number" title="Interval of the score">[${formatScore(row.interval[0])}, ${formatScore(row.interval[1])}]</span>`}
      ${row.strength && html`<${Badge} state=${row.strength} text=${STRENGTHS[row.strength] ?? row.strength} />`}
      ${row.words?.states && html`<${Badge} state="states" text="states it" title="The words of the completion stand in the document" />`}
      ${row.exact && html`<${Badge} state="exact" title="The document was scored by its whole gradient" />`}
      ${movedFrom?.(row)}
    </div>
    ${row.verified && html`<${Verified} verified=${row.verified} before=${before} />`}
    ${row.group && html`<${GroupMembers} group=${row.group} onOpen=${onOpen} />`}
    <div class="result-tools">
      <code title=${row.id}>${row.id}</code>
      <${Metadata} metadata=${row.metadata} onFilter=${onFilter} />
      <span class="end">
        ${onOpen && html`<button type="button" class="link" aria-label=${`Open document ${row.id}`} onClick=${() => onOpen(row.id)}>Open</button>`}
        ${onBasket && html`<label class="pick"><input type="checkbox" checked=${basket.has(row.id)} aria-label=${`Put document ${row.id} into the basket`}
          onChange=${(event) => onBasket(row.id, event.target.checked)} /> Basket</label>`}
      </span>
    </div>
    <${Copies} copies=${copies} context=${context} />
  </li>`;
}
