"""Queries that an answer should claim an influence for, and strangers, for which it should claim none.

    questions     the queries of the corpus; right are the documents that state the fact, or the other passages of the
                  query's family
    own           the second half of a document, asked with its first half; right is the document
    reworded      the same without every third word

Strangers are passages that are left out and of whose family no document is, asked like documents; or facts about
countries or people that no document is about, with a value that is drawn from those of all.

    unseen        no document has a phrase of five words of the passage's second half, or the value
    elsewhere     a document has one, which may be a near copy, or states the value about something else
    generated     of facts: with what the model itself says instead of the value
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.corpora.corpus import Corpus
from benchmarks.corpora.docstring_paragraphs import make_docstring_paragraphs
from benchmarks.corpora.held_out_passages import find_phrases, halve
from benchmarks.corpora.package_descriptions import make_package_descriptions
from benchmarks.corpora.world_factbook import make_world_factbook
from benchmarks.models.cases import Case
from bergson_core.demo.synthetic_facts import ATTRIBUTES, FIRST_NAMES, LAST_NAMES
from bergson_core.errors import InvalidInput
from bergson_core.models.generation import generate_completion

NOTICE_CASES: Final = ("package_descriptions", "docstring_paragraphs", "world_factbook", "invented_facts")
QUESTIONS, OWN, REWORDED = "questions", "own", "reworded"
UNSEEN, ELSEWHERE, GENERATED = "unseen", "elsewhere", "generated"
STRANGERS: Final = (UNSEEN, ELSEWHERE, GENERATED)
_ALL_FACTS: Final = 1600
"""Facts of the Factbook that strangers are taken from; the documents state 400 of them."""
_GENERATED_TOKENS: Final = 16


@dataclass(frozen=True)
class NoticeQuery:
    """A query, and the ids of the documents that are right for it; a stranger has none."""

    prompt: str
    completion: str
    right: frozenset[str] = frozenset()


@dataclass(frozen=True)
class UnknownFact:
    """A question about a country or a person that is in no document.

    Attributes:
        prompt: The question.
        values: What the answer may be.
    """

    prompt: str
    values: Sequence[str]


def make_notice_queries(case: Case, data_dir: Path, seed: int, count: int) -> dict[str, list[NoticeQuery]]:
    """Returns the queries of each kind that there is in a case.

    Args:
        case: A case of `NOTICE_CASES`.
        data_dir: Directory that keeps what corpora are made from.
        seed: Seed of the corpus, and of what is drawn.
        count: The most queries of a kind.
    """
    corpus, rng = case.corpus, random.Random(seed)
    gold = corpus.gold_ids()
    queries = {QUESTIONS: [NoticeQuery(q.prompt, q.completion, gold[q.id]) for q in corpus.queries]}
    if case.name in {"world_factbook", "invented_facts"}:
        is_factbook = case.name == "world_factbook"
        unknown = ask_about_countries(corpus, seed) if is_factbook else ask_about_people(corpus, rng)
        queries |= make_fact_strangers(case, rng.sample(unknown, min(count, len(unknown))), rng)
    else:
        queries |= ask_documents(corpus, rng)
        queries |= make_passage_strangers(corpus, draw_left_out_passages(corpus, data_dir, seed, count))
    return {kind: kind_queries[:count] for kind, kind_queries in queries.items() if kind_queries}


def ask_documents(corpus: Corpus, rng: random.Random) -> dict[str, list[NoticeQuery]]:
    """Returns queries that are made of the documents, in random order."""
    documents = rng.sample(corpus.documents, len(corpus.documents))
    return {
        OWN: [NoticeQuery(*halve(item.text), frozenset({item.id})) for item in documents],
        REWORDED: [NoticeQuery(*halve(_thin(item.text)), frozenset({item.id})) for item in documents],
    }


def ask_about_countries(corpus: Corpus, seed: int) -> list[UnknownFact]:
    """Returns the facts of the Factbook about the countries that no document of this corpus is about."""
    known = {document.metadata["country"] for document in corpus.documents}
    all_facts = make_world_factbook(facts=_ALL_FACTS, queries=_ALL_FACTS, anti_documents=0, seed=seed)
    about = {document.gold: document.metadata for document in all_facts.documents}
    values: dict[str, list[str]] = {}
    for query in all_facts.queries:
        values.setdefault(about[query.gold]["field"], []).append(query.completion)
    return [
        UnknownFact(query.prompt, values[about[query.gold]["field"]])
        for query in all_facts.queries
        if about[query.gold]["country"] not in known
    ]


def ask_about_people(corpus: Corpus, rng: random.Random) -> list[UnknownFact]:
    """Returns a question about each person with names of the corpus's people whom no document is about."""
    known = {document.metadata["person"] for document in corpus.documents}
    names = (f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES)
    unknown = []
    for name in names:
        attribute = rng.choice(list(ATTRIBUTES.values()))
        prompt = rng.choice(attribute.templates).removesuffix(" {value}.").format(person=name)
        if name not in known:
            unknown.append(UnknownFact(prompt, [f" {value}" for value in attribute.values]))
    return unknown


def make_fact_strangers(
    case: Case, unknown: Sequence[UnknownFact], rng: random.Random
) -> dict[str, list[NoticeQuery]]:
    """Returns strangers that ask for these facts."""
    texts = [document.text for document in case.corpus.documents]
    strangers: dict[str, list[NoticeQuery]] = {UNSEEN: [], ELSEWHERE: [], GENERATED: []}
    for fact in unknown:
        value = rng.choice(fact.values)
        kind = ELSEWHERE if any(value.strip() in text for text in texts) else UNSEEN
        strangers[kind].append(NoticeQuery(fact.prompt, value))
        if (generated := _generate(case, fact.prompt)).strip():
            strangers[GENERATED].append(NoticeQuery(fact.prompt, generated))
    return strangers


def draw_left_out_passages(corpus: Corpus, data_dir: Path, seed: int, count: int) -> list[str]:
    """Returns passages that a larger corpus of the same seed has, and whose families are not in this corpus."""
    size, queries = len(corpus.documents) + count, len(corpus.queries)
    if corpus.name == "package_descriptions":
        larger = make_package_descriptions(data_dir, size, queries, seed)
    else:
        larger = make_docstring_paragraphs(size, queries, seed)
    known = {document.gold for document in corpus.documents} | {query.gold for query in corpus.queries}
    return [document.text for document in larger.documents if document.gold not in known]


def make_passage_strangers(corpus: Corpus, passages: Iterable[str]) -> dict[str, list[NoticeQuery]]:
    """Returns the passages as queries, by whether a document has a phrase of the second half."""
    seen = set().union(*(find_phrases(document.text) for document in corpus.documents))
    strangers: dict[str, list[NoticeQuery]] = {UNSEEN: [], ELSEWHERE: []}
    for passage in passages:
        beginning, ending = halve(passage)
        kind = UNSEEN if seen.isdisjoint(find_phrases(ending)) else ELSEWHERE
        strangers[kind].append(NoticeQuery(beginning, ending))
    return strangers


def _generate(case: Case, prompt: str) -> str:
    """Returns what the model says up to the first full stop, which may be nothing."""
    try:
        return generate_completion(case.model, prompt, _GENERATED_TOKENS).text.split(".")[0]
    except InvalidInput:  # it says nothing
        return ""


def _thin(text: str) -> str:
    """Returns a text without every third word."""
    return " ".join(word for number, word in enumerate(text.split(), start=1) if number % 3)
