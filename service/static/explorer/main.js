/* Starts the explorer: the page at `/`, where a person sees where an answer came from. */

import { html, render, useEffect, useState } from "../shared/html.js";
import { ForgetKey, KeyForm, useKey } from "../shared/key.js";
import { Problem, Skeleton } from "../shared/parts.js";
import { Status, usePolling } from "../shared/status.js";
import { AnswerView } from "../answer/answer_view.js";
import { AskForm } from "./ask_form.js";
import { IndexList, loadIndexes, readyNames } from "./index_list.js";
import { EMPTY_QUESTION, makeFragment, makeQuestion, makeRequest, readFragment } from "./question.js";
import { loadIndex, useAsking } from "./use_asking.js";
import { NoIndex, Welcome } from "./welcome.js";

/** Returns the view that the address names, and follows it when the person goes back and forth. */
function useFragment() {
  const [fragment, setFragment] = useState(location.hash);
  useEffect(() => {
    const follow = () => location.hash !== "#main" && setFragment(location.hash); // the skip link
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return fragment;
}

/** Returns the names of the index's profiles, `default` first. */
function useProfiles(index) {
  const [profiles, setProfiles] = useState([]);
  useEffect(() => {
    setProfiles([]);
    if (index) loadIndex(index).then(({ profiles: names }) => setProfiles(names ?? []), () => {});
  }, [index]);
  return profiles;
}

/** Shows the error of a question. Where shading the words is what failed, it can be asked without. */
function AskProblem({ error, onAsk }) {
  const parts = error.request.include ?? [];
  const withoutShades = { include: parts.filter((part) => part !== "tokens") };
  return html`<${Problem} key=${error.requestId} error=${error} onRetry=${() => onAsk({})} />
    ${error.status === 422 && parts.includes("tokens") && html`<button type="button" class="quiet" onClick=${() => onAsk(withoutShades)}>
      Ask without shaded words</button>`}`;
}

function Ask({ indexes, jobs, view, refresh }) {
  const names = readyNames(indexes);
  const [question, setQuestion] = useState({ ...EMPTY_QUESTION, index: names[0] ?? "" });
  const [{ request, answer, error, isBusy }, ask, clear] = useAsking();
  const profiles = useProfiles(question.index);
  const go = (next) => {
    const fragment = makeFragment(next);
    if (fragment === location.hash) ask(next);
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
  useEffect(() => { // On a phone, the form would hide the answer.
    if (answer && innerWidth < 700) document.getElementById("answer").scrollIntoView();
  }, [answer]);
  const change = (fields, base = request) => go({ ...base, ...fields });
  const choose = (index) => {
    setQuestion({ ...question, index, profile: "default" });
    document.querySelector("#ask textarea")?.focus();
  };
  if (!names.length && !indexes.length) return html`<${Welcome} /><${NoIndex} jobs=${jobs} />
    ${jobs.length > 0 && html`<${IndexList} indexes=${indexes} jobs=${jobs} onEnd=${refresh} />`}`;
  return html`
    <${Welcome} />
    <${AskForm} question=${question} onChange=${setQuestion} onAsk=${() => go(makeRequest(question))} indexes=${names} profiles=${profiles} isBusy=${isBusy} />
    <div id="answer" aria-busy=${isBusy}>
      ${error && html`<${AskProblem} error=${error} onAsk=${(fields) => change(fields, error.request)} />`}
      ${isBusy && !answer && html`<${Skeleton} lines=${6} label="The question is being answered" />`}
      ${answer && html`<div class=${isBusy ? "stale" : ""}><${AnswerView} request=${request} answer=${answer} onAsk=${change} /></div>`}
    </div>
    ${!answer && !isBusy && html`<${IndexList} indexes=${indexes} jobs=${jobs} chosen=${question.index} onChoose=${choose} onEnd=${refresh} />`}`;
}

function Page() {
  const [keyVersion, setKeyVersion] = useState(0);
  const [keyMessage, replaceKey] = useKey(() => setKeyVersion((version) => version + 1));
  const isLocked = keyMessage !== null;
  const { data, error, refresh } = usePolling(isLocked ? null : loadIndexes, [keyVersion, isLocked]);
  const view = readFragment(useFragment());
  if (isLocked) return html`<${KeyForm} message=${keyMessage} onKey=${replaceKey} />`;
  const forget = html`<${ForgetKey} onKey=${replaceKey} />`;
  if (!data) return error ? html`<${Problem} error=${error} onRetry=${refresh} />` : html`<${Skeleton} label="The indexes are being fetched" />`;
  return html`
    ${error && html`<${Problem} error=${error} />`}
    <${Ask} indexes=${data.indexes} jobs=${data.jobs} view=${view} refresh=${refresh} />
    <footer class="page-foot">${forget}</footer>`;
}

render(html`<${Status} />`, document.getElementById("head-status"));
render(html`<${Page} />`, document.getElementById("page"));
