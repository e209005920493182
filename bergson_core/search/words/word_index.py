"""The words of all documents of an index, which are read when a query first asks for them, and are kept on disk.

A worker answers other queries meanwhile, so the work is divided into parts. What is done is kept when a query has no
more time for the rest, and the next query goes on with it.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from bergson_core.errors import BergsonError
from bergson_core.search.words.shard_words import ShardWords, WordCounter
from bergson_core.search.words.text_words import stored_text
from bergson_core.shards.shard import Shard
from bergson_core.storage.manifest import read_manifest

logger = logging.getLogger(__name__)

_READ_ROWS: Final = 64
_PART_CHARACTERS: Final = 2**20
"""Characters of texts that are read before other work may be done."""


class WordIndex:
    """The words of some shards of an index. For use by one thread.

    Args:
        root: Directory of the index.
        shards: The shards.
        is_chat: Whether the documents are chats.
    """

    def __init__(self, root: Path, shards: Sequence[Shard], *, is_chat: bool) -> None:
        self._root, self._shards, self._is_chat = root, shards, is_chat
        self._work: Iterator[None] = iter(())
        self.by_shard: list[ShardWords] = []
        """The words of the first shards, those that were opened so far."""

    def prepare(self) -> Iterator[None]:
        """Opens the words of all shards, and makes those that are not on disk; yields after each part of the work."""
        while len(self.by_shard) < len(self._shards):
            try:
                next(self._work)
            except StopIteration:
                self._work = self._open_next()
            else:
                yield

    def _open_next(self) -> Iterator[None]:
        """Opens the words of the next shard, or makes them."""
        shard = self._shards[len(self.by_shard)]
        path = self._root / shard.entry.words_path
        words = ShardWords.open(path, shard.entry.rows)
        if words is None:
            counter = WordCounter()
            for part in self._iter_texts(shard):
                for text in part:
                    counter.add(text)
                yield
            words = counter.finish()
            self._keep(words, path)
            words = ShardWords.open(path, shard.entry.rows) or words  # mapped, so that it takes no memory
        self.by_shard.append(words)
        yield

    def _iter_texts(self, shard: Shard) -> Iterator[list[str]]:
        """Yields the texts of the documents of a shard, some at a time."""
        texts: list[str] = []
        present = [
            name for name in ("is_chat",) if name in shard.documents.column_names
        ]  # of preference pairs
        columns = shard.documents.select(["prompt", "completion", *present])
        for start in range(0, shard.entry.rows, _READ_ROWS):
            for row in columns.slice(start, _READ_ROWS).to_pylist():
                is_chat = self._is_chat or bool(row.get("is_chat"))
                texts.append(stored_text(row["prompt"], row["completion"], is_chat=is_chat))
            if sum(map(len, texts)) >= _PART_CHARACTERS:
                yield texts
                texts = []
        yield texts

    def _keep(self, words: ShardWords, path: Path) -> None:
        """Writes the words of a shard, unless the index may not be written to, or has another generation by now."""
        try:
            path.parent.mkdir(exist_ok=True)
            words.save(path)
            # A publication removes the words of shards that are no more. It may have done so before this was written.
            current = {self._root / entry.words_path for entry in read_manifest(self._root).shards}
            if path not in current:
                path.unlink(missing_ok=True)
        except (OSError, BergsonError) as error:
            logger.warning(
                "the words of %s are not kept, so that each process reads them again: %s", path.stem, error
            )
