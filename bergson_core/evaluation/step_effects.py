"""What one step of unlearning or of learning on a single document does to the queries.

Legend: q queries, k documents of each query (k may differ between methods).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from bergson_core.attribution.unlearning import StepDirection, Unlearner
from bergson_core.evaluation.metrics import bootstrap_interval
from bergson_core.schemas.evaluation import Effect
from bergson_core.tokens.tokenization import Tokens


def measure_step_effects(
    unlearner: Unlearner,
    direction: StepDirection,
    best: Mapping[str, Int[np.ndarray, "q _"]],
    documents: Sequence[Tokens],
    queries: Sequence[Tokens],
    *,
    seed: int = 0,
    on_document: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Effect]:
    """Takes a step on each of the best documents alone and measures how the probabilities of the queries change.

    A document that is among the best of several queries or methods is stepped on once.

    Args:
        unlearner: Takes the steps.
        direction: Whether the steps unlearn or learn.
        best: For each method, the positions of each query's best documents in `documents`.
        documents: The documents of the index.
        queries: The queries; their completions are labelled.
        seed: Seed of the bootstrap intervals.
        on_document: Called with (documents done, all documents) after each step.

    Returns:
        The effect of each method's documents: averaged over the documents of a query, then over queries.
    """
    before, after = log_probabilities_after_steps(
        unlearner, direction, best, documents, queries, on_document=on_document
    )
    return {name: _effect(before, table, seed) for name, table in after.items()}


def log_probabilities_after_steps(
    unlearner: Unlearner,
    direction: StepDirection,
    best: Mapping[str, Int[np.ndarray, "q _"]],
    documents: Sequence[Tokens],
    queries: Sequence[Tokens],
    *,
    on_document: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Float[np.ndarray, " q"], dict[str, Float[np.ndarray, "q _"]]]:
    """Returns the log-probability of each query, in nats, and for each method that after a step on each best document.

    The arguments are those of `measure_step_effects`.
    """
    queries_by_position: dict[int, set[int]] = {}
    for table in best.values():
        for query, positions in enumerate(table):
            for position in positions:
                queries_by_position.setdefault(int(position), set()).add(query)
    log_p_before = unlearner.log_probabilities(queries)
    log_p_after: dict[tuple[int, int], float] = {}
    for done, (position, query_numbers) in enumerate(queries_by_position.items(), start=1):
        numbers = sorted(query_numbers)
        with unlearner.temporary_step(documents[position], direction):
            log_p = unlearner.log_probabilities([queries[number] for number in numbers])
        log_p_after |= {
            (position, number): float(value) for number, value in zip(numbers, log_p, strict=True)
        }
        on_document(done, len(queries_by_position))
    return log_p_before, {
        name: np.array(
            [[log_p_after[int(position), query] for position in row] for query, row in enumerate(table)]
        )
        for name, table in best.items()
    }


def _effect(before: Float[np.ndarray, " q"], after: Float[np.ndarray, "q k"], seed: int) -> Effect:
    """Returns the mean change of log-probabilities and of probabilities."""
    before = before[:, None]
    return Effect(
        log_probability=bootstrap_interval((after - before).mean(1), seed),
        probability=bootstrap_interval((np.exp(after) - np.exp(before)).mean(1), seed),
    )
