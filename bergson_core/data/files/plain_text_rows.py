"""Reads plain text: a document on each line, or a document in each file. The columns are `text` and `file`."""

from collections.abc import Iterator, Sequence
from typing import Final

from bergson_core.data.files.paths import DataFile
from bergson_core.data.files.text_lines import iter_text_lines, read_text
from bergson_core.data.row_chunks import RowChunk, group_rows, missing_column

TEXT_COLUMNS: Final = ("text", "file")


def iter_text_chunks(
    files: Sequence[DataFile], names: Sequence[str], source: str, *, by_line: bool
) -> Iterator[RowChunk]:
    """Yields the documents of text files.

    Args:
        files: The files.
        names: The columns to read, of `text` and `file`. `file` is the file's name below the directory that was named.
        source: Name of the dataset, for messages.
        by_line: Each line that is not blank is a document, without its end. Otherwise each file is one, with all of it.

    Raises:
        ColumnNotFound: Another column is asked for.
        DatasetNotFound: A file is not UTF-8. The message names the line.
    """
    for name in names:
        if name not in TEXT_COLUMNS:
            raise missing_column(source, name, TEXT_COLUMNS)
    first_row = 0
    for rows in group_rows(_iter_rows(files, by_line)):
        texts, files_of_texts = zip(*rows, strict=True)
        columns = {"text": texts, "file": files_of_texts}
        values = {name: columns[name] for name in names}
        yield RowChunk(source, first_row, values, values)
        first_row += len(rows)


def _iter_rows(files: Sequence[DataFile], by_line: bool) -> Iterator[tuple[tuple[str, str], int]]:
    for file in files:
        for text in iter_text_lines(file) if by_line else [read_text(file)]:
            if by_line:
                text = text.removesuffix("\n").removesuffix("\r")
            if not by_line or text.strip():
                yield (text, file.name), len(text)
