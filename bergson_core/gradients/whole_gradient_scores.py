"""Scores documents by their whole gradients, normalized and not projected, without forming those gradients.

With the normalized gradients Q of a query and N(G) of a document, block by block for each module m, the score is

    Σ_m ⟨Q_m, N(G_m)⟩ / length

and `ScoringSpec.normalize` says what the length is: ‖Q‖ ‖N(G)‖ over all modules for the cosine of the whole (`row`),
the number of modules times ‖Q_m‖ ‖N(G_m)‖ for the mean of the modules' cosines (`block`), or 1 (`none`).

A normalizer N is linear and self-adjoint, so that ⟨Q, N(G)⟩ = ⟨N(Q), G⟩. With W = N(Q), which is formed once for a
query, it is Σ_s g_sᵀ W a_s, and the parts of the positions are its terms. Where the normalizer factorises into
two sides, ‖N(G)‖ comes from the Gram matrices of the positions (`module_scorer`).

Legend: n samples, s positions, m modules, i input features with the bias, o output features.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from bergson_core.gradients.collector import GradientCollector
from bergson_core.gradients.gradient_transforms import upcast
from bergson_core.gradients.module_scorer import ModuleScorer
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.models.forward_backward import forward_backward
from bergson_core.models.hooks import capture, freeze
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.modules import TrackedModule
from bergson_core.schemas.build import Normalize
from bergson_core.tokens.batching import Batch, iter_batches
from bergson_core.tokens.tokenization import Tokens

Run = tuple[Tensor, Tensor]
"""(activations [n, s, i] or token ids [n, s], output gradients [n, s, o]) of one run of a module in a pass."""


@dataclass(frozen=True)
class WholeGradientScores:
    """The scores of the n documents of a batch.

    Attributes:
        modules: The part of each module in each score [n, m]; the parts of a document sum to its score.
        positions: The part of each position in each score [n, s], or None where these were not asked for. Which of
            them are tokens is told by `Batch.token_positions`.
    """

    modules: Float[Tensor, "n m"]
    positions: Float[Tensor, "n s"] | None


class WholeGradientScorer:
    """Scores documents for one query, whose gradient is computed when the scorer is made.

    It takes the memory of one more copy of the tracked weights, in float32, or float64 where the model is. For use by
    one thread; hooks are on the model during a pass only.

    Args:
        model: The model, on its device, in which the modules are tracked (`LanguageModel.for_tracking`).
        processor: How gradients are normalized, and whether those of biases count. Its projection is not used.
        modules: The tracked modules, by name.
        query: Tokens of the texts whose weighted losses add up to that of the query: one text, or two, of which the
            second has a negative weight.
        normalize: What scores are divided by.
        by_position: Whether scores are split by position too. Each tracked module then has to see one feature a
            position.
    """

    def __init__(
        self,
        model: LanguageModel,
        processor: GradientProcessor,
        modules: Mapping[str, TrackedModule],
        query: Sequence[Tokens],
        normalize: Normalize,
        *,
        by_position: bool = False,
    ) -> None:
        self._model, self._modules = model, modules
        self._normalize: Normalize = normalize
        self._by_position = by_position
        gradients = _query_gradients(model, processor, modules, query)
        self._query_lengths = torch.stack(
            [torch.linalg.vector_norm(gradients[name]).to(model.device) for name in modules]
        )
        self._scorers = {
            name: ModuleScorer.make(gradients.pop(name), processor, tracked)
            for name, tracked in modules.items()
        }

    def score(self, batch: Batch) -> WholeGradientScores:
        """Runs one forward and backward pass, and returns the scores of the batch.

        A document whose gradient is zero, or not finite, scores 0.
        """
        model, products = self._model.model, _BatchProducts(self._scorers, self._normalize, self._by_position)
        hooks = capture(
            model,
            self._modules,
            products.on_forward,
            products.on_backward,
            by_position=self._by_position,
            sequences_per_sample=batch.sequences_per_document,
        )
        with freeze(model), hooks:
            forward_backward(self._model, batch)
        shape = (len(batch), batch.positions if self._by_position else 1)
        parts, squares = products.finish(self._query_lengths.new_zeros(shape))
        parts = parts * self._reciprocal_lengths(squares)[..., None]
        parts = torch.where(parts.isfinite().flatten(1).all(1)[:, None, None], parts, 0)
        return WholeGradientScores(parts.sum(2), parts.sum(1) if self._by_position else None)

    def _reciprocal_lengths(self, squares: Float[Tensor, "n m"]) -> Float[Tensor, "n _"]:
        """Returns 1 / length of the part of each module, or 0 where the length is 0."""
        if self._normalize == "none":
            return torch.ones_like(squares)
        if self._normalize == "row":
            lengths = squares.sum(1, keepdim=True).sqrt() * torch.linalg.vector_norm(self._query_lengths)
        else:
            lengths = squares.sqrt() * self._query_lengths * len(self._modules)
        return torch.where(lengths == 0, 0, 1 / lengths)


@dataclass(frozen=True)
class _BatchProducts:
    """Gathers the products of a batch, module by module, while it runs.

    A module that runs more than once in a pass is scored after the pass, because its runs add up to one gradient, whose
    length has the products of the runs in it.
    """

    scorers: Mapping[str, ModuleScorer]
    normalize: Normalize
    by_position: bool
    run_counts: Counter[str] = field(default_factory=Counter)
    repeated: dict[str, list[Run]] = field(default_factory=dict)
    parts: dict[str, Tensor] = field(default_factory=dict)
    squares: dict[str, Tensor] = field(default_factory=dict)

    def on_forward(self, name: str, activations: Tensor) -> Tensor:
        self.run_counts[name] += 1
        return activations

    def on_backward(self, name: str, activations: Tensor, output_gradients: Tensor) -> None:
        runs = self.repeated.setdefault(name, [])
        runs.append((activations, upcast(output_gradients)))
        if self.run_counts[name] == 1:
            self._add(name, self.repeated.pop(name))

    def finish(self, zeros: Float[Tensor, "n s"]) -> tuple[Float[Tensor, "n m s"], Float[Tensor, "n m"]]:
        """Returns, after the pass, g_sᵀ W a_s of each module, and ‖N(G)‖² unless scores are not normalized.

        Args:
            zeros: What a module has that the pass has not reached; s is 1 where positions are summed up.
        """
        for name, runs in self.repeated.items():
            self._add(name, runs)
        parts = [self.parts.get(name, zeros).to(zeros) for name in self.scorers]
        squares = [self.squares.get(name, zeros[:, 0]).to(zeros) for name in self.scorers]
        return torch.stack(parts, dim=1), torch.stack(squares, dim=1).clamp_min(0)

    def _add(self, name: str, runs: Sequence[Run]) -> None:
        scorer = self.scorers[name]
        products = [scorer.products(*run) for run in runs]
        if not self.by_position:
            products = [product.sum(1, keepdim=True) for product in products]
        self.parts[name] = torch.stack(products).sum(0)
        if self.normalize != "none":
            activations, output_gradients = (torch.cat(side, dim=1) for side in zip(*runs, strict=True))
            self.squares[name] = scorer.squared_lengths(activations, output_gradients)


def _query_gradients(
    model: LanguageModel,
    processor: GradientProcessor,
    modules: Mapping[str, TrackedModule],
    query: Sequence[Tokens],
) -> dict[str, Float[Tensor, "o i"]]:
    """Returns the whole normalized gradient Q of a query, which is the sum of those of its texts, by module."""
    whole = GradientProcessor(None, processor.normalizers, include_bias=processor.include_bias)
    gradients: dict[str, Tensor] = {}
    for text in query:
        (batch,) = iter_batches([text], len(text.ids), model.device)
        with freeze(model.model), GradientCollector(model.model, whole, modules=list(modules)) as collector:
            forward_backward(model, batch)
        for name, gradient in collector.gradients.items():
            gradients[name] = gradients[name] + gradient[0] if name in gradients else gradient[0]
    return {
        name: gradients[name] if name in gradients else _zeros(model, whole, modules[name])
        for name in modules
    }


def _zeros(
    model: LanguageModel, processor: GradientProcessor, tracked: TrackedModule
) -> Float[Tensor, "o i"]:
    """Returns the gradient of a module that the query does not reach."""
    bias = processor.include_bias and tracked.has_bias
    wide = upcast(torch.empty(0, dtype=model.dtype, device=model.device))
    return wide.new_zeros(tracked.out_features, tracked.in_features + bias)
