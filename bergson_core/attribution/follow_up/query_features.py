"""φ of a query that was answered, for work on the rows of its results.

Legend: m modules, d numbers per module.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from bergson_core.attribution.answering import QueryAnswerer
from bergson_core.gradients.row_collector import collect_rows
from bergson_core.schemas.build_parts.checkpoints import require_between
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.results import QueryEcho
from bergson_core.tokens.batching import BUDGET_TOKENS


def query_features(answerer: QueryAnswerer, query: AttributionQuery, echo: QueryEcho) -> Float[Tensor, "m d"]:
    """Returns φ of a query that was answered, or the sum of φ that a behaviour is.

    Args:
        answerer: Answers the queries of the index.
        query: The query.
        echo: The query as it was answered.
    """
    if query.behaviour is not None:
        return answerer.behaviours.difference(query.behaviour, query.instead_of_behaviour, query.profile)
    tokens = answerer.query_tokenizer.tokenize_answered(query, echo)
    rows, _ = collect_rows(answerer.collector, tokens, BUDGET_TOKENS)
    row = torch.from_numpy(rows.sum(0)).reshape(1, len(answerer.collector.slices), -1)
    checkpoints = None
    if query.between is not None:
        checkpoints = require_between(query.between, answerer.manifest.spec.checkpoints)
    return answerer.searcher.profiles[query.profile].query_features(row, checkpoints)[0]
