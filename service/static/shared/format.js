/* Values as people read them. A missing value is null. */

const isMissing = (value) => value === null || value === undefined;
const numberFormat = new Intl.NumberFormat("en");

export const formatCount = (value) => (isMissing(value) ? null : numberFormat.format(value));

/** Returns a number of things with its noun: "1 document", "2 documents". */
export const plural = (count, noun) => `${formatCount(count)} ${noun}${count === 1 ? "" : "s"}`;

export function formatBytes(value) {
  if (isMissing(value)) return null;
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(Math.floor(Math.log10(Math.max(value, 1)) / 3), units.length - 1);
  return `${(value / 1000 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

export function formatDuration(seconds) {
  if (isMissing(seconds)) return null;
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${Math.round(seconds / 86400)} days`;
}

export const formatMs = (value) => (value < 1000 ? `${value.toFixed(value < 10 ? 1 : 0)} ms` : `${(value / 1000).toFixed(1)} s`);

/** Says how long ago a Unix time in seconds was. */
export const formatAge = (time) => (time ? `${formatDuration(Date.now() / 1000 - time)} ago` : null);

/** Formats a score with three digits that count, and with a true minus sign. */
export function formatScore(value) {
  if (isMissing(value)) return "not finite";
  const size = Math.abs(value);
  const digits = size === 0 ? "0" : size >= 1000 || size < 0.0001 ? size.toExponential(2) : size.toPrecision(3);
  return value < 0 ? `−${digits}` : digits;
}

/** Formats a change with its sign. A change is null if the step broke the model. */
export const formatChange = (value) => (isMissing(value) ? "not finite" : `${value < 0 ? "" : "+"}${formatScore(value)}`);

/** Formats a probability between 0 and 1 as a percentage. */
export function formatProbability(value) {
  const percent = 100 * value;
  if (percent > 99.9) return percent === 100 ? "100 %" : "over 99.9 %";
  if (percent >= 10) return `${percent.toFixed(percent > 99 ? 1 : 0)} %`;
  return percent < 0.01 ? "under 0.01 %" : `${percent.toPrecision(2)} %`;
}

/** Returns a value of metadata as text: a text as it is, everything else as JSON. */
export const formatValue = (value) => (typeof value === "string" ? value : JSON.stringify(value) ?? "null");

const MAX_SHORT = 120;

/** Returns the beginning of a text that is too long for where it stands. */
export const shorten = (text) => (text.length > MAX_SHORT ? `${Array.from(text.slice(0, 2 * MAX_SHORT)).slice(0, MAX_SHORT).join("")}…` : text);

/** Returns whether a value is an object of JSON. */
export const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** Returns the text that people see for one with invisible characters: they become visible signs. */
export const showSpaces = (text) => text.replace(/^\s+|\s+$/gu, (spaces) => "␣".repeat([...spaces].length));
