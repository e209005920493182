"""Tables of the scores that the index and the baselines give every document with every query.

Legend: q queries, n documents (of a batch, where batches are yielded), k best documents.

Each way to score documents is a method with a name: `index`, the baselines of `EvaluationSpec`, and `gold`, which gives
1 to the gold documents and 0 to all others and serves as a control. All methods are measured in the same way.
"""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from datasets import Dataset
from jaxtyping import Float, Float32, Int

from bergson_core.attribution.corpus_scores import score_corpus
from bergson_core.attribution.index import AttributionIndex
from bergson_core.evaluation.baseline_rankings import bm25_scores
from bergson_core.evaluation.baseline_scores import gradient_scores, representation_scores
from bergson_core.evaluation.inputs import EvaluationInputs
from bergson_core.evaluation.queries import EvaluationQuery
from bergson_core.models.checkpoints.loading import checkpoint_prefix
from bergson_core.schemas.evaluation import EvaluationSpec
from bergson_core.schemas.results import Progress
from bergson_core.storage.manifest import Manifest
from bergson_core.utils.progress import ProgressCallback

ScoreTable: TypeAlias = Float[np.ndarray, "q n"]


def iter_score_tables(
    inputs: EvaluationInputs, spec: EvaluationSpec, report: ProgressCallback
) -> Iterator[tuple[str, ScoreTable]]:
    """Yields (name, scores) of each method: the index, the baselines of `spec`, and gold if every query has it."""
    documents, model, baselines = inputs.documents, inputs.index.model, spec.baselines
    shape = (len(inputs.queries), len(documents.ids))
    yield "index", _index_scores(inputs, report)
    if "random" in baselines:
        yield "random", np.random.default_rng(spec.seed).standard_normal(shape, dtype=np.float32)
    if "bm25" in baselines:
        yield (
            "bm25",
            bm25_scores(documents.texts, [query.prompt + query.completion for query in inputs.queries]),
        )
    if "gradient_dot" in baselines or "gradient_cosine" in baselines:
        modules = _modules_of_model(inputs.index.manifest)
        dots, cosines = gradient_scores(model, documents.tokens, inputs.query_tokens, modules)
        if "gradient_dot" in baselines:
            yield "gradient_dot", dots
        if "gradient_cosine" in baselines:
            yield "gradient_cosine", cosines
    if "representation" in baselines:
        yield "representation", representation_scores(model, documents.tokens, inputs.query_tokens)
    if inputs.has_gold:
        gold_scores = np.zeros(shape, dtype=np.float32)
        for scores, query in zip(gold_scores, inputs.queries, strict=True):
            scores[inputs.gold[query.id]] = 1
        yield "gold", gold_scores


def _modules_of_model(manifest: Manifest) -> list[str]:
    """Returns the names of the tracked modules in the model, which is the last of several checkpoints."""
    prefix = checkpoint_prefix(len(manifest.spec.models) - 1) if manifest.spec.models else ""
    return [entry.name.removeprefix(prefix) for entry in manifest.modules if entry.name.startswith(prefix)]


def iter_score_batches(
    index: AttributionIndex, queries: Sequence[EvaluationQuery]
) -> Iterator[tuple[list[str], Float32[np.ndarray, "q n"]]]:
    """Yields (ids, exact scores with each query) of all visible documents in batches, in the order of the corpus."""
    texts = {
        "prompt": [query.prompt for query in queries],
        "completion": [query.completion for query in queries],
    }
    for batch in score_corpus(index, Dataset.from_dict(texts), aggregate="each"):
        scores = np.asarray(batch["scores"].flatten()).reshape(batch.num_rows, -1)
        yield batch["id"].to_pylist(), scores.T


def best_positions(table: ScoreTable, count: int) -> Int[np.ndarray, "q k"]:
    """Returns the positions of the `count` documents with the highest scores for each query, best first."""
    return np.argsort(-table, axis=1, kind="stable")[:, :count]


def _index_scores(inputs: EvaluationInputs, report: ProgressCallback) -> ScoreTable:
    parts, done = [], 0
    for ids, scores in iter_score_batches(inputs.index, inputs.queries):
        parts.append(scores)
        done += len(ids)
        report(Progress(stage="score", done=done, total=len(inputs.documents.ids), unit="documents"))
    return np.concatenate(parts, axis=1)
