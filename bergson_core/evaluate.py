"""How well a ranking of documents finds those that made the model say it, and two rankings to compare with.

A ranking is a list of document ids, best first, for each query id; gold is the set of right documents of each query.
Nothing here imports torch, and bm25s is imported only where it ranks.
"""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from bergson_core.errors import InvalidInput
from bergson_core.facts import Document, FactQuery


@dataclass(frozen=True)
class Retrieval:
    """Means over `queries` queries, each between 0 and 1.

    mrr                 1 / rank of the first gold document, 0 where the ranking has none
    recall_at_10        1 where any gold document is among the first ten, else 0
    strict_recall_at_10 gold documents among the first ten, divided by min(10, number of gold documents)
    """

    mrr: float
    recall_at_10: float
    strict_recall_at_10: float
    queries: int


def retrieval(rankings: Mapping[str, Sequence[str]], gold: Mapping[str, Collection[str]]) -> Retrieval:
    """Measures of `rankings` (query id → document ids, best first) against `gold` (query id → right document ids).

    The means are over the queries in `rankings`: one that got no answer belongs there, with an empty ranking, and
    counts zero. Raises `InvalidInput` without queries, for a query without gold documents, and for a ranking that
    names a document twice.
    """
    if not rankings:
        raise InvalidInput("there are no rankings to measure; expected at least one query")
    rows = []
    for query, ranking in rankings.items():
        right = set(gold.get(query, ()))
        if not right:
            raise InvalidInput(f"query {query!r} has no gold documents; expected at least one")
        if len(set(ranking)) != len(ranking):
            raise InvalidInput(f"the ranking of query {query!r} names a document twice; expected each once")
        first = next((rank for rank, document in enumerate(ranking, 1) if document in right), None)
        found = len(right.intersection(ranking[:10]))
        rows.append((1 / first if first else 0.0, float(found > 0), found / min(10, len(right))))
    mrr, recall, strict = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    return Retrieval(mrr, recall, strict, len(rows))


def bm25_rankings(
    documents: Sequence[Document], queries: Sequence[FactQuery], top_k: int
) -> dict[str, list[str]]:
    """At most `top_k` documents for each query by BM25 over words, the query being prompt + completion.

    Documents that share no word with the query are left out. Raises `InvalidInput` without documents or queries,
    or unless top_k is at least 1. Source: Robertson & Zaragoza, The Probabilistic Relevance Framework (2009), with
    the defaults of bm25s: Lucene's variant, k1 = 1.5, b = 0.75.
    """
    _check(documents, queries, top_k)
    import bm25s

    # Unlike bm25s, keep words of one character: the day of a date is one.
    options = {"token_pattern": r"(?u)\b\w+\b", "stopwords": None, "show_progress": False}
    index = bm25s.BM25()
    index.index(bm25s.tokenize([document.text for document in documents], **options), show_progress=False)
    asked = bm25s.tokenize([query.prompt + query.completion for query in queries], **options)
    found, scores = index.retrieve(asked, k=min(top_k, len(documents)), show_progress=False)
    return {
        query.id: [documents[number].id for number, score in zip(*row, strict=True) if score > 0]
        for query, row in zip(queries, zip(found, scores, strict=True), strict=True)
    }


def random_rankings(
    documents: Sequence[Document], queries: Sequence[FactQuery], top_k: int, seed: int = 0
) -> dict[str, list[str]]:
    """`top_k` documents (or all there are) for each query in a random order, the same for the same seed.

    Raises `InvalidInput` without documents or queries, or unless top_k is at least 1.
    """
    _check(documents, queries, top_k)
    rng = random.Random(seed)
    ids = [document.id for document in documents]
    return {query.id: rng.sample(ids, min(top_k, len(ids))) for query in queries}


def _check(documents: Sequence[Document], queries: Sequence[FactQuery], top_k: int) -> None:
    if not documents or not queries:
        raise InvalidInput(f"expected documents and queries, got {len(documents)} and {len(queries)}")
    if top_k < 1:
        raise InvalidInput(f"top_k must be at least 1, got {top_k}")
