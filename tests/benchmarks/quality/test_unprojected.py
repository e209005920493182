"""Products of whole gradients give the scores of the baselines, and EK-FAC that of its definition."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.quality.projected_rows import fitted_normalizers
from benchmarks.quality.unprojected import EKFAC_DAMPING, full_row_bytes, unprojected_products
from bergson_core.evaluation.baseline_scores import gradient_scores
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector, collect_rows
from bergson_core.schemas.build import GradientSpec
from bergson_core.tokens.batching import BUDGET_TOKENS
from tests.benchmarks.quality.helpers import make_tiny_experiment


@pytest.mark.parametrize("whitening", ["none", "adafactor", "kfac"])
def test_whole_gradients_score_as_the_baselines_do(
    tmp_path: Path, whitening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.quality.unprojected._CHUNK_BYTES", 1_000_000)  # several chunks
    experiment = make_tiny_experiment(tmp_path, "llama")
    case = experiment.case
    normalizers = dict(fitted_normalizers(experiment, GradientSpec(normalizer=whitening)))
    names = list(case.model.select_modules())
    dots, cosines = gradient_scores(case.model, case.documents, case.queries, names, normalizers)
    table = unprojected_products(experiment, [whitening])[whitening]
    np.testing.assert_allclose(table.scores("row"), cosines, atol=1e-5)
    np.testing.assert_allclose(table.scores("none"), dots, rtol=1e-3, atol=1e-4 * np.abs(dots).max())
    rows, _ = collect_rows(
        RowCollector(case.model, GradientProcessor(None)), case.documents[:1], BUDGET_TOKENS
    )
    assert full_row_bytes(experiment, tuple(names)) == rows.nbytes


def test_ekfac_divides_each_direction_of_kfacs_eigenbases_by_its_own_moment(tmp_path: Path) -> None:
    experiment = make_tiny_experiment(tmp_path, "gpt_neox")
    case, table = experiment.case, unprojected_products(experiment, ["ekfac"])["ekfac"]
    kfac = fitted_normalizers(experiment, GradientSpec(normalizer="kfac"))
    name = table.modules[-1]
    collector = RowCollector(case.model, GradientProcessor(None), [name])
    documents, queries = (
        torch.from_numpy(collect_rows(collector, tokens, BUDGET_TOKENS)[0]).double()
        for tokens in (case.documents, case.queries)
    )
    left, right = (torch.linalg.eigh(root.double())[1] for root in kfac[name].tensors().values())
    basis = torch.kron(left, right)
    moment = (documents @ basis).square().mean(0)
    inverse = basis @ torch.diag(1 / (moment + EKFAC_DAMPING * moment.mean())) @ basis.mT
    expected = queries @ inverse @ documents.mT
    torch.testing.assert_close(table.select([name]).scores("none").double(), expected, rtol=1e-3, atol=1e-2)
