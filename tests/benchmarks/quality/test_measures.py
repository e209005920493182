"""Retrieval is measured as an evaluation measures it, and anti-documents are those that contradict a query."""

import numpy as np
import pytest

from benchmarks.quality.measures import (
    ANTI,
    ANTI_LAST,
    MRR,
    RECALL,
    anti_documents,
    measure_anti_documents,
    measure_retrieval,
)
from bergson_core.evaluation.metrics import retrieval_metrics
from tests.benchmarks.quality.helpers import make_toy_corpus

CORPUS = make_toy_corpus()


def test_retrieval_is_that_of_retrieval_metrics() -> None:
    gold_ids = CORPUS.gold_ids()
    gold = np.array(
        [[document.id in gold_ids[query.id] for document in CORPUS.documents] for query in CORPUS.queries]
    )
    scores = np.random.default_rng(0).standard_normal(gold.shape).round(1)
    order = np.argsort(-scores, axis=1, kind="stable")
    rankings = {
        query.id: [CORPUS.documents[position].id for position in positions]
        for query, positions in zip(CORPUS.queries, order, strict=True)
    }
    expected = retrieval_metrics(rankings, gold_ids)
    measured = measure_retrieval(scores, gold)
    assert measured[MRR].mean() == pytest.approx(expected.mrr)
    assert measured[RECALL].mean() == pytest.approx(expected.recall_at_10)


def test_queries_without_right_documents_are_left_out() -> None:
    gold = np.array([[True, False], [False, False]])
    assert measure_retrieval(np.zeros((2, 2)), gold)[MRR].tolist() == [1]
    assert measure_retrieval(np.zeros((2, 2)), np.zeros((2, 2), dtype=bool)) == {}


def test_the_share_of_anti_documents_is_over_the_queries_that_have_them() -> None:
    anti = anti_documents(CORPUS)
    assert anti.sum(1).tolist() == [1] * 4 + [0] * 4
    scores = np.where(anti, -1.0, 0.0)
    scores[0] = -scores[0]
    measured = measure_anti_documents(scores, anti)
    assert measured[ANTI].tolist() == [1, 0, 0, 0]
    assert measured[ANTI_LAST].tolist() == [0, 1, 1, 1]
    assert measure_anti_documents(scores, np.zeros_like(anti)) == {}
