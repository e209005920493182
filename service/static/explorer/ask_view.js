/* Asking: the form, its answer, and what can be done with the answer. */

import { addToFilter, AnswerView } from "../answer/answer_view.js";
import { Basket } from "../follow_up/basket.js";
import { Comparison } from "../follow_up/compare.js";
import { DocumentDialog } from "../follow_up/document_dialog.js";
import { LinkView } from "../follow_up/link_view.js";
import { Totals } from "../follow_up/totals.js";
import { html, useEffect, useState } from "../shared/html.js";
import { goToAnswer } from "../shared/narrow.js";
import { Problem, Skeleton } from "../shared/parts.js";
import { AnswerTools } from "./answer_tools.js";
import { AskForm } from "./ask_form.js";
import { IndexList, readyNames } from "./index_list.js";
import { EMPTY_QUESTION, makeFragment, makeQuestion, makeRequest, NEW_INDEX } from "./question.js";
import { loadIndex, useAsking } from "./use_asking.js";

const UNKNOWN_INDEX = Object.freeze({ profiles: [], columns: [], checkpoints: 1 });

/** Returns what is known of an index: its profiles, `default` first, its metadata columns, its checkpoints. */
function useIndex(name) {
  const [facts, setFacts] = useState(UNKNOWN_INDEX);
  useEffect(() => {
    setFacts(UNKNOWN_INDEX);
    if (name) loadIndex(name).then(setFacts, () => {});
  }, [name]);
  return facts;
}

/** Shows the error of a question. Where a part that costs more is what failed, it can be asked without such parts. */
function AskProblem({ error, trouble, onAsk }) {
  const parts = error.request.include ?? [];
  const plain = { include: parts.filter((part) => part === "text" || part === "metadata") };
  return html`<${Problem} key=${error.requestId} error=${error} isExplained=${trouble?.code === error.code} onRetry=${() => onAsk({})} />
    ${error.status === 422 && plain.include.length < parts.length && html`<p><button type="button" class="quiet" onClick=${() => onAsk(plain)}>
      Ask for the texts alone</button></p>`}`;
}

/** Returns an answer without a document that was taken down. */
function withoutDocument(answer, id) {
  const keep = (rows) => rows && rows.filter((row) => row.id !== id && row.chunk?.document !== id);
  return { ...answer, results: keep(answer.results), opponents: keep(answer.opponents) };
}

/** An answer with its tools, or beside that of another index. */
function Answer({ request, answer: given, names, onAsk, onSimilar, isBusy }) {
  const index = useIndex(given.index);
  const [answer, setAnswer] = useState(given);
  const [opened, setOpened] = useState(null); // the id of a document
  const [other, setOther] = useState(null); // the change of the request that it is compared with
  const [basket, setBasket] = useState(new Set());
  const put = (id, isIn) => setBasket(new Set(isIn ? [...basket, id] : [...basket].filter((name) => name !== id)));
  useEffect(() => setAnswer(given), [given]);
  if (other) return html`<${Comparison} request=${request} answer=${answer} change=${other} onEnd=${() => setOther(null)} />`;
  return html`<${AnswerView} request=${request} answer=${answer} onAsk=${onAsk} tools=${{ onOpen: setOpened, basket, onBasket: put }}
      basket=${html`<${Basket} request=${request} answer=${answer} basket=${basket} onClear=${() => setBasket(new Set())} />`}>
      <${AnswerTools} request=${request} answer=${answer} indexes=${names} index=${index} onAsk=${onAsk} onCompare=${setOther} isBusy=${isBusy} />
      <${Totals} request=${request} answer=${answer} columns=${index.columns} onFilter=${(column, value) => onAsk(addToFilter(request.filter, column, value))} />
    <//>
    ${opened !== null && html`<${DocumentDialog} index=${answer.index} id=${opened} onOpen=${setOpened} onClose=${() => setOpened(null)}
      onSimilar=${(text) => { setOpened(null); onSimilar(text); }} onGone=${(id) => setAnswer(withoutDocument(answer, id))} />`}`;
}

/** Asks whatever the address names, and returns what is known of it. */
function useView(view, setQuestion) {
  const [state, ask, clear] = useAsking();
  const go = (request) => {
    const fragment = makeFragment(request);
    if (fragment === location.hash) ask(request);
    else location.hash = fragment; // which asks
  };
  useEffect(() => {
    if (view.name !== "ask") {
      clear();
      return;
    }
    setQuestion(makeQuestion(view.request));
    ask(view.request);
  }, [JSON.stringify(view)]);
  return [state, go];
}

export function AskView({ indexes, jobs, trouble, view, refresh }) {
  const names = readyNames(indexes);
  const [question, setQuestion] = useState({ ...EMPTY_QUESTION, index: names[0] ?? "" });
  const [{ request, answer, error, isBusy }, go] = useView(view, setQuestion);
  const index = useIndex(question.index);
  useEffect(() => {
    if (answer || error) goToAnswer();
  }, [answer, error]);
  const change = (fields, base = request) => go({ ...base, ...fields });
  const askSimilar = (text) => go({ ...makeRequest({ ...question, index: request.index, mode: "prompt", between: null }), ...text });
  const choose = (name) => {
    setQuestion({ ...question, index: name, ...NEW_INDEX });
    document.querySelector("#ask textarea")?.focus();
  };
  return html`
    <${AskForm} question=${question} onChange=${setQuestion} onAsk=${() => go(makeRequest(question))} indexes=${names} index=${index} isBusy=${isBusy} />
    <div id="answer" aria-busy=${isBusy}>
      ${view.name === "link" && html`<${LinkView} id=${view.id} onAsk=${(base, fields) => go({ ...base, ...fields })}
        onRequest=${(asked) => setQuestion(makeQuestion(asked))} />`}
      ${error && html`<${AskProblem} error=${error} trouble=${trouble} onAsk=${(fields) => change(fields, error.request)} />`}
      ${isBusy && !answer && html`<${Skeleton} lines=${6} label="The question is being answered" />`}
      ${answer && html`<div class=${isBusy ? "stale" : ""}><${Answer} key=${JSON.stringify(request)} request=${request} answer=${answer} names=${names}
        onAsk=${change} onSimilar=${askSimilar} isBusy=${isBusy} /></div>`}
    </div>
    ${view.name === "start" && html`<${IndexList} indexes=${indexes} jobs=${jobs} chosen=${question.index} onChoose=${choose} onEnd=${refresh} />`}`;
}
