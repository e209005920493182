"""What `instead_of` does to the documents of facts: why does the model say A, and why A rather than B?

    python -m benchmarks.contrasts [CASE ...] [--seed 0] [--data_dir DIR]

Each query of a corpus of facts is asked with its answer A alone, and with A instead of B, where B is the answer of
another query about the same attribute: one that is drawn with the seed, or the one that the model finds likeliest. All
documents are ranked each time:

    MRR              of the documents that state A of the subject
    Recall@10        whether one of them is among the first ten
    subject          mean percentile of the documents that mention the subject, and state something else about it
    other answer     mean percentile of the documents that state B of another subject
    contradiction    mean percentile of the documents that contradict A (World Factbook)

100 is the first place and 0 the last, which has the strongest negative influence; 50 is what chance gives.
"""

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
from datasets import Dataset
from jaxtyping import Bool, Float

from benchmarks.corpora.corpus import Corpus, Document
from benchmarks.corpora.registry import default_cache
from benchmarks.models.cases import Case, load_case
from benchmarks.notice_accuracy import build
from benchmarks.quality.measures import MRR, RECALL, anti_documents, measure_retrieval
from benchmarks.quality.paired_bootstrap import Resampled, mean_over_queries
from benchmarks.support.command_line import make_parser, parse_with_names
from bergson_core import AttributionIndex
from bergson_core.attribution.corpus_scores import score_corpus
from bergson_core.errors import BergsonError
from bergson_core.evaluation.queries import EvaluationQuery
from bergson_core.models.forward_backward import compute_document_losses
from bergson_core.models.language_model import LanguageModel
from bergson_core.schemas.presets import PresetName
from bergson_core.tokens.tokenization import tokenize

FACT_CASES: Final[Mapping[str, tuple[str, str]]] = {
    "world_factbook": ("country", "field"),
    "invented_facts": ("person", "attribute"),
}
"""Case → the columns of the metadata that hold the subject and the attribute of a document."""
PRESETS: Final[Sequence[PresetName]] = ("default", "best")
DRAWN, LIKELIEST = "drawn", "likeliest"
SUBJECT, OTHER_ANSWER, CONTRADICTION = "subject", "other answer", "contradiction"
MEASURES: Final = (MRR, RECALL, SUBJECT, OTHER_ANSWER, CONTRADICTION)


def other_answers(corpus: Corpus, columns: tuple[str, str]) -> list[list[str]]:
    """Returns, for each query, the answers of other queries about the same attribute."""
    facts = facts_by_gold(corpus, columns)
    answers: dict[str, set[str]] = {}
    for query in corpus.queries:
        answers.setdefault(facts[query.gold][1], set()).add(query.completion)
    return [sorted(answers[facts[query.gold][1]] - {query.completion}) for query in corpus.queries]


def likeliest(
    model: LanguageModel, queries: Sequence[EvaluationQuery], others: Sequence[list[str]]
) -> list[str]:
    """Returns the answer with the highest probability after each query's prompt."""
    assert model.tokenizer is not None  # load_model always returns one
    pairs = [(query.prompt, other) for query, found in zip(queries, others, strict=True) for other in found]
    prompts, completions = zip(*pairs, strict=True)
    losses = iter(
        compute_document_losses(model, tokenize(model.tokenizer, prompts, completions, label_end=False))
    )
    return [min(found, key=lambda _: next(losses)) for found in others]


def percentiles(scores: Float[np.ndarray, "q n"], chosen: Bool[np.ndarray, "q n"]) -> Float[np.ndarray, " q"]:
    """Returns the mean percentile of the chosen documents of each query, NaN where none is chosen."""
    ranks = scores.argsort(1, kind="stable").argsort(1)
    counts = chosen.sum(1)
    with np.errstate(invalid="ignore"):
        return 100 * (ranks * chosen).sum(1) / counts / (scores.shape[1] - 1)


def score_all(
    index: AttributionIndex, queries: Sequence[EvaluationQuery], others: Sequence[str | None]
) -> np.ndarray:
    """Returns the scores [q, n] of all documents."""
    rows = [
        {"prompt": query.prompt, "completion": query.completion, "instead_of": other}
        for query, other in zip(queries, others, strict=True)
    ]
    reader = score_corpus(index, Dataset.from_list(rows), aggregate="each")
    return np.concatenate([np.stack(batch["scores"].to_numpy(zero_copy_only=False)) for batch in reader]).T


def measure(
    scores: Float[np.ndarray, "q n"], documents: Mapping[str, Bool[np.ndarray, "q n"]], seed: int
) -> dict[str, Resampled]:
    """Returns each measure with its resamples, which are the same draws for the same documents.

    Args:
        scores: The scores.
        documents: The documents that each measure is of; those of the MRR are the right ones.
        seed: Seed of the resamples.
    """
    values = measure_retrieval(scores, documents[MRR])
    values |= {name: percentiles(scores, chosen) for name, chosen in documents.items() if name != MRR}
    return {
        name: mean_over_queries(found[~np.isnan(found)], seed)
        for name, found in values.items()
        if not np.isnan(found).all()
    }


def choose_documents(
    corpus: Corpus, queries: Sequence[EvaluationQuery], others: Sequence[str], columns: tuple[str, str]
) -> dict[str, Bool[np.ndarray, "q n"]]:
    """Returns, for each measure, the documents of each query that it is of."""
    facts, gold = facts_by_gold(corpus, columns), corpus.gold_ids()
    anti = dict(zip((query.id for query in corpus.queries), anti_documents(corpus), strict=True))

    def shares(query: EvaluationQuery, document: Document) -> tuple[bool, bool]:
        """Returns whether a document has the subject of a query, and whether it has the attribute."""
        subject, attribute = (
            document.metadata[column] == value
            for column, value in zip(columns, facts[query.gold], strict=True)
        )
        return subject, attribute

    return {
        MRR: np.array([[item.id in gold[query.id] for item in corpus.documents] for query in queries]),
        SUBJECT: np.array(
            [[shares(query, item) == (True, False) for item in corpus.documents] for query in queries]
        ),
        OTHER_ANSWER: np.array(
            [
                [
                    shares(query, item) == (False, True) and other.strip() in item.text
                    for item in corpus.documents
                ]
                for query, other in zip(queries, others, strict=True)
            ]
        ),
        CONTRADICTION: np.array([anti[query.id] for query in queries]),
    }


def facts_by_gold(corpus: Corpus, columns: tuple[str, str]) -> dict[str, tuple[str, str]]:
    """Returns gold value → subject and attribute."""
    subject, attribute = columns
    return {
        item.gold: (item.metadata[subject], item.metadata[attribute])
        for item in corpus.documents
        if item.gold
    }


def iter_rows(case: Case, seed: int) -> Iterator[str]:
    """Yields the rows of the table of a case: each preset with A alone, with the contrast, and the difference."""
    corpus, columns, draw = case.corpus, FACT_CASES[case.name], Random(seed)
    pairs = zip(corpus.queries, other_answers(corpus, columns), strict=True)
    asked = [(query, found) for query, found in pairs if found]
    queries, answers = [query for query, _ in asked], [found for _, found in asked]
    others = {
        DRAWN: [draw.choice(found) for found in answers],
        LIKELIEST: likeliest(case.model, queries, answers),
    }
    for preset in PRESETS:
        with tempfile.TemporaryDirectory() as directory:
            index = build(case, {"preset": preset}, Path(directory) / "index")
            plain_scores = score_all(index, queries, [None] * len(queries))
            for kind, chosen in others.items():
                documents = choose_documents(corpus, queries, chosen, columns)
                alone = measure(plain_scores, documents, seed)
                contrast = measure(score_all(index, queries, chosen), documents, seed)
                difference = {name: contrast[name] - alone[name] for name in alone}
                for name, measured in (
                    ("A", alone),
                    ("A instead of B", contrast),
                    ("difference", difference),
                ):
                    cells = (describe(measured[key], key) if key in measured else "" for key in MEASURES)
                    yield f"| {case.name} ({len(queries)}) | {preset} | {kind} | {name} | {' | '.join(cells)} |"


def describe(measured: Resampled, name: str) -> str:
    """Returns a number with its 95 % interval."""
    interval = measured.interval()
    digits = 3 if name in (MRR, RECALL) else 1
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def main() -> None:
    """Runs the benchmark; the exit status is 1 if one of the cases cannot be prepared."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of corpora, trainings, answers and intervals"
    )
    parser.add_argument("--data_dir", type=Path, default=default_cache(), help="keeps corpora and models")
    options = parse_with_names(parser, FACT_CASES, "case")
    data_dir, failed = options.data_dir.expanduser().absolute(), []
    print(
        f"| case (queries) | preset | B | asked | {' | '.join(MEASURES)} |\n|---|---|---|---|{'---:|' * len(MEASURES)}"
    )
    for name in options.names:
        try:
            case = load_case(name, data_dir, options.seed)
        except BergsonError as error:
            failed.append(f"{name}: {error}")
            continue
        for row in iter_rows(case, options.seed):
            print(row, flush=True)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
