"""Unlearns documents by one step of gradient ascent, measures what changes, and restores every weight exactly.

A score predicts, to first order, what happens when a document is unlearned; a step shows it. Every weight θ that
training would change takes the step

    θ + η g / (V + δ mean V)^½

with g the gradient of the document's loss, V the second moment of the gradients of single documents, δ a small constant
and η the learning rate. V is kept as Adafactor keeps it: for a matrix, the outer product of the means of its rows and
columns (Shazeer and Stern, arXiv 1804.04235, section 3). So a document is unlearned as an adaptive optimizer would have
learned it. A step of descent, in the other direction, is the tail-patch of TrackStar (Chang et al., arXiv 2410.17413,
section 4.2).

By default η is the learning rate at which the median document of a sample becomes half as likely, to first order. It is
the same for all documents, so that a document with a larger gradient moves the model further.

Several documents are unlearned together by one step on the sum of their losses, which is the sum of the single steps.

The loss of a document has the weight that the document was indexed with. So the step of a document of weight 0 changes
nothing, and unlearning a document with a negative weight, which training has made less likely, makes it more likely.

Legend: q queries, n documents, o rows and i columns of a weight.
"""

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from bergson_core.errors import InvalidInput
from bergson_core.gradients.gradient_transforms import upcast
from bergson_core.models.forward_backward import compute_document_losses, forward_backward
from bergson_core.models.hooks import freeze
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.modules import trained_parameters
from bergson_core.models.offloading import require_weights_in_memory
from bergson_core.tokens.batching import BUDGET_TOKENS, iter_batches, iter_length_buckets, step_budget_tokens
from bergson_core.tokens.tokenization import Tokens
from bergson_core.utils.background import run_to_completion

FIT_SAMPLE_SIZE: Final = 64
"""Documents that V and η are fitted from."""
_DAMPING: Final = 0.01
"""δ, in units of the mean of V."""
_LOSS_RISE_OF_HALVING: Final = math.log(2)
"""By how many nats a document's loss rises when the document becomes half as likely."""

StepDirection = Literal["unlearn", "learn"]
"""`unlearn` is gradient ascent on a document's loss, `learn` is descent."""
WeightStep = dict[str, Tensor]
"""What a step with a learning rate of 1 adds to each weight, by the name of the weight."""
FactoredMoment = tuple[Tensor, ...]
"""V of a weight: of a matrix the means of its rows [..., o] and of its columns [..., i], else the whole of it."""


@dataclass(frozen=True)
class Unlearner:
    """Takes single steps on documents of a model. For use by one thread.

    Attributes:
        model: The model. Between two calls its weights are its own.
        second_moments: V of each weight that steps change, by the name of the weight.
        learning_rate: η of each step.
    """

    model: LanguageModel
    second_moments: Mapping[str, FactoredMoment]
    learning_rate: float

    @classmethod
    def fit(
        cls, model: LanguageModel, sample: Sequence[Tokens], learning_rate: float | None = None
    ) -> "Unlearner":
        """Fits V, and η unless it is given, from a sample of documents.

        Args:
            model: The model.
            sample: Tokens of the documents; 64 of them (`FIT_SAMPLE_SIZE`) are enough.
            learning_rate: η; by default it makes the median document of the sample half as likely.

        Raises:
            InvalidInput: None of the documents has a gradient.
        """
        return run_to_completion(cls.fit_in_steps(model, sample, learning_rate))

    @classmethod
    def fit_in_steps(
        cls, model: LanguageModel, sample: Sequence[Tokens], learning_rate: float | None = None
    ) -> Generator[None, None, "Unlearner"]:
        """Does what `fit` does, and yields after each pass through the model, whose weights are then its own."""
        require_weights_in_memory(model.model, "unlearning a document")
        second_moments = yield from _fit_second_moments(model, sample)
        if not any(bool(factor.any()) for moment in second_moments.values() for factor in moment):
            raise InvalidInput(
                f"none of {len(sample)} documents has a gradient to unlearn it by; expected documents of several tokens"
            )
        unlearner = cls(model, second_moments, 1.0 if learning_rate is None else learning_rate)
        if learning_rate is not None:
            return unlearner
        loss_changes = []
        for document in sample:
            loss_changes.append(unlearner._own_loss_change(document))
            yield
        median = float(np.median([change for change in loss_changes if change > 0]))
        return replace(unlearner, learning_rate=_LOSS_RISE_OF_HALVING / median)

    def log_probabilities(self, queries: Sequence[Tokens]) -> Float64[np.ndarray, " q"]:
        """Returns the log-probability of the labelled tokens of each query under the present weights, in nats."""
        return -compute_document_losses(self.model, queries)

    @contextmanager
    def temporary_step(self, document: Tokens, direction: StepDirection = "unlearn") -> Iterator[None]:
        """Takes one step on a document, and restores the weights bit for bit when the context closes.

        Args:
            document: Tokens of the document.
            direction: Whether the step is one of ascent or of descent on the document's loss.
        """
        with self.applied(self._steps(_weight_gradients(self.model, [document])), direction):
            yield

    def step_in_steps(self, documents: Sequence[Tokens]) -> Generator[int, None, WeightStep]:
        """Returns the step on all of these documents at once: that on the sum of their losses.

        The generator yields the number of documents after each pass through the model, whose weights are its own
        throughout.
        """
        sums: dict[str, Tensor] = {}
        for bucket in self._buckets(documents):
            for name, gradient in _weight_gradients(self.model, [documents[k] for k in bucket]).items():
                sums[name] = upcast(sums[name]).add_(gradient) if name in sums else gradient
            yield len(bucket)
        return self._steps(sums)

    def log_probabilities_in_steps(
        self, step: WeightStep, texts: Sequence[Tokens], direction: StepDirection = "unlearn"
    ) -> Generator[int, None, Float64[np.ndarray, "2 t"]]:
        """Returns the log-probability of the labelled tokens of each text before and after a step, in nats.

        Texts are in one batch before and after the step, so that both passes are rounded in the same way. The generator
        yields the number of texts after each batch, when the model has its own weights.

        Args:
            step: The step, from `step_in_steps`.
            texts: Tokens of queries or documents.
            direction: Whether the step is one of ascent or of descent on the documents' losses.
        """
        log_probabilities = np.zeros((2, len(texts)))
        for bucket in self._buckets(texts):
            batch = [texts[k] for k in bucket]
            log_probabilities[0, bucket] = self.log_probabilities(batch)
            with self.applied(step, direction):
                log_probabilities[1, bucket] = self.log_probabilities(batch)
            yield len(bucket)
        return log_probabilities

    @contextmanager
    def applied(self, step: WeightStep, direction: StepDirection = "unlearn") -> Iterator[None]:
        """Moves the weights by a step times η, and restores them bit for bit when the context closes."""
        sign = 1.0 if direction == "unlearn" else -1.0
        weights = _trainable_weights(self.model.model)
        original = {name: weights[name].detach().clone() for name in step}
        try:
            with torch.no_grad():
                for name, change in step.items():
                    weights[name].add_(change, alpha=sign * self.learning_rate)
            yield
        finally:
            with torch.no_grad():
                for name, weight in original.items():
                    weights[name].copy_(weight)

    def log_probability_changes(
        self, documents: Sequence[Tokens], queries: Sequence[Tokens], direction: StepDirection = "unlearn"
    ) -> Float64[np.ndarray, "n q"]:
        """Returns how one step on each document alone changes the log-probability of each query.

        Args:
            documents: Tokens of the documents.
            queries: Tokens of the queries.
            direction: Whether the steps are of ascent or of descent on the documents' losses.

        Returns:
            Changes [n, q] in nats.
        """
        before = self.log_probabilities(queries)
        changes = np.zeros((len(documents), len(queries)))
        for row, document in zip(changes, documents, strict=True):
            with self.temporary_step(document, direction):
                row[:] = self.log_probabilities(queries) - before
        return changes

    def _buckets(self, texts: Sequence[Tokens]) -> Iterator[list[int]]:
        """Yields the positions of the texts of each batch."""
        return iter_length_buckets([text.padded for text in texts], step_budget_tokens(self.model.device))

    def _steps(self, gradients: Mapping[str, Tensor]) -> WeightStep:
        """Returns g / (V + δ mean V)^½ for each weight: the step with a learning rate of 1."""
        return {
            name: (gradient * _reciprocal_root(self.second_moments[name], gradient)).to(gradient)
            for name, gradient in gradients.items()
            if name in self.second_moments
        }

    def _own_loss_change(self, document: Tokens) -> float:
        """Returns by how many nats a step with a learning rate of 1 changes the document's own loss, to first order.

        The loss is the sum over the labelled tokens, without the weight that the gradients are multiplied by.
        """
        if document.weight == 0:
            return 0.0
        gradients = _weight_gradients(self.model, [document])
        steps = self._steps(gradients)
        change = sum(float((steps[name] * gradients[name]).sum(dtype=torch.float64)) for name in steps)
        return change / abs(document.weight)


def _fit_second_moments(
    model: LanguageModel, sample: Sequence[Tokens]
) -> Generator[None, None, dict[str, FactoredMoment]]:
    """Returns V of each weight, and yields after each document. Documents without a finite gradient count as zero."""
    sums: dict[str, FactoredMoment] = {}
    for document in sample:
        gradients = _weight_gradients(model, [document])
        if all(bool(gradient.isfinite().all()) for gradient in gradients.values()):
            for name, gradient in gradients.items():
                moment = _factor(upcast(gradient).square() / len(sample))
                if name in sums:
                    moment = tuple(total + part for total, part in zip(sums[name], moment, strict=True))
                sums[name] = moment
        yield
    return sums


def _trainable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the weights that training would change: those of the active adapters if there are any, else all."""
    weights = trained_parameters(model)
    return {name: weight for name, weight in weights.items() if weight.is_floating_point()}


def _weight_gradients(model: LanguageModel, documents: Sequence[Tokens]) -> dict[str, Tensor]:
    """Returns the gradient of the sum of the losses of documents that fit into a batch.

    It is returned by the name of the weight, of those weights that have one.
    """
    weights = _trainable_weights(model.model)
    with freeze(model.model):
        original = {name: (weight.requires_grad, weight.grad) for name, weight in weights.items()}
        try:
            for weight in weights.values():
                weight.grad = None
                weight.requires_grad_(True)
            (batch,) = iter_batches(documents, BUDGET_TOKENS, model.device)
            forward_backward(model, batch)
            return {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
        finally:
            for name, weight in weights.items():
                requires_grad, weight.grad = original[name]
                weight.requires_grad_(requires_grad)


def _factor(squares: Tensor) -> FactoredMoment:
    """Returns the means of the rows and of the columns of a matrix of squares; a vector is returned whole."""
    if squares.dim() < 2:
        return (squares,)
    return squares.mean(-1), squares.mean(-2)


def _reciprocal_root(moment: FactoredMoment, gradient: Tensor) -> Tensor:
    """Returns (V + δ mean V)^-½ in the type of the gradient or float32, or 0 where V is all zero."""
    if len(moment) == 1:
        whole = moment[0]
    else:
        rows, columns = moment
        mean = rows.mean(-1, keepdim=True)[..., None]
        whole = rows[..., None] * columns[..., None, :] / torch.where(mean > 0, mean, 1)
    damped = whole + _DAMPING * whole.mean()
    return torch.where(damped > 0, damped.rsqrt(), 0).to(torch.promote_types(gradient.dtype, torch.float32))
