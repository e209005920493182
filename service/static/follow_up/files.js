/* An answer as a file: JSON lines as the API gives them, or a table for spreadsheets. */

const COLUMNS = ["direction", "rank", "id", "score", "exact", "interval", "strength", "percentile", "loss", "prompt",
  "completion"];
const OPTIONAL_COLUMNS = ["rejected", "group", "words", "verified"]; // with objects as JSON

/** Returns the results with their direction, as rows of one table. */
export function resultRows(answer) {
  const rows = (list, direction) => (list ?? []).map((row) => ({ direction, ...row }));
  return [...rows(answer.results, "proponents"), ...rows(answer.opponents, "opponents")];
}

export const makeJsonLines = (answer) => resultRows(answer).map((row) => `${JSON.stringify(row)}\n`).join("");

/** Returns a cell of a CSV file. A text that a spreadsheet would run as a formula gets an apostrophe before it. */
export function makeCell(value) {
  if (value === null || value === undefined) return "";
  const text = typeof value === "object" ? JSON.stringify(value) : String(value);
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

/** Returns a CSV file with a column for each field of a result, and one for each column of the metadata. */
export function makeCsv(answer) {
  const rows = resultRows(answer);
  const metadata = [...new Set(rows.flatMap((row) => Object.keys(row.metadata ?? {})))];
  const columns = [...COLUMNS, ...OPTIONAL_COLUMNS.filter((name) => rows.some((row) => (row[name] ?? null) !== null))];
  const head = [...columns, ...metadata.map((name) => `metadata.${name}`)];
  const lines = rows.map((row) => [...columns.map((name) => row[name]), ...metadata.map((name) => row.metadata?.[name])]);
  return [head, ...lines].map((cells) => `${cells.map(makeCell).join(",")}\r\n`).join("");
}

/** Lets the browser save a text as a file. */
export function saveFile(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
