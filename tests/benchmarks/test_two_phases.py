"""The benchmark of two phases ranks the documents of a run whose late phase teaches new facts."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import two_phases
from benchmarks.two_phases import BETWEEN, DIFFERENCE, iter_rows, make_run, measure, precision_measures
from bergson_core.demo.recipe import DemoRecipe


def test_the_late_phase_gives_half_of_the_people_another_employer() -> None:
    run = make_run(6, seed=1)
    assert len(run.queries) == len(set(run.persons)) == 3
    assert len(run.late) == 9
    for query, person in zip(run.queries, run.persons, strict=True):
        stating = [document for document in run.late if document.gold == query.gold]
        assert len(stating) == 3
        assert all(person in d.text and query.completion.strip() in d.text for d in stating)
        assert query.prompt + query.completion not in {d.text.removesuffix(".") for d in run.documents}
        outdated = run.outdated(person)
        assert len(outdated) == 3
        assert all(person in d.text and query.completion.strip() not in d.text for d in outdated)


def test_the_measures_are_those_of_the_places_of_right_documents() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.7])
    right = np.array([False, False, True, True])
    assert precision_measures(scores, right) == (1 / 2, pytest.approx((1 / 2 + 2 / 3) / 2))
    run = make_run(2, seed=0)
    is_late = np.array([[document in run.late for document in run.documents]])
    assert measure(run, is_late.astype(float)).tolist() == [[1, 1, 1]]
    assert measure(run, -is_late.astype(float))[0, 2] == 0


def test_the_table_has_a_row_for_each_kind_of_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_phases.tempfile, "tempdir", str(tmp_path))
    recipe = DemoRecipe(hidden=16, layers=1, heads=2, epochs=1, least_steps=2, vocabulary=400)
    rows = list(iter_rows(4, 2, recipe))
    names = [row.split("|")[1].strip() for row in rows]
    assert len(names) == 5
    assert (names[0], names[-1]) == (BETWEEN, DIFFERENCE)
    assert all(row.count("[") == 3 for row in rows)
