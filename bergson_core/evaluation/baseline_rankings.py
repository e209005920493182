"""Rankings to compare an index with that need no model: BM25 over words, and random order.

A ranking lists document ids, best first. bm25s is imported only when it is used.

Legend: q queries, n documents.
"""

import random
from collections.abc import Sequence
from typing import cast

import numpy as np
from jaxtyping import Float

from bergson_core.errors import InvalidInput
from bergson_core.evaluation.queries import EvaluationDocument, EvaluationQuery


def bm25_rankings(
    documents: Sequence[EvaluationDocument], queries: Sequence[EvaluationQuery], top_k: int
) -> dict[str, list[str]]:
    """Ranks documents by BM25 of their words with the words of prompt and completion.

    Args:
        documents: Documents to rank.
        queries: Queries to rank them for.
        top_k: Largest number of documents in a ranking.

    Returns:
        For each query id, the ids of at most `top_k` documents; documents that share no word with the query are left
        out.

    Raises:
        InvalidInput: There are no documents or no queries, or `top_k` is less than 1.

    Source: Robertson & Zaragoza, The Probabilistic Relevance Framework (2009), with the defaults of bm25s: Lucene's
    variant, k1 = 1.5, b = 0.75.
    """
    _require_inputs(documents, queries, top_k)
    score_table = bm25_scores(
        [document.text for document in documents], [query.prompt + query.completion for query in queries]
    )
    best_table = np.argsort(-score_table, axis=1, kind="stable")[:, :top_k]
    return {
        query.id: [documents[number].id for number in best if scores[number] > 0]
        for query, best, scores in zip(queries, best_table, score_table, strict=True)
    }


def bm25_scores(documents: Sequence[str], queries: Sequence[str]) -> Float[np.ndarray, "q n"]:
    """Returns the BM25 score of each document with each query, as in `bm25_rankings`.

    Args:
        documents: Texts of the documents.
        queries: Texts of the queries.
    """
    import bm25s

    # bm25s drops words of one character by default, but the day of a date may be one.
    options = {"token_pattern": r"(?u)\b\w+\b", "stopwords": None, "show_progress": False}
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(documents), **options), show_progress=False)
    query_words = cast("list[list[str]]", bm25s.tokenize(list(queries), return_ids=False, **options))
    return np.stack([index.get_scores(words) for words in query_words])


def random_rankings(
    documents: Sequence[EvaluationDocument], queries: Sequence[EvaluationQuery], top_k: int, seed: int = 0
) -> dict[str, list[str]]:
    """Draws documents for each query in random order.

    Args:
        documents: Documents to draw from.
        queries: Queries to draw them for.
        top_k: Number of documents in a ranking; all of them if there are fewer.
        seed: Equal seeds give equal rankings.

    Returns:
        For each query id, the ids of the drawn documents.

    Raises:
        InvalidInput: There are no documents or no queries, or `top_k` is less than 1.
    """
    _require_inputs(documents, queries, top_k)
    rng = random.Random(seed)
    ids = [document.id for document in documents]
    return {query.id: rng.sample(ids, min(top_k, len(ids))) for query in queries}


def _require_inputs(
    documents: Sequence[EvaluationDocument], queries: Sequence[EvaluationQuery], top_k: int
) -> None:
    if not documents or not queries:
        raise InvalidInput(f"expected documents and queries, got {len(documents)} and {len(queries)}")
    if top_k < 1:
        raise InvalidInput(f"top_k must be at least 1, got {top_k}")
