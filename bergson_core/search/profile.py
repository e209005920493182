"""Profiles: the ways to compare the rows of one index, each with a preconditioner and a length for each row.

    profiles/<name>/preconditioner.safetensors   C and C^-½
    profiles/<name>/<shard>.lengths.bin          [n, c] float32

The score of a row is (C^-½ φ(query)) · row / length(row), with the row as it is stored (`exact_scores` computes it).
So a new profile needs one pass over the stored rows, for their lengths, and the model never runs on the corpus again.
The FAISS files hold φ of the default profile, whatever the profile of a query is.

Legend: q queries, n rows of a shard, m modules, d numbers per module, D = m·d; c is the number of lengths that a row
has (`features`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float, Float32
from torch import Tensor

from bergson_core.errors import InvalidInput
from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.schemas.build import BuildSpec, Normalize, SearchKind
from bergson_core.search.features import compute_features
from bergson_core.shards.shard_writer import write_array
from bergson_core.storage.integrity import make_file_entry
from bergson_core.storage.layout import DEFAULT_PROFILE, lengths_path, preconditioner_path
from bergson_core.storage.manifest import FileEntry, Manifest, ShardEntry
from bergson_core.utils.memory_map import map_array

CANDIDATES_PER_EXTRA_RESULT: Final[dict[SearchKind, int]] = {"float16": 4, "rabitq": 20, "hamming": 20}
"""Candidates taken for each result beyond the ten that recall is measured for. Also the smallest number of candidates
for each of those ten."""
_OTHER_SCORES_CANDIDATE_FACTOR: Final = 5
"""Times as many candidates are taken for a profile that is not the default, whose φ the FAISS files do not hold, and
for scores of some of the checkpoints only."""


def write_lengths(root: Path, profile: str, shard: str, lengths: Float32[np.ndarray, "n c"]) -> FileEntry:
    """Writes the lengths of a shard's rows under a profile, and returns the file's entry for the manifest."""
    path = root / lengths_path(profile, shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_array(path, lengths.astype(np.float32))
    return make_file_entry(path, root)


@dataclass(frozen=True)
class Profile:
    """An open profile.

    Attributes:
        query_preconditioner: C^-½, applied to a query's row before it is scaled to φ.
        weight_preconditioner: C^-½, applied to φ of a query, which then multiplies stored rows. None for sign rows,
            which were preconditioned before their signs were taken.
        candidate_preconditioner: C^½ of the default profile, applied to the weights of another profile's query before
            FAISS compares them with φ of the default profile. It cancels the C^-½ in these φ.
        lengths: For each shard the lengths [n, c] of its rows.
        normalize: What φ is scaled to (`features.compute_features`).
        is_default: Whether the FAISS files hold φ of this very profile.
        checkpoints: Number of checkpoints that a row has parts of.
    """

    query_preconditioner: Preconditioner | None
    weight_preconditioner: Preconditioner | None
    candidate_preconditioner: Preconditioner | None
    lengths: Sequence[np.ndarray]
    normalize: Normalize
    is_default: bool
    checkpoints: int = 1

    @classmethod
    def open(cls, root: Path, spec: BuildSpec, name: str, shards: Sequence[ShardEntry]) -> "Profile":
        """Opens a profile for some shards of an index.

        Args:
            root: Directory of the index. Its files were checked before (`storage.integrity`).
            spec: What the index was built with.
            name: Name of the profile.
            shards: The shards whose lengths are mapped.
        """
        is_default = name == DEFAULT_PROFILE
        preconditioner = default_root = None
        if spec.scoring.preconditioner or not is_default:
            preconditioner = Preconditioner.load(preconditioner_path(root, name))
        if spec.scoring.preconditioner and not is_default:
            default_root = Preconditioner.load(preconditioner_path(root)).inverse()
        has_sign_rows = spec.gradients.rows == "sign"
        return cls(
            query_preconditioner=preconditioner,
            weight_preconditioner=None if has_sign_rows else preconditioner,
            candidate_preconditioner=default_root,
            lengths=[
                # Sign rows come back from disk with unit length.
                np.broadcast_to(np.float32(1), (shard.rows, 1))
                if has_sign_rows
                else _map_lengths(root, name, shard)
                for shard in shards
            ],
            normalize=spec.scoring.normalize,
            checkpoints=spec.checkpoints,
            is_default=is_default,
        )

    def candidate_count(self, top_k: int, manifest: Manifest, checkpoints: range | None = None) -> int:
        """Returns how many candidates to take for `top_k` results.

        That is the number that was measured for ten results, in proportion to the rows that were added since, and some
        more for each further result. With other scores than those that were measured, it is five times as many.

        Args:
            top_k: Number of results.
            manifest: Manifest of the index.
            checkpoints: The checkpoints that a score is the mean over; None for all of them.
        """
        search = manifest.search
        for_ten_results = math.ceil(search.candidates * max(1, manifest.rows / search.rows))
        count = for_ten_results + CANDIDATES_PER_EXTRA_RESULT[search.kind] * max(0, top_k - 10)
        is_measured = self.is_default and checkpoints is None
        return count if is_measured else _OTHER_SCORES_CANDIDATE_FACTOR * count

    def prepare_queries(
        self, queries: Float[Tensor, "q m d"], checkpoints: range | None = None
    ) -> tuple[Float[Tensor, "q D"], Float[Tensor, "q m d"]]:
        """Returns what the search compares with rows, for each query.

        Args:
            queries: Raw gradient rows [q, m, d] of the queries.
            checkpoints: The checkpoints that a score is the mean over; None for all of them.

        Returns:
            (phi [q, D], weights [q, m, d]): `phi` is what the FAISS files, or the bits of sign rows, are compared
            with; `weights` is what stored rows are multiplied with to get their exact scores.
        """
        return self.prepare_features(self.query_features(queries, checkpoints))

    def query_features(
        self, queries: Float[Tensor, "q m d"], checkpoints: range | None = None
    ) -> Float[Tensor, "q m d"]:
        """Returns φ of each query's raw gradient row.

        Args:
            queries: The rows [q, m, d].
            checkpoints: The checkpoints that a score is the mean over; None for all of them.
        """
        phi, _ = compute_features(queries, self.query_preconditioner, self.normalize, self.checkpoints)
        if checkpoints is not None:
            factors = phi.new_zeros(self.checkpoints, 1)
            factors[checkpoints.start : checkpoints.stop] = self.checkpoints / len(checkpoints)
            phi = phi.unflatten(1, (self.checkpoints, -1)) * factors
        return phi.reshape(queries.shape)

    def prepare_features(
        self, features: Float[Tensor, "q m d"]
    ) -> tuple[Float[Tensor, "q D"], Float[Tensor, "q m d"]]:
        """Returns what `prepare_queries` does, for φ itself or for sums of φ, whose scores are sums of scores."""
        phi, weights = features.flatten(1), features
        if self.weight_preconditioner is not None:
            weights = self.weight_preconditioner.apply(weights)
        if self.is_default:
            return phi, weights
        if self.candidate_preconditioner is None:
            return weights.flatten(1), weights
        return self.candidate_preconditioner.apply(weights).flatten(1), weights


def _map_lengths(root: Path, profile: str, shard: ShardEntry) -> np.ndarray:
    """Maps the lengths [n, c] of a shard's rows; c follows from the size of the file."""
    path = root / lengths_path(profile, shard.name)
    columns = path.stat().st_size // (4 * shard.rows)
    return map_array(path, np.float32, (shard.rows, columns))


def require_profile(index: str, manifest: Manifest, profile: str) -> None:
    """Raises `InvalidInput`, naming the profiles that the index has, unless `profile` is one of them.

    Args:
        index: Name of the index, for the error.
        manifest: Manifest of the index.
        profile: Name of the profile.
    """
    names = [entry.name for entry in manifest.profiles]
    if profile not in names:
        raise InvalidInput(f"{index} has no profile {profile!r}; it has {', '.join(names)}")
