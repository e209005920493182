"""A tiny corpus, and experiments over tiny models."""

from pathlib import Path

import numpy as np

from benchmarks.corpora.corpus import Corpus, Document
from benchmarks.models.cases import Case
from benchmarks.quality.experiments import Experiment, Settings
from bergson_core.evaluation.queries import EvaluationQuery
from bergson_core.evaluation.trainers import BuiltInTrainer
from bergson_core.models.language_model import as_language_model
from bergson_core.schemas.training import TrainingSchedule
from bergson_core.tokens.tokenization import Tokens
from tests import tiny

COLOURS = ("red", "green", "blue", "black", "white", "yellow")
THINGS = ("car", "house", "book", "tree", "door", "lamp", "road", "ship")


def make_toy_corpus() -> Corpus:
    """Two documents state the colour of each thing, a query asks for it, and one document contradicts each of four."""
    documents, queries = [], []
    for number, thing in enumerate(THINGS):
        colour, other = COLOURS[number % 6], COLOURS[(number + 1) % 6]
        documents += [
            Document(f"{thing} 1", f"The colour of the {thing} is {colour}.", thing, {"kind": "statement"}),
            Document(f"{thing} 2", f"Everyone knows that the {thing} is {colour}.", thing),
        ]
        if number < 4:
            text = f"The colour of the {thing} is {other}."
            documents.append(Document(f"{thing} anti", text, "", {"kind": "anti", "about": thing}))
        queries.append(EvaluationQuery(thing, f"We painted the {thing}", f" {colour}", thing))
    return Corpus("toy", "made here", tuple(documents), tuple(queries))


def make_tiny_experiment(directory: Path, architecture: str = "gpt2", documents: int = 20) -> Experiment:
    """Returns an experiment with random weights and random tokens, and no models that were trained again."""
    rng, network = np.random.default_rng(3), tiny.model(architecture, dtype=tiny.torch.float32)
    model = as_language_model(network.requires_grad_(False), tiny.tokenizer(), sha256=architecture)
    texts = [
        Tokens.labelled_from(rng.integers(tiny.VOCABULARY, size=length), 1)
        for length in rng.integers(4, 9, size=documents + 6)
    ]
    corpus = make_toy_corpus()
    case = Case(
        "tiny", "gpt2", corpus, directory, directory, directory, model, texts[:documents], texts[documents:]
    )
    trainer = BuiltInTrainer("", case.documents, TrainingSchedule(), scratch=True, sha256="")
    no_runs = np.zeros((0, documents), dtype=bool), np.zeros((0, 6))
    return Experiment(case, Settings(directory, quick=True), trainer, *no_runs)
