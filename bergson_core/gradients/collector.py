"""`GradientCollector`: the gradients of single samples, collected in one backward pass of a whole batch.

Legend: n samples, s positions, i input features, o output features, p projected.

The mathematics is in gradient_transforms.py, the hooks are in models/hooks.py.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Self, cast, final

import torch
from torch import Tensor, nn

from bergson_core.gradients.gradient_transforms import (
    FactoredTransform,
    FullGradientTransform,
    make_transform,
)
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.models.hooks import capture
from bergson_core.models.modules import natural_sort_key
from bergson_core.models.tracking.selection import select_modules

Closure = Callable[[str, Tensor], None]
"""Called with a module's name and its gradients."""


@final
class GradientCollector:
    """Context manager that collects each sample's gradients while a model runs forward and backward.

    In shapes, n are samples, s positions, i input features and o output features of a module, and p is the dimension of
    the projection.

    The gradients are those of the loss that is back-propagated. If that is the sum of the samples' losses, gradient k
    of a module is the gradient of sample k's own loss. Gradients are float32, or float64 where the model is. Where a
    module runs more than once in a pass, its gradient is the sum over all its runs.

    Nothing is left on the model when the context closes. While it is open, code that torch.compile has compiled runs as
    it was written, since compiled code calls no hooks. The parameters may be frozen (`requires_grad_(False)`): the
    backward pass then computes the gradients of activations only, which is faster.

    Args:
        model: Any PyTorch model; its first tensor argument has the samples in its first dimension.
        processor: How gradients are normalized and projected. By default they are neither: they are full and raw.
        closure: Called as `closure(name, gradient)` as soon as a module's gradient is there, more than once in a pass
            for a module that runs more than once. Nothing is collected in `gradients` then.
        modules: Which modules to track: a regular expression that is searched for in their names, or the names
            themselves. By default all linear modules but the output head, or the active adapters of a PEFT model;
            embeddings and the head are tracked where they are named.
        per_token: Whether to keep the positions of the input apart: a gradient is then [n, s, ...], what each position
            adds to the sample's gradient through every module. Summed over s, it is the sample's gradient.
        share_with: A collector of the same model and processor whose projections this one uses too, instead of drawing
            its own.
        sequences_per_sample: So many consecutive sequences of the model's input are one sample: 2 for preference
            pairs, each the chosen sequence and then the rejected one.

    Attributes:
        modules: The tracked modules, name → `TrackedModule`, in natural order of the names.
        sequences_per_sample: It may be changed while the context is closed.
        gradients: The gradients of the last backward pass.

    Raises:
        InvalidInput: No module is selected, a name in `modules` is not a module that can be tracked, or the regular
            expression takes too long. During a pass: the features of a module cannot be told apart by sample (or by
            position, with `per_token`), a module runs with gradients off inside a pass that has them, or a module's
            input is changed in place before its gradient arrives.

    Source: TrackStar (Chang et al., arXiv 2410.17413, section 3) normalizes and projects gradients in this way.

    Example:
        >>> with GradientCollector(model, GradientProcessor(projection_dim=16)) as collector:
        ...     model(input_ids=token_ids, labels=token_ids).loss.backward()
        >>> collector.gradients["gpt_neox.layers.0.attention.dense"].shape
        torch.Size([8, 16, 16])
    """

    def __init__(
        self,
        model: nn.Module,
        processor: GradientProcessor | None = None,
        closure: Closure | None = None,
        modules: str | Iterable[str] | None = None,
        *,
        per_token: bool = False,
        share_with: "GradientCollector | None" = None,
        sequences_per_sample: int = 1,
    ) -> None:
        self.model = model
        self.sequences_per_sample = sequences_per_sample
        self.per_token = per_token
        self.processor = processor or GradientProcessor()
        self.modules = select_modules(
            model,
            modules,
            split_heads=self.processor.split_heads,
            include_bias=self.processor.include_bias,
        )
        self._closure = closure
        self._collected: dict[str, Tensor] = {}
        self._transforms: dict[
            tuple[str, torch.dtype, torch.device], FactoredTransform | FullGradientTransform
        ] = {} if share_with is None else share_with._transforms
        self._hooks = ExitStack()

    @property
    def gradients(self) -> dict[str, Tensor]:
        """The gradients of the last backward pass, module name → tensor, in natural order of the names.

        A gradient is [n, o, i] without a projection and [n, p, p] with one, or [n, s, o, i] and [n, s, p, p] with
        `per_token`. With `include_bias`, i counts the bias as one more input feature, the last one.
        """
        return dict(sorted(self._collected.items(), key=lambda item: natural_sort_key(item[0])))

    def __enter__(self) -> Self:
        """Hooks the tracked modules, and forgets the gradients of an earlier context."""
        self._collected = {}
        hooks = capture(
            self.model,
            self.modules,
            self._on_forward,
            self._on_backward,
            by_position=self.per_token,
            sequences_per_sample=self.sequences_per_sample,
        )
        self._hooks.enter_context(hooks)
        return self

    def __exit__(self, *exception: object) -> None:
        """Removes the hooks; `gradients` stays."""
        self._hooks.close()

    def _on_forward(self, name: str, activations: Tensor) -> Tensor:
        like = activations
        if not like.is_floating_point():  # token ids, of an embedding
            weight = cast(Tensor, self.modules[name].module.weight)
            like = torch.empty(0, dtype=weight.dtype, device=activations.device)
        return self._transform(name, like).prepare_input(activations)

    def _on_backward(self, name: str, prepared: Tensor, output_gradients: Tensor) -> None:
        transform, (n, s) = self._transform(name, output_gradients), output_gradients.shape[:2]
        if self.per_token:  # each position is a sample of its own
            prepared, output_gradients = (
                tensor.flatten(0, 1)[:, None] for tensor in (prepared, output_gradients)
            )
        gradient = transform.gradient(prepared, output_gradients)
        if self.per_token:
            gradient = gradient.unflatten(0, (n, s))
        if self._closure is not None:
            self._closure(name, gradient)
        elif name in self._collected:
            self._collected[name] = self._collected[name] + gradient
        else:
            self._collected[name] = gradient

    def _transform(self, name: str, like: Tensor) -> FactoredTransform | FullGradientTransform:
        key = (name, like.dtype, like.device)
        if key not in self._transforms:
            self._transforms[key] = make_transform(self.processor, self.modules[name], like)
        return self._transforms[key]
