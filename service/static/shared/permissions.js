/* What the API key in use may do. What it may not do is shown, disabled, with the reason: nobody has to try it. */

import { createContext, html, useContext } from "./html.js";

const SCOPES = ["read", "write", "admin"];

export const Permissions = createContext(null); // what `GET /key` answers; null while it is not known

/** Returns whether the key in use has a scope. While nothing is known, everything may be tried. */
export function useMay(scope) {
  const permissions = useContext(Permissions);
  return !permissions || SCOPES.indexOf(permissions.scope) >= SCOPES.indexOf(scope);
}

/** Says why something cannot be done, and who can change it. `what` is a verb: "take documents down". */
export function NotAllowed({ what, scope = "write", id }) {
  const permissions = useContext(Permissions);
  return html`<p class="note notice locked" id=${id}>Your API key${permissions && html` <b>${permissions.name}</b>`} may read. To ${what}, a key that
    may ${scope} is needed. The operator of the service creates one with <code>${`bergson keys create NAME --scope ${scope}`}</code></p>`;
}
