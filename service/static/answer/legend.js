/* The legend of the shades, which is the same for the whole page. */

import { formatScore } from "../shared/format.js";
import { html } from "../shared/html.js";
import { Explain } from "../shared/parts.js";
import { SHADES } from "./definitions.js";

export function Legend({ scale }) {
  if (!scale) return null;
  return html`<p class="legend">
    <span class="faint">less likely <span class="number">${formatScore(-scale)}</span></span>
    <span class="legend-bar" aria-hidden="true"></span>
    <span class="faint"><span class="number">${formatScore(scale)}</span> more likely</span>
    <${Explain} name="a shaded word">${SHADES}<//>
  </p>`;
}
