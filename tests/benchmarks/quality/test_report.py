"""Methods that differ in one choice are compared on the same draws."""

from pathlib import Path

import numpy as np

from benchmarks.quality.methods import BM25, FOREIGN_GROUP, REFERENCE, SMALL_ROWS, Method
from benchmarks.quality.paired_bootstrap import Resampled
from benchmarks.quality.report import Results
from benchmarks.quality.summary import write_summary
from benchmarks.quality_plot import collect_points
from tests.benchmarks.quality.helpers import make_tiny_experiment

NAMES = (
    BM25,
    "kfac, sign, p = 32, block, all",
    "kfac, sign, p = 32, row, all",
    "kfac, sign, p = 32, C, block, all",
    "kfac, sign, p = 32, block by agreement, all",
    "kfac, sign, p = 32, block, mlp",
    "kfac, bits2, p = 32, row, all",
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
        ("kfac, bits2, p = 32, row, all", "kfac, sign, p = 32, row, all"),
    }


def test_numbers_stand_beside_their_quotient_and_their_difference(tmp_path: Path) -> None:
    results = make_results(tmp_path)
    measured = results.as_json()["methods"]["kfac, sign, p = 32, row, all"]["lds_thresholded"]
    assert np.isclose(measured["mean"], 0.2)
    assert np.isclose(measured["over_bm25"]["mean"], 0.2)
    assert np.isclose(measured["over_bm25"]["low"], 0.2)  # the same draws: the difference does not vary
    assert measured["of_bm25"]["mean"] is None  # BM25 has 0 here, and JSON has no infinity
    assert "of_kfac" not in measured


def test_the_summary_has_the_main_methods_beside_their_share_of_whole_gradients(tmp_path: Path) -> None:
    results = make_results(tmp_path)
    whole = Resampled(0.8, np.full(4, 0.8))
    results.add(Method(REFERENCE, "whole gradients", 4, np.zeros((6, 20))), {"lds_thresholded": whole})
    results.add(Method("another program", FOREIGN_GROUP, None, np.zeros((6, 20))), {"mrr": whole})
    results.write(tmp_path)
    summary = write_summary(tmp_path).read_text()
    assert f"| {SMALL_ROWS} | 100 | 0.100 [0.086, 0.114] (12%) |" in summary
    assert f"| {REFERENCE} | 4 | 0.800 [0.800, 0.800] (100%) |" in summary
    assert "| another program |  | 0.800 [0.800, 0.800] |" in summary
    assert "sign, p = 32, row" not in summary


def test_the_best_rows_within_a_budget_take_no_more_bytes(tmp_path: Path) -> None:
    lines = make_results(tmp_path).markdown().splitlines()
    assert any(line.startswith("| 256 | kfac, sign, p = 32, row, all | 200 | 0.200") for line in lines)


def test_the_plot_has_a_point_for_each_size_of_a_kind_of_rows() -> None:
    numbers = {"lds_thresholded": {"mean": 0.5}, "row_bytes": 7}
    methods = {f"kfac, sign, p = {p}, block, all": numbers for p in (16, 32)} | {BM25: numbers}
    assert collect_points(methods) == {"kfac, sign, block, all": [(7, 0.5), (7, 0.5)]}
