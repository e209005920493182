"""Summarises a stream of scores while it is read: the best documents, and totals by the value of a metadata column.

Both take what `corpus_scores` returns, and hold only their result in memory, never all rows.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from bergson_core.attribution.index import AttributionIndex
from bergson_core.errors import InvalidInput
from bergson_core.schemas.validation.bounded_errors import short_repr
from bergson_core.utils.table_writer import parse_metadata


def top_documents(scores: pa.RecordBatchReader, top_k: int) -> pa.Table:
    """Returns the documents with the highest scores, best first, of equal scores the earlier document.

    Args:
        scores: Scores of documents, from `score_corpus` or `score_self_influence`. The stream is read to its end.
        top_k: Number of documents, at least 1.

    Raises:
        InvalidInput: `top_k` is less than 1, or documents have a list of scores.
    """
    _require_single_score(scores.schema)
    if top_k < 1:
        raise InvalidInput(f"top_k is {top_k}; expected at least 1")
    best = scores.schema.empty_table()
    for batch in scores:
        pooled = pa.concat_tables([best, pa.Table.from_batches([batch])])
        order = np.argsort(-pooled["score"].to_numpy(), kind="stable")[:top_k]
        best = pooled.take(order).combine_chunks()
    return best


class ScoreTotals:
    """Sums scores by the values of a metadata column, for example to see which source drives an answer.

    Example:
        totals = ScoreTotals(index, "source")
        write_table(totals.add(score_corpus(index, queries)), "scores.parquet")
        print(totals.table())

    Args:
        index: The index whose documents are scored.
        column: A metadata column that the index keeps.

    Raises:
        InvalidInput: The index does not keep this column.
    """

    def __init__(self, index: AttributionIndex, column: str) -> None:
        require_metadata_column(index, column)
        self._column = column
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)

    def add(self, scores: pa.RecordBatchReader) -> pa.RecordBatchReader:
        """Returns the same stream of scores, which are added to the totals as they are read from it.

        Args:
            scores: Scores of documents, from `score_corpus` or `score_self_influence`.

        Raises:
            InvalidInput: Documents have a list of scores.
        """
        _require_single_score(scores.schema)
        return pa.RecordBatchReader.from_batches(scores.schema, self._iter_and_add(scores))

    def table(self) -> pa.Table:
        """Returns the totals of the scores that have been read so far, the largest sum first.

        Returns:
            The columns value, documents, sum and mean. `value` is null for documents that have none. Values of several
            types are given as JSON text.
        """
        keys = sorted(self._sums, key=lambda key: -self._sums[key])
        sums = np.array([self._sums[key] for key in keys], dtype=np.float64)
        counts = np.array([self._counts[key] for key in keys], dtype=np.int64)
        return pa.table(
            {
                "value": _values_column([json.loads(key) for key in keys]),
                "documents": counts,
                "sum": sums,
                "mean": sums / counts,
            }
        )

    def _iter_and_add(self, scores: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        for batch in scores:
            keys = encode_values(batch["metadata"].to_pylist(), self._column)
            codes = keys.indices.to_numpy()
            sums, counts = np.bincount(codes, batch["score"].to_numpy()), np.bincount(codes)
            for key, total, count in zip(keys.dictionary.to_pylist(), sums, counts, strict=True):
                self._sums[key] += float(total)
                self._counts[key] += int(count)
            yield batch


def require_metadata_column(index: AttributionIndex, column: str) -> None:
    """Raises `InvalidInput`, naming the columns that the index keeps, unless `column` is one of them."""
    columns = index.manifest.spec.columns.metadata
    if column not in columns:
        available = f"it has {', '.join(columns)}" if columns else "it was built without any"
        raise InvalidInput(f"{index.name} has no metadata column {short_repr(column)}; {available}")


def encode_values(metadata: Iterable[str], column: str) -> pa.DictionaryArray:
    """Returns the value of a column in the metadata of each document, as JSON text; `null` where there is none."""
    values = (parse_metadata(text).get(column) for text in metadata)
    texts = [json.dumps(value, sort_keys=True) for value in values]
    return pa.array(texts, pa.string()).dictionary_encode()


def _values_column(values: list[Any]) -> pa.Array:
    """Returns the values as a column, as JSON text where Arrow has no common type for them."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # several types, or integers beyond 64 bits
        return pa.array([None if value is None else json.dumps(value) for value in values])


def _require_single_score(schema: pa.Schema) -> None:
    """Raises `InvalidInput` for scores with a list for each document."""
    if "score" not in schema.names:
        raise InvalidInput(
            "each document has a list of scores: expected a single score, from the aggregate mean or max"
        )
