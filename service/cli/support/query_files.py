"""Files of queries for commands: one query on each line, as JSON with the fields of the HTTP API."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bergson_core.errors import InvalidInput

_PLACE: Final = re.compile(r"\b(?P<field>queries|control)\.(?P<number>\d+)(?P<dot>\.(?=\w))?")
"""A query in an error: its list and its number, and whether the name of a field follows."""


@dataclass(frozen=True)
class QueryFile:
    """The queries of a file.

    Attributes:
        path: The file.
        queries: The queries.
        lines: The line of each query, from 1.
    """

    path: Path
    queries: Sequence[dict[str, Any]]
    lines: Sequence[int]


@contextmanager
def naming_lines(**files: QueryFile | None) -> Iterator[None]:
    """Errors about the queries of files name their lines: `queries.0` becomes `line 1 of FILE`.

    Args:
        files: The files, by the names of the fields that have their queries. None stands for no file.

    Raises:
        InvalidInput: A query is wrong.
    """

    def name_line(place: re.Match[str]) -> str:
        file, number = files.get(place["field"]), int(place["number"])
        if file is None or number >= len(file.lines):
            return place[0]
        return f"line {file.lines[number]} of {file.path}{': ' if place['dot'] else ''}"

    try:
        yield
    except InvalidInput as error:
        raise type(error)(_PLACE.sub(name_line, str(error))) from error


def read_query_file(option: str, path: Path) -> QueryFile:
    """Returns the queries of a JSON Lines file. Empty lines are skipped.

    Args:
        option: Option that names the file, for errors.
        path: The file.

    Raises:
        InvalidInput: The file cannot be read, a line is no JSON object, or there is no query.
    """
    queries, numbers = [], []
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{option}: {path} is not UTF-8 ({error}); expected JSON Lines in UTF-8") from None
    except OSError as error:
        raise InvalidInput(
            f"{option}: {path} cannot be read ({error.strerror}); expected a file of JSON Lines"
        ) from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            queries.append(_parse_line(option, path, number, line))
            numbers.append(number)
    if not queries:
        raise InvalidInput(f"{option}: {path} has no queries; expected at least one line with a query")
    return QueryFile(path, queries, numbers)


def _parse_line(option: str, path: Path, number: int, line: str) -> dict[str, Any]:
    example = '{"prompt": "Ada was born in", "completion": " London"}'
    try:
        query = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{option}: line {number} of {path} is not JSON ({error}); expected for example {example}"
        ) from None
    if not isinstance(query, dict):
        raise InvalidInput(
            f"{option}: line {number} of {path} is {type(query).__name__}; expected an object such as {example}"
        )
    return query
