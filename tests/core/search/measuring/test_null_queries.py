"""Null queries are made of the halves of two documents that fit, as many as a build has time for."""

import numpy as np
import pytest
import torch

from bergson_core import AttributionIndex
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector, collect_rows
from bergson_core.models.forward_backward import compute_document_losses
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.loading import load_model
from bergson_core.schemas.results import Progress
from bergson_core.search.measuring import null_queries
from bergson_core.search.measuring.null_queries import (
    ENDINGS_TRIED,
    MAX_NULL_QUERIES,
    MIN_NULL_QUERIES,
    TOKEN_SHARE,
    NullQueries,
    QuerySources,
    collect_null_queries,
    count_null_queries,
)
from bergson_core.tokens.tokenization import Tokens, tokenize
from tests import tiny


@pytest.fixture(scope="module")
def model(sources) -> LanguageModel:
    return load_model(str(sources / "model"))


@pytest.fixture(scope="module")
def collector(model) -> RowCollector:
    return RowCollector(model, GradientProcessor(projection_dim=4))


def read_documents(model: LanguageModel, count: int) -> list[Tokens]:
    return tokenize(model.tokenizer, tiny.texts(count), None)


def collect(
    collector: RowCollector, documents: list[Tokens], count: int
) -> tuple[NullQueries, list[Progress]]:
    """Returns the queries of documents whose rows have the numbers 100, 101, …, and what was reported."""
    reports: list[Progress] = []
    numbers = 100 + np.arange(len(documents))
    sources = QuerySources(numbers, documents, token_losses(len(documents)), index_rows=1000)
    return collect_null_queries(collector, sources, count, 1000, reports.append), reports


def token_losses(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(1, 3, size=count)


def test_a_null_query_is_half_of_one_document_and_half_of_another():
    document, other = (Tokens.labelled_from(np.arange(start, start + 5), 1) for start in (10, 20))
    spliced = null_queries._splice(document, other)
    assert spliced.ids.tolist() == [10, 11, 22, 23, 24]
    assert spliced.labels.nonzero()[0].tolist() == [2, 3, 4]


def test_of_long_documents_it_is_the_beginning_and_the_middle():
    document, other = (Tokens.labelled_from(np.arange(start, start + 100), 1) for start in (0, 1000))
    spliced = null_queries._splice(document, other)
    assert spliced.ids.tolist() == [*range(16), *range(1050, 1066)]
    assert spliced.n_labelled == 16


@pytest.mark.parametrize("count", [1, 20, 64, 200])
def test_the_rows_are_those_of_the_documents_that_are_named(model, collector, count):
    documents = read_documents(model, 40)
    queries, _ = collect(collector, documents, count)
    assert len(queries.rows) == len(queries.sources) == min(count, 40 * (39 // ENDINGS_TRIED))
    places = (queries.sources - 100).tolist()
    spliced = [null_queries._splice(documents[beginning], documents[ending]) for beginning, ending in places]
    rows, _ = collect_rows(collector, spliced, 1000)
    torch.testing.assert_close(torch.from_numpy(rows), queries.rows.flatten(1), rtol=1e-4, atol=1e-6)
    assert (queries.sources[:, 0] != queries.sources[:, 1]).all()
    assert len({tuple(pair) for pair in places}) == len(places)  # no query is made twice


def test_the_ending_is_the_likeliest_by_its_first_token_and_the_loss_of_its_document(model, collector):
    documents = read_documents(model, 40)
    queries, _ = collect(collector, documents, 40)
    for beginning, ending in (queries.sources - 100).tolist():
        prompt = documents[beginning].ids[: len(documents[beginning].ids) // 2][:16]
        with torch.no_grad():
            logits = model.model(input_ids=torch.from_numpy(prompt)[None]).logits[0, -1].double()
        tried = [(beginning + step) % 40 for step in range(1, ENDINGS_TRIED + 1)]
        halves = [documents[k].ids[len(documents[k].ids) // 2 :][:16] for k in tried]
        first = -logits.log_softmax(-1)[[int(half[0]) for half in halves]].numpy()
        others = np.array([len(half) - 1 for half in halves]) * token_losses(40)[tried]
        mean = (first + others) / [len(half) for half in halves]
        assert mean[tried.index(ending)] == pytest.approx(mean.min())


@pytest.mark.parametrize("count", range(ENDINGS_TRIED + 2))
def test_few_documents_make_few_queries_or_none(model, collector, count):
    queries, _ = collect(collector, read_documents(model, count), 50)
    assert len(queries.rows) == (count if count > ENDINGS_TRIED else 0)
    assert queries.rows.shape[1:] == (len(collector.slices), 16)
    assert queries.sources.shape == (len(queries.rows), 2)


def test_documents_of_one_token_or_none_are_not_used(model, collector):
    documents = read_documents(model, 60)
    documents[3] = Tokens(documents[3].ids[:1], np.zeros(1, dtype=bool))
    documents[7] = Tokens(documents[7].ids[:0], np.zeros(0, dtype=bool))
    queries, _ = collect(collector, documents, 60)
    assert len(queries.rows) == 60
    assert not {103, 107} & set(queries.sources.ravel().tolist())


@pytest.mark.parametrize("rows", [1, 100, 1_000, 10_000, 10**9])
@pytest.mark.parametrize("length", [2, 20, 31, 100, 4000])
def test_the_queries_have_a_share_of_the_tokens_of_the_corpus(rows, length):
    documents = [Tokens.labelled_from(np.arange(length), 1)] * 64
    count = count_null_queries(documents, rows)
    assert MIN_NULL_QUERIES <= count <= MAX_NULL_QUERIES
    if count > MIN_NULL_QUERIES:
        assert count * min(length, 32) <= TOKEN_SHARE * rows * length
    if count < MAX_NULL_QUERIES:
        assert (count + 1) * min(length, 32) > TOKEN_SHARE * rows * length
    assert count_null_queries([], 0) == MIN_NULL_QUERIES


def test_a_slow_model_makes_fewer_queries(model, collector, monkeypatch):
    monkeypatch.setattr(null_queries, "MAX_SECONDS", 0.0)
    queries, _ = collect(collector, read_documents(model, 40), 100)
    assert len(queries.rows) == 32


def test_the_stage_is_named_with_all_that_it_has_to_do(model, collector):
    _, reports = collect(collector, read_documents(model, 60), 100)
    assert {(progress.stage, progress.total, progress.unit) for progress in reports} == {
        ("measure", 100, "queries")
    }
    done = [progress.done for progress in reports]
    assert done == sorted(done)
    assert done[0] == 0


def test_the_losses_of_the_sources_are_those_that_are_stored_with_their_rows(index):
    opened = AttributionIndex.open(index)
    numbers = [2, 17, 31]
    documents = read_documents(opened.model, 40)
    sources = QuerySources.of_rows(opened.shards, numbers, [documents[number] for number in numbers])
    losses = compute_document_losses(opened.model, sources.documents)
    labelled = [document.n_labelled for document in sources.documents]
    np.testing.assert_allclose(sources.token_losses, losses / labelled, rtol=1e-4)
    assert (sources.index_rows, sources.row_numbers.tolist()) == (40, numbers)
