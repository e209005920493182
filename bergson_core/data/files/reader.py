"""Reads the files of a dataset, whatever their format: as batches of documents, or as a table of a few columns."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa

from bergson_core.data.column_values import ValueKinds, require_json_values
from bergson_core.data.document_columns import DocumentEncoder
from bergson_core.data.files.csv_rows import iter_csv_chunks, read_csv_header
from bergson_core.data.files.json_rows import iter_json_rows
from bergson_core.data.files.parquet_rows import iter_parquet_chunks, read_parquet_header
from bergson_core.data.files.paths import DataFile, find_data_files
from bergson_core.data.files.plain_text_rows import TEXT_COLUMNS, iter_text_chunks
from bergson_core.data.row_chunks import ObjectColumns, RowChunk, group_rows, missing_column
from bergson_core.errors import DatasetNotFound, InvalidInput
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec


def require_no_subset(spec: DatasetSpec) -> None:
    """Raises `InvalidInput` if a dataset on this machine is to have a subset."""
    if spec.subset is not None:
        raise InvalidInput(
            f"dataset.subset: only datasets of the hub have subsets; expected none for {spec.path}, got {spec.subset!r}"
        )


class FileReader:
    """Reads the files that a dataset names.

    Args:
        spec: The dataset.
        files: Its files, from `find_data_files`.
    """

    def __init__(self, spec: DatasetSpec, files: Sequence[DataFile]) -> None:
        self._spec, self._files = spec, files

    @classmethod
    def open(cls, spec: DatasetSpec) -> "FileReader | None":
        """Returns the reader of a dataset of files, or None if the path names no files.

        Raises:
            DatasetNotFound: The files cannot be read together, no file matches a pattern, or another split than train
                is asked for.
            InvalidInput: A subset is asked for, or the spec says what a document is in .txt files, and these are none.
        """
        files = find_data_files(spec.path)
        if not files:
            return None
        if spec.split != "train":
            raise DatasetNotFound(f"{spec.path} has only the split 'train', got {spec.split!r}")
        require_no_subset(spec)
        if spec.text_documents != "auto" and files[0].format != "text":
            raise InvalidInput(f"text_documents is for .txt files; {spec.path} names {files[0].format} files")
        return cls(spec, files)

    def iter_documents(
        self, columns: ColumnsSpec, *, note_bad: bool = False, optional: Collection[str] = ()
    ) -> Iterator[pa.RecordBatch]:
        """Yields the documents in batches, as `DocumentEncoder` encodes them.

        Args:
            columns: The columns to read and what they hold.
            note_bad: Whether a document with a wrong value gets the reason in its place.
            optional: Metadata columns that are null where no file has them.

        Raises:
            ColumnNotFound: A column is missing.
            DatasetNotFound: A file is not of its format. The message names the line.
            InvalidInput: A value is not what its column should hold. The message names the file, the row and the
                column.
        """
        encoder = DocumentEncoder(columns, note_bad=note_bad)
        yield from map(encoder.encode, self._iter_chunks(columns.column_names(), columns, optional))

    def read_table(self, required: Sequence[str] | None, optional: Sequence[str] = ()) -> pa.Table:
        """Reads some columns into memory, as columns of one type each.

        Args:
            required: The columns. None for all that the files have.
            optional: Further columns, which are left out where the files do not have them.

        Raises:
            ColumnNotFound: A required column is missing.
            DatasetNotFound: A file is not of its format.
            InvalidInput: A column holds values of several types, or of a type that JSON does not have.
        """
        present = self._column_names()
        for name in required or ():
            if present and name not in present:
                raise missing_column(self._spec.path, name, present)
        names = [name for name in present if required is None or name in required or name in optional]
        kinds, columns = ValueKinds(), {name: list[Any]() for name in names}
        for chunk in self._iter_chunks(names, None):
            for name in names:
                values = require_json_values(chunk.values[name], name, chunk.describe)
                kinds.require_same(values, name, chunk.describe)
                columns[name] += values
        return pa.table({name: _to_array(self._spec.path, name, values) for name, values in columns.items()})

    def _iter_chunks(
        self, names: Sequence[str], columns: ColumnsSpec | None, optional: Collection[str] = ()
    ) -> Iterator[RowChunk]:
        file_format = self._files[0].format
        if optional and columns is not None and file_format != "json":  # objects need not be alike
            present = self._column_names()
            missing = [name for name in optional if name not in present]
            metadata = tuple(name for name in columns.metadata if name not in missing)
            columns = columns.model_copy(update={"metadata": metadata})
            chunks = self._iter_chunks([name for name in names if name not in missing], columns)
            yield from (chunk.with_nulls(missing) for chunk in chunks)
            return
        if file_format in ("csv", "tsv"):
            data_names = () if columns is None else columns.metadata
            numbers = () if columns is None else columns.number_columns()
            yield from iter_csv_chunks(self._files, names, data_names, numbers)
        elif file_format == "text":
            choice = self._spec.text_documents
            by_line = choice == "line" or (choice == "auto" and len(self._files) == 1)
            yield from iter_text_chunks(self._files, names, self._spec.path, by_line=by_line)
        elif file_format == "parquet":
            for file in self._files:
                yield from iter_parquet_chunks(file, names)
        else:
            required = set(names) - set(() if columns is None else columns.metadata)
            required = required if columns is not None else ()
            objects = ObjectColumns(names, required, self._spec.path, optional)
            for file in self._files:
                first_row = 0
                for rows in group_rows(iter_json_rows(file, names)):
                    yield objects.make_chunk(rows, str(file.path), first_row)
                    first_row += len(rows)
            objects.require_all()

    def _column_names(self) -> list[str]:
        match self._files[0].format:
            case "csv" | "tsv":
                headers = map(read_csv_header, self._files)
            case "parquet":
                headers = map(read_parquet_header, self._files)
            case "text":
                return list(TEXT_COLUMNS)
            case "json":
                headers = (row for file in self._files for row, _ in iter_json_rows(file))
        return list(dict.fromkeys(name for header in headers for name in header))


def _to_array(source: str, name: str, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise InvalidInput(f"{source}: column {name!r} cannot be read: {error}") from error
