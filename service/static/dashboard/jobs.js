/* The list of jobs. Each active job is followed on an event stream of its own, and has a button to cancel it. */

import { call, events } from "./api.js";
import { badge, byId, el, formatAge, formatCount, formatDuration, note } from "./dom.js";

const FINAL_STATES = new Set(["succeeded", "failed", "cancelled"]);
/* A browser opens at most six connections to a host. Other jobs are updated when the list is fetched again. */
const MAX_STREAMS = 3;
const CONFIRM_MS = 4000;

const cards = new Map(); // job id → its card
const streams = new Map(); // job id → the AbortController of its event stream
const lastEventIds = new Map(); // job id → the id of its last event
let jobEndListener = () => {};

function progressText({ progress, state, waits_for, started_at, finished_at, created_at }) {
  if (state === "queued") return [`waiting, queued ${formatAge(created_at)}`, waits_for].filter(Boolean).join(" · ");
  if (FINAL_STATES.has(state)) {
    if (!started_at || !finished_at) return "";
    return `took ${formatDuration(finished_at - started_at)}, ended ${formatAge(finished_at)}`;
  }
  const total = progress.total ? ` of ${formatCount(progress.total)}` : "";
  const done = progress.done || total ? `${formatCount(progress.done)}${total} ${progress.unit}` : null;
  const rate = progress.tokens_per_s ? `${formatCount(Math.round(progress.tokens_per_s))} tokens/s` : null;
  const remaining = progress.eta_s === null ? null : `${formatDuration(progress.eta_s)} left`;
  return [progress.stage, done, rate, remaining].filter(Boolean).join(" · ");
}

function progressBar({ progress, state, index }) {
  if (FINAL_STATES.has(state)) return null;
  const node = el("progress", { max: 1, attributes: { "aria-label": `Progress of ${index}` } });
  if (state === "running" && progress.total) node.value = progress.done / progress.total;
  if (state === "queued") node.value = 0;
  return node;
}

function cancelButton(job) {
  if (FINAL_STATES.has(job.state)) return null;
  const button = el("button", { type: "button", className: "quiet", textContent: "Cancel" });
  button.setAttribute("aria-label", `Cancel ${job.index}`);
  let timer = null;
  const reset = () => { timer = null; button.textContent = "Cancel"; button.classList.remove("danger"); };
  button.addEventListener("click", async () => {
    if (timer === null) {
      button.textContent = "Really cancel?";
      button.classList.add("danger");
      timer = setTimeout(reset, CONFIRM_MS);
      return;
    }
    clearTimeout(timer);
    button.disabled = true;
    button.textContent = "Cancelling…";
    try {
      show(await call(`jobs/${encodeURIComponent(job.job_id)}`, { method: "DELETE" }));
    } catch (error) {
      button.disabled = false;
      reset();
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

/** Updates the card of `job`. The button stays the same node, so that a click between two events is not lost. */
function show(job) {
  const card = cards.get(job.job_id) ?? newCard(job);
  if (card.state !== job.state) {
    card.badge.replaceChildren(badge(job.state));
    card.actions.replaceChildren(...[cancelButton(job)].filter(Boolean));
  }
  card.state = job.state;
  card.body.replaceChildren(...[
    progressBar(job),
    el("p", { className: "faint", textContent: progressText(job) }),
    job.error ? note(`${job.error.code}: ${job.error.detail}`, "bad") : null,
  ].filter(Boolean));
  return card.node;
}

function unfollow(id) {
  streams.get(id)?.abort();
  streams.delete(id);
}

/** Shows the events of a job until it has ended. If the stream breaks, the next refresh resumes it. */
async function follow({ job_id: id }) {
  if (streams.has(id) || streams.size >= MAX_STREAMS) return;
  const controller = new AbortController();
  streams.set(id, controller);
  let state = null;
  try {
    const path = `jobs/${encodeURIComponent(id)}/events`;
    for await (const event of events(path, controller.signal, lastEventIds.get(id))) {
      if (event.event === "problem") break;
      const record = JSON.parse(event.data);
      lastEventIds.set(id, event.id);
      show(record);
      state = record.state;
    }
  } catch { // The next refresh shows the error.
  } finally {
    if (streams.get(id) === controller) streams.delete(id);
  }
  if (FINAL_STATES.has(state)) jobEndListener();
}

/** Fetches the list again, and follows the active jobs. */
export async function refreshJobs() {
  const { items } = await call("jobs?limit=12");
  const list = byId("jobs");
  const listedIds = new Set(items.map((job) => job.job_id));
  for (const id of [...cards.keys()].filter((cardId) => !listedIds.has(cardId))) {
    unfollow(id);
    lastEventIds.delete(id);
    cards.delete(id);
  }
  const nodes = items.map(show);
  const isUnchanged = nodes.length === list.children.length && nodes.every((node, i) => node === list.children[i]);
  if (!isUnchanged || nodes.length === 0) {
    const placeholder = el("li", {}, note("No jobs yet. Queue one with POST /index below."));
    list.replaceChildren(...(nodes.length ? nodes : [placeholder]));
  }
  items.filter((job) => !FINAL_STATES.has(job.state)).forEach(follow);
}

/** Sets the function that is called when a followed job has ended. */
export function onJobEnd(listener) {
  jobEndListener = listener;
}

export function stopFollowing() {
  for (const id of [...streams.keys()]) unfollow(id);
}
