"""Reads documents from a stream, for datasets that are too large for memory and for the datasets library's cache.

<output>/documents.arrow   the columns that a build reads, as an Arrow stream, until the index is published

A build reads its documents several times: to check each of them, for samples, and shard by shard. A stream can be read
in order only, and that of a hub dataset is downloaded each time. The stream is therefore read once, by Arrow batches,
into a file that gets its name when it is complete. Everything after that is local. A build that is killed and started
again goes on with what the first run has read, even if the source has changed since. The index stores these texts in
any case.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final

import pyarrow as pa
from datasets import Dataset, IterableDataset
from datasets.table import table_cast

from bergson_core.data.dataset import empty_dataset_error, open_dataset_stream, translate_dataset_errors
from bergson_core.data.documents import Documents, documents_from_dataset, load_documents, require_columns
from bergson_core.schemas.build import BuildSpec, ColumnsSpec, DatasetSpec
from bergson_core.utils.atomic_files import atomic_path
from bergson_core.utils.progress import ProgressCallback, StageProgress

STREAMED_FILE: Final = "documents.arrow"
_BATCH_ROWS: Final = 1000
"""Rows of a batch. This divides the 10,000 rows that the csv reader reads at a time: the reader infers the types anew
each time, and no batch may span two of these portions."""


def load_documents_streaming(spec: BuildSpec, root: Path, report: ProgressCallback) -> Documents:
    """Opens the documents that a build reads, like `load_documents`; a stream is first read into a file.

    Args:
        spec: The build.
        root: Directory for the file. A file that an earlier run has completed there is used instead of the stream.
        report: Called after every batch; it may raise to stop.

    Raises:
        DatasetNotFound: The dataset does not exist or cannot be read.
        ColumnNotFound: The dataset lacks a column that the spec names.
        InvalidInput: The dataset is empty, or a column holds images, sounds or other files.
    """
    documents = _open_documents(spec, root, report)
    pa.default_memory_pool().release_unused()  # Opening a file for the first time takes some 50 MB for a moment.
    return documents


def _open_documents(spec: BuildSpec, root: Path, report: ProgressCallback) -> Documents:
    source = spec.dataset
    if source is None or not source.streaming:
        return load_documents(spec)
    path = root / STREAMED_FILE
    if not path.is_file():
        dataset = open_dataset_stream(source)
        if isinstance(dataset, Dataset):
            return documents_from_dataset(dataset, spec.columns, source.path)
        _write_stream(_iter_tables(dataset, source, spec.columns), path, source.path, report)
    return documents_from_dataset(Dataset.from_file(str(path)), spec.columns, source.path)


def _iter_tables(stream: IterableDataset, source: DatasetSpec, columns: ColumnsSpec) -> Iterator[pa.Table]:
    """Yields the required columns, cast to the types of the first rows, as a file that is not streamed has them."""
    with translate_dataset_errors(source):
        tables, schema = stream.with_format("arrow").iter(_BATCH_ROWS), None
    while True:
        with translate_dataset_errors(source):
            table: pa.Table | None = next(tables, None)
            if table is None:
                return
            selected = table.select(require_columns(columns, table.column_names, source.path))
            schema = schema or selected.schema
            selected = table_cast(selected, schema)
        yield selected


def _write_stream(tables: Iterator[pa.Table], path: Path, name: str, report: ProgressCallback) -> None:
    """Writes the tables to a file, in one stage of the build. Raises `InvalidInput` if there are none."""
    first = next(tables, None)
    if first is None:
        raise empty_dataset_error(name)
    progress = StageProgress("read", total=0)
    with (
        atomic_path(path, durable=True, exclusive=True) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_stream(file, first.schema) as writer,
    ):
        for table in chain([first], tables):
            writer.write_table(table)
            report(progress.advance(len(table), tokens=0))
