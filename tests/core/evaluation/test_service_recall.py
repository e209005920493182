"""How many of the exact ten best are in an answer."""

import numpy as np
import pytest
from datasets import Dataset

from bergson_core import AttributionIndex
from bergson_core.attribution.corpus_scores import score_corpus
from bergson_core.evaluation.queries import EvaluationQuery
from bergson_core.evaluation.service_recall import recall_of_answers
from tests.core.helpers import query

QUERIES = [EvaluationQuery(f"q-{k}", f"Person {k} lives in", f" city {k}.", "none") for k in range(5)]


@pytest.fixture(scope="module")
def opened(index) -> AttributionIndex:
    return AttributionIndex.open(index)


def test_all_of_them_are_in_what_the_index_answers_itself(opened):
    answers = opened.attribute([query(one.prompt, one.completion) for one in QUERIES])
    assert recall_of_answers(opened, QUERIES, [[row.id for row in answer.results] for answer in answers]) == 1


def test_it_is_the_share_of_those_whose_score_is_as_high_as_the_tenths(opened):
    texts = {name: [getattr(one, name) for one in QUERIES] for name in ("prompt", "completion")}
    table = score_corpus(opened, Dataset.from_dict(texts), aggregate="each").read_all()
    scores, ids = np.array(table["scores"].to_pylist()), table["id"].to_pylist()
    answers, expected = [], []
    for column in scores.T:
        order = np.argsort(-column)
        answers.append(
            [ids[k] for k in (*order[:6], *order[30:34], *order[6:10])]
        )  # what is after ten is not looked at
        expected.append(sum(column[k] >= column[order[9]] for k in (*order[:6], *order[30:34])) / 10)
    assert recall_of_answers(opened, QUERIES, answers) == pytest.approx(np.mean(expected))
    assert recall_of_answers(opened, QUERIES, [["no such document"]] * 5) == 0
    assert recall_of_answers(opened, QUERIES, [[]] * 5) == 0
