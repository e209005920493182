/* Helpers that create elements and format values. Text always becomes a text node, and is never parsed as HTML. */

export const byId = (id) => document.getElementById(id);

/** Creates an element with properties and children. Strings become text nodes; null and undefined are skipped. */
export function el(tag, properties = {}, ...children) {
  const { attributes = {}, ...rest } = properties;
  const node = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Creates a note in the place of content that is missing or went wrong. */
export function note(text, kind = "") {
  return el("p", { className: `note ${kind}`, textContent: text });
}

/** Creates a badge that shows a state. */
export function badge(state) {
  return el("span", { className: `badge ${state}`, textContent: state });
}

/** Creates a list of names and values. Values that are missing are left out. */
export function facts(...pairs) {
  const present = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", { className: "facts" }, present.map(([name, value]) =>
    el("div", {}, el("dt", { textContent: name }), el("dd", { textContent: value }))));
}

const numberFormat = new Intl.NumberFormat("en");
export const formatCount = (value) => (value === null || value === undefined ? null : numberFormat.format(value));

export function formatBytes(value) {
  if (value === null || value === undefined) return null;
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(Math.floor(Math.log10(Math.max(value, 1)) / 3), units.length - 1);
  return `${(value / 1000 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

export function formatDuration(seconds) {
  if (seconds === null || seconds === undefined) return null;
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${Math.round(seconds / 86400)} days`;
}

/** Says how long ago a Unix time in seconds was. */
export const formatAge = (time) => (time ? `${formatDuration(Date.now() / 1000 - time)} ago` : null);
