"""The training run that attribution quality is measured on, and scores that no index computes.

Legend: q queries, n documents, M models that were trained again.

An index stores projected gradients of one model. The scores of this file are what it is compared with: full gradients,
EK-FAC, checkpoints of another training run, rankings fused with BM25.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.support.demo_model import Demo, load_demo
from benchmarks.support.row_variants import RowVariants, fit_index_normalizers
from bergson_core.attribution.unlearning import FIT_SAMPLE_SIZE, Unlearner
from bergson_core.evaluation.baseline_rankings import bm25_scores
from bergson_core.evaluation.baseline_scores import gradient_scores, representation_scores
from bergson_core.evaluation.retraining import losses_after_retraining, random_subsets
from bergson_core.evaluation.trainers import BuiltInTrainer
from bergson_core.evaluation.training_loop import reproducible, train_causal_model
from bergson_core.gradients.normalizers import moments
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.processor_fitting import sample_row_numbers
from bergson_core.gradients.row_collector import RowCollector, collect_rows
from bergson_core.models.language_model import LanguageModel, as_language_model
from bergson_core.models.loading import load_model
from bergson_core.models.modules import select_modules
from bergson_core.schemas.build import GradientSpec, NormalizerKind
from bergson_core.schemas.training import TrainingSchedule
from bergson_core.tokens.batching import BUDGET_TOKENS

SUBSET_SHARE = 0.5
EKFAC_DAMPING = 1e-3
FUSION_K = 60


@dataclass(frozen=True)
class Experiment:
    """The demo's training run, and what becomes of its queries without some of the documents.

    Attributes:
        demo: The model, its documents and the queries.
        subsets: True for the documents [M, n] that each model was trained on again; None if none was trained.
        losses: Losses of the queries [M, q] under these models, in nats.
        unlearned: Change of each query's log-probability by a step of unlearning on each document [q, n], in nats.
    """

    demo: Demo
    subsets: Bool[np.ndarray, "M n"] | None = None
    losses: Float[np.ndarray, "M q"] | None = None
    unlearned: Float[np.ndarray, "q n"] | None = None


def run_experiment(options: argparse.Namespace) -> Experiment:
    """Trains the model, trains it again `options.runs` times, and unlearns each document.

    The losses of models that were trained again are kept in the directory of the demo and used in the next run.
    """
    demo = load_demo(options)
    if options.runs == 0:
        return Experiment(demo)
    started = time.perf_counter()
    trainer = BuiltInTrainer(
        str(demo.model_path), demo.documents, TrainingSchedule(), scratch=True, sha256=demo.model.sha256
    )
    subsets = random_subsets(len(demo.documents), options.runs, SUBSET_SHARE, options.seed)
    seeds, cache = range(1, options.runs + 1), demo.directory / "retrained"
    losses = losses_after_retraining(
        trainer, subsets, seeds, demo.queries, cache, processes=options.processes
    )
    trained = time.perf_counter()
    sample = sample_row_numbers(len(demo.documents), FIT_SAMPLE_SIZE, 0)
    unlearner = Unlearner.fit(demo.model, [demo.documents[number] for number in sample])
    unlearned = unlearner.log_probability_changes(demo.documents, demo.queries).T
    print(
        f"{options.runs} runs on half of {len(demo.documents):,} documents: {trained - started:.0f} s; all documents "
        f"unlearned: {time.perf_counter() - trained:.0f} s, learning rate {unlearner.learning_rate:.2g}\n"
    )
    return Experiment(demo, np.array(subsets), losses, unlearned)


def iter_baselines(experiment: Experiment) -> Iterator[tuple[str, Float[np.ndarray, "q n"]]]:
    """Yields (name, scores) of what needs no gradients, and of the right documents themselves."""
    demo = experiment.demo
    corpus = demo.corpus
    query_texts = [query.prompt + query.completion for query in corpus.queries]
    yield "random order", np.random.default_rng(0).standard_normal((len(demo.queries), len(demo.documents)))
    yield "BM25", bm25_scores([document.text for document in corpus.documents], query_texts)
    yield "representations, cosine", representation_scores(demo.model, demo.documents, demo.queries)
    gold = corpus.gold_ids()
    is_gold = [
        [float(document.id in gold[query.id]) for document in corpus.documents] for query in corpus.queries
    ]
    yield "the right documents", np.array(is_gold)
    if experiment.unlearned is not None:
        yield "unlearning itself", -experiment.unlearned


def full_gradient_scores(
    demo: Demo, normalizer: NormalizerKind
) -> tuple[Float[np.ndarray, "q n"], Float[np.ndarray, "q n"]]:
    """Returns inner products and cosines of gradients that are normalized and not projected."""
    spec = GradientSpec(normalizer=normalizer)
    modules = list(select_modules(demo.model.model, spec.modules))
    normalizers = fit_index_normalizers(demo.model, demo.documents, spec)
    return gradient_scores(demo.model, demo.documents, demo.queries, modules, normalizers)


@contextmanager
def kfac_damping(damping: float) -> Iterator[None]:
    """Damps K-FAC by `damping` while the context is open; users cannot set this."""
    damping_before = moments.KFAC_DAMPING
    setattr(moments, "KFAC_DAMPING", damping)  # noqa: B010 - a Final cannot be assigned to
    try:
        yield
    finally:
        setattr(moments, "KFAC_DAMPING", damping_before)  # noqa: B010


def ekfac_scores(demo: Demo) -> Float[np.ndarray, "q n"]:
    """Returns cosines by EK-FAC: each direction of K-FAC's eigenbases has a second moment of its own.

    Source: George et al., Fast Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis (2018).
    """
    kfac = fit_index_normalizers(demo.model, demo.documents, GradientSpec(normalizer="kfac"))
    modules = select_modules(demo.model.model)
    collector = RowCollector(demo.model, GradientProcessor(None))
    document_rows, query_rows = (
        torch.from_numpy(collect_rows(collector, tokens, BUDGET_TOKENS)[0])
        for tokens in (demo.documents, demo.queries)
    )
    dots, squares = torch.zeros(len(query_rows), len(document_rows)), torch.zeros(len(document_rows))
    for name, columns in collector.slices.items():
        module, factors = modules[name], list(kfac[name].tensors().values())
        left, right = (torch.linalg.eigh(factor.double())[1].float() for factor in factors)

        def rotate(rows: Tensor) -> Tensor:
            blocks = rows[:, columns].reshape(-1, module.out_features, module.in_features)  # noqa: B023
            return left.mT @ blocks @ right  # noqa: B023

        documents, queries = rotate(document_rows), rotate(query_rows)
        moment = documents.square().mean(0)
        weights = 1 / (moment + EKFAC_DAMPING * moment.mean())
        dots += (queries * weights).flatten(1) @ documents.flatten(1).mT
        squares += (documents.square() * weights).sum((1, 2))
    return (dots / squares.sqrt()).numpy()


def checkpoint_scores(demo: Demo, spec: GradientSpec) -> list[Float[Tensor, "q n"]]:
    """Returns sign scores at a half, three quarters and the end of another training run."""
    checkpoints: list[LanguageModel] = []
    start = load_model(str(demo.model_path))
    tokenizer = start.tokenizer
    assert tokenizer is not None  # load_model always returns one
    end_token = tokenizer.get_vocab()[str(tokenizer.eos_token)]
    with reproducible(0, 1):
        model = AutoModelForCausalLM.from_config(start.model.config)
    schedule = TrainingSchedule()
    steps = schedule.steps(len(demo.documents))

    def save_checkpoint(step: int, total: int, note: str) -> None:
        if step in (steps // 2, 3 * steps // 4, steps):
            copy = AutoModelForCausalLM.from_config(model.config)
            copy.load_state_dict(model.state_dict())
            checkpoints.append(as_language_model(copy.requires_grad_(False).eval(), tokenizer))

    with reproducible(7, 1):
        train_causal_model(model, demo.documents, end_token, schedule, save_checkpoint)
    return [
        RowVariants(checkpoint, demo.documents, demo.queries, spec).sign_scores()
        for checkpoint in checkpoints
    ]


def fuse_rankings(
    scores: Float[np.ndarray, "q n"], other_scores: Float[np.ndarray, "q n"]
) -> Float[np.ndarray, "q n"]:
    """Returns the scores of reciprocal rank fusion (Cormack et al., 2009, with its k = 60)."""
    ranks, other_ranks = (np.argsort(np.argsort(-table, axis=1), axis=1) for table in (scores, other_scores))
    return 1 / (FUSION_K + 1 + ranks) + 1 / (FUSION_K + 1 + other_ranks)
