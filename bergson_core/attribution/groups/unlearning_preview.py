"""Previews what unlearning some documents together does to a list of queries, and to control queries.

The step is that of `attribution.unlearning`: one step of gradient ascent on the sum of the documents' losses, with the
moments and the learning rate that verification has. Queries and documents are measured before and after it, a batch at
a time, and the weights are restored bit for bit after each batch. Nothing is saved.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float64

from bergson_core.attribution.document_selection import DocumentSelector, RowLocation
from bergson_core.attribution.follow_up.unlearning_effects import difference, finite_or_none, share
from bergson_core.attribution.index import AttributionIndex
from bergson_core.attribution.queries.query_lists import tokenize_query_list
from bergson_core.attribution.queries.query_tokenizer import TokenizedQuery
from bergson_core.attribution.unlearning import Unlearner
from bergson_core.errors import InvalidInput
from bergson_core.schemas.results import Progress
from bergson_core.schemas.unlearning.results import QueryChange, UnlearnPreview, mean_change
from bergson_core.schemas.unlearning.spec import DEFAULT_MAX_DOCUMENTS, UnlearnSpec, WatchedQuery
from bergson_core.storage.damaged_shards import damaged_shards_error
from bergson_core.tokens.tokenization import Tokens
from bergson_core.utils.background import run_in_thread
from bergson_core.utils.progress import ProgressCallback, StageProgress

T = TypeVar("T")
_TOKENIZED_TOGETHER = 64
"""Documents that are tokenised between two calls of `report`."""


def preview_unlearning(
    index: AttributionIndex,
    queries: Sequence[WatchedQuery | Mapping[str, Any]],
    *,
    ids: Sequence[str] | None = None,
    filter: Mapping[str, Any] | None = None,
    control: Sequence[WatchedQuery | Mapping[str, Any]] | None = None,
    learning_rate: float | None = None,
    max_documents: int = DEFAULT_MAX_DOCUMENTS,
    report: ProgressCallback | None = None,
) -> UnlearnPreview:
    """Returns what one step of unlearning on some documents together would do to queries. Nothing is kept of it.

    Example:
        preview = preview_unlearning(
            index, [{"prompt": "Ada was born in", "completion": " London"}], ids=["doc-17", "doc-40"]
        )
        print(preview.queries[0].log_probability)

    Args:
        index: The index.
        queries: Queries to watch, or their fields: at most 256.
        ids: Ids of the documents to unlearn. That of a document that was cut stands for all of its chunks. Give either
            ids or a filter.
        filter: Conditions on metadata, as in `AttributionIndex.query`: all documents that meet them are unlearned.
        control: Queries that have nothing to do with the documents, which show what else would break.
        learning_rate: Learning rate of the step. By default it is that of `verify`: the rate at which unlearning the
            median document alone halves that document's probability, to first order.
        max_documents: Largest number of documents, with each chunk counted.
        report: Called with the progress after each pass through the model, when the model has its own weights. It may
            raise to stop the work.

    Returns:
        The change of the log-probability of each query, in nats, with that before and after the step.

    Raises:
        InvalidInput: An argument is wrong; no document meets the filter, there are more documents than allowed, or none
            of them has a gradient; or the index was made by a training run.
        DocumentNotFound: The index has no document of one of the ids, or it was taken down.
        TooLong: A query is longer than the model takes.
        IndexCorrupt: Shards of the index are damaged, so that documents may be missing.
    """
    spec = UnlearnSpec.model_validate(
        {
            "ids": ids,
            "filter": filter,
            "queries": [_fields(query) for query in queries],
            "control": None if control is None else [_fields(query) for query in control],
            "learning_rate": learning_rate,
        }
    )
    return run_preview(index, spec, max_documents, report or (lambda progress: None))


def run_preview(
    index: AttributionIndex, spec: UnlearnSpec, max_documents: int, report: ProgressCallback
) -> UnlearnPreview:
    """Does what `preview_unlearning` does for the spec of a request."""
    index.verifier.require_supported("there is no preview of unlearning them")
    if index.searcher.damaged:
        raise damaged_shards_error(index.name, index.searcher.damaged, has_others=False)
    report(Progress(stage="read", unit="queries"))
    tokenizer = index.answerer.query_tokenizer
    queries = tokenize_query_list(tokenizer, "queries", [query.as_query() for query in spec.queries])
    control = tokenize_query_list(tokenizer, "control", [query.as_query() for query in spec.control or ()])
    chosen = run_in_thread(
        lambda: _choose(index, spec, max_documents), lambda: report(Progress(stage="read"))
    )
    documents = _tokenize(index.verifier.selector, chosen, report)
    unlearner = _run(index.verifier.fitted_unlearner(), _Advance("statistics", 0, "passes", report))
    if spec.learning_rate is not None:
        unlearner = replace(unlearner, learning_rate=spec.learning_rate)
    measured = _measure(unlearner, documents, [*queries, *control], report)
    changes, own = _query_changes([*queries, *control], measured)
    return UnlearnPreview(
        generation=index.manifest.generation,
        documents=len(documents),
        left_out=len(chosen) - len(documents),
        learning_rate=unlearner.learning_rate,
        own_log_probability=own,
        queries=changes[: len(queries)],
        control=changes[len(queries) :],
        mean=mean_change(changes[: len(queries)]),
        control_mean=mean_change(changes[len(queries) :]),
    )


def _choose(index: AttributionIndex, spec: UnlearnSpec, max_documents: int) -> list[RowLocation]:
    """Returns where the documents are that a spec chooses, and checks how many they are."""
    selector = index.verifier.selector
    if spec.ids is not None:
        chosen = selector.locate_whole(spec.ids, index.name)
    else:
        chosen = selector.locate_matching(spec.filter or {})
        if not chosen:
            raise InvalidInput("filter: no document of the index meets it; expected one at least")
    if len(chosen) > max_documents:
        raise InvalidInput(
            f"{len(chosen):,} documents are to be unlearned together; expected at most {max_documents:,}: choose "
            "fewer, or raise BERGSON_MAX_UNLEARNED_DOCUMENTS (in Python, max_documents)"
        )
    return chosen


def _tokenize(
    selector: DocumentSelector, chosen: Sequence[RowLocation], report: ProgressCallback
) -> list[Tokens]:
    """Returns the tokens of those of the chosen documents that have a gradient. Raises `InvalidInput` if none has."""
    locations = [location for location in chosen if selector.has_gradient(location)]
    if not locations:
        raise InvalidInput(f"none of the {len(chosen):,} documents has a gradient to unlearn it by")
    advance = _Advance("read", len(locations), "documents", report)
    documents: list[Tokens] = []
    for start in range(0, len(locations), _TOKENIZED_TOGETHER):
        part = selector.tokenize(locations[start : start + _TOKENIZED_TOGETHER])
        documents += part
        advance(len(part))
    return documents


def _measure(
    unlearner: Unlearner,
    documents: Sequence[Tokens],
    queries: Sequence[TokenizedQuery],
    report: ProgressCallback,
) -> Float64[np.ndarray, "2 t"]:
    """Returns the log-probabilities of the texts of all queries, then of the documents, before and after the step."""
    step = _run(
        unlearner.step_in_steps(documents), _Advance("gradients", len(documents), "documents", report)
    )
    texts = [text for query in queries for text in query.weighted_tokens] + list(documents)
    steps = unlearner.log_probabilities_in_steps(step, texts)
    return _run(steps, _Advance("measure", len(texts), "texts", report))


def _query_changes(
    queries: Sequence[TokenizedQuery], measured: Float64[np.ndarray, "2 t"]
) -> tuple[list[QueryChange], float | None]:
    """Returns the change of each query, and that of the sum over the documents, from what was measured."""
    changes, start = [], 0
    for query in queries:
        end = start + len(query.weighted_tokens)
        before, after = (difference(part[start:end]) for part in measured)
        share_before, share_after = (share(part[start:end]) for part in measured)
        changes.append(
            QueryChange(
                before=finite_or_none(before),
                after=finite_or_none(after),
                log_probability=finite_or_none(after - before),
                probability=finite_or_none(share_after - share_before),
            )
        )
        start = end
    own_before, own_after = measured[:, start:].sum(1)
    return changes, finite_or_none(own_after - own_before)


class _Advance:
    """Reports the progress of a stage after each step, which says how much of it is done."""

    def __init__(self, stage: str, total: int, unit: str, report: ProgressCallback) -> None:
        self._progress, self._unit, self._report = StageProgress(stage, total), unit, report

    def __call__(self, done: int) -> None:
        self._report(self._progress.advance(done, 0).model_copy(update={"unit": self._unit}))


def _run(steps: Generator[int, None, T], advance: Callable[[int], object]) -> T:
    """Runs steps to their end, calls `advance` with what each of them yields, and returns what they return."""
    with closing(steps):
        while True:
            try:
                done = next(steps)
            except StopIteration as end:
                return end.value
            advance(done)


def _fields(query: WatchedQuery | Mapping[str, Any]) -> Any:
    return query.model_dump(exclude_unset=True) if isinstance(query, WatchedQuery) else query
