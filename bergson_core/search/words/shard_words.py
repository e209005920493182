"""The words of the documents of a shard: for each word, which documents have it and how often.

<index>/words/00000.9f86d081884c7d65.1.arrow     word, documents, counts; a row for each word, in order of code points

The name has the name of the shard, the beginning of the sha256 of its documents, and the version of this format, so
that a file is never taken for that of other documents. The last 32 bytes are the sha256 of the others. The first row is
that of the empty word, which no text has: its counts are the numbers of words of the documents. The files are made from
the documents alone, so that a missing or damaged one is made again (`word_index`).

Legend: n documents of a shard, w different words, k documents that have a word.
"""

import hashlib
from array import array
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from bergson_core.search.words.text_words import split_words
from bergson_core.utils.atomic_files import write_atomically
from bergson_core.utils.memory_map import map_buffer, release_pages

_DIGEST_BYTES: Final = 32
_POSTINGS: Final = pa.large_list(pa.int32())
_SCHEMA: Final = pa.schema([("word", pa.string()), ("documents", _POSTINGS), ("counts", _POSTINGS)])
_NO_DOCUMENTS: Final = np.zeros(0, dtype=np.int32)
_MERGE_AT_WORDS: Final = 2**20
"""Words of texts that are in memory before they are counted."""


@dataclass(frozen=True)
class ShardWords:
    """The words of a shard, mapped into memory or in it."""

    table: pa.Table

    @classmethod
    def open(cls, path: Path, rows: int) -> "ShardWords | None":
        """Maps the file of a shard of so many documents; returns None where there is none, or where it is damaged."""
        try:
            buffer = map_buffer(path)
            content = buffer.slice(0, max(0, buffer.size - _DIGEST_BYTES))
            digest = hashlib.sha256(content).digest()
            release_pages(np.frombuffer(buffer, np.uint8))
            if digest != buffer.slice(content.size).to_pybytes():
                return None
            words = cls(pa.ipc.open_file(content).read_all())
        except (OSError, pa.ArrowInvalid):
            return None
        return words if words.table.schema == _SCHEMA and len(words.lengths) == rows else None

    def save(self, path: Path) -> None:
        """Writes the file, in one step."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, _SCHEMA) as writer:
            writer.write_table(self.table)
        content = sink.getvalue()
        write_atomically(path, content.to_pybytes() + hashlib.sha256(content).digest())

    @cached_property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """The number of words of each document."""
        _, lengths = self.find("")
        return lengths

    def find(self, word: str) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
        """Returns (numbers of the documents that have a word, in order; how often each has the word)."""
        row = bisect_left(self._words, word, key=lambda scalar: scalar.as_py())
        if row == len(self._words) or self._words[row].as_py() != word:
            return _NO_DOCUMENTS, _NO_DOCUMENTS
        part = slice(self._starts[row], self._starts[row + 1])
        return self._documents[part], self._counts[part]

    @cached_property
    def _words(self) -> pa.Array:
        return self.table["word"].chunk(0)

    @cached_property
    def _starts(self) -> np.ndarray:
        return self.table["documents"].chunk(0).offsets.to_numpy()

    @cached_property
    def _documents(self) -> np.ndarray:
        return self.table["documents"].chunk(0).values.to_numpy()

    @cached_property
    def _counts(self) -> np.ndarray:
        return self.table["counts"].chunk(0).values.to_numpy()


class WordCounter:
    """Counts the words of the documents of a shard, one document after another."""

    def __init__(self) -> None:
        self._numbers = defaultdict[str, int](count().__next__)  # a new word gets the next number
        self._lengths, self._words = array("i"), array("i")
        self._counted_documents = 0
        self._counted: list[np.ndarray] = []

    def add(self, text: str) -> None:
        """Counts the words of the next document."""
        words = split_words(text)
        self._lengths.append(len(words))
        self._words.extend(map(self._numbers.__getitem__, words))
        if len(self._words) >= _MERGE_AT_WORDS:
            self._count()

    def finish(self) -> ShardWords:
        """Returns the words of the documents that were added."""
        self._count()
        words, n = sorted(self._numbers), len(self._lengths)
        positions = np.empty(len(words), dtype=np.int64)
        positions[[self._numbers[word] for word in words]] = np.arange(len(words))
        numbers, documents, counts = (np.concatenate(parts) for parts in zip(*self._counted, strict=True))
        order = np.lexsort((documents, positions[numbers]))
        sizes = np.bincount(positions[numbers], minlength=len(words))
        starts = np.concatenate([[0], np.cumsum([n, *sizes])]).astype(np.int64)

        def postings(of_empty_word: np.ndarray, values: np.ndarray) -> pa.Array:
            flat = np.concatenate([of_empty_word, values[order]]).astype(np.int32)
            return pa.LargeListArray.from_arrays(pa.array(starts), pa.array(flat))

        columns = [
            pa.array(["", *words], pa.string()),
            postings(np.arange(n), documents),
            postings(np.array(self._lengths), counts),
        ]
        return ShardWords(pa.table(columns, schema=_SCHEMA).combine_chunks())

    def _count(self) -> None:
        """Counts the words that were gathered: their numbers, their documents, and how often they are there."""
        lengths = np.array(self._lengths[self._counted_documents :])
        documents = np.repeat(self._counted_documents + np.arange(len(lengths)), lengths)
        keys = documents << 32 | np.array(self._words, dtype=np.int64)
        distinct, counts = np.unique(keys, return_counts=True)
        self._counted.append(np.stack([distinct & 0xFFFFFFFF, distinct >> 32, counts]).astype(np.int32))
        self._counted_documents, self._words = len(self._lengths), array("i")
