"""Fits a processor's normalizers from a seeded sample of the corpus."""

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from bergson_core.batching import BUDGET_TOKENS, Batch, batches
from bergson_core.documents import token_chunks
from bergson_core.errors import InvalidInput
from bergson_core.gradients import widened
from bergson_core.hooks import capture, frozen
from bergson_core.layers import Layer, select
from bergson_core.models import LanguageModel, wrap
from bergson_core.normalizers import KINDS, Normalizer, with_bias
from bergson_core.passes import forward_backward
from bergson_core.processor import GradientProcessor
from bergson_core.specs import ColumnsSpec, GradientSpec
from bergson_core.specs import Normalizer as NormalizerKind


def fit_processor(
    model: nn.Module,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase | None = None,
    settings: GradientSpec | None = None,
    *,
    columns: ColumnsSpec | None = None,
    target_modules: str | Iterable[str] | None = None,
) -> GradientProcessor:
    """The processor of `settings` with normalizers fitted from `settings.sample_size` documents of `dataset`.

    The default is Adafactor and a projection to 16 × 16 a layer. Without `tokenizer` the column `input_ids` is
    used. `target_modules`, as in `GradientCollector`, goes before `settings.modules`.
    Raises `InvalidInput` for a document that is longer than the model takes, or is not text.
    """
    settings, columns = settings or GradientSpec(), columns or ColumnsSpec()
    language_model = wrap(model, tokenizer)
    sample = dataset.select(sample_numbers(len(dataset), settings))
    tokens = list(chain.from_iterable(token_chunks(tokenizer, sample, columns, language_model.max_tokens)))
    layers = select(model, target_modules or settings.modules)
    return fit(language_model, layers, batches(tokens, BUDGET_TOKENS, language_model.device), settings)


def sample_numbers(total: int, settings: GradientSpec) -> list[int]:
    """Row numbers of the sample, ascending: the same ones for the same seed."""
    generator = np.random.Generator(np.random.Philox(settings.seed))
    return sorted(generator.choice(total, min(settings.sample_size, total), replace=False).tolist())


def fit(
    model: LanguageModel, layers: dict[str, Layer], sample: Iterable[Batch], settings: GradientSpec
) -> GradientProcessor:
    """The processor of `settings`, fitted in one streaming pass over `sample`."""
    model = model.tracking(layers.values())
    fitted = fit_normalizers(model, layers, sample, settings.normalizer, include_bias=settings.include_bias)
    return GradientProcessor(settings.projection_dim, fitted, settings.seed, settings.include_bias)


def fit_normalizers(
    model: LanguageModel,
    layers: dict[str, Layer],
    sample: Iterable[Batch],
    kind: NormalizerKind = "adafactor",
    *,
    include_bias: bool = False,
) -> dict[str, Normalizer]:
    """A normalizer for each layer that a pass runs, fitted in one streaming pass over `sample`; none for kind `none`.

    Raises `InvalidInput` where no token of the sample is labelled.
    """
    if kind == "none":
        return {}
    moments, make = KINDS[kind]
    sums: dict[str, Sequence[Tensor]] = {}

    def arrive(name: str, a: Tensor, g: Tensor) -> None:
        bias = include_bias and layers[name].has_bias
        a, g = widened(with_bias(a) if bias else a), widened(g)
        finite = a.isfinite().all(-1).all(-1) & g.isfinite().all(-1).all(-1)
        new = moments(a[finite], g[finite])
        sums[name] = (
            [old.add_(add) for old, add in zip(sums[name], new, strict=True)] if name in sums else new
        )

    samples = 0
    for batch in sample:
        with frozen(model.model), capture(model.model, layers, lambda _, a: a, arrive):
            forward_backward(model, batch)
        samples += len(batch)
    if not sums:
        raise InvalidInput(
            f"expected documents with labelled tokens to fit the normalizers from; the sample of {samples} has none"
        )
    return {name: make(sums[name], samples) for name in layers if name in sums}
