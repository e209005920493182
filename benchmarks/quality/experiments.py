"""An experiment: a case of `benchmarks.models`, and what becomes of its queries under models of half of its documents.

Legend: n documents, q queries, M models that were trained again.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float

from benchmarks.corpora.corpus import Corpus
from benchmarks.corpora.registry import CORPORA
from benchmarks.models.cases import CASES, Case, ModelKind, load_case
from benchmarks.models.small_models import SMALL_MODELS, train_small_model
from bergson_core.evaluation.retraining import losses_after_retraining, random_subsets
from bergson_core.evaluation.trainers import BuiltInTrainer, Trainer, tokens_sha256
from bergson_core.models.forward_backward import compute_document_losses
from bergson_core.models.loading import load_model
from bergson_core.schemas.training import TrainingSchedule

SUBSET_SHARE: Final = 0.5
RUNS: Final = 32
QUICK_RUNS: Final = 10
QUICK_DOCUMENTS: Final = 60
QUICK_QUERIES: Final = 12
QUICK_SCHEDULE: Final = TrainingSchedule(batch_size=16, epochs=2, least_steps=8, learning_rate=2e-3)


@dataclass(frozen=True)
class Settings:
    """How experiments are run.

    Attributes:
        data_dir: Directory that keeps corpora, models, losses and tables.
        seed: Seed of corpora, trainings, subsets and intervals.
        runs: Number of models that are trained again; by default none of pretrained models, where a run takes long.
        processes: Models that are trained at the same time.
        quick: Take few documents, and models that have hardly learnt, to try the code.
    """

    data_dir: Path
    seed: int = 0
    runs: int | None = None
    processes: int = 1
    quick: bool = False


@dataclass(frozen=True, eq=False)
class Experiment:
    """A case with the losses of its queries.

    Attributes:
        case: The corpus and the model.
        settings: How the experiment is run.
        trainer: Trains the model again.
        subsets: True for the documents [M, n] that each model was trained on again; M may be 0.
        losses: Losses of the queries [M, q] under these models, in nats.
    """

    case: Case
    settings: Settings
    trainer: Trainer
    subsets: Bool[np.ndarray, "M n"]
    losses: Float[np.ndarray, "M q"]

    @cached_property
    def key(self) -> list[Any]:
        """All that gradients depend on except how they are taken: the model, the documents and the queries."""
        case = self.case
        return [case.model.sha256, tokens_sha256(case.documents), tokens_sha256(case.queries)]

    @property
    def directory(self) -> Path:
        """Holds what is kept of the experiment."""
        digest = hashlib.sha256(json.dumps(self.key).encode()).hexdigest()
        return self.settings.data_dir / "quality" / f"{self.case.name}-{digest[:16]}"

    @property
    def query_texts(self) -> Sequence[str]:
        """The words of the queries."""
        space = " " if self.case.corpus.chat else ""
        return [f"{query.prompt}{space}{query.completion}" for query in self.case.corpus.queries]

    @property
    def is_small(self) -> bool:
        """Whether the model was trained from scratch, so that training it again takes less than a minute or two."""
        return self.case.kind in SMALL_MODELS

    def query_loss(self) -> float:
        """Returns the mean loss of a labelled token of the queries, in nats."""
        queries = self.case.queries
        losses = compute_document_losses(self.case.model, queries)
        return float(losses.sum() / sum(tokens.n_labelled for tokens in queries))


def prepare_experiment(name: str, settings: Settings) -> Experiment:
    """Makes the corpus and the model of a case, and trains the model again, unless all of it is there.

    Args:
        name: A key of `CASES`.
        settings: How the experiment is run.
    """
    if settings.quick:
        corpus_name, kind = CASES[name]
        corpus = shrink_corpus(CORPORA[corpus_name](settings.data_dir, settings.seed))
        return make_quick_experiment(name, kind, corpus, settings)
    case = load_case(name, settings.data_dir, settings.seed)
    runs = settings.runs if settings.runs is not None else RUNS if case.kind in SMALL_MODELS else 0
    return retrain(case, case.trainer(), runs, settings)


def make_quick_experiment(name: str, kind: ModelKind, corpus: Corpus, settings: Settings) -> Experiment:
    """Returns an experiment with a small model that was hardly trained; a GPT-2 stands for each pretrained model."""
    small_kind = kind if kind in SMALL_MODELS else "gpt2"
    cache = settings.data_dir
    path = train_small_model(corpus, small_kind, cache, QUICK_SCHEDULE, settings.seed)
    model = load_model(str(path))
    assert model.tokenizer is not None  # load_model always returns one
    documents, queries = corpus.tokenize(model.tokenizer)
    saved = corpus.save(cache / "corpora")
    case = Case(name, small_kind, corpus, saved, path, path, model, documents, queries)
    trainer = BuiltInTrainer(str(path), documents, QUICK_SCHEDULE, scratch=True, sha256=model.sha256)
    runs = QUICK_RUNS if settings.runs is None else settings.runs
    return retrain(case, trainer, runs, settings)


def retrain(case: Case, trainer: Trainer, runs: int, settings: Settings) -> Experiment:
    """Trains the model of a case again on random halves of its documents.

    The losses are kept in the data directory. A larger number of runs adds runs to those that are there.
    """
    subsets = random_subsets(len(case.documents), runs, SUBSET_SHARE, settings.seed)
    losses = losses_after_retraining(
        trainer,
        subsets,
        range(settings.seed + 1, settings.seed + 1 + runs),
        case.queries,
        settings.data_dir / "retrained",
        processes=settings.processes,
    )
    masks = np.array(subsets, dtype=bool).reshape(runs, len(case.documents))
    experiment = Experiment(case, settings, trainer, masks, losses.reshape(runs, len(case.queries)))
    experiment.directory.mkdir(parents=True, exist_ok=True)
    np.savez(experiment.directory / "runs.npz", subsets=experiment.subsets, losses=experiment.losses)
    return experiment


def shrink_corpus(corpus: Corpus) -> Corpus:
    """Returns a corpus of a few queries, the documents that are right for them, and some others."""
    queries = corpus.queries[:QUICK_QUERIES]
    gold = {query.gold for query in queries}
    about = {query.id for query in queries}

    def is_near(document: Any) -> bool:
        return document.gold in gold or document.metadata.get("about") in about

    documents = sorted(corpus.documents, key=is_near, reverse=True)[:QUICK_DOCUMENTS]
    return replace(corpus, documents=tuple(documents), queries=queries)
