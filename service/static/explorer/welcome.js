/* What a person sees first: two sentences, and what to do where there is no index yet. */

import { html, useState } from "../shared/html.js";

const SEEN = "bergson-seen";

export function Welcome() {
  const [isSeen, setSeen] = useState(localStorage.getItem(SEEN) !== null);
  if (isSeen) return null;
  const close = () => {
    localStorage.setItem(SEEN, "1");
    setSeen(true);
  };
  return html`<aside class="card welcome" aria-label="Introduction">
    <p>Ask a model a question, or tell it what it said: this page shows the training documents that made the answer more
      likely, and those that spoke against it. The darker a word is, the more that word of the document counts.</p>
    <button type="button" class="quiet" onClick=${close}>Got it</button>
  </aside>`;
}

export function NoIndex({ jobs }) {
  return html`<section class="card empty" aria-label="No index">
    <h2>${jobs.length ? "The first index is being built" : "There is no index yet"}</h2>
    <p>An index holds the gradient of every training document. Once it is built, a question is answered in milliseconds.</p>
    ${jobs.length === 0 && html`<p><a class="primary" href="#build=1">Build an index</a></p>
      <p class="faint">or on the command line: <code>bergson facts --model M --dataset D</code>, or all at once with <code>make demo</code></p>`}
  </section>`;
}
