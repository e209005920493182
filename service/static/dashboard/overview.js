/* Indexes, workers, and whether the whole can work. */

import { call } from "./api.js";
import { ago, badge, byId, bytes, count, el, facts, note } from "./dom.js";

function indexCard(index) {
  const size = index.size_bytes?.total;
  return el("li", { className: "tile" },
    el("div", { className: "row" }, el("strong", { textContent: index.name }), badge(index.state)),
    index.model ? el("p", { className: "faint", textContent: index.model }) : null,
    index.state === "building" ? el("p", { className: "faint", textContent: `by job ${index.job_id}` }) : null,
    index.error ? note(index.error.detail, "bad") : null,
    index.state === "ready" ? facts(
      ["samples", count(index.rows)],
      ["tokens", count(index.tokens)],
      ["dimensions", count(index.dimensions)],
      ["on disk", bytes(size)],
      ["coverage", `${index.coverage_percent.toFixed(1)} %`],
      ["generation", count(index.generation)],
    ) : null);
}

function workerCard(worker) {
  return el("li", { className: "tile" },
    el("div", { className: "row" }, el("strong", { textContent: worker.worker_id }), badge(worker.state)),
    el("p", { className: "faint", textContent: `${worker.device} · ${worker.host} · process ${worker.pid}` }),
    facts(
      ["started", ago(worker.started_at)],
      ["in memory", worker.resident.length ? worker.resident.join(", ") : "nothing yet"],
    ));
}

function offerNames(indexes) {
  const field = byId("ask-index");
  const names = indexes.filter((index) => index.state === "ready").map((index) => index.name);
  byId("index-names").replaceChildren(...names.map((name) => el("option", { value: name })));
  if (!field.value && names.length) field.value = names[0];
}

export async function refreshIndexes() {
  const { items, next_cursor: more } = await call("index?limit=24");
  const nodes = items.map(indexCard);
  if (more) nodes.push(el("li", { className: "tile" }, note("More of them: GET /index?cursor=…")));
  byId("indexes").replaceChildren(...(nodes.length ? nodes : [el("li", {}, note("No index yet."))]));
  offerNames(items);
}

export async function refreshWorkers() {
  const { items } = await call("workers");
  const nodes = items.map(workerCard);
  byId("workers").replaceChildren(
    ...(nodes.length ? nodes : [el("li", {}, note("No worker is alive. Start one: python -m worker", "bad"))]));
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
