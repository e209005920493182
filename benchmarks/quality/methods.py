"""Every way to score documents that is measured: baselines, whole gradients, and rows in all variants.

Legend: q queries, n documents.

The name of a method lists its choices, such as `kfac, sign, p = 32, C, row, mlp`: the normalizer, the code, p, whether
rows are preconditioned, the normalisation of scores, and the set of modules.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from jaxtyping import Float

from benchmarks.quality.experiments import Experiment
from benchmarks.quality.module_products import ModuleProducts, join
from benchmarks.quality.module_sets import ALL, select_module_sets
from benchmarks.quality.module_weights import MODULE_WEIGHTS
from benchmarks.quality.projected_rows import MAX_PRECONDITIONED_DIM, Storage, row_products
from benchmarks.quality.unprojected import (
    can_compare_whole_gradients,
    choose_whitenings,
    full_row_bytes,
    unprojected_products,
)
from benchmarks.support.bit_codes import Code, row_bytes
from bergson_core.evaluation.baseline_rankings import bm25_scores
from bergson_core.evaluation.baseline_scores import representation_scores
from bergson_core.schemas.build import GradientSpec, Normalize, NormalizerKind

FOREIGN_GROUP: Final = "other programs"
RANDOM, BM25, REPRESENTATIONS, GOLD = "random order", "BM25", "representations", "the right documents"
REFERENCE: Final = "kfac, not projected, row, all"
"""The method that all others are divided by."""
DEFAULT: Final = "adafactor, float16, p = 16, C, row, all"
RECOMMENDED: Final = "kfac, sign, p = 96, block, mlp"
"""The rows of the preset `best`."""
SMALL_ROWS: Final = "kfac, sign, p = 32, block, all"
PROJECTION_DIMS: Final[Mapping[NormalizerKind, Sequence[int]]] = {
    "kfac": (16, 32, 64, 96, 128),
    "adafactor": (16, 32, 64, 96, 128),
}
"""Normalizer → sizes of the projections."""
PRETRAINED_PROJECTION_DIMS: Final[Mapping[NormalizerKind, Sequence[int]]] = {
    "kfac": (96,),
    "adafactor": (16,),
}
"""The same of the pretrained model, of which each takes a pass of minutes."""
QUICK_PROJECTION_DIMS: Final = (8, 16)
CODES: Final[Mapping[NormalizerKind, Sequence[Code]]] = {
    "kfac": ("float16", "sign", "bits2"),
    "adafactor": ("float16", "sign"),
}
PRECONDITIONED_CODES: Final[Sequence[Code]] = ("float16", "sign")
SCALED_NORMALIZES: Final[Sequence[Normalize]] = ("row", "block")
MIXED_CODES: Final[Sequence[Code]] = ("sign", "bits2")
"""Codes of rows whose p differs by module, and of scores that weigh modules."""
ModuleSets: TypeAlias = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Method:
    """A way to score documents.

    Attributes:
        name: Its choices.
        group: What it is listed with.
        row_bytes: Bytes of a document's row; None if there are no rows.
        scores: Score of each document with each query [q, n].
    """

    name: str
    group: str
    row_bytes: int | None
    scores: Float[np.ndarray, "q n"]


def iter_methods(experiment: Experiment) -> Iterator[Method]:
    """Yields every method of an experiment, each part of which is computed only if it is not in a file."""
    yield from iter_baselines(experiment)
    sets = select_module_sets(experiment.case.model)
    if can_compare_whole_gradients(experiment):
        yield from iter_whole_gradients(experiment, sets)
    dims = PROJECTION_DIMS if experiment.is_small else PRETRAINED_PROJECTION_DIMS
    for normalizer, codes in CODES.items():
        tables: dict[int, dict[Storage, ModuleProducts]] = {}
        for p in QUICK_PROJECTION_DIMS if experiment.settings.quick else dims[normalizer]:
            storages = [Storage(code) for code in codes]
            # Of the pretrained model, one C at p = 32 takes gigabytes and minutes.
            if p <= (MAX_PRECONDITIONED_DIM if experiment.is_small else 16):
                storages += [Storage(code, preconditioned=True) for code in PRECONDITIONED_CODES]
            spec = GradientSpec(normalizer=normalizer, projection_dim=p)
            tables[p] = row_products(experiment, spec, storages)
            yield from iter_row_variants(spec, tables[p], sets)
            yield from iter_weighted(spec, tables[p], sets)
            if any(other < p for other in tables):
                yield from iter_mixed_sizes(experiment, spec, tables)
            tables[p] = {key: tables[p][key] for key in tables[p] if key.code in MIXED_CODES}
    yield from iter_foreign_scores(experiment)


def iter_baselines(experiment: Experiment) -> Iterator[Method]:
    """Yields what needs no gradients, and the right documents themselves where the corpus knows them."""
    case, group = experiment.case, "baselines"
    shape = len(case.queries), len(case.documents)
    yield Method(RANDOM, group, None, np.random.default_rng(experiment.settings.seed).standard_normal(shape))
    texts = [document.text for document in case.corpus.documents]
    yield Method(BM25, group, None, bm25_scores(texts, experiment.query_texts))
    yield Method(
        REPRESENTATIONS, group, None, representation_scores(case.model, case.documents, case.queries)
    )
    gold_ids = case.corpus.gold_ids()
    gold = [
        [float(document.id in gold_ids[query.id]) for document in case.corpus.documents]
        for query in case.corpus.queries
    ]
    yield Method(GOLD, group, None, np.array(gold))


def iter_whole_gradients(experiment: Experiment, sets: ModuleSets) -> Iterator[Method]:
    """Yields cosines of whole gradients, and the inner products of plain ones."""
    for whitening, table in unprojected_products(experiment, choose_whitenings(experiment)).items():
        for normalize in ("none", "row") if whitening == "none" else ("row",):
            for set_name, modules in sets.items():
                yield Method(
                    f"{whitening}, not projected, {normalize}, {set_name}",
                    "whole gradients",
                    full_row_bytes(experiment, tuple(modules)),
                    table.select(modules).scores(normalize).numpy(),
                )


def iter_row_variants(
    spec: GradientSpec, tables: Mapping[Storage, ModuleProducts], sets: ModuleSets
) -> Iterator[Method]:
    """Yields the scores of rows of one projection in every code, normalisation and set of modules."""
    p = spec.projection_dim
    for storage, table in tables.items():
        for set_name, modules in sets.items():
            size = row_bytes(storage.code, len(modules), p * p)
            part = table.select(modules)
            for normalize in SCALED_NORMALIZES:
                name = f"{describe_rows(spec, storage)}, {normalize}, {set_name}"
                yield Method(name, "rows", size, part.scores(normalize).numpy())


def iter_weighted(
    spec: GradientSpec, tables: Mapping[Storage, ModuleProducts], sets: ModuleSets
) -> Iterator[Method]:
    """Yields scores in which modules have weights that are estimated without gold."""
    p = spec.projection_dim
    for code in MIXED_CODES:
        if (table := tables.get(Storage(code))) is None:
            continue
        for set_name in (ALL, "mlp"):
            part = table.select(sets[set_name])
            for kind, weigh in MODULE_WEIGHTS.items():
                weights = weigh(part)
                if not weights.any():
                    continue
                name = f"{describe_rows(spec, Storage(code))}, block by {kind}, {set_name}"
                size = row_bytes(code, len(part.modules), p * p)
                yield Method(name, "weights of modules", size, part.scores("block", weights).numpy())


def iter_mixed_sizes(
    experiment: Experiment, spec: GradientSpec, tables: Mapping[int, Mapping[Storage, ModuleProducts]]
) -> Iterator[Method]:
    """Yields scores of rows whose p is smaller where a module is smaller.

    A module with o × i weights has the p, among those that were computed, that is nearest to the largest p times
    √(o i / the largest o i), on a logarithmic scale.
    """
    largest_p = spec.projection_dim
    modules = experiment.case.model.select_modules()
    largest = max(module.parameter_count for module in modules.values())
    sizes = {
        name: min(
            (p for p in tables if p <= largest_p),
            key=lambda p: abs(np.log(p / largest_p) - np.log(module.parameter_count / largest) / 2),
        )
        for name, module in modules.items()
    }
    if len(set(sizes.values())) == 1:
        return
    for code in MIXED_CODES:
        if Storage(code) not in tables[largest_p]:
            continue
        table = join(tables[p][Storage(code)].select([name]) for name, p in sizes.items())
        size = sum(row_bytes(code, 1, p * p) for p in sizes.values())
        for normalize in SCALED_NORMALIZES:
            name = f"{spec.normalizer}, {code}, p ≤ {largest_p} by size, {normalize}, all"
            yield Method(name, "p by size of module", size, table.scores(normalize).numpy())


def iter_foreign_scores(experiment: Experiment) -> Iterator[Method]:
    """Yields the scores that other programs left in the experiment's directory, as `foreign/NAME.npy` [q, n].

    Raises:
        ValueError: A table has another shape.
    """
    expected = len(experiment.case.queries), len(experiment.case.documents)
    for path in sorted((experiment.directory / "foreign").glob("*.npy")):
        scores = np.load(path, allow_pickle=False)
        if scores.shape != expected:
            raise ValueError(f"{path} holds scores of the shape {scores.shape}; expected {expected}")
        yield Method(path.stem, FOREIGN_GROUP, None, scores)


def describe_rows(spec: GradientSpec, storage: Storage) -> str:
    """Returns the choices that rows were made by."""
    suffix = ", C" if storage.preconditioned else ""
    return f"{spec.normalizer}, {storage.code}, p = {spec.projection_dim}{suffix}"
