"""The measures of retrieval quality against values computed by hand, and the rankings to compare with."""

import numpy as np
import pytest

from bergson_core.attribution.soft_threshold import soft_threshold
from bergson_core.demo.synthetic_facts import make_corpus
from bergson_core.errors import InvalidInput
from bergson_core.evaluation.metrics import (
    bm25_rankings,
    bootstrap,
    linear_datamodelling_score,
    random_rankings,
    retrieval,
)
from bergson_core.evaluation.queries import EvaluationDocument, EvaluationQuery
from bergson_core.schemas.evaluation import Retrieval

CORPUS = make_corpus(people=40)


def ranking(**places: int) -> list[str]:
    """Twenty documents, of which the named ones lie at these ranks, counted from 1."""
    names = {rank: name for name, rank in places.items()}
    return [names.get(rank, f"other-{rank}") for rank in range(1, 21)]


def documents(*texts: str) -> list[EvaluationDocument]:
    return [EvaluationDocument(f"doc-{k}", text, "fact", {}) for k, text in enumerate(texts)]


def query(prompt: str, completion: str) -> EvaluationQuery:
    return EvaluationQuery("query", prompt, completion, "fact")


def test_mrr_is_the_mean_inverse_rank_of_the_first_gold_document() -> None:
    rankings = {"p": ranking(a=2, b=5), "q": ranking(c=20), "r": ranking()}
    measured = retrieval(rankings, {"p": {"a", "b"}, "q": {"c"}, "r": {"d"}})
    assert measured.mrr == pytest.approx((1 / 2 + 1 / 20 + 0) / 3)
    assert measured.queries == 3


def test_recall_asks_for_any_gold_document_in_the_top_ten_and_strict_recall_for_all() -> None:
    rankings = {"p": ranking(a=1, b=10, c=11), "q": ranking(d=11)}
    measured = retrieval(rankings, {"p": {"a", "b", "c"}, "q": {"d"}})
    assert measured.recall_at_10 == pytest.approx((1 + 0) / 2)
    assert measured.strict_recall_at_10 == pytest.approx((2 / 3 + 0) / 2)


def test_strict_recall_asks_for_no_more_than_ten_documents() -> None:
    gold = [f"other-{rank}" for rank in range(1, 13)]
    assert retrieval({"p": ranking()}, {"p": gold}).strict_recall_at_10 == 1


def test_a_perfect_ranking_measures_one_everywhere() -> None:
    gold = CORPUS.gold()
    perfect = {name: sorted(right) for name, right in gold.items()}
    assert retrieval(perfect, gold) == Retrieval(1, 1, 1, len(CORPUS.queries))


def test_a_query_without_an_answer_counts_zero() -> None:
    assert retrieval({"p": [], "q": ["a"]}, {"p": {"a"}, "q": {"a"}}) == Retrieval(0.5, 0.5, 0.5, 2)


def test_nothing_is_measured_without_queries() -> None:
    with pytest.raises(InvalidInput, match="no rankings to measure"):
        retrieval({}, {"p": {"a"}})


@pytest.mark.parametrize("gold", [{}, {"p": []}, {"q": ["a"]}])
def test_a_query_without_gold_is_an_error_that_names_it(gold: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidInput, match="'p' has no gold documents"):
        retrieval({"p": ["a"]}, gold)


def test_a_document_that_is_ranked_twice_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="'p' names a document twice"):
        retrieval({"p": ["a", "b", "a"]}, {"p": {"a"}})


def test_bm25_ranks_by_shared_words_of_prompt_and_completion() -> None:
    found = documents("Ivo was born in Brindle.", "Ivo sings.", "Petra was born in Avelora.", "Nothing here.")
    ranked = bm25_rankings(found, [query("Ivo was born in", " Brindle")], top_k=10)
    assert ranked["query"][0] == "doc-0"
    assert set(ranked["query"]) == {"doc-0", "doc-1", "doc-2"}, "a document that shares no word is no answer"


def test_bm25_tells_days_of_one_digit_apart() -> None:
    found = documents("Born on 3 May 1931.", "Born on 7 May 1931.", "Born on 9 May 1931.")
    assert bm25_rankings(found, [query("Born on", " 7 May 1931")], top_k=1) == {"query": ["doc-1"]}


def test_bm25_of_words_that_no_document_has_is_empty() -> None:
    assert bm25_rankings(documents("Ivo sings."), [query("Quite", " different")], top_k=5) == {"query": []}


def test_bm25_beats_chance_on_the_corpus_and_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    gold = CORPUS.gold()
    bm25 = bm25_rankings(CORPUS.documents, CORPUS.queries, top_k=20)
    chance = random_rankings(CORPUS.documents, CORPUS.queries, top_k=20)
    assert retrieval(bm25, gold).mrr > 10 * retrieval(chance, gold).mrr
    assert capfd.readouterr() == ("", "")


def test_random_rankings_are_seeded_and_name_each_document_once() -> None:
    first = random_rankings(CORPUS.documents, CORPUS.queries, top_k=10**6, seed=3)
    assert first == random_rankings(CORPUS.documents, CORPUS.queries, top_k=10**6, seed=3)
    assert first != random_rankings(CORPUS.documents, CORPUS.queries, top_k=10**6, seed=4)
    ids = sorted(document.id for document in CORPUS.documents)
    assert all(sorted(ranked) == ids for ranked in first.values())


@pytest.mark.parametrize("rank", [bm25_rankings, random_rankings])
def test_rankings_of_nothing_are_refused(rank) -> None:
    with pytest.raises(InvalidInput, match="expected documents and queries, got 0 and 160"):
        rank([], CORPUS.queries, 10)
    with pytest.raises(InvalidInput, match="expected documents and queries, got 480 and 0"):
        rank(CORPUS.documents, [], 10)
    with pytest.raises(InvalidInput, match="top_k must be at least 1, got 0"):
        rank(CORPUS.documents, CORPUS.queries, 0)


def table(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns))


def parts(runs: int, documents: int) -> np.ndarray:
    return np.random.default_rng(1).random((runs, documents)) < 0.5


def test_scores_whose_sums_order_the_losses_have_a_datamodelling_score_of_one() -> None:
    scores, kept = table(3, 20), parts(12, 20)
    found = linear_datamodelling_score(scores, kept, np.exp(-(kept @ scores.T)))
    assert found.mean == pytest.approx(1)
    assert linear_datamodelling_score(-scores, kept, np.exp(-(kept @ scores.T))).mean == pytest.approx(-1)


def test_the_datamodelling_score_is_the_mean_rank_correlation_with_ties_at_their_mean_rank() -> None:
    kept = np.eye(10, dtype=bool)
    scores = np.array([[0.0, 0, 1, 1, 2, 3, 4, 5, 6, 7]])
    losses = np.array([[9.0, 8, 7, 6, 5, 4, 3, 2, 1, 10]]).T
    ranks = np.array([1.5, 1.5, 3.5, 3.5, 5, 6, 7, 8, 9, 10]), np.array([2.0, 3, 4, 5, 6, 7, 8, 9, 10, 1])
    expected = np.corrcoef(*ranks)[0, 1]
    assert linear_datamodelling_score(scores, kept, losses).mean == pytest.approx(expected)


def test_scores_that_foretell_nothing_have_an_interval_about_zero() -> None:
    found = linear_datamodelling_score(table(50, 30), parts(40, 30), np.exp(table(40, 50, seed=2)))
    assert found.low < 0 < found.high and abs(found.mean) < 0.1
    constant = linear_datamodelling_score(np.ones((2, 30)), np.ones((40, 30), bool), table(40, 2))
    assert constant.mean == 0, "sums that are all the same foretell nothing"


def test_intervals_narrow_with_more_queries() -> None:
    few, many = bootstrap(table(1, 20)[0]), bootstrap(table(1, 2000)[0])
    assert few.low < few.mean < few.high
    assert many.high - many.low < (few.high - few.low) / 5


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_datamodelling_score_is_never_made_from_nothing(wrong: float) -> None:
    scores, kept, losses = table(2, 20), parts(12, 20), table(12, 2)
    with pytest.raises(InvalidInput, match="9 training runs are too few"):
        linear_datamodelling_score(scores, kept[:9], losses[:9])
    losses[3, 1] = wrong
    with pytest.raises(InvalidInput, match="not finite"):
        linear_datamodelling_score(scores, kept, losses)
    with pytest.raises(InvalidInput, match="no values"):
        bootstrap(np.array([]))


def test_the_threshold_takes_the_noise_out_of_sums_and_keeps_the_order_of_what_stands_out() -> None:
    scores = table(2, 2000) + 5
    scores[:, :3] += [[20, 30, 40], [40, 30, 20]]
    found = soft_threshold(scores)
    assert (np.count_nonzero(found[:, 3:], axis=1) < 20).all()
    assert (np.argsort(-found)[:, :3] == np.argsort(-scores)[:, :3]).all()
    np.testing.assert_allclose(found[:, :3], scores[:, :3] - 5 - 3, atol=0.5)
