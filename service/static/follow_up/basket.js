/* A basket of documents: what would the model say without them? One step unlearns all of them together, beside other
 * questions, and every weight is restored. */

import { call, post } from "../shared/api.js";
import { formatChange, formatProbability, plural } from "../shared/format.js";
import { html, useState } from "../shared/html.js";
import { JobCard } from "../shared/jobs.js";
import { Explain, Note, Problem } from "../shared/parts.js";
import { NotAllowed, useMay } from "../shared/permissions.js";
import { queryText, readQueryLines } from "../shared/query_lines.js";
import { loadBehaviour } from "../behaviours/use_behaviours.js";

const MAX_WATCHED = 128; // of a behaviour: the service takes 256, and there may be others
const WATCHED_FIELDS = ["prompt", "completion", "messages", "span", "instead_of", "join"];

const watchedFields = (query) => Object.fromEntries(WATCHED_FIELDS.filter((name) => (query[name] ?? null) !== null).map((name) => [name, query[name]]));

/** Returns `{queries, control}` to watch: the question of an answer, or those of the behaviour that was asked for. */
export async function watchedQueries(request, answer) {
  if (!request.behaviour) {
    const completion = request.messages ? {} : { completion: request.completion ?? answer.query.completion };
    return { queries: [{ ...watchedFields(request), ...completion }], control: [] };
  }
  const { queries, control } = await loadBehaviour(answer.index, request.behaviour);
  if (!queries) throw new Error("This API key sees no texts, and so not the questions of the behaviour.");
  return { queries: queries.slice(0, MAX_WATCHED).map(watchedFields), control: (control ?? []).slice(0, MAX_WATCHED).map(watchedFields) };
}

/** Formats the probability of a query; for a contrast, whose value is a difference, the share of the two. */
function probability(value, { instead_of: other }) {
  if (value === null) return "not finite";
  return other ? `${formatProbability(1 / (1 + Math.exp(-value)))} of both` : formatProbability(Math.min(1, Math.exp(value)));
}

/** @param isWanted Whether these questions are to become less likely: only then is a fall drawn as good. */
function Changes({ title, queries, changes, isWanted = false }) {
  if (!changes.length) return null;
  return html`<table class="changes"><caption>${title}</caption>
    <thead><tr><th scope="col">Question</th><th scope="col">Before</th><th scope="col">After</th><th scope="col">Change in nats</th></tr></thead>
    <tbody>${changes.map(({ before, after, log_probability: change }, number) => html`<tr>
      <td>${queryText(queries[number])}</td><td class="number">${probability(before, queries[number])}</td><td class="number">${probability(after, queries[number])}</td>
      <td class=${`number ${isWanted && change !== null && change < 0 ? "down" : ""}`}>${formatChange(change)}</td></tr>`)}</tbody></table>`;
}

function Preview({ preview, asked }) {
  return html`<div role="status"><p>${`${plural(preview.documents, "document")} unlearned together.`}
      ${preview.left_out > 0 && ` ${plural(preview.left_out, "document")} had nothing to unlearn.`} Nothing was saved.</p>
    <${Changes} title="This question and those to watch" queries=${asked.queries} changes=${preview.queries} isWanted />
    <${Changes} title="Questions that should stay as they are" queries=${asked.control ?? []} changes=${preview.control} /></div>`;
}

/**
 * @param basket Ids of documents.
 * @param onClear Empties the basket.
 */
export function Basket({ request, answer, basket, onClear }) {
  const [others, setOthers] = useState("");
  const [control, setControl] = useState("");
  const [{ job, asked, error }, setState] = useState({});
  const may = useMay("write");
  if (!basket.size && !job) return null;
  const start = async (event) => {
    event.preventDefault();
    try {
      const own = await watchedQueries(request, answer);
      const kept = [...own.control, ...readQueryLines(control)];
      const body = { ids: [...basket], queries: [...own.queries, ...readQueryLines(others)], ...(kept.length ? { control: kept } : {}) };
      const { job_id: id } = await post(`index/${encodeURIComponent(answer.index)}/unlearn`, body);
      setState({ job: await call(`jobs/${encodeURIComponent(id)}`), asked: body });
    } catch (problem) {
      setState({ error: problem });
    }
  };
  const end = (record) => setState((last) => ({ ...last, job: record }));
  return html`<form class="card basket" aria-label="Basket" onSubmit=${start}>
    <div class="row"><h2>${plural(basket.size, "document")} in the basket</h2>
      <${Explain} name="the basket">One training step backwards is taken on all of these documents together, the change of each
        question is measured, and all weights are restored. It shows what depends on them, and what else would break.<//>
      <button type="button" class="link end" onClick=${() => { onClear(); setState({}); }}>Empty it</button></div>
    <div class="field-row">
      <label>Other questions to watch <span class="faint">one on each line, as prompt | completion</span>
        <textarea rows="2" value=${others} placeholder="Alan Turing was born in | Maida Vale" onInput=${(event) => setOthers(event.target.value)}></textarea></label>
      <label>Questions that should stay as they are <span class="faint">in the same form</span>
        <textarea rows="2" value=${control} onInput=${(event) => setControl(event.target.value)}></textarea></label>
    </div>
    ${may ? html`<button type="submit" class="primary" disabled=${!basket.size}>Unlearn them together</button>` : html`<${NotAllowed} what="unlearn documents for a try" />`}
    ${error && html`<${Problem} error=${error} />`}
    ${job && html`<${JobCard} key=${job.job_id} job=${job} onEnd=${end} />`}
    ${job?.unlearning && html`<${Preview} preview=${job.unlearning} asked=${asked} />`}
    ${job?.state === "cancelled" && html`<${Note}>Nothing was changed.<//>`}
  </form>`;
}
