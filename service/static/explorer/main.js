/* Starts the explorer: the page at `/`, where a person sees where an answer came from. */

import { html, render, useEffect, useState } from "../shared/html.js";
import { ForgetKey, KeyForm, useKey } from "../shared/key.js";
import { messageParts, Problem, Skeleton } from "../shared/parts.js";
import { Permissions } from "../shared/permissions.js";
import { Status, usePolling } from "../shared/status.js";
import { AskView } from "./ask_view.js";
import { BuildForm } from "./build_form.js";
import { IndexList, loadIndexes } from "./index_list.js";
import { readFragment } from "./question.js";
import { NoIndex, Welcome } from "./welcome.js";

/** Returns the fragment of the address, and follows it when the person goes back and forth. */
function useFragment() {
  const [fragment, setFragment] = useState(location.hash);
  useEffect(() => {
    const follow = () => location.hash !== "#main" && setFragment(location.hash); // the skip link
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return fragment;
}

function View({ data, view, refresh }) {
  const { indexes, jobs, trouble } = data;
  if (view.name === "build") return html`<${BuildForm} onDone=${refresh} />`;
  const isAsked = view.name !== "start"; // what is shown stays, also if its index was deleted
  if (isAsked || indexes.some(({ state }) => state !== "building")) return html`<${AskView} indexes=${indexes} jobs=${jobs} trouble=${trouble} view=${view} refresh=${refresh} />`;
  return html`<${NoIndex} jobs=${jobs} />
    ${jobs.length > 0 && html`<${IndexList} indexes=${indexes} jobs=${jobs} onEnd=${refresh} />`}`;
}

/** Says what does not work at the moment, although the page does: no worker is alive, or the service is stopping. */
const Trouble = ({ error }) => html`<div class="note warning" role="status"><p><strong>${error.title}</strong></p>
  ${error.code === "no_worker" ? html`<p>What is shown stays. Questions and builds go on as soon as a worker has been started: <code>bergson worker</code>, on a machine with the same Redis and data directory.</p>`
    : html`<p>${messageParts(error.message)}</p>`}</div>`;

function Page() {
  const [keyVersion, setKeyVersion] = useState(0);
  const [keyMessage, replaceKey] = useKey(() => setKeyVersion((version) => version + 1));
  const isLocked = keyMessage !== null;
  const { data, error, refresh } = usePolling(isLocked ? null : loadIndexes, [keyVersion, isLocked]);
  const view = readFragment(useFragment());
  if (isLocked) return html`<${KeyForm} message=${keyMessage} onKey=${replaceKey} />`;
  if (!data) return error ? html`<${Problem} error=${error} onRetry=${refresh} />` : html`<${Skeleton} label="The indexes are being fetched" />`;
  return html`<${Permissions.Provider} value=${data.permissions}>
    <${Welcome} />
    ${error ? html`<${Problem} error=${error} />` : data.trouble && html`<${Trouble} error=${data.trouble} />`}
    <${View} data=${data} view=${view} refresh=${refresh} />
    <footer class="page-foot"><${ForgetKey} onKey=${replaceKey} /></footer>
  <//>`;
}

render(html`<${Status} />`, document.getElementById("head-status"));
render(html`<${Page} />`, document.getElementById("page"));
