/* What an answer says about itself: mistakes in the question that can be mended with a click, and whether anything
 * stands out. */

import { formatChange, formatProbability, plural } from "../shared/format.js";
import { html } from "../shared/html.js";
import { Explain, messageParts, Note } from "../shared/parts.js";
import { NOTICE, RESCORED, VERIFICATION } from "./definitions.js";

/** Returns what a suggestion changes in the request. */
export const mend = ({ code, detail, suggestion }) => {
  if (code === "trailing_space") return { prompt: suggestion };
  return detail.startsWith("instead_of: ") ? { instead_of: suggestion } : { completion: suggestion };
};

function Warning({ warning, onAsk }) {
  const { detail, suggestion } = warning;
  return html`<div class="note warning">
    <p>${messageParts(detail)}.</p>
    ${suggestion && onAsk && html`<button type="button" class="quiet" onClick=${() => onAsk(mend(warning))}>
      Use ${JSON.stringify(suggestion)} instead</button>`}
  </div>`;
}

function rescoringText({ candidates, exact }) {
  const rest = exact < candidates ? " There was no time for the others." : "";
  return `${exact} of ${plural(candidates, "candidate")} were scored by their whole gradients. They come first.${rest}`;
}

function verificationText({ mean, controls }) {
  const comparison = mean === null ? ""
    : ` ${plural(controls.length, "random document")}: ${formatChange(mean.log_probability)} on average.`;
  return `The best documents were unlearned one by one; their cards show how the completion's log-probability changed.${comparison}`;
}

/** Says what unlearning all verified results at once did, beside the sum of the single steps and random groups. */
function togetherText({ ids, log_probability: change, sum, mean }) {
  const comparison = mean === null ? "" : `; ${plural(ids.length, "random document")} together: ${formatChange(mean.log_probability)}`;
  return `All ${ids.length} together: ${formatChange(change)}. The sum of the single steps: ${formatChange(sum.log_probability)}${comparison}.`;
}

export function AnswerNotes({ answer, onAsk }) {
  const { notice, warnings, rescored, verification, partial } = answer;
  return html`
    ${(warnings ?? []).map((warning) => html`<${Warning} warning=${warning} onAsk=${onAsk} />`)}
    ${partial && html`<${Note} kind="warning">Damaged parts of the index were left out of this answer.<//>`}
    ${notice && html`<${Note} kind="notice">${notice}<${Explain} name="this notice">${NOTICE}<//><//>`}
    ${rescored && html`<${Note}>${rescoringText(rescored)}<${Explain} name="an exact score">${RESCORED}<//><//>`}
    ${verification && html`<${Note}>${verificationText(verification)}<${Explain} name="unlearning">${VERIFICATION}<//>
      ${verification.together && html`<br />${togetherText(verification.together)}`}<//>`}`;
}

/** Says how probable the explained words are, and their alternative. */
export function probabilityText({ loss, n_tokens: count, instead_of: other, instead_of_loss: otherLoss }) {
  const text = `${formatProbability(Math.exp(-loss))} likely, ${plural(count, "token")}`;
  if (!other) return text;
  return `${text}; ${JSON.stringify(other)} is ${formatProbability(Math.exp(-otherLoss))} likely`;
}
