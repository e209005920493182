"""Passages are divided into documents and held-out queries."""

import random

import pytest

from benchmarks.corpora.held_out_passages import PASSAGES_OF_FAMILY, Passage, divide_passages
from bergson_core.errors import InvalidInput
from tests.benchmarks.helpers import make_passages


def test_the_same_passages_and_seed_give_the_same_bytes_in_any_order() -> None:
    passages = make_passages(20, 3)
    corpus = divide_passages("c", "test", passages, 30, 8, seed=1)
    shuffled = random.Random(0).sample(passages, len(passages))
    assert divide_passages("c", "test", shuffled, 30, 8, seed=1).sha256() == corpus.sha256()
    assert divide_passages("c", "test", passages, 30, 8, seed=2).sha256() != corpus.sha256()


def test_no_query_is_a_document_and_every_gold_document_exists() -> None:
    corpus = divide_passages("c", "test", make_passages(20, 3), 30, 8, seed=0)
    ids = {document.id for document in corpus.documents}
    assert (len(ids), len(corpus.queries)) == (30, 8)
    assert not ids & {query.id for query in corpus.queries}
    assert all(gold and gold <= ids for gold in corpus.gold_ids().values())


def test_prompt_and_completion_are_the_halves_of_the_held_out_passage() -> None:
    texts = {passage.id: passage.text for passage in make_passages(20, 2)}
    for query in divide_passages("c", "test", make_passages(20, 2), 20, 8, seed=0).queries:
        assert query.prompt + query.completion == texts[query.id]
        assert query.completion.startswith(" ")
        assert abs(len(query.prompt.split()) - len(query.completion.split())) <= 1


def test_queries_come_from_families_that_have_documents_as_far_as_there_are_any() -> None:
    passages = [*make_passages(6, 1), *(passage for passage in make_passages(9, 2) if passage.family > "f5")]
    corpus = divide_passages("c", "test", passages, 8, 3, seed=0)
    assert {query.gold for query in corpus.queries} == {"f6", "f7", "f8"}
    corpus = divide_passages("c", "test", make_passages(6, 1), 4, 2, seed=0)
    assert set(corpus.gold_ids().values()) == {frozenset()}


def test_a_passage_that_differs_from_another_one_in_numbers_only_is_left_out() -> None:
    twins = [Passage("a", "x", "Version 1 of the parser."), Passage("b", "y", "version 22 of the PARSER")]
    corpus = divide_passages("c", "test", [*twins, *make_passages(1, 1)], 2, 0, seed=0)
    assert {document.id for document in corpus.documents} == {"a", "f0-p0"}
    with pytest.raises(InvalidInput, match="expected 3 documents and 0 queries"):
        divide_passages("c", "test", [*twins, *make_passages(1, 1)], 3, 0, seed=0)


def test_near_copies_in_a_family_are_left_out_and_a_family_has_few_passages() -> None:
    (passage,) = make_passages(1, 1)
    near_copy = Passage("near", passage.family, f"{passage.text} and its headers")
    with pytest.raises(InvalidInput, match="has 1 passages"):
        divide_passages("c", "test", [passage, near_copy], 2, 0, seed=0)
    with pytest.raises(InvalidInput, match=f"has {PASSAGES_OF_FAMILY} passages"):
        divide_passages("c", "test", make_passages(1, 9), 9, 0, seed=0)
