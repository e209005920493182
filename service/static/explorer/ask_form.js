/* The form for a question: a prompt or a chat, and the completion, which the model can also write. */

import { BehaviourDialogs, BehaviourFields } from "../behaviours/behaviour_fields.js";
import { useBehaviours } from "../behaviours/use_behaviours.js";
import { html, useState } from "../shared/html.js";
import { ChatTurns } from "./chat_turns.js";
import { MAX_SHADED, NEW_INDEX, RESULT_COUNTS, unavailable } from "./question.js";

const foldText = (name) => (name === "near_duplicates" ? "near copies, by their gradients" : `all of the same ${name}`);

/** How results are folded: near copies in the page, or groups with sums by the service. */
function FoldChoice({ fold, columns, set }) {
  const names = [...new Set(["near_duplicates", ...columns, ...(fold ? [fold] : [])])];
  return html`<label>Fold
    <select value=${fold} onChange=${(event) => set({ fold: event.target.value })}>
      <option value="" selected=${!fold}>near copies, by their words</option>
      ${names.map((name) => html`<option value=${name} selected=${name === fold}>${foldText(name)}</option>`)}</select></label>`;
}

/** Which steps of a training run count, in an index of several checkpoints. */
function CheckpointChoice({ between, count, disabled, set }) {
  const numbers = Array.from({ length: count }, (_, number) => number);
  const from = (event) => set({ between: event.target.value === "" ? null : [Number(event.target.value), count - 1] });
  const option = (chosen) => (number) => html`<option value=${number} selected=${number === chosen}>${number}</option>`;
  return html`<label>Learned after checkpoint
      <select value=${between ? between[0] : ""} disabled=${disabled} onChange=${from}><option value="" selected=${!between}>any</option>
        ${numbers.slice(0, -1).map(option(between?.[0]))}</select></label>
    ${between && html`<label>and before checkpoint
      <select value=${between[1]} onChange=${(event) => set({ between: [between[0], Number(event.target.value)] })}>
        ${numbers.slice(between[0] + 1).map(option(between[1]))}</select></label>`}`;
}

function Check({ name, question, off, set, children }) {
  return html`<label class="check"><input type="checkbox" checked=${name in off ? off[name] : question[name]} disabled=${name in off}
    onChange=${(event) => set({ [name]: event.target.checked })} /> ${children}</label>`;
}

const ORDERS = [["influence", "by influence"], ["fused", "by influence and words"]];

function Options({ question, set, index }) {
  const { profiles, columns, checkpoints } = index;
  const off = unavailable(question);
  const shared = { question, off, set };
  const order = off.order ?? question.order;
  const isOther = Number.isInteger(question.top_k) && !RESULT_COUNTS.includes(question.top_k); // an address may ask for any
  const counts = isOther ? [...RESULT_COUNTS, question.top_k].sort((one, other) => one - other) : RESULT_COUNTS;
  return html`<details class="options"><summary>Options</summary><div class="option-row">
    <label>Documents on each side
      <select value=${question.top_k} onChange=${(event) => set({ top_k: Number(event.target.value) })}>
        ${counts.map((count) => html`<option value=${count} selected=${count === question.top_k}>${count}</option>`)}</select></label>
    <label>Order
      <select value=${order} disabled=${"order" in off} onChange=${(event) => set({ order: event.target.value })}>
        ${ORDERS.map(([value, text]) => html`<option value=${value} selected=${value === order}>${text}</option>`)}</select></label>
    ${profiles.length > 1 && html`<label>Profile
      <select value=${question.profile} onChange=${(event) => set({ profile: event.target.value })}>
        ${profiles.map((name) => html`<option value=${name} selected=${name === question.profile}>${name}</option>`)}</select></label>`}
    ${checkpoints > 1 && html`<${CheckpointChoice} between=${off.between === null ? null : question.between} count=${checkpoints} disabled=${"between" in off} set=${set} />`}
    <${FoldChoice} fold=${question.fold} columns=${columns} set=${set} />
    <div class="checks">
      <${Check} name="shades" ...${shared}>Shade the words of each document<//>
      <${Check} name="words" ...${shared}>Say which documents state the completion<//>
      <${Check} name="exact" ...${shared}>Score the best 200 exactly<//>
    </div>
    ${question.top_k > MAX_SHADED && html`<p class="faint">${`Words are shaded for at most ${MAX_SHADED} documents on each side, because the model reads each of them again.`}</p>`}
    ${question.fold && html`<p class="faint">The service sums the scores of the 1,000 best documents in each direction, which takes longer. Groups have neither shades nor exact scores.</p>`}
    ${question.mode === "behaviour" && html`<p class="faint">A behaviour is no single text: it has no words to compare and no exact scores.</p>`}
  </div></details>`;
}

function Mode({ mode, set }) {
  return html`<div class="switch" role="group" aria-label="Kind of question">
    ${[["prompt", "Prompt"], ["chat", "Chat"], ["behaviour", "Behaviour"]].map(([name, text]) => html`<button type="button" aria-pressed=${mode === name}
      onClick=${() => set({ mode: name })}>${text}</button>`)}</div>`;
}

function PromptFields({ question, set }) {
  return html`
    <label>Prompt
      <textarea rows="2" value=${question.prompt} placeholder="Ada Lovelace was born in" onInput=${(event) => set({ prompt: event.target.value })}></textarea></label>
    <label>Completion <span class="faint">usually begins with a space; left empty, the model writes it</span>
      <textarea rows="1" value=${question.completion} placeholder=" London" onInput=${(event) => set({ completion: event.target.value })}></textarea></label>`;
}

/**
 * @param question What the form holds, see `question.js`.
 * @param onChange Is called with a function from the question to the changed one.
 * @param onAsk Is called when the question is asked.
 * @param indexes Names of the indexes that answer.
 * @param index What is known of the chosen index, see `loadIndex`.
 */
export function AskForm({ question, onChange, onAsk, indexes, index, isBusy }) {
  const behaviours = useBehaviours(question.index, question.mode === "behaviour");
  const [shown, setShown] = useState(null); // the name of a behaviour
  const set = (fields) => onChange((last) => ({ ...last, ...fields }));
  const isWhole = question.mode !== "behaviour" || Boolean(question.behaviour);
  const submit = (event) => {
    event.preventDefault();
    if (isWhole) onAsk();
  };
  const press = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
  };
  const names = indexes.includes(question.index) || !question.index ? indexes : [question.index, ...indexes];
  return html`<form id="ask" class="card" autocomplete="off" onSubmit=${submit} onKeyDown=${press}>
    <div class="ask-head">
      <label class="index-choice">Index
        <select value=${question.index} required onChange=${(event) => set({ index: event.target.value, ...NEW_INDEX })}>
          ${names.map((name) => html`<option value=${name} selected=${name === question.index}>${name}</option>`)}</select></label>
      <${Mode} mode=${question.mode} set=${set} />
    </div>
    ${question.mode === "chat" && html`<${ChatTurns} messages=${question.messages} onChange=${(messages) => set({ messages })} />`}
    ${question.mode === "behaviour" && html`<${BehaviourFields} question=${question} set=${set} behaviours=${behaviours} onShow=${setShown} />`}
    ${question.mode === "prompt" && html`<${PromptFields} question=${question} set=${set} />`}
    <div class="ask-foot">
      <button type="submit" class="primary" disabled=${isBusy || !isWhole}>${isBusy ? "Asking…" : "Ask"}</button>
      <${Options} question=${question} set=${set} index=${index} />
      <span class="faint keys">Ctrl + Enter asks</span>
    </div>
  </form>
  <${BehaviourDialogs} shown=${shown} question=${question} set=${set} refresh=${behaviours.refresh} onClose=${() => setShown(null)} />`;
}
