/* Folds near-duplicates: results that say almost the same stand behind the best of them. */

const MIN_SHARE = 0.8; // of all words of two texts that both have
const MIN_WORDS = 3;

function wordSet(row) {
  const text = `${row.prompt ?? ""} ${row.completion ?? ""}`.toLowerCase();
  return new Set(text.match(/[\p{L}\p{N}]+/gu) ?? []);
}

/** Returns whether two sets of words are nearly the same: their Jaccard similarity. */
export function areNearCopies(first, second) {
  if (Math.min(first.size, second.size) < MIN_WORDS) return false;
  let common = 0;
  for (const word of first) common += second.has(word) ? 1 : 0;
  return common >= MIN_SHARE * (first.size + second.size - common);
}

/** Returns groups `{row, copies}` in the order of `rows`. A text that the page does not have is in no group. */
export function foldNearCopies(rows) {
  const groups = [];
  for (const row of rows) {
    const words = wordSet(row);
    const group = groups.find((other) => areNearCopies(other.words, words));
    if (group) group.copies.push(row);
    else groups.push({ row, words, copies: [] });
  }
  return groups;
}
