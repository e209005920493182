"""Unlearns single documents for real: one step of gradient ascent, what changed, and every weight back bit for bit.

Legend: q queries, n documents, o rows and i columns of a weight.

A score is a prediction to first order; this is what happens. Every weight that is trained takes the step
θ + η g / (V + δ mean V)^½, with g the gradient of the document's loss and V the second moment of single documents'
gradients, kept as Adafactor keeps it: of a matrix, the outer product of the means of its rows and columns (Shazeer and
Stern, arXiv 1804.04235, section 3). So a document is unlearned as an adaptive optimizer would have learned it. Descent,
the other direction, is the tail-patch of TrackStar (Chang et al., arXiv 2410.17413, section 4.2).

Unless it is given, η is the learning rate at which, to first order, the median document of the sample becomes half as
likely. It is the same for all documents, so that one whose gradient is larger moves the model further.
"""

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from bergson_core.data.batching import BUDGET_TOKENS, Tokens, iter_batches
from bergson_core.errors import InvalidInput
from bergson_core.gradients.gradient_transforms import upcast
from bergson_core.models.forward_backward import compute_document_losses, forward_backward
from bergson_core.models.hooks import freeze
from bergson_core.models.language_model import LanguageModel
from bergson_core.utils.background import run_to_completion

FIT_SAMPLE_SIZE: Final = 64
"""Documents that V and η are fitted from."""
_DAMPING: Final = 0.01
_LOSS_RISE_OF_HALVING: Final = math.log(2)

StepDirection = Literal["unlearn", "learn"]
"""Gradient ascent on a document's loss, or descent."""


@dataclass(frozen=True)
class Unlearner:
    """Steps on single documents of `model`; `moments` has V of each trained weight, by its name. For one thread."""

    model: LanguageModel
    second_moments: Mapping[str, tuple[Tensor, ...]]
    learning_rate: float

    @classmethod
    def fit(
        cls, model: LanguageModel, sample: Sequence[Tokens], learning_rate: float | None = None
    ) -> "Unlearner":
        """V and η from these documents, `SAMPLE` of them are enough.

        Raises `InvalidInput` where none of them has a gradient.
        """
        return run_to_completion(cls.fit_in_steps(model, sample, learning_rate))

    @classmethod
    def fit_in_steps(
        cls, model: LanguageModel, sample: Sequence[Tokens], learning_rate: float | None = None
    ) -> Generator[None, None, "Unlearner"]:
        """`fit`, with a step for each pass through the model: between two of them the model is as it was."""
        sums: dict[str, tuple[Tensor, ...]] = {}
        for document in sample:
            gradients = _gradients(model, document)
            if not all(bool(gradient.isfinite().all()) for gradient in gradients.values()):
                gradients = {}  # of this document nothing is known
            for name, gradient in gradients.items():
                new = _moments(upcast(gradient).square() / len(sample))
                sums[name] = (
                    tuple(a + b for a, b in zip(sums[name], new, strict=True)) if name in sums else new
                )
            yield
        if not any(bool(part.any()) for parts in sums.values() for part in parts):
            raise InvalidInput(
                f"none of {len(sample)} documents has a gradient to unlearn it by; expected documents of several tokens"
            )
        fitted = cls(model, sums, learning_rate or 1.0)
        if learning_rate is not None:
            return fitted
        rises = []
        for document in sample:
            rises.append(fitted._rise(document))
            yield
        median = float(np.median([rise for rise in rises if rise > 0]))
        return cls(model, sums, _LOSS_RISE_OF_HALVING / median)

    def log_probabilities(self, queries: Sequence[Tokens]) -> Float64[np.ndarray, " q"]:
        """The log-probability of the labelled tokens of each query, in nats, as the weights are now."""
        return -compute_document_losses(self.model, queries)

    @contextmanager
    def temporary_step(self, document: Tokens, direction: StepDirection = "unlearn") -> Iterator[None]:
        """While open, the model has taken one step on `document` alone; then its weights are as they were."""
        sign = 1.0 if direction == "unlearn" else -1.0
        trained = _trainable_weights(self.model.model)
        moved = self._directions(_gradients(self.model, document))
        before = {name: trained[name].detach().clone() for name in moved}
        try:
            with torch.no_grad():
                for name, direction in moved.items():
                    trained[name].add_(direction, alpha=sign * self.learning_rate)
            yield
        finally:
            with torch.no_grad():
                for name, weight in before.items():
                    trained[name].copy_(weight)

    def log_probability_changes(
        self, documents: Sequence[Tokens], queries: Sequence[Tokens], direction: StepDirection = "unlearn"
    ) -> Float64[np.ndarray, "n q"]:
        """Change of each query's log-probability, in nats, by one step on each document alone."""
        before = self.log_probabilities(queries)
        changed = np.zeros((len(documents), len(queries)))
        for row, document in zip(changed, documents, strict=True):
            with self.temporary_step(document, direction):
                row[:] = self.log_probabilities(queries) - before
        return changed

    def _directions(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: (gradient * _scale(self.second_moments[name], gradient)).to(gradient)
            for name, gradient in gradients.items()
            if name in self.second_moments
        }

    def _rise(self, document: Tokens) -> float:
        """How much the document's own loss rises by a learning rate of 1, to first order."""
        gradients = _gradients(self.model, document)
        moved = self._directions(gradients)
        return sum(float((moved[name] * gradients[name]).sum(dtype=torch.float64)) for name in moved)


def _trainable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that training would change: the adapters where there are some, else all."""
    named = dict(model.named_parameters())
    adapters = {name: weight for name, weight in named.items() if ".lora_" in name}
    return {name: weight for name, weight in (adapters or named).items() if weight.is_floating_point()}


def _gradients(model: LanguageModel, document: Tokens) -> dict[str, Tensor]:
    """Of the document's loss, by name of the weight; those that it does not reach are left out."""
    trained = _trainable_weights(model.model)
    with freeze(model.model):
        kept = {name: (weight.requires_grad, weight.grad) for name, weight in trained.items()}
        try:
            for weight in trained.values():
                weight.grad = None
                weight.requires_grad_(True)
            (batch,) = iter_batches([document], BUDGET_TOKENS, model.device)
            forward_backward(model, batch)
            return {name: weight.grad for name, weight in trained.items() if weight.grad is not None}
        finally:
            for name, weight in trained.items():
                asked, weight.grad = kept[name]
                weight.requires_grad_(asked)


def _moments(squares: Tensor) -> tuple[Tensor, ...]:
    """(means of the rows [..., o], of the columns [..., i]) of the squares of a matrix, or the squares of a vector."""
    if squares.dim() < 2:
        return (squares,)
    return squares.mean(-1), squares.mean(-2)


def _scale(moments: tuple[Tensor, ...], like: Tensor) -> Tensor:
    """(V + δ mean V)^-½; 0 where V is all zero."""
    if len(moments) == 1:
        whole = moments[0]
    else:
        rows, columns = moments
        mean = rows.mean(-1, keepdim=True)[..., None]
        whole = rows[..., None] * columns[..., None, :] / torch.where(mean > 0, mean, 1)
    damped = whole + _DAMPING * whole.mean()
    return torch.where(damped > 0, damped.rsqrt(), 0).to(torch.promote_types(like.dtype, torch.float32))
