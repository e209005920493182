"""The evaluator of DATE-LM, as it is documented, measures the files that are exported as it measures the scores."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.toxicity.precision_recall import auprc
from bergson_core import AttributionIndex, AttributionQuery, build_index, score_corpus, write_score_array
from tests import tiny
from tests.core.helpers import make_spec

QUERIES = [
    AttributionQuery(prompt=f"Person {k} lives in", completion=f" city {k % 3}.", top_k=40) for k in (1, 2, 6)
]
UNSAFE = np.arange(40) % 7 == 3
K = 50


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> AttributionIndex:
    root = tmp_path_factory.mktemp("exported")
    tiny.save_model(root / "model")
    tiny.save_documents(root / "documents.jsonl")
    build_index(make_spec(root), root / "facts", shard_rows=16)
    return AttributionIndex.open(root / "facts")


def read_score_path(path: Path) -> Any:
    """Reads a file as DATE-LM's evaluator does: as JSON."""
    return json.loads(path.read_text())


def scores_of_answers(index: AttributionIndex) -> np.ndarray:
    """Returns the scores [q, n] that queries get, in the order of the dataset."""
    scores = np.full((len(QUERIES), 40), np.nan)
    for number, answer in enumerate(index.attribute(QUERIES)):
        for row in answer.results:  # pyright: ignore[reportAttributeAccessIssue]
            scores[number, int(row.id.removeprefix("doc-"))] = row.score
    return scores


def test_a_toxicity_file_has_the_area_of_the_mean_scores(index: AttributionIndex, tmp_path: Path) -> None:
    write_score_array(index, score_corpus(index, QUERIES), tmp_path / "scores.json")
    read = read_score_path(tmp_path / "scores.json")
    assert len(read) == 40 and all(type(score) is float for score in read)
    assert auprc(np.array(read), UNSAFE) == pytest.approx(auprc(scores_of_answers(index).mean(0), UNSAFE))


def test_a_file_of_facts_has_the_ranks_of_the_answers(index: AttributionIndex, tmp_path: Path) -> None:
    write_score_array(index, score_corpus(index, QUERIES, aggregate="each"), tmp_path / "scores.json")
    read = read_score_path(tmp_path / "scores.json")
    assert (len(read), {len(scores) for scores in read}) == (len(QUERIES), {40})
    for answer, scores in zip(index.attribute(QUERIES), read, strict=True):
        ids = [f"doc-{k}" for k in np.argsort(-np.array(scores))[:K]]
        assert ids == [row.id for row in answer.results]  # pyright: ignore[reportAttributeAccessIssue]
