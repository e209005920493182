/* The scores of random documents as a histogram, with the results marked on it. The marks are one stop of the keyboard:
 * the arrow keys go from result to result, and Enter goes to its card. */

import { formatCount, formatScore, plural, shorten } from "../shared/format.js";
import { html, useMemo, useState } from "../shared/html.js";
import { Explain } from "../shared/parts.js";
import { BACKGROUND } from "./definitions.js";

const HEIGHT = 60;

/** Returns the score below which a share of the random documents lies, up to the width of a bin. */
export function quantile({ edges, counts }, share) {
  let left = share * counts.reduce((sum, count) => sum + count, 0);
  for (const [bin, count] of counts.entries()) {
    if (left <= count) return edges[bin] + (count ? left / count : 0) * (edges[bin + 1] - edges[bin]);
    left -= count;
  }
  return edges.at(-1);
}

/** Returns the results whose scores are scores of the index, from the lowest to the highest. */
const markedRows = (answer) =>
  [...(answer.results ?? []), ...(answer.opponents ?? [])].filter(({ exact }) => !exact).sort((a, b) => a.score - b.score);

/** Returns a function from scores to percentages of the width, which has room for all scores. */
function makeAxis({ edges }, rows) {
  const scores = [edges[0], edges.at(-1), ...rows.map(({ score }) => score)];
  const low = Math.min(...scores);
  const width = Math.max(...scores) - low || 1;
  return { low, high: low + width, place: (score) => (100 * (score - low)) / width };
}

/** Returns the outline of the bars. Heights are logarithms: one document of thousands is to be seen, too. */
function outline({ edges, counts }, place) {
  const highest = Math.log1p(Math.max(...counts));
  const steps = counts.map((count, bin) => {
    const top = HEIGHT * (1 - Math.log1p(count) / highest);
    return `L${place(edges[bin]).toFixed(2)},${top.toFixed(1)}L${place(edges[bin + 1]).toFixed(2)},${top.toFixed(1)}`;
  });
  return `M${place(edges[0]).toFixed(2)},${HEIGHT}${steps.join("")}L${place(edges.at(-1)).toFixed(2)},${HEIGHT}Z`;
}

/** Says in a sentence what the picture shows. */
function summary(background, rows) {
  const total = background.counts.reduce((sum, count) => sum + count, 0);
  const above = rows.filter(({ score }) => score > background.edges.at(-1)).length;
  const beyond = above ? ` ${plural(above, "result")} ${above === 1 ? "scores" : "score"} above all of them.` : "";
  return `Of ${formatCount(total)} random documents, half score below ${formatScore(quantile(background, 0.5))} `
    + `and 99 of 100 below ${formatScore(quantile(background, 0.99))}.${beyond}`;
}

function goToCard(event, row) {
  const card = event.currentTarget.closest(".answer").querySelector(`[data-place="${row.score < 0 ? "-" : "+"}${row.rank}"]`);
  card?.scrollIntoView({ block: "center" });
  card?.focus({ preventScroll: true });
}

function Marks({ rows, place }) {
  const [chosen, setChosen] = useState(null);
  const press = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Enter" && chosen !== null) goToCard(event, rows[chosen]);
    if (!step) return;
    event.preventDefault();
    setChosen(Math.max(0, Math.min(rows.length - 1, (chosen ?? rows.length - 1) + step)));
  };
  const row = rows[chosen];
  return html`<div class="marks" tabindex="0" role="group" aria-label="Scores of the results. Arrow keys read them out, Enter goes to the document."
      onKeyDown=${press} onFocus=${() => setChosen(chosen ?? rows.length - 1)} onBlur=${() => setChosen(null)} onMouseLeave=${() => setChosen(null)}>
    ${rows.map(({ score }, number) => html`<span class=${["mark", score < 0 && "negative", number === chosen && "chosen"].filter(Boolean).join(" ")}
      style=${{ left: `${place(score).toFixed(2)}%` }} onMouseOver=${() => setChosen(number)} onClick=${(event) => goToCard(event, rows[number])}></span>`)}
    <p class="readout" aria-live="polite">${row && html`<span class="number">${formatScore(row.score)}</span> rank ${row.rank}, <bdi>${shorten(row.id)}</bdi>`}</p>
  </div>`;
}

export function Background({ answer }) {
  const { background } = answer;
  const rows = useMemo(() => markedRows(answer), [answer]);
  if (!background || !rows.length) return null;
  const { low, high, place } = makeAxis(background, rows);
  return html`<figure class="background">
    <figcaption class="faint">${summary(background, rows)}<${Explain} name="this histogram">${BACKGROUND}<//></figcaption>
    <div class="plot">
      <svg viewBox=${`0 0 100 ${HEIGHT}`} preserveAspectRatio="none" aria-hidden="true">
        ${low < 0 && high > 0 && html`<path class="zero" d=${`M${place(0).toFixed(2)},0V${HEIGHT}`} />`}
        <path class="bars" d=${outline(background, place)} /></svg>
      <${Marks} rows=${rows} place=${place} />
    </div>
    <p class="axis faint number" aria-hidden="true"><span>${formatScore(low)}</span><span>${formatScore(high)}</span></p>
  </figure>`;
}
