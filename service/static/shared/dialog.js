/* A dialog over the page: it takes the focus, and Escape closes it. */

import { html, useEffect, useRef } from "./html.js";

export function Dialog({ title, onClose, children }) {
  const node = useRef(null);
  useEffect(() => {
    const dialog = node.current;
    dialog.showModal();
    return () => dialog.open && dialog.close();
  }, []);
  const closeOutside = (event) => event.target === node.current && node.current.close();
  return html`<dialog class="dialog" ref=${node} aria-label=${title} onClose=${onClose} onClick=${closeOutside}>
    <div class="dialog-body">
      <div class="row dialog-head"><h2>${title}</h2><button type="button" class="quiet end" onClick=${() => node.current.close()}>Close</button></div>
      ${children}
    </div>
  </dialog>`;
}
