"""A profile for a task: the preconditioner's second moment mixed with that of a sample of the task's queries.

C = λ C_queries + (1-λ) C_train (TrackStar: Chang et al., arXiv 2410.17413, section 3) takes weight from directions that
all queries of the task share, such as the form of a question, and leaves it to those that tell them apart. Whether it
helps is to be measured for each task.

Legend: m layers, d numbers a layer.
"""

import re
from itertools import chain
from pathlib import Path
from typing import Final

import torch
from datasets import Dataset
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from bergson_core.attribution.index import AttributionIndex
from bergson_core.data.batching import iter_batches
from bergson_core.data.documents import READ_CHUNK_SIZE, iter_token_chunks
from bergson_core.errors import InvalidInput
from bergson_core.gradients.preconditioner import Preconditioner, SecondMoment
from bergson_core.indexing.output_directory import index_write_lock
from bergson_core.indexing.publish import publish_next_generation
from bergson_core.models.batch_budget import find_batch_budget
from bergson_core.models.language_model import context_limit
from bergson_core.models.loading import LoadModel, load_model
from bergson_core.schemas.build import MAX_PRECONDITIONED_DIM, NAME_PATTERN, ColumnsSpec
from bergson_core.shards.row_encoder import RowEncoder
from bergson_core.shards.shard import RowShape
from bergson_core.storage.layout import preconditioner_path
from bergson_core.storage.manifest import Manifest, ProfileEntry, read_manifest
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback

MATCHED_EIGENVALUE_SHARE: Final = 1000 / 65536
"""Which eigenvalue the rule matches: the paper's 1,000th of 65,536."""


def fit_profile(
    index: str | Path,
    name: str,
    queries: Dataset,
    columns: ColumnsSpec | None = None,
    *,
    mixing: float | None = None,
    key: str = "",
    load_model: LoadModel = load_model,
    report: ProgressCallback = lambda progress: None,
    confirm: ConfirmCallback = lambda: None,
) -> Manifest:
    """Adds the profile `name` to the index in directory `index`, fitted from a sample of queries; the new manifest.

    `columns` say what of `queries` is prompt and completion, `prompt` and `completion` by default. `mixing` is λ; by
    default it is found by `matching_mixing`. The model runs on the queries alone; the rows of the index are read once.
    Readers see the profile once it is whole, as a new generation. A call with the `key` of an earlier one that has
    added this very profile returns at once. `report` and `confirm` are those of `build_index`.
    Raises `InvalidInput` for a name that is taken, an index of sign rows, λ outside of 0 and 1, too few queries, or a
    query that cannot be read; `IndexBusy` while another process writes there.
    """
    root = Path(index)
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidInput(f"the profile's name is {name!r}; expected lower-case letters, digits, - and _")
    if mixing is not None and not 0 <= mixing <= 1:
        raise InvalidInput(f"mixing is {mixing}; expected the queries' share, from 0 to 1")
    columns = columns or ColumnsSpec(prompt="prompt", completion="completion")
    read_manifest(root)  # or else there is nothing to lock
    with index_write_lock(root):
        opened = AttributionIndex.open(root, load_model=load_model)
        manifest = opened.manifest
        if key and (name, key) in {(entry.name, entry.key) for entry in manifest.profiles}:
            return manifest
        _check(manifest, root, name)
        of_queries, count = _second_moment_of_queries(opened, queries, columns)
        of_train = _second_moment_of_rows(opened, root)
        if mixing is None:
            mixing = match_mixing(of_queries, of_train)
        mixed = mixing * of_queries + (1 - mixing) * of_train
        confirm()
        preconditioner = Preconditioner.fit(mixed, 1, manifest.spec.scoring.damping)
        preconditioner.save(preconditioner_path(root, name), mixed)
        entry = ProfileEntry(name=name, key=key, mixing=mixing, queries=count, files=())
        manifest = manifest.model_copy(update={"profiles": (*manifest.profiles, entry)})
        return publish_next_generation(root, manifest, manifest.shards, report=report, confirm=confirm)


def _check(manifest: Manifest, root: Path, name: str) -> None:
    spec = manifest.spec
    if spec.gradients.rows == "sign":
        raise InvalidInput(
            f"{root.name} has sign rows, which were preconditioned before their signs were taken: they have no "
            "profiles; build an index with rows float16 or int8"
        )
    if spec.gradients.projection_dim > MAX_PRECONDITIONED_DIM:
        raise InvalidInput(
            f"{root.name} has a projection_dim of {spec.gradients.projection_dim}, and a profile has p⁴ numbers for "
            f"each module: expected at most {MAX_PRECONDITIONED_DIM}"
        )
    if name in {entry.name for entry in manifest.profiles}:
        raise InvalidInput(f"{root.name} has a profile {name!r} already; choose another name")


def match_mixing(of_queries: Float[Tensor, "m d d"], of_train: Float[Tensor, "m d d"]) -> float:
    """λ such that λ σ_queries[k] = (1-λ) σ_train[k], for the k-th largest eigenvalues over all layers.

    k is `MATCHED_SHARE` of all: about so many directions that are the task's own lose weight.
    Raises `InvalidInput` where the queries span fewer than k directions.
    """
    queries, train = (
        torch.linalg.eigvalsh(moment.double()).clamp_min(0).flatten().sort(descending=True).values
        for moment in (of_queries, of_train)
    )
    k = max(1, round(MATCHED_EIGENVALUE_SHARE * len(queries))) - 1
    if queries[k] <= 1e-9 * queries[0]:
        raise InvalidInput(
            f"the queries span fewer than the {k + 1} directions that the rule looks at: expected more of them, or "
            "mixing as a number from 0 to 1"
        )
    return float(train[k] / (queries[k] + train[k]))


def _second_moment_of_queries(
    index: AttributionIndex, queries: Dataset, columns: ColumnsSpec
) -> tuple[Float[Tensor, "m d d"], int]:
    """(mean outer product of the queries' rows, their number)."""
    spec, model = index.manifest.spec, index.model
    limit = context_limit(model, spec.gradients.max_tokens)
    chunks = iter_token_chunks(model.tokenizer, queries, columns, limit, spec.gradients.loss)
    tokens = list(chain.from_iterable(chunks))
    budget = find_batch_budget(model, index.collector.modules, max(len(one.ids) for one in tokens))
    rows = RowEncoder(index.collector, spec.gradients.rows)
    moment = SecondMoment(rows.shape.modules, rows.shape.width, model.device)
    for batch in iter_batches(tokens, budget, model.device):
        moment.add(rows.encode(batch)[0])
    return moment.total.double().cpu() / moment.rows, moment.rows


def _second_moment_of_rows(index: AttributionIndex, root: Path) -> Float[Tensor, "m d d"]:
    """C of the training rows: as it was fitted, or from the stored rows where none was."""
    if index.manifest.spec.scoring.preconditioner:
        return load_file(preconditioner_path(root))["second_moment"].double()
    shape = RowShape.of(index.manifest)
    moment = SecondMoment(shape.modules, shape.width)
    for shard in index.shards:
        for start in range(0, shard.entry.rows, READ_CHUNK_SIZE):
            moment.add(shard.rows(slice(start, start + READ_CHUNK_SIZE)))
    return moment.total.double() / moment.rows
