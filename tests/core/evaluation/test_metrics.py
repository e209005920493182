"""Metrics of rankings and of scores agree with values that were computed by hand."""

import numpy as np
import pytest

from bergson_core.demo.synthetic_facts import make_corpus
from bergson_core.errors import InvalidInput
from bergson_core.evaluation.metrics import bootstrap_interval, linear_datamodelling_score, retrieval_metrics
from bergson_core.schemas.evaluation import Retrieval

CORPUS = make_corpus(people=40)


def ranking(**ranks: int) -> list[str]:
    """Twenty documents, of which the named ones have these ranks, counted from 1."""
    names = {rank: name for name, rank in ranks.items()}
    return [names.get(rank, f"other-{rank}") for rank in range(1, 21)]


def test_mrr_is_the_mean_inverse_rank_of_the_first_gold_document() -> None:
    rankings = {"p": ranking(a=2, b=5), "q": ranking(c=20), "r": ranking()}
    metrics = retrieval_metrics(rankings, {"p": {"a", "b"}, "q": {"c"}, "r": {"d"}})
    assert metrics.mrr == pytest.approx((1 / 2 + 1 / 20 + 0) / 3)
    assert metrics.queries == 3


def test_recall_counts_any_gold_document_in_the_top_ten_and_strict_recall_their_share() -> None:
    rankings = {"p": ranking(a=1, b=10, c=11), "q": ranking(d=11)}
    metrics = retrieval_metrics(rankings, {"p": {"a", "b", "c"}, "q": {"d"}})
    assert metrics.recall_at_10 == pytest.approx((1 + 0) / 2)
    assert metrics.strict_recall_at_10 == pytest.approx((2 / 3 + 0) / 2)


def test_strict_recall_expects_no_more_than_ten_documents() -> None:
    gold = [f"other-{rank}" for rank in range(1, 13)]
    assert retrieval_metrics({"p": ranking()}, {"p": gold}).strict_recall_at_10 == 1


def test_a_perfect_ranking_measures_one_everywhere() -> None:
    gold = CORPUS.gold_ids()
    perfect = {query: sorted(ids) for query, ids in gold.items()}
    assert retrieval_metrics(perfect, gold) == Retrieval(1, 1, 1, len(CORPUS.queries))


def test_a_query_without_an_answer_counts_zero() -> None:
    assert retrieval_metrics({"p": [], "q": ["a"]}, {"p": {"a"}, "q": {"a"}}) == Retrieval(0.5, 0.5, 0.5, 2)


def test_metrics_without_queries_are_an_error() -> None:
    with pytest.raises(InvalidInput, match="no rankings to measure"):
        retrieval_metrics({}, {"p": {"a"}})


@pytest.mark.parametrize("gold", [{}, {"p": []}, {"q": ["a"]}])
def test_a_query_without_gold_is_an_error_that_names_it(gold: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidInput, match="'p' has no gold documents"):
        retrieval_metrics({"p": ["a"]}, gold)


def test_a_document_that_is_ranked_twice_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="'p' names a document twice"):
        retrieval_metrics({"p": ["a", "b", "a"]}, {"p": {"a"}})


def table(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns))


def random_masks(runs: int, documents: int) -> np.ndarray:
    return np.random.default_rng(1).random((runs, documents)) < 0.5


def test_scores_whose_sums_order_the_losses_have_a_datamodelling_score_of_one() -> None:
    scores, subsets = table(3, 20), random_masks(12, 20)
    losses = np.exp(-(subsets @ scores.T))
    assert linear_datamodelling_score(scores, subsets, losses).mean == pytest.approx(1)
    assert linear_datamodelling_score(-scores, subsets, losses).mean == pytest.approx(-1)


def test_the_datamodelling_score_is_the_mean_rank_correlation_with_ties_at_their_mean_rank() -> None:
    subsets = np.eye(10, dtype=bool)
    scores = np.array([[0.0, 0, 1, 1, 2, 3, 4, 5, 6, 7]])
    losses = np.array([[9.0, 8, 7, 6, 5, 4, 3, 2, 1, 10]]).T
    ranks = np.array([1.5, 1.5, 3.5, 3.5, 5, 6, 7, 8, 9, 10]), np.array([2.0, 3, 4, 5, 6, 7, 8, 9, 10, 1])
    expected = np.corrcoef(*ranks)[0, 1]
    assert linear_datamodelling_score(scores, subsets, losses).mean == pytest.approx(expected)


def test_scores_that_predict_nothing_have_an_interval_around_zero() -> None:
    score = linear_datamodelling_score(table(50, 30), random_masks(40, 30), np.exp(table(40, 50, seed=2)))
    assert score.low < 0 < score.high and abs(score.mean) < 0.1
    constant = linear_datamodelling_score(np.ones((2, 30)), np.ones((40, 30), bool), table(40, 2))
    assert constant.mean == 0, "sums that are all equal predict nothing"


def test_intervals_narrow_with_more_queries() -> None:
    few, many = bootstrap_interval(table(1, 20)[0]), bootstrap_interval(table(1, 2000)[0])
    assert few.low < few.mean < few.high
    assert many.high - many.low < (few.high - few.low) / 5


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_too_few_runs_and_losses_that_are_not_finite_are_errors(wrong: float) -> None:
    scores, subsets, losses = table(2, 20), random_masks(12, 20), table(12, 2)
    with pytest.raises(InvalidInput, match="9 training runs are too few"):
        linear_datamodelling_score(scores, subsets[:9], losses[:9])
    losses[3, 1] = wrong
    with pytest.raises(InvalidInput, match="not finite"):
        linear_datamodelling_score(scores, subsets, losses)
    with pytest.raises(InvalidInput, match="no values"):
        bootstrap_interval(np.array([]))
