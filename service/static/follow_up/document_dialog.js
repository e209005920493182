/* A document as a whole, with its metadata, its chunks, and the button that takes it down. */

import { call } from "../shared/api.js";
import { Dialog } from "../shared/dialog.js";
import { formatCount, formatScore, formatValue } from "../shared/format.js";
import { html, useEffect, useRef, useState } from "../shared/html.js";
import { Facts, Note, Problem, Skeleton } from "../shared/parts.js";
import { NotAllowed, useMay } from "../shared/permissions.js";

const addressOfDocument = (index, id) => `index/${encodeURIComponent(index)}/documents/${encodeURIComponent(id)}`;

/** Takes a document down once the person has pressed a second button, beside which stands what that means. */
function Takedown({ index, id, onGone }) {
  const [isAsking, setAsking] = useState(false);
  const [error, setError] = useState(null);
  const may = useMay("write");
  const box = useRef(null);
  const wasAsking = useRef(false);
  useEffect(() => { // the pressed button is gone: the keyboard goes on where the choice is, at the harmless answer
    if (isAsking !== wasAsking.current) box.current?.querySelector("button:last-of-type")?.focus();
    wasAsking.current = isAsking;
  }, [isAsking]);
  const takeDown = async () => {
    try {
      await call(addressOfDocument(index, id), { method: "DELETE" });
      box.current?.closest("dialog")?.querySelector(".dialog-head button").focus(); // the pressed button goes, too
      onGone();
    } catch (problem) {
      setError(problem);
      setAsking(false);
    }
  };
  if (!may) return html`<${NotAllowed} what="take documents down" />`;
  return html`<div class="takedown" ref=${box}>
    ${isAsking ? html`<p id="takedown-meaning">From now on, no answer shows this document, for anybody. This cannot be undone. The model has learnt from it all the same.</p>
        <button type="button" class="quiet danger" aria-describedby="takedown-meaning" onClick=${takeDown}>Take it down for good</button>
        <button type="button" class="quiet" aria-describedby="takedown-meaning" onClick=${() => setAsking(false)}>Keep it</button>`
      : html`<button type="button" class="quiet" onClick=${() => setAsking(true)}>Take down…</button>`}
    ${error && html`<${Problem} error=${error} />`}
  </div>`;
}

function Chunks({ document, onOpen }) {
  const { chunk, chunks } = document;
  if (chunk) return html`<p>This is a part of <button type="button" class="link" onClick=${() => onOpen(chunk.document)}>${chunk.document}</button>.</p>`;
  if (!chunks) return null;
  return html`<p>Its parts: ${chunks.map((id) => html`<button type="button" class="link" onClick=${() => onOpen(id)}>${id}</button> `)}</p>`;
}

/**
 * @param onOpen Opens another document.
 * @param onSimilar Asks which documents resemble the text `{prompt, completion}`.
 * @param onGone Is called with the id of a document that was taken down.
 */
export function DocumentDialog({ index, id, onOpen, onSimilar, onGone, onClose }) {
  const [document, setDocument] = useState(null);
  const [error, setError] = useState(null);
  const [isGone, setGone] = useState(false);
  useEffect(() => {
    setDocument(null);
    setError(null);
    call(addressOfDocument(index, id)).then(setDocument, setError);
  }, [index, id]);
  const askSimilar = () => onSimilar(document.completion === null
    ? { prompt: "", completion: document.prompt } : { prompt: document.prompt, completion: document.completion });
  return html`<${Dialog} title=${`Document ${id}`} onClose=${onClose}>
    ${error && html`<${Problem} error=${error} />`}
    ${!document && !error && html`<${Skeleton} label="The document is being fetched" />`}
    ${isGone && html`<${Note} kind="notice" role="status">The document was taken down.<//>`}
    ${document && !isGone && html`
      ${document.prompt === null ? html`<${Note}>This API key sees no texts.<//>`
        : html`<p class="sample-text whole" tabindex="0">${document.prompt}${document.completion && html`<mark>${document.completion}</mark>`}</p>
          ${(document.rejected ?? null) !== null && html`<p class="sample-text whole" tabindex="0"><b>rejected: </b>${document.rejected}</p>`}`}
      <${Facts} pairs=${[
        ...Object.entries(document.metadata ?? {}).map(([name, value]) => [name, formatValue(value)]),
        ["tokens", formatCount(document.n_tokens)],
        ["loss in nats", document.loss === null ? null : formatScore(document.loss)],
      ]} />
      <${Chunks} document=${document} onOpen=${onOpen} />
      <div class="row dialog-tools">
        ${document.prompt !== null && html`<button type="button" class="quiet" onClick=${askSimilar}>Find its neighbours</button>`}
        <${Takedown} index=${index} id=${id} onGone=${() => { setGone(true); onGone(id); }} />
      </div>`}
  <//>`;
}
