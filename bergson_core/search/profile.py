"""Profiles: ways to compare the rows of one index, each with a preconditioner and a length for each row.

Legend: q queries, n rows of a shard, m layers, d numbers a layer, D = m·d; c is m where each layer's block is scaled by
itself, else 1.

    profiles/<name>/preconditioner.safetensors   C and C^-½
    profiles/<name>/<shard>.lengths.bin          [n, c] float32

A score is (C^-½ φ(query)) · row / length(row), with the raw row: a new profile re-reads the rows once and never runs
the model on the corpus again. FAISS holds φ of the default profile for all of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.schemas.build import BuildSpec, Normalize, SearchKind
from bergson_core.search.features import compute_features, reciprocal_or_zero
from bergson_core.shards.shard import Shard
from bergson_core.shards.shard_writer import write_array
from bergson_core.storage.integrity import file_entry
from bergson_core.storage.layout import DEFAULT_PROFILE, lengths_path, preconditioner_path
from bergson_core.storage.manifest import FileEntry, Manifest, ShardEntry
from bergson_core.utils.memory_map import map_array

CANDIDATES_PER_EXTRA_RESULT: Final[dict[SearchKind, int]] = {"float16": 4, "rabitq": 20, "hamming": 20}
"""Candidates for each result beyond those that recall was measured for, and the fewest for each of these."""
_OTHER_PROFILE_CANDIDATE_FACTOR: Final = 5
"""Times the candidates where the rows' lengths are those of another profile than FAISS has."""


def write_lengths(root: Path, profile: str, shard: str, lengths: Float32[np.ndarray, "n c"]) -> FileEntry:
    """Writes the lengths of a shard's rows under a profile."""
    path = root / lengths_path(profile, shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_array(path, lengths.astype(np.float32))
    return file_entry(path, root)


@dataclass(frozen=True)
class Profile:
    """An open profile.

    `before` goes before a query is scaled, `rows` before it then meets the stored rows: the same, but for sign rows,
    which are preconditioned already. `candidates`, C^½ of the default profile, goes before it meets FAISS, which holds
    that profile's φ, and `is_default` says that these are this profile's own. `lengths` [n, c] are by shard.
    """

    query_preconditioner: Preconditioner | None
    weight_preconditioner: Preconditioner | None
    candidate_preconditioner: Preconditioner | None
    lengths: Sequence[np.ndarray]
    normalize: Normalize
    is_default: bool

    @classmethod
    def open(cls, root: Path, spec: BuildSpec, name: str, shards: Sequence[ShardEntry]) -> "Profile":
        """The profile of that name for these shards, from files that were checked (`files.check_files`)."""
        signs, is_default = spec.gradients.rows == "sign", name == DEFAULT_PROFILE
        before = candidates = None
        if spec.scoring.preconditioner or not is_default:
            before = Preconditioner.load(preconditioner_path(root, name))
        if spec.scoring.preconditioner and not is_default:
            candidates = Preconditioner.load(preconditioner_path(root)).inverse()
        lengths: list[np.ndarray] = []
        for shard in shards:
            if signs:
                lengths.append(np.broadcast_to(np.float32(1), (shard.rows, 1)))
            else:
                path = root / lengths_path(name, shard.name)
                columns = path.stat().st_size // (4 * shard.rows)
                lengths.append(map_array(path, np.float32, (shard.rows, columns)))
        rows = None if signs else before
        return cls(before, rows, candidates, lengths, spec.scoring.normalize, is_default)

    def candidate_count(self, top_k: int, manifest: Manifest) -> int:
        """How many candidates to take for `top_k` results: what was measured for ten, and some for each further one."""
        search = manifest.search
        measured = math.ceil(search.candidates * max(1, manifest.rows / search.rows))
        count = measured + CANDIDATES_PER_EXTRA_RESULT[search.kind] * max(0, top_k - 10)
        return count if self.is_default else _OTHER_PROFILE_CANDIDATE_FACTOR * count

    def prepare_queries(
        self, queries: Float[Tensor, "q m d"]
    ) -> tuple[Float[Tensor, "q D"], Float[Tensor, "q m d"]]:
        """(what FAISS is asked with, what stored rows are multiplied with) for the rows of queries."""
        phi, _ = compute_features(queries, self.query_preconditioner, self.normalize)
        weights = phi.reshape(queries.shape)
        if self.weight_preconditioner is not None:
            weights = self.weight_preconditioner.apply(weights)
        if not self.is_default:
            phi = (
                weights
                if self.candidate_preconditioner is None
                else self.candidate_preconditioner.apply(weights)
            ).flatten(1)
        return phi, weights

    def scores(
        self, number: int, shard: Shard, places: slice, weights: Float[Tensor, "D q"]
    ) -> Float[Tensor, "n q"]:
        """Exact scores of these rows of the shard of that number, as one matrix product; `weights` are of `prepare`."""
        over = reciprocal_or_zero(torch.from_numpy(np.array(self.lengths[number][places])))
        rows = shard.rows(places)
        if over.shape[1] == 1:
            return rows.flatten(1) @ weights * over
        return (rows * over[..., None]).flatten(1) @ weights
