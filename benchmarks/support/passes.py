"""Passes of random documents through a model: with gradient collection, and without, for comparison."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.forward_backward import forward_backward
from bergson_core.models.hooks import freeze
from bergson_core.models.language_model import LanguageModel
from bergson_core.tokens.batching import Batch, iter_batches
from bergson_core.tokens.tokenization import Tokens


def make_random_documents(count: int, tokens: int, vocabulary: int = 4096, prompt: int = 1) -> list[Tokens]:
    """Returns documents of random tokens, of which the first `prompt` are not labelled."""
    rng = np.random.default_rng(0)
    return [Tokens.labelled_from(rng.integers(1, vocabulary, tokens), prompt) for _ in range(count)]


def collect_all(collector: RowCollector, batches: Sequence[Batch]) -> None:
    """Collects the rows of all batches."""
    for batch in batches:
        collector.collect(batch)


def run_floor(model: LanguageModel, batches: Sequence[Batch]) -> None:
    """Runs forward and backward passes that reach the input embeddings, without hooks on modules.

    No gradient of a parameter is computed: this is the least that a pass with gradients of activations costs.
    """
    embeddings = cast(nn.Module, cast(Any, model.model).get_input_embeddings())

    def require_grad(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        return output.requires_grad_()

    handle = embeddings.register_forward_hook(require_grad)
    with freeze(model.model):
        for batch in batches:
            forward_backward(model, batch)
    handle.remove()


def run_training_steps(model: LanguageModel, batches: Sequence[Batch]) -> None:
    """Runs each batch as a step of training does, with the gradients of all parameters and all logits."""
    for batch in batches:
        model.model.zero_grad()
        model.model(input_ids=batch.input_ids, labels=batch.input_ids).loss.backward()


def run_naive_loop(model: LanguageModel, documents: Sequence[Tokens]) -> None:
    """Runs one document at a time, with the gradients of all parameters."""
    for document in documents:
        for batch in iter_batches([document], 1):
            model.model.zero_grad(set_to_none=False)
            forward_backward(model, batch)
