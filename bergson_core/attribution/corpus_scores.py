"""Scores every document of an index: with a set of queries, to select data, or with itself, to find odd documents.

Scores are exact and are computed while the result is read, from the stored rows alone: FAISS is not asked. The result
is a stream of Arrow batches in the order of the corpus, so that memory does not grow with it. `score_totals` picks the
best documents of a stream, `utils.table_writer` writes it to a file, and `write_score_array` writes the scores alone.

Legend: q queries, n rows that are read at a time, m modules, d numbers per module, D = m·d.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor

from bergson_core.attribution.index import AttributionIndex
from bergson_core.attribution.query_weights import (
    collect_mean_weights,
    collect_query_weights,
    queries_to_dataset,
    query_columns,
)
from bergson_core.attribution.soft_threshold import median_and_noise, shrink_toward
from bergson_core.errors import InvalidInput
from bergson_core.schemas.build_parts.checkpoints import require_between
from bergson_core.schemas.query import Aggregate, AttributionQuery
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.search.background_sample import BackgroundSample
from bergson_core.search.exact_scores import ExactScorer
from bergson_core.search.features import compute_features
from bergson_core.search.profile import Profile
from bergson_core.storage.layout import DEFAULT_PROFILE
from bergson_core.utils.table_writer import ARRAY_SUFFIXES, TABLE_SUFFIXES, require_writable, write_array

_CHUNK_NUMBERS: Final = 2**22
"""Numbers of decoded rows, or of scores, that are in memory at a time: 16 MiB. Larger chunks are no faster, because the
work is bound by memory and not by arithmetic."""
_SCORE_FIELD: Final = pa.field("score", pa.float32())
_ScoreRange = Callable[[int, slice], pa.Array]
"""Returns the scores of some rows of a shard: (position of the shard, offsets of the rows) → n scores."""


def score_corpus(
    index: AttributionIndex,
    queries: Dataset | Iterable[AttributionQuery],
    columns: ColumnsSpec | None = None,
    *,
    aggregate: Aggregate = "mean",
    profile: str = DEFAULT_PROFILE,
    threshold: float = 0.0,
    between: tuple[int, int] | None = None,
) -> pa.RecordBatchReader:
    """Scores every document with a set of queries.

    A document's score with one query is the score that `AttributionIndex.query` gives it. The queries run through the
    model at once; the documents are scored while the result is read.

    Args:
        index: The index.
        queries: A dataset, or queries of which only prompt, completion, `instead_of` and `join`, or the messages,
            count.
        columns: Which columns of a dataset are prompt and completion, or chats; by default `prompt` and `completion`,
            or `messages` where there is no `prompt`. A column `instead_of` beside them has the completions that they
            are contrasted with, null for none.
        aggregate: `mean` or `max` of the scores with all queries, or `each` of them. `mean` holds D numbers in memory,
            whatever the number of queries is; the others hold q·D numbers.
        profile: Profile to score under.
        threshold: Draw the scores of each query towards their median by this many times their noise, and set scores
            within that distance to 0 (`soft_threshold`); median and noise are those of a random sample of the index.
            Without a threshold, sums of scores over queries or documents are mostly noise: a threshold of 3 doubled
            what such sums predict (docs/quality.md). 0 leaves scores as they are.
        between: Checkpoints [earlier, later], as in `AttributionQuery`; by default scores are means over all of them.

    Returns:
        A row for each visible document, in order: id, score, loss, n_tokens, metadata (JSON text). With `each` there is
        a list `scores`, in the order of the queries, in place of `score`.

    Raises:
        InvalidInput: The index has no such profile, or a query cannot be read or has no gradient.
        TooLong: A query is longer than the model takes.

    Source: Training on the documents that score best for examples of a task is LESS (Xia et al., arXiv 2402.04333,
        section 4), which takes the cosine with the mean gradient of each sub-task; this takes the mean of the cosines.
    """
    index.require_profile(profile)
    if not isinstance(queries, Dataset):
        queries = queries_to_dataset(queries, profile, index.answerer.query_tokenizer.join_checker)
    if len(queries) == 0:
        raise InvalidInput("there are no queries; expected at least one")
    columns = columns or query_columns(queries)
    # The mean of thresholded scores is not the score with the mean of the weights.
    collect = collect_mean_weights if aggregate == "mean" and not threshold else collect_query_weights
    checkpoints = None if between is None else require_between(between, index.manifest.spec.checkpoints)
    weights = collect(index, queries, columns, index.profiles[profile], checkpoints)
    return _score_with_weights(index, index.profiles[profile], weights, aggregate, threshold)


def score_behaviour(
    index: AttributionIndex,
    behaviour: str,
    *,
    instead_of: str | None = None,
    profile: str = DEFAULT_PROFILE,
    threshold: float = 0.0,
) -> pa.RecordBatchReader:
    """Scores every document with a behaviour that is kept with the index.

    The score is the one that `AttributionIndex.query(behaviour=...)` gives the document: the mean of its scores with
    the behaviour's queries, less the mean of those with its control set. The model does not run.

    Args:
        index: The index.
        behaviour: Name of the behaviour.
        instead_of: Another behaviour, whose scores are subtracted.
        profile: Profile to score under.
        threshold: As in `score_corpus`, applied to the scores of the behaviour as a whole.

    Returns:
        The columns of `score_corpus`.

    Raises:
        BehaviourNotFound: The index has no behaviour of this name.
        InvalidInput: The index has no such profile, or the behaviour was made with another processor.
    """
    index.require_profile(profile)
    weights = index.behaviours.weights(behaviour, instead_of, profile)
    return _score_with_weights(index, index.profiles[profile], weights.reshape(-1, 1), "mean", threshold)


def score_self_influence(index: AttributionIndex, *, profile: str = DEFAULT_PROFILE) -> pa.RecordBatchReader:
    """Scores every document with itself, without scaling rows to unit length: row · C⁻¹ row, a mean over checkpoints.

    The score is large for what only the document itself teaches, such as a wrong label. The model does not run.

    Args:
        index: The index.
        profile: Profile to score under.

    Returns:
        The columns of `score_corpus`.

    Raises:
        InvalidInput: The index has no such profile, or it has sign rows, which all have the same length.

    Source: Koh and Liang, arXiv 1703.04730, section 5.4.
    """
    index.require_profile(profile)
    if index.manifest.spec.gradients.rows == "sign":
        raise InvalidInput(
            f"{index.name} has sign rows, whose self-influence is the same for all; build an index with rows float16 "
            "or int8"
        )
    opened = index.profiles[profile]

    def score_range(shard_number: int, offsets: slice) -> pa.Array:
        if opened.normalize == "none":  # the lengths of such an index are all 1
            rows = index.shards[shard_number].rows(offsets)
            _, lengths = compute_features(rows, opened.query_preconditioner, "row", opened.checkpoints)
        else:
            lengths = torch.from_numpy(np.array(opened.lengths[shard_number][offsets]))
        # Each of c lengths is √c times that of its part of the row (`search.features`).
        squares = lengths.double().square().sum(1) / lengths.shape[1] / opened.checkpoints
        return pa.array(squares.float().numpy())

    return _stream_scores(index, _SCORE_FIELD, index.collector.dimensions, score_range)


def write_score_array(
    index: AttributionIndex, scores: pa.RecordBatchReader, path: str | Path, *, overwrite: bool = False
) -> int:
    """Writes the scores of all documents as an array, in which a document is known by its position alone.

    This is the form that other programs read, such as the evaluator of DATE-LM (docs/evaluating.md). The array is in
    memory as a whole.

    Args:
        index: The index whose documents were scored.
        scores: The scores, from `score_corpus` or `score_self_influence`. The stream is read to its end.
        path: A `.json` or a `.npy` file. It gets the n scores in the order of the corpus; with `each`, it gets q rows
            of n scores, in the order of the queries.
        overwrite: Replace an existing file.

    Returns:
        The number of documents.

    Raises:
        InvalidInput: Positions in the index are not those in the dataset, because documents were left out, cut into
            chunks or taken down; the scores are not those of all documents in the order of the corpus; or the path has
            another suffix, its directory does not exist, the file exists, or it cannot be written.
    """
    path, manifest = Path(path), index.manifest
    require_writable(path, ARRAY_SUFFIXES, overwrite=overwrite)
    is_whole = manifest.rows == manifest.numbered and not manifest.documents.chunked
    if not is_whole or any(mask is not None for mask in index.visible()):
        raise _no_positions(
            path, f"{index.name} has documents that were left out, cut into chunks or taken down"
        )
    table = scores.read_all()
    stored_ids = pa.chunked_array([chunk for shard in index.shards for chunk in shard.documents["id"].chunks])
    if len(table) != manifest.rows or not table["id"].equals(stored_ids):
        whole = f"all {manifest.rows:,} documents of {index.name} in the order of the corpus"
        raise _no_positions(path, f"the scores are not those of {whole}")
    if "score" in table.column_names:
        array = table["score"].to_numpy()
    else:
        array = np.asarray(table["scores"].combine_chunks().flatten()).reshape(len(table), -1).T
    write_array(array, path, overwrite=overwrite)
    return len(table)


def _no_positions(path: Path, reason: str) -> InvalidInput:
    return InvalidInput(
        f"{reason}, and {path.name} would tell documents by their positions alone; expected a file with ids: "
        f"{', '.join(TABLE_SUFFIXES)}"
    )


def _score_with_weights(
    index: AttributionIndex,
    profile: Profile,
    weights: Float[Tensor, "D q"],
    aggregate: Aggregate,
    threshold: float,
) -> pa.RecordBatchReader:
    """Returns all visible documents with their scores, which are the products of stored rows with these weights."""
    shrink = make_soft_threshold(index, profile, weights, threshold) if threshold else None
    scorer, query_count = ExactScorer(index.shards, profile), weights.shape[1]

    def score_range(shard_number: int, offsets: slice) -> pa.Array:
        scores = scorer.score_range(shard_number, offsets, weights)
        if shrink is not None:
            scores = shrink(scores)
        if aggregate == "each":
            return pa.FixedSizeListArray.from_arrays(pa.array(scores.numpy().ravel()), query_count)
        return pa.array((scores.mean(1) if aggregate == "mean" else scores.amax(1)).numpy())

    field = _SCORE_FIELD
    if aggregate == "each":
        field = pa.field("scores", pa.list_(pa.float32(), query_count))
    return _stream_scores(index, field, max(weights.shape), score_range)


def make_soft_threshold(
    index: AttributionIndex, profile: Profile, weights: Float[Tensor, "D q"], threshold: float
) -> Callable[[Float[Tensor, "n q"]], Float[Tensor, "n q"]]:
    """Returns a function that applies the soft threshold to scores [n, q].

    Median and noise are those of the scores of random rows of the index.

    Args:
        index: The index.
        profile: The profile of the scores.
        weights: What stored rows are multiplied with to get their scores, a column for each query.
        threshold: Width of the threshold, in units of each query's noise.
    """
    by_module = weights.mT.reshape(weights.shape[1], len(index.collector.slices), -1)
    sample = BackgroundSample.read(index.shards, index.manifest.rows, index.manifest.spec.gradients.seed)
    median, noise = median_and_noise(sample.scores(profile, by_module, index.visible()))
    return lambda scores: torch.from_numpy(
        shrink_toward(scores.numpy(), median[:, 0], noise[:, 0], threshold)
    )


def _stream_scores(
    index: AttributionIndex, field: pa.Field, numbers_a_row: int, score_range: _ScoreRange
) -> pa.RecordBatchReader:
    """Returns all visible documents with their scores, which are computed while they are read.

    Args:
        index: The index.
        field: Name and type of the scores.
        numbers_a_row: Numbers that are in memory for each document while it is scored.
        score_range: Computes the scores.
    """
    chunk_size = max(1, _CHUNK_NUMBERS // numbers_a_row)
    schema = pa.schema(
        [
            ("id", pa.string()),
            field,
            ("loss", pa.float64()),
            ("n_tokens", pa.int32()),
            ("metadata", pa.string()),
        ]
    )

    def iter_batches() -> Iterator[pa.RecordBatch]:
        for shard_number, (shard, visible) in enumerate(zip(index.shards, index.visible(), strict=True)):
            for start in range(0, shard.entry.rows, chunk_size):
                offsets = slice(start, min(start + chunk_size, shard.entry.rows))
                documents = shard.documents.slice(start, offsets.stop - start)
                scores = score_range(shard_number, offsets)
                columns = [
                    scores if name == field.name else documents[name].combine_chunks()
                    for name in schema.names
                ]
                batch = pa.record_batch(columns, schema=schema)
                yield batch if visible is None else batch.filter(pa.array(visible[offsets]))

    return pa.RecordBatchReader.from_batches(schema, iter_batches())
