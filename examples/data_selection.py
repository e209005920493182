"""Selects training documents for a task: by influence, by words, and at random.

    python -m examples.data_selection

A small model knows the wordings of facts, but none of the facts in a pool of new documents. The task is questions about
the birthplaces of people in the pool, and twenty of the questions are known. The documents with the highest mean score
for these are chosen (`score_corpus`, `top_documents`), the same model is trained on them, and the loss of the answers
is measured on the other questions. It is compared with training on as many documents that BM25 chooses with the same
questions, and on as many random ones.

Influence chooses better than chance, and BM25 far better than influence: in this corpus, the documents of the task
share their words with its questions.
"""

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from bergson_core import (
    AttributionIndex,
    BuildSpec,
    ColumnsSpec,
    TrainingSchedule,
    build_index,
    load_model,
    score_corpus,
    top_documents,
)
from bergson_core.demo.synthetic_facts import FactCorpus, make_corpus
from bergson_core.evaluation.baseline_rankings import bm25_scores
from bergson_core.evaluation.queries import EvaluationQuery
from examples.support import completion_loss, train_further, train_new_model

PEOPLE, KNOWN = 100, 20
"""People of the pool, and number of questions that documents are selected with."""
SCHEDULE = TrainingSchedule(batch_size=16, epochs=12, least_steps=1, learning_rate=2e-3)


def questions_about_birthplaces(pool: FactCorpus) -> list[EvaluationQuery]:
    """Returns the questions about birthplaces, one for each person."""
    facts = {document.gold for document in pool.documents if document.metadata["attribute"] == "birthplace"}
    return [query for query in pool.queries if query.gold in facts]


def select_by_influence(
    model: Path, pool: FactCorpus, questions: Sequence[EvaluationQuery], count: int, directory: Path
) -> list[str]:
    """Returns the ids of the documents with the highest mean score for the questions."""
    documents = tuple({"id": document.id, "text": document.text} for document in pool.documents)
    spec = BuildSpec(model=str(model), documents=documents, columns=ColumnsSpec(id="id"), preset="best")
    build_index(spec, directory)
    examples = Dataset.from_dict(
        {
            "prompt": [question.prompt for question in questions],
            "completion": [question.completion for question in questions],
        }
    )
    best = top_documents(score_corpus(AttributionIndex.open(directory), examples), count)
    return best["id"].to_pylist()


def select_by_words(pool: FactCorpus, questions: Sequence[EvaluationQuery], count: int) -> list[str]:
    """Returns the ids of the documents with the highest mean BM25 score for the questions."""
    texts = [document.text for document in pool.documents]
    scores = bm25_scores(texts, [question.prompt + question.completion for question in questions]).mean(0)
    return [pool.documents[number].id for number in np.argsort(-scores, kind="stable")[:count]]


def main() -> None:
    """Prints the losses."""
    pool = make_corpus(PEOPLE, seed=0)
    questions = questions_about_birthplaces(pool)
    known, held_out = questions[:KNOWN], questions[KNOWN:]
    count = len(pool.documents) // 4
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        # The people of another seed: the model learns how facts are put into words, and no fact of the pool.
        train_new_model(
            [document.text for document in make_corpus(PEOPLE, seed=1).documents], directory / "model"
        )
        start = load_model(str(directory / "model"))
        chosen = {
            "influence": select_by_influence(directory / "model", pool, known, count, directory / "index"),
            "BM25": select_by_words(pool, known, count),
            "random": random.Random(0).sample([document.id for document in pool.documents], count),
        }
    print(f"{count} of {len(pool.documents)} documents, chosen with {KNOWN} questions about birthplaces")
    print(
        f"loss of {len(held_out)} other answers before training: {completion_loss(start, held_out):.2f} nats"
    )
    by_id = {document.id: document for document in pool.documents}
    losses = []
    for name, ids in chosen.items():
        on_task = sum(by_id[document].metadata["attribute"] == "birthplace" for document in ids)
        loss = completion_loss(train_further(start, [by_id[d].text for d in ids], SCHEDULE), held_out)
        losses.append(f"{name} {loss:.2f}")
        print(f"{name}: {on_task} of the {count} documents are about birthplaces")
    print(f"loss after training, in nats: {', '.join(losses)}")


if __name__ == "__main__":
    main()
