/* A behaviour with its questions, and the button that deletes it. */

import { call } from "../shared/api.js";
import { Dialog } from "../shared/dialog.js";
import { html, useEffect, useState } from "../shared/html.js";
import { ConfirmButton, Note, Problem, Skeleton } from "../shared/parts.js";
import { NotAllowed, useMay } from "../shared/permissions.js";
import { BehaviourFacts, behavioursPath, loadBehaviour } from "./use_behaviours.js";

const MAX_SHOWN = 200;

function Question({ query: { prompt, completion, messages, instead_of: other } }) {
  if (messages) return html`<li>${messages.map(({ role, content }) => html`<p><b>${role}</b> <bdi>${content}</bdi></p>`)}</li>`;
  return html`<li><bdi>${prompt}<mark>${completion}</mark></bdi>${other && html` rather than <q>${other}</q>`}</li>`;
}

function Questions({ title, queries }) {
  if (!queries?.length) return null;
  return html`<section class="questions" aria-label=${title}><h3>${title}</h3><ul tabindex="0">
    ${queries.slice(0, MAX_SHOWN).map((query) => html`<${Question} query=${query} />`)}
    ${queries.length > MAX_SHOWN && html`<li class="faint">and ${queries.length - MAX_SHOWN} more</li>`}</ul></section>`;
}

/** @param onGone Is called when the behaviour was deleted. */
export function BehaviourDialog({ index, name, onGone, onClose }) {
  const [behaviour, setBehaviour] = useState(null);
  const [error, setError] = useState(null);
  const may = useMay("write");
  useEffect(() => {
    loadBehaviour(index, name).then(setBehaviour, setError);
  }, []);
  const remove = () => call(`${behavioursPath(index)}/${encodeURIComponent(name)}`, { method: "DELETE" }).then(onGone, setError);
  return html`<${Dialog} title=${`Behaviour ${name}`} onClose=${onClose}>
    ${error && html`<${Problem} error=${error} />`}
    ${!behaviour && !error && html`<${Skeleton} label="The behaviour is being fetched" />`}
    ${behaviour && html`<${BehaviourFacts} behaviour=${behaviour} />
      ${behaviour.queries === null ? html`<${Note}>This API key sees no texts.<//>` : html`<${Questions} title="Questions" queries=${behaviour.queries} />
        <${Questions} title="Control set, whose mean score is subtracted" queries=${behaviour.control} />`}
      ${may ? html`<div><${ConfirmButton} label="Delete it" question="Delete it for everybody?" name=${`Delete ${name}`} onConfirm=${remove} /></div>`
        : html`<${NotAllowed} what="delete behaviours" />`}`}
  <//>`;
}
