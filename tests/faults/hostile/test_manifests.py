"""A file of an index or of the service that says something else than it should is refused by name, or means it.

Each file is changed in a way that its seal does not tell: by somebody who seals it anew, or by a program that drops
the seal.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, seed
from hypothesis import strategies as st

from bergson_core import AttributionIndex, build_index
from bergson_core.errors import BergsonError, Cancelled
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.indexing.output_directory import read_statistics_stamp, require_free_directory
from bergson_core.models.loading import load_model
from bergson_core.schemas.results import Answer
from bergson_core.shards.shard_writer import ShardPosition, find_finished_shard
from bergson_core.storage.integrity import find_damaged_files
from bergson_core.storage.manifest import Manifest, read_manifest
from bergson_core.storage.takedown_log import TakedownLog, record_takedown
from bergson_core.utils.sealed_json import SEAL_FIELD, seal
from service.auth.api_keys import Caller, KeyFile
from service.indexes.catalog import read_index_detail, read_index_page
from tests import tiny
from tests.core.helpers import make_spec, query, stop_after
from tests.faults.support.hostile_bodies import examples
from tests.faults.support.hostile_files import (
    Change,
    OpenedFiles,
    apply_change,
    bounded_cost,
    changes_of,
    damaged_texts,
    hostile_changes,
    outcome,
)

SCORING = {"scoring", "gradients"}
load_model_once = lru_cache(maxsize=8)(load_model)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an index in `indexes/facts`, a copy of it to change, and another one beside it, outside."""
    root = tmp_path_factory.mktemp("hostile")
    tiny.save_model(root / "model")
    tiny.save_documents(root / "documents.jsonl")
    build_index(make_spec(root), root / "indexes" / "facts", shard_rows=16)
    shutil.copytree(root / "indexes" / "facts", root / "outside")
    return root


def ask(index: Path) -> Answer:
    (answer,) = AttributionIndex.open(index, load_model=load_model_once).attribute([query(top_k=40)])
    if isinstance(answer, BergsonError):
        raise answer
    return answer


def scores(answer: Answer) -> dict[str, float]:
    return {row.id: row.score for row in answer.results or ()}


def seal_again(text: str, sealed: bool) -> bytes:
    return seal(text) if sealed and text.endswith("\n}") else text.encode()


@pytest.fixture
def opened_outside(root: Path) -> Iterator[OpenedFiles]:
    opened = OpenedFiles(root / "outside")
    yield opened
    opened.close()


def test_a_manifest_of_other_values_is_refused_by_name_or_means_what_it_says(
    root: Path, opened_outside: OpenedFiles, long_form: bool
) -> None:
    index = root / "indexes" / "facts"
    path = index / "manifest.json"
    original = path.read_bytes()
    fields = without_seal(original)
    expected = scores(ask(index))

    @seed(0)
    @examples(40, long_form)
    @given(
        hostile_changes(Manifest.model_json_schema()).map(
            lambda change: (change, apply_change(fields, change))
        ),
        st.booleans(),
    )
    def check(change: tuple[Change, str], sealed: bool) -> None:
        (place, filling), text = change
        path.write_bytes(seal_again(text, sealed))
        with bounded_cost((place, filling)):
            manifest = outcome(lambda: read_manifest(index))
            answer = outcome(lambda: ask(index))
            if isinstance(manifest, Manifest):
                outcome(lambda: find_damaged_files(index, manifest.all_files().values(), reread=True))
                outcome(lambda: TakedownLog(index, manifest.takedowns).read_new_lines())
            page = read_index_page(index.parent, {}, "", 10, lambda name: True).model_dump_json()
            detail = outcome(lambda: read_index_detail(index.parent, "facts").model_dump_json())
        assert opened_outside.names() == []
        assert "facts" in page
        assert isinstance(detail, str)
        if isinstance(answer, Answer):
            assert scores(answer).items() <= expected.items() or SCORING & set(place), (place, filling)
        else:
            assert "facts" in str(answer) or place[:2] == ("spec", "model"), answer

    try:
        check()
    finally:
        path.write_bytes(original)
    assert scores(ask(index)) == expected


def without_seal(content: bytes) -> Any:
    return {name: value for name, value in json.loads(content).items() if name != SEAL_FIELD}


def read_keys(directory: Path) -> object:
    return KeyFile(directory).read()


def read_log(directory: Path) -> object:
    return TakedownLog(directory).read_new_lines()


def find_damage(directory: Path) -> object:
    return find_damaged_files(directory, read_manifest(directory).all_files().values())


def find_shard(directory: Path) -> object:
    position = json.loads((directory.parent / "position.json").read_text())
    return find_finished_shard(directory, "00000", ShardPosition(0, position["source"]), 16)


READERS: dict[str, Callable[[Path], object]] = {
    ".checked.json": find_damage,
    "takedowns.head.json": read_log,
    "takedowns.jsonl": read_log,
    "statistics/processor.json": lambda directory: GradientProcessor.load(directory / "statistics"),
    "statistics/done": read_statistics_stamp,
    "building.json": lambda directory: require_free_directory(directory, make_spec(directory.parents[1])),
    "shards/00000/shard.json": find_shard,
    "keys.json": read_keys,
}


@pytest.fixture(scope="module")
def unfinished(root: Path) -> Path:
    """The directory of a build that was stopped, with takedowns and keys beside its files."""
    directory = root / "unfinished" / "facts"
    with pytest.raises(Cancelled):
        build_index(make_spec(root), directory, shard_rows=16, report=stop_after(20))
    entry = json.loads((directory / "shards" / "00000" / "shard.json").read_text())["entry"]
    (directory.parent / "position.json").write_text(json.dumps({"source": entry["source"]}))
    record_takedown(directory, "doc-1", lambda: 1)
    KeyFile(directory).create(Caller(name="ada"))
    return directory


@pytest.mark.parametrize("name", READERS)
def test_any_other_file_of_other_values_is_read_or_refused_by_name(
    root: Path, unfinished: Path, opened_outside: OpenedFiles, long_form: bool, name: str
) -> None:
    directory = root / "indexes" / "facts" if name == ".checked.json" else unfinished
    path, read = directory / name, READERS[name]
    original = path.read_bytes()
    changes = changes_of(without_seal(original)).map(
        lambda change: apply_change(without_seal(original), change)
    )

    @seed(0)
    @examples(10, long_form)
    @given(st.tuples(changes, st.booleans()) | damaged_texts(original.decode()))
    def check(content: bytes | tuple[str, bool]) -> None:
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif name.endswith(".jsonl"):
            path.write_bytes(content[0].replace("\n", "").encode() + b"\n")
        else:
            path.write_bytes(seal_again(*content))
        with bounded_cost(content):
            result = outcome(lambda: read(directory))
        assert opened_outside.names() == []
        if isinstance(result, BergsonError):
            assert "facts" in str(result) or "API keys" in str(result), result

    try:
        check()
    finally:
        path.write_bytes(original)
    assert not isinstance(outcome(lambda: read(directory)), BergsonError)
