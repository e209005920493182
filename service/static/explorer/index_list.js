/* The indexes, and the jobs that build them. */

import { call } from "../shared/api.js";
import { formatBytes, formatCount } from "../shared/format.js";
import { html } from "../shared/html.js";
import { FINAL_STATES, JobCard } from "../shared/jobs.js";
import { Badge, Facts, Note } from "../shared/parts.js";

const MAX_PAGES = 5;
const PAGE = 200;

async function loadAll() {
  const items = [];
  let cursor = null;
  for (let page = 0; page < MAX_PAGES; page += 1) {
    const next = cursor ? `&cursor=${encodeURIComponent(cursor)}` : "";
    const { items: some, next_cursor: following } = await call(`index?limit=${PAGE}${next}`);
    items.push(...some);
    cursor = following;
    if (!cursor) break;
  }
  return items;
}

/**
 * Fetches all indexes, up to a thousand, the jobs that have not ended, what the API key may do, and `trouble`: the error
 * of a service that cannot work at the moment.
 */
export async function loadIndexes() {
  const trouble = call("readyz").then(() => null, (error) => error);
  const [indexes, { items: jobs }, permissions] = await Promise.all([loadAll(), call("jobs?limit=50"), call("key")]);
  return { indexes, jobs: jobs.filter(({ state }) => !FINAL_STATES.has(state)), permissions, trouble: await trouble };
}

export const readyNames = (indexes) => indexes.filter(({ state }) => state === "ready").map(({ name }) => name);

/** The facts about an index that people choose by. */
export const IndexFacts = ({ index }) => html`<${Facts} pairs=${[
  ["documents", formatCount(index.rows)],
  ["tokens", formatCount(index.tokens)],
  ["dimensions", formatCount(index.dimensions)],
  ["on disk", formatBytes(index.size_bytes?.total)],
]} />`;

function IndexTile({ index, isChosen, onChoose }) {
  const canChoose = index.state === "ready";
  return html`<li class=${isChosen ? "tile chosen" : "tile"}>
    <div class="row"><strong>${index.name}</strong><${Badge} state=${index.state} /></div>
    ${index.model && html`<p class="faint">${index.model}</p>`}
    ${index.error && html`<${Note} kind="bad">${index.error.detail}<//>`}
    ${canChoose && html`<${IndexFacts} index=${index} />
      <button type="button" class="quiet" aria-pressed=${isChosen} aria-label=${`Ask ${index.name}`} onClick=${() => onChoose(index.name)}>${isChosen ? "Chosen" : "Ask this index"}</button>`}
  </li>`;
}

export function IndexList({ indexes, jobs, chosen, onChoose, onEnd }) {
  const tiles = indexes.filter(({ state }) => state !== "building");
  return html`<section class="indexes" aria-labelledby="indexes-title">
    <div class="row"><h2 id="indexes-title">Indexes</h2><a class="end" href="#build=1">Build an index</a></div>
    ${jobs.length > 0 && html`<ul class="stack card">${jobs.map((job, number) => html`<li key=${job.job_id}>
      <${JobCard} job=${job} isFollowed=${number < 3} onEnd=${onEnd} /></li>`)}</ul>`}
    <ul class="tiles">${tiles.map((index) => html`<${IndexTile} key=${index.name} index=${index} isChosen=${index.name === chosen} onChoose=${onChoose} />`)}</ul>
  </section>`;
}
