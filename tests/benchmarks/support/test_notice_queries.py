"""What is asked where a document is right, and what strangers are."""

import random

from benchmarks.corpora.corpus import Corpus, Document
from benchmarks.corpora.registry import make_invented_facts
from benchmarks.corpora.world_factbook import make_fact_corpus, read_facts
from benchmarks.support import notice_queries
from benchmarks.support.notice_queries import (
    ELSEWHERE,
    OWN,
    REWORDED,
    UNSEEN,
    ask_about_countries,
    ask_about_people,
    ask_documents,
    make_passage_strangers,
)
from tests.benchmarks.helpers import make_countries, make_passages


def make_passage_corpus(count: int) -> Corpus:
    passages = make_passages(count, 1)
    documents = tuple(Document(passage.id, passage.text, passage.family) for passage in passages)
    return Corpus("passages", "test", documents, ())


def test_a_document_is_asked_for_with_its_first_half_and_without_every_third_word() -> None:
    corpus = make_passage_corpus(3)
    texts = {document.id: document.text for document in corpus.documents}
    queries = ask_documents(corpus, random.Random(0))
    for own, reworded in zip(queries[OWN], queries[REWORDED], strict=True):
        (document_id,) = own.right
        words = texts[document_id].split()
        assert own.prompt + own.completion == texts[document_id]
        assert reworded.right == own.right
        assert (reworded.prompt + reworded.completion).split() == [
            word for number, word in enumerate(words) if number % 3 != 2
        ]


def test_a_passage_is_unseen_unless_a_document_has_five_words_of_its_second_half() -> None:
    corpus = make_passage_corpus(3)
    copied = "one two three four five " + " ".join(corpus.documents[0].text.split()[3:8])
    strangers = make_passage_strangers(corpus, [copied, make_passages(9, 1)[8].text])
    assert [query.prompt + query.completion for query in strangers[ELSEWHERE]] == [copied]
    assert len(strangers[UNSEEN]) == 1
    assert not any(query.right for queries in strangers.values() for query in queries)


def test_unknown_people_are_in_no_document() -> None:
    corpus = make_invented_facts(people=30)
    texts = " ".join(document.text for document in corpus.documents)
    unknown = ask_about_people(corpus, random.Random(0))
    people = {document.metadata["person"] for document in corpus.documents}
    assert len(unknown) == 40 * 40 - 30
    assert not any(person in fact.prompt for fact in unknown for person in people)
    assert any(value in texts for fact in unknown for value in fact.values)


def test_unknown_countries_are_in_no_document(monkeypatch) -> None:
    facts = read_facts(make_countries(12))
    corpus = make_fact_corpus("test", facts, "statements", 20, 6, 0, 0)
    everything = make_fact_corpus("test", facts, "statements", len(facts), len(facts), 0, 0)
    monkeypatch.setattr(notice_queries, "make_world_factbook", lambda **_: everything)
    known = {document.metadata["country"] for document in corpus.documents}
    unknown = ask_about_countries(corpus, seed=0)
    countries = {document.metadata["country"] for document in everything.documents} - known
    assert countries and unknown
    for fact in unknown:
        assert any(country in fact.prompt for country in countries)
        assert all(value.startswith(" ") for value in fact.values)
