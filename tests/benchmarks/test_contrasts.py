"""The benchmark of contrasts ranks all documents with A alone, and with A instead of B."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import contrasts
from benchmarks.contrasts import (
    MEASURES,
    OTHER_ANSWER,
    SUBJECT,
    choose_documents,
    iter_rows,
    other_answers,
    percentiles,
)
from benchmarks.corpora.registry import make_invented_facts
from benchmarks.quality.measures import MRR
from tests.benchmarks.helpers import make_factbook, make_facts_case

COLUMNS = contrasts.FACT_CASES["world_factbook"]


def test_the_other_answer_is_one_to_the_same_question_about_somebody_else() -> None:
    corpus = make_invented_facts(people=10)
    attributes = {item.gold: item.metadata["attribute"] for item in corpus.documents}
    found = other_answers(corpus, contrasts.FACT_CASES["invented_facts"])
    for query, answers in zip(corpus.queries, found, strict=True):
        assert answers and query.completion not in answers
        asked = {
            other.completion for other in corpus.queries if attributes[other.gold] == attributes[query.gold]
        }
        assert set(answers) <= asked


def test_a_measure_is_of_the_documents_that_it_names() -> None:
    corpus = make_factbook()
    query = next(query for query in corpus.queries if query.gold.endswith("/ capital"))
    country = query.gold.partition(" / ")[0]
    other = next(
        item
        for item in corpus.documents
        if item.metadata["field"] == "capital" and item.metadata["country"] != country and item.gold
    )
    value = " City " + other.metadata["country"].split()[-1]
    chosen = choose_documents(corpus, [query], [value], COLUMNS)
    by_id = {name: {corpus.documents[k].id for k in np.flatnonzero(chosen[name][0])} for name in chosen}
    assert by_id[MRR] == {f"{query.gold} / 0", f"{query.gold} / 1"}
    assert other.id in by_id[OTHER_ANSWER]
    assert all(name.startswith(f"{country} / ") and "/ capital /" not in name for name in by_id[SUBJECT])


def test_the_first_place_is_100_and_the_last_0() -> None:
    scores = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    chosen = np.array([[True, False, False], [True, False, True]])
    assert percentiles(scores, chosen).tolist() == [100, 25]
    assert np.isnan(percentiles(scores, np.zeros_like(chosen))).all()


def test_each_preset_has_a_row_alone_one_with_the_contrast_and_their_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrasts, "PRESETS", ["default"])
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in iter_rows(make_facts_case(tmp_path), 0)
    ]
    assert [cells[2:4] for cells in rows] == [
        [kind, name] for kind in ("drawn", "likeliest") for name in ("A", "A instead of B", "difference")
    ]
    for alone, contrast, difference in (rows[:3], rows[3:]):
        for k, measure in enumerate(MEASURES, start=4):
            values = [float(cells[k].split()[0]) for cells in (alone, contrast, difference) if cells[k]]
            assert len(values) in (0, 3), measure
            assert not values or values[2] == pytest.approx(values[1] - values[0], abs=0.11)
