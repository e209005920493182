/* The form for a question: a prompt or a chat, and the completion, which the model can also write. */

import { html } from "../shared/html.js";
import { ChatTurns } from "./chat_turns.js";
import { RESULT_COUNTS } from "./question.js";

const foldText = (name) => (name === "near_duplicates" ? "near copies, by their gradients" : `all of the same ${name}`);

/** How results are folded: near copies in the page, or groups with sums by the service. */
function FoldChoice({ fold, columns, set }) {
  const names = [...new Set(["near_duplicates", ...columns, ...(fold ? [fold] : [])])];
  return html`<label>Fold
    <select value=${fold} onChange=${(event) => set({ fold: event.target.value })}>
      <option value="" selected=${!fold}>near copies, by their words</option>
      ${names.map((name) => html`<option value=${name} selected=${name === fold}>${foldText(name)}</option>`)}</select></label>`;
}

function Options({ question, set, index }) {
  const { profiles } = index;
  const isFolded = Boolean(question.fold);
  const toggle = (name) => (event) => set({ [name]: event.target.checked });
  return html`<details class="options"><summary>Options</summary><div class="option-row">
    <label>Documents on each side
      <select value=${question.top_k} onChange=${(event) => set({ top_k: Number(event.target.value) })}>
        ${RESULT_COUNTS.map((count) => html`<option value=${count} selected=${count === question.top_k}>${count}</option>`)}</select></label>
    <label>Order
      <select value=${isFolded ? "influence" : question.order} disabled=${isFolded} onChange=${(event) => set({ order: event.target.value })}>
        ${[["influence", "by influence"], ["fused", "by influence and words"]].map(([value, text]) => html`<option value=${value} selected=${value === question.order}>${text}</option>`)}</select></label>
    ${profiles.length > 1 && html`<label>Profile
      <select value=${question.profile} onChange=${(event) => set({ profile: event.target.value })}>
        ${profiles.map((name) => html`<option value=${name} selected=${name === question.profile}>${name}</option>`)}</select></label>`}
    <${FoldChoice} fold=${question.fold} columns=${index.columns} set=${set} />
    <label class="check"><input type="checkbox" checked=${question.shades && !isFolded} disabled=${isFolded} onChange=${toggle("shades")} /> Shade the words of each document</label>
    <label class="check"><input type="checkbox" checked=${question.words} onChange=${toggle("words")} /> Say which documents state the completion</label>
    <label class="check"><input type="checkbox" checked=${question.exact && !isFolded} disabled=${isFolded} onChange=${toggle("exact")} /> Score the best 200 exactly</label>
    ${isFolded && html`<p class="faint">The service sums the scores of the 1,000 best documents in each direction, which takes longer. Groups have neither shades nor exact scores.</p>`}
  </div></details>`;
}

function Mode({ mode, set }) {
  return html`<div class="switch" role="group" aria-label="Kind of question">
    ${["prompt", "chat"].map((name) => html`<button type="button" aria-pressed=${mode === name} onClick=${() => set({ mode: name })}>
      ${name === "prompt" ? "Prompt" : "Chat"}</button>`)}</div>`;
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
 * @param onChange Is called with the changed question.
 * @param onAsk Is called when the question is asked.
 * @param indexes Names of the indexes that answer.
 * @param index What is known of the chosen index, see `loadIndex`.
 */
export function AskForm({ question, onChange, onAsk, indexes, index, isBusy }) {
  const set = (fields) => onChange({ ...question, ...fields });
  const submit = (event) => {
    event.preventDefault();
    onAsk();
  };
  const press = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
  };
  const names = indexes.includes(question.index) || !question.index ? indexes : [question.index, ...indexes];
  return html`<form id="ask" class="card" autocomplete="off" onSubmit=${submit} onKeyDown=${press}>
    <div class="ask-head">
      <label class="index-choice">Index
        <select value=${question.index} required onChange=${(event) => set({ index: event.target.value, profile: "default", fold: "" })}>
          ${names.map((name) => html`<option value=${name} selected=${name === question.index}>${name}</option>`)}</select></label>
      <${Mode} mode=${question.mode} set=${set} />
    </div>
    ${question.mode === "chat" ? html`<${ChatTurns} messages=${question.messages} onChange=${(messages) => set({ messages })} />`
      : html`<${PromptFields} question=${question} set=${set} />`}
    <div class="ask-foot">
      <button type="submit" class="primary" disabled=${isBusy}>${isBusy ? "Asking…" : "Ask"}</button>
      <${Options} question=${question} set=${set} index=${index} />
      <span class="faint keys">Ctrl + Enter asks</span>
    </div>
  </form>`;
}
