/* Takes an answer along: as a file, as a command, under a permanent link. */

import { addressOf, post } from "../shared/api.js";
import { Dialog } from "../shared/dialog.js";
import { html, useState } from "../shared/html.js";
import { Problem } from "../shared/parts.js";
import { makeCurl, makePython } from "./commands.js";
import { makeCsv, makeJsonLines, saveFile } from "./files.js";

/** Shows a text to copy. The clipboard is not there on pages without TLS, where the text can be selected by hand. */
function CopyDialog({ title, text, note, onClose }) {
  const [isCopied, setCopied] = useState(false);
  const copy = () => navigator.clipboard.writeText(text).then(() => setCopied(true), () => {});
  return html`<${Dialog} title=${title} onClose=${onClose}>
    ${note && html`<p>${note}</p>`}
    <textarea class="copy-text" readonly rows="4" aria-label=${title} onFocus=${(event) => event.target.select()}>${text}</textarea>
    ${navigator.clipboard && html`<button type="button" class="quiet" onClick=${copy}>Copy</button>`}
    <span role="status">${isCopied && "Copied."}</span>
  <//>`;
}

const dateText = (seconds) => new Date(1000 * seconds).toLocaleDateString(undefined, { dateStyle: "long" });

export function TakeAlong({ request, answer }) {
  const [shown, setShown] = useState(null); // {title, text, note}
  const [error, setError] = useState(null);
  const keep = async () => {
    setError(null);
    try {
      const link = await post("links", { request });
      const note = `Whoever opens this address sees this answer again, until ${dateText(link.expires_at)}. `
        + "An API key is needed there as it is here, and texts that were taken down are not shown.";
      setShown({ title: "Permanent link", text: `${addressOf("")}#link=${encodeURIComponent(link.id)}`, note });
    } catch (problem) {
      setError(problem);
    }
  };
  const name = `${answer.index}-answer`;
  return html`<span class="take-along">
    <button type="button" class="quiet" onClick=${keep}>Link</button>
    <button type="button" class="quiet" onClick=${() => saveFile(`${name}.jsonl`, makeJsonLines(answer), "application/x-ndjson")}>JSONL</button>
    <button type="button" class="quiet" onClick=${() => saveFile(`${name}.csv`, makeCsv(answer), "text/csv")}>CSV</button>
    <button type="button" class="quiet" onClick=${() => setShown({ title: "As a curl command", text: makeCurl(request) })}>curl</button>
    <button type="button" class="quiet" onClick=${() => setShown({ title: "As Python", text: makePython(request) })}>Python</button>
    ${error && html`<${Problem} error=${error} />`}
    ${shown && html`<${CopyDialog} ...${shown} onClose=${() => setShown(null)} />`}
  </span>`;
}
