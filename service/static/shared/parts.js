/* Small parts that all pages are made of: notes, badges, lists of facts, problems, explanations. */

import { addressOf } from "./api.js";
import { html, useEffect, useState } from "./html.js";

/** A note in the place of content that is missing or went wrong. */
export const Note = ({ kind = "", role, children }) => html`<p class=${`note ${kind}`} role=${role}>${children}</p>`;

/** Returns the parts of a message of the service; what it puts between backticks is code. */
export const messageParts = (text) => String(text).split(/`([^`\n]+)`/).map((part, number) => (number % 2 ? html`<code>${part}</code>` : part));

/** A badge that shows a state. */
export const Badge = ({ state, text = state, title }) => html`<span class=${`badge ${state}`} title=${title}>${text}</span>`;

/** A list of names and values. Values that are missing are left out. */
export function Facts({ pairs }) {
  const present = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return html`<dl class="facts">${present.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

/** Explains a number where it stands: a button that opens a definition, by mouse, by touch and by keyboard. */
export function Explain({ name, children, path = "docs#/Attribution/attribute" }) {
  const [isOpen, setOpen] = useState(false);
  const close = (event) => {
    if (event.key === "Escape" && isOpen) {
      event.stopPropagation();
      setOpen(false);
    }
  };
  const closeOutside = (event) => {
    if (!event.currentTarget.contains(event.relatedTarget)) setOpen(false);
  };
  return html`<span class="explain" onKeyDown=${close} onFocusOut=${closeOutside}>
    <button type="button" class="explain-button" aria-expanded=${isOpen} aria-label=${`What is ${name}?`}
      onClick=${() => setOpen(!isOpen)}>?</button>
    ${isOpen && html`<span class="explain-text" role="note">${children} <a href=${addressOf(path)}>All fields of an answer</a></span>`}
  </span>`;
}

const ADVICE = {
  no_worker: "The worker needs the same Redis and data directory as this service.",
  queue_full: "The service has more questions than it can answer at the moment.",
  rate_limited: "This API key has used up its rate.",
  forbidden: "Another API key may be allowed to do this.",
  index_not_found: "It was deleted, or the key in use does not see it. Another index can be chosen.",
  read_only: "The disk of the service cannot be written. Questions are answered all the same.",
  redis_unavailable: "The operator of the service has to look after its Redis.",
  deadline_exceeded: "Large models take longer for their first question. The same question can be sent again.",
};

/** Counts the seconds down to 0. */
function useCountdown(seconds) {
  const [left, setLeft] = useState(seconds ?? 0);
  useEffect(() => {
    if (left <= 0) return undefined;
    const timer = setTimeout(() => setLeft(left - 1), 1000);
    return () => clearTimeout(timer);
  }, [left]);
  return left;
}

/**
 * Shows an error of the service in full: what went wrong, what to do, the refused fields, the id of the request.
 * @param isExplained Whether the page says elsewhere what went wrong and what to do.
 */
export function Problem({ error, onRetry, isExplained = false }) {
  const left = useCountdown(error.retryAfterS);
  const fields = (error.errors ?? []).slice(1);
  return html`<div class="note bad problem" role="alert">
    <p><strong>${error.title ?? "Failed"}</strong></p>
    ${!isExplained && html`<p>${messageParts(error.message)}</p>`}
    ${!isExplained && ADVICE[error.code] && html`<p>${ADVICE[error.code]}</p>`}
    ${fields.length > 0 && html`<ul>${fields.map(({ loc, msg }) => html`<li><code>${loc.slice(1).join(".")}</code> ${messageParts(msg)}</li>`)}</ul>`}
    ${onRetry && left > 0 && html`<progress max=${error.retryAfterS} value=${error.retryAfterS - left} aria-label="Until the next try"></progress>`}
    ${onRetry && html`<button type="button" class="quiet" disabled=${left > 0} onClick=${onRetry}>
      ${left > 0 ? `Try again in ${left} s` : "Try again"}</button>`}
    ${error.requestId && html`<p class="faint">request <code>${error.requestId}</code></p>`}
  </div>`;
}

/** A button that does something only if it is pressed a second time within some seconds. */
export function ConfirmButton({ label, question, name = label, onConfirm, disabled = false }) {
  const [isAsking, setAsking] = useState(false);
  useEffect(() => {
    if (!isAsking) return undefined;
    const timer = setTimeout(() => setAsking(false), 4000);
    return () => clearTimeout(timer);
  }, [isAsking]);
  const press = () => {
    setAsking(!isAsking);
    if (isAsking) onConfirm();
  };
  return html`<button type="button" class=${isAsking ? "quiet danger" : "quiet"} disabled=${disabled}
    aria-label=${isAsking ? `${question} ${name}` : name} onClick=${press}>${isAsking ? question : label}</button>`;
}

/** Grey bars in the place of content that is on its way. */
export const Skeleton = ({ lines = 3, label }) => html`<div class="skeleton" role="status" aria-label=${label}>
  ${Array.from({ length: lines }, () => html`<span></span>`)}</div>`;
