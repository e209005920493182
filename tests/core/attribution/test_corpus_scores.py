"""Every document gets the score of the definition, which is that of answers; part of a shard is in memory at a time."""

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
from bergson_core.schemas.build import GradientSpec, ScoringSpec
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.shards.shard import Shard
from bergson_core.storage.layout import preconditioner_path
from tests.core.helpers import SCORING_CASES, make_spec, query, rows_by_definition, scores_by_definition

QUERIES = [
    query("Person 3 lives in", " city 1.", top_k=40),
    query("Person 5 lives in city 2 and works", " for company 1.", top_k=40),
    query("", "Person 6", top_k=40),
]


@pytest.fixture
def opened(index) -> AttributionIndex:
    return AttributionIndex.open(index)


@pytest.mark.parametrize("aggregate", ["mean", "max", "each"])
def test_a_threshold_shrinks_the_scores_of_each_query_before_they_are_aggregated(opened, aggregate):
    plain = score_corpus(opened, QUERIES, aggregate="each").read_all()["scores"].combine_chunks()
    expected = soft_threshold(np.asarray(plain.flatten()).reshape(40, 3).T, 2).T
    table = score_corpus(opened, QUERIES, aggregate=aggregate, threshold=2).read_all()
    if aggregate == "each":
        values = np.asarray(table["scores"].combine_chunks().flatten()).reshape(40, 3)
    else:
        values, expected = np.asarray(table["score"]), getattr(expected, aggregate)(1)
    assert (expected == 0).any() and (expected != 0).any()
    np.testing.assert_allclose(values, expected, atol=1e-5)


@pytest.fixture
def small_reads(monkeypatch):
    """Reads five rows of 128 numbers at a time, where shards have 16 rows."""
    monkeypatch.setattr(corpus_scores, "_CHUNK_NUMBERS", 5 * 128 + 1)


@pytest.mark.parametrize("part", [slice(None), slice(3, 7), slice(10, 1000), slice(16, 32)])
def test_rows_read_by_a_slice_are_those_read_by_their_numbers(opened, part):
    for shard in opened.shards:
        places = np.arange(shard.entry.rows)[part]
        torch.testing.assert_close(shard.rows(part), shard.rows(places), rtol=0, atol=0)


def scores_by_answers(opened: AttributionIndex, queries=QUERIES) -> torch.Tensor:
    """Returns scores [40, q] as `attribute` gives them."""
    scores = torch.full((40, len(queries)), torch.nan)
    for number, answer in enumerate(opened.attribute(queries)):
        for row in answer.results:
            scores[int(row.id.removeprefix("doc-")), number] = row.score
    return scores


def column(scores: pa.RecordBatchReader, name: str = "score") -> torch.Tensor:
    return torch.tensor(scores.read_all()[name].to_pylist())


def assert_close(actual: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    """Asserts that the numbers differ by at most `share` of the largest expected number."""
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=0, atol=share * expected.abs().max().item()
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
    each = column(score_corpus(opened, QUERIES, aggregate="each"), "scores")
    assert_close(each, scores_by_answers(opened), 1e-4)
    if (rows, normalize) != ("sign", "row"):  # a case that `scores_by_definition` does not cover
        expected = torch.stack([scores_by_definition(path, spec, each_query) for each_query in QUERIES], 1)
        assert_close(each, expected, 2e-2 if rows == "int8" else 2e-3)
    assert_close(column(score_corpus(opened, QUERIES)), each.mean(1), 1e-5)
    assert_close(column(score_corpus(opened, QUERIES, aggregate="max")), each.amax(1), 1e-5)


def test_a_dataset_of_queries_is_read_by_its_columns(opened):
    texts = {"q": [each.prompt for each in QUERIES], "a": [each.completion for each in QUERIES]}
    dataset, columns = Dataset.from_dict(texts), ColumnsSpec(prompt="q", completion="a")
    assert_close(column(score_corpus(opened, dataset, columns)), column(score_corpus(opened, QUERIES)), 1e-6)


def test_many_queries_keep_their_order(opened, monkeypatch):
    monkeypatch.setattr("bergson_core.tokens.document_tokens.READ_CHUNK_SIZE", 2)
    monkeypatch.setattr(query_weights, "READ_CHUNK_SIZE", 2)
    queries = [
        query(f"Person {k} lives in", f" city {k}." + " and works" * (k % 3), top_k=40) for k in range(7)
    ]
    scores = column(score_corpus(opened, queries, aggregate="each"), "scores")
    assert_close(scores, scores_by_answers(opened, queries), 1e-4)


def test_another_profile_scores_by_its_own_preconditioner(sources, tmp_path):
    spec = make_spec(sources, scoring=ScoringSpec(normalize="none"))
    path = tmp_path / "facts"
    build_index(spec, path, shard_rows=16)
    sample = Dataset.from_dict(
        {"prompt": [f"Person {k} works" for k in range(9)], "completion": [" for company 2."] * 9}
    )
    fit_profile(path, "work", sample, mixing=0.7)
    opened = AttributionIndex.open(path)
    queries = [each.model_copy(update={"profile": "work"}) for each in QUERIES]
    scores = column(score_corpus(opened, queries, aggregate="each", profile="work"), "scores")
    assert_close(scores, scores_by_answers(opened, queries), 1e-4)
    rows = torch.cat([shard.rows(slice(None)) for shard in opened.shards])
    expected = Preconditioner.load(preconditioner_path(path, "work")).apply(rows).square().sum((1, 2))
    assert_close(column(score_self_influence(opened, profile="work")), expected, 1e-5)


def test_rows_have_what_the_index_stores_of_a_document(opened, small_reads):
    rows = score_corpus(opened, QUERIES).read_all()
    assert rows.column_names == ["id", "score", "loss", "n_tokens", "metadata"]
    stored = pa.concat_tables([shard.documents for shard in opened.shards])
    for name in ("id", "loss", "n_tokens", "metadata"):
        assert rows[name].to_pylist() == stored[name].to_pylist()


def test_rows_are_read_lazily_and_few_at_a_time(opened, small_reads, monkeypatch):
    read, rows = [], Shard.rows

    def counted(shard, numbers):
        read.append((shard.entry.name, numbers))
        return rows(shard, numbers)

    monkeypatch.setattr(Shard, "rows", counted)
    scores = score_corpus(opened, QUERIES)
    assert not read
    assert scores.read_next_batch().num_rows == 5
    assert read == [("00000", slice(0, 5))]
    assert [batch.num_rows for batch in scores] == [5, 5, 1, 5, 5, 5, 1, 5, 3]


def test_top_documents_have_the_highest_scores_in_order(opened, small_reads):
    scores = score_corpus(opened, QUERIES).read_all()
    ids = [scores["id"][k].as_py() for k in column(scores.to_reader()).argsort(descending=True, stable=True)]
    best = top_documents(score_corpus(opened, QUERIES), 7)
    assert best["id"].to_pylist() == ids[:7]
    assert best.schema == scores.schema
    assert top_documents(score_corpus(opened, QUERIES), 99)["id"].to_pylist() == ids


def test_of_equal_scores_the_earlier_document_is_taken():
    parts = [
        pa.record_batch({"id": list(ids), "score": scores})
        for ids, scores in (("ab", [1.0, 2.0]), ("cd", [2.0, 2.0]))
    ]
    best = top_documents(pa.RecordBatchReader.from_batches(parts[0].schema, parts), 3)
    assert best["id"].to_pylist() == ["b", "c", "d"]


def test_totals_add_up_the_scores_of_each_source(opened, small_reads):
    totals = ScoreTotals(opened, "source")
    scores = column(totals.add(score_corpus(opened, QUERIES)))
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
def test_totals_keep_values_of_any_type_apart_and_group_documents_without_one(opened, texts, values):
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
    _, modules, width = rows.shape
    inverse = torch.eye(width, dtype=rows.dtype).expand(modules, -1, -1)
    if preconditioner:
        second = torch.einsum("nmi,nmj->mij", rows, rows) / len(rows)
        mean = second.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        inverse = torch.linalg.inv(second + spec.scoring.damping * mean * inverse)
    expected = torch.einsum("nmi,mij,nmj->n", rows, inverse, rows)
    table = score_self_influence(AttributionIndex.open(path)).read_all()
    torch.testing.assert_close(column(table.to_reader()).double(), expected, rtol=5e-3, atol=0)
    assert table["id"].to_pylist() == [f"doc-{k}" for k in range(40)]


def test_sign_rows_have_no_self_influence(sources, tmp_path):
    build_index(make_spec(sources, gradients=GradientSpec(projection_dim=4, rows="sign")), tmp_path / "facts")
    with pytest.raises(InvalidInput, match="same for all"):
        score_self_influence(AttributionIndex.open(tmp_path / "facts"))


BAD_CALLS = {
    "no queries": (lambda index: score_corpus(index, []), InvalidInput, "at least one"),
    "an unknown profile": (
        lambda index: score_corpus(index, QUERIES, profile="law"),
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
        lambda index: ScoreTotals(index, "source").add(score_corpus(index, QUERIES, aggregate="each")),
        InvalidInput,
        "mean or max",
    ),
    "top documents of lists": (
        lambda index: top_documents(score_corpus(index, QUERIES, aggregate="each"), 3),
        InvalidInput,
        "mean or max",
    ),
    "no top documents": (
        lambda index: top_documents(score_corpus(index, QUERIES), 0),
        InvalidInput,
        "at least 1",
    ),
    "self-influence of an unknown profile": (
        lambda index: score_self_influence(index, profile="law"),
        InvalidInput,
        "it has default",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_input_is_refused_before_a_row_is_read(opened, case):
    call, error, message = BAD_CALLS[case]
    with pytest.raises(error, match=message):
        call(opened)


def test_a_query_whose_gradient_is_not_finite_is_named(opened, monkeypatch):
    collect = opened.collector.collect

    def overflown(batch):
        rows, losses = collect(batch)
        rows[list(batch.indices).index(1), 3] = torch.inf
        return rows, losses

    monkeypatch.setattr(opened.collector, "collect", overflown)
    with pytest.raises(InvalidInput, match="query 1: its gradient is not finite"):
        score_corpus(opened, QUERIES)


def test_a_document_without_a_gradient_scores_zero(sources, tmp_path):
    spec = make_spec(
        sources, dataset=None, documents=({"text": "a"}, {"text": "a b c"}), columns=ColumnsSpec()
    )
    build_index(spec, tmp_path / "facts")
    opened = AttributionIndex.open(tmp_path / "facts")
    for scores in (score_corpus(opened, QUERIES), score_self_influence(opened)):
        first, second = column(scores)
        assert first == 0
        assert second != 0
