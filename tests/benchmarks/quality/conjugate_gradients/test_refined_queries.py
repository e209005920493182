"""Refined queries start from EK-FAC, and come to the inverse of the damped Gauss-Newton matrix."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.quality.conjugate_gradients import __main__ as driver
from benchmarks.quality.conjugate_gradients.gauss_newton import GaussNewton
from benchmarks.quality.conjugate_gradients.refined_queries import refine_queries
from benchmarks.quality.unprojected import (
    EKFAC_DAMPING,
    fit_eigenbases,
    iter_gradients,
    unprojected_products,
)
from tests.benchmarks.quality.helpers import make_tiny_experiment, make_toy_corpus

MODULE = "model.layers.1.self_attn.k_proj"
"""The smallest module, with 288 weights."""
ITERATIONS = 45
"""As many as the weights of the module allow with six queries."""


def test_without_iterations_scores_are_those_of_ekfac(tmp_path: Path) -> None:
    experiment = make_tiny_experiment(tmp_path, "llama")
    table = unprojected_products(experiment, ["ekfac"])["ekfac"]
    refined = refine_queries(experiment, table.modules, damping=0.1, iterations=1)
    scores, _ = refined.scores(0, EKFAC_DAMPING)
    torch.testing.assert_close(scores, table.scores("none"), rtol=1e-3, atol=1e-3)
    cosines = refined.normalize(scores, EKFAC_DAMPING) / table.query_squares.sum(0).sqrt()[:, None]
    torch.testing.assert_close(cosines, table.scores("row"), rtol=1e-3, atol=1e-4)


def test_iterations_come_to_the_inverse_of_the_damped_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_tiny_experiment(tmp_path, "llama")
    case, moment = experiment.case, fit_eigenbases(experiment)[MODULE].moment
    tracked = case.model.select_modules()[MODULE]
    units = torch.eye(moment.numel()).unflatten(1, moment.shape)
    matrix = GaussNewton(case.model, case.documents, {MODULE: tracked}).multiply({MODULE: units})[MODULE]
    (queries,) = iter_gradients(experiment, of_queries=True)
    documents = torch.cat([chunk[MODULE] for chunk in iter_gradients(experiment)])
    refined = refine_queries(experiment, [MODULE], damping=0.1, iterations=ITERATIONS)
    monkeypatch.delattr("benchmarks.quality.conjugate_gradients.refined_queries._refine")
    again = refine_queries(experiment, [MODULE], damping=0.1, iterations=ITERATIONS)
    # Preconditioned with another damping, the same number of iterations comes less near.
    for damping, largest_error in ((0.1, 1e-3), (1.0, 0.1)):
        damped = matrix.flatten(1).double() + damping * moment.mean() * torch.eye(moment.numel())
        solutions = torch.linalg.solve(damped, queries[MODULE].flatten(1).double().mT).mT
        expected = solutions @ documents.flatten(1).double().mT
        scores, _ = refined.scores(ITERATIONS, damping)
        assert (scores - expected).norm() < largest_error * expected.norm()
        assert (refined.scores(1, damping)[0] - expected).norm() > 0.3 * expected.norm()
        assert torch.equal(again.scores(ITERATIONS, damping)[0], scores)


def test_a_quick_run_prints_what_refined_queries_gain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = make_toy_corpus()
    monkeypatch.setattr("benchmarks.quality.experiments.CORPORA", {"invented_facts": lambda *_, **__: corpus})
    options = ["--quick", "--queries", "4", "--iterations", "2", "--processes", "1", "--modules", "down"]
    monkeypatch.setattr("sys.argv", ["", "invented_facts", *options, "--data_dir", str(tmp_path)])
    driver.main()
    printed = capsys.readouterr().out
    assert "invented_facts: 4 queries, 10 runs" in printed
    for name in ("BM25", "kfac, not projected, row, all", "EK-FAC, c = 1, row, down"):
        assert f"| {name} |" in printed
    assert "| CG, c = 0.001, k = 2, none, down |" in printed
    assert "lds: CG, c = " in printed


def test_chosen_queries_lie_evenly_among_all(tmp_path: Path) -> None:
    experiment = make_tiny_experiment(tmp_path)
    part, chosen = driver.select_queries(experiment, 3)
    assert chosen.tolist() == [0, 2, 5]
    assert [query.id for query in part.case.corpus.queries] == [
        experiment.case.corpus.queries[number].id for number in chosen
    ]
    assert np.array_equal(part.case.queries[1].ids, experiment.case.queries[2].ids)
    assert part.losses.shape == (0, 3)
