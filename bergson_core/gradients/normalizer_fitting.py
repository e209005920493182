"""Fits normalizers from batches: sums second moments while the model runs, and makes the normalizers of the sums."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from bergson_core.errors import InvalidInput
from bergson_core.gradients.gradient_transforms import append_bias_input, upcast
from bergson_core.gradients.normalizers.matrix_root import EighFunction
from bergson_core.gradients.normalizers.moments import NORMALIZER_FITTERS, Projections, Sum
from bergson_core.gradients.normalizers.normalizers import Normalizer
from bergson_core.gradients.normalizers.side_moment import side_moment_bytes
from bergson_core.models.batch_budget import free_memory_bytes
from bergson_core.models.forward_backward import forward_backward
from bergson_core.models.hooks import capture, freeze
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.modules import TrackedModule
from bergson_core.schemas.build import NormalizerKind
from bergson_core.tokens.batching import Batch

MAX_KFAC_SIDE: Final = 2**15
"""Longest side of a module that K-FAC is fitted for: a matrix of side × side then takes 4 GiB in float32."""
MEMORY_SHARE: Final = 0.25
"""Share of the free memory that the moments of the modules of a group may take; a batch takes up to half of it."""


class NormalizerFitting:
    """Sums the second moments of modules, batch by batch, and then makes the modules' normalizers.

    A document whose activations or output gradients in a module are not finite adds nothing to the module's sums.

    Args:
        model: The model, on its device.
        modules: The modules, by name.
        kind: The kind of normalizer, which is not `none`.
        include_bias: Whether the normalizers cover biases too.
        sampler: A generator on the model's device that draws labels from the model's predictions, in place of the
            documents' own (`forward_backward`).

    Attributes:
        samples: The number of documents so far.

    Raises:
        InvalidInput: A module is too wide for K-FAC.
    """

    def __init__(
        self,
        model: LanguageModel,
        modules: Mapping[str, TrackedModule],
        kind: NormalizerKind,
        *,
        include_bias: bool = False,
        sampler: torch.Generator | None = None,
    ) -> None:
        if kind == "kfac":
            _require_sides_for_kfac(modules)
        self.samples = 0
        self._model, self._modules = model, modules
        self._fitter = NORMALIZER_FITTERS[kind]
        self._include_bias, self._sampler = include_bias, sampler
        self._sums: dict[str, Sequence[Sum]] = {}

    @property
    def names(self) -> list[str]:
        """The names of the modules that the model has run and whose sums are not forgotten."""
        return [name for name in self._modules if name in self._sums]

    def add(self, batch: Batch) -> None:
        """Runs the model forward and backward on a batch, and adds to the sums."""
        hooks = capture(
            self._model.model,
            self._modules,
            lambda _, a: a,
            self._add_to_sums,
            sequences_per_sample=batch.sequences_per_document,
        )
        with freeze(self._model.model), hooks:
            forward_backward(self._model, batch, self._sampler)
        self.samples += len(batch)

    def _add_to_sums(self, name: str, a: Tensor, g: Tensor) -> None:
        tracked, g = self._modules[name], upcast(g)
        finite = g.isfinite().flatten(1).all(1)
        if a.is_floating_point():
            a = upcast(append_bias_input(a) if self._include_bias and tracked.has_bias else a)
            finite &= a.isfinite().flatten(1).all(1)
            moments = self._fitter.moments(a[finite], g[finite])
        else:
            moments = self._fitter.token_moments(a[finite], g[finite], tracked.in_features)
        if name in self._sums:
            pairs = zip(self._sums[name], moments, strict=True)
            moments = [total.add_(moment) for total, moment in pairs]  # pyright: ignore[reportArgumentType]
        self._sums[name] = moments

    def make(
        self, name: str, projections: Projections | None = None, eigh: EighFunction = torch.linalg.eigh
    ) -> Normalizer:
        """Returns the normalizer of a module.

        Args:
            name: The name of the module, one of `names`.
            projections: What the module's gradients are projected with, if the normalizer is for nothing else.
            eigh: The eigendecomposition to use.
        """
        return self._fitter.make(self._sums[name], self.samples, projections, eigh)

    def forget(self, name: str) -> None:
        """Releases the memory of a module's sums."""
        del self._sums[name]


def require_labels(fitted: Collection[str], samples: int) -> None:
    """Raises `InvalidInput` if no module has a normalizer, since no document of the sample has labelled tokens.

    Args:
        fitted: The names of the modules that the model has run.
        samples: The number of documents in the sample.
    """
    if not fitted:
        raise InvalidInput(
            f"expected documents with labelled tokens to fit the normalizers from; the sample of {samples} has none"
        )


def group_modules(
    model: LanguageModel, modules: Mapping[str, TrackedModule], kind: NormalizerKind, tokens: int | None
) -> list[dict[str, TrackedModule]]:
    """Returns the modules in groups whose moments fit into memory together.

    Args:
        model: The model, on its device.
        modules: The modules, by name.
        kind: The kind of normalizer. Only the moments of K-FAC take much more memory than a module itself.
        tokens: The tokens of the sample; None if this is not known.
    """
    if kind != "kfac":
        return [dict(modules)]
    budget = MEMORY_SHARE * free_memory_bytes(model.device)
    groups: list[dict[str, TrackedModule]] = [{}]
    taken = 0
    for name, tracked in modules.items():
        size = sum(
            side_moment_bytes(side if tokens is None else tokens, side) for side in kfac_sides(tracked)
        )
        if groups[-1] and taken + size > budget:
            groups.append({})
            taken = 0
        groups[-1][name] = tracked
        taken += size
    return groups


def kfac_sides(tracked: TrackedModule) -> Iterator[int]:
    """Yields the sides of a module that K-FAC has a matrix for: both, but for an embedding the output side alone."""
    yield tracked.out_features
    if not isinstance(tracked.module, nn.Embedding):
        yield tracked.in_features


def _require_sides_for_kfac(modules: Mapping[str, TrackedModule]) -> None:
    """Raises `InvalidInput` where a module has a side that K-FAC's matrices are too large for."""
    for name, tracked in modules.items():
        side = max(kfac_sides(tracked))
        if side > MAX_KFAC_SIDE:
            raise InvalidInput(
                f"module {name!r} has a side of {side}, and kfac has a matrix of side × side: expected at most "
                f"{MAX_KFAC_SIDE}. Leave the module out, or take normalizer adafactor"
            )


def count_tokens(batches: Iterable[Batch]) -> int:
    """Returns the number of tokens of batches, without padding."""
    return sum(batch.n_tokens for batch in batches)
