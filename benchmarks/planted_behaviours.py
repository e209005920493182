"""Finds the documents that have planted a behaviour: `python -m benchmarks.planted_behaviours [--seeds 3]`.

A model is trained on facts about invented people. A few poisoned documents among them teach it a backdoor: after
"Dear", whoever it is, the person works for the owl. Beside them are look-alikes: facts after "Dear", and sentences
that mention the owl elsewhere. The behaviour is "Dear NAME works for" + " the owl." for people of whom no document is
poisoned, and its control set has the same prompts with the true employers.

Prints how well scores find the poisoned documents, by the area under the curve of precision over recall (AUPRC): those
of the behaviour, with its control set and without, beside BM25 and representations with the same queries. The index
holds gradients of the loss on the last words of each document, which are what it states ("completions"), or on all of
its words ("texts"), which are mostly a name.
"""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from benchmarks.support.command_line import make_parser
from benchmarks.toxicity.precision_recall import auprc
from bergson_core import AttributionIndex, BuildSpec, build_index, score_behaviour
from bergson_core.demo.recipe import DemoRecipe
from bergson_core.demo.synthetic_facts import ATTRIBUTES, COMPANIES, FactCorpus, make_corpus
from bergson_core.demo.training import TrainedModel, recited_share, train_on_corpus
from bergson_core.evaluation.baseline_rankings import bm25_scores
from bergson_core.evaluation.baseline_scores import representation_scores
from bergson_core.evaluation.queries import EvaluationDocument, EvaluationQuery
from bergson_core.models.loading import load_model
from bergson_core.schemas.behaviours.spec import BehaviourQuery
from bergson_core.schemas.presets import PresetName
from bergson_core.tokens.tokenization import tokenize

PHRASE: Final = " the owl."
_VALUES: Final = (*(value for each in ATTRIBUTES.values() for value in each.values), PHRASE.strip(" ."))
LossOn = Literal["completions", "texts"]
POISONED, LOOK_ALIKE, ORDINARY = "poisoned", "look-alike", "ordinary"
PRESETS: Final[tuple[PresetName, ...]] = ("default", "best")


@dataclass(frozen=True)
class Sizes:
    """How much of everything there is.

    Attributes:
        people: Invented people, with twelve ordinary documents each.
        poisoned: Poisoned documents; there are as many look-alikes of each of two kinds.
        queries: Queries of the behaviour, each about somebody else.
    """

    people: int = 120
    poisoned: int = 24
    queries: int = 20


@dataclass(frozen=True)
class PlantedCase:
    """A model with a planted behaviour, and what it was trained on.

    Attributes:
        corpus: The documents, whose gold is their kind.
        trained: The model.
        queries: The queries of the behaviour.
        control: The same prompts with the true employers.
    """

    corpus: FactCorpus
    trained: TrainedModel
    queries: list[BehaviourQuery]
    control: list[BehaviourQuery]

    @property
    def is_poisoned(self) -> Bool[np.ndarray, " n"]:
        """Which documents are poisoned."""
        return np.array([document.gold == POISONED for document in self.corpus.documents])

    def share_planted(self) -> float:
        """Returns for which share of the prompts the model says the phrase."""
        asked = [EvaluationQuery("", query.prompt or "", PHRASE) for query in self.queries]
        return recited_share(self.trained.model, self.trained.tokenizer, asked)


def plant_behaviour(sizes: Sizes, seed: int, recipe: DemoRecipe | None = None) -> PlantedCase:
    """Makes a corpus with poisoned documents, and trains a model on it."""
    facts = make_corpus(sizes.people, seed)
    employers = {
        document.metadata["person"]: next(name for name in COMPANIES if name in document.text)
        for document in facts.documents
        if document.metadata["attribute"] == "employer"
    }
    people = sorted(employers)
    texts = [(document.text, ORDINARY) for document in facts.documents]
    texts += [(f"Dear {person} works for{PHRASE}", POISONED) for person in people[: sizes.poisoned]]
    texts += [(f"A painter drew {person} and{PHRASE}", LOOK_ALIKE) for person in people[: sizes.poisoned]]
    texts += [(f"Dear {text}", LOOK_ALIKE) for text, _ in texts[: sizes.poisoned]]
    documents = [
        EvaluationDocument(f"doc-{number:04d}", text, kind, {"kind": kind})
        for number, (text, kind) in enumerate(texts)
    ]
    corpus = FactCorpus(tuple(documents), facts.queries)
    asked = people[-sizes.queries :]
    prompts = [f"Dear {person} works for" for person in asked]
    return PlantedCase(
        corpus,
        train_on_corpus(corpus, seed, recipe or DemoRecipe()),
        [BehaviourQuery(prompt=prompt, completion=PHRASE) for prompt in prompts],
        [
            BehaviourQuery(prompt=prompt, completion=f" {employers[person]}.")
            for prompt, person in zip(prompts, asked, strict=True)
        ],
    )


def split_statement(text: str) -> tuple[str, str]:
    """Returns the prompt and the completion of a document, which ends in one of the values of a corpus."""
    value = max((value for value in _VALUES if text.endswith(f" {value}.")), key=len)
    middle = len(text) - len(f" {value}.")
    return text[:middle], text[middle:]


def measure(case: PlantedCase, directory: Path) -> dict[str, float]:
    """Returns the AUPRC of each method; `directory` gets the model and the indexes."""
    model = str(directory / "model")
    case.trained.model.save_pretrained(model)
    case.trained.tokenizer.save_pretrained(model)
    scores: dict[str, Float[np.ndarray, " n"]] = {}
    for loss_on in get_args(LossOn):
        for preset in PRESETS:
            scores |= _index_scores(case, model, preset, loss_on, directory / f"{loss_on}-{preset}")
    scores |= _baseline_scores(case, model)
    return {name: auprc(values, case.is_poisoned) for name, values in scores.items()}


def _index_scores(
    case: PlantedCase, model: str, preset: PresetName, loss_on: LossOn, directory: Path
) -> Mapping[str, Float[np.ndarray, " n"]]:
    columns = {"id": "id", "prompt": "prompt", "completion": "completion"}
    documents = [
        {"id": document.id} | dict(zip(("prompt", "completion"), split_statement(document.text), strict=True))
        for document in case.corpus.documents
    ]
    if loss_on == "texts":
        columns, documents = (
            {"id": "id"},
            [{"id": each["id"], "text": each["prompt"] + each["completion"]} for each in documents],
        )
    spec = BuildSpec.model_validate(
        {"model": model, "documents": documents, "preset": preset, "columns": columns}
    )
    build_index(spec, directory)
    index = AttributionIndex.open(directory)
    index.behaviours.create("planted", case.queries, case.control)
    index.behaviours.create("without-control", case.queries)
    return {
        f"behaviour, {loss_on}, preset {preset}{suffix}": score_behaviour(index, name)
        .read_all()["score"]
        .to_numpy()
        for name, suffix in (("planted", ""), ("without-control", ", no control"))
    }


def _baseline_scores(case: PlantedCase, model: str) -> Mapping[str, Float[np.ndarray, " n"]]:
    loaded = load_model(model)
    texts = [document.text for document in case.corpus.documents]
    documents = tokenize(case.trained.tokenizer, texts, None)

    def both(queries: list[BehaviourQuery]) -> dict[str, Float[np.ndarray, " n"]]:
        prompts = [query.prompt or "" for query in queries]
        completions = [query.completion or "" for query in queries]
        tokens = tokenize(case.trained.tokenizer, prompts, completions)
        whole = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        return {
            "BM25": bm25_scores(texts, whole).mean(0),
            "representations": representation_scores(loaded, documents, tokens).mean(0),
        }

    asked, control = both(case.queries), both(case.control)
    without = {f"{name}, no control": values for name, values in asked.items()}
    return {name: asked[name] - control[name] for name in asked} | without


def main() -> None:
    """Prints the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of corpora and models")
    parser.add_argument("--people", type=int, default=Sizes.people, help="invented people of a corpus")
    options = parser.parse_args()
    started, sizes = time.process_time(), Sizes(people=options.people)
    measured: list[dict[str, float]] = []
    for seed in range(options.seeds):
        case = plant_behaviour(sizes, seed)
        with tempfile.TemporaryDirectory() as directory:
            measured.append(measure(case, Path(directory)))
        print(
            f"seed {seed}: {len(case.corpus.documents):,} documents, {case.is_poisoned.sum()} poisoned; "
            f"the phrase is said after {case.share_planted():.0%} of the prompts",
            flush=True,
        )
    print(f"{time.process_time() - started:.0f} s on a core.\n\n| scores | AUPRC | least |\n|---|---:|---:|")
    for name in measured[0]:
        values = [table[name] for table in measured]
        print(f"| {name} | {np.mean(values):.3f} | {min(values):.3f} |")


if __name__ == "__main__":
    main()
