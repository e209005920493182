/* The place for an API key. It shows itself where the server asks for one; until then the rest is hidden. */

import { key, keepKey, onRefusal } from "./api.js";
import { byId } from "./dom.js";

const MISSING = "This service asks for an API key. Whoever runs it makes one: bergson keys create NAME --scope read";

let locked = false;

/** Whether the server has refused, and no other key was given since. */
export const isLocked = () => locked;

function show(says) {
  locked = says !== null;
  document.body.classList.toggle("locked", locked);
  byId("key").hidden = !locked;
  byId("key-says").textContent = says ?? "";
  byId("key-forget").hidden = !key();
  byId("key-forget").title = `${key().split("_").slice(0, 2).join("_")}… is sent with each call`;
}

/** Call `listener` when there is another key, or none any more. */
export function setUpKey(listener) {
  const field = byId("key-field");
  const keep = (value) => {
    keepKey(value);
    field.value = "";
    show(null);
    listener();
  };
  onRefusal((detail) => show(key() ? `The key was refused: ${detail}` : MISSING));
  byId("key").addEventListener("submit", (event) => {
    event.preventDefault();
    keep(field.value.trim());
  });
  byId("key-forget").addEventListener("click", () => keep(""));
  show(null);
}
