"""A document that was taken down is never shown again by any process, and compaction removes its bytes."""

import json
import os
import shutil
import signal
from pathlib import Path

import pyarrow as pa
import pytest

from bergson_core import (
    AppendSpec,
    AttributionIndex,
    append_documents,
    build_index,
    compact_index,
    find_document_numbers,
    fit_profile,
    score_corpus,
    score_self_influence,
    take_down_document,
    top_documents,
)
from bergson_core.errors import DocumentNotFound, IndexNotFound, InvalidInput
from bergson_core.schemas.build import GradientSpec, ScoringSpec
from bergson_core.schemas.results import Progress
from bergson_core.storage.document_lookup import find_document, find_existing_ids
from bergson_core.storage.manifest import read_manifest
from tests import tiny
from tests.core.helpers import QUERIES, make_spec, query
from tests.processes import forkserver_context


@pytest.fixture
def facts(index, tmp_path) -> Path:
    """A copy of the index that may be changed."""
    return shutil.copytree(index, tmp_path / "facts")


def shown(index: AttributionIndex, **changes) -> set[str]:
    (answer,) = index.attribute([query(**({"top_k": 40, "direction": "both"} | changes))])
    return {row.id for rows in (answer.results, answer.opponents) for row in rows or ()}


def ids(*without: int) -> set[str]:
    return {f"doc-{k}" for k in range(40)} - {f"doc-{k}" for k in without}


def test_a_document_is_hidden_at_once_from_an_index_that_is_open(facts):
    opened = AttributionIndex.open(facts)
    (before,) = opened.attribute([query(top_k=2)])
    take_down_document(facts, before.results[0].id)
    (after,) = opened.attribute([query(top_k=1)])
    assert (after.results[0].id, after.results[0].score) == (before.results[1].id, before.results[1].score)
    assert shown(opened) == ids(int(before.results[0].id.removeprefix("doc-")))


def test_a_document_stays_hidden_when_the_index_is_opened_again(facts):
    take_down_document(facts, "doc-7")
    take_down_document(facts, "doc-33")
    assert shown(AttributionIndex.open(facts)) == ids(7, 33)


@pytest.mark.parametrize("kind", ["rabitq", "sign"])
def test_a_document_is_hidden_whatever_finds_the_candidates(sources, tmp_path, kind):
    settings = GradientSpec(projection_dim=4, rows="sign" if kind == "sign" else "float16")
    search = {"kind": "auto" if kind == "sign" else "rabitq", "min_recall": 0.1}
    build_index(make_spec(sources, gradients=settings, search=search), tmp_path / "facts", shard_rows=16)
    take_down_document(tmp_path / "facts", "doc-7")
    assert shown(AttributionIndex.open(tmp_path / "facts")) == ids(7)
    compact_index(tmp_path / "facts")
    assert shown(AttributionIndex.open(tmp_path / "facts")) == ids(7)


def test_a_document_is_hidden_from_filters_and_profiles(facts, sample):
    fit_profile(facts, "work", sample, mixing=0.5)
    take_down_document(facts, "doc-7")
    opened = AttributionIndex.open(facts)
    assert shown(opened, filter={"number": {"gte": 6, "lte": 8}}) == {"doc-6", "doc-8"}
    assert shown(opened, profile="work") == ids(7)


def test_a_document_is_hidden_from_the_scores_of_the_corpus(sources, tmp_path):
    spec = make_spec(sources, scoring=ScoringSpec(normalize="none"))
    build_index(spec, tmp_path / "facts", shard_rows=16)
    take_down_document(tmp_path / "facts", "doc-7")
    opened = AttributionIndex.open(tmp_path / "facts")
    scores = score_corpus(
        opened, [query(*prompt_and_completion) for prompt_and_completion in QUERIES]
    ).read_all()
    assert scores["id"].to_pylist() == [f"doc-{k}" for k in range(40) if k != 7]
    assert len(score_self_influence(opened).read_all()) == 39
    assert "doc-7" not in pa.table(top_documents(score_self_influence(opened), 40))["id"].to_pylist()
    with pytest.raises(InvalidInput, match="no document of the id 'doc-7'"):
        find_document_numbers(opened, ["doc-7"])


def test_a_document_can_be_looked_up_until_it_is_taken_down(facts):
    document = find_document(facts, "doc-7")
    assert (document["prompt"], document["metadata"]) == (tiny.texts(40)[7], {"source": "wiki", "number": 7})
    assert find_existing_ids(facts, ["doc-8", "none", "doc-7"]) == ["doc-8", "doc-7"]
    take_down_document(facts, "doc-7")
    assert find_existing_ids(facts, ["doc-8", "none", "doc-7"]) == ["doc-8"]
    with pytest.raises(DocumentNotFound, match="no document 'doc-7'"):
        find_document(facts, "doc-7")


def test_a_document_that_is_missing_or_hidden_cannot_be_taken_down(facts, tmp_path):
    with pytest.raises(DocumentNotFound):
        take_down_document(facts, "none")
    take_down_document(facts, "doc-7")
    with pytest.raises(DocumentNotFound):
        take_down_document(facts, "doc-7")
    with pytest.raises(IndexNotFound):
        take_down_document(tmp_path / "nothing", "doc-7")


def test_a_line_that_a_killed_process_left_unfinished_hides_nothing_and_spoils_no_other_line(facts):
    take_down_document(facts, "doc-7")
    with (facts / "takedowns.jsonl").open("a") as file:
        file.write('{"id": "doc-8", "gen')
    opened = AttributionIndex.open(facts)
    assert shown(opened) == ids(7)
    take_down_document(facts, "doc-9")
    assert shown(opened) == ids(7, 9)
    assert shown(AttributionIndex.open(facts)) == ids(7, 9)


def take_down_many(index: Path, numbers: range) -> None:
    for number in numbers:
        take_down_document(index, f"doc-{number}")


def test_takedowns_of_several_processes_are_all_kept(facts):
    context = forkserver_context()
    parts = [range(10), range(10, 20), range(20, 30)]
    processes = [context.Process(target=take_down_many, args=(facts, part)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert shown(AttributionIndex.open(facts)) == ids(*range(30))


def add_again(number: int = 7) -> AppendSpec:
    return AppendSpec(
        documents=({"id": f"doc-{number}", "text": "Person 7 moved away", "source": "x", "number": number},)
    )


@pytest.mark.parametrize("compacted", [False, True])
def test_an_id_that_was_taken_down_may_be_added_again(facts, compacted):
    take_down_document(facts, "doc-7")
    if compacted:
        compact_index(facts)
    append_documents(facts, add_again())
    (answer,) = AttributionIndex.open(facts).attribute([query(top_k=40)])
    assert [row.prompt for row in answer.results if row.id == "doc-7"] == ["Person 7 moved away"]
    assert find_document(facts, "doc-7")["prompt"] == "Person 7 moved away"
    compact_index(facts)
    assert shown(AttributionIndex.open(facts)) == ids()
    take_down_document(facts, "doc-7")
    assert shown(AttributionIndex.open(facts)) == ids(7)


def read_all_bytes(index: Path) -> bytes:
    paths = [path for path in sorted(index.rglob("*")) if path.is_file() and path.name != "takedowns.jsonl"]
    return b"".join(path.read_bytes() for path in paths)


def test_compaction_removes_the_bytes_and_changes_no_score(facts, sample):
    fit_profile(facts, "work", sample, mixing=0.5)
    opened = AttributionIndex.open(facts)
    texts = tiny.texts(40)
    number = next(k for k, text in enumerate(texts) if texts.count(text) == 1)
    row, text = opened.shards[number // 16].blocks[number % 16].tobytes(), texts[number].encode()
    take_down_document(facts, f"doc-{number}")
    queries = [query(top_k=39, profile=profile) for profile in ("default", "work")]
    before = [answer.results for answer in opened.attribute(queries)]
    assert row in read_all_bytes(facts)
    old = read_manifest(facts)
    new = compact_index(facts)
    assert (new.generation, new.rows, new.numbered, new.compacted) == (old.generation + 1, 39, 40, 1)
    assert row not in read_all_bytes(facts)
    assert text not in read_all_bytes(facts)
    after = [answer.results for answer in AttributionIndex.open(facts).attribute(queries)]
    for rows, rows_before in zip(after, before, strict=True):
        assert [(row.id, row.score, row.prompt) for row in rows] == [
            (row.id, row.score, row.prompt) for row in rows_before
        ]


def test_compaction_touches_no_shard_without_takedowns(facts):
    before = {shard.name: shard for shard in read_manifest(facts).shards}
    take_down_document(facts, "doc-7")
    after = compact_index(facts).shards
    assert [shard.name for shard in after] == ["00003", "00001", "00002"]
    assert [shard.first_row for shard in after] == [0, 15, 31]
    assert after[1].files == before["00001"].files
    repeated = compact_index(facts)
    assert repeated == read_manifest(facts)
    assert repeated.shards == after


def test_an_open_index_goes_on_answering_during_a_compaction(facts):
    opened = AttributionIndex.open(facts)
    take_down_document(facts, "doc-7")
    before = opened.attribute([query(top_k=39)])[0].results
    compact_index(facts)
    assert opened.attribute([query(top_k=39)])[0].results == before
    take_down_document(facts, "doc-8")
    assert shown(opened) == ids(7, 8)


def test_a_shard_without_remaining_documents_is_removed(facts):
    for number in range(32, 40):
        take_down_document(facts, f"doc-{number}")
    assert [shard.name for shard in compact_index(facts).shards] == ["00000", "00001"]
    assert shown(AttributionIndex.open(facts)) == ids(*range(32, 40))
    append_documents(facts, add_again(39))
    assert shown(AttributionIndex.open(facts)) == ids(*range(32, 39))


def test_an_index_whose_documents_are_all_taken_down_is_not_compacted(facts):
    for number in range(40):
        take_down_document(facts, f"doc-{number}")
    assert shown(AttributionIndex.open(facts)) == set()
    with pytest.raises(InvalidInput, match="delete the index"):
        compact_index(facts)


def compact_and_die(index: Path) -> None:
    def report(progress: Progress) -> None:
        if progress.stage == "search":
            os.kill(os.getpid(), signal.SIGKILL)

    compact_index(index, report=report)


def test_a_killed_compaction_leaves_the_index_and_its_takedowns(facts):
    take_down_document(facts, "doc-7")
    process = forkserver_context().Process(target=compact_and_die, args=(facts,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert read_manifest(facts).generation == 1
    assert shown(AttributionIndex.open(facts)) == ids(7)
    assert compact_index(facts).rows == 39


def test_a_takedown_during_a_compaction_is_not_lost(facts):
    take_down_document(facts, "doc-7")

    def report(progress: Progress) -> None:
        if progress.stage == "search" and len((facts / "takedowns.jsonl").read_text().splitlines()) == 1:
            take_down_document(facts, "doc-8")

    compact_index(facts, report=report)
    assert shown(AttributionIndex.open(facts)) == ids(7, 8)
    lines = [json.loads(line) for line in (facts / "takedowns.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["doc-7", "doc-8"]
    assert compact_index(facts).rows == 38
