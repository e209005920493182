"""The rankings by BM25 and at random that an index is compared with."""

import pytest

from bergson_core.demo.synthetic_facts import make_corpus
from bergson_core.errors import InvalidInput
from bergson_core.evaluation.baseline_rankings import bm25_rankings, random_rankings
from bergson_core.evaluation.metrics import retrieval_metrics
from bergson_core.evaluation.queries import EvaluationDocument, EvaluationQuery

CORPUS = make_corpus(people=40)


def documents(*texts: str) -> list[EvaluationDocument]:
    return [EvaluationDocument(f"doc-{k}", text, "fact", {}) for k, text in enumerate(texts)]


def query(prompt: str, completion: str) -> EvaluationQuery:
    return EvaluationQuery("query", prompt, completion, "fact")


def test_bm25_ranks_by_shared_words_of_prompt_and_completion() -> None:
    texts = documents("Ivo was born in Brindle.", "Ivo sings.", "Petra was born in Avelora.", "Nothing here.")
    ranked = bm25_rankings(texts, [query("Ivo was born in", " Brindle")], top_k=10)
    assert ranked["query"][0] == "doc-0"
    assert set(ranked["query"]) == {"doc-0", "doc-1", "doc-2"}, "a document without a shared word is left out"


def test_bm25_tells_days_of_one_digit_apart() -> None:
    texts = documents("Born on 3 May 1931.", "Born on 7 May 1931.", "Born on 9 May 1931.")
    assert bm25_rankings(texts, [query("Born on", " 7 May 1931")], top_k=1) == {"query": ["doc-1"]}


def test_bm25_finds_nothing_for_words_that_no_document_has() -> None:
    assert bm25_rankings(documents("Ivo sings."), [query("Quite", " different")], top_k=5) == {"query": []}


def test_bm25_beats_chance_on_the_corpus_and_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    gold = CORPUS.gold_ids()
    by_words = bm25_rankings(CORPUS.documents, CORPUS.queries, top_k=20)
    at_random = random_rankings(CORPUS.documents, CORPUS.queries, top_k=20)
    assert retrieval_metrics(by_words, gold).mrr > 10 * retrieval_metrics(at_random, gold).mrr
    assert capfd.readouterr() == ("", "")


def test_random_rankings_are_seeded_and_name_each_document_once() -> None:
    first = random_rankings(CORPUS.documents, CORPUS.queries, top_k=10**6, seed=3)
    assert first == random_rankings(CORPUS.documents, CORPUS.queries, top_k=10**6, seed=3)
    assert first != random_rankings(CORPUS.documents, CORPUS.queries, top_k=10**6, seed=4)
    ids = sorted(document.id for document in CORPUS.documents)
    assert all(sorted(ranked) == ids for ranked in first.values())


@pytest.mark.parametrize("rank", [bm25_rankings, random_rankings])
def test_rankings_without_documents_or_queries_or_depth_are_errors(rank) -> None:
    with pytest.raises(InvalidInput, match="expected documents and queries, got 0 and 160"):
        rank([], CORPUS.queries, 10)
    with pytest.raises(InvalidInput, match="expected documents and queries, got 480 and 0"):
        rank(CORPUS.documents, [], 10)
    with pytest.raises(InvalidInput, match="top_k must be at least 1, got 0"):
        rank(CORPUS.documents, CORPUS.queries, 0)
