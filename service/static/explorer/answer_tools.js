/* What can be done with an answer: verify it, compare it, take it along. */

import { html } from "../shared/html.js";
import { CompareChoice } from "../follow_up/compare.js";
import { TakeAlong } from "../follow_up/take_along.js";

const VERIFY = Object.freeze({ top: 3, controls: 3, together: true });

export function AnswerTools({ request, answer, indexes, index, onAsk, onCompare, isBusy }) {
  const { verify } = request;
  return html`<div class="answer-tools" role="group" aria-label="What to do with the answer">
    ${!request.behaviour && html`<button type="button" class="quiet" disabled=${isBusy || Boolean(verify) || !answer.results?.length} onClick=${() => onAsk({ verify: VERIFY })}>
      ${verify ? "Verified" : "Unlearn the best 3 for real"}</button>`}
    <${CompareChoice} request=${request} indexes=${indexes} index=${index} onCompare=${onCompare} />
    <span class="end"><${TakeAlong} request=${request} answer=${answer} /></span>
  </div>`;
}
