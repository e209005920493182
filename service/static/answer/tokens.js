/* From the tokens of a result to parts of its text, each with the influence that is drawn on it.
 *
 * The API gives the influence of each position, and a position predicts the token after it. Here the influence of a
 * position is drawn on the token that it predicted, so that the words that were taught are dark, and not those before
 * them. Positions in texts are code points, as in Python; a JavaScript string counts other units. */

const REJECTED = "\n\nrejected: ";

/** Returns tokens whose influence is that of the position before, which predicted them. */
export const predictedTokens = (tokens) =>
  tokens.map((token, number) => ({ ...token, influence: number === 0 ? 0 : tokens[number - 1].influence }));

/** Returns the parts of a chat, whose tokens have no place in the text. */
const partsWithoutPlaces = (tokens) =>
  tokens.map(({ token, influence }) => ({ text: token, influence, isSpecial: false, isCompletion: false }));

/**
 * Cuts a text at its tokens. Characters between tokens are parts without an influence, tokens that share a character
 * are one part, and tokens that stand for no character are parts with the name of the token.
 */
export function cutAtTokens(prompt, completion, tokens) {
  const predicted = predictedTokens(tokens);
  if (predicted.every(({ start }) => start === null)) return partsWithoutPlaces(predicted);
  const characters = Array.from(`${prompt ?? ""}${completion ?? ""}`);
  const promptLength = Array.from(prompt ?? "").length;
  const parts = [];
  let position = 0;
  const put = (end, influence) => {
    if (end <= position) return;
    parts.push({
      text: characters.slice(position, end).join(""), influence, isSpecial: false,
      isCompletion: completion !== null && completion !== undefined && position >= promptLength,
    });
    position = end;
  };
  for (const { token, start, end, influence } of predicted) {
    if (start === null) parts.push({ text: token, influence, isSpecial: true, isCompletion: false });
    else if (end <= position && parts.length) parts.at(-1).influence = (parts.at(-1).influence ?? 0) + influence;
    else {
      put(start, null);
      put(end, influence);
    }
  }
  put(characters.length, null);
  return parts;
}

/** Returns the parts of a text without tokens. */
export function cutAtCompletion(prompt, completion) {
  const part = (text, isCompletion) => ({ text, influence: null, isSpecial: false, isCompletion });
  return [part(prompt ?? "", false), ...(completion ? [part(completion, true)] : [])].filter(({ text }) => text);
}

function textParts({ prompt, tokens }, completion, sequence) {
  if (!tokens) return cutAtCompletion(prompt, completion);
  return cutAtTokens(prompt, completion, sequence ? tokens.filter((token) => token.sequence === sequence) : tokens);
}

/**
 * Returns the parts of the text of a result; null if the API key sees no text. Of a preference pair, the model reads the
 * prompt with the chosen completion, and again with the rejected one.
 */
export function rowParts(row) {
  const { prompt, completion, rejected } = row;
  if ((prompt ?? null) === null) return row.tokens ? cutAtTokens(prompt, completion, row.tokens) : null;
  if ((rejected ?? null) === null) return textParts(row, completion);
  const label = { text: REJECTED, influence: null, isSpecial: false, isCompletion: false };
  return [...textParts(row, completion, "chosen"), label, ...textParts(row, rejected, "rejected")];
}

/** Returns the largest influence of any token in these answers: the one scale on which all of them are shaded. */
export function shadeScale(answers) {
  const rows = answers.flatMap((answer) => [...(answer.results ?? []), ...(answer.opponents ?? [])]);
  const influences = rows.flatMap((row) => (row.tokens ?? []).map(({ influence }) => Math.abs(influence)));
  return influences.reduce((largest, value) => Math.max(largest, value), 0);
}

/** Returns the largest score of any result in these answers, which the bars are measured by. */
export function scoreScale(answers) {
  const rows = answers.flatMap((answer) => [...(answer.results ?? []), ...(answer.opponents ?? [])]);
  return rows.reduce((largest, row) => Math.max(largest, Math.abs(row.score)), 0);
}
