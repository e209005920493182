"""The rows of tokenised queries: one for each query, also where it is the difference of two texts.

Legend: q queries, D numbers of a row.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32, Float64

from bergson_core.attribution.queries.query_tokenizer import TokenizedQuery
from bergson_core.gradients.row_collector import RowCollector, collect_rows


def collect_query_rows(
    collector: RowCollector,
    queries: Sequence[TokenizedQuery],
    budget_tokens: int,
    tick: Callable[[], object] = lambda: None,
) -> tuple[Float32[np.ndarray, "q D"], list[Float64[np.ndarray, " _"]]]:
    """Returns the rows of queries, and their losses.

    Args:
        collector: Runs the model.
        queries: The queries.
        budget_tokens: The most tokens of a batch, padding included.
        tick: Called after each batch; it may raise to stop.

    Returns:
        The rows [q, D], and for each query the losses in nats of its completion and, if it has one, of its
        `instead_of`.
    """
    texts = [text for query in queries for text in query.weighted_tokens]
    rows, losses = collect_rows(collector, texts, budget_tokens, tick)
    firsts = np.cumsum([0, *(len(query.weighted_tokens) for query in queries)])[:-1]
    return np.add.reduceat(rows, firsts), np.split(losses, firsts[1:])
