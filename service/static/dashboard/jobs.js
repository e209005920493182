/* Jobs: a list from /jobs, each active one followed on its own event stream, and a cancel button. */

import { call, events } from "./api.js";
import { ago, badge, byId, count, duration, el, note } from "./dom.js";

const FINAL = new Set(["succeeded", "failed", "cancelled"]);
/* A browser opens six connections to a host at most: the others are seen when the list is fetched again. */
const MAX_STREAMS = 3;
const CONFIRM_MS = 4000;

const cards = new Map();
const streams = new Map();
const lastEvents = new Map();
let onEnd = () => {};

function progressText({ progress, state, started_at, finished_at, created_at }) {
  if (state === "queued") return `waiting, queued ${ago(created_at)}`;
  if (FINAL.has(state)) {
    return started_at && finished_at ? `took ${duration(finished_at - started_at)}, ended ${ago(finished_at)}` : "";
  }
  const of = progress.total ? ` of ${count(progress.total)}` : "";
  const done = progress.done || of ? `${count(progress.done)}${of} ${progress.unit}` : null;
  const rate = progress.tokens_per_s ? `${count(Math.round(progress.tokens_per_s))} tokens/s` : null;
  const left = progress.eta_s === null ? null : `${duration(progress.eta_s)} left`;
  return [progress.stage, done, rate, left].filter(Boolean).join(" · ");
}

function bar({ progress, state, index }) {
  if (FINAL.has(state)) return null;
  const node = el("progress", { max: 1, attributes: { "aria-label": `Progress of ${index}` } });
  if (state === "running" && progress.total) node.value = progress.done / progress.total;
  if (state === "queued") node.value = 0;
  return node;
}

function cancelButton(job) {
  if (FINAL.has(job.state)) return null;
  const button = el("button", { type: "button", className: "quiet", textContent: "Cancel" });
  button.setAttribute("aria-label", `Cancel ${job.index}`);
  let timer = null;
  const calm = () => { timer = null; button.textContent = "Cancel"; button.classList.remove("danger"); };
  button.addEventListener("click", async () => {
    if (timer === null) {
      button.textContent = "Really cancel?";
      button.classList.add("danger");
      timer = setTimeout(calm, CONFIRM_MS);
      return;
    }
    clearTimeout(timer);
    button.disabled = true;
    button.textContent = "Cancelling…";
    try {
      show(await call(`jobs/${encodeURIComponent(job.job_id)}`, { method: "DELETE" }));
    } catch (error) {
      button.disabled = false;
      calm();
      cards.get(job.job_id).body.append(note(error.message, "bad"));
    }
  });
  return button;
}

function newCard(job) {
  const card = { state: null, badge: el("span"), actions: el("span"), body: el("div") };
  card.node = el("li", { className: "job" },
    el("div", { className: "row" },
      el("strong", { textContent: job.index }),
      card.badge,
      el("code", { textContent: job.job_id, className: "faint" }),
      card.actions),
    card.body);
  cards.set(job.job_id, card);
  return card;
}

/** Put `job` on its card. The button stays the same node, so that a click between two events is not lost. */
function show(job) {
  const card = cards.get(job.job_id) ?? newCard(job);
  if (card.state !== job.state) {
    card.badge.replaceChildren(badge(job.state));
    card.actions.replaceChildren(...[cancelButton(job)].filter(Boolean));
  }
  card.state = job.state;
  card.body.replaceChildren(...[
    bar(job),
    el("p", { className: "faint", textContent: progressText(job) }),
    job.error ? note(`${job.error.code}: ${job.error.detail}`, "bad") : null,
  ].filter(Boolean));
  return card.node;
}

function unfollow(id) {
  streams.get(id)?.abort();
  streams.delete(id);
}

/** Show a job's events to its end. Where the stream breaks, the next refresh follows it again from there. */
async function follow({ job_id: id }) {
  if (streams.has(id) || streams.size >= MAX_STREAMS) return;
  const stop = new AbortController();
  streams.set(id, stop);
  let state = null;
  try {
    for await (const event of events(`jobs/${encodeURIComponent(id)}/events`, stop.signal, lastEvents.get(id))) {
      if (event.event === "problem") break;
      const record = JSON.parse(event.data);
      lastEvents.set(id, event.id);
      show(record);
      state = record.state;
    }
  } catch { // what is wrong is said when the list is fetched
  } finally {
    if (streams.get(id) === stop) streams.delete(id);
  }
  if (FINAL.has(state)) onEnd();
}

/** Fetch the list again, and follow what is active. */
export async function refreshJobs() {
  const { items } = await call("jobs?limit=12");
  const list = byId("jobs");
  const present = new Set(items.map((job) => job.job_id));
  for (const id of [...cards.keys()].filter((known) => !present.has(known))) {
    unfollow(id);
    lastEvents.delete(id);
    cards.delete(id);
  }
  const nodes = items.map(show);
  const same = nodes.length === list.children.length && nodes.every((node, at) => node === list.children[at]);
  if (!same || nodes.length === 0) {
    list.replaceChildren(...(nodes.length ? nodes : [el("li", {}, note("No jobs yet. Queue one with POST /index below."))]));
  }
  items.filter((job) => !FINAL.has(job.state)).forEach(follow);
}

/** Call `listener` when a followed job has ended. */
export function onJobEnd(listener) {
  onEnd = listener;
}

export function stopFollowing() {
  for (const id of [...streams.keys()]) unfollow(id);
}
