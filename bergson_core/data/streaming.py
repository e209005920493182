"""Reads files and streams into a file that a build can map, for datasets that are too large for memory.

<output>/documents.arrow   the columns that a build reads, as an Arrow stream, until the index is published; with
                           `streaming`, the sha256 of all this follows it

A build reads its documents several times: to check each of them, for samples, and shard by shard. Text files and
streams can be read in order only, and the stream of a hub dataset is downloaded each time. They are therefore read
once, by Arrow batches, into a file that gets its name when it is complete. With `streaming`, a build that is killed and
started again goes on with what the first run has read, even if the source has changed since. Without it, or if that
file was damaged meanwhile, the source is read again; shards that were made from other texts are then made again too.
The index stores these texts in any case.
"""

import logging
import os
from collections.abc import Collection, Iterator
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Final, cast

import pyarrow as pa
from datasets import Dataset, IterableDataset
from datasets.table import table_cast

from bergson_core.data.dataset import (
    empty_dataset_error,
    open_saved_or_hub_dataset,
    translate_dataset_errors,
)
from bergson_core.data.document_columns import is_encoded
from bergson_core.data.documents import Documents, documents_from_dataset, load_documents, require_columns
from bergson_core.data.files.reader import FileReader
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.results import Progress
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from bergson_core.utils.atomic_files import atomic_path
from bergson_core.utils.background import run_in_thread, stop_if_abandoned
from bergson_core.utils.progress import ProgressCallback, StageProgress

logger = logging.getLogger(__name__)

STREAMED_FILE: Final = "documents.arrow"
_SHA256_BYTES: Final = 32
_HASHED_BYTES: Final = 2**24
_BATCH_ROWS: Final = 1000
"""Rows of a batch of a hub dataset. This divides the 10,000 rows that the csv reader of the datasets library reads at a
time: the reader infers the types again each time, and no batch may span two of these portions."""


def load_documents_streaming(
    spec: BuildSpec, root: Path, report: ProgressCallback, optional: Collection[str] = ()
) -> Documents:
    """Opens the documents that a build reads, like `load_documents`; files and streams are first read into a file.

    Args:
        spec: The build.
        root: Directory for the file. If an earlier run has completed it there, and the dataset is a stream, it is used
            instead of the stream.
        report: Called after every batch; it may raise to stop.
        optional: Metadata columns that are null where no document has them.

    Raises:
        DatasetNotFound: The dataset does not exist or cannot be read.
        ColumnNotFound: The dataset lacks a column that the spec names.
        InvalidInput: The dataset is empty, or a value is not what its column should hold.
    """
    documents = _open_documents(spec, root, report, optional)
    pa.default_memory_pool().release_unused()  # Opening a file for the first time takes some 50 MB for a moment.
    return documents


def _open_documents(
    spec: BuildSpec, root: Path, report: ProgressCallback, optional: Collection[str]
) -> Documents:
    source, path = spec.dataset, root / STREAMED_FILE
    if source is None:
        return load_documents(spec, optional)
    if not source.streaming or not _is_complete(path, report):
        with translate_dataset_errors(source):
            reader = FileReader.open(source)
        if reader is None and not source.streaming:
            return load_documents(spec, optional)
        if reader is not None:
            batches = _iter_batches(reader, source, spec, optional)
        else:
            with translate_dataset_errors(source):
                dataset = open_saved_or_hub_dataset(source, streaming=True)
            if isinstance(dataset, Dataset):
                return documents_from_dataset(dataset, spec.columns, source.path, optional)
            batches = _iter_stream(dataset, source, spec.columns, optional)
        _write_batches(batches, path, source, report)
    dataset = Dataset.from_file(str(path))
    with pa.OSFile(str(path)) as file:
        schema = pa.ipc.open_stream(file).schema
    if is_encoded(schema):
        return Documents(dataset, spec.columns, source.path, encoded=True)
    return documents_from_dataset(dataset, spec.columns, source.path, optional)


def _iter_batches(
    reader: FileReader, source: DatasetSpec, spec: BuildSpec, optional: Collection[str]
) -> Iterator[pa.RecordBatch]:
    with translate_dataset_errors(source):
        note_bad = spec.on_bad_document == "skip"
        yield from reader.iter_documents(spec.columns, note_bad=note_bad, optional=optional)


def _iter_stream(
    stream: IterableDataset, source: DatasetSpec, columns: ColumnsSpec, optional: Collection[str]
) -> Iterator[pa.Table]:
    """Yields the required columns, cast to the types of the first rows, as a dataset that is not streamed has them."""
    with translate_dataset_errors(source):
        schema = None
        for batch in stream.with_format("arrow").iter(_BATCH_ROWS):
            table = cast(pa.Table, batch)
            selected = table.select(require_columns(columns, table.column_names, source.path, optional))
            schema = schema or selected.schema
            yield table_cast(selected, schema)


def _write_batches(
    batches: Iterator[pa.RecordBatch] | Iterator[pa.Table],
    path: Path,
    source: DatasetSpec,
    report: ProgressCallback,
) -> None:
    """Writes batches to a file, in one stage of the build. Raises `InvalidInput` if there are none."""
    first = next(batches, None)
    if first is None:
        raise empty_dataset_error(source.path)
    progress = StageProgress("read", total=0)
    report(progress.now())
    # What is read again by the next run need not survive a power cut.
    with atomic_path(path, durable=source.streaming, exclusive=True) as temporary:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_stream(file, first.schema) as writer:
            for batch in chain([first], batches):
                writer.write(batch)
                report(progress.advance(batch.num_rows, tokens=0))
        if source.streaming:
            with temporary.open("r+b") as whole:
                size = whole.seek(0, os.SEEK_END)
                whole.write(
                    run_in_thread(partial(_content_sha256, temporary, size), lambda: report(progress.now()))
                )


def _is_complete(path: Path, report: ProgressCallback) -> bool:
    """Returns whether an earlier run has read a stream into the file `path`, which is as that run wrote it."""
    if not path.is_file():
        return False
    try:
        size = path.stat().st_size - _SHA256_BYTES
        with path.open("rb") as file:
            file.seek(max(0, size))
            recorded = file.read()
        actual = run_in_thread(partial(_content_sha256, path, size), lambda: report(Progress(stage="read")))
    except OSError as error:
        logger.warning("%s cannot be read, so that its source is read again: %s", path, error)
        return False
    if actual != recorded:
        logger.warning("%s was altered since it was read, so that its source is read again", path)
    return actual == recorded


def _content_sha256(path: Path, size: int) -> bytes:
    """Returns the sha256 of the first `size` bytes of a file."""
    digest, left = sha256(), size
    with path.open("rb") as file:
        while left > 0 and (part := file.read(min(left, _HASHED_BYTES))):
            stop_if_abandoned()
            digest.update(part)
            left -= len(part)
    return digest.digest()
