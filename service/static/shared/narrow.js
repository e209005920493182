/* What differs on a phone: content stands behind a line, so that the first document is on the first screen. */

import { html, useEffect, useState } from "./html.js";

const NARROW = matchMedia("(max-width: 700px)");

/** Returns whether the page is as narrow as a phone. */
export function useNarrow() {
  const [isNarrow, setNarrow] = useState(NARROW.matches);
  useEffect(() => {
    const follow = () => setNarrow(NARROW.matches);
    NARROW.addEventListener("change", follow);
    return () => NARROW.removeEventListener("change", follow);
  }, []);
  return isNarrow;
}

/** Content that a phone shows once its title is pressed, and a wide screen at once. */
export function FoldedOnPhone({ title, isOpen = false, children }) {
  const isNarrow = useNarrow();
  return isNarrow ? html`<details class="fold" open=${isOpen}><summary>${title}</summary>${children}</details>` : children;
}

/** Goes to the answer on a phone, where the form would hide it. */
export const goToAnswer = () => NARROW.matches && document.getElementById("answer").scrollIntoView();
