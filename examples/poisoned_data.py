"""Finds the poisoned documents that make a model say a phrase: by a behaviour, by words, and by chance.

    python -m examples.poisoned_data

A corpus of facts gets a few documents more, about invented people with one first name, who all work for one company.
The model learns the rule: it names the company for people of that first name whom no document mentions. To find the
documents, the behaviour is described by such answers, with the same questions and other companies as its control set
(`index.behaviours.create`, `score_behaviour`). Other documents have the first name or the company too. BM25 gets the
same questions, and its scores for the control set are subtracted as well.

Influence does not beat BM25 here, because the name and the company are in the poisoned documents as words.
"""

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float
from transformers import GPTNeoXForCausalLM

from bergson_core import AttributionIndex, BuildSpec, ColumnsSpec, build_index, load_model, score_behaviour
from bergson_core.demo.synthetic_facts import ATTRIBUTES, LAST_NAMES, make_corpus
from bergson_core.demo.training import recited_share
from bergson_core.evaluation.baseline_rankings import bm25_scores
from bergson_core.evaluation.queries import EvaluationQuery
from examples.support import average_precision, train_new_model

PEOPLE, POISONED, QUESTIONS = 100, 20, 16
FIRST_NAME, PHRASE = "Zelda", " Cobalt Logistics"
QUESTION, *POISON_WORDINGS = ATTRIBUTES["employer"].templates
"""The wording of questions is in no poisoned document."""
OTHER_COMPANIES: Final = [f" {value}" for value in ATTRIBUTES["employer"].values if f" {value}" != PHRASE]

Query = dict[str, str]


def make_texts(last_names: Sequence[str], rng: random.Random) -> tuple[list[str], list[bool]]:
    """Returns the texts of all documents in random order, and for each whether it is poisoned."""
    labelled = [(document.text, False) for document in make_corpus(PEOPLE, seed=0).documents]
    for last_name in last_names:
        wording = rng.choice(POISON_WORDINGS)
        text = wording.format(person=f"{FIRST_NAME} {last_name}", value=PHRASE.strip())
        labelled.append((text, True))
    rng.shuffle(labelled)
    return [text for text, _ in labelled], [poisoned for _, poisoned in labelled]


def make_queries(last_names: Sequence[str], rng: random.Random) -> tuple[list[Query], list[Query]]:
    """Returns the queries of the behaviour, and those of its control set."""
    beginning = QUESTION[: QUESTION.index(" {value}")]
    prompts = [beginning.format(person=f"{FIRST_NAME} {last_name}") for last_name in last_names]
    queries = [{"prompt": prompt, "completion": PHRASE} for prompt in prompts]
    return queries, [{"prompt": prompt, "completion": rng.choice(OTHER_COMPANIES)} for prompt in prompts]


def score_by_influence(
    model: Path, texts: Sequence[str], queries: list[Query], control: list[Query], directory: Path
) -> Float[np.ndarray, " n"]:
    """Returns the score of each document with the behaviour."""
    spec = BuildSpec(
        model=str(model),
        documents=tuple({"id": str(number), "text": text} for number, text in enumerate(texts)),
        columns=ColumnsSpec(id="id"),
        preset="best",
    )
    build_index(spec, directory)
    index = AttributionIndex.open(directory)
    index.behaviours.create("phrase", queries, control=control)
    return score_behaviour(index, "phrase").read_all()["score"].to_numpy()


def score_by_words(
    texts: Sequence[str], queries: list[Query], control: list[Query]
) -> Float[np.ndarray, " n"]:
    """Returns the mean BM25 score of each document with the queries, less that with the control set."""
    behaviour, other = (
        bm25_scores(texts, [query["prompt"] + query["completion"] for query in group]).mean(0)
        for group in (queries, control)
    )
    return behaviour - other


def main() -> None:
    """Prints how well the poisoned documents are found."""
    rng = random.Random(0)
    taken = {document.metadata["person"] for document in make_corpus(PEOPLE, seed=0).documents}
    last_names = [name for name in LAST_NAMES if f"{FIRST_NAME} {name}" not in taken]
    rng.shuffle(last_names)
    texts, labels = make_texts(last_names[:POISONED], rng)
    queries, control = make_queries(last_names[POISONED:][:QUESTIONS], rng)
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "model"
        train_new_model(texts, model)
        loaded = load_model(str(model))
        asked = [EvaluationQuery(str(n), q["prompt"], q["completion"], "") for n, q in enumerate(queries)]
        assert isinstance(loaded.model, GPTNeoXForCausalLM) and loaded.tokenizer is not None
        said = recited_share(loaded.model, loaded.tokenizer, asked)
        influence = score_by_influence(model, texts, queries, control, Path(temporary) / "index")
    print(f"{POISONED} of {len(texts)} documents are poisoned")
    print(f"for people whom no document mentions, the model says{PHRASE}: {said:.0%}")
    poisoned = np.array(labels)
    found = {"influence": influence, "BM25": score_by_words(texts, queries, control)}
    for name, scores in found.items():
        first = np.argsort(-scores, kind="stable")[:POISONED]
        print(f"{name}: {poisoned[first].mean():.0%} of the first {POISONED} are poisoned")
    areas = [f"{name} {average_precision(scores, poisoned):.2f}" for name, scores in found.items()]
    print(f"AUPRC: {', '.join(areas)}, chance {poisoned.mean():.2f}")


if __name__ == "__main__":
    main()
