/* The turns of a chat, the last of which is the assistant's. */

import { html } from "../shared/html.js";

const ROLES = ["system", "user", "assistant"];

export function ChatTurns({ messages, onChange }) {
  const last = messages.length - 1;
  const change = (number, fields) => onChange(messages.map((turn, i) => (i === number ? { ...turn, ...fields } : turn)));
  const add = () => onChange([...messages, { role: "user", content: "" }, { role: "assistant", content: "" }]);
  const remove = (number) => onChange(messages.filter((_, i) => i !== number));
  return html`<fieldset class="turns"><legend>Chat</legend>
    ${messages.map(({ role, content }, number) => html`<div class="turn">
      ${number === last ? html`<span class="role">assistant</span>`
        : html`<select aria-label=${`Role of message ${number + 1}`} value=${role} onChange=${(event) => change(number, { role: event.target.value })}>
            ${ROLES.map((name) => html`<option value=${name} selected=${name === role}>${name}</option>`)}</select>`}
      <textarea rows="1" aria-label=${number === last ? "What the assistant says" : `Message ${number + 1}`} value=${content}
        onInput=${(event) => change(number, { content: event.target.value })}></textarea>
      ${number < last && last > 1 && html`<button type="button" class="link" aria-label=${`Remove message ${number + 1}`} onClick=${() => remove(number)}>Remove</button>`}
    </div>`)}
    <button type="button" class="link" onClick=${add}>Add a turn</button>
  </fieldset>`;
}
