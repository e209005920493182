/* The fields of a question about a behaviour: which one, rather than which other one; looking at it and making one. */

import { html } from "../shared/html.js";
import { Note, Problem, Skeleton } from "../shared/parts.js";
import { BehaviourDialog } from "./behaviour_dialog.js";
import { BehaviourForm } from "./behaviour_form.js";
import { BehaviourFacts } from "./use_behaviours.js";

const NEW_BEHAVIOUR = "new behaviour"; // no name has a space

/** Returns the change of a question that asks about a behaviour, which cannot be contrasted with itself. */
const chooseBehaviour = ({ instead_of_behaviour: other }, name) => ({ behaviour: name, ...(other === name ? { instead_of_behaviour: "" } : {}) });

function Choice({ label, names, value, none, onChoose }) {
  const known = value && !names.includes(value) ? [value, ...names] : names;
  return html`<label>${label}<select value=${value} aria-label=${label} onChange=${(event) => onChoose(event.target.value)}>
    <option value="" selected=${!value}>${none}</option>
    ${known.map((name) => html`<option value=${name} selected=${name === value}>${name}</option>`)}</select></label>`;
}

/**
 * @param behaviours What `useBehaviours` returns.
 * @param onShow Shows a behaviour by its name, or the form that makes one for "new behaviour".
 */
export function BehaviourFields({ question, set, behaviours: { items, error, refresh }, onShow }) {
  const { index, behaviour, instead_of_behaviour: other } = question;
  if (!items) return html`<${Skeleton} lines=${2} label="The behaviours are being fetched" />`;
  const names = items.map(({ name }) => name);
  const chosen = items.find(({ name }) => name === behaviour);
  const choose = (name) => set(chooseBehaviour(question, name));
  return html`<div class="behaviour">
    ${error && html`<${Problem} error=${error} onRetry=${refresh} />`}
    ${!error && !items.length && html`<${Note}>${index} has no behaviours yet. A behaviour is a list of questions that show the same thing, such as
      refusals. It is kept with the index under a name, and asked for as one question.<//>`}
    ${(names.length > 0 || behaviour) && html`<div class="field-row">
      <${Choice} label="Behaviour" names=${names} value=${behaviour} none="choose one" onChoose=${choose} />
      <${Choice} label="Rather than the behaviour" names=${names.filter((name) => name !== behaviour)} value=${other} none="none" onChoose=${(name) => set({ instead_of_behaviour: name })} />
    </div>`}
    ${chosen && html`<${BehaviourFacts} behaviour=${chosen} />`}
    <div class="row">
      ${chosen && html`<button type="button" class="quiet" onClick=${() => onShow(behaviour)}>See its questions</button>`}
      <button type="button" class="quiet" onClick=${() => onShow(NEW_BEHAVIOUR)}>Make a behaviour…</button>
    </div>
  </div>`;
}

/** The dialog over the page: the questions of a behaviour, or the form that makes one. */
export function BehaviourDialogs({ shown, question, set, refresh, onClose }) {
  const { index, behaviour, instead_of_behaviour: other } = question;
  const forget = () => {
    set({ ...(behaviour === shown ? { behaviour: "" } : {}), ...(other === shown ? { instead_of_behaviour: "" } : {}) });
    refresh();
    onClose();
  };
  const choose = (name) => {
    set(chooseBehaviour(question, name));
    refresh();
  };
  if (shown === null) return null;
  return shown === NEW_BEHAVIOUR ? html`<${BehaviourForm} index=${index} onMade=${choose} onClose=${onClose} />`
    : html`<${BehaviourDialog} index=${index} name=${shown} onGone=${forget} onClose=${onClose} />`;
}
