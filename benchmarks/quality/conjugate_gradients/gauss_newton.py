"""Products of many vectors with the Gauss-Newton matrix of the documents' losses.

Legend: n documents of a batch, s positions, t labelled tokens of a batch, h hidden features, v vocabulary, r vectors,
o output and i input features.

The matrix is the mean over documents of Σ Jᵀ (diag(p) - p pᵀ) J over the labelled tokens, with J the derivative of a
token's logits by the tracked weights, and p its probabilities. A product takes a tangent through the model, multiplies
it with the curvature of the token's loss, and takes it back. With logits that are W times hidden features, the
curvature Wᵀ (diag(p) - p pᵀ) W [h, h] depends on no vector: it is computed once, 2 h² bytes for each token.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from bergson_core.errors import InvalidInput
from bergson_core.models.hooks import freeze
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.modules import TrackedModule
from bergson_core.tokens.batching import Batch, iter_batches
from bergson_core.tokens.tokenization import Tokens

_BATCH_TOKENS: Final = 512
"""Tokens of a batch, and `_VECTORS` that are taken through it together: their activations take some 20 MB a module."""
_VECTORS: Final = 16


class GaussNewton:
    """The Gauss-Newton matrix of the weights of some modules.

    Args:
        model: The model, which has a linear head that is not tracked.
        documents: The documents whose mean loss, a sum over labelled tokens, the matrix is of.
        modules: The tracked modules, by name.

    Raises:
        InvalidInput: The model is not a backbone with a linear head.
    """

    def __init__(
        self, model: LanguageModel, documents: Sequence[Tokens], modules: Mapping[str, TrackedModule]
    ) -> None:
        model = model.for_tracking(modules.values())
        if model.backbone is None or model.head is None:
            raise InvalidInput("expected a model with a linear head that is not tracked")
        self._model, self._backbone, self._modules = model, model.backbone, dict(modules)
        parameter_names = {id(weight): name for name, weight in model.backbone.named_parameters()}
        self._weight_names = {
            name: parameter_names[id(tracked.module.weight)] for name, tracked in modules.items()
        }
        parameters = dict(model.backbone.named_parameters())
        self._weights = {name: parameters[name].detach() for name in self._weight_names.values()}
        self._documents = len(documents)
        self._batches = list(iter_batches(documents, _BATCH_TOKENS, model.device))
        size = model.head.in_features
        self._rows, self._columns = torch.tril_indices(size, size)
        self._unpacked = torch.empty(size, size, dtype=torch.int64)
        self._unpacked[self._rows, self._columns] = torch.arange(len(self._rows))
        self._unpacked[self._columns, self._rows] = torch.arange(len(self._rows))
        with torch.no_grad(), freeze(model.model):
            self._curvatures = self._compute_curvatures(model.head.weight)

    def multiply(self, vectors: Mapping[str, Float[Tensor, "r o i"]]) -> dict[str, Float[Tensor, "r o i"]]:
        """Returns the products, by the module's name as the vectors are."""
        tangents = {
            self._weight_names[name]: self._transpose(name, vector) for name, vector in vectors.items()
        }
        totals = {name: torch.zeros_like(tangent) for name, tangent in tangents.items()}
        with sdpa_kernel(SDPBackend.MATH), freeze(self._model.model):  # the only one with forward derivatives
            for batch, curvature in zip(self._batches, self._curvatures, strict=True):
                for name, product in self._multiply_batch(batch, curvature, tangents).items():
                    totals[name] += product
        return {
            name: self._transpose(name, totals[self._weight_names[name]]) / self._documents
            for name in vectors
        }

    def _multiply_batch(
        self, batch: Batch, curvature: Tensor, tangents: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        def run(weights: Mapping[str, Tensor]) -> Float[Tensor, "n s h"]:
            inputs = {"input_ids": batch.input_ids, "use_cache": False}  # padding is on the right: no mask
            return functional_call(self._backbone, dict(weights), kwargs=inputs).last_hidden_state

        hidden, take_back = vjp(run, self._weights)[:2]
        is_predicting = _is_predicting(batch)
        matrices = curvature[:, self._unpacked.flatten()].unflatten(1, self._unpacked.shape)
        moved = vmap(lambda tangent: jvp(run, (self._weights,), (tangent,))[1], chunk_size=_VECTORS)(
            dict(tangents)
        )
        curved = moved.new_zeros(len(moved), *hidden.shape)
        curved[:, is_predicting] = (matrices @ moved[:, is_predicting].permute(1, 2, 0)).permute(2, 0, 1)
        return vmap(take_back, chunk_size=_VECTORS)(curved)[0]

    def _compute_curvatures(self, head: Float[Tensor, "v h"]) -> list[Float[Tensor, "t _"]]:
        """Returns the lower triangles of the curvatures of each batch's tokens."""
        pairs = head[:, self._rows] * head[:, self._columns]
        curvatures = []
        for batch in self._batches:
            hidden = self._backbone(input_ids=batch.input_ids, use_cache=False).last_hidden_state
            probabilities = (hidden[_is_predicting(batch)] @ head.mT).softmax(-1)
            means = probabilities @ head
            curvature = probabilities @ pairs - means[:, self._rows] * means[:, self._columns]
            if batch.weights is not None:
                samples = batch.labelled[:, 1:].nonzero(as_tuple=True)[0]
                curvature *= batch.weights[samples, None].to(curvature)
            curvatures.append(curvature)
        return curvatures

    def _transpose(self, name: str, matrices: Float[Tensor, "r _ _"]) -> Float[Tensor, "r _ _"]:
        """Turns [o, i] into the form in which the module keeps its weight, and back."""
        return matrices.mT if self._modules[name].transposed else matrices


def _is_predicting(batch: Batch) -> Tensor:
    """Returns at which positions [n, s] the next token is labelled."""
    is_predicting = torch.zeros_like(batch.labelled)
    is_predicting[:, :-1] = batch.labelled[:, 1:]
    return is_predicting
