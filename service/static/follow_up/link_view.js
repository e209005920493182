/* An answer that was kept under a permanent link, and whether the index has changed since. */

import { call } from "../shared/api.js";
import { AnswerView } from "../answer/answer_view.js";
import { html, useEffect, useState } from "../shared/html.js";
import { goToAnswer } from "../shared/narrow.js";
import { Note, Problem, Skeleton } from "../shared/parts.js";

function Age({ link, onAsk }) {
  const made = new Date(1000 * link.created_at).toLocaleString(undefined, { dateStyle: "long", timeStyle: "short" });
  const now = link.current_generation === null ? "The index is gone."
    : `The index has moved on, from generation ${link.generation} to ${link.current_generation}: the same question may have another answer now.`;
  return html`<div class=${`note ${link.stale ? "warning" : "notice"}`}>
    <p>${`An answer of ${made}. ${link.stale ? now : "The index has not changed since."}`}</p>
    ${link.removed > 0 && html`<p>${link.removed} of its documents are not in the index any more, and are not shown.</p>`}
    ${link.current_generation !== null && html`<button type="button" class="quiet" onClick=${() => onAsk({})}>Ask it again</button>`}
  </div>`;
}

/**
 * @param onAsk Asks the request of the link again, with changed fields.
 * @param onRequest Is called with the request of the link once it is known.
 */
export function LinkView({ id, onAsk, onRequest }) {
  const [link, setLink] = useState(null);
  const [error, setError] = useState(null);
  useEffect(() => {
    setLink(null);
    setError(null);
    let isOver = false;
    const show = (found) => {
      if (isOver) return;
      setLink(found);
      onRequest(found.request);
    };
    call(`links/${encodeURIComponent(id)}`).then(show, setError);
    return () => { isOver = true; };
  }, [id]);
  useEffect(() => {
    if (link) goToAnswer();
  }, [link]);
  if (error) return html`<${Problem} error=${error} />`;
  if (!link) return html`<${Skeleton} lines=${6} label="The answer is being fetched" />`;
  const ask = (fields) => onAsk(link.request, fields);
  return html`<${Age} link=${link} onAsk=${ask} />
    ${link.answer ? html`<${AnswerView} request=${link.request} answer=${link.answer} onAsk=${ask} />` : html`<${Note}>There is nothing left to show.<//>`}`;
}
