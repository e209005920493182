/* The form for a question: a prompt or a chat, and the completion, which the model can also write. */

import { html } from "../shared/html.js";
import { ChatTurns } from "./chat_turns.js";
import { RESULT_COUNTS } from "./question.js";

function Options({ question, set, profiles }) {
  const toggle = (name) => (event) => set({ [name]: event.target.checked });
  return html`<details class="options"><summary>Options</summary><div class="option-row">
    <label>Documents on each side
      <select value=${question.top_k} onChange=${(event) => set({ top_k: Number(event.target.value) })}>
        ${RESULT_COUNTS.map((count) => html`<option value=${count} selected=${count === question.top_k}>${count}</option>`)}</select></label>
    <label>Order
      <select value=${question.order} onChange=${(event) => set({ order: event.target.value })}>
        ${[["influence", "by influence"], ["fused", "by influence and words"]].map(([value, text]) => html`<option value=${value} selected=${value === question.order}>${text}</option>`)}</select></label>
    ${profiles.length > 1 && html`<label>Profile
      <select value=${question.profile} onChange=${(event) => set({ profile: event.target.value })}>
        ${profiles.map((name) => html`<option value=${name} selected=${name === question.profile}>${name}</option>`)}</select></label>`}
    <label class="check"><input type="checkbox" checked=${question.shades} onChange=${toggle("shades")} /> Shade the words of each document</label>
    <label class="check"><input type="checkbox" checked=${question.words} onChange=${toggle("words")} /> Say which documents state the completion</label>
    <label class="check"><input type="checkbox" checked=${question.exact} onChange=${toggle("exact")} /> Score the best 200 exactly</label>
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
 * @param profiles Names of the chosen index's profiles.
 */
export function AskForm({ question, onChange, onAsk, indexes, profiles, isBusy }) {
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
        <select value=${question.index} required onChange=${(event) => set({ index: event.target.value, profile: "default" })}>
          ${names.map((name) => html`<option value=${name} selected=${name === question.index}>${name}</option>`)}</select></label>
      <${Mode} mode=${question.mode} set=${set} />
    </div>
    ${question.mode === "chat" ? html`<${ChatTurns} messages=${question.messages} onChange=${(messages) => set({ messages })} />`
      : html`<${PromptFields} question=${question} set=${set} />`}
    <div class="ask-foot">
      <button type="submit" class="primary" disabled=${isBusy}>${isBusy ? "Asking…" : "Ask"}</button>
      <${Options} question=${question} set=${set} profiles=${profiles} />
      <span class="faint keys">Ctrl + Enter asks</span>
    </div>
  </form>`;
}
