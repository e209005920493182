"""`ReferenceScores`: the scores of all documents for all queries, from undisturbed indexes; checks answers with them.

The score of a document depends on the corpus that the statistics were fitted to, on the profile and on its text, and
not on what else was added or taken down. An index of each corpus to which all other documents were added at once
therefore knows the scores that every other index of that corpus has to give.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from bergson_core import AppendSpec, AttributionIndex, append_documents
from bergson_core.errors import BergsonError
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.results import Answer
from tests.faults.state_machine.changes import Build, FitProfile
from tests.faults.state_machine.documents import (
    ALL_DOCUMENTS,
    BASES,
    FILTERS,
    QUERIES,
    TASKS,
    Document,
    Sources,
)
from tests.faults.state_machine.index_model import IndexModel

TOLERANCE: Final = 2e-3
"""Rows are float16, and a document's row is rounded differently in another batch."""


@dataclass(frozen=True)
class Question:
    """A query of an index.

    Attributes:
        prompt: Its prompt.
        completion: Its completion.
        filter: Position in `FILTERS`.
        profile: Its profile.
    """

    prompt: str
    completion: str
    filter: int = 0
    profile: str = "default"

    def fields(self, **more: object) -> dict[str, Any]:
        """Returns the fields of the query, which asks for all documents in both directions."""
        fields = {"prompt": self.prompt, "completion": self.completion, "profile": self.profile}
        return fields | {"filter": FILTERS[self.filter][0], "top_k": 1000, "direction": "both"} | more


def own_text_question(document: Document) -> Question:
    """Returns the query that has the gradient of a document."""
    return Question("", document.text)


def all_questions() -> list[Question]:
    """Returns the queries without a filter: the fixed ones with each profile, and the texts of the documents."""
    fixed = [Question(*query, profile=profile) for query in QUERIES for profile in ("default", *TASKS)]
    return fixed + [own_text_question(document) for document in ALL_DOCUMENTS]


class ReferenceScores:
    """Scores of all documents.

    Args:
        sources: The model and the corpora.
        directory: Where the undisturbed indexes are built.
    """

    def __init__(self, sources: Sources, directory: Path):
        self._scores: dict[tuple[int, Question], dict[Document, float]] = {}
        for base in range(len(BASES)):
            self._score_all(sources, directory / f"reference-{base}", base)

    def _score_all(self, sources: Sources, root: Path, base: int) -> None:
        Build(base).run(root, sources)
        fields = [
            document.fields | {"id": f"{document.number}-{document.version}"} for document in ALL_DOCUMENTS
        ]
        append_documents(root, AppendSpec.model_validate({"documents": fields}))
        for name in TASKS:
            FitProfile(name).run(root, sources)
        index = AttributionIndex.open(root)
        questions = all_questions()
        queries = [AttributionQuery.model_validate(question.fields()) for question in questions]
        for question, answer in zip(questions, index.attribute(queries), strict=True):
            assert isinstance(answer, Answer)
            scores = {row.id: row.score for row in answer.results or ()}
            self._scores[base, question] = {
                document: scores[f"{document.number}-{document.version}"] for document in ALL_DOCUMENTS
            }

    def expected_scores(self, model: IndexModel, question: Question) -> dict[str, float]:
        """Returns the scores of the documents that an answer has to show, by id."""
        unfiltered = Question(question.prompt, question.completion, profile=question.profile)
        scores, meets_filter = self._scores[model.base, unfiltered], FILTERS[question.filter][1]
        return {
            document.id: scores[document]
            for document in model.documents.values()
            if meets_filter(document.metadata)
        }

    def require_right(self, answer: Answer | BergsonError, model: IndexModel, question: Question) -> None:
        """Fails unless an answer shows the visible documents that meet the filter, each with its score.

        The answer is to a query that asks for all documents in both directions.
        """
        assert isinstance(answer, Answer), answer
        assert not answer.partial
        assert answer.generation == model.generation
        results, opponents = list(answer.results or ()), list(answer.opponents or ())
        expected = self.expected_scores(model, question)
        assert sorted(row.id for row in results) == sorted(expected), (model, question)
        assert {row.id: row.score for row in results} == pytest.approx(expected, abs=TOLERANCE)
        scores = [row.score for row in results]
        assert scores == sorted(scores, reverse=True)
        assert [row.rank for row in results] == list(range(1, len(results) + 1))
        assert [(row.id, row.score) for row in sorted(opponents, key=lambda row: row.id)] == [
            (row.id, row.score) for row in sorted(results, key=lambda row: row.id)
        ]
        for row in results:
            document = model.documents[row.id]
            assert (row.prompt, row.metadata) == (document.text, document.metadata)
        own = [document for document in model.documents.values() if question == own_text_question(document)]
        assert all(results[0].id == document.id for document in own)
        if question.filter == 0:
            _require_percentiles(scores, [row.percentile for row in results])


def _require_percentiles(scores: Sequence[float], percentiles: Sequence[float | None]) -> None:
    """Fails unless percentiles were taken among exactly these scores, those of all visible rows."""
    for score, percentile in zip(scores, percentiles, strict=True):
        assert percentile is not None
        # The score of a row among the sampled ones is rounded differently from that of the same row as a result.
        lowest, highest = (
            100 * sum(other < score + slack for other in scores) / (len(scores) + 1)
            for slack in (-1e-4, 1e-4)
        )
        assert lowest - 0.01 <= percentile <= highest + 0.01, (scores, percentiles)
