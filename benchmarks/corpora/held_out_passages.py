"""Divides passages of text into training documents and held-out queries.

Passages come in families, such as the packages of one source or the paragraphs of one docstring. A query is a passage
that is left out of the documents: its first half is the prompt, and the rest is the completion. Where a family has
several passages, the others are documents, so that something in the corpus is about the subject of the query. They are
its gold documents. This is weaker than the gold of a fact: they are about the same thing, and need not have taught it.

A passage that shares more than half of its phrases with another one of its family is left out: else most of the package
descriptions that are queries would be in the corpus nearly word for word. Near copies in other families stay.

What is chosen depends on names and the seed alone, by a hash of the two. A passage that is added or removed elsewhere
changes little.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Final

from benchmarks.corpora.corpus import Corpus, Document
from bergson_core.errors import InvalidInput
from bergson_core.evaluation.queries import EvaluationQuery

PASSAGES_OF_FAMILY: Final = 4
"""Most passages that are taken of a family: some sources make hundreds of packages by one template."""
PHRASE_WORDS: Final = 5
"""Words of the phrases that near copies are told by."""


@dataclass(frozen=True)
class Passage:
    """A passage of text.

    Attributes:
        id: Identifies the passage.
        family: What the passage belongs to.
        text: The text.
    """

    id: str
    family: str
    text: str


def divide_passages(
    name: str, source: str, passages: Iterable[Passage], documents: int, queries: int, seed: int
) -> Corpus:
    """Returns a corpus of passages of text, each of which differs from the others in more than numbers.

    Args:
        name: Name of the corpus.
        source: Where the passages come from.
        passages: The passages, in any order.
        documents: Number of training documents.
        queries: Number of queries, as far as possible of families that have documents too.
        seed: Chooses the passages and the order of the documents.

    Raises:
        InvalidInput: There are too few passages.
    """
    families: dict[str, list[Passage]] = {}
    for passage in sorted(_distinct(passages), key=lambda passage: _rank(seed, passage.id)):
        family = families.setdefault(passage.family, [])
        if len(family) < PASSAGES_OF_FAMILY and not _is_near_copy(passage, family):
            family.append(passage)
    names = sorted(families, key=lambda family: (len(families[family]) == 1, _rank(seed, family)))
    rest = sorted(names[queries:], key=lambda family: _rank(seed, family))
    held_out = [families[family][0] for family in names[:queries]]
    siblings = chain.from_iterable(families[family][1:] for family in names[:queries])
    others = chain.from_iterable(families[family] for family in rest)
    chosen = [*siblings, *others][:documents]
    if len(held_out) < queries or len(chosen) < documents:
        raise InvalidInput(
            f"{name}: expected {documents:,} documents and {queries:,} queries, but {source} has "
            f"{sum(map(len, families.values())):,} passages in {len(families):,} families; ask for fewer"
        )
    chosen.sort(key=lambda passage: _rank(seed, f"order {passage.id}"))
    return Corpus(
        name,
        source,
        tuple(
            Document(passage.id, passage.text, passage.family, {"family": passage.family})
            for passage in chosen
        ),
        tuple(_make_query(passage) for passage in held_out),
    )


def count_words(text: str) -> int:
    """Returns the number of words between spaces."""
    return len(text.split())


def halve(text: str) -> tuple[str, str]:
    """Returns the first half of a text's words, and the rest with the space before it."""
    words = list(re.finditer(r"\S+", text))
    end = words[(len(words) - 1) // 2].end()
    return text[:end], text[end:]


def find_phrases(text: str) -> set[tuple[str, ...]]:
    """Returns the runs of `PHRASE_WORDS` words of a text, without regard to case and punctuation."""
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[k : k + PHRASE_WORDS]) for k in range(len(words) - PHRASE_WORDS + 1)}


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode()).digest()


def _distinct(passages: Iterable[Passage]) -> list[Passage]:
    """Returns the passages whose letters no passage of a smaller id has."""
    by_letters: dict[tuple[str, ...], Passage] = {}
    for passage in sorted(passages, key=lambda passage: passage.id):
        by_letters.setdefault(tuple(re.findall(r"[^\W\d_]+", passage.text.casefold())), passage)
    return list(by_letters.values())


def _is_near_copy(passage: Passage, others: Iterable[Passage]) -> bool:
    """Returns whether more than half of the phrases of a passage, or of another one, are in the other."""
    phrases = find_phrases(passage.text)
    for other in others:
        other_phrases = find_phrases(other.text)
        if 2 * len(phrases & other_phrases) > min(len(phrases), len(other_phrases)):
            return True
    return False


def _make_query(passage: Passage) -> EvaluationQuery:
    return EvaluationQuery(passage.id, *halve(passage.text), passage.family)
