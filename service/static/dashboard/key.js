/* The form for an API key. When the server needs a key, the form is shown and the rest of the page is hidden. */

import { onRefusal, storedKey, storeKey } from "./api.js";
import { byId } from "./dom.js";

const KEY_NEEDED = "This service needs an API key. Its operator creates one with: bergson keys create NAME --scope read";

let locked = false;

/** Returns whether the server has refused access, and no other key was entered since. */
export const isLocked = () => locked;

/** Shows the form with a message, or hides it if the message is null. */
function show(message) {
  locked = message !== null;
  document.body.classList.toggle("locked", locked);
  byId("key").hidden = !locked;
  byId("key-message").textContent = message ?? "";
  byId("key-forget").hidden = !storedKey();
  byId("key-forget").title = `${storedKey().split("_").slice(0, 2).join("_")}… is sent with each call`;
}

/** Sets up the form, and calls `listener` whenever the key is changed or forgotten. */
export function setUpKey(listener) {
  const field = byId("key-field");
  const replaceKey = (key) => {
    storeKey(key);
    field.value = "";
    show(null);
    listener();
  };
  onRefusal((detail) => show(storedKey() ? `The key was refused: ${detail}` : KEY_NEEDED));
  byId("key").addEventListener("submit", (event) => {
    event.preventDefault();
    replaceKey(field.value.trim());
  });
  byId("key-forget").addEventListener("click", () => replaceKey(""));
  show(null);
}
