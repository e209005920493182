"""Products of whole gradients, module by module: none, Adafactor, K-FAC and EK-FAC.

Legend: q queries, n documents (of a chunk where gradients are collected), o output and i input features.

Whole gradients of all documents do not fit into memory. They are collected in chunks, compared with the queries', and
forgotten.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.quality.experiments import Experiment
from benchmarks.quality.module_products import ModuleProducts, block_products, cached_products
from benchmarks.quality.projected_rows import fitted_normalizers
from benchmarks.support.row_variants import batch_tokens
from bergson_core.gradients.normalizers import moments
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector, collect_rows
from bergson_core.schemas.build import GradientSpec

Whitening: TypeAlias = Literal["none", "adafactor", "kfac", "ekfac"]
Transform: TypeAlias = Callable[[Float[Tensor, "n o i"]], Float[Tensor, "n o i"]]
WHITENINGS: Final[tuple[Whitening, ...]] = get_args(Whitening)
EKFAC_DAMPING: Final = 1e-3
"""Added to the second moment of each direction, in units of the module's mean."""
MAX_QUERY_BYTES: Final = 3 * 2**30
"""Largest size of the queries' gradients in memory."""
_CHUNK_BYTES: Final = 2**28


@dataclass(frozen=True)
class Eigenbasis:
    """The eigenbases of K-FAC's two factors of a module, in which EK-FAC is diagonal.

    Attributes:
        left: Eigenvectors [o, o] of the second moment of output gradients, as columns.
        right: Eigenvectors [i, i] of the second moment of activations, as columns.
        moment: Second moment [o, i] of the documents' gradients in each direction.

    Source: George et al., Fast Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis (2018).
    """

    left: Float[Tensor, "o o"]
    right: Float[Tensor, "i i"]
    moment: Float[Tensor, "o i"]

    def scales(self, damping: float = EKFAC_DAMPING) -> Float[Tensor, "o i"]:
        """Returns 1 / the root of each direction's moment, damped by `damping` times the mean moment."""
        return (self.moment + damping * self.moment.mean()).rsqrt().nan_to_num(posinf=0)

    def rotate(self, gradients: Float[Tensor, "n o i"]) -> Float[Tensor, "n o i"]:
        """Returns gradients as combinations of the directions."""
        return self.left.mT @ gradients @ self.right

    def rotate_back(self, numbers: Float[Tensor, "n o i"]) -> Float[Tensor, "n o i"]:
        """Returns the combinations of directions that `rotate` gives as matrices again."""
        return self.left @ numbers @ self.right.mT

    def whiten(self, gradients: Float[Tensor, "n o i"]) -> Float[Tensor, "n o i"]:
        """Returns gradients whose inner products are those with EK-FAC's inverse."""
        return self.rotate(gradients) * self.scales()


def can_compare_whole_gradients(experiment: Experiment) -> bool:
    """Returns whether the whole gradients of all queries fit into memory."""
    return 4 * _collector(experiment).dimensions * len(experiment.case.queries) <= MAX_QUERY_BYTES


def choose_whitenings(experiment: Experiment) -> tuple[Whitening, ...]:
    """Returns the whitenings to measure: all, or of a pretrained model, where each takes minutes, none and K-FAC."""
    return WHITENINGS if experiment.is_small else ("none", "kfac")


def full_row_bytes(experiment: Experiment, modules: tuple[str, ...]) -> int:
    """Returns the bytes of a document's whole gradients in float32."""
    tracked = _collector(experiment).modules
    return 4 * sum(tracked[name].parameter_count for name in modules)


def unprojected_products(
    experiment: Experiment, whitenings: Sequence[Whitening]
) -> Mapping[str, ModuleProducts]:
    """Returns the products of whole gradients of documents and queries, by whitening. All are computed in one pass."""

    def make() -> dict[str, ModuleProducts]:
        return _make_products(experiment, {name: _transforms(experiment, name) for name in whitenings})

    inputs = [experiment.key, moments.KFAC_DAMPING, EKFAC_DAMPING, "whole gradients"]
    return cached_products(experiment.directory / "products", inputs, whitenings, make)


def _collector(experiment: Experiment) -> RowCollector:
    return RowCollector(experiment.case.model, GradientProcessor(None))


def _transforms(experiment: Experiment, whitening: Whitening) -> Mapping[str, Transform]:
    if whitening == "none":
        return {}
    if whitening != "ekfac":
        normalizers = fitted_normalizers(experiment, GradientSpec(normalizer=whitening))
        return {name: normalizer.apply for name, normalizer in normalizers.items()}
    return {name: basis.whiten for name, basis in fit_eigenbases(experiment).items()}


def fit_eigenbases(experiment: Experiment) -> dict[str, Eigenbasis]:
    """Returns the eigenbases of all tracked modules, by name."""
    kfac = fitted_normalizers(experiment, GradientSpec(normalizer="kfac"))
    bases = {}
    for name, normalizer in kfac.items():
        left, right = (torch.linalg.eigh(root.double())[1].float() for root in normalizer.tensors().values())
        bases[name] = Eigenbasis(left, right, torch.zeros(len(left), len(right)))
    count = len(experiment.case.documents)
    for chunk in iter_gradients(experiment):
        for name, gradients in chunk.items():
            bases[name].moment.add_(bases[name].rotate(gradients).square().sum(0) / count)
    return bases


def iter_gradients(
    experiment: Experiment, *, of_queries: bool = False
) -> Iterator[dict[str, Float[Tensor, "n o i"]]]:
    """Yields the gradients of documents, or of all queries at once, by module."""
    collector, case = _collector(experiment), experiment.case
    tokens = case.queries if of_queries else case.documents
    chunk_size = len(tokens) if of_queries else max(1, _CHUNK_BYTES // (4 * collector.dimensions))
    for start in range(0, len(tokens), chunk_size):
        chunk = tokens[start : start + chunk_size]
        rows = torch.from_numpy(collect_rows(collector, chunk, batch_tokens(case.model))[0])
        yield {
            name: rows[:, columns].unflatten(1, (module.out_features, module.in_features))
            for (name, columns), module in zip(
                collector.slices.items(), collector.modules.values(), strict=True
            )
        }


def _make_products(
    experiment: Experiment, transforms: Mapping[str, Mapping[str, Transform]]
) -> dict[str, ModuleProducts]:
    (raw_queries,) = iter_gradients(experiment, of_queries=True)
    queries = {whitening: _apply_all(by_module, raw_queries) for whitening, by_module in transforms.items()}
    names = tuple(raw_queries)
    del raw_queries
    parts: dict[str, list[ModuleProducts]] = {whitening: [] for whitening in transforms}
    for chunk in iter_gradients(experiment):
        for whitening, by_module in transforms.items():
            documents = _apply_all(by_module, chunk)
            pairs = ((queries[whitening][name], documents[name]) for name in names)
            parts[whitening].append(block_products(names, pairs))
    return {whitening: _join_documents(tables) for whitening, tables in parts.items()}


def _join_documents(parts: Sequence[ModuleProducts]) -> ModuleProducts:
    first = parts[0]
    return ModuleProducts(
        first.modules,
        torch.cat([part.products for part in parts], dim=2),
        first.query_squares,
        torch.cat([part.document_squares for part in parts], dim=1),
        first.signal,
        first.noise,
    )


def _apply_all(
    transforms: Mapping[str, Transform], gradients: Mapping[str, Tensor]
) -> dict[str, Float[Tensor, "n _"]]:
    return {
        name: (transforms[name](gradient) if name in transforms else gradient).flatten(1)
        for name, gradient in gradients.items()
    }
