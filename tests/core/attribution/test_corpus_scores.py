"""Every document has the score that the definition and an answer give it; memory holds a part of a shard at a time."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset

from bergson_core import (
    AttributionIndex,
    ScoreTotals,
    build_index,
    fit_profile,
    score_corpus,
    score_self_influence,
    top_documents,
)
from bergson_core.attribution import corpus_scores, query_weights
from bergson_core.attribution.soft_threshold import soft_threshold
from bergson_core.errors import ColumnNotFound, InvalidInput, TooLong
from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.schemas.build import ColumnsSpec, GradientSpec, ScoringSpec
from bergson_core.shards.shard import Shard
from bergson_core.storage.layout import preconditioner_path
from tests.core.helpers import SCORING_CASES, make_spec, query, rows_by_definition, scores_by_definition

ASKED = [
    query("Person 3 lives in", " city 1.", top_k=40),
    query("Person 5 lives in city 2 and works", " for company 1.", top_k=40),
    query("", "Person 6", top_k=40),
]


@pytest.fixture
def opened(index) -> AttributionIndex:
    return AttributionIndex.open(index)


@pytest.mark.parametrize("aggregate", ["mean", "max", "each"])
def test_a_threshold_draws_each_querys_scores_in_before_they_are_summed(opened, aggregate):
    asked = [one.model_copy(update={"index": "facts"}) for one in ASKED]
    plain = score_corpus(opened, asked, aggregate="each").read_all()["scores"].combine_chunks()
    expected = soft_threshold(np.asarray(plain.flatten()).reshape(40, 3).T, 2).T
    found = score_corpus(opened, asked, aggregate=aggregate, threshold=2).read_all()
    if aggregate == "each":
        values = np.asarray(found["scores"].combine_chunks().flatten()).reshape(40, 3)
    else:
        values, expected = np.asarray(found["score"]), getattr(expected, aggregate)(1)
    assert (expected == 0).any() and (expected != 0).any()
    np.testing.assert_allclose(values, expected, atol=1e-5)


@pytest.fixture
def small_reads(monkeypatch):
    """Five rows of 128 numbers at a time, where shards have 16."""
    monkeypatch.setattr(corpus_scores, "_CHUNK_NUMBERS", 5 * 128 + 1)


@pytest.mark.parametrize("part", [slice(None), slice(3, 7), slice(10, 1000), slice(16, 32)])
def test_rows_that_are_read_in_order_are_those_that_are_mapped(opened, part):
    for shard in opened.shards:
        places = np.arange(shard.entry.rows)[part]
        torch.testing.assert_close(shard.rows(part), shard.rows(places), rtol=0, atol=0)


def scores_by_answers(opened: AttributionIndex, asked=ASKED) -> torch.Tensor:
    """Scores [40, q] as `attribute` gives them."""
    scores = torch.full((40, len(asked)), torch.nan)
    for column, answer in enumerate(opened.attribute(asked)):
        for row in answer.results:
            scores[int(row.id.removeprefix("doc-")), column] = row.score
    return scores


def column(scores: pa.RecordBatchReader, name: str = "score") -> torch.Tensor:
    return torch.tensor(scores.read_all()[name].to_pylist())


def close(found: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    """Within `share` of the largest."""
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=0, atol=share * expected.abs().max().item()
    )


@pytest.mark.parametrize(("rows", "normalize", "preconditioner"), SCORING_CASES)
def test_scores_are_those_of_the_definition_and_of_answers(
    sources, tmp_path, small_reads, rows, normalize, preconditioner
):
    spec = make_spec(
        sources,
        gradients=GradientSpec(projection_dim=4, rows=rows),
        scoring=ScoringSpec(normalize=normalize, preconditioner=preconditioner),
    )
    path = tmp_path / "facts"
    build_index(spec, path, shard_rows=16)
    opened = AttributionIndex.open(path)
    each = column(score_corpus(opened, ASKED, aggregate="each"), "scores")
    close(each, scores_by_answers(opened), 1e-4)
    if (rows, normalize) != ("sign", "row"):  # which that definition has not
        expected = torch.stack([scores_by_definition(path, spec, one) for one in ASKED], 1)
        close(each, expected, 2e-2 if rows == "int8" else 2e-3)
    close(column(score_corpus(opened, ASKED)), each.mean(1), 1e-5)
    close(column(score_corpus(opened, ASKED, aggregate="max")), each.amax(1), 1e-5)


def test_a_dataset_of_queries_is_read_by_its_columns(opened):
    texts = {"q": [one.prompt for one in ASKED], "a": [one.completion for one in ASKED]}
    dataset, columns = Dataset.from_dict(texts), ColumnsSpec(prompt="q", completion="a")
    close(column(score_corpus(opened, dataset, columns)), column(score_corpus(opened, ASKED)), 1e-6)


def test_many_queries_keep_their_order(opened, monkeypatch):
    monkeypatch.setattr("bergson_core.data.documents.READ_CHUNK_SIZE", 2)
    monkeypatch.setattr(query_weights, "READ_CHUNK_SIZE", 2)
    asked = [
        query(f"Person {k} lives in", f" city {k}." + " and works" * (k % 3), top_k=40) for k in range(7)
    ]
    each = column(score_corpus(opened, asked, aggregate="each"), "scores")
    close(each, scores_by_answers(opened, asked), 1e-4)


def test_another_profile_scores_by_its_own_preconditioner(sources, tmp_path):
    spec = make_spec(sources, scoring=ScoringSpec(normalize="none"))
    path = tmp_path / "facts"
    build_index(spec, path, shard_rows=16)
    sample = Dataset.from_dict(
        {"prompt": [f"Person {k} works" for k in range(9)], "completion": [" for company 2."] * 9}
    )
    fit_profile(path, "work", sample, mixing=0.7)
    opened = AttributionIndex.open(path)
    asked = [one.model_copy(update={"profile": "work"}) for one in ASKED]
    each = column(score_corpus(opened, asked, aggregate="each", profile="work"), "scores")
    close(each, scores_by_answers(opened, asked), 1e-4)
    rows = torch.cat([shard.rows(slice(None)) for shard in opened.shards])
    expected = Preconditioner.load(preconditioner_path(path, "work")).apply(rows).square().sum((1, 2))
    close(column(score_self_influence(opened, profile="work")), expected, 1e-5)


def test_rows_carry_what_the_index_keeps_of_a_document(opened, small_reads):
    rows = score_corpus(opened, ASKED).read_all()
    assert rows.column_names == ["id", "score", "loss", "n_tokens", "metadata"]
    kept = pa.concat_tables([shard.documents for shard in opened.shards])
    for name in ("id", "loss", "n_tokens", "metadata"):
        assert rows[name].to_pylist() == kept[name].to_pylist()


def test_rows_are_read_when_they_are_asked_for_and_few_at_a_time(opened, small_reads, monkeypatch):
    read, rows = [], Shard.rows

    def counted(shard, numbers):
        read.append((shard.entry.name, numbers))
        return rows(shard, numbers)

    monkeypatch.setattr(Shard, "rows", counted)
    scores = score_corpus(opened, ASKED)
    assert not read
    assert scores.read_next_batch().num_rows == 5
    assert read == [("00000", slice(0, 5))]
    assert [batch.num_rows for batch in scores] == [5, 5, 1, 5, 5, 5, 1, 5, 3]


def test_the_best_are_those_of_the_highest_scores_in_order(opened, small_reads):
    scores = score_corpus(opened, ASKED).read_all()
    ids = [scores["id"][k].as_py() for k in column(scores.to_reader()).argsort(descending=True, stable=True)]
    found = top_documents(score_corpus(opened, ASKED), 7)
    assert found["id"].to_pylist() == ids[:7]
    assert found.schema == scores.schema
    assert top_documents(score_corpus(opened, ASKED), 99)["id"].to_pylist() == ids


def test_of_equal_scores_the_earlier_document_is_taken():
    parts = [
        pa.record_batch({"id": list(ids), "score": scores})
        for ids, scores in (("ab", [1.0, 2.0]), ("cd", [2.0, 2.0]))
    ]
    found = top_documents(pa.RecordBatchReader.from_batches(parts[0].schema, parts), 3)
    assert found["id"].to_pylist() == ["b", "c", "d"]


def test_totals_add_up_the_scores_of_each_source(opened, small_reads):
    totals = ScoreTotals(opened, "source")
    scores = column(totals.add(score_corpus(opened, ASKED)))
    rows = totals.table().to_pylist()
    expected = {"web": scores[::2], "wiki": scores[1::2]}
    assert {row["value"] for row in rows} == set(expected)
    assert [row["sum"] for row in rows] == sorted((row["sum"] for row in rows), reverse=True)
    for row in rows:
        of_source = expected[row["value"]].double()
        assert row["documents"] == 20
        assert row["sum"] == pytest.approx(of_source.sum().item(), abs=1e-5)
        assert row["mean"] == pytest.approx(of_source.mean().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (['{"source": "a"}', '{"source": null}', "{}", '{"source": NaN}'], {"a": 1, None: 3}),
        (['{"source": 3}', '{"source": 3}', '{"source": 4}'], {3: 2, 4: 1}),
        (['{"source": 3}', '{"source": "3"}', '{"source": ["x"]}'], {"3": 1, '"3"': 1, '["x"]': 1}),
    ],
)
def test_totals_tell_values_of_any_type_apart_and_have_a_group_for_none(opened, texts, values):
    totals = ScoreTotals(opened, "source")
    table = pa.table({"score": [1.0] * len(texts), "metadata": texts})
    totals.add(table.to_reader()).read_all()
    assert {row["value"]: row["documents"] for row in totals.table().to_pylist()} == values


@pytest.mark.parametrize(
    ("normalize", "preconditioner"), [("row", True), ("block", True), ("none", True), ("block", False)]
)
def test_self_influence_is_that_of_the_definition(sources, tmp_path, small_reads, normalize, preconditioner):
    spec = make_spec(sources, scoring=ScoringSpec(normalize=normalize, preconditioner=preconditioner))
    path = tmp_path / "facts"
    build_index(spec, path, shard_rows=16)
    rows = rows_by_definition(path, spec)
    _, layers, width = rows.shape
    inverse = torch.eye(width, dtype=rows.dtype).expand(layers, -1, -1)
    if preconditioner:
        second = torch.einsum("nmi,nmj->mij", rows, rows) / len(rows)
        mean = second.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        inverse = torch.linalg.inv(second + spec.scoring.damping * mean * inverse)
    expected = torch.einsum("nmi,mij,nmj->n", rows, inverse, rows)
    found = score_self_influence(AttributionIndex.open(path)).read_all()
    torch.testing.assert_close(column(found.to_reader()).double(), expected, rtol=5e-3, atol=0)
    assert found["id"].to_pylist() == [f"doc-{k}" for k in range(40)]


def test_sign_rows_have_no_self_influence(sources, tmp_path):
    build_index(make_spec(sources, gradients=GradientSpec(projection_dim=4, rows="sign")), tmp_path / "facts")
    with pytest.raises(InvalidInput, match="same for all"):
        score_self_influence(AttributionIndex.open(tmp_path / "facts"))


BAD = {
    "no queries": (lambda index: score_corpus(index, []), InvalidInput, "at least one"),
    "an unknown profile": (
        lambda index: score_corpus(index, ASKED, profile="law"),
        InvalidInput,
        "it has default",
    ),
    "queries of another profile": (
        lambda index: score_corpus(index, [query(), query(profile="law")]),
        InvalidInput,
        "query 1 asks for the profile 'law'",
    ),
    "a long query": (lambda index: score_corpus(index, [query(), query("long " * 99)]), TooLong, "row 1 has"),
    "a query without a loss": (
        lambda index: score_corpus(index, [query(), query("", "a")]),
        InvalidInput,
        "query 1: there is nothing to attribute",
    ),
    "a missing column": (
        lambda index: score_corpus(index, Dataset.from_dict({"text": ["a b"]})),
        ColumnNotFound,
        "'prompt'; it has text",
    ),
    "an unknown metadata column": (
        lambda index: ScoreTotals(index, "year"),
        InvalidInput,
        "it has source, number",
    ),
    "totals of lists": (
        lambda index: ScoreTotals(index, "source").add(score_corpus(index, ASKED, aggregate="each")),
        InvalidInput,
        "mean or max",
    ),
    "the best of lists": (
        lambda index: top_documents(score_corpus(index, ASKED, aggregate="each"), 3),
        InvalidInput,
        "mean or max",
    ),
    "the best none": (lambda index: top_documents(score_corpus(index, ASKED), 0), InvalidInput, "at least 1"),
    "self-influence of an unknown profile": (
        lambda index: score_self_influence(index, profile="law"),
        InvalidInput,
        "it has default",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_a_row_is_read(opened, case):
    call, error, says = BAD[case]
    with pytest.raises(error, match=says):
        call(opened)


def test_a_query_whose_gradient_is_not_finite_is_named(opened, monkeypatch):
    collect = opened.collector.collect

    def overflown(batch):
        rows, losses = collect(batch)
        rows[list(batch.indices).index(1), 3] = torch.inf
        return rows, losses

    monkeypatch.setattr(opened.collector, "collect", overflown)
    with pytest.raises(InvalidInput, match="query 1: its gradient is not finite"):
        score_corpus(opened, ASKED)


def test_a_document_without_a_gradient_scores_zero(sources, tmp_path):
    spec = make_spec(
        sources, dataset=None, documents=({"text": "a"}, {"text": "a b c"}), columns=ColumnsSpec()
    )
    build_index(spec, tmp_path / "facts")
    opened = AttributionIndex.open(tmp_path / "facts")
    for scores in (score_corpus(opened, ASKED), score_self_influence(opened)):
        first, second = column(scores)
        assert first == 0
        assert second != 0
