/* Asks the service, one question at a time: an answer that comes after a newer question is thrown away. */

import { call, post, withoutNulls } from "../shared/api.js";
import { useRef, useState } from "../shared/html.js";

const IDLE = { request: null, answer: null, error: null, isBusy: false };

/** Returns `[state, ask, clear]`, where the state is `{request, answer, error, isBusy}`. */
export function useAsking() {
  const [state, setState] = useState(IDLE);
  const running = useRef(null);
  const ask = async (request) => {
    running.current?.abort();
    const controller = new AbortController();
    running.current = controller;
    setState((last) => ({ ...last, error: null, isBusy: true }));
    try {
      const answer = await post("attribute", withoutNulls(request), { signal: controller.signal });
      if (running.current === controller) setState({ request, answer, error: null, isBusy: false });
    } catch (error) {
      if (running.current === controller) setState((last) => ({ ...last, error: Object.assign(error, { request }), isBusy: false }));
    }
  };
  const clear = () => {
    running.current?.abort();
    running.current = null;
    setState(IDLE);
  };
  return [state, ask, clear];
}

/** Fetches what is known about an index: its profiles, its metadata columns, and of how many checkpoints it is. */
export async function loadIndex(name) {
  const { profiles, spec } = await call(`index/${encodeURIComponent(name)}`);
  return { profiles: profiles ?? [], columns: spec?.columns?.metadata ?? [], checkpoints: spec?.models?.length || 1 };
}
