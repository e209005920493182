"""The driver prints the area of every method in both settings, those of other programs included."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.corpora.world_factbook import read_facts
from benchmarks.quality.experiments import QUICK_SCHEDULE, Settings
from benchmarks.quality.methods import BM25, DEFAULT, RECOMMENDED, REFERENCE, REPRESENTATIONS, Method
from benchmarks.toxicity import __main__ as driver
from benchmarks.toxicity.methods import prepare_toxicity
from benchmarks.toxicity.secret_chats import HARMFUL, make_secret_chats
from bergson_core.errors import InvalidInput
from tests.benchmarks.helpers import make_countries

FACTS = read_facts(make_countries(30))
PROGRAM = "another program"


def leave_scores(directory: Path) -> None:
    """Leaves the scores of a program that knows the harmful rows, in the directories of both settings."""
    for setting in (driver.HOMOGENEOUS, driver.HETEROGENEOUS):
        corpus = make_secret_chats(setting, "test", FACTS, driver.QUICK_SIZES, 0)
        experiment = prepare_toxicity(corpus, "gpt2", Settings(directory, quick=True), QUICK_SCHEDULE)
        harmful = np.array([document.gold == HARMFUL for document in corpus.documents])
        (experiment.directory / "foreign").mkdir()
        scores = np.tile(harmful * 1.0, (len(corpus.queries), 1))
        np.save(experiment.directory / "foreign" / f"{PROGRAM}.npy", scores)


def test_a_quick_run_measures_every_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(driver, "read_installed_facts", lambda: ("test", FACTS))
    leave_scores(tmp_path)
    arguments = ["benchmarks.toxicity", "--quick", "--data_dir", str(tmp_path), "--seeds", "1"]
    monkeypatch.setattr("sys.argv", arguments)
    driver.main()
    printed = capsys.readouterr().out
    assert "74 rows (60 benign, 5 harmful, 9 look-alike; 6.8% harmful), 3 references" in printed
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    cells = {row[0]: row[2:] for row in rows[1:]}
    assert {BM25, REPRESENTATIONS, REFERENCE, DEFAULT, RECOMMENDED, PROGRAM} <= cells.keys()
    for values in cells.values():
        assert all(0 <= float(value.split()[0]) <= 1 for value in values[:-1])
    assert [value.split()[0] for value in cells[PROGRAM][:-1]] == ["1.000"] * 3
    assert cells[BM25][-1] == "0.000 [0.000, 0.000]"


def test_scores_of_a_program_for_some_seeds_only_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_secret_chats("heterogeneous", "test", FACTS, driver.QUICK_SIZES, 0)
    case = SimpleNamespace(corpus=corpus)
    experiments: list[Any] = [SimpleNamespace(case=case, directory=Path(f"seed {k}")) for k in range(2)]
    methods = {name: Method(name, "", None, np.zeros((3, 74))) for name in (BM25, PROGRAM)}
    left = iter([[methods[BM25], methods[PROGRAM]], [methods[BM25]]])
    monkeypatch.setattr(driver, "iter_toxicity_methods", lambda experiment: next(left))
    with pytest.raises(InvalidInput, match=f"expected scores of {PROGRAM} in each of seed 0, seed 1; 1 have"):
        driver.score_rows(experiments)
