/* The form that makes a behaviour from a list of questions. Its job can be followed here; it goes on if this is closed. */

import { call, post } from "../shared/api.js";
import { Dialog } from "../shared/dialog.js";
import { html, useState } from "../shared/html.js";
import { JobCard } from "../shared/jobs.js";
import { Problem } from "../shared/parts.js";
import { NotAllowed, useMay } from "../shared/permissions.js";
import { readQueryLines } from "../shared/query_lines.js";
import { behavioursPath } from "./use_behaviours.js";

const HINT = "one on each line, as prompt | completion, or as JSON";

/** Returns the body of `POST /index/{name}/behaviours`. Throws an error that names a line that is wrong. */
export function makeBehaviour({ name, queries, control }) {
  const body = { name, queries: readQueryLines(queries) };
  const others = readQueryLines(control);
  return others.length ? { ...body, control: others } : body;
}

/** @param onMade Is called with the name of the behaviour once its job has succeeded. */
export function BehaviourForm({ index, onMade, onClose }) {
  const [form, setForm] = useState({ name: "", queries: "", control: "" });
  const [{ job, error, isBusy }, setState] = useState({});
  const may = useMay("write");
  const set = (fields) => setForm({ ...form, ...fields });
  const start = async (event) => {
    event.preventDefault();
    setState({ isBusy: true });
    try {
      const { job_id: id } = await post(behavioursPath(index), makeBehaviour(form));
      setState({ job: await call(`jobs/${encodeURIComponent(id)}`) });
    } catch (problem) {
      setState({ error: problem });
    }
  };
  const end = (record) => record.state === "succeeded" && onMade(form.name);
  const list = (field, label, hint, more) => html`<label>${label} <span class="faint">${hint}</span>
    <textarea rows="4" value=${form[field]} spellcheck="false" ...${more} onInput=${(event) => set({ [field]: event.target.value })}></textarea></label>`;
  return html`<${Dialog} title=${`A behaviour of ${index}`} onClose=${onClose}>
    <form class="behaviour-form" autocomplete="off" onSubmit=${start}>
      <label>Name<input required pattern="[a-z0-9][a-z0-9_\\-]{0,62}" title="Small letters, digits, - and _" placeholder="refusals"
        value=${form.name} onInput=${(event) => set({ name: event.target.value })} /></label>
      ${list("queries", "Questions that show it", HINT, { required: true, placeholder: "Q: Where was Ada born? A: | I cannot say." })}
      ${list("control", "Control set", "the same in all but the behaviour; may be empty", { placeholder: "Q: Where was Ada born? A: | In London." })}
      ${may ? html`<div><button type="submit" class="primary" disabled=${Boolean(isBusy)}>Make it</button></div>` : html`<${NotAllowed} what="make behaviours" />`}
      ${error && html`<${Problem} error=${error} />`}
      ${job && html`<${JobCard} key=${job.job_id} job=${job} onEnd=${end} />`}
    </form>
  <//>`;
}
