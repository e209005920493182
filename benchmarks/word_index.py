"""What the words of a corpus take: processor time to read and to rank them, memory, and bytes on disk.

    python -m benchmarks.word_index [--documents 100000] [--words 100]

The documents are words that are drawn by Zipf's law from 200,000, so that a few are in every document. The words of
each 4,096 documents, as many as a shard has, are counted, written and mapped, as the first query with words has it.
Then questions of 20 words from documents are ranked, once with all documents visible and once with every tenth taken
down. The times are those of the processor, so that other work beside does not count.
"""

import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.support.command_line import make_parser
from bergson_core.search.words.bm25 import rank_by_words
from bergson_core.search.words.shard_words import ShardWords, WordCounter
from bergson_core.search.words.text_words import split_words
from bergson_core.utils.background import run_to_completion

VOCABULARY, SHARD_ROWS, QUESTIONS, QUESTION_WORDS = 200_000, 4096, 10, 20


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=100, help="mean number of words of a document")
    options = parser.parse_args()
    texts = list(iter_texts(options.documents, options.words))
    before = peak_bytes()
    with tempfile.TemporaryDirectory() as directory:
        started = time.process_time()
        shards = [
            read_words(texts[start : start + SHARD_ROWS], Path(directory) / f"{start}.arrow")
            for start in range(0, len(texts), SHARD_ROWS)
        ]
        seconds = time.process_time() - started
        size = sum(path.stat().st_size for path in Path(directory).iterdir())
        print(
            f"{len(texts):,} documents of {options.words} words: {seconds:.1f} s to read them, "
            f"{(peak_bytes() - before) / 2**20:.0f} MiB of memory, {size / len(texts):.0f} bytes a document on disk"
        )
        for every, what in ((0, "all visible"), (10, "every tenth taken down")):
            milliseconds = [measure_ranking(shards, text, every) for text in texts[:QUESTIONS]]
            print(f"ranking them for a question, {what}: {np.median(milliseconds):.0f} ms")


def iter_texts(documents: int, words: int) -> Iterator[str]:
    """Yields texts of as many words on average."""
    generator = np.random.default_rng(0)
    names = np.array([f"w{number:x}" for number in range(VOCABULARY)])
    weights = 1 / np.arange(1, VOCABULARY + 1)
    cumulative = np.cumsum(weights / weights.sum())
    for length in generator.integers(1, 2 * words, documents):
        drawn = np.searchsorted(cumulative, generator.random(length))
        yield " ".join(names[np.minimum(drawn, VOCABULARY - 1)])


def read_words(texts: list[str], path: Path) -> ShardWords:
    """Returns the words of some texts, written to a file and mapped."""
    counter = WordCounter()
    for text in texts:
        counter.add(text)
    counter.finish().save(path)
    words = ShardWords.open(path, len(texts))
    assert words is not None
    return words


def measure_ranking(shards: list[ShardWords], text: str, every: int) -> float:
    """Returns the milliseconds that ranking all documents takes; `every` so many of them are taken down."""
    masks = [np.arange(len(shard.lengths)) % every > 0 if every else None for shard in shards]
    started = time.process_time()
    ranking = run_to_completion(rank_by_words(shards, masks, masks, split_words(text)[:QUESTION_WORDS]))
    ranking.best(10)
    ranking.rank(0)
    return 1e3 * (time.process_time() - started)


def peak_bytes() -> int:
    """Returns the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
