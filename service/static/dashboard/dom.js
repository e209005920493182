/* Small helpers. Text from outside only ever becomes a text node, so nothing of it is read as HTML. */

export const byId = (id) => document.getElementById(id);

/** An element with properties and children; strings become text nodes, null is skipped. */
export function el(tag, properties = {}, ...children) {
  const { attributes = {}, ...rest } = properties;
  const node = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** A note in place of content: what is empty, or what went wrong. */
export function note(text, kind = "") {
  return el("p", { className: `note ${kind}`, textContent: text });
}

export function badge(state) {
  return el("span", { className: `badge ${state}`, textContent: state });
}

export function facts(...pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", { className: "facts" }, known.map(([name, value]) => [
    el("div", {}, el("dt", { textContent: name }), el("dd", { textContent: value })),
  ]).flat());
}

const numbers = new Intl.NumberFormat("en");
export const count = (value) => (value === null || value === undefined ? null : numbers.format(value));

export function bytes(value) {
  if (value === null || value === undefined) return null;
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(Math.floor(Math.log10(Math.max(value, 1)) / 3), units.length - 1);
  return `${(value / 1000 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return null;
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${Math.round(seconds / 86400)} days`;
}

/** How long ago a Unix time in seconds was. */
export const ago = (time) => (time ? `${duration(Date.now() / 1000 - time)} ago` : null);
