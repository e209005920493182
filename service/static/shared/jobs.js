/* Jobs: how far one is, its event stream, and the button that cancels it. */

import { call, events } from "./api.js";
import { formatAge, formatCount, formatDuration } from "./format.js";
import { html, useEffect, useState } from "./html.js";
import { Badge, ConfirmButton, messageParts, Note } from "./parts.js";
import { useMay } from "./permissions.js";

const RETRY_MS = 1000;

export const FINAL_STATES = new Set(["succeeded", "failed", "cancelled"]);

/** Returns a sentence about the progress of a job. */
export function progressText({ progress, state, waits_for, started_at, finished_at, created_at }) {
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

/** Passes events to `receive` until it returns true. A stream that breaks is opened again, and goes on where it was. */
async function followEvents(path, signal, receive) {
  let lastId = "";
  while (!signal.aborted) {
    try {
      for await (const event of events(path, signal, lastId)) {
        if (receive(event)) return;
        lastId = event.id || lastId;
      }
    } catch (error) {
      if (error.status >= 400 && error.status < 500 && error.status !== 429) return; // there is no such job any more
    }
    await new Promise((resolve) => { setTimeout(resolve, RETRY_MS); });
  }
}

/** Returns the newest record of a job. While `isFollowed` it comes from the job's event stream, and resumes there. */
export function useJob(listed, isFollowed, onEnd) {
  const [record, setRecord] = useState(listed);
  const { job_id: id } = listed;
  useEffect(() => setRecord(listed), [listed]);
  useEffect(() => {
    if (!isFollowed || FINAL_STATES.has(listed.state)) return undefined;
    const controller = new AbortController();
    const receive = ({ event, data }) => {
      if (event === "problem") return true;
      const newest = JSON.parse(data);
      setRecord(newest);
      const isOver = FINAL_STATES.has(newest.state);
      if (isOver) onEnd?.(newest);
      return isOver;
    };
    const follow = () => followEvents(`jobs/${encodeURIComponent(id)}/events`, controller.signal, receive);
    const stop = () => controller.abort();
    addEventListener("pagehide", stop);
    follow();
    return () => {
      removeEventListener("pagehide", stop);
      stop();
    };
  }, [id, isFollowed]);
  return [record, setRecord];
}

function ProgressBar({ job: { progress, state, index } }) {
  if (FINAL_STATES.has(state)) return null;
  const value = state === "queued" ? 0 : progress.total ? progress.done / progress.total : undefined;
  return html`<progress key=${value === undefined ? "unknown" : "known"} max="1" value=${value} aria-label=${`Progress of ${index ?? "the estimate"}`}></progress>`;
}

/** A job with its progress, its error in full, and a button that cancels it. */
export function JobCard({ job: listed, isFollowed = true, onEnd }) {
  const [job, setJob] = useJob(listed, isFollowed, onEnd);
  const [error, setError] = useState(null);
  const may = useMay("write");
  const cancel = async () => {
    try {
      setJob(await call(`jobs/${encodeURIComponent(job.job_id)}`, { method: "DELETE" }));
    } catch (problem) {
      setError(problem);
    }
  };
  return html`<div class="job">
    <div class="row">
      <strong>${job.index ?? job.kind}</strong>${job.index && html`<span>${job.kind}</span>`}<${Badge} state=${job.state} /><code class="faint">${job.job_id}</code>
      ${may && !FINAL_STATES.has(job.state) && html`<span class="end"><${ConfirmButton} label="Cancel" question="Really cancel?"
        name=${`Cancel ${job.index ?? job.kind}`} onConfirm=${cancel} /></span>`}
    </div>
    <${ProgressBar} job=${job} />
    <p class="faint">${progressText(job)}</p>
    ${job.error && html`<${Note} kind="bad" role="alert">${job.error.code}: ${messageParts(job.error.detail)}<//>`}
    ${error && html`<${Note} kind="bad" role="alert">${error.message}<//>`}
  </div>`;
}
