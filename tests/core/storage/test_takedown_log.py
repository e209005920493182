"""A document that was taken down is never shown again by any process."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from filelock import FileLock

from bergson_core import (
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
from bergson_core.errors import DocumentNotFound, IndexBusy, IndexNotFound, InvalidInput
from bergson_core.schemas.build import GradientSpec, ScoringSpec
from bergson_core.storage import index_lock, takedown_log
from bergson_core.storage.deletion import delete_index
from bergson_core.storage.document_lookup import find_document, find_documents, find_existing_ids
from tests import tiny
from tests.core.helpers import QUERIES, add_again_spec, document_ids, make_spec, query, result_ids
from tests.processes import forkserver_context


def test_a_document_is_hidden_at_once_from_an_index_that_is_open(index_copy):
    opened = AttributionIndex.open(index_copy)
    (before,) = opened.attribute([query(top_k=2)])
    take_down_document(index_copy, before.results[0].id)
    (after,) = opened.attribute([query(top_k=1)])
    assert (after.results[0].id, after.results[0].score) == (before.results[1].id, before.results[1].score)
    assert result_ids(opened) == document_ids(int(before.results[0].id.removeprefix("doc-")))


def test_a_document_stays_hidden_when_the_index_is_opened_again(index_copy):
    take_down_document(index_copy, "doc-7")
    take_down_document(index_copy, "doc-33")
    assert result_ids(AttributionIndex.open(index_copy)) == document_ids(7, 33)


@pytest.mark.parametrize("kind", ["rabitq", "sign"])
def test_a_document_is_hidden_whatever_finds_the_candidates(sources, tmp_path, kind):
    settings = GradientSpec(projection_dim=4, rows="sign" if kind == "sign" else "float16")
    search = {"kind": "auto" if kind == "sign" else "rabitq", "min_recall": 0.1}
    build_index(make_spec(sources, gradients=settings, search=search), tmp_path / "facts", shard_rows=16)
    take_down_document(tmp_path / "facts", "doc-7")
    assert result_ids(AttributionIndex.open(tmp_path / "facts")) == document_ids(7)
    compact_index(tmp_path / "facts")
    assert result_ids(AttributionIndex.open(tmp_path / "facts")) == document_ids(7)


def test_a_document_is_hidden_from_filters_and_profiles(index_copy, sample):
    fit_profile(index_copy, "work", sample, mixing=0.5)
    take_down_document(index_copy, "doc-7")
    opened = AttributionIndex.open(index_copy)
    assert result_ids(opened, filter={"number": {"gte": 6, "lte": 8}}) == {"doc-6", "doc-8"}
    assert result_ids(opened, profile="work") == document_ids(7)


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
    with pytest.raises(InvalidInput, match="no document with the id 'doc-7'"):
        find_document_numbers(opened, ["doc-7"])


def test_a_document_can_be_looked_up_until_it_is_taken_down(index_copy):
    document = find_document(index_copy, "doc-7")
    assert (document["prompt"], document["metadata"]) == (tiny.texts(40)[7], {"source": "wiki", "number": 7})
    assert find_existing_ids(index_copy, ["doc-8", "none", "doc-7"]) == ["doc-8", "doc-7"]
    found = find_documents(index_copy, ["doc-8", "none", "doc-7", "doc-7"])
    assert found == {name: find_document(index_copy, name) for name in ("doc-7", "doc-8")}
    take_down_document(index_copy, "doc-7")
    assert find_existing_ids(index_copy, ["doc-8", "none", "doc-7"]) == ["doc-8"]
    assert list(find_documents(index_copy, ["doc-8", "none", "doc-7"])) == ["doc-8"]
    with pytest.raises(DocumentNotFound, match="no document 'doc-7'"):
        find_document(index_copy, "doc-7")


def test_a_document_that_is_missing_or_hidden_cannot_be_taken_down(index_copy, tmp_path):
    with pytest.raises(DocumentNotFound):
        take_down_document(index_copy, "none")
    take_down_document(index_copy, "doc-7")
    with pytest.raises(DocumentNotFound):
        take_down_document(index_copy, "doc-7")
    with pytest.raises(IndexNotFound):
        take_down_document(tmp_path / "nothing", "doc-7")


def test_a_line_that_a_killed_process_left_unfinished_hides_nothing_and_spoils_no_other_line(index_copy):
    take_down_document(index_copy, "doc-7")
    with (index_copy / "takedowns.jsonl").open("a") as file:
        file.write('{"id": "doc-8", "gen')
    opened = AttributionIndex.open(index_copy)
    assert result_ids(opened) == document_ids(7)
    take_down_document(index_copy, "doc-9")
    assert result_ids(opened) == document_ids(7, 9)
    assert result_ids(AttributionIndex.open(index_copy)) == document_ids(7, 9)


def take_down_many(index: Path, numbers: range) -> None:
    for number in numbers:
        take_down_document(index, f"doc-{number}")


def test_takedowns_of_several_processes_are_all_kept(index_copy):
    context = forkserver_context()
    parts = [range(10), range(10, 20), range(20, 30)]
    processes = [context.Process(target=take_down_many, args=(index_copy, part)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert result_ids(AttributionIndex.open(index_copy)) == document_ids(*range(30))


@pytest.mark.parametrize("compacted", [False, True])
def test_an_id_that_was_taken_down_may_be_added_again(index_copy, compacted):
    take_down_document(index_copy, "doc-7")
    if compacted:
        compact_index(index_copy)
    append_documents(index_copy, add_again_spec())
    (answer,) = AttributionIndex.open(index_copy).attribute([query(top_k=40)])
    assert [row.prompt for row in answer.results if row.id == "doc-7"] == ["Person 7 moved away"]
    assert find_document(index_copy, "doc-7")["prompt"] == "Person 7 moved away"
    compact_index(index_copy)
    assert result_ids(AttributionIndex.open(index_copy)) == document_ids()
    take_down_document(index_copy, "doc-7")
    assert result_ids(AttributionIndex.open(index_copy)) == document_ids(7)


def test_an_open_index_sees_the_takedowns_of_a_restored_log_and_shows_nothing_that_it_has_hidden(index_copy):
    opened = AttributionIndex.open(index_copy)
    take_down_document(index_copy, "doc-7")
    copies = {path: path.read_bytes() for path in index_copy.glob("takedowns.*")}
    assert len(copies) == 2
    take_down_document(index_copy, "doc-8")
    assert result_ids(opened) == document_ids(7, 8)
    for path, content in copies.items():
        path.write_bytes(content)
    assert result_ids(opened) == document_ids(7, 8)
    take_down_document(index_copy, "doc-9")
    assert result_ids(opened) == document_ids(7, 8, 9)
    take_down_document(index_copy, "doc-10")
    assert result_ids(opened) == document_ids(7, 8, 9, 10)


def test_a_document_is_looked_up_and_taken_down_without_reading_the_whole_log_again(
    index_copy: Path, monkeypatch: pytest.MonkeyPatch
):
    parsed, parse = [], takedown_log._parse_line
    take_down_many(index_copy, range(10))
    monkeypatch.setattr(
        takedown_log, "_parse_line", lambda text, number: parsed.append(number) or parse(text, number)
    )
    find_document(index_copy, "doc-20")
    take_down_document(index_copy, "doc-11")
    assert find_existing_ids(index_copy, ["doc-9", "doc-11", "doc-12"]) == ["doc-12"]
    assert len(parsed) <= 2


def test_the_takedowns_of_a_deleted_index_hide_nothing_in_its_successor(index: Path, index_copy: Path):
    take_down_document(index_copy, "doc-7")
    with pytest.raises(DocumentNotFound):
        find_document(index_copy, "doc-7")
    delete_index(index_copy)
    shutil.copytree(index, index_copy)
    assert find_document(index_copy, "doc-7")["id"] == "doc-7"


def test_threads_may_look_documents_up_while_others_are_taken_down(index_copy: Path):
    with ThreadPoolExecutor(4) as threads:
        changes = threads.submit(take_down_many, index_copy, range(20))
        finds = [threads.submit(find_document, index_copy, "doc-30") for _ in range(60)]
        changes.result()
        assert {find.result()["id"] for find in finds} == {"doc-30"}
    assert find_existing_ids(index_copy, [f"doc-{k}" for k in range(22)]) == ["doc-20", "doc-21"]


def test_a_takedown_waits_for_another_and_names_one_that_does_not_end(
    index_copy: Path, monkeypatch: pytest.MonkeyPatch
):
    lock = FileLock(index_copy / ".takedowns.lock", thread_local=False)
    lock.acquire()
    (index_copy / ".takedowns.lock").touch()  # a process that gets the lock says since when it has it
    monkeypatch.setattr(index_lock, "TAKEDOWN_PATIENCE_S", 0.1)
    with pytest.raises(IndexBusy, match="a process that is stopped or hangs"):
        take_down_document(index_copy, "doc-7")
    monkeypatch.setattr(index_lock, "TAKEDOWN_PATIENCE_S", 30)
    threading.Timer(0.2, lock.release).start()
    take_down_document(index_copy, "doc-7")
    assert result_ids(AttributionIndex.open(index_copy)) == document_ids(7)
