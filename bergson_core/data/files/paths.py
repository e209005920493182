"""Finds the files that the path of a dataset names: one file, the files of a directory, or those that match a pattern.

This module imports the standard library only, so that a worker can check every file before a job starts.
"""

import glob
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bergson_core.errors import DatasetNotFound

FileFormat = Literal["json", "csv", "tsv", "parquet", "text"]
Codec = Literal["gzip", "zstd"]
FORMATS: Final[dict[str, FileFormat]] = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".parquet": "parquet",
}
"""The format of a file by the suffix of its name."""
_CODECS: Final[dict[str, Codec]] = {".gz": "gzip", ".zst": "zstd"}
EXPECTED_SUFFIXES: Final = (
    f"{', '.join(FORMATS)}, and all but .parquet also with {' or '.join(_CODECS)} at the end"
)
SAVED_DATASET_FILES: Final = ("state.json", "dataset_info.json", "dataset_dict.json")
"""Files of which a directory has one if `save_to_disk` made it."""
_SPLIT_WORD: Final = re.compile(r"(?<![a-z])(train|test|valid|validation|dev|eval)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class DataFile:
    """A file of documents.

    Attributes:
        path: Where the file is.
        name: Its path below the directory that was named, or its file name.
        format: What is in it.
        codec: How it is compressed, or None.
    """

    path: Path
    name: str
    format: FileFormat
    codec: Codec | None


def has_file_suffix(name: str) -> bool:
    """Returns whether a name ends as the name of a file of documents does."""
    return _parse_suffix(Path(name)) is not None


def is_pattern(path: str) -> bool:
    """Returns whether a path is a pattern of files. A file that exists under this very name is not a pattern."""
    return glob.has_magic(path) and "://" not in path and not os.path.exists(os.path.expanduser(path))


def find_data_files(path: str) -> list[DataFile]:
    """Returns the files that a path names.

    Args:
        path: A file, a directory with files of one format, or a pattern with `*`, `?`, `[…]` or `**`.

    Returns:
        The files, sorted by name. An empty list if `path` is no file, no pattern, and no directory of such files.

    Raises:
        DatasetNotFound: A file is of no known type, the files are of several formats or several splits, or no file
            matches the pattern.
    """
    given = Path(path).expanduser()
    if os.path.isfile(given):
        return [_make_data_file(given, given.name)]
    if os.path.isdir(given):
        return _find_in_directory(given)
    return match_pattern(path) if is_pattern(path) else []


def match_pattern(pattern: str, check_step: Callable[[Path], object] = lambda step: None) -> list[DataFile]:
    """Returns the files that match a pattern, sorted by name.

    A `**` enters each directory once, even if several links or a circle of links lead to it.

    Args:
        pattern: The pattern.
        check_step: Called with each directory that the pattern leads through before anything in it is looked at, and
            with each link that matches; it may raise.

    Raises:
        DatasetNotFound: No file matches, or those that do cannot be read together.
    """
    expanded = Path(pattern).expanduser()
    base = pattern_base(pattern)
    if ".." in expanded.relative_to(base).parts:
        raise DatasetNotFound(f"{pattern}: expected a pattern without .. after its first *, ? or [")
    *parts, last = expanded.relative_to(base).parts
    directories = [base]
    for part in parts:
        directories = _enter(directories, part, check_step)
    if last == "**":
        directories, last = _enter(directories, last, check_step), "*"
    named = _match_part(directories, last)
    for path in filter(Path.is_symlink, named):
        check_step(path)
    matches = sorted(filter(Path.is_file, named))
    if not matches:
        raise DatasetNotFound(f"no file matches {pattern}")
    return _require_one_format(
        pattern, [_make_data_file(match, match.relative_to(base).as_posix()) for match in matches]
    )


def pattern_base(pattern: str) -> Path:
    """Returns the directory below which all files lie that match a pattern."""
    parts = Path(pattern).expanduser().parts
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first])


def _enter(directories: list[Path], part: str, check_step: Callable[[Path], object]) -> list[Path]:
    """Returns the directories in others that match a part of a pattern; for `**`, those at any depth and themselves."""
    if part != "**":
        return _enter_once(directories, part, check_step)
    reached: dict[Path, Path] = {}
    level = directories
    while level:
        new = {path.resolve(): path for path in reversed(level)}
        level = _enter_once([path for real, path in new.items() if real not in reached], "*", check_step)
        level.sort(key=Path.is_symlink)  # a directory that is there itself is not named by a link to it
        reached = new | reached
    return list(reached.values())


def _enter_once(directories: Iterable[Path], part: str, check_step: Callable[[Path], object]) -> list[Path]:
    matches = _match_part(directories, part)
    for path in matches:
        if path.is_symlink() or path.is_dir():
            check_step(path)
    return [path for path in matches if path.is_dir()]


def _match_part(directories: Iterable[Path], part: str) -> list[Path]:
    return [path / name for path in directories for name in glob.iglob(part, root_dir=path)]


def _find_in_directory(directory: Path) -> list[DataFile]:
    if any((directory / name).is_file() for name in SAVED_DATASET_FILES):
        return []
    files = [
        _make_data_file(path, path.name)
        for path in sorted(directory.iterdir())
        if _parse_suffix(path) is not None and not path.name.startswith((".", "_")) and path.is_file()
    ]
    splits = {match[1].lower(): file.name for file in files if (match := _SPLIT_WORD.search(file.name))}
    if len(splits) > 1:
        raise DatasetNotFound(
            f"{directory} has files of several splits ({', '.join(splits.values())}); expected those of one, or a "
            f"pattern that names the files to read, such as {directory}/{next(iter(splits))}*"
        )
    return _require_one_format(str(directory), files)


def _require_one_format(what: str, files: Sequence[DataFile]) -> list[DataFile]:
    formats = {file.format: file.name for file in files}
    if len(formats) > 1:
        raise DatasetNotFound(
            f"{what} names files of several types ({', '.join(formats.values())}); expected files of one type, or a "
            "pattern that names them"
        )
    return list(files)


def _make_data_file(path: Path, name: str) -> DataFile:
    parsed = _parse_suffix(path)
    if parsed is None:
        raise DatasetNotFound(f"{path} has an unknown suffix; expected {EXPECTED_SUFFIXES}")
    return DataFile(path, name, *parsed)


def _parse_suffix(path: Path) -> tuple[FileFormat, Codec | None] | None:
    codec = _CODECS.get(path.suffix.lower())
    file_format = FORMATS.get((path if codec is None else path.with_suffix("")).suffix.lower())
    if file_format is None or (codec is not None and file_format == "parquet"):
        return None
    return file_format, codec
