"""What the examples share: training a small model on invented facts, and the measure of a ranking."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Final, cast

import numpy as np
from jaxtyping import Bool, Float
from torch import nn
from transformers import PreTrainedTokenizerBase

from bergson_core import LanguageModel, TrainingSchedule
from bergson_core.demo.recipe import DemoRecipe
from bergson_core.demo.training import fit_tokenizer, new_model
from bergson_core.evaluation.queries import EvaluationQuery
from bergson_core.evaluation.training_loop import reproducible, train_causal_model
from bergson_core.models.forward_backward import compute_document_losses
from bergson_core.tokens.tokenization import tokenize

SMALL: Final = DemoRecipe(hidden=64, layers=2, heads=4, vocabulary=1000, batch_size=32, epochs=12)
"""A model of about 0.2 M parameters, which is trained in some seconds on one core."""


def train_new_model(texts: Sequence[str], directory: Path, recipe: DemoRecipe = SMALL) -> None:
    """Fits a tokenizer to texts, trains a new model on them, and saves both in `directory`."""
    tokenizer = fit_tokenizer(texts, recipe.vocabulary)
    with reproducible(seed=0, threads=recipe.threads):
        model = new_model(tokenizer, recipe)
        _train(model, tokenizer, texts, recipe)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def train_further(loaded: LanguageModel, texts: Sequence[str], schedule: TrainingSchedule) -> LanguageModel:
    """Returns a copy of a model that was trained on texts; the model itself stays as it is."""
    trained = deepcopy(loaded)
    assert trained.tokenizer is not None  # load_model always returns one
    trained.model.requires_grad_(True)
    with reproducible(seed=0, threads=schedule.threads):
        _train(trained.model, trained.tokenizer, texts, schedule)
    return trained


def completion_loss(model: LanguageModel, queries: Sequence[EvaluationQuery]) -> float:
    """Returns the mean loss of the completions of queries, in nats a completion."""
    assert model.tokenizer is not None  # load_model always returns one
    prompts = [query.prompt for query in queries]
    completions = [query.completion for query in queries]
    tokens = tokenize(model.tokenizer, prompts, completions, label_end=False)
    return float(compute_document_losses(model, tokens).mean())


def average_precision(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """Returns the mean, over the documents to be found, of the precision down to each: the area under the curve.

    Args:
        scores: A score for each of n documents; higher ones come first.
        positive: True for the documents that are to be found, at least one. Scores in random order give about their
            share.
    """
    hits = positive[np.argsort(-scores, kind="stable")]
    precision = hits.cumsum() / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


def _train(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    schedule: TrainingSchedule,
) -> None:
    end_token = cast("int", tokenizer.eos_token_id)
    train_causal_model(model, tokenize(tokenizer, texts, None), end_token, schedule)
