/* A whole answer: the completion, whose words can be selected, what the answer says about itself, and its results. */

import { behaviourText } from "../behaviours/use_behaviours.js";
import { formatMs, plural } from "../shared/format.js";
import { html, useMemo, useState } from "../shared/html.js";
import { FoldedOnPhone } from "../shared/narrow.js";
import { Explain, Note } from "../shared/parts.js";
import { Columns } from "./columns.js";
import { Background } from "./background.js";
import { CompletionWords, textOfSpan } from "./completion_words.js";
import { BEHAVIOUR_LOSS, PROBABILITY } from "./definitions.js";
import { ActiveFilters, Facets } from "./facets.js";
import { Legend } from "./legend.js";
import { AnswerNotes, probabilityText } from "./notes.js";
import { scoreScale, shadeScale } from "./tokens.js";

const LONG = 500; // characters

/** Returns the text whose characters a span counts: the completion as it was asked, or the last message of a chat. */
export function explainedText(request, answer) {
  if (request.behaviour) return "";
  if (request.messages) return request.messages.at(-1).content;
  return request.completion ?? answer.query.completion;
}

/** Returns the change of a request that asks about some words of the completion. */
export function pointAt(request, answer, span, insteadOf) {
  const completion = request.messages ? {} : { completion: explainedText(request, answer) };
  return { ...completion, span, instead_of: insteadOf || null };
}

/** The form below the completion: what is selected, and what it is contrasted with. */
function Pointing({ request, answer, text, span, onSpan, onAsk }) {
  const [other, setOther] = useState(request.instead_of ?? "");
  const isUnchanged = JSON.stringify(span) === JSON.stringify(request.span ?? null) && other === (request.instead_of ?? "");
  const ask = (event) => {
    event.preventDefault();
    onAsk(pointAt(request, answer, span, other));
  };
  return html`<form class="pointing" onSubmit=${ask}>
    <span>${span ? html`Why <q>${textOfSpan(text, span)}</q>` : html`<span class="faint">Select words above to explain them alone.</span>`}</span>
    <label>rather than <input value=${other} placeholder="another text" aria-label="Rather than" spellcheck="false" onInput=${(event) => setOther(event.target.value)} /></label>
    <button type="submit" class="quiet" disabled=${isUnchanged}>Ask about this</button>
    ${span && html`<button type="button" class="link" onClick=${() => onSpan(null)}>Whole completion</button>`}
  </form>`;
}

/** Returns the change of a request that keeps only documents with a value of a column. */
export function addToFilter(filter, column, value) {
  return { filter: { ...filter, [column]: [value] } };
}

function removeFromFilter(filter, column) {
  const { [column]: _, ...rest } = filter;
  return { filter: Object.keys(rest).length ? rest : null };
}

/** The name of the behaviour that was asked for, and how the model does with its questions. */
function ExplainedBehaviour({ answer: { query, index, generation, timing_ms: timing } }) {
  return html`<header class="explained">
    <p class="query"><span class="prompt">The behaviour </span><mark>${query.behaviour}</mark>${query.instead_of_behaviour && html`<span class="prompt"> rather than </span><mark>${query.instead_of_behaviour}</mark>`}</p>
    <p class="faint">${behaviourText(query)}<${Explain} name="this loss">${BEHAVIOUR_LOSS}<//>${` · index ${index}, generation ${generation} · ${formatMs(timing.total)}`}</p>
  </header>`;
}

/** The prompt and the completion, with how probable the completion is. */
function Explained({ request, answer, onAsk }) {
  const text = explainedText(request, answer);
  const [span, setSpan] = useState(request.span ?? null);
  const { query } = answer;
  const isLong = (query.prompt + text).length > LONG; // it is scrolled, also with the keyboard
  return html`<header class="explained">
    <p class="query" tabindex=${isLong ? 0 : undefined}><span class="prompt">${query.prompt}</span>${onAsk ? html`<${CompletionWords} text=${text} span=${span} onSelect=${setSpan} />` : html`<mark>${text}</mark>`}</p>
    <p class="faint">${query.generated && "written by the model · "}${probabilityText(query)}<${Explain} name="this probability">${PROBABILITY}<//>
      ${` · index ${answer.index}, generation ${answer.generation} · ${formatMs(answer.timing_ms.total)}`}</p>
    ${onAsk && html`<${FoldedOnPhone} title="Why these words, and not others?" isOpen=${Boolean(span || request.instead_of)}>
      <${Pointing} request=${request} answer=${answer} text=${text} span=${span} onSpan=${setSpan} onAsk=${onAsk} /><//>`}
  </header>`;
}

/** Stays at the edge of the window while documents are picked, and leads to the basket, which stands above them. */
function BasketLine({ count }) {
  const go = (event) => event.currentTarget.closest(".answer").querySelector(".basket").scrollIntoView({ block: "center" });
  return html`<p class="basket-line"><button type="button" class="primary" onClick=${go}>${plural(count, "document")} in the basket ↑</button></p>`;
}

/**
 * @param request The request that was answered.
 * @param answer The answer of the API.
 * @param onAsk Asks again with changed fields. Without it, the answer can only be read.
 * @param scales The scales of the shades and the bars, if they are those of several answers.
 * @param tools What all cards share beside the scales, see `ResultCard`.
 * @param basket What stands right before the results, also on a phone.
 * @param children What stands before them, and what a phone folds.
 */
export function AnswerView({ request, answer, onAsk, scales: shared, tools = {}, basket, children }) {
  const own = useMemo(() => ({ shade: shadeScale([answer]), score: scoreScale([answer]) }), [answer]);
  const scales = shared ?? own;
  const rows = [...(answer.results ?? []), ...(answer.opponents ?? [])];
  const onFilter = onAsk && ((column, value) => onAsk(addToFilter(request.filter, column, value)));
  const before = answer.query.instead_of ? undefined : answer.verification?.log_probability; // of a contrast, a difference
  const context = { scales, before, onFilter, ...tools };
  return html`<article class="answer" aria-label="Answer">
    ${answer.query.behaviour ? html`<${ExplainedBehaviour} answer=${answer} />`
      : html`<${Explained} key=${JSON.stringify(request)} request=${request} answer=${answer} onAsk=${onAsk} />`}
    <${AnswerNotes} answer=${answer} onAsk=${onAsk} />
    ${onAsk && html`<${ActiveFilters} filter=${request.filter} onRemove=${(column) => onAsk(removeFromFilter(request.filter, column))} />`}
    <${FoldedOnPhone} title="About this answer, and what to do with it">
      ${onAsk && html`<${Facets} rows=${rows} onFilter=${onFilter} />`}
      <${Background} answer=${answer} />
      ${children}<//>
    ${basket}
    <div class="answer-bar"><p class="faint" role="status">${plural(rows.length, "document")}</p><${Legend} scale=${scales.shade} /></div>
    ${rows.length ? html`<${Columns} answer=${answer} context=${context} />` : html`<${Note} kind="notice">${request.filter
      ? "No document of the index fits the filter. Without a condition of it, other documents are shown." : "The index has no document to show."}<//>`}
    ${tools.basket?.size > 0 && html`<${BasketLine} count=${tools.basket.size} />`}
  </article>`;
}
