"""The driver measures a toy corpus in its quick form, and a second run takes what is expensive from files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import __main__ as driver
from benchmarks.quality.experiments import Experiment, Settings, make_quick_experiment
from benchmarks.quality.methods import BM25, DEFAULT, REFERENCE
from tests.benchmarks.quality.helpers import make_toy_corpus

CASE = "invented_facts"


def run(monkeypatch: pytest.MonkeyPatch, directory: Path, *options: str) -> dict:
    arguments = [CASE, "--quick", "--processes", "1", "--data_dir", str(directory), *options]
    monkeypatch.setattr("sys.argv", ["benchmarks.quality", *arguments])
    driver.main()
    results = json.loads((directory / "quality" / "quick" / f"{CASE}.json").read_text())
    del results["seconds"]
    return results


def fail(*_: object, **__: object) -> None:
    raise AssertionError("this was to come from a file")


def test_a_quick_run_measures_every_method_and_a_second_one_takes_it_from_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(driver.CASES, CASE, (CASE, "gpt2"))
    monkeypatch.setattr(
        "benchmarks.quality.experiments.CORPORA", {CASE: lambda cache, seed: make_toy_corpus()}
    )
    results = run(monkeypatch, tmp_path, "--steps", "--removal", "2")
    assert results["runs"] == 10
    assert results["corpus"]["sha256"] == make_toy_corpus().sha256()
    assert {"none, not projected, none, all", "kfac, bits2, p = 16, row, mlp"} <= results["methods"].keys()
    for measured in results["methods"].values():
        for measure in ("lds", "lds_thresholded", "mrr", "recall_at_10", "anti_in_first_10"):
            interval = measured[measure]
            assert -1 <= interval["mean"] <= 1
            assert interval["low"] <= interval["high"]
            assert "of_kfac" in interval and "over_bm25" in interval
    assert results["methods"][REFERENCE]["lds"]["of_kfac"]["mean"] == pytest.approx(1)
    assert math.isfinite(results["methods"][BM25]["removal"]["mean"])
    assert results["methods"][BM25]["tail_patch"]["mean"] != 0
    rows_beside = [c for c in results["comparisons"] if c["beside"] == "kfac, sign, p = 16, block, all"]
    assert {c["method"] for c in rows_beside} >= {
        "kfac, sign, p = 16, row, all",
        "kfac, sign, p = 16, block, mlp",
    }
    table = (tmp_path / "quality" / "quick" / f"{CASE}.md").read_text()
    assert all(f"| {name} |" in table for name in results["methods"])

    monkeypatch.setattr("bergson_core.evaluation.retraining._compute_losses", fail)
    monkeypatch.setattr("benchmarks.quality.projected_rows.RowVariants", fail)
    monkeypatch.setattr("benchmarks.quality.unprojected.collect_rows", fail)
    monkeypatch.setattr("benchmarks.quality.interventions.Unlearner.fit", fail)
    assert run(monkeypatch, tmp_path, "--steps", "--removal", "2") == results
    assert f"{CASE}: {len(results['methods'])} methods" in capsys.readouterr().out


def test_of_a_pretrained_model_fewer_methods_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(tmp_path, runs=0, quick=True)
    experiment = make_quick_experiment("toy", "gpt2", make_toy_corpus(), settings)
    monkeypatch.setattr(Experiment, "is_small", False)
    results = driver.run_experiment(experiment, driver.Interventions(), alternatives=True)
    whole = [name for name, (group, _) in results.methods.items() if group == "whole gradients"]
    assert {name.split(",")[0] for name in whole} == {"none", "kfac"}
    assert {DEFAULT, BM25, REFERENCE} <= results.methods.keys()
    assert f"| {DEFAULT} |" in results.markdown()


def test_scores_of_other_programs_are_measured_like_all_others(tmp_path: Path) -> None:
    settings = Settings(tmp_path, runs=10, quick=True)
    experiment = make_quick_experiment("toy", "gpt2", make_toy_corpus(), settings)
    with np.load(experiment.directory / "runs.npz") as runs:
        subsets, losses = runs["subsets"], runs["losses"]
    (experiment.directory / "foreign").mkdir()
    best_linear = np.linalg.lstsq(subsets - 0.5, losses.mean(0) - losses, rcond=None)[0].T
    np.save(experiment.directory / "foreign" / "another program.npy", best_linear)
    results = driver.run_experiment(experiment, driver.Interventions(), alternatives=False)
    assert results.methods["another program"] == ("other programs", None)
    assert results.measured["another program"]["lds"].value == pytest.approx(1)


def test_an_unknown_case_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks.quality", "nothing"])
    with pytest.raises(SystemExit):
        driver.main()
    assert "unknown case nothing" in capsys.readouterr().err
