"""The recall of answers is the share of the exact ten best documents that they contain."""

import numpy as np
import pytest
from datasets import Dataset

from bergson_core import AttributionIndex
from bergson_core.attribution.corpus_scores import score_corpus
from bergson_core.evaluation.answer_recall import recall_of_answers
from bergson_core.evaluation.queries import EvaluationQuery
from tests.core.helpers import query

QUERIES = [EvaluationQuery(f"q-{k}", f"Person {k} lives in", f" city {k}.", "none") for k in range(5)]


@pytest.fixture(scope="module")
def open_index(index) -> AttributionIndex:
    return AttributionIndex.open(index)


def test_the_answers_of_the_index_itself_have_a_recall_of_one(open_index):
    answers = open_index.attribute([query(question.prompt, question.completion) for question in QUERIES])
    assert (
        recall_of_answers(open_index, QUERIES, [[row.id for row in answer.results] for answer in answers])
        == 1
    )


def test_a_document_that_scores_as_high_as_the_tenth_best_counts(open_index):
    texts = {name: [getattr(question, name) for question in QUERIES] for name in ("prompt", "completion")}
    table = score_corpus(open_index, Dataset.from_dict(texts), aggregate="each").read_all()
    scores, ids = np.array(table["scores"].to_pylist()), table["id"].to_pylist()
    answers, expected = [], []
    for column in scores.T:
        order = np.argsort(-column)
        # Only the first ten documents of an answer count, so that the last four of these do not.
        answers.append([ids[k] for k in (*order[:6], *order[30:34], *order[6:10])])
        expected.append(sum(column[k] >= column[order[9]] for k in (*order[:6], *order[30:34])) / 10)
    assert recall_of_answers(open_index, QUERIES, answers) == pytest.approx(np.mean(expected))
    assert recall_of_answers(open_index, QUERIES, [["no such document"]] * 5) == 0
    assert recall_of_answers(open_index, QUERIES, [[]] * 5) == 0
