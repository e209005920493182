/* The documents that a result stands for: those that the service has folded into a group, with the sum of their scores. */

import { formatScore, formatValue, plural, shorten } from "../shared/format.js";
import { html, useState } from "../shared/html.js";
import { Badge, Explain } from "../shared/parts.js";
import { GROUP, STRENGTHS } from "./definitions.js";

const MAX_SHOWN = 100;

function Member({ member, onOpen }) {
  return html`<li class="member"><span class="number">${formatScore(member.score)}</span> <code>${member.id}</code>
    ${onOpen && html`<button type="button" class="link" aria-label=${`Open document ${member.id}`} onClick=${() => onOpen(member.id)}>Open</button>`}</li>`;
}

/** The sum of a group, and its members behind a button. */
export function GroupMembers({ group, onOpen }) {
  const [isOpen, setOpen] = useState(false);
  const { value, score, count, interval, members } = group;
  const others = members.slice(1, MAX_SHOWN + 1); // the first is the result itself
  return html`<div class="group">
    <span>${value !== null && html`<b>${shorten(formatValue(value))}</b>: `}${plural(count, "document")}, together <span class="number strong">${formatScore(score)}</span>
      ${interval && html` <span class="number faint">[${formatScore(interval[0])}, ${formatScore(interval[1])}]</span>`}
      ${group.strength && html` <${Badge} state=${group.strength} text=${STRENGTHS[group.strength] ?? group.strength} />`}<${Explain} name="a group">${GROUP}<//></span>
    ${others.length > 0 && html`<button type="button" class="link" aria-expanded=${isOpen} onClick=${() => setOpen(!isOpen)}>${isOpen ? "Hide the others" : "Show the others"}</button>`}
    ${isOpen && html`<ul>${others.map((member) => html`<${Member} key=${member.id} member=${member} onOpen=${onOpen} />`)}
      ${members.length > MAX_SHOWN + 1 && html`<li class="faint">and ${plural(members.length - MAX_SHOWN - 1, "more document")}</li>`}</ul>`}
  </div>`;
}
