"""Runs a set of queries through the model, and returns what stored rows are multiplied with to be scored by them.

Legend: q queries, b queries of a batch, m modules, d numbers per module, D = m·d.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor

from bergson_core.attribution.index import AttributionIndex
from bergson_core.data.documents import READ_CHUNK_SIZE
from bergson_core.errors import InvalidInput
from bergson_core.gradients.row_collector import collect_rows
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.search.profile import Profile
from bergson_core.storage.layout import DEFAULT_PROFILE
from bergson_core.tokens.batching import BUDGET_TOKENS, iter_batches
from bergson_core.tokens.document_tokens import iter_token_chunks
from bergson_core.tokens.tokenization import Tokens
from bergson_core.tokens.word_joins import JoinChecker

INSTEAD_OF_COLUMN: Final = "instead_of"
"""Column of a dataset of queries with other completions, that the completions are contrasted with; null for none."""
_CONTRASTS_A_STEP: Final = 32


def queries_to_dataset(
    queries: Iterable[AttributionQuery], profile: str, join_checker: JoinChecker
) -> Dataset:
    """Returns a dataset of queries that are all scored under one profile, with the columns `query_columns`.

    A completion is joined to its prompt as the query's `join` says.

    Raises:
        InvalidInput: A query asks for another profile, or some queries are chats and some are not.
    """
    queries = list(queries)
    for number, query in enumerate(queries):
        if query.profile not in (DEFAULT_PROFILE, profile):
            raise InvalidInput(
                f"query {number} asks for the profile {query.profile!r}, but all queries are scored under {profile!r}; "
                "expected the same profile"
            )
        if query.between is not None:
            raise InvalidInput(
                f"query {number} has its own checkpoints in between, but all queries are scored at the same: expected "
                "none, and between as an argument"
            )
        if query.behaviour is not None:
            raise InvalidInput(
                f"query {number} asks for a behaviour, which `score_behaviour` scores documents with"
            )
        if query.objective != "log_probability":
            raise InvalidInput(
                f"query {number} has the objective {query.objective!r}, but documents are scored with "
                "log-probabilities; leave it out"
            )
    is_chat = [query.messages is not None for query in queries]
    if any(is_chat) and not all(is_chat):
        raise InvalidInput(
            f"query {is_chat.index(not is_chat[0])} has {'no ' if is_chat[0] else ''}messages, unlike those before it; "
            "expected either chats or prompts with completions"
        )
    alternatives = [query.instead_of for query in queries]
    if any(is_chat):
        if any(alternatives):
            raise InvalidInput(
                "documents are scored with chats as they are: expected no instead_of beside messages"
            )
        return Dataset.from_dict({"messages": [json.dumps(query.messages, default=str) for query in queries]})

    def join(query: AttributionQuery, completion: str | None) -> str | None:
        if query.join != "space" or completion is None:
            return completion
        return join_checker.join(query.prompt or "", completion)

    contents = {
        "prompt": [query.prompt for query in queries],
        "completion": [join(query, query.completion) for query in queries],
    }
    if any(alternatives):
        contents[INSTEAD_OF_COLUMN] = [join(query, query.instead_of) for query in queries]
    return Dataset.from_dict(contents)


def query_columns(queries: Dataset) -> ColumnsSpec:
    """Returns the columns of a dataset of queries that names none: `messages`, or else `prompt` and `completion`."""
    if "messages" in queries.column_names and "prompt" not in queries.column_names:
        return ColumnsSpec(messages="messages")
    return ColumnsSpec(prompt="prompt", completion="completion")


def collect_query_weights(
    index: AttributionIndex,
    queries: Dataset,
    columns: ColumnsSpec,
    profile: Profile,
    checkpoints: range | None = None,
) -> Float[Tensor, "D q"]:
    """Returns the weights of each query, one column per query.

    Args:
        index: The index whose rows are scored.
        queries: The queries.
        columns: Which columns of `queries` are prompt and completion.
        profile: Profile to score under.
        checkpoints: The checkpoints that a score is the mean over; None for all of them.

    Raises:
        InvalidInput: A query cannot be read, or has no gradient, or one that is not finite.
        TooLong: A query is longer than the model takes.
    """
    weights = torch.zeros(len(queries), index.collector.dimensions)
    for numbers, batch_weights in _iter_weights(index, queries, columns, profile, checkpoints):
        weights[numbers] = batch_weights.flatten(1)
    return weights.mT


def collect_mean_weights(
    index: AttributionIndex,
    queries: Dataset,
    columns: ColumnsSpec,
    profile: Profile,
    checkpoints: range | None = None,
) -> Float[Tensor, "D 1"]:
    """Returns the mean of the queries' weights, whose product with a row is the mean of the row's scores.

    Arguments and errors are those of `collect_query_weights`. Only D numbers are in memory, whatever q is.
    """
    total = torch.zeros(index.collector.dimensions, dtype=torch.float64)
    for _, batch_weights in _iter_weights(index, queries, columns, profile, checkpoints):
        total += batch_weights.flatten(1).sum(0, dtype=torch.float64)
    return (total / len(queries)).float()[:, None]


def _iter_weights(
    index: AttributionIndex,
    queries: Dataset,
    columns: ColumnsSpec,
    profile: Profile,
    checkpoints: range | None = None,
) -> Iterator[tuple[Int[np.ndarray, " b"], Float[Tensor, "b m d"]]]:
    """Yields (numbers of some queries, their weights), batch by batch."""
    has_contrasts = INSTEAD_OF_COLUMN in queries.column_names
    iter_rows = _iter_contrasting_rows if has_contrasts else _iter_rows
    for numbers, rows in iter_rows(index, queries, columns):
        is_finite = rows.isfinite().all(1).numpy()
        if not is_finite.all():
            raise InvalidInput(f"query {numbers[~is_finite][0]}: its gradient is not finite; leave it out")
        by_module = rows.reshape(len(rows), len(index.collector.slices), -1)
        _, weights = profile.prepare_queries(by_module, checkpoints)
        yield numbers, weights


def _iter_rows(
    index: AttributionIndex, queries: Dataset, columns: ColumnsSpec
) -> Iterator[tuple[Int[np.ndarray, " b"], Float[Tensor, "b D"]]]:
    """Yields (numbers of some queries, their raw gradient rows), batch by batch."""
    for first, chunk in _iter_tokens(index, queries, columns):
        for batch in iter_batches(chunk, BUDGET_TOKENS, index.model.device):
            rows, _ = index.collector.collect(batch)
            yield first + batch.indices, rows.float().cpu()


def _iter_contrasting_rows(
    index: AttributionIndex, queries: Dataset, columns: ColumnsSpec
) -> Iterator[tuple[Int[np.ndarray, " b"], Float[Tensor, "b D"]]]:
    """Does what `_iter_rows` does for queries of which some have another completion that theirs is contrasted with."""
    if columns.completion is None:
        raise InvalidInput(
            f"the queries have a column {INSTEAD_OF_COLUMN}, and no completions that it could be contrasted with"
        )
    contents = {name: queries[name] for name in {columns.prompt, columns.completion, INSTEAD_OF_COLUMN}}
    alternatives = list(contents.pop(INSTEAD_OF_COLUMN))
    completions = list(contents[columns.completion])
    pairs = zip(alternatives, completions, strict=True)
    contents[columns.completion] = [own if other is None else other for other, own in pairs]
    others = _iter_tokens(index, Dataset.from_dict(contents), columns)
    for (first, chunk), (_, other_chunk) in zip(_iter_tokens(index, queries, columns), others, strict=True):
        for start in range(0, len(chunk), _CONTRASTS_A_STEP):
            texts = chunk[start : start + _CONTRASTS_A_STEP]
            numbers = first + start + np.arange(len(texts))
            contrasted = [
                replace(other, weight=0 if alternatives[number] is None else -other.weight)
                for number, other in zip(numbers, other_chunk[start : start + _CONTRASTS_A_STEP], strict=True)
            ]
            rows, _ = collect_rows(index.collector, [*texts, *contrasted], BUDGET_TOKENS)
            yield numbers, torch.from_numpy(rows[: len(texts)] + rows[len(texts) :])


def _iter_tokens(
    index: AttributionIndex, queries: Dataset, columns: ColumnsSpec
) -> Iterator[tuple[int, list[Tokens]]]:
    """Yields (number of the first of them, tokens of some queries), in order."""
    model, loss = index.model, index.manifest.spec.gradients.loss
    chunks = iter_token_chunks(
        model.tokenizer,
        queries,
        columns,
        index.query_limits,
        loss,
        label_end=False,
        chat_date=model.chat_date,
    )
    for chunk_number, chunk in enumerate(chunks):
        first = chunk_number * READ_CHUNK_SIZE
        _require_labelled_tokens(chunk, first)
        yield first, chunk


def _require_labelled_tokens(queries: Iterable[Tokens], first: int) -> None:
    """Raises `InvalidInput` for a query without labelled tokens; the first query has the number `first`."""
    for number, tokens in enumerate(queries, start=first):
        if tokens.n_labelled == 0:
            raise InvalidInput(
                f"query {number}: there is nothing to attribute, because its completion has no token that follows "
                "another; expected a prompt, or a longer completion"
            )
