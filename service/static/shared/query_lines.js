/* Lists of questions as people type them: one on each line, as `prompt | completion`, or as JSON. */

import { isObject } from "./format.js";

/** Returns the question of a line. What stands before the completion's first letter, such as a space, is kept. */
function readLine(line, number) {
  if (line.trimStart().startsWith("{")) {
    try {
      const fields = JSON.parse(line);
      if (isObject(fields)) return fields;
    } catch { /* the error below says what was expected */ }
    throw new Error(`Line ${number}: expected JSON such as {"prompt": "2 + 2 =", "completion": " 4"}.`);
  }
  const bar = line.lastIndexOf("|");
  if (bar < 0 || !line.slice(bar + 1)) throw new Error(`Line ${number}: expected prompt | completion, such as: 2 + 2 = | 4`);
  return { prompt: line.slice(0, bar).trimEnd(), completion: line.slice(bar + 1) };
}

/** Returns the questions of a text. Empty lines are none. Throws an error that names the first line that is wrong. */
export const readQueryLines = (text) =>
  text.split(/\r?\n/).flatMap((line, number) => (line.trim() ? [readLine(line, number + 1)] : []));

/** Returns what a question says, in a line. */
export const queryText = ({ prompt, completion, messages }) =>
  (messages ? messages.map(({ content }) => content).join(" → ") : `${prompt ?? ""}${completion ?? ""}`);
