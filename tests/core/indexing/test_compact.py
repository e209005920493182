"""Compaction removes the bytes of documents that were taken down, and changes no score."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from bergson_core import (
    AttributionIndex,
    append_documents,
    compact_index,
    fit_profile,
    take_down_document,
)
from bergson_core.errors import InvalidInput
from bergson_core.schemas.results import Progress
from bergson_core.search import local_searcher
from bergson_core.storage.manifest import Manifest, ShardEntry, read_manifest
from tests import tiny
from tests.core.helpers import add_again_spec, document_ids, query, result_ids
from tests.processes import forkserver_context


def read_all_bytes(index: Path) -> bytes:
    paths = [path for path in sorted(index.rglob("*")) if path.is_file() and path.name != "takedowns.jsonl"]
    return b"".join(path.read_bytes() for path in paths)


def test_compaction_removes_the_bytes_and_changes_no_score(index_copy, sample):
    fit_profile(index_copy, "work", sample, mixing=0.5)
    opened = AttributionIndex.open(index_copy)
    texts = tiny.texts(40)
    number = next(k for k, text in enumerate(texts) if texts.count(text) == 1)
    row, text = opened.shards[number // 16].blocks[number % 16].tobytes(), texts[number].encode()
    take_down_document(index_copy, f"doc-{number}")
    queries = [query(top_k=39, profile=profile) for profile in ("default", "work")]
    before = [answer.results for answer in opened.attribute(queries)]
    assert row in read_all_bytes(index_copy)
    old = read_manifest(index_copy)
    new = compact_index(index_copy)
    assert (new.generation, new.rows, new.numbered, new.compacted) == (old.generation + 1, 39, 40, 1)
    assert row not in read_all_bytes(index_copy)
    assert text not in read_all_bytes(index_copy)
    after = [answer.results for answer in AttributionIndex.open(index_copy).attribute(queries)]
    for rows, rows_before in zip(after, before, strict=True):
        assert [(row.id, row.score, row.prompt) for row in rows] == [
            (row.id, row.score, row.prompt) for row in rows_before
        ]


@pytest.mark.parametrize("partial", [False, True])
def test_an_index_that_is_compacted_while_it_is_opened_is_open_whole(index_copy, monkeypatch, partial):
    take_down_document(index_copy, "doc-7")
    find_damaged_shards = local_searcher.find_damaged_shards

    def compact_first(root: Path, manifest: Manifest, shards: Sequence[ShardEntry]) -> dict[str, str]:
        if manifest.generation == 1:
            compact_index(root)
        return find_damaged_shards(root, manifest, shards)

    monkeypatch.setattr(local_searcher, "find_damaged_shards", compact_first)
    opened = AttributionIndex.open(index_copy, partial=partial)
    (answer,) = opened.attribute([query(top_k=40)])
    assert opened.manifest.generation == 2
    assert len(answer.results) == 39


def test_compaction_touches_no_shard_without_takedowns(index_copy):
    before = {shard.name: shard for shard in read_manifest(index_copy).shards}
    take_down_document(index_copy, "doc-7")
    after = compact_index(index_copy).shards
    assert [shard.name for shard in after] == ["00003", "00001", "00002"]
    assert [shard.first_row for shard in after] == [0, 15, 31]
    assert after[1].files == before["00001"].files
    repeated = compact_index(index_copy)
    assert repeated == read_manifest(index_copy)
    assert repeated.shards == after


def test_an_open_index_goes_on_answering_during_a_compaction(index_copy):
    opened = AttributionIndex.open(index_copy)
    take_down_document(index_copy, "doc-7")
    before = opened.attribute([query(top_k=39)])[0].results
    compact_index(index_copy)
    assert opened.attribute([query(top_k=39)])[0].results == before
    take_down_document(index_copy, "doc-8")
    assert result_ids(opened) == document_ids(7, 8)


def test_a_shard_without_remaining_documents_is_removed(index_copy):
    for number in range(32, 40):
        take_down_document(index_copy, f"doc-{number}")
    assert [shard.name for shard in compact_index(index_copy).shards] == ["00000", "00001"]
    assert result_ids(AttributionIndex.open(index_copy)) == document_ids(*range(32, 40))
    append_documents(index_copy, add_again_spec(39))
    assert result_ids(AttributionIndex.open(index_copy)) == document_ids(*range(32, 39))


def test_an_index_whose_documents_are_all_taken_down_is_not_compacted(index_copy):
    for number in range(40):
        take_down_document(index_copy, f"doc-{number}")
    assert result_ids(AttributionIndex.open(index_copy)) == set()
    with pytest.raises(InvalidInput, match="delete the index"):
        compact_index(index_copy)


def compact_and_die(index: Path) -> None:
    def report(progress: Progress) -> None:
        if progress.stage == "search":
            os.kill(os.getpid(), signal.SIGKILL)

    compact_index(index, report=report)


def test_a_killed_compaction_leaves_the_index_and_its_takedowns(index_copy):
    take_down_document(index_copy, "doc-7")
    process = forkserver_context().Process(target=compact_and_die, args=(index_copy,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert read_manifest(index_copy).generation == 1
    assert result_ids(AttributionIndex.open(index_copy)) == document_ids(7)
    assert compact_index(index_copy).rows == 39


def test_a_takedown_during_a_compaction_is_not_lost(index_copy):
    take_down_document(index_copy, "doc-7")

    def report(progress: Progress) -> None:
        if progress.stage == "search" and len((index_copy / "takedowns.jsonl").read_text().splitlines()) == 1:
            take_down_document(index_copy, "doc-8")

    compact_index(index_copy, report=report)
    assert result_ids(AttributionIndex.open(index_copy)) == document_ids(7, 8)
    lines = [json.loads(line) for line in (index_copy / "takedowns.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["doc-7", "doc-8"]
    assert compact_index(index_copy).rows == 38
