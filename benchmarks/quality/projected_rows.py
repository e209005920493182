"""Rows as an index has them, in every code, and the products of their blocks.

Legend: n documents, q queries, m modules, d numbers per module; C is the second moment of the rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.quality.experiments import Experiment
from benchmarks.quality.module_products import ModuleProducts, block_products, cached_products
from benchmarks.quality.module_weights import halves_agreement
from benchmarks.support.bit_codes import Code, store
from benchmarks.support.row_variants import ALL_TOKENS, RowVariants, fit_index_normalizers
from bergson_core.gradients.normalizers import moments
from bergson_core.gradients.normalizers.normalizers import Normalizer
from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.gradients.processor_fitting import sample_row_numbers
from bergson_core.schemas.build import GradientSpec

MAX_PRECONDITIONED_DIM: Final = 32
"""Largest p of rows that are preconditioned: with 64, each module takes minutes."""
_AGREEMENT_DOCUMENTS: Final = 64
"""Documents that stand for queries where the agreement of halves is estimated."""


class Storage(NamedTuple):
    """A code, and whether rows are multiplied with C^-½: before their signs are taken, and after numbers are read."""

    code: Code
    preconditioned: bool = False

    def __str__(self) -> str:
        return f"{self.code}, C" if self.preconditioned else self.code


def row_products(
    experiment: Experiment, spec: GradientSpec, storages: Sequence[Storage]
) -> dict[Storage, ModuleProducts]:
    """Returns the products of the blocks of documents and queries for each way to store rows."""
    settings = spec.model_dump(mode="json", exclude={"sample_tokens"})
    inputs = [experiment.key, settings, moments.KFAC_DAMPING]
    by_name = {str(storage): storage for storage in storages}

    def make() -> dict[str, ModuleProducts]:
        case = experiment.case
        normalizers = fitted_normalizers(experiment, spec)
        rows = RowVariants(case.model, case.documents, case.queries, spec, normalizers)
        preconditioner = (
            rows.preconditioner() if any(storage.preconditioned for storage in storages) else None
        )
        return {
            name: _make_products(rows, storage, preconditioner if storage.preconditioned else None)
            for name, storage in by_name.items()
        }

    tables = cached_products(experiment.directory / "products", inputs, list(by_name), make)
    return {storage: tables[name] for name, storage in by_name.items()}


def fitted_normalizers(experiment: Experiment, spec: GradientSpec) -> Mapping[str, Normalizer]:
    """Returns the normalizers that a build would fit if its sample might have all tokens of the corpus.

    They depend on everything in `spec` except the projection. What fewer tokens do is measured by
    `benchmarks.sample_size`.
    """
    changes = {
        "projection_dim": 1,
        "projection": "rademacher",
        "rows": "float16",
        "sample_tokens": ALL_TOKENS,
    }
    common = spec.model_copy(update=changes)
    return _fit_normalizers(experiment, common.model_dump_json(), moments.KFAC_DAMPING)


@lru_cache(maxsize=2)
def _fit_normalizers(experiment: Experiment, spec: str, _damping: float) -> Mapping[str, Normalizer]:
    case = experiment.case
    return fit_index_normalizers(case.model, case.documents, GradientSpec.model_validate_json(spec))


def _make_products(
    rows: RowVariants, storage: Storage, preconditioner: Preconditioner | None
) -> ModuleProducts:
    documents = len(rows.document_rows)
    own = torch.tensor(sample_row_numbers(documents, _AGREEMENT_DOCUMENTS, seed=0))
    agreements: list[tuple[Tensor, Tensor]] = []

    def iter_blocks() -> Iterator[tuple[Tensor, Tensor]]:
        for module in range(len(rows.modules)):
            queries = rows.query_rows[:, [module]]
            raw = store("float16", rows.document_rows[:, [module]])
            if preconditioner is not None:
                root = Preconditioner(preconditioner.inverse_root[[module]])
                queries, raw = root.apply(queries), root.apply(raw)
            stored = store_blocks(storage.code, raw)
            agreements.append(halves_agreement(raw[own, 0], stored[:, 0], own))
            yield queries[:, 0], stored[:, 0]

    table = block_products(rows.modules, iter_blocks())
    signal, noise = map(torch.stack, zip(*agreements, strict=True))
    return ModuleProducts(
        table.modules, table.products, table.query_squares, table.document_squares, signal, noise
    )


def store_blocks(code: Code, rows: Float[Tensor, "n m d"]) -> Float[Tensor, "n m d"]:
    """Returns rows that were read from float16 already as they come back from a code."""
    return rows if code == "float16" else store(code, rows)
