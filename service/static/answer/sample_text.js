/* The text of a training sample, with its tokens shaded. The number of a token is read out on hover, and by the arrow
 * keys once the text has the focus. */

import { formatScore } from "../shared/format.js";
import { html, useEffect, useMemo, useRef, useState } from "../shared/html.js";

const SHORT = 80; // parts
const MAX_SHADE_PERCENT = 46; // Text on a darker shade would be hard to read.

const LONG = 500; // characters: a text that may have to be scrolled, also with the keyboard

const isLong = (parts) => parts.reduce((sum, { text }) => sum + text.length, 0) > LONG;

/** Returns how dark a part is, in percent. */
export const shadePercent = (influence, scale) => (scale > 0 ? (MAX_SHADE_PERCENT * Math.abs(influence)) / scale : 0);

function partClass({ influence, isSpecial, isCompletion }) {
  return ["token", influence < 0 && "negative", isSpecial && "special", isCompletion && "completion"].filter(Boolean).join(" ");
}

function shadedPart(part, number, scale) {
  if (part.influence === null) return part.isCompletion ? html`<mark>${part.text}</mark>` : part.text;
  const share = `${shadePercent(part.influence, scale).toFixed(0)}%`;
  return html`<span class=${partClass(part)} data-part=${number} style=${{ "--share": share }}>${part.text}</span>`;
}

/** Returns the number of the part with the largest influence. */
function strongest(parts) {
  const size = ({ influence }) => Math.abs(influence ?? 0);
  return parts.reduce((best, part, number) => (size(part) > size(parts[best]) ? number : best), 0);
}

/** Returns the next part with an influence in a direction, or the same part if there is none. */
function step(parts, from, direction) {
  for (let number = from + direction; number >= 0 && number < parts.length; number += direction) {
    if (parts[number].influence !== null) return number;
  }
  return from;
}

/** Returns whether a node is or was near the part of the page that is seen. Short texts need not wait for that. */
function useNear(node, isShort) {
  const [isNear, setNear] = useState(isShort);
  useEffect(() => {
    if (isNear) return undefined;
    const observer = new IntersectionObserver(([entry]) => entry.isIntersecting && setNear(true), { rootMargin: "400px" });
    observer.observe(node.current);
    return () => observer.disconnect();
  }, [isNear]);
  return isNear;
}

export function SampleText({ parts, scale, label }) {
  const [chosen, setChosen] = useState(null);
  const node = useRef(null);
  const isShaded = parts.some(({ influence }) => influence !== null);
  // Tens of thousands of shaded words at once would hold up the page.
  const isNear = useNear(node, !isShaded || parts.length < SHORT);
  const body = useMemo(() => (isNear ? parts.map((part, number) => shadedPart(part, number, scale)) : parts.map(({ text }) => text).join("")),
    [parts, scale, isNear]);
  if (!isShaded) return html`<p class="sample-text" tabindex=${isLong(parts) ? 0 : undefined}>${body}</p>`;

  const choose = (number) => {
    node.current?.querySelector(".chosen")?.classList.remove("chosen");
    if (number !== null) node.current?.querySelector(`[data-part="${number}"]`)?.classList.add("chosen");
    setChosen(number);
  };
  const hover = (event) => {
    const number = event.target.dataset?.part;
    if (number !== undefined) choose(Number(number));
  };
  const press = (event) => {
    const direction = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!direction) return;
    event.preventDefault();
    choose(step(parts, chosen ?? 0, direction));
  };
  const part = chosen === null ? null : parts[chosen];
  return html`<div class="sample">
    <p class="sample-text" ref=${node} tabindex="0" role="group" aria-label=${`${label}. Arrow keys read out words.`}
      onMouseOver=${hover} onMouseLeave=${() => choose(null)} onClick=${hover} onKeyDown=${press}
      onFocus=${() => chosen === null && choose(strongest(parts))} onBlur=${() => choose(null)}>${body}</p>
    <p class="readout" aria-live="polite">${part && part.influence !== null
      && html`<q>${part.text.trim() || "space"}</q> <span class="number">${formatScore(part.influence)}</span>`}</p>
  </div>`;
}
