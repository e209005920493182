"""Methods that differ in one choice are compared on the same draws."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.quality.methods import BM25, REFERENCE, Method
from benchmarks.quality.paired_bootstrap import Resampled
from benchmarks.quality.report import Results, write_summary
from benchmarks.quality_plot import collect_points
from tests.benchmarks.quality.helpers import make_tiny_experiment

NAMES = (
    BM25,
    "kfac, sign, p = 32, block, all",
    "kfac, sign, p = 32, row, all",
    "kfac, sign, p = 32, C, block, all",
    "kfac, sign, p = 32, block by agreement, all",
    "kfac, sign, p = 32, block, mlp",
    "kfac, bits1, p = 32, row, all",
    "adafactor, sign, p = 32, block, all",
)


def make_results(directory: Path) -> Results:
    results = Results(make_tiny_experiment(directory))
    for number, name in enumerate(NAMES):
        scores = np.zeros((6, 20))
        measured = {"lds_thresholded": Resampled(0.1 * number, 0.1 * number + np.arange(4) / 100)}
        results.add(Method(name, "rows", 100 * number, scores), measured)
    return results


def test_pairs_differ_in_one_choice(tmp_path: Path) -> None:
    pairs = {(name, other) for name, other, _, _ in make_results(tmp_path).iter_comparisons()}
    signs = "kfac, sign, p = 32, block, all"
    assert pairs == {
        ("kfac, sign, p = 32, row, all", signs),
        ("kfac, sign, p = 32, C, block, all", signs),
        ("kfac, sign, p = 32, block by agreement, all", signs),
        ("kfac, sign, p = 32, block, mlp", signs),
        ("kfac, bits1, p = 32, row, all", "kfac, sign, p = 32, row, all"),
    }


def test_numbers_stand_beside_their_quotient_and_their_difference(tmp_path: Path) -> None:
    results = make_results(tmp_path)
    measured = results.as_json()["methods"]["kfac, sign, p = 32, row, all"]["lds_thresholded"]
    assert np.isclose(measured["mean"], 0.2)
    assert np.isclose(measured["over_bm25"]["mean"], 0.2)
    assert np.isclose(measured["over_bm25"]["low"], 0.2)  # the same draws: the difference does not vary
    assert measured["of_bm25"]["mean"] is None  # BM25 has 0 here, and JSON has no infinity
    assert "of_kfac" not in measured


def test_the_summary_has_each_method_beside_its_share_of_whole_gradients(tmp_path: Path) -> None:
    results = make_results(tmp_path)
    results.write(tmp_path)
    assert write_summary(tmp_path).read_text().count("\n") == 2  # nothing was trained again
    results.experiment = replace(results.experiment, losses=np.zeros((1, 6)))
    whole = Resampled(0.8, np.full(4, 0.8))
    results.add(Method(REFERENCE, "whole gradients", 4, np.zeros((6, 20))), {"lds_thresholded": whole})
    results.write(tmp_path)
    summary = write_summary(tmp_path).read_text()
    assert "| kfac, sign, p = 32, row, all | 0.200 in 200 B (25% [23%, 27%]) |" in summary
    assert f"| {REFERENCE} | 0.800 in 4 B (100% [100%, 100%]) |" in summary


def test_the_best_rows_within_a_budget_take_no_more_bytes(tmp_path: Path) -> None:
    lines = make_results(tmp_path).markdown().splitlines()
    assert any(line.startswith("| 256 | kfac, sign, p = 32, row, all | 200 | 0.200") for line in lines)


def test_the_plot_has_a_point_for_each_size_of_a_kind_of_rows() -> None:
    numbers = {"lds_thresholded": {"mean": 0.5}, "row_bytes": 7}
    methods = {f"kfac, sign, p = {p}, block, all": numbers for p in (16, 32)} | {BM25: numbers}
    assert collect_points(methods) == {"kfac, sign, block, all": [(7, 0.5), (7, 0.5)]}
