"""Answers and scores as Hugging Face datasets."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from datasets import Dataset

from bergson_core.errors import BergsonError, InvalidInput
from bergson_core.schemas.results import Answer

QUERY_COLUMN = "query"


def to_dataset(
    results: Answer | Sequence[Answer | BergsonError] | pa.Table | pa.RecordBatchReader,
) -> Dataset:
    """Returns answers or scores as a Hugging Face dataset, to filter, to save or to push to the hub.

    Args:
        results: An answer; the answers of `AttributionIndex.attribute` or of the client; or the scores of
            `score_corpus` and other functions that return a table or a stream. A stream is read to its end, and is in
            memory as a whole. One that is larger is better written to a Parquet file with `write_table`, which
            `datasets.load_dataset` reads.

    Returns:
        A row for each result, with the columns of `Answer.to_table`, or a row for each document, with the columns of
        the scores. Of several answers, the column `query` has the position of the answer, from 0. `metadata` is JSON
        text.

    Raises:
        InvalidInput: There are no answers, or one of them is an error.
    """
    if isinstance(results, Answer):
        return Dataset(results.to_table())
    if not isinstance(results, Sequence):
        scores: Any = results  # pyarrow has no types
        return Dataset(scores.read_all() if isinstance(scores, pa.RecordBatchReader) else scores)
    if not results:
        raise InvalidInput("expected at least one answer, got none")
    return Dataset(pa.concat_tables(_table_of(number, answer) for number, answer in enumerate(results)))


def _table_of(number: int, answer: Answer | BergsonError) -> pa.Table:
    """Returns the results of the answer at a position, with the position as a column."""
    if not isinstance(answer, Answer):
        raise InvalidInput(f"expected answers; the one at position {number} is an error: {answer}")
    table = answer.to_table().replace_schema_metadata(None)
    return table.add_column(0, QUERY_COLUMN, pa.array([number] * len(table), pa.int64()))
