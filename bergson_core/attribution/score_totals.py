"""What is made of scores while they are read: the best documents, and totals by where they come from.

Both take what `scoring` gives and hold the result alone, never all rows.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from bergson_core.attribution.index import AttributionIndex
from bergson_core.errors import InvalidInput
from bergson_core.utils.table_writer import parse_metadata


def top_documents(scores: pa.RecordBatchReader, top_k: int) -> pa.Table:
    """The `top_k` documents of the highest scores, best first; of equal ones the earlier.

    Raises `InvalidInput` where there is no single score for a document.
    """
    _check_single(scores.schema)
    if top_k < 1:
        raise InvalidInput(f"top_k is {top_k}; expected at least 1")
    kept = scores.schema.empty_table()
    for batch in scores:
        pooled = pa.concat_tables([kept, pa.Table.from_batches([batch])])
        order = np.argsort(-pooled["score"].to_numpy(), kind="stable")[:top_k]
        kept = pooled.take(order).combine_chunks()
    return kept


class ScoreTotals:
    """Scores added up by the values of a metadata column: which source drives an answer, say.

    Raises `InvalidInput` for a column that the index does not keep.
    """

    def __init__(self, index: AttributionIndex, column: str) -> None:
        kept = index.manifest.spec.columns.metadata
        if column not in kept:
            has = f"it has {', '.join(kept)}" if kept else "it was built without any"
            raise InvalidInput(f"{index.name} has no metadata column {column!r}; {has}")
        self._column = column
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)

    def add(self, scores: pa.RecordBatchReader) -> pa.RecordBatchReader:
        """The same scores, added up as they are read."""
        _check_single(scores.schema)
        return pa.RecordBatchReader.from_batches(scores.schema, self._counted(scores))

    def _counted(self, scores: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        for batch in scores:
            values = [parse_metadata(text).get(self._column) for text in batch["metadata"].to_pylist()]
            keys = pa.array([json.dumps(value, sort_keys=True) for value in values]).dictionary_encode()
            places = keys.indices.to_numpy()
            sums, counts = np.bincount(places, batch["score"].to_numpy()), np.bincount(places)
            for key, total, count in zip(keys.dictionary.to_pylist(), sums, counts, strict=True):
                self._sums[key] += float(total)
                self._counts[key] += int(count)
            yield batch

    def table(self) -> pa.Table:
        """Of what was read so far: value, documents, sum and mean of the scores, the largest sum first.

        `value` is null for documents without one. Values of several types are JSON text.
        """
        keys = sorted(self._sums, key=lambda key: -self._sums[key])
        sums = np.array([self._sums[key] for key in keys], dtype=np.float64)
        counts = np.array([self._counts[key] for key in keys], dtype=np.int64)
        return pa.table(
            {
                "value": _typed([json.loads(key) for key in keys]),
                "documents": counts,
                "sum": sums,
                "mean": sums / counts,
            }
        )


def _typed(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else json.dumps(value) for value in values])


def _check_single(schema: pa.Schema) -> None:
    if "score" not in schema.names:
        raise InvalidInput(
            "each document has a score for each query: expected one, by the aggregate mean or max"
        )
