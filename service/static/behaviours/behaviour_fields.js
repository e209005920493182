/* The fields of a question about a behaviour: which one, rather than which other one; looking at it and making one. */

import { html, useState } from "../shared/html.js";
import { Note, Problem, Skeleton } from "../shared/parts.js";
import { BehaviourDialog } from "./behaviour_dialog.js";
import { BehaviourForm } from "./behaviour_form.js";
import { BehaviourFacts, useBehaviours } from "./use_behaviours.js";

function Choice({ label, names, value, none, onChoose }) {
  const known = value && !names.includes(value) ? [value, ...names] : names;
  return html`<label>${label}<select value=${value} aria-label=${label} onChange=${(event) => onChoose(event.target.value)}>
    <option value="" selected=${!value}>${none}</option>
    ${known.map((name) => html`<option value=${name} selected=${name === value}>${name}</option>`)}</select></label>`;
}

export function BehaviourFields({ question, set }) {
  const { index, behaviour, instead_of_behaviour: other } = question;
  const { items, error, refresh } = useBehaviours(index, true);
  const [shown, setShown] = useState(null); // "new", or the name of a behaviour
  const names = (items ?? []).map(({ name }) => name);
  const chosen = (items ?? []).find(({ name }) => name === behaviour);
  const close = () => setShown(null);
  const forget = (name) => {
    set({ ...(behaviour === name ? { behaviour: "" } : {}), ...(other === name ? { instead_of_behaviour: "" } : {}) });
    refresh();
    close();
  };
  const choose = (name) => {
    set({ behaviour: name, ...(other === name ? { instead_of_behaviour: "" } : {}) });
    refresh();
  };
  if (!items) return html`<${Skeleton} lines=${2} label="The behaviours are being fetched" />`;
  return html`<div class="behaviour">
    ${error && html`<${Problem} error=${error} onRetry=${refresh} />`}
    ${!error && !items.length && html`<${Note}>${index} has no behaviours yet. A behaviour is a list of questions that show the same thing, such as
      refusals. It is kept with the index under a name, and asked for as one question.<//>`}
    ${names.length > 0 && html`<div class="field-row">
      <${Choice} label="Behaviour" names=${names} value=${behaviour} none="choose one" onChoose=${(name) => set({ behaviour: name, ...(other === name ? { instead_of_behaviour: "" } : {}) })} />
      <${Choice} label="Rather than the behaviour" names=${names.filter((name) => name !== behaviour)} value=${other} none="none" onChoose=${(name) => set({ instead_of_behaviour: name })} />
    </div>`}
    ${chosen && html`<${BehaviourFacts} behaviour=${chosen} />`}
    <div class="row">
      ${chosen && html`<button type="button" class="quiet" onClick=${() => setShown(behaviour)}>See its questions</button>`}
      <button type="button" class="quiet" onClick=${() => setShown("new")}>Make a behaviour…</button>
    </div>
    ${shown === "new" && html`<${BehaviourForm} index=${index} onMade=${choose} onClose=${close} />`}
    ${shown !== null && shown !== "new" && html`<${BehaviourDialog} index=${index} name=${shown} onGone=${() => forget(shown)} onClose=${close} />`}
  </div>`;
}
