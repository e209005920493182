"""The benchmark of the notice asks an index of each kind of rows, and prints what it claims."""

from pathlib import Path

import pytest

from benchmarks import notice_accuracy
from benchmarks.notice_accuracy import measure, wilson_interval
from benchmarks.support.notice_queries import make_notice_queries
from bergson_core.schemas.build import GradientSpec
from tests.benchmarks.helpers import make_facts_case


def test_the_table_has_every_kind_of_queries_and_every_way_to_calibrate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notice_accuracy, "KINDS", {"tiny": {"gradients": GradientSpec(projection_dim=4)}})
    case = make_facts_case(tmp_path)
    queries = make_notice_queries(case, tmp_path, seed=0, count=6)
    kinds = list(queries)
    assert {"questions", "unseen"} <= set(kinds)
    measure(case, queries, alternatives=True)
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()
    ]
    assert [cells[3] for cells in lines[: len(kinds)]] == kinds
    assert all(cell == "none" or "of" in cell for cells in lines[: len(kinds)] for cell in cells[5:])
    assert ["calibrated with", "by", "threshold", *kinds] in lines
    assert ["left out", "fit from 40 to 80 %"] in [cells[:2] for cells in lines]
    assert sum(cells[:1] == ["oracle"] for cells in lines) == 6


def test_wilsons_interval_is_that_of_the_textbook() -> None:
    assert wilson_interval(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson_interval(81, 100) == pytest.approx((0.7222, 0.8749), abs=1e-4)
