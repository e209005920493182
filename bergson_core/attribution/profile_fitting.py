"""Fits a profile for a task: a preconditioner whose second moment is mixed with that of a sample of the task's queries.

    C = λ C_queries + (1-λ) C_train

The mix takes weight from directions that all queries of the task share, such as the form of a question, and leaves it
to those directions that tell the queries apart. Whether that helps has to be measured for each task.

Source: TrackStar (Chang et al., arXiv 2410.17413), section 3.

Legend: m modules, d numbers per module.
"""

import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Final

import torch
from datasets import Dataset
from jaxtyping import Float, Float64
from safetensors.torch import load_file
from torch import Tensor

from bergson_core.attribution.index import AttributionIndex
from bergson_core.data.documents import READ_CHUNK_SIZE
from bergson_core.errors import InvalidInput
from bergson_core.gradients.preconditioner import Preconditioner, SecondMoment
from bergson_core.indexing.build_context import always_confirm, ignore_progress
from bergson_core.indexing.output_directory import index_write_lock
from bergson_core.indexing.publish import publish_next_generation
from bergson_core.models.batch_budget import find_batch_budget
from bergson_core.models.loading import LoadModel
from bergson_core.schemas.build import MAX_PRECONDITIONED_DIM, NAME_PATTERN
from bergson_core.schemas.results import Progress
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.shards.row_encoder import RowEncoder
from bergson_core.shards.shard import RowShape
from bergson_core.storage.deletion import remove_unpublished_files
from bergson_core.storage.layout import preconditioner_path
from bergson_core.storage.manifest import Manifest, ProfileEntry, read_manifest
from bergson_core.tokens.batching import iter_batches
from bergson_core.tokens.document_tokens import iter_token_chunks
from bergson_core.utils.background import run_in_thread, stop_if_abandoned
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback

MATCHED_EIGENVALUE_SHARE: Final = 1000 / 65536
"""Which of the eigenvalues, the largest first, are matched to find λ: the 1,000th of 65,536 in the paper."""


def fit_profile(
    index: str | Path,
    name: str,
    queries: Dataset,
    columns: ColumnsSpec | None = None,
    *,
    mixing: float | None = None,
    key: str = "",
    load_model: LoadModel | None = None,
    report: ProgressCallback | None = None,
    confirm: ConfirmCallback | None = None,
) -> Manifest:
    """Adds a profile to an index, fitted from a sample of queries.

    The model runs on the queries alone, and the rows of the index are read once. Readers see the profile when it is
    complete, in a new generation of the index.

    Args:
        index: Directory of the index.
        name: Name of the new profile: lower-case letters, digits, - and _.
        queries: A sample of the task's queries.
        columns: Which columns of `queries` are prompt and completion; by default `prompt` and `completion`.
        mixing: λ, the share of the queries' second moment in the mix, from 0 to 1; by default that of `match_mixing`.
        key: Makes a call repeatable: if an earlier call with the same key has added the profile, this one returns at
            once.
        load_model: Loads the model; `bergson_core.load_model` by default. A caller that has the model in memory passes
            a function that returns it.
        report: Called with the progress. It may raise to stop the work.
        confirm: Called before the preconditioner is saved and before the new generation is published. It may raise to
            stop the work.

    Returns:
        The new manifest of the index.

    Raises:
        InvalidInput: The name is malformed or taken, the index has sign rows or too wide blocks, `mixing` is not
            between 0 and 1, a query cannot be read, or there are too few queries to find λ.
        IndexBusy: Another process is writing to the index.
        IndexNotFound: There is no published index in this directory.
    """
    root = Path(index)
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidInput(f"the profile's name is {name!r}; expected lower-case letters, digits, - and _")
    if mixing is not None and not 0 <= mixing <= 1:
        raise InvalidInput(f"mixing is {mixing}; expected the queries' share, from 0 to 1")
    columns = columns or ColumnsSpec(prompt="prompt", completion="completion")
    report, confirm = report or ignore_progress, confirm or always_confirm
    read_manifest(root)  # raises where there is no index, whose directory could then not be locked
    with index_write_lock(root):
        opened = AttributionIndex.open(root, load_model=load_model)
        manifest = opened.manifest
        if key and (name, key) in {(entry.name, entry.key) for entry in manifest.profiles}:
            remove_unpublished_files(root, manifest)  # of a fit that was killed after it had published
            return manifest
        _require_profile_possible(manifest, root, name)

        def tick() -> None:
            report(Progress(stage="preconditioner"))

        query_moment, query_count = _query_second_moment(opened, queries, columns, tick)
        train_moment = run_in_thread(lambda: _train_second_moment(opened, root), tick)
        if mixing is None:
            mixing = run_in_thread(lambda: match_mixing(query_moment, train_moment), tick)
        mixed = mixing * query_moment + (1 - mixing) * train_moment
        preconditioner = run_in_thread(
            lambda: Preconditioner.fit(mixed, 1, manifest.spec.scoring.damping), tick
        )
        confirm()
        preconditioner.save(preconditioner_path(root, name), mixed)
        entry = ProfileEntry(name=name, key=key, mixing=mixing, queries=query_count, files=())
        manifest = manifest.model_copy(update={"profiles": (*manifest.profiles, entry)})
        return publish_next_generation(root, manifest, manifest.shards, report=report, confirm=confirm)


def match_mixing(query_moment: Float[Tensor, "m d d"], train_moment: Float[Tensor, "m d d"]) -> float:
    """Returns λ such that λ σ_queries[k] = (1-λ) σ_train[k], where σ[k] is the k-th largest eigenvalue of all modules.

    k is the share `MATCHED_EIGENVALUE_SHARE` of all eigenvalues: about that many directions that are typical of the
    task lose weight.

    Args:
        query_moment: Second moment [m, d, d] of the queries' rows.
        train_moment: Second moment [m, d, d] of the documents' rows.

    Raises:
        InvalidInput: The queries span fewer than k directions.

    Source: TrackStar (Chang et al., arXiv 2410.17413), section 3.
    """
    query_values, train_values = (
        torch.linalg.eigvalsh(moment.double()).clamp_min(0).flatten().sort(descending=True).values
        for moment in (query_moment, train_moment)
    )
    k = max(1, round(MATCHED_EIGENVALUE_SHARE * len(query_values))) - 1
    if query_values[k] <= 1e-9 * query_values[0]:
        raise InvalidInput(
            f"the queries span fewer than the {k + 1} directions that are needed to choose mixing: expected more "
            "queries, or mixing as a number from 0 to 1"
        )
    return float(train_values[k] / (query_values[k] + train_values[k]))


def _require_profile_possible(manifest: Manifest, root: Path, name: str) -> None:
    """Raises `InvalidInput` for an index that can have no profile, or has one of this name."""
    spec = manifest.spec
    if spec.gradients.rows == "sign":
        raise InvalidInput(
            f"{root.name} has sign rows, which were preconditioned before their signs were taken and so can have no "
            "other profile; build an index with rows float16 or int8"
        )
    if spec.gradients.projection_dim > MAX_PRECONDITIONED_DIM:
        raise InvalidInput(
            f"{root.name} has a projection_dim of {spec.gradients.projection_dim}, and a profile has p⁴ numbers "
            f"for each module: expected at most {MAX_PRECONDITIONED_DIM}"
        )
    if name in {entry.name for entry in manifest.profiles}:
        raise InvalidInput(f"{root.name} has a profile {name!r} already; choose another name")


def _query_second_moment(
    index: AttributionIndex, queries: Dataset, columns: ColumnsSpec, tick: Callable[[], object]
) -> tuple[Float64[Tensor, "m d d"], int]:
    """Returns (mean outer product of the queries' rows, number of queries); calls `tick` after each batch."""
    spec, model = index.manifest.spec, index.model
    chunks = iter_token_chunks(
        model.tokenizer,
        queries,
        columns,
        index.query_limits,
        spec.gradients.loss,
        label_end=False,
        chat_date=model.chat_date,
    )
    tokens = list(chain.from_iterable(chunks))
    longest = max(len(query.ids) for query in tokens)
    budget_tokens = find_batch_budget(model, index.collector.modules, longest)
    encoder = RowEncoder(index.collector, spec.gradients.rows)
    moment = SecondMoment(encoder.shape.modules, encoder.shape.width, model.device)
    for batch in iter_batches(tokens, budget_tokens, model.device):
        rows, _ = encoder.encode(batch)
        moment.add(rows)
        tick()
    return moment.total.double().cpu() / moment.rows, moment.rows


def _train_second_moment(index: AttributionIndex, root: Path) -> Float64[Tensor, "m d d"]:
    """Returns C of the documents' rows: the one that was saved, or one from the stored rows where none was."""
    if index.manifest.spec.scoring.preconditioner:
        return load_file(preconditioner_path(root))["second_moment"].double()
    shape = RowShape.of(index.manifest)
    moment = SecondMoment(shape.modules, shape.width)
    for shard in index.shards:
        for start in range(0, shard.entry.rows, READ_CHUNK_SIZE):
            stop_if_abandoned()
            moment.add(shard.rows(slice(start, start + READ_CHUNK_SIZE)))
    return moment.total.double() / moment.rows
