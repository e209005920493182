/* Starts the explorer: the page at `/`, where a person sees where an answer came from. */

import { html, render, useEffect, useState } from "../shared/html.js";
import { ForgetKey, KeyForm, useKey } from "../shared/key.js";
import { Problem, Skeleton } from "../shared/parts.js";
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
  const { indexes, jobs } = data;
  if (view.name === "build") return html`<${BuildForm} onDone=${refresh} />`;
  if (indexes.some(({ state }) => state !== "building")) return html`<${AskView} indexes=${indexes} jobs=${jobs} view=${view} refresh=${refresh} />`;
  return html`<${NoIndex} jobs=${jobs} />
    ${jobs.length > 0 && html`<${IndexList} indexes=${indexes} jobs=${jobs} onEnd=${refresh} />`}`;
}

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
    ${error && html`<${Problem} error=${error} />`}
    <${View} data=${data} view=${view} refresh=${refresh} />
    <footer class="page-foot"><${ForgetKey} onKey=${replaceKey} /></footer>
  <//>`;
}

render(html`<${Status} />`, document.getElementById("head-status"));
render(html`<${Page} />`, document.getElementById("page"));
