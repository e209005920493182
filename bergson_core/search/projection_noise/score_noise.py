"""The noise of scores: how much a score of an index varies with the seed of the projections.

Legend: k stored rows, m modules, d numbers per module.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from bergson_core.schemas.build import Normalize
from bergson_core.search.projection_noise.block_groups import BlockGroup, block_groups
from bergson_core.search.projection_noise.intervals import ScoreError
from bergson_core.search.projection_noise.line_changes import LineChanges, SharedLengths, line_changes
from bergson_core.storage.manifest import Manifest

_CHUNK_NUMBERS: Final = 2**22
"""Numbers of rows that are looked at together: 16 MiB, for each of some arrays."""


@dataclass(frozen=True)
class ScoreNoise:
    """Estimates the noise of the scores of an index.

    Attributes:
        groups: The modules, by the shapes of their blocks.
        normalize: What φ is scaled to.
        has_signs: Whether rows are signs, whose length does not depend on the projection.
        checkpoints: Number of checkpoints that a row has parts of, each with projections of its own.
    """

    groups: Sequence[BlockGroup]
    normalize: Normalize
    has_signs: bool
    checkpoints: int = 1

    @classmethod
    def of(cls, manifest: Manifest) -> "ScoreNoise | None":
        """Returns the noise of an index, or None where rows do not show it (`block_groups`)."""
        spec = manifest.spec
        groups = block_groups(manifest.modules, spec.gradients)
        if groups is None:
            return None
        return cls(groups, spec.scoring.normalize, spec.gradients.rows == "sign", spec.checkpoints)

    def errors(
        self, rows: Float[Tensor, "k m d"], query: Float[Tensor, "m d"], *, is_sum: bool = False
    ) -> list[ScoreError]:
        """Returns the error of the score of each row.

        Args:
            rows: φ of the rows.
            query: φ of the query; their inner products are the scores.
            is_sum: Whether φ of the query is a sum of φ, as that of a behaviour is.
        """
        errors = []
        for chunk in rows.split(max(1, _CHUNK_NUMBERS // query.numel())):
            errors += self._errors(self._changes(chunk, query, is_sum), rows=1)
        return errors

    def _changes(
        self, rows: Float[Tensor, "k m d"], query: Float[Tensor, "m d"], is_sum: bool
    ) -> list[LineChanges]:
        """Returns the changes of the scores for each group of modules."""
        has_lengths = self.normalize != "none"
        scores = self._shared(rows * query)
        of_rows = self._shared(rows.square()) if has_lengths and not self.has_signs else None
        of_query = self._shared(query[None].square()) if has_lengths and not is_sum else None
        return [
            line_changes(
                group.take(rows),
                group.take(query),
                SharedLengths(
                    scores[:, group.modules],
                    None if of_rows is None else of_rows[:, group.modules],
                    None if of_query is None else of_query[:, group.modules],
                ),
            )
            for group in self.groups
        ]

    def _shared(self, numbers: Float[Tensor, "k m d"]) -> Float[Tensor, "k m"]:
        """Returns for each module the sum over all modules whose length it is divided by."""
        by_module = numbers.sum(2)
        if self.normalize == "block":
            return by_module
        by_checkpoint = by_module.unflatten(1, (self.checkpoints, -1))
        return by_checkpoint.sum(2, keepdim=True).expand_as(by_checkpoint).flatten(1)

    def _errors(self, changes: Sequence[LineChanges], rows: int) -> list[ScoreError]:
        """Returns the errors of sums of the scores of so many rows each."""
        parts = [change.variances(group) for change, group in zip(changes, self.groups, strict=True)]
        variance, uncertainty = (torch.stack(part).sum(0) for part in zip(*parts, strict=True))
        freedom = torch.where(uncertainty > 0, variance**2 / uncertainty, torch.inf)
        largest = rows * (torch.inf if self.normalize == "none" else 1.0)
        return [
            ScoreError(*numbers, largest)
            for numbers in zip(variance.sqrt().tolist(), freedom.tolist(), strict=True)
        ]


@dataclass
class SumOfScores:
    """The sum of the scores of rows with one query, and its error.

    All rows and the query share the projections, so that their errors are not independent, and the error of a sum does
    not follow from those of its terms.

    Attributes:
        noise: The noise of the index.
        is_sum: Whether φ of the query is a sum of φ, as that of a behaviour is.
        total: The sum of the scores.
        rows: The number of rows in the sum.
    """

    noise: ScoreNoise
    is_sum: bool = False
    total: float = 0.0
    rows: int = 0
    _changes: list[LineChanges] | None = field(default=None, repr=False)

    def add(self, rows: Float[Tensor, "k m d"], query: Float[Tensor, "m d"]) -> None:
        """Adds the scores of rows, of which φ is given, as to `ScoreNoise.errors`."""
        for chunk in rows.split(max(1, _CHUNK_NUMBERS // query.numel())):
            scores = (chunk * query).sum((1, 2))
            changes = [change.total() for change in self.noise._changes(chunk, query, self.is_sum)]
            if self._changes is not None:
                changes = [old + new for old, new in zip(self._changes, changes, strict=True)]
            self._changes = changes
            self.total += float(scores.sum())
            self.rows += len(chunk)

    def error(self) -> ScoreError:
        """Returns the error of the sum; that of no rows is 0."""
        if self._changes is None:
            return ScoreError(0.0, torch.inf, 0.0)
        (error,) = self.noise._errors(self._changes, self.rows)
        return error
