"""Ranks the documents of an index by BM25 of their words with those of a question.

    score = Σ_word idf · c / (c + k1·(1 - b + b·length / mean length))      idf = log(1 + (N - df + ½) / (df + ½))

c is how often the document has the word, N the number of documents, df how many of them have the word. A word that
stands twice in the question counts twice. Documents that may not be shown count in none of these numbers.

Source: Robertson & Zaragoza, The Probabilistic Relevance Framework (2009), as Lucene has it; k1 = 1.5 and b = 0.75 are
    the defaults of bm25s.

Legend: n documents of a shard, a documents of all shards, k of them.
"""

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int

from bergson_core.search.words.shard_words import ShardWords

_K1: Final = 1.5
_B: Final = 0.75
_PART_DOCUMENTS: Final = 2**17
"""Documents that are ranked before other work may be done."""


@dataclass(frozen=True)
class WordRanking:
    """The scores of all documents for a question. A document that shares no word with the question scores 0.

    Attributes:
        scores: Scores [a], in the order of the shards. Those of documents that may not be found are 0.
    """

    scores: Float64[np.ndarray, " a"]

    def rank(self, number: int) -> int | None:
        """Returns 1 plus how many documents score higher than the one of this number, or None if it scores 0."""
        score = self.scores[number]
        if score == 0:
            return None
        return 1 + len(self._ascending) - int(np.searchsorted(self._ascending, score, side="right"))

    def best(self, count: int) -> Int[np.ndarray, " k"]:
        """Returns the numbers of the best documents, best first, of equal ones the first; none that scores 0."""
        threshold = self._ascending[-count] if count < len(self._ascending) else 0
        numbers = np.flatnonzero((self.scores >= threshold) & (self.scores > 0))
        return numbers[np.argsort(-self.scores[numbers], kind="stable")][:count]

    @cached_property
    def _ascending(self) -> Float64[np.ndarray, " k"]:
        return np.sort(self.scores[self.scores > 0])


def rank_by_words(
    shards: Sequence[ShardWords],
    visible: Sequence[Bool[np.ndarray, " _"] | None],
    allowed: Sequence[Bool[np.ndarray, " _"] | None],
    question: Sequence[str],
) -> Generator[None, None, WordRanking]:
    """Returns the ranking of all documents, and yields between two parts of the work.

    Args:
        shards: The words of each shard.
        visible: For each shard which of its documents count: bool [n], or None for all of them.
        allowed: For each shard which of its documents may be found; those that are not visible are not among them.
        question: The words of the question.
    """
    counts, documents, words = Counter(question), 0, 0
    frequencies = dict.fromkeys(counts, 0)
    for part in _parts(shards):
        for shard, mask in zip(shards[part], visible[part], strict=True):
            lengths = shard.lengths if mask is None else shard.lengths[mask]
            documents, words = documents + len(lengths), words + int(lengths.sum(dtype=np.int64))
            for word in counts:
                found, _ = shard.find(word)
                frequencies[word] += len(found) if mask is None else int(mask[found].sum())
        yield
    mean_length = max(1.0, words / max(1, documents))
    weights = {
        word: times * np.log1p((documents - frequencies[word] + 0.5) / (frequencies[word] + 0.5))
        for word, times in counts.items()
        if frequencies[word]
    }
    scores: list[np.ndarray] = []
    for part in _parts(shards):
        for shard, mask in zip(shards[part], allowed[part], strict=True):
            in_shard = _score_shard(shard, weights, mean_length)
            scores.append(in_shard if mask is None else np.where(mask, in_shard, 0))
        yield
    return WordRanking(np.concatenate(scores))


def _score_shard(
    shard: ShardWords, weights: Mapping[str, float], mean_length: float
) -> Float64[np.ndarray, " n"]:
    """Returns the scores of the documents of a shard; `weights` are those of the words of the question."""
    scores = np.zeros(len(shard.lengths))
    damping = _K1 * (1 - _B + _B * shard.lengths / mean_length)
    for word, weight in weights.items():
        found, counts = shard.find(word)
        scores[found] += weight * counts / (counts + damping[found])
    return scores


def _parts(shards: Sequence[ShardWords]) -> Iterator[slice]:
    """Yields slices of the shards, each of about `_PART_DOCUMENTS` documents."""
    start = documents = 0
    for stop, shard in enumerate(shards, start=1):
        documents += len(shard.lengths)
        if documents >= _PART_DOCUMENTS or stop == len(shards):
            yield slice(start, stop)
            start, documents = stop, 0
