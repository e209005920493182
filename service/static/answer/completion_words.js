/* The explained completion as words that can be selected, by mouse and by keyboard: the attribution is then for these
 * words. A selection is a range of words, and becomes a span of code points. */

import { html, useRef, useState } from "../shared/html.js";

const segmenter = new Intl.Segmenter(undefined, { granularity: "word" });

/** Cuts a text into `{text, start, end, isWord}`, where start and end are code points. */
export function cutIntoWords(text) {
  let position = 0;
  return Array.from(segmenter.segment(text), ({ segment, isWordLike }) => {
    const start = position;
    position += Array.from(segment).length;
    return { text: segment, start, end: position, isWord: Boolean(isWordLike) || /\S/u.test(segment) };
  });
}

/** Returns the span of the words from `first` to `last`, in either order. */
export const spanOf = (words, first, last) => [words[Math.min(first, last)].start, words[Math.max(first, last)].end];

/** Returns the characters of a span, which counts code points. */
export const textOfSpan = (text, [start, end]) => Array.from(text).slice(start, end).join("");

function nextWord(words, from, direction) {
  for (let number = from + direction; number >= 0 && number < words.length; number += direction) {
    if (words[number].isWord) return number;
  }
  return from;
}

export function CompletionWords({ text, span, onSelect }) {
  const words = cutIntoWords(text);
  const list = useRef(null);
  const anchor = useRef(null); // the word at which the selection began
  const [focused, setFocused] = useState(Math.max(0, words.findIndex(({ isWord }) => isWord)));
  const isSelected = ({ start, end }) => Boolean(span) && start >= span[0] && end <= span[1];
  const select = (number, isExtending) => {
    if (!isExtending || anchor.current === null) anchor.current = number;
    const selected = spanOf(words, anchor.current, number);
    const isSame = span && span[0] === selected[0] && span[1] === selected[1];
    if (isSame && !isExtending) anchor.current = null;
    onSelect(isSame && !isExtending ? null : selected);
  };
  const focus = (number) => {
    setFocused(number);
    list.current?.querySelector(`[data-word="${number}"]`)?.focus();
  };
  const press = (event) => {
    const direction = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape" && span) onSelect(null);
    if (!direction) return;
    event.preventDefault();
    const number = nextWord(words, focused, direction);
    if (event.shiftKey) {
      anchor.current ??= focused;
      select(number, true);
    }
    focus(number);
  };
  const drag = (event, number) => {
    if (event.buttons === 1 && anchor.current !== null && anchor.current !== number) select(number, true);
  };
  return html`<span class="words" ref=${list} role="group" aria-label="Words of the completion. Select some to explain them alone." onKeyDown=${press}>
    ${words.map((word, number) => (word.isWord ? html`<button type="button" data-word=${number} class=${isSelected(word) ? "word on" : "word"}
      aria-pressed=${isSelected(word)} tabindex=${number === focused ? 0 : -1} onFocus=${() => setFocused(number)}
      onMouseDown=${(event) => { if (!event.shiftKey) anchor.current = number; }}
      onMouseEnter=${(event) => drag(event, number)}
      onClick=${(event) => select(number, event.shiftKey)}>${word.text}</button>`
      : html`<span class=${isSelected(word) ? "gap on" : "gap"}>${word.text}</span>`))}
  </span>`;
}
