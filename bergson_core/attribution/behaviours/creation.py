"""Creates a behaviour: checks all of its queries, runs them through the model, and writes their rows.

Legend: q queries, m modules, d numbers per module.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import torch

from bergson_core.attribution.queries.query_lists import tokenize_query_list
from bergson_core.attribution.queries.query_rows import collect_query_rows
from bergson_core.attribution.queries.query_tokenizer import QueryTokenizer, TokenizedQuery
from bergson_core.errors import InvalidInput
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.batch_budget import find_batch_budget
from bergson_core.schemas.behaviours.spec import (
    CONTROL_IS_SET,
    BehaviourQuery,
    BehaviourSpec,
    is_same_set,
)
from bergson_core.schemas.record import Record
from bergson_core.schemas.results import Progress
from bergson_core.shards.codecs import CODECS, Codec
from bergson_core.shards.shard import BLOCKS_FILE, SCALES_FILE
from bergson_core.storage.behaviours import (
    QUERIES_FILE,
    BehaviourRecord,
    behaviour_path,
    write_queries,
    write_record,
)
from bergson_core.storage.integrity import make_file_entry
from bergson_core.storage.manifest import FileEntry, Manifest
from bergson_core.tokens.word_joins import MissingSpaceCounter
from bergson_core.utils.atomic_files import atomic_directory, fsync_path
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback, StageProgress

ROW_CODEC: Final[Codec] = CODECS["float16"]
"""How the rows of queries are stored, also where those of documents are signs: a query counts with its numbers."""
_QUERIES_A_STEP: Final = 64
"""Queries whose rows are in memory at a time."""


@dataclass(frozen=True)
class BehaviourWriter:
    """Writes behaviours of an index. The caller holds the index's lock.

    Attributes:
        root: Directory of the index.
        manifest: The published manifest.
        processor: Fingerprint of the index's processor.
        collector: Computes rows as the index holds them.
        query_tokenizer: Tokenises queries.
    """

    root: Path
    manifest: Manifest
    processor: str
    collector: RowCollector
    query_tokenizer: QueryTokenizer

    def write(
        self, spec: BehaviourSpec, key: str, report: ProgressCallback, confirm: ConfirmCallback
    ) -> None:
        """Writes a behaviour, which readers see when it is whole.

        Args:
            spec: The behaviour.
            key: Identifies the caller.
            report: Called with the progress after each batch. It may raise to stop the work.
            confirm: Called before the behaviour is published. It may raise to stop the work.

        Raises:
            InvalidInput: A query cannot be answered by this index; the message has its list and its number. Or the
                control set has the same tokens as the set.
            TooLong: A query is longer than the model takes.
        """
        control = spec.control or ()
        report(Progress(stage="read", total=len(spec.queries) + len(control), unit="queries"))
        queries = [
            *self._tokenize("queries", spec.queries, report),
            *self._tokenize("control", control, report),
        ]
        count = len(spec.queries)
        if control and is_same_set(map(_token_key, queries[:count]), map(_token_key, queries[count:])):
            raise InvalidInput(f"control: {CONTROL_IS_SET}")
        path = behaviour_path(self.root, spec.name)
        path.parent.mkdir(exist_ok=True)
        with atomic_directory(path) as directory:
            losses = self._write_rows(directory, queries, len(spec.queries), report)
            write_queries(directory, *map(_as_given, (spec.queries, control)))
            record = self._make_record(spec, key, queries, losses, directory)
            write_record(directory, record)
            confirm()
        fsync_path(path.parent)

    def _tokenize(
        self, list_name: str, queries: Sequence[BehaviourQuery], report: ProgressCallback
    ) -> list[TokenizedQuery]:
        """Returns the tokens of all queries of a list. Raises the error of the first that is wrong."""
        total = len(queries)
        tokenized = tokenize_query_list(
            self.query_tokenizer,
            list_name,
            [query.as_query() for query in queries],
            lambda done: report(Progress(stage="read", done=done, total=total, unit="queries")),
        )
        spaces = MissingSpaceCounter(self.query_tokenizer.join_checker)
        texts = [(item.prompt, item.completion) for item in tokenized if item.query.messages is None]
        spaces.add([Record("", prompt, completion, {}) for prompt, completion in texts])
        spaces.log_warning(f"queries of the list {list_name!r}")
        return tokenized

    def _write_rows(
        self, directory: Path, queries: Sequence[TokenizedQuery], query_count: int, report: ProgressCallback
    ) -> list[float]:
        """Writes the rows of all queries, those of the control set last, and returns the losses of the completions."""
        longest = max(len(text.ids) for query in queries for text in query.weighted_tokens)
        budget_tokens = find_batch_budget(self.collector.model, self.collector.modules, longest)
        progress, losses = StageProgress("gradients", len(queries)), list[float]()

        def tick(done: int = 0, tokens: int = 0) -> None:
            report(progress.advance(done, tokens).model_copy(update={"unit": "queries"}))

        modules = len(self.collector.slices)
        with (
            (directory / BLOCKS_FILE).open("wb") as blocks_file,
            (directory / SCALES_FILE).open("wb") as scales_file,
        ):
            for start in range(0, len(queries), _QUERIES_A_STEP):
                step = queries[start : start + _QUERIES_A_STEP]
                rows, step_losses = collect_query_rows(self.collector, step, budget_tokens, tick)
                _require_finite(rows, start, query_count)
                blocks, scales = ROW_CODEC.encode(torch.from_numpy(rows).reshape(len(rows), modules, -1))
                blocks_file.write(blocks.numpy().tobytes())
                scales_file.write(scales.numpy().tobytes())
                losses += [float(of_query[0]) for of_query in step_losses]
                tick(len(step), sum(len(text.ids) for query in step for text in query.weighted_tokens))
        return losses

    def _make_record(
        self,
        spec: BehaviourSpec,
        key: str,
        queries: Sequence[TokenizedQuery],
        losses: Sequence[float],
        directory: Path,
    ) -> BehaviourRecord:
        count, modules = len(spec.queries), tuple(module.name for module in self.manifest.modules)
        inner = behaviour_path(Path(), spec.name)

        def entry(name: str) -> FileEntry:
            return make_file_entry(directory / name).model_copy(update={"path": str(inner / name)})

        return BehaviourRecord(
            name=spec.name,
            key=key,
            generation=self.manifest.generation,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            processor=self.processor,
            model_sha256=self.manifest.model_sha256,
            modules=modules,
            width=self.manifest.dimensions // len(modules),
            query_count=count,
            control_count=len(queries) - count,
            loss=float(np.mean(losses[:count])),
            control_loss=float(np.mean(losses[count:])) if len(queries) > count else None,
            n_tokens=sum(query.tokens.n_labelled for query in queries[:count]),
            files=tuple(map(entry, (QUERIES_FILE, BLOCKS_FILE, SCALES_FILE))),
        )


def _token_key(query: TokenizedQuery) -> Hashable:
    """Returns what tells the rows of queries from each other: their tokens, and how these count."""
    return tuple(
        (text.ids.tobytes(), text.labels.tobytes(), text.weight, text.log_odds)
        for text in query.weighted_tokens
    )


def _as_given(queries: Sequence[BehaviourQuery]) -> list[dict[str, object]]:
    return [query.model_dump(mode="json", exclude_defaults=True) for query in queries]


def _require_finite(rows: np.ndarray, first: int, query_count: int) -> None:
    """Raises `InvalidInput` for the first row that is not finite; the first of these rows has the number `first`."""
    is_finite = np.isfinite(rows).all(1)
    if not is_finite.all():
        number = first + int(np.flatnonzero(~is_finite)[0])
        place = f"queries.{number}" if number < query_count else f"control.{number - query_count}"
        raise InvalidInput(f"{place}: its gradient is not finite; leave it out")
