"""`group_by` folds results into groups, each of which is shown by its best document and has the sum of the scores."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bergson_core import AttributionIndex, build_index, fit_profile, take_down_document
from bergson_core.attribution.follow_up.query_features import query_features
from bergson_core.attribution.groups.near_duplicates import group_near_duplicates
from bergson_core.errors import InvalidInput
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.results import Answer, ResultRow
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.search.exact_scores import ExactScorer
from bergson_core.search.projection_noise.score_noise import ScoreNoise, SumOfScores
from tests import tiny
from tests.core.helpers import make_spec, query, write_lines


@pytest.fixture(scope="module")
def index(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the index, since the words of its documents are written into its directory."""
    return shutil.copytree(index, tmp_path_factory.mktemp("words") / index.name)


@pytest.fixture
def opened(index: Path) -> AttributionIndex:
    return AttributionIndex.open(index)


def answer_of(opened: AttributionIndex, **fields: object) -> Answer:
    (answer,) = opened.attribute([query(**fields)])
    assert isinstance(answer, Answer), answer
    return answer


def all_rows(opened: AttributionIndex, **fields: object) -> list[ResultRow]:
    return answer_of(opened, top_k=1000, **fields).results


def test_a_group_of_a_column_has_the_sum_over_all_documents_with_the_value(opened):
    expected: dict[str, list[ResultRow]] = {}
    for row in all_rows(opened):
        expected.setdefault(row.metadata["source"], []).append(row)
    sums = {value: sum(row.score for row in rows) for value, rows in expected.items()}
    order = sorted(sums, key=lambda value: -sums[value])
    answer = answer_of(opened, group_by="source")
    assert [row.group.value for row in answer.results] == order
    assert [row.rank for row in answer.results] == list(range(1, len(order) + 1))
    for row in answer.results:
        rows = expected[row.group.value]
        assert row.group.score == pytest.approx(sums[row.group.value])
        assert [member.id for member in row.group.members] == [member.id for member in rows]
        assert row.group.count == len(rows)
        assert (row.id, row.score, row.percentile) == (rows[0].id, rows[0].score, rows[0].percentile)


def test_top_k_counts_groups_and_does_not_change_their_sums(opened):
    many, few = (answer_of(opened, group_by="number", top_k=top_k) for top_k in (10, 3))
    assert few.results == many.results[:3]
    assert len(many.results) == 10


def test_opponents_are_folded_the_other_way_round(opened):
    answer = answer_of(opened, group_by="source", direction="both")
    by_value = {row.group.value: row.group for row in answer.results}
    assert [row.group.value for row in answer.opponents] == [row.group.value for row in answer.results][::-1]
    for row in answer.opponents:
        same = by_value[row.group.value]
        assert row.group.score == pytest.approx(same.score)
        assert row.group.members[0] == same.members[-1], "the strongest opponent stands for the group"


@pytest.mark.parametrize("rows", ["float16", "sign"])
def test_near_duplicates_are_folded_as_the_library_groups_them(sources, tmp_path, rows):
    lines = [json.loads(line) for line in (sources / "documents.jsonl").read_text().splitlines()]
    copies = [line | {"id": f"copy-{number}"} for number, line in enumerate(lines[:5])]
    write_lines(tmp_path / "documents.jsonl", *lines, *copies)
    spec = make_spec(
        sources,
        dataset={"path": str(tmp_path / "documents.jsonl")},
        gradients={"projection_dim": 4, "rows": rows},
    )
    build_index(spec, tmp_path / "facts", shard_rows=16)
    opened = AttributionIndex.open(tmp_path / "facts")
    ids = [id for shard in opened.shards for id in shard.documents["id"].to_pylist()]
    groups = group_near_duplicates(opened, range(len(ids)))
    expected = {frozenset(ids[number] for number in group) for group in groups}
    answer = answer_of(opened, group_by="near_duplicates", top_k=100)
    assert {frozenset(member.id for member in row.group.members) for row in answer.results} == expected
    assert any({lines[0]["id"], "copy-0"} <= group for group in expected)
    scores = {row.id: row.score for row in all_rows(opened)}
    for row in answer.results:
        assert row.group.value is None
        assert row.group.score == pytest.approx(sum(scores[member.id] for member in row.group.members))
    assert [row.group.score for row in answer.results] == sorted(
        (row.group.score for row in answer.results), reverse=True
    )


def test_documents_without_a_value_are_one_group_and_lists_count_as_a_whole(sources, tmp_path):
    texts = ["a b c", "d e f", "g h i", "j k l", "m n o"]
    values = [["x", "y"], ["y", "x"], None, None, ["x", "y"]]
    rows = [
        {"id": str(k), "text": text, "tags": tags}
        for k, (text, tags) in enumerate(zip(texts, values, strict=True))
    ]
    write_lines(tmp_path / "documents.jsonl", *rows)
    spec = make_spec(
        sources,
        dataset={"path": str(tmp_path / "documents.jsonl")},
        columns=ColumnsSpec(id="id", metadata=("tags",)),
    )
    build_index(spec, tmp_path / "facts")
    answer = answer_of(AttributionIndex.open(tmp_path / "facts"), group_by="tags")
    groups = {
        json.dumps(row.group.value): {member.id for member in row.group.members} for row in answer.results
    }
    assert groups == {'["x", "y"]': {"0", "4"}, '["y", "x"]': {"1"}, "null": {"2", "3"}}


def test_groups_go_with_filters_modules_verification_and_words(opened):
    answer = answer_of(
        opened,
        group_by="source",
        filter={"number": {"lt": 12}},
        include=["modules", "words"],
        verify={"top": 1, "controls": 1, "together": True},
    )
    best = answer.results[0]
    assert all(
        int(member.id.removeprefix("doc-")) < 12 for row in answer.results for member in row.group.members
    )
    assert sum(best.modules.values()) == pytest.approx(best.score, rel=1e-4)
    assert (best.metadata, best.words is None, best.verified is None) == (None, False, False)
    assert answer.verification.together.ids == [best.id]


@pytest.mark.parametrize("fields", [{}, {"filter": {"number": {"lt": 30}}}, {"instead_of": " company 2."}])
def test_the_interval_of_a_group_is_that_of_the_sum_of_its_scores_given_its_rank(opened, fields):
    """In both directions, from φ of the rows in float64."""
    answer = answer_of(opened, group_by="source", direction="both", **fields)
    features = query_features(opened.answerer, query(**fields), answer.query).double()
    scorer, noise = ExactScorer(opened.shards, opened.profiles["default"]), ScoreNoise.of(opened.manifest)
    ids = [id for shard in opened.shards for id in shard.documents["id"].to_pylist()]
    shards = np.repeat(np.arange(len(opened.shards)), [shard.entry.rows for shard in opened.shards])
    offsets = np.concatenate([np.arange(shard.entry.rows) for shard in opened.shards])
    for rows, is_lowest in ((answer.results, False), (answer.opponents, True)):
        for row in rows:
            numbers = np.array([ids.index(member.id) for member in row.group.members])
            total = SumOfScores(noise)
            for phi in scorer.iter_features(shards[numbers], offsets[numbers]):
                total.add(phi.double(), features)
            expected = total.error().interval_of_group(total.total, row.rank, len(rows), is_lowest=is_lowest)
            assert row.group.interval == pytest.approx(expected, rel=1e-4, abs=1e-5)
            low, high = row.group.interval
            assert low < row.group.score < high


def test_where_not_all_documents_are_folded_an_interval_reaches_as_far_as_those_of_the_members(
    opened, monkeypatch
):
    for module in ("bergson_core.schemas.query", "bergson_core.attribution.follow_up.group_folding"):
        monkeypatch.setattr(f"{module}.GROUP_DEPTH", 12)
    answer = answer_of(opened, group_by="source", direction="both")
    for name, end in (("results", 0), ("opponents", 1)):
        single = {
            row.id: row.interval for row in getattr(answer_of(opened, top_k=12, direction="both"), name)
        }
        groups = [row.group for row in getattr(answer, name)]
        assert sum(group.count for group in groups) == 12
        for group in groups:
            reach = sum(single[member.id][end] for member in group.members)
            assert group.interval[end] == pytest.approx(reach, rel=1e-4)


def test_a_group_is_as_strong_as_the_mean_of_its_members(tmp_path, sources):
    path = tiny.save_documents(tmp_path / "documents.jsonl", 150)
    with path.open("a") as file:
        line = {"id": "doc-150", "text": "company 2 and company 2 lives in company 2.", "source": "web"}
        file.write(json.dumps(line | {"number": 150}) + "\n")
    spec = make_spec(sources, dataset={"path": str(path)}, gradients={"projection_dim": 16})
    build_index(spec, tmp_path / "facts")
    opened, asked = AttributionIndex.open(tmp_path / "facts"), {"top_k": 151, "completion": line["text"]}
    grouped = answer_of(opened, prompt="", group_by="number", **asked).results
    singles = {row.group.value: row for row in grouped}
    (plain,) = opened.attribute([query(prompt="", **asked)])
    assert len({row.group.strength for row in singles.values()}) > 1
    for row in plain.results:
        group = singles[int(row.id.removeprefix("doc-"))].group
        assert group.strength == row.strength, "a group of one document is as strong as the document"
        assert group.interval == pytest.approx(row.interval, rel=1e-3)
    for row in answer_of(opened, prompt="", group_by="source", **asked).results:
        assert row.group.strength == "none", "the mean of half of all documents stands out nowhere"


def test_groups_have_no_strength_where_results_have_none(opened, index_copy, sample):
    answer = answer_of(opened, group_by="source", direction="both")
    assert {row.group.strength for row in answer.opponents} == {None}
    fit_profile(index_copy, "task", sample)
    other = AttributionIndex.open(index_copy)
    for row in answer_of(other, group_by="source", profile="task").results:
        assert (row.group.strength, row.group.interval is None) == (None, False)


def test_groups_of_rows_that_do_not_show_their_noise_have_no_interval(sources, tmp_path):
    build_index(make_spec(sources, gradients={"projection_dim": 1}), tmp_path / "facts")
    answer = answer_of(AttributionIndex.open(tmp_path / "facts"), group_by="source")
    assert {(row.group.interval, row.group.strength) for row in answer.results} == {(None, None)}


def test_documents_that_were_taken_down_are_in_no_group(sources, tmp_path):
    build_index(make_spec(sources), tmp_path / "facts")
    opened = AttributionIndex.open(tmp_path / "facts")
    before = answer_of(opened, group_by="source").results[0]
    gone = before.group.members[1]
    take_down_document(tmp_path / "facts", gone.id)
    after = answer_of(opened, group_by="source")
    (group,) = (row.group for row in after.results if row.group.value == before.group.value)
    assert gone.id not in {member.id for member in group.members}
    assert group.score == pytest.approx(before.group.score - gone.score)


def test_an_answer_without_a_document_has_it_in_no_group(opened):
    answer = answer_of(opened, group_by="source")
    first = answer.results[0]
    left = answer.without({first.group.members[-1].id}).results[0].group
    assert (left.interval, left.strength) == (None, None), "they were those of another sum"
    assert left.count == first.group.count - 1
    assert left.score == pytest.approx(first.group.score - first.group.members[-1].score)
    assert left.members == first.group.members[:-1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group_by": "colour"}, "expected 'document', 'near_duplicates' or a metadata column, got 'colour'"),
        ({"group_by": "source", "rescore": 5}, "rescore: groups are sums"),
        ({"group_by": "source", "include": ["tokens"]}, "no tokens in include"),
        ({"group_by": "near_duplicates", "order": "words"}, "order: groups are sums"),
        ({"group_by": ""}, "group_by: expected at least 1"),
        ({"group_by": "source", "profile": "law"}, "no profile 'law'"),
    ],
)
def test_what_groups_do_not_go_with_is_refused(opened, fields, message):
    with pytest.raises(InvalidInput, match=message):
        opened.query("Person 3 lives in", " city 1.", **fields)


def test_a_behaviour_is_answered_in_groups(sources, tmp_path):
    build_index(make_spec(sources), tmp_path / "facts")
    opened = AttributionIndex.open(tmp_path / "facts")
    opened.behaviours.create("cities", [{"prompt": "Person 3 lives in", "completion": " city 1."}])
    (answer,) = opened.attribute([AttributionQuery(behaviour="cities", group_by="source")])
    assert sum(row.group.count for row in answer.results) == 40
    for row in answer.results:
        low, high = row.group.interval
        assert low < row.group.score < high
        assert row.group.strength is None
