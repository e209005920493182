"""Finds documents that state a wrong fact: by self-influence, by the loss alone, and by chance.

    python -m examples.mislabelled_data

One in twenty documents of a corpus states another answer than the right one, which the other documents about the same
fact state. A model is trained on all of them. A document with a wrong answer should teach something that no other
document does, so that its score with itself is high (`score_self_influence`); its loss should be high as well.

Self-influence finds somewhat more than the loss. That is one corpus with one seed, and no claim about others.
"""

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bergson_core import AttributionIndex, BuildSpec, ColumnsSpec, build_index, score_self_influence
from bergson_core.demo.synthetic_facts import ATTRIBUTES, make_corpus
from examples.support import average_precision, train_new_model

PEOPLE, WRONG_SHARE = 100, 0.05


@dataclass(frozen=True)
class Statement:
    """A document, cut where its answer begins."""

    id: str
    prompt: str
    completion: str
    wrong: bool


def make_statements(seed: int = 0) -> list[Statement]:
    """Returns the documents of a corpus, of which some have the answer exchanged for another of the same kind."""
    rng = random.Random(seed)
    documents = make_corpus(PEOPLE, seed).documents
    wrong_numbers = set(rng.sample(range(len(documents)), round(WRONG_SHARE * len(documents))))
    statements = []
    for number, document in enumerate(documents):
        values = ATTRIBUTES[document.metadata["attribute"]].values
        answer = next(value for value in values if document.text.endswith(f" {value}."))
        prompt = document.text.removesuffix(f" {answer}.")
        if number in wrong_numbers:
            answer = rng.choice([value for value in values if value != answer])
        statements.append(Statement(document.id, prompt, f" {answer}.", number in wrong_numbers))
    return statements


def build(statements: Sequence[Statement], directory: Path) -> AttributionIndex:
    """Trains a model on the statements and returns an index of the gradients of their answers."""
    train_new_model(
        [statement.prompt + statement.completion for statement in statements], directory / "model"
    )
    spec = BuildSpec(
        model=str(directory / "model"),
        documents=tuple({"id": s.id, "prompt": s.prompt, "completion": s.completion} for s in statements),
        columns=ColumnsSpec(id="id", prompt="prompt", completion="completion"),
    )
    build_index(spec, directory / "index")
    return AttributionIndex.open(directory / "index")


def main() -> None:
    """Prints how well the wrong statements are found."""
    statements = make_statements()
    with tempfile.TemporaryDirectory() as temporary:
        table = score_self_influence(build(statements, Path(temporary))).read_all()
    wrong = np.array([statement.wrong for statement in statements])
    scores = table["score"].to_numpy()
    print(f"{wrong.sum()} of {len(statements)} documents state a wrong fact; the highest scores:")
    for number in np.argsort(-scores)[:5].tolist():
        statement = statements[number]
        verdict = "wrong" if statement.wrong else "right"
        print(f"  {scores[number]:8.1f}  {verdict}  {statement.prompt}{statement.completion}")
    measured = {
        "self-influence": average_precision(scores, wrong),
        "loss": average_precision(table["loss"].to_numpy(), wrong),
        "chance": wrong.mean(),
    }
    print(f"AUPRC: {', '.join(f'{name} {area:.2f}' for name, area in measured.items())}")


if __name__ == "__main__":
    main()
