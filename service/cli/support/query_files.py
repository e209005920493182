"""Files of queries for commands: one query on each line, as JSON with the fields of the HTTP API."""

import json
from pathlib import Path
from typing import Any

from bergson_core.errors import InvalidInput


def read_query_file(option: str, path: Path) -> list[dict[str, Any]]:
    """Returns the queries of a JSON Lines file. Empty lines are skipped.

    Args:
        option: Option that names the file, for errors.
        path: The file.

    Raises:
        InvalidInput: The file cannot be read, a line is no JSON object, or there is no query.
    """
    queries = []
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
    if not queries:
        raise InvalidInput(f"{option}: {path} has no queries; expected at least one line with a query")
    return queries


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
