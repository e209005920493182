"""How well a ranking of documents finds those that made the model say it, and two rankings to compare with.

A ranking is a list of document ids, best first, for each query id; gold is the set of right documents of each query.
Nothing here imports torch, and bm25s is imported only where it ranks.

Legend: q queries, n documents, M training runs.
"""

import random
from collections.abc import Collection, Mapping, Sequence
from typing import Final, cast

import numpy as np
from jaxtyping import Bool, Float

from bergson_core.errors import InvalidInput
from bergson_core.evaluation.queries import EvaluationDocument, EvaluationQuery
from bergson_core.schemas.evaluation import Interval, Retrieval

LEAST_RUNS: Final = 10
"""For a rank correlation: of fewer, one query's has a standard error of a third or more."""
_RESAMPLED: Final = 1000


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


def bootstrap(values: Float[np.ndarray, " q"], seed: int = 0) -> Interval:
    """The mean of one value a query, with a bootstrap interval over queries (Efron, 1979)."""
    if len(values) == 0:
        raise InvalidInput("there are no values to average; expected one query at least")
    drawn = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLED, len(values)))
    low, high = np.quantile(values[drawn].mean(1), (0.025, 0.975))
    return Interval(float(values.mean()), float(low), float(high))


def linear_datamodelling_score(
    scores: Float[np.ndarray, "q n"],
    kept: Bool[np.ndarray, "M n"],
    losses: Float[np.ndarray, "M q"],
    seed: int = 0,
) -> Interval:
    """How well the sums of the scores of what each run kept foretell the losses of the queries after it.

    For each query, the rank correlation over runs between Σ score of the documents that a run kept and -loss; then the
    mean over queries (Park et al., TRAK, arXiv 2303.14186, section 2.1). A query whose sums are all the same
    correlates by 0: nothing was foretold. The interval is over queries and runs: each resample draws queries with
    replacement, and half of the runs without, whose spread about the whole is that of all of them about the truth.
    Raises `InvalidInput` for fewer than `LEAST_RUNS` runs, and for losses that are not finite.
    """
    runs, queries = losses.shape
    check_runs(runs)
    if not np.isfinite(losses).all() or not np.isfinite(scores).all():
        raise InvalidInput("scores or losses are not finite; expected numbers")
    foretold = kept.astype(np.float64) @ scores.T.astype(np.float64)
    mean = float(_rank_correlation(foretold, -losses).mean())
    generator, found = np.random.default_rng(seed), []
    for _ in range(_RESAMPLED // 5):
        half = generator.permutation(runs)[: runs // 2]
        drawn = generator.integers(queries, size=queries)
        found.append(_rank_correlation(foretold[half], -losses[half])[drawn].mean())
    low, high = np.quantile(found, (0.025, 0.975)) - np.mean(found)
    return Interval(mean, mean + float(low), mean + float(high))


def check_runs(runs: int) -> None:
    """Raises `InvalidInput` for fewer training runs than a rank correlation needs."""
    if runs < LEAST_RUNS:
        raise InvalidInput(
            f"{runs} training runs are too few for a rank correlation: expected {LEAST_RUNS} at least, better 40"
        )


def _rank_correlation(
    one: Float[np.ndarray, "M q"], other: Float[np.ndarray, "M q"]
) -> Float[np.ndarray, " q"]:
    """Spearman's, column by column, ties sharing their mean rank; 0 where a column is constant."""
    import pandas as pd

    ranks = [np.asarray(pd.DataFrame(values).rank(), dtype=np.float64) for values in (one, other)]
    a, b = (values - values.mean(0) for values in ranks)
    size = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    return np.divide((a * b).sum(0), size, out=np.zeros_like(size), where=size > 0)


def bm25_rankings(
    documents: Sequence[EvaluationDocument], queries: Sequence[EvaluationQuery], top_k: int
) -> dict[str, list[str]]:
    """At most `top_k` documents for each query by BM25 over words, the query being prompt + completion.

    Documents that share no word with the query are left out. Raises `InvalidInput` without documents or queries,
    or unless top_k is at least 1. Source: Robertson & Zaragoza, The Probabilistic Relevance Framework (2009), with
    the defaults of bm25s: Lucene's variant, k1 = 1.5, b = 0.75.
    """
    _check(documents, queries, top_k)
    scores = bm25_scores(
        [document.text for document in documents], [query.prompt + query.completion for query in queries]
    )
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return {
        query.id: [documents[number].id for number in row if its[number] > 0]
        for query, row, its in zip(queries, best, scores, strict=True)
    }


def bm25_scores(documents: Sequence[str], queries: Sequence[str]) -> Float[np.ndarray, "q n"]:
    """BM25 of each document's words with each query's, as in `bm25_rankings`."""
    import bm25s

    # Unlike bm25s, keep words of one character: the day of a date is one.
    options = {"token_pattern": r"(?u)\b\w+\b", "stopwords": None, "show_progress": False}
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(documents), **options), show_progress=False)
    asked = cast("list[list[str]]", bm25s.tokenize(list(queries), return_ids=False, **options))
    return np.stack([index.get_scores(words) for words in asked])


def random_rankings(
    documents: Sequence[EvaluationDocument], queries: Sequence[EvaluationQuery], top_k: int, seed: int = 0
) -> dict[str, list[str]]:
    """`top_k` documents (or all there are) for each query in a random order, the same for the same seed.

    Raises `InvalidInput` without documents or queries, or unless top_k is at least 1.
    """
    _check(documents, queries, top_k)
    rng = random.Random(seed)
    ids = [document.id for document in documents]
    return {query.id: rng.sample(ids, min(top_k, len(ids))) for query in queries}


def _check(documents: Sequence[EvaluationDocument], queries: Sequence[EvaluationQuery], top_k: int) -> None:
    if not documents or not queries:
        raise InvalidInput(f"expected documents and queries, got {len(documents)} and {len(queries)}")
    if top_k < 1:
        raise InvalidInput(f"top_k must be at least 1, got {top_k}")
