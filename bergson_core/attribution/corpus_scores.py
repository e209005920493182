"""A score for every document of an index, exact and streamed: data selection, and what is odd in a corpus.

Legend: q queries, n rows at once, m layers, d numbers a layer, D = m·d; c is m where each layer's block is scaled by
itself, else 1 (`profiles`).

What comes back is read as Arrow batches in the order of the corpus, from the stored rows alone: FAISS is not asked, and
memory does not grow with the corpus. `selection` takes the best of them, `tables` writes them.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor

from bergson_core.attribution.index import AttributionIndex
from bergson_core.attribution.soft_threshold import median_and_noise, shrink_toward
from bergson_core.data.batching import BUDGET_TOKENS, iter_batches
from bergson_core.data.documents import READ_CHUNK_SIZE, iter_token_chunks
from bergson_core.errors import InvalidInput
from bergson_core.models.language_model import context_limit
from bergson_core.schemas.build import ColumnsSpec
from bergson_core.schemas.query import Aggregate, AttributionQuery
from bergson_core.search.background_sample import BackgroundSample
from bergson_core.search.exact_scores import ExactScorer
from bergson_core.search.features import compute_features
from bergson_core.search.profile import Profile
from bergson_core.storage.layout import DEFAULT_PROFILE

_CHUNK_NUMBERS: Final = 2**22
"""Of decoded rows, or of scores, in memory: 16 MiB. The work waits for memory, not for arithmetic."""
_SCORE: Final = pa.field("score", pa.float32())


def score_corpus(
    index: AttributionIndex,
    queries: Dataset | Iterable[AttributionQuery],
    columns: ColumnsSpec | None = None,
    *,
    aggregate: Aggregate = "mean",
    profile: str = DEFAULT_PROFILE,
    threshold: float = 0.0,
) -> pa.RecordBatchReader:
    """The score of every document with a set of queries: id, score, loss, n_tokens, metadata (JSON text).

    A document's score is the mean or the largest of those that `AttributionIndex.attribute` gives with each query;
    with `each` there are `scores` instead, one for each query in order. `columns` say what of a dataset is prompt and
    completion, `prompt` and `completion` by default. Of an `AttributionQuery` only the text counts. The queries run
    through the model at once, the documents are scored as the result is read; `mean` holds D numbers whatever q is,
    the others q·D.

    With `threshold`, scores are first drawn towards their query's median by so many times its noise, and are 0 within
    that, as `measures.soft_threshold` has it; median and noise are those of the index's sampled rows. Sums of scores
    over queries or documents are mostly noise without: 3 doubled what they foretell in docs/quality.md.

    To train on the documents that score best for examples of a task is LESS (Xia et al., arXiv 2402.04333, section 4),
    which takes the cosine with the mean gradient of each sub-task where this takes the mean of the cosines.
    Raises `InvalidInput` for an unknown profile, and for a query that cannot be read, is too long, or has no gradient.
    """
    index.require_profile(profile)
    if not isinstance(queries, Dataset):
        queries = _dataset(queries, profile)
    if len(queries) == 0:
        raise InvalidInput("there are no queries; expected at least one")
    columns = columns or ColumnsSpec(prompt="prompt", completion="completion")
    compared = index.profiles[profile]
    weights = _weights(index, queries, columns, compared, "each" if threshold else aggregate)
    finish = _threshold(index, compared, weights, threshold) if threshold else lambda scores: scores

    def values(number: int, numbers: slice) -> pa.Array:
        scores = finish(ExactScorer(index.shards, compared).score_range(number, numbers, weights))
        if aggregate == "each":
            return pa.FixedSizeListArray.from_arrays(pa.array(scores.numpy().ravel()), len(queries))
        return pa.array((scores.mean(1) if aggregate == "mean" else scores.amax(1)).numpy())

    several = pa.field("scores", pa.list_(pa.float32(), len(queries)))
    return _stream(index, several if aggregate == "each" else _SCORE, max(weights.shape), values)


def score_self_influence(index: AttributionIndex, *, profile: str = DEFAULT_PROFILE) -> pa.RecordBatchReader:
    """The score of every document with itself, row · C⁻¹ row, in the columns of `score_corpus`.

    Without unit length, in which it is 1. It is large for what only the document itself teaches, such as a wrong label
    (Koh and Liang, arXiv 1703.04730, section 5.4). The model is not run.
    Raises `InvalidInput` for sign rows, which are all of one length.
    """
    index.require_profile(profile)
    if index.manifest.spec.gradients.rows == "sign":
        raise InvalidInput(
            f"{index.name} has sign rows, whose influence on themselves is the same for all; build an index with rows "
            "float16 or int8"
        )
    compared = index.profiles[profile]

    def values(number: int, numbers: slice) -> pa.Array:
        if compared.normalize == "none":  # nothing but these were measured
            _, lengths = compute_features(
                index.shards[number].rows(numbers), compared.query_preconditioner, "row"
            )
        else:
            lengths = torch.from_numpy(np.array(compared.lengths[number][numbers]))
        # A block's length is √m times its own, so that c blocks of unit length make one (`search.features`).
        return pa.array((lengths.double().square().sum(1) / lengths.shape[1]).float().numpy())

    return _stream(index, _SCORE, index.collector.dimensions, values)


def _dataset(queries: Iterable[AttributionQuery], profile: str) -> Dataset:
    queries = list(queries)
    for number, query in enumerate(queries):
        if query.profile not in (DEFAULT_PROFILE, profile):
            raise InvalidInput(
                f"query {number} asks for the profile {query.profile!r}, and all are scored by {profile!r}; expected "
                "the same"
            )
    return Dataset.from_dict(
        {
            "prompt": [query.prompt for query in queries],
            "completion": [query.completion for query in queries],
        }
    )


def _weights(
    index: AttributionIndex, queries: Dataset, columns: ColumnsSpec, profile: Profile, aggregate: Aggregate
) -> Float[Tensor, "D q"]:
    """What the rows are multiplied with: that of each query, or their mean, whose product is the mean of the scores."""
    prepared = _prepared(index, queries, columns, profile)
    if aggregate == "mean":
        total = torch.zeros(index.collector.dimensions, dtype=torch.float64)
        for _, weights in prepared:
            total += weights.flatten(1).sum(0, dtype=torch.float64)
        return (total / len(queries)).float()[:, None]
    every = torch.zeros(len(queries), index.collector.dimensions)
    for numbers, weights in prepared:
        every[numbers] = weights.flatten(1)
    return every.mT


def _threshold(
    index: AttributionIndex, profile: Profile, weights: Float[Tensor, "D q"], times: float
) -> Callable[[Tensor], Tensor]:
    """The soft threshold for scores [n, q]."""
    by_layer = weights.mT.reshape(weights.shape[1], len(index.collector.slices), -1)
    rows = BackgroundSample.read(index.shards, index.manifest.rows, index.manifest.spec.gradients.seed)
    middle, noise = (one[:, 0] for one in median_and_noise(rows.scores(profile, by_layer, index.visible())))
    return lambda scores: torch.from_numpy(shrink_toward(scores.numpy(), middle, noise, times))


def _prepared(
    index: AttributionIndex, queries: Dataset, columns: ColumnsSpec, profile: Profile
) -> Iterator[tuple[np.ndarray, Float[Tensor, "n m d"]]]:
    """(numbers [n] of some queries, what stored rows are multiplied with for each of them)."""
    model, loss = index.model, index.manifest.spec.gradients.loss
    chunks = iter_token_chunks(model.tokenizer, queries, columns, context_limit(model, None), loss)
    for chunk, tokens in enumerate(chunks):
        first = chunk * READ_CHUNK_SIZE
        for number, one in enumerate(tokens, start=first):
            if one.n_labelled == 0:
                raise InvalidInput(
                    f"query {number}: there is nothing to attribute, since its completion has no token that follows "
                    "another; expected a prompt, or a longer completion"
                )
        for batch in iter_batches(tokens, BUDGET_TOKENS, model.device):
            rows, _ = index.collector.collect(batch)
            finite = rows.isfinite().all(1).cpu().numpy()
            numbers = first + batch.indices
            if not finite.all():
                raise InvalidInput(f"query {numbers[~finite][0]}: its gradient is not finite; leave it out")
            blocks = rows.float().cpu().reshape(len(rows), len(index.collector.slices), -1)
            yield numbers, profile.prepare_queries(blocks)[1]


def _stream(
    index: AttributionIndex, field: pa.Field, numbers_a_row: int, values: Callable[[int, slice], pa.Array]
) -> pa.RecordBatchReader:
    """All documents with `values(number of the shard, places in it)`, so many at a time that these fit in memory."""
    at_once = max(1, _CHUNK_NUMBERS // numbers_a_row)
    texts, numbers = pa.string(), (pa.float64(), pa.int32())
    schema = pa.schema(
        [("id", texts), field, ("loss", numbers[0]), ("n_tokens", numbers[1]), ("metadata", texts)]
    )

    def batches_of_all() -> Iterator[pa.RecordBatch]:
        for number, (shard, visible) in enumerate(zip(index.shards, index.visible(), strict=True)):
            for start in range(0, shard.entry.rows, at_once):
                places = slice(start, min(start + at_once, shard.entry.rows))
                kept = shard.documents.slice(start, places.stop - start)
                columns = {field.name: values(number, places)}
                columns |= {name: kept[name].combine_chunks() for name in schema.names if name != field.name}
                batch = pa.record_batch([columns[name] for name in schema.names], schema=schema)
                yield batch if visible is None else batch.filter(pa.array(visible[places]))

    return pa.RecordBatchReader.from_batches(schema, batches_of_all())
