"""Scores that are made of products of blocks are those of rows that were collected for just those modules."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.quality.experiments import Experiment
from benchmarks.quality.module_products import ModuleProducts, join
from benchmarks.quality.module_sets import select_module_sets
from benchmarks.quality.projected_rows import Storage, row_products
from benchmarks.support.row_variants import RowVariants, compute_scores
from bergson_core.schemas.build import GradientSpec
from tests.benchmarks.quality.helpers import make_tiny_experiment

STORAGES = [
    Storage("float16"),
    Storage("sign"),
    Storage("bits2"),
    Storage("float16", preconditioned=True),
    Storage("sign", preconditioned=True),
]
SPEC = GradientSpec(normalizer="kfac", projection_dim=4)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return make_tiny_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def tables(experiment: Experiment) -> Mapping[Storage, ModuleProducts]:
    return row_products(experiment, SPEC, STORAGES)


@pytest.mark.parametrize("set_name", ["all", "attention", "mlp", "down"])
def test_variants_from_slices_equal_rows_that_were_collected_for_the_modules(
    experiment: Experiment, tables: Mapping[Storage, ModuleProducts], set_name: str
) -> None:
    case, spec = experiment.case, SPEC.model_copy(update={"modules": set_name})
    rows = RowVariants(case.model, case.documents, case.queries, spec)
    modules = select_module_sets(case.model)[set_name]
    assert rows.modules == modules
    root = rows.preconditioner()
    for storage in (Storage("float16"), Storage("float16", preconditioned=True)):
        for normalize in ("none", "row", "block"):
            expected = rows.scores(root if storage.preconditioned else None, normalize)
            scores = tables[storage].select(modules).scores(normalize)
            torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-4)
    for storage in (Storage("sign"), Storage("sign", preconditioned=True)):
        expected = rows.sign_scores(root if storage.preconditioned else None)
        scores = tables[storage].select(modules).scores("block")
        torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-4)


def test_sign_rows_with_row_norm_divide_by_the_length_of_the_whole_query(
    experiment: Experiment, tables: Mapping[Storage, ModuleProducts]
) -> None:
    case = experiment.case
    rows = RowVariants(case.model, case.documents, case.queries, SPEC)
    expected = compute_scores(rows.stored_document_rows.sign(), rows.query_rows, None, "row")
    torch.testing.assert_close(tables[Storage("sign")].scores("row"), expected, rtol=1e-4, atol=1e-5)


def test_weights_multiply_what_modules_add(tables: Mapping[Storage, ModuleProducts]) -> None:
    table = tables[Storage("float16")]
    weights = torch.arange(1.0, len(table.modules) + 1)
    cosines = torch.stack([table.select([name]).scores("block") for name in table.modules])
    expected = torch.einsum("mqn,m->qn", cosines, weights) / weights.sum()
    torch.testing.assert_close(table.scores("block", weights), expected)
    only_first = torch.eye(len(table.modules))[0]
    torch.testing.assert_close(table.scores("row", only_first), table.select(table.modules[:1]).scores("row"))


def test_tables_of_other_sizes_of_projections_are_joined(
    experiment: Experiment, tables: Mapping[Storage, ModuleProducts]
) -> None:
    storage = Storage("float16")
    other = row_products(experiment, SPEC.model_copy(update={"projection_dim": 6}), [storage])[storage]
    first, *rest = tables[storage].modules
    joined = join([tables[storage].select([first]), other.select(rest)])
    expected = (tables[storage].select([first]).scores("none")) + other.select(rest).scores("none")
    torch.testing.assert_close(joined.scores("none"), expected, rtol=1e-4, atol=1e-3)


def test_tables_come_from_their_files_when_they_are_asked_for_again(
    experiment: Experiment, tables: Mapping[Storage, ModuleProducts], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.quality.projected_rows.RowVariants", None)
    again = row_products(experiment, SPEC, STORAGES)
    for storage, table in tables.items():
        assert again[storage].modules == table.modules
        assert torch.equal(again[storage].products, table.products)
        assert torch.equal(again[storage].noise, table.noise)
    with pytest.raises(TypeError):  # other rows are computed
        row_products(experiment, SPEC.model_copy(update={"seed": 1}), STORAGES)


def test_another_experiment_has_other_tables(experiment: Experiment, tmp_path: Path) -> None:
    other = make_tiny_experiment(tmp_path, documents=19)
    assert row_products(other, SPEC, STORAGES[:1])[STORAGES[0]].products.shape[2] == 19
    assert other.directory.name != experiment.directory.name


def test_a_block_of_zeros_scores_nothing() -> None:
    zeros, ones = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    products = torch.cat([zeros, ones])
    table = ModuleProducts(
        ("a", "b"), products, products[:, :, 0], products[:, 0], torch.zeros(2), torch.zeros(2)
    )
    np.testing.assert_allclose(table.select(["a"]).scores("row"), 0)
    np.testing.assert_allclose(table.select(["a"]).scores("block"), 0)
    np.testing.assert_allclose(table.scores("block"), 0.5)
