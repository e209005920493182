"""How improbable a text may be before a contrast with it is noise: the threshold of the warning `unlikely_contrast`.

    bergson demo --exit                  # prints the index and its directory
    python -m benchmarks.improbable_contrasts DIRECTORY/indexes/INDEX [--queries 100] [--seed 0]

Each query of the demo is asked with its answer A instead of B, for B of several kinds: the answer to the same question
about somebody else, an answer to another question, a word of the corpus, letters, and signs. The rows of the table are
ranges of the mean log-probability of a token of B, with the MRR of the documents that state A, and how many answers
have the notice that nothing stands out.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

import numpy as np

from bergson_core import AttributionIndex, AttributionQuery
from bergson_core.demo.synthetic_facts import FactCorpus, make_corpus
from bergson_core.errors import BergsonError
from bergson_core.evaluation.queries import EvaluationQuery

PEOPLE: Final = 400
EDGES: Final = (0.0, -2.0, -4.0, -6.0, -8.0, -10.0, -12.0, -14.0, -16.0, -100.0)


class Outcome(NamedTuple):
    """What came of one contrast.

    Attributes:
        mean: Mean log-probability of a token of B, in nats.
        reciprocal_rank: Of the first document that states A.
        has_notice: Whether the answer says that nothing stands out.
    """

    mean: float
    reciprocal_rank: float
    has_notice: bool


def texts(corpus: FactCorpus, seed: int) -> Iterator[tuple[EvaluationQuery, list[str]]]:
    """Yields each query with a text of each kind, in an order that the seed draws."""
    draw = Random(seed)
    attributes = {item.gold: item.metadata["attribute"] for item in corpus.documents}
    answers: dict[str, set[str]] = {}
    for query in corpus.queries:
        answers.setdefault(attributes[query.gold], set()).add(query.completion)
    words = [word for item in corpus.documents for word in item.text.split()]
    for query in draw.sample(corpus.queries, len(corpus.queries)):
        own = attributes[query.gold]
        same = sorted(answers[own] - {query.completion})
        others = sorted(text for name, found in answers.items() if name != own for text in found)
        letters = " " + "".join(draw.choice("qxzjkvw") for _ in range(6))
        yield query, [draw.choice(same), draw.choice(others), f" {draw.choice(words)}", letters, " $#@!"]


def ask(
    index: AttributionIndex, query: EvaluationQuery, alternatives: Sequence[str], gold: Mapping[str, set[str]]
) -> Iterator[Outcome]:
    """Yields what comes of the contrasts of one query; those that are none, as with the same word, are left out."""
    asked = [
        AttributionQuery(
            prompt=query.prompt, completion=query.completion, instead_of=text, top_k=1000, include=()
        )
        for text in alternatives
        if text != query.completion
    ]
    assert index.model.tokenizer is not None  # load_model always returns one
    for contrast, answer in zip(asked, index.attribute(asked), strict=True):
        if isinstance(answer, BergsonError) or answer.query.instead_of_loss is None:
            continue
        count = len(index.model.tokenizer(contrast.instead_of, add_special_tokens=False)["input_ids"])
        ranks = [row.rank for row in answer.results or () if row.id in gold[query.id]]
        yield Outcome(
            -answer.query.instead_of_loss / count, 1 / ranks[0] if ranks else 0.0, answer.notice is not None
        )


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", type=Path, help="directory of the demo's index")
    parser.add_argument("--queries", type=int, default=100, help="queries of the demo to ask")
    parser.add_argument("--seed", type=int, default=0, help="seed of the queries and texts")
    options = parser.parse_args()
    corpus, index = make_corpus(PEOPLE, 0), AttributionIndex.open(options.index)
    gold = {name: set(ids) for name, ids in corpus.gold_ids().items()}
    outcomes: list[Outcome] = []
    for query, alternatives in list(texts(corpus, options.seed))[: options.queries]:
        outcomes += ask(index, query, alternatives, gold)
    print("| mean log-probability of a token of B | contrasts | MRR | with notice |\n|---|---:|---:|---:|")
    for high, low in pairwise(EDGES):
        if found := [each for each in outcomes if low <= each.mean < high or each.mean == high == 0]:
            mrr = np.mean([each.reciprocal_rank for each in found])
            notices = np.mean([each.has_notice for each in found])
            print(f"| {high:g} to {low:g} | {len(found)} | {mrr:.3f} | {notices:.0%} |")


if __name__ == "__main__":
    main()
