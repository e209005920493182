/* The behaviours of an index: named sets of questions that are kept with it. */

import { call } from "../shared/api.js";
import { html, useEffect, useRef, useState } from "../shared/html.js";
import { formatCount, formatScore, plural } from "../shared/format.js";
import { Facts } from "../shared/parts.js";

export const behavioursPath = (index) => `index/${encodeURIComponent(index)}/behaviours`;

/** Returns a behaviour with its questions, which are null if the key in use sees no text. */
export const loadBehaviour = (index, name) => call(`${behavioursPath(index)}/${encodeURIComponent(name)}`);

/** Returns `{items, error, refresh}`: the behaviours of an index. They are fetched while `isWanted`. */
export function useBehaviours(index, isWanted) {
  const [state, setState] = useState({ items: null, error: null });
  const wanted = useRef(index); // an answer that comes after another index was chosen is thrown away
  wanted.current = index;
  const refresh = () => call(behavioursPath(index)).then(
    ({ items }) => wanted.current === index && setState({ items, error: null }),
    (error) => wanted.current === index && setState({ items: [], error }),
  );
  useEffect(() => {
    setState({ items: null, error: null });
    if (isWanted && index) refresh();
  }, [index, isWanted]);
  return { ...state, refresh };
}

/** The facts about a behaviour that people choose by. */
export const BehaviourFacts = ({ behaviour }) => html`<${Facts} pairs=${[
  ["questions", formatCount(behaviour.query_count)],
  ["in the control set", behaviour.control_count ? formatCount(behaviour.control_count) : "none"],
  ["mean loss in nats", formatScore(behaviour.loss)],
  ["of the control set", behaviour.control_loss === null ? null : formatScore(behaviour.control_loss)],
  ["made at generation", formatCount(behaviour.generation)],
]} />`;

/** Says how probable the completions of a behaviour are on average, and those of the one that it is contrasted with. */
export function behaviourText({ loss, n_tokens: count, instead_of_behaviour: other, instead_of_loss: otherLoss }) {
  const text = `mean loss ${formatScore(loss)} nats a question, ${plural(count, "token")} in all`;
  return other ? `${text}; ${other}: ${formatScore(otherLoss)} nats` : text;
}
