/* Metadata of the results as facets: the values with their counts. A click keeps only documents with that value. */

import { formatValue, shorten } from "../shared/format.js";
import { html, useState } from "../shared/html.js";
import { FILTERS } from "./definitions.js";

const MAX_VALUES = 8;
const MAX_COLUMNS = 6;
const isPlain = (value) => ["string", "number", "boolean"].includes(typeof value);

/** Returns `[column, [[value, count], …]]` for the columns that divide the results, the most frequent value first. */
export function countValues(rows) {
  const columns = new Map();
  for (const { metadata } of rows) {
    for (const [column, value] of Object.entries(metadata ?? {})) {
      const counts = columns.get(column) ?? columns.set(column, new Map()).get(column);
      for (const item of new Set(Array.isArray(value) ? value : [value])) {
        if (isPlain(item)) counts.set(item, (counts.get(item) ?? 0) + 1);
      }
    }
  }
  return [...columns]
    .map(([column, counts]) => [column, [...counts].sort((a, b) => b[1] - a[1]).slice(0, MAX_VALUES)])
    .filter(([, counts]) => counts.length > 0 && (counts[0][1] > 1 || rows.length === 1));
}

export function Facets({ rows, onFilter }) {
  const [isWhole, setWhole] = useState(false);
  const facets = countValues(rows);
  if (!facets.length) return null;
  return html`<details class="facets" open>
    <summary>Only some of the documents</summary><p class="faint">${FILTERS}</p>
    ${(isWhole ? facets : facets.slice(0, MAX_COLUMNS)).map(([column, counts]) => html`<div class="facet"><span class="faint">${shorten(column)}</span>
      ${counts.map(([value, count]) => html`<button type="button" class="chip" onClick=${() => onFilter(column, value)}>
        ${shorten(formatValue(value))} <span class="faint number">${count}</span></button>`)}
    </div>`)}
    ${facets.length > MAX_COLUMNS && !isWhole && html`<button type="button" class="link" onClick=${() => setWhole(true)}>${facets.length - MAX_COLUMNS} more columns</button>`}
  </details>`;
}

/** The conditions that are in force, each with a button that removes it. */
export function ActiveFilters({ filter, onRemove }) {
  const entries = Object.entries(filter ?? {});
  if (!entries.length) return null;
  const text = (condition) => (Array.isArray(condition) ? condition.map(formatValue).join(" or ") : formatValue(condition));
  const shown = (condition) => shorten(text(condition));
  return html`<div class="facets active" role="group" aria-label="Filters in force"><span class="faint">only</span>
    ${entries.map(([column, condition]) => html`<button type="button" class="chip on" aria-label=${`Remove the filter ${column}`}
      onClick=${() => onRemove(column)}><b>${shorten(column)}</b> ${shown(condition)} <span aria-hidden="true">×</span></button>`)}
  </div>`;
}
