/* The form for an API key. When the service needs a key, the form is shown in the place of the page. */

import { onRefusal, storedKey, storeKey } from "./api.js";
import { html, useEffect, useState } from "./html.js";
import { messageParts } from "./parts.js";

const KEY_NEEDED = "This service needs an API key. Its operator creates one with `bergson keys create NAME --scope read`";
const KEY_PATTERN = "\\s*bg_[0-9a-f]{12}_[A-Za-z0-9_\\-]{43}\\s*";

/** Returns the message of the form, which is null if the service lets the page in, and a function that changes the key. */
export function useKey(onChange) {
  const [message, setMessage] = useState(null);
  useEffect(() => {
    onRefusal((detail) => setMessage(storedKey() ? `The key was refused: ${detail}` : KEY_NEEDED));
  }, []);
  const replaceKey = (key) => {
    storeKey(key);
    setMessage(null);
    onChange();
  };
  return [message, replaceKey];
}

export function KeyForm({ message, onKey }) {
  const [value, setValue] = useState("");
  const submit = (event) => {
    event.preventDefault();
    onKey(value.trim());
  };
  return html`<form id="key" class="card" autocomplete="off" onSubmit=${submit}>
    <p id="key-message" role="alert">${messageParts(message)}</p>
    <label for="key-field">API key</label>
    <input id="key-field" type="password" required pattern=${KEY_PATTERN} value=${value} placeholder="bg_…"
      title="The key bg_… that bergson keys create printed" autocomplete="off" spellcheck="false"
      onInput=${(event) => setValue(event.target.value)} />
    <button type="submit" class="primary">Use the key</button>
    <p class="faint">The key is kept until this tab is closed, and is sent to this service only.</p>
  </form>`;
}

/** The button that forgets a key that is in use. */
export function ForgetKey({ onKey }) {
  if (!storedKey()) return null;
  const name = storedKey().split("_").slice(0, 2).join("_");
  return html`<button type="button" class="quiet" title=${`${name}… is sent with each call`} onClick=${() => onKey("")}>
    Forget the key</button>`;
}
