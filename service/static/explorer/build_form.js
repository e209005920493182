/* The form that builds an index: what it will take is estimated first, then the build is followed until it has ended. */

import { post, call } from "../shared/api.js";
import { formatBytes, formatCount, formatDuration } from "../shared/format.js";
import { html, useEffect, useRef, useState } from "../shared/html.js";
import { JobCard } from "../shared/jobs.js";
import { Facts, Problem, Skeleton } from "../shared/parts.js";
import { NotAllowed, useMay } from "../shared/permissions.js";

const EMPTY = { name: "", model: "", kind: "dataset", path: "", texts: "", prompt: "text", completion: "", id: "", metadata: "", preset: "default" };
const PRESETS = [["default", "quick and small"], ["best", "measures best"], ["trackstar", "as TrackStar has it"]];

/** Returns the body of `POST /index` for what the form holds. */
export function makeBuild({ name, model, kind, path, texts, prompt, completion, id, metadata, preset }) {
  const columns = { prompt: prompt || "text", metadata: metadata.split(",").map((column) => column.trim()).filter(Boolean) };
  if (completion) columns.completion = completion;
  if (id) columns.id = id;
  const documents = texts.split("\n").filter((line) => line.trim()).map((text) => ({ text }));
  const source = kind === "dataset" ? { dataset: { path }, columns } : { documents };
  return { name, model, ...source, ...(preset === "default" ? {} : { preset }) };
}

function EstimateFacts({ estimate }) {
  return html`<div class="estimate" role="status"><h3>What it will take</h3><${Facts} pairs=${[
    ["documents", formatCount(estimate.documents)],
    ["tokens", formatCount(estimate.tokens)],
    ["time", formatDuration(estimate.seconds)],
    ["on disk", formatBytes(estimate.size_bytes.total)],
    ["memory at most", formatBytes(estimate.peak_memory_bytes)],
    ["parameters covered", `${estimate.coverage_percent.toFixed(1)} %`],
  ]} /></div>`;
}

function Source({ form, set }) {
  const field = (name, label, hint, more = {}) => html`<label>${label} <span class="faint">${hint}</span>
    <input value=${form[name]} spellcheck="false" ...${more} onInput=${(event) => set({ [name]: event.target.value })} /></label>`;
  return html`
    <div class="switch" role="group" aria-label="Where the documents come from">
      <button type="button" aria-pressed=${form.kind === "dataset"} onClick=${() => set({ kind: "dataset" })}>A dataset</button>
      <button type="button" aria-pressed=${form.kind === "texts"} onClick=${() => set({ kind: "texts" })}>Texts of your own</button></div>
    ${form.kind === "texts" ? html`<label>Documents <span class="faint">one on each line</span>
      <textarea rows="5" required value=${form.texts} onInput=${(event) => set({ texts: event.target.value })}></textarea></label>` : html`
      ${field("path", "Dataset", "a hub id, or a file or directory that the service may read", { required: true, placeholder: "NeelNanda/pile-10k" })}
      <div class="field-row">
        ${field("prompt", "Column of the text", "or of the prompt")}
        ${field("completion", "Column of the completion", "if there is one")}
        ${field("id", "Column of the ids", "otherwise row numbers")}
        ${field("metadata", "Columns of metadata", "with commas between", { placeholder: "source, year" })}
      </div>`}`;
}

/** @param onDone Is called with the name of an index that was built. */
export function BuildForm({ onDone }) {
  const [form, setForm] = useState(EMPTY);
  const [{ estimate, job, error, busy }, setState] = useState({});
  const may = useMay("write");
  const outcome = useRef(null);
  useEffect(() => outcome.current?.scrollIntoView({ block: "nearest" }), [estimate, job, error, busy]); // below the fold of a phone
  const set = (fields) => {
    setForm({ ...form, ...fields });
    setState((last) => ({ job: last.job }));
  };
  const run = async (what, work) => {
    setState({ busy: what });
    try {
      setState(await work());
    } catch (problem) {
      setState({ error: problem });
    }
  };
  const askEstimate = (event) => event.target.form.reportValidity()
    && run("estimate", async () => ({ estimate: await post("index/estimate", makeBuild(form)) }));
  const build = (event) => {
    event.preventDefault();
    run("build", async () => {
      const { job_id: id } = await post("index", makeBuild(form));
      return { job: await call(`jobs/${encodeURIComponent(id)}`) };
    });
  };
  return html`<form id="build" class="card" autocomplete="off" onSubmit=${build}>
    <div class="row"><h2>Build an index</h2><a class="end" href="#">Back</a></div>
    ${!may && html`<${NotAllowed} what="build indexes" />`}
    <div class="field-row">
      <label>Name <span class="faint">of the index</span><input required pattern="[a-z0-9][a-z0-9_\\-]{0,62}" title="Small letters, digits, - and _" placeholder="facts"
        value=${form.name} onInput=${(event) => set({ name: event.target.value })} /></label>
      <label>Model <span class="faint">a hub id or a directory</span><input required placeholder="EleutherAI/pythia-160m" spellcheck="false"
        value=${form.model} onInput=${(event) => set({ model: event.target.value })} /></label>
    </div>
    <${Source} form=${form} set=${set} />
    <label class="preset">Rows<select value=${form.preset} onChange=${(event) => set({ preset: event.target.value })}>
      ${PRESETS.map(([value, meaning]) => html`<option value=${value} selected=${value === form.preset}>${`${value}: ${meaning}`}</option>`)}</select></label>
    ${may && html`<div class="row">
      <button type="button" class="quiet" disabled=${Boolean(busy)} onClick=${askEstimate}>${busy === "estimate" ? "Trying the build…" : "Estimate first"}</button>
      <button type="submit" class="primary" disabled=${Boolean(busy)}>Build</button>
    </div>`}
    <div ref=${outcome}>
      ${busy === "estimate" && html`<${Skeleton} lines=${2} label="A worker tries the build, which takes up to a minute" />`}
      ${error && html`<${Problem} error=${error} />`}
      ${estimate && html`<${EstimateFacts} estimate=${estimate} />`}
      ${job && html`<${JobCard} key=${job.job_id} job=${job} onEnd=${(record) => record.state === "succeeded" && onDone(record.index)} />`}
    </div>
  </form>`;
}
