/* The indexes, the workers, and whether the service is ready. */

import { call } from "./api.js";
import { badge, byId, el, facts, formatAge, formatBytes, formatCount, note } from "./dom.js";

function indexCard(index) {
  const size = index.size_bytes?.total;
  return el("li", { className: "tile" },
    el("div", { className: "row" }, el("strong", { textContent: index.name }), badge(index.state)),
    index.model ? el("p", { className: "faint", textContent: index.model }) : null,
    index.state === "building" ? el("p", { className: "faint", textContent: `built by job ${index.job_id}` }) : null,
    index.error ? note(index.error.detail, "bad") : null,
    index.state === "ready" ? facts(
      ["documents", formatCount(index.rows)],
      ["tokens", formatCount(index.tokens)],
      ["dimensions", formatCount(index.dimensions)],
      ["on disk", formatBytes(size)],
      ["coverage", `${index.coverage_percent.toFixed(1)} %`],
      ["generation", formatCount(index.generation)],
    ) : null);
}

function workerCard(worker) {
  return el("li", { className: "tile" },
    el("div", { className: "row" }, el("strong", { textContent: worker.worker_id }), badge(worker.state)),
    el("p", { className: "faint", textContent: `${worker.device} · ${worker.host} · process ${worker.pid}` }),
    facts(
      ["started", formatAge(worker.started_at)],
      ["in memory", worker.resident.length ? worker.resident.join(", ") : "nothing yet"],
    ));
}

/** Offers the names of the indexes that answer queries in the form. */
function offerNames(indexes) {
  const field = byId("ask-index");
  const names = indexes.filter((index) => index.state === "ready").map((index) => index.name);
  byId("index-names").replaceChildren(...names.map((name) => el("option", { value: name })));
  if (!field.value && names.length) field.value = names[0];
}

export async function refreshIndexes() {
  const { items, next_cursor: nextCursor } = await call("index?limit=24");
  const nodes = items.map(indexCard);
  if (nextCursor) nodes.push(el("li", { className: "tile" }, note("GET /index?cursor=… lists more.")));
  byId("indexes").replaceChildren(...(nodes.length ? nodes : [el("li", {}, note("No index yet."))]));
  offerNames(items);
}

export async function refreshWorkers() {
  const { items } = await call("workers");
  const nodes = items.map(workerCard);
  byId("workers").replaceChildren(
    ...(nodes.length ? nodes : [el("li", {}, note("No worker is alive. Start one: bergson worker", "bad"))]));
}

export async function refreshStatus() {
  const pill = byId("status");
  try {
    const { workers } = await call("readyz");
    pill.className = "badge ready";
    pill.textContent = workers === 1 ? "ready, 1 worker" : `ready, ${workers} workers`;
    pill.title = "";
  } catch (error) {
    pill.className = "badge failed";
    pill.textContent = error.title ?? error.message;
    pill.title = error.message;
  }
}
