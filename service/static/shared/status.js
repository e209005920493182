/* Whether the service is ready, and data that is fetched again every few seconds while the page is visible. */

import { call } from "./api.js";
import { html, useEffect, useRef, useState } from "./html.js";
import { Badge } from "./parts.js";

const REFRESH_MS = 5000;

/** Fetches something now and every few seconds, and returns `{data, error, refresh}`. Null as `load` fetches nothing. */
export function usePolling(load, dependencies = []) {
  const [state, setState] = useState({ data: null, error: null });
  const refresh = useRef(() => {});
  useEffect(() => {
    let timer = null;
    let isOver = false;
    const run = async () => {
      clearTimeout(timer);
      if (load && !document.hidden) {
        try {
          const data = await load();
          if (!isOver) setState({ data, error: null });
        } catch (error) {
          if (!isOver) setState((last) => ({ ...last, error }));
        }
      }
      if (!isOver) timer = setTimeout(run, REFRESH_MS);
    };
    refresh.current = run;
    document.addEventListener("visibilitychange", run);
    run();
    return () => {
      isOver = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", run);
    };
  }, dependencies);
  return { ...state, refresh: () => refresh.current() };
}

/** The badge in the head of a page: ready with its workers, or what is wrong. */
export function Status() {
  const { data, error } = usePolling(() => call("readyz"));
  if (error) return html`<span id="status" role="status"><${Badge} state="failed" text=${error.title} title=${error.message} /></span>`;
  const text = data ? `ready, ${data.workers} ${data.workers === 1 ? "worker" : "workers"}` : "checking…";
  return html`<span id="status" role="status"><${Badge} state=${data ? "ready" : ""} text=${text} /></span>`;
}
