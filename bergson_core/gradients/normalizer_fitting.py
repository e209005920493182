"""Fits a processor's normalizers from a seeded sample of the corpus."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Final, Literal, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from bergson_core.data.batching import Batch, batches
from bergson_core.data.dataset import iter_token_chunks
from bergson_core.errors import InvalidInput
from bergson_core.gradients.collector import upcast
from bergson_core.gradients.matrix_root import EighFunction
from bergson_core.gradients.normalizers import NORMALIZERS, Normalizer, append_bias_input
from bergson_core.gradients.optimizer_checkpoint import read_checkpoint_normalizers
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.models.batch_budget import find_batch_budget
from bergson_core.models.forward_backward import forward_backward
from bergson_core.models.hooks import capture, freeze
from bergson_core.models.loading import LanguageModel, as_language_model
from bergson_core.models.modules import TrackedModule, select_modules
from bergson_core.schemas.build import ColumnsSpec, GradientSpec
from bergson_core.schemas.build import Normalizer as NormalizerKind
from bergson_core.utils.progress import run_in_thread

MAX_KFAC_SIDE: Final = 2**15
"""Longest side of a layer that K-FAC is fitted for: 4 GiB of float32 a matrix."""


def fit_processor(
    model: nn.Module,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase | None = None,
    settings: GradientSpec | None = None,
    *,
    columns: ColumnsSpec | None = None,
    modules: str | Iterable[str] | None = None,
) -> GradientProcessor:
    """The processor of `settings` with normalizers fitted from `settings.sample_size` documents of `dataset`.

    The default is Adafactor and a projection to 16 × 16 a layer. Without `tokenizer` the column `input_ids` is
    used. `target_modules`, as in `GradientCollector`, goes before `settings.modules`.
    Raises `InvalidInput` for a document that is longer than the model takes, or is not text.
    """
    settings, columns = settings or GradientSpec(), columns or ColumnsSpec()
    language_model = as_language_model(model, tokenizer)
    sample = dataset.select(sample_row_numbers(len(dataset), settings.sample_size, settings.seed))
    chunks = iter_token_chunks(tokenizer, sample, columns, language_model.max_tokens, settings.loss)
    tokens = list(chain.from_iterable(chunks))
    layers = select_modules(model, modules or settings.modules)
    longest = max((len(one.ids) for one in tokens), default=0)
    budget = find_batch_budget(language_model, layers, longest)
    return fit_processor_from_batches(
        language_model, layers, batches(tokens, budget, language_model.device), settings
    )


def sample_row_numbers(total: int, size: int, seed: int) -> list[int]:
    """Row numbers of a sample of `size`, or of all, ascending: the same ones for the same seed."""
    generator = np.random.Generator(np.random.Philox(seed))
    return sorted(generator.choice(total, min(size, total), replace=False).tolist())


def fit_processor_from_batches(
    model: LanguageModel,
    modules: dict[str, TrackedModule],
    sample: Iterable[Batch],
    settings: GradientSpec,
    tick: Callable[[], object] = lambda: None,
    eigh: EighFunction = torch.linalg.eigh,
) -> GradientProcessor:
    """The processor of `settings`, fitted in one streaming pass over `sample`; `tell` is called while it decomposes."""
    bias = settings.include_bias
    if settings.optimizer_state is not None:
        kind = cast("Literal['adafactor', 'adam']", settings.normalizer)  # GradientSpec lets no other pass
        fitted = read_checkpoint_normalizers(
            settings.optimizer_state, model.model, modules, kind, include_bias=bias
        )
    else:
        sampler = None
        if settings.fit_labels == "sampled":
            sampler = torch.Generator(model.device).manual_seed(settings.seed)
        fitted = fit_normalizers(
            model.for_tracking(modules.values()),
            modules,
            sample,
            settings.normalizer,
            include_bias=bias,
            sampler=sampler,
            tick=tick,
            eigh=eigh,
        )
    return GradientProcessor(settings.projection_dim, fitted, settings.seed, bias, settings.projection)


def fit_normalizers(
    model: LanguageModel,
    modules: dict[str, TrackedModule],
    sample: Iterable[Batch],
    kind: NormalizerKind = "adafactor",
    *,
    include_bias: bool = False,
    sampler: torch.Generator | None = None,
    tick: Callable[[], object] = lambda: None,
    eigh: EighFunction = torch.linalg.eigh,
) -> dict[str, Normalizer]:
    """A normalizer for each layer that a pass runs, fitted in one streaming pass over `sample`; none for kind `none`.

    With `sampler`, labels are drawn from the model (`forward_backward`).
    Raises `InvalidInput` where no token of the sample is labelled, and for K-FAC of a layer too wide for it.
    """
    if kind == "none":
        return {}
    if kind == "kfac":
        _check_sides(modules)
    chosen = NORMALIZERS[kind]
    sums: dict[str, Sequence[Tensor]] = {}

    def arrive(name: str, a: Tensor, g: Tensor) -> None:
        layer, g = modules[name], upcast(g)
        finite = g.isfinite().flatten(1).all(1)
        if a.is_floating_point():
            a = upcast(append_bias_input(a) if include_bias and layer.has_bias else a)
            finite &= a.isfinite().flatten(1).all(1)
            new = chosen.moments(a[finite], g[finite])
        else:
            new = chosen.token_moments(a[finite], g[finite], layer.in_features)
        sums[name] = (
            [old.add_(add) for old, add in zip(sums[name], new, strict=True)] if name in sums else new
        )

    samples = 0
    for batch in sample:
        with freeze(model.model), capture(model.model, modules, lambda _, a: a, arrive):
            forward_backward(model, batch, sampler)
        samples += len(batch)
    if not sums:
        raise InvalidInput(
            f"expected documents with labelled tokens to fit the normalizers from; the sample of {samples} has none"
        )
    return run_in_thread(
        lambda: {name: chosen.make(sums[name], samples, eigh) for name in modules if name in sums}, tick
    )


def _check_sides(layers: Mapping[str, TrackedModule]) -> None:
    for name, layer in layers.items():
        is_embedding = isinstance(layer.module, nn.Embedding)
        side = layer.out_features if is_embedding else max(layer.out_features, layer.in_features)
        if side > MAX_KFAC_SIDE:
            raise InvalidInput(
                f"layer {name!r} has a side of {side}, and kfac has a matrix of side × side: expected at most "
                f"{MAX_KFAC_SIDE}. Leave the layer out, or take normalizer adafactor"
            )
