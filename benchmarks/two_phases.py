"""What an index over several checkpoints finds, on a run whose late phase teaches new facts.

    python -m benchmarks.two_phases [--people 200] [--seeds 3]

A model learns a corpus of invented facts in two halves, which leave the checkpoints 0 and 1. In a late phase, half of
the people get another employer: the documents that say so are trained on among others of the corpus, which leaves
checkpoint 2. Then each new employment is asked for. Right are the documents of the late phase that state it. Documents
of both phases are ranked:

    MRR, AUPRC     of the right documents
    late first     share of the pairs of a right document and one of the early phase about the same person's employer in
                   which the former is higher

by the scores `between` 1 and 2, which are those at checkpoint 1; by the means of all checkpoints; by checkpoint 0 and
by checkpoint 2 alone; and by the scores at checkpoint 2 less those at checkpoint 1. Numbers are means over the queries
of all runs, with 95 % intervals over queries.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
from datasets import Dataset
from jaxtyping import Bool, Float

from benchmarks.support.command_line import make_parser
from bergson_core import AttributionIndex, BuildSpec, build_index
from bergson_core.attribution.corpus_scores import score_corpus
from bergson_core.demo.recipe import DemoRecipe
from bergson_core.demo.synthetic_facts import ATTRIBUTES, FactCorpus, make_corpus
from bergson_core.demo.training import fit_tokenizer, new_model, recited_share
from bergson_core.evaluation import training_loop
from bergson_core.evaluation.metrics import bootstrap_interval
from bergson_core.evaluation.queries import EvaluationDocument, EvaluationQuery
from bergson_core.tokens.tokenization import tokenize

EMPLOYER: Final = "employer"
BETWEEN, ALL, DIFFERENCE = "between 1 and 2", "all checkpoints", "2 less 1"
MEASURES: Final = ("MRR", "AUPRC", "late first")
_REPLAYED: Final = 2
"""Documents of the corpus that the late phase repeats for each new one."""


@dataclass(frozen=True)
class TwoPhaseRun:
    """The documents and queries of a run.

    Attributes:
        corpus: The documents of the early phase.
        late: The documents that state the new facts.
        queries: Queries for the new facts; their `gold` is that of their documents.
        persons: Whom each query is about.
    """

    corpus: FactCorpus
    late: Sequence[EvaluationDocument]
    queries: Sequence[EvaluationQuery]
    persons: Sequence[str]

    @property
    def documents(self) -> list[EvaluationDocument]:
        """The documents of both phases."""
        return [*self.corpus.documents, *self.late]

    def outdated(self, person: str | None = None) -> list[EvaluationDocument]:
        """Returns the documents of the early phase that state what a person, or any of them, no longer does."""
        persons = set(self.persons) if person is None else {person}
        return [
            document
            for document in self.corpus.documents
            if document.metadata["attribute"] == EMPLOYER and document.metadata["person"] in persons
        ]


def make_run(people: int, seed: int) -> TwoPhaseRun:
    """Returns a corpus of invented facts, and other employers for half of its people, drawn with the seed."""
    corpus, draw, spec = make_corpus(people, seed), Random(seed), ATTRIBUTES[EMPLOYER]
    persons = draw.sample(sorted({document.metadata["person"] for document in corpus.documents}), people // 2)
    late: list[EvaluationDocument] = []
    queries: list[EvaluationQuery] = []
    run = TwoPhaseRun(corpus, late, queries, persons)
    for number, person in enumerate(persons):
        before = run.outdated(person)[0].text
        value = draw.choice([value for value in spec.values if value not in before])
        fact, held_out = f"late-{number}", number % len(spec.templates)
        for template_number, template in enumerate(spec.templates):
            if template_number == held_out:
                prompt = template[: template.index(" {value}")].format(person=person)
                queries.append(EvaluationQuery(fact, prompt, f" {value}", fact))
            else:
                text = template.format(person=person, value=value)
                metadata = {"person": person, "attribute": EMPLOYER}
                late.append(EvaluationDocument(f"{fact}-{template_number}", text, fact, metadata))
    return run


def train(run: TwoPhaseRun, directory: Path, seed: int, recipe: DemoRecipe) -> Iterator[str]:
    """Trains the run, and yields the directory of each of its three checkpoints."""
    tokenizer = fit_tokenizer([document.text for document in run.documents], recipe.vocabulary)
    outdated = {document.id for document in run.outdated()}
    kept = [document for document in run.corpus.documents if document.id not in outdated]
    replayed = Random(seed).sample(kept, min(len(kept), _REPLAYED * len(run.late)))
    end_token = tokenizer.get_vocab()[str(tokenizer.eos_token)]
    half = replace(recipe, epochs=max(1, recipe.epochs // 2))
    phases = [(run.corpus.documents, half), (run.corpus.documents, half), ([*run.late, *replayed], recipe)]
    with training_loop.reproducible(seed, recipe.threads):
        model = new_model(tokenizer, recipe)
        for number, (documents, schedule) in enumerate(phases):
            tokens = tokenize(tokenizer, [document.text for document in documents], None)
            training_loop.train_causal_model(model, tokens, end_token, schedule)
            path = directory / f"checkpoint-{number}"
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
            known, new = (
                recited_share(model, tokenizer, queries) for queries in (run.corpus.queries, run.queries)
            )
            print(
                f"seed {seed}, checkpoint {number}: recites {known:.0%} of the early facts, {new:.0%} of the late"
            )
            yield str(path)


def score(run: TwoPhaseRun, models: Sequence[str], directory: Path) -> dict[str, Float[np.ndarray, "q n"]]:
    """Returns the scores of all documents, by what they are the scores of."""
    content = {
        "documents": [{"id": document.id, "text": document.text} for document in run.documents],
        "columns": {"id": "id"},
    }
    build_index(BuildSpec.model_validate({"models": models, **content}), directory / "run")
    build_index(BuildSpec.model_validate({"model": models[-1], **content}), directory / "last")
    index, last = AttributionIndex.open(directory / "run"), AttributionIndex.open(directory / "last")
    queries = Dataset.from_dict(
        {
            "prompt": [query.prompt for query in run.queries],
            "completion": [query.completion for query in run.queries],
        }
    )

    def score_all(opened: AttributionIndex, between: tuple[int, int] | None = None) -> np.ndarray:
        reader = score_corpus(opened, queries, aggregate="each", between=between)
        return np.concatenate(
            [np.stack(batch["scores"].to_numpy(zero_copy_only=False)) for batch in reader]
        ).T

    at = [score_all(index, (0, 1)), score_all(index, (1, 2)), score_all(last)]
    return {
        BETWEEN: at[1],
        ALL: score_all(index),
        "checkpoint 0 alone": at[0],
        "checkpoint 2 alone": at[2],
        DIFFERENCE: at[2] - at[1],
    }


def measure(run: TwoPhaseRun, scores: Float[np.ndarray, "q n"]) -> Float[np.ndarray, "q 3"]:
    """Returns the value of each of `MEASURES` for each query."""
    ids, golds = [document.id for document in run.documents], [document.gold for document in run.documents]
    rows = []
    for query, person, row in zip(run.queries, run.persons, scores, strict=True):
        right = np.array([gold == query.gold for gold in golds])
        outdated = np.isin(ids, [document.id for document in run.outdated(person)])
        late_first = (row[right][:, None] > row[outdated][None]).mean()
        rows.append((*precision_measures(row, right), late_first))
    return np.array(rows)


def precision_measures(scores: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"]) -> tuple[float, float]:
    """Returns the reciprocal rank of the first right document, and the mean precision at the right documents."""
    places = np.flatnonzero(right[np.argsort(-scores, kind="stable")]) + 1
    return 1 / places[0], float((np.arange(1, len(places) + 1) / places).mean())


def iter_rows(people: int, seeds: int, recipe: DemoRecipe) -> Iterator[str]:
    """Yields the rows of the table."""
    measured: dict[str, list[np.ndarray]] = {}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as directory:
            run = make_run(people, seed)
            models = list(train(run, Path(directory), seed, recipe))
            for name, scores in score(run, models, Path(directory)).items():
                measured.setdefault(name, []).append(measure(run, scores))
    for name, parts in measured.items():
        intervals = [bootstrap_interval(column) for column in np.concatenate(parts).T]
        cells = (f"{cell.mean:.3f} [{cell.low:.3f}, {cell.high:.3f}]" for cell in intervals)
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--people", type=int, default=200, help="people of the corpus")
    parser.add_argument("--seeds", type=int, default=3, help="runs, each with a corpus of its own")
    options = parser.parse_args()
    rows = list(iter_rows(options.people, options.seeds, DemoRecipe()))
    print(f"| scores | {' | '.join(MEASURES)} |\n|---|{'---|' * len(MEASURES)}")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
