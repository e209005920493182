/* The panels of the dashboard: jobs, workers, indexes. */

import { call } from "../shared/api.js";
import { formatAge, formatBytes, formatCount } from "../shared/format.js";
import { html } from "../shared/html.js";
import { FINAL_STATES, JobCard } from "../shared/jobs.js";
import { Badge, Facts, Note } from "../shared/parts.js";
import { usePolling } from "../shared/status.js";

/* A browser opens at most six connections to a host. Other jobs are updated when the list is fetched again. */
const MAX_STREAMS = 3;

const Trouble = ({ error }) => error && error.status !== 401 && html`<${Note} kind="bad" role="status">${error.message}<//>`;

export function Jobs() {
  const { data, error, refresh } = usePolling(() => call("jobs?limit=12"));
  const active = (data?.items ?? []).filter(({ state }) => !FINAL_STATES.has(state)).slice(0, MAX_STREAMS);
  return html`<section class="card" aria-labelledby="jobs-title">
    <h2 id="jobs-title">Jobs</h2><${Trouble} error=${error} />
    ${data?.items.length === 0 && html`<${Note}>No jobs yet. Queue one with POST /index below.<//>`}
    <ul id="jobs" class="stack">${data?.items.map((job) => html`<li key=${job.job_id}>
      <${JobCard} job=${job} isFollowed=${active.includes(job)} onEnd=${refresh} /></li>`)}</ul>
  </section>`;
}

const WorkerTile = ({ worker }) => html`<li class="tile">
  <div class="row"><strong>${worker.worker_id}</strong><${Badge} state=${worker.state} /></div>
  <p class="faint">${`${worker.device} · ${worker.host} · process ${worker.pid}`}</p>
  <${Facts} pairs=${[
    ["started", formatAge(worker.started_at)],
    ["in memory", worker.resident.length ? worker.resident.join(", ") : "nothing yet"],
  ]} />
</li>`;

export function Workers() {
  const { data, error } = usePolling(() => call("workers"));
  return html`<section class="card" aria-labelledby="workers-title">
    <h2 id="workers-title">Workers</h2><${Trouble} error=${error} />
    ${data?.items.length === 0 && html`<${Note} kind="bad">No worker is alive. Start one: bergson worker<//>`}
    <ul id="workers" class="stack">${data?.items.map((worker) => html`<${WorkerTile} key=${worker.worker_id} worker=${worker} />`)}</ul>
  </section>`;
}

const IndexTile = ({ index }) => html`<li class="tile">
  <div class="row"><strong>${index.name}</strong><${Badge} state=${index.state} /></div>
  ${index.model && html`<p class="faint">${index.model}</p>`}
  ${index.state === "building" && html`<p class="faint">built by job ${index.job_id}</p>`}
  ${index.error && html`<${Note} kind="bad">${index.error.detail}<//>`}
  ${index.state === "ready" && html`<${Facts} pairs=${[
    ["documents", formatCount(index.rows)],
    ["tokens", formatCount(index.tokens)],
    ["dimensions", formatCount(index.dimensions)],
    ["on disk", formatBytes(index.size_bytes?.total)],
    ["coverage", `${index.coverage_percent.toFixed(1)} %`],
    ["generation", formatCount(index.generation)],
  ]} />`}
</li>`;

export function Indexes() {
  const { data, error } = usePolling(() => call("index?limit=24"));
  return html`<section class="card wide" aria-labelledby="indexes-title">
    <h2 id="indexes-title">Indexes</h2><${Trouble} error=${error} />
    ${data?.items.length === 0 && html`<${Note}>No index yet.<//>`}
    <ul id="indexes" class="tiles">${data?.items.map((index) => html`<${IndexTile} key=${index.name} index=${index} />`)}</ul>
    ${data?.next_cursor && html`<${Note}>GET /index?cursor=… lists more.<//>`}
  </section>`;
}
