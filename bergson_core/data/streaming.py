"""Documents of a stream: what is too large to be kept as a whole, in memory or in the datasets library's cache.

    <output>/documents.arrow   the columns that a build reads, as an Arrow stream, until its index is published

A build reads its documents several times: to check every one, for samples, shard by shard. A stream is read in order
only, and a hub's is downloaded each time. So it is read once, by Arrow batches, into a file that bears its name as
soon as it is whole. All that follows is local, and a build that is killed goes on from what the first run has read,
whatever the source has become. The index keeps these texts anyway.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Final

import pyarrow as pa
from datasets import Dataset, IterableDataset
from datasets.table import table_cast

from bergson_core.data.dataset import (
    Documents,
    dataset_errors,
    documents_from_dataset,
    empty_dataset_error,
    load_documents,
    open_dataset_stream,
    required_columns,
)
from bergson_core.schemas.build import BuildSpec, ColumnsSpec, DatasetSpec
from bergson_core.schemas.results import Progress
from bergson_core.utils.atomic_files import atomic_path
from bergson_core.utils.progress import StageProgress

STREAMED_FILE: Final = "documents.arrow"
_AT_ONCE: Final = 1000
"""Rows of a batch. It divides the 10,000 that the csv reader takes at once: each time it finds types anew, and no batch
can hold two of them."""


def load_documents_streaming(spec: BuildSpec, root: Path, report: Callable[[Progress], None]) -> Documents:
    """As `load_documents`. A stream is read into a file of the directory `root`, or has been by an earlier run.

    `report` is called after every batch and may raise to stop.
    """
    documents = _loaded(spec, root, report)
    pa.default_memory_pool().release_unused()  # some 50 MB that reading a file for the first time has taken
    return documents


def _loaded(spec: BuildSpec, root: Path, report: Callable[[Progress], None]) -> Documents:
    source = spec.dataset
    if source is None or not source.streaming:
        return load_documents(spec)
    if not (root / STREAMED_FILE).is_file():
        opened = open_dataset_stream(source)
        if isinstance(opened, Dataset):
            return documents_from_dataset(opened, spec.columns, source.path)
        _write(_batches(opened, source, spec.columns), root / STREAMED_FILE, source.path, report)
    return documents_from_dataset(Dataset.from_file(str(root / STREAMED_FILE)), spec.columns, source.path)


def _batches(opened: IterableDataset, source: DatasetSpec, columns: ColumnsSpec) -> Iterator[pa.Table]:
    """The wanted columns of a stream, in the types of its first rows, as a file that is not streamed has them."""
    with dataset_errors(source):
        tables, schema = opened.with_format("arrow").iter(_AT_ONCE), None
    while True:
        with dataset_errors(source):
            table: pa.Table | None = next(tables, None)
            if table is None:
                return
            wanted = table.select(required_columns(columns, table.column_names, source.path))
            schema = schema or wanted.schema
            wanted = table_cast(wanted, schema)
        yield wanted


def _write(batches: Iterator[pa.Table], path: Path, name: str, report: Callable[[Progress], None]) -> None:
    """Writes a file as one step. Raises `InvalidInput` where there is no batch."""
    first = next(batches, None)
    if first is None:
        raise empty_dataset_error(name)
    clock = StageProgress("read", total=0)
    with (
        atomic_path(path, durable=True, exclusive=True) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_stream(file, first.schema) as writer,
    ):
        for table in chain([first], batches):
            writer.write_table(table)
            report(clock.advance(len(table), tokens=0))
