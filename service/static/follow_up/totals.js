/* Totals: the influence of all documents on what was asked, summed by a column of the metadata, as bars. */

import { post } from "../shared/api.js";
import { formatCount, formatScore, formatValue, plural, shorten } from "../shared/format.js";
import { html, useEffect, useRef, useState } from "../shared/html.js";
import { Explain, Problem, Skeleton } from "../shared/parts.js";
import { TOTALS } from "../answer/definitions.js";

const TOP = 20;
const QUESTION_FIELDS = ["prompt", "completion", "messages", "instead_of", "objective", "behaviour", "instead_of_behaviour",
  "join", "span", "profile", "filter", "between", "partial"];

/** Returns the body of `POST /index/{name}/totals` for the question of an answer. */
export function makeTotals(request, answer, by) {
  const fields = Object.fromEntries(QUESTION_FIELDS.filter((name) => (request[name] ?? null) !== null).map((name) => [name, request[name]]));
  const completion = request.prompt === undefined || request.prompt === null ? {} : { completion: request.completion ?? answer.query.completion };
  return { ...fields, ...completion, by, top: TOP };
}

/** Returns a function from sums to percentages of the width, with 0 and all intervals within it. */
function makeAxis(groups) {
  const ends = groups.flatMap(({ sum, interval }) => [0, sum, ...(interval ?? [])]);
  const low = Math.min(...ends);
  const width = Math.max(...ends) - low || 1;
  return (value) => (100 * (value - low)) / width;
}

function Bar({ group: { sum, interval }, place }) {
  const span = (from, to) => ({ left: `${place(from).toFixed(2)}%`, width: `${(place(to) - place(from)).toFixed(2)}%` });
  return html`<span class="total-bar" aria-hidden="true">
    <span class=${sum < 0 ? "fill negative" : "fill"} style=${span(Math.min(0, sum), Math.max(0, sum))}></span>
    ${interval && html`<span class="whisker" style=${span(...interval)}></span>`}
    <span class="total-zero" style=${{ left: `${place(0).toFixed(2)}%` }}></span></span>`;
}

function Value({ value, onFilter }) {
  if (value === null) return html`<span class="faint">no value</span>`;
  if (!onFilter || typeof value === "object") return html`<span class="chip">${shorten(formatValue(value))}</span>`;
  return html`<button type="button" class="chip" title="Ask again, for documents with this value alone" onClick=${() => onFilter(value)}>${shorten(formatValue(value))}</button>`;
}

function TotalsList({ totals, onFilter }) {
  const { groups, group_count: count, by, documents } = totals;
  const place = makeAxis(groups);
  return html`<p class="faint" role="status">${`${plural(documents, "document")}, summed by ${by}`}
      ${count > groups.length && `; the largest ${groups.length} of ${formatCount(count)} sums`}</p>
    <ul class="totals-list" aria-label=${`Totals by ${by}`}>${groups.map((group) => html`<li>
      <span><${Value} value=${group.value} onFilter=${onFilter && ((value) => onFilter(by, value))} /></span>
      <${Bar} group=${group} place=${place} />
      <span class="number strong">${formatScore(group.sum)}</span>
      <span class="number faint">${group.interval && `[${formatScore(group.interval[0])}, ${formatScore(group.interval[1])}]`}</span>
      <span class="number faint">${plural(group.documents, "document")}</span></li>`)}</ul>`;
}

/**
 * @param columns The metadata columns of the index.
 * @param onFilter Asks again, for documents with a value of a column alone.
 */
export function Totals({ request, answer, columns, onFilter }) {
  const [by, setBy] = useState(columns[0]);
  const [{ totals, error, isBusy }, setState] = useState({});
  const running = useRef(null);
  useEffect(() => () => running.current?.abort(), []);
  useEffect(() => setBy(columns[0]), [columns[0]]);
  if (!columns.length) return null;
  const sum = async () => {
    running.current?.abort();
    const controller = new AbortController();
    running.current = controller;
    setState({ isBusy: true });
    try {
      const path = `index/${encodeURIComponent(answer.index)}/totals`;
      setState({ totals: await post(path, makeTotals(request, answer, by), { signal: controller.signal }) });
    } catch (problem) {
      if (problem.name !== "AbortError") setState({ error: problem });
    }
  };
  return html`<details class="totals"><summary>Totals over all documents</summary>
    <div class="row totals-ask"><label>by <select aria-label="Sum by" value=${by} onChange=${(event) => setBy(event.target.value)}>
        ${columns.map((name) => html`<option value=${name} selected=${name === by}>${name}</option>`)}</select></label>
      <button type="button" class="quiet" disabled=${isBusy} onClick=${sum}>${isBusy ? "Summing…" : "Sum"}</button><${Explain} name="a total">${TOTALS}<//></div>
    ${isBusy && html`<${Skeleton} lines=${3} label="The scores of all documents are being summed" />`}
    ${error && html`<${Problem} error=${error} onRetry=${sum} />`}
    ${totals && html`<${TotalsList} totals=${totals} onFilter=${onFilter} />`}
  </details>`;
}
