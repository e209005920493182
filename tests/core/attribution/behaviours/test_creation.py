"""A behaviour is created whole or not at all, from queries that were all checked before, and belongs to its index."""

import json
import shutil

import pytest

from bergson_core import AttributionIndex, append_documents, build_index, compact_index, score_corpus
from bergson_core.attribution.behaviours import creation
from bergson_core.errors import (
    BehaviourExists,
    BehaviourNotFound,
    Cancelled,
    IndexBusy,
    IndexCorrupt,
    InvalidInput,
    TooLong,
)
from bergson_core.schemas.behaviours.spec import MAX_BEHAVIOUR_QUERIES
from bergson_core.schemas.build import AppendSpec, GradientSpec
from bergson_core.storage.document_lookup import take_down_document
from bergson_core.storage.index_lock import lock_index
from tests.core.attribution.behaviours.test_scores import CONTROL, QUERIES, scores_of
from tests.core.helpers import make_spec, query


@pytest.fixture
def opened(index_copy) -> AttributionIndex:
    return AttributionIndex.open(index_copy)


def files_of(index_copy) -> set[str]:
    return {str(path.relative_to(index_copy)) for path in (index_copy / "behaviours").rglob("*")}


def test_a_behaviour_shows_its_queries_as_they_were_given(opened):
    made = opened.behaviours.create("living", QUERIES, CONTROL)
    assert made == opened.behaviours.get("living")
    assert (made.queries, made.control) == (QUERIES, CONTROL)
    assert (made.query_count, made.control_count, made.generation) == (5, 3, 1)
    answers = opened.attribute([query(**each) for each in QUERIES])
    assert made.loss == pytest.approx(sum(answer.query.loss for answer in answers) / 5, rel=1e-4)
    assert made.n_tokens == sum(answer.query.n_tokens for answer in answers)
    assert made.control_loss is not None
    opened.behaviours.create("a", QUERIES)
    assert [each.name for each in opened.behaviours.list()] == ["a", "living"]
    assert opened.behaviours.get("a").control is opened.behaviours.get("a").control_loss is None


BAD_QUERIES = {
    "no completion": ({"prompt": "x"}, InvalidInput, r"queries\.2\.completion.*got none"),
    "no prompt": ({"completion": " x"}, InvalidInput, r"queries\.2\.prompt"),
    "an unknown field": ({"prompt": "x", "completion": "y", "top_k": 3}, InvalidInput, r"queries\.2\.top_k"),
    "a span outside": (
        {"prompt": "x", "completion": " y", "span": [0, 9]},
        InvalidInput,
        r"queries\.2\.span: expected 0",
    ),
    "the same instead": (
        {"prompt": "x", "completion": " y", "instead_of": " y"},
        InvalidInput,
        r"queries\.2\.instead_of",
    ),
    "nothing to attribute": (
        {"prompt": "", "completion": "a"},
        InvalidInput,
        r"queries\.2: nothing to attribute",
    ),
    "too long": ({"prompt": "a long text " * 90, "completion": " b"}, TooLong, r"queries\.2: "),
    "a user's last turn": (
        {"messages": [{"role": "user", "content": "hi"}]},
        InvalidInput,
        r"queries\.2\.messages\.0\.role",
    ),
}


@pytest.mark.parametrize(("bad", "error", "message"), BAD_QUERIES.values(), ids=BAD_QUERIES)
def test_a_bad_query_is_named_by_its_number_before_any_query_is_computed(
    opened, index_copy, monkeypatch, bad, error, message
):
    monkeypatch.setattr(creation, "collect_query_rows", lambda *_: pytest.fail("a query was computed"))
    with pytest.raises(error, match=message):
        opened.behaviours.create("living", [*QUERIES[:2], bad, *QUERIES[2:]])
    with pytest.raises(error, match=message.replace("queries", "control")):
        opened.behaviours.create("living", QUERIES, [*CONTROL[:2], bad])
    assert not files_of(index_copy)


@pytest.mark.parametrize(
    ("name", "queries", "control", "message"),
    [
        ("living", [], None, "queries: .*at least 1"),
        ("living", QUERIES, [], "control: .*at least 1"),
        ("living", QUERIES, list(reversed(QUERIES)), "control: the control set is the set of queries itself"),
        ("living", QUERIES, [*QUERIES, *QUERIES], "control: the control set is the set of queries itself"),
        (
            "living",
            [{"prompt": "Person 1", "completion": "lives", "join": "space"}],
            [{"prompt": "Person 1", "completion": " lives"}],
            "control: the control set is the set of queries itself",
        ),
        ("Living", QUERIES, None, "name"),
        ("../x", QUERIES, None, "name"),
        ("living", QUERIES[:1] * (MAX_BEHAVIOUR_QUERIES + 1), None, "queries: .*4096"),
    ],
)
def test_what_is_no_behaviour_is_refused(opened, index_copy, name, queries, control, message):
    with pytest.raises(InvalidInput, match=message):
        opened.behaviours.create(name, queries, control)
    assert not files_of(index_copy)


def test_a_name_is_taken_until_the_behaviour_is_deleted(opened, index_copy):
    opened.behaviours.create("living", QUERIES)
    with pytest.raises(BehaviourExists, match="'living' already"):
        opened.behaviours.create("living", CONTROL)
    opened.behaviours.delete("living")
    assert not files_of(index_copy)
    with pytest.raises(BehaviourNotFound, match="it has none"):
        opened.behaviours.delete("living")
    opened.behaviours.create("living", CONTROL)
    assert opened.behaviours.get("living").queries == CONTROL


def test_a_call_that_is_repeated_with_its_key_creates_the_behaviour_once(opened):
    first = opened.behaviours.create("living", QUERIES, key="job-1")
    again = opened.behaviours.create("living", QUERIES, key="job-1")
    assert first == again
    with pytest.raises(BehaviourExists):
        opened.behaviours.create("living", QUERIES, key="job-2")


def test_progress_counts_queries_and_a_call_that_is_stopped_leaves_nothing(opened, index_copy, monkeypatch):
    monkeypatch.setattr(creation, "_QUERIES_A_STEP", 2)
    seen = []
    opened.behaviours.create("living", QUERIES, CONTROL, report=seen.append)
    assert {each.stage for each in seen} == {"read", "gradients"}
    assert {each.unit for each in seen} == {"queries"}
    assert (seen[-1].done, seen[-1].total) == (8, 8)
    before = files_of(index_copy)

    def stop(progress):
        if progress.stage == "gradients" and progress.done >= 4:
            raise Cancelled("stopped by the test")

    def refuse():
        raise Cancelled("not confirmed")

    for callbacks in ({"report": stop}, {"confirm": refuse}):
        with pytest.raises(Cancelled):
            opened.behaviours.create("other", QUERIES, CONTROL, **callbacks)
        assert files_of(index_copy) == before


def test_what_a_killed_call_has_left_is_no_behaviour_and_is_removed(opened, index_copy):
    opened.behaviours.create("living", QUERIES)
    for name in (".other.1.tmp", ".other.2.deleted"):
        shutil.copytree(index_copy / "behaviours" / "living", index_copy / "behaviours" / name)
    assert [each.name for each in opened.behaviours.list()] == ["living"]
    compact_index(index_copy)
    assert {path.name for path in (index_copy / "behaviours").iterdir()} == {"living"}


def test_a_behaviour_outlives_appends_and_compactions(opened, index_copy):
    opened.behaviours.create("living", QUERIES, CONTROL)
    before = scores_of(opened, behaviour="living")
    added = {"id": "new", "text": "Person 3 moved", "source": "x", "number": 99}
    append_documents(index_copy, AppendSpec(documents=(added,)))
    take_down_document(index_copy, "doc-3")
    compact_index(index_copy)
    after = scores_of(AttributionIndex.open(index_copy), behaviour="living")
    assert after.keys() == before.keys() - {"doc-3"} | {"new"}


def test_a_behaviour_is_not_created_while_another_process_writes_to_the_index(opened, index_copy):
    with lock_index(index_copy), pytest.raises(IndexBusy):
        opened.behaviours.create("living", QUERIES)


def test_a_behaviour_of_another_index_with_another_processor_is_refused(
    opened, index_copy, sources, tmp_path
):
    opened.behaviours.create("living", QUERIES)
    other = tmp_path / "other"
    build_index(make_spec(sources, gradients=GradientSpec(projection_dim=4, seed=1)), other)
    shutil.copytree(index_copy / "behaviours", other / "behaviours")
    index = AttributionIndex.open(other)
    with pytest.raises(InvalidInput, match="made with another processor"):
        index.query(behaviour="living")


@pytest.mark.parametrize("name", ["gradients.bin", "scales.bin", "queries.jsonl", "behaviour.json"])
def test_a_damaged_behaviour_is_told_and_hurts_no_other_query(opened, index_copy, name):
    opened.behaviours.create("living", QUERIES, CONTROL)
    path = index_copy / "behaviours" / "living" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    index = AttributionIndex.open(index_copy)
    with pytest.raises(IndexCorrupt, match="behaviour 'living' of facts is damaged"):
        index.behaviours.get("living") if name == "queries.jsonl" else index.query(behaviour="living")
    assert index.query("Person 3", " lives").results
    index.behaviours.delete("living")
    index.behaviours.create("living", QUERIES)
    assert index.query(behaviour="living").results


def test_the_record_says_what_it_was_made_with_and_is_sealed(opened, index_copy):
    opened.behaviours.create("living", QUERIES)
    record = json.loads((index_copy / "behaviours" / "living" / "behaviour.json").read_bytes())
    assert record["processor"] == opened.processor.fingerprint()
    assert list(record)[-1] == "sha256"


def test_documents_are_not_scored_with_a_behaviour_among_queries(opened):
    opened.behaviours.create("living", QUERIES)
    with pytest.raises(InvalidInput, match="score_behaviour"):
        score_corpus(opened, [query(None, None, behaviour="living")])
