"""Fits the normalizers of a gradient processor from a seeded sample of documents."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Final, Literal, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from bergson_core.errors import InvalidInput
from bergson_core.gradients.gradient_transforms import append_bias_input, upcast
from bergson_core.gradients.normalizers.matrix_root import EighFunction
from bergson_core.gradients.normalizers.moments import NORMALIZER_FITTERS
from bergson_core.gradients.normalizers.normalizers import Normalizer
from bergson_core.gradients.normalizers.optimizer_checkpoint import read_checkpoint_normalizers
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.models.batch_budget import find_batch_budget
from bergson_core.models.forward_backward import forward_backward
from bergson_core.models.hooks import capture, freeze
from bergson_core.models.language_model import LanguageModel, as_language_model, token_limits
from bergson_core.models.modules import TrackedModule
from bergson_core.schemas.build import GradientSpec, NormalizerKind
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.tokens.batching import Batch, iter_batches
from bergson_core.tokens.document_tokens import iter_token_chunks
from bergson_core.utils.background import run_in_thread, stop_if_abandoned

MAX_KFAC_SIDE: Final = 2**15
"""Longest side of a module that K-FAC is fitted for: a matrix of side × side then takes 4 GiB in float32."""


def fit_processor(
    model: nn.Module,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase | None = None,
    settings: GradientSpec | None = None,
    *,
    columns: ColumnsSpec | None = None,
    modules: str | Iterable[str] | None = None,
) -> GradientProcessor:
    """Returns a gradient processor with normalizers that are fitted from a sample of a dataset.

    The sample is `settings.sample_size` documents, drawn with `settings.seed`. The default settings are Adafactor's
    second moment and a projection to 16 × 16 numbers per module. The model is left as it was.

    Args:
        model: A causal language model, in memory and on its device.
        dataset: The documents.
        tokenizer: The model's tokenizer. Without one, the column `input_ids` is used, and the columns beside it that
            change its meaning, as in `collect_gradients`.
        settings: The normalizer, the loss, the sample and the projection.
        columns: The dataset's columns; by default the text is in the column `text`.
        modules: Which modules to fit, as in `GradientCollector`; by default those that `settings.modules` names.

    Returns:
        A processor whose normalizers map the name of each module that the model runs to float32 tensors on the CPU. For
        a module with i input and o output features these are r [o] and c [i] (adafactor), V [o, i] (adam), or
        S^-½ [o, o] and A^-½ [i, i] (kfac), or of an embedding the diagonal [i] of A^-½.

    Raises:
        ColumnNotFound: The dataset lacks a column that `columns` names, or there is neither a tokenizer nor a column
            `input_ids`.
        TooLong: A document has more tokens than the model takes.
        InvalidInput: A document is not text, no document of the sample has labelled tokens, no module is selected, a
            module is too wide for K-FAC, or an optimizer's checkpoint does not fit the model.

    Source: Adafactor's second moment is from Shazeer and Stern, arXiv 1804.04235, algorithm 2; K-FAC from Martens and
    Grosse, arXiv 1503.05671, section 3. TrackStar (Chang et al., arXiv 2410.17413, section 3) normalizes gradients by
    Adafactor's.

    Example:
        >>> settings = GradientSpec(projection_dim=32, normalizer="kfac", sample_size=1000)
        >>> columns = ColumnsSpec(prompt="question", completion="answer")
        >>> processor = fit_processor(model, dataset, tokenizer, settings, columns=columns)
    """
    settings, columns = settings or GradientSpec(), columns or ColumnsSpec()
    language_model = as_language_model(model, tokenizer)
    sample = sample_row_numbers(len(dataset), settings.sample_size, settings.seed)
    limits = token_limits(language_model, settings.max_tokens)
    chunks = iter_token_chunks(tokenizer, dataset, columns, limits, settings.loss, sample)
    documents = list(chain.from_iterable(chunks))
    tracked = language_model.select_modules(modules or settings.modules)
    longest = max((len(tokens.ids) for tokens in documents), default=0)
    budget = find_batch_budget(language_model, tracked, longest)
    return fit_processor_from_batches(
        language_model, tracked, iter_batches(documents, budget, language_model.device), settings
    )


def sample_row_numbers(total: int, size: int, seed: int) -> list[int]:
    """Returns `size` row numbers of `total`, or all of them where there are fewer, ascending.

    The same arguments always give the same row numbers.
    """
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
    """Returns a gradient processor, fitted in one streaming pass over batches.

    Args:
        model: The model, on its device.
        modules: The modules to fit, by name.
        sample: The batches, which are not read where the settings name an optimizer's checkpoint.
        settings: The normalizer, the loss and the projection.
        tick: Called some fifty times a second while matrices are decomposed; it may raise to stop.
        eigh: The eigendecomposition to use.

    Raises:
        InvalidInput: No token of the sample is labelled, a module is too wide for K-FAC, or an optimizer's checkpoint
            does not fit the model.
    """
    bias = settings.include_bias
    if settings.optimizer_state is not None:
        # GradientSpec accepts no other normalizers with an optimizer's state.
        kind = cast("Literal['adafactor', 'adam']", settings.normalizer)
        normalizers = read_checkpoint_normalizers(
            settings.optimizer_state, model.model, modules, kind, include_bias=bias
        )
    else:
        sampler = None
        if settings.fit_labels == "sampled":
            sampler = torch.Generator(model.device).manual_seed(settings.seed)
        normalizers = fit_normalizers(
            model.for_tracking(modules.values()),
            modules,
            sample,
            settings.normalizer,
            include_bias=bias,
            sampler=sampler,
            tick=tick,
            eigh=eigh,
        )
    return GradientProcessor(settings.projection_dim, normalizers, settings.seed, bias, settings.projection)


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
    """Returns a normalizer for each module that the model runs, fitted in one streaming pass over batches.

    A document whose activations or output gradients in a module are not finite adds nothing to the module's sums.

    Args:
        model: The model, on its device.
        modules: The modules to fit, by name.
        sample: The batches.
        kind: The kind of normalizer; for `none` the result is empty and nothing is run.
        include_bias: Whether the normalizers cover biases too.
        sampler: A generator on the model's device that draws labels from the model's predictions, in place of the
            documents' own (`forward_backward`).
        tick: Called some fifty times a second while matrices are decomposed; it may raise to stop.
        eigh: The eigendecomposition to use.

    Raises:
        InvalidInput: No token of the sample is labelled, or a module is too wide for K-FAC.
    """
    if kind == "none":
        return {}
    if kind == "kfac":
        _require_sides_for_kfac(modules)
    fitter = NORMALIZER_FITTERS[kind]
    sums: dict[str, Sequence[Tensor]] = {}

    def add_to_sums(name: str, a: Tensor, g: Tensor) -> None:
        tracked, g = modules[name], upcast(g)
        finite = g.isfinite().flatten(1).all(1)
        if a.is_floating_point():
            a = upcast(append_bias_input(a) if include_bias and tracked.has_bias else a)
            finite &= a.isfinite().flatten(1).all(1)
            moments = fitter.moments(a[finite], g[finite])
        else:
            moments = fitter.token_moments(a[finite], g[finite], tracked.in_features)
        if name in sums:
            moments = [total.add_(moment) for total, moment in zip(sums[name], moments, strict=True)]
        sums[name] = moments

    samples = 0
    for batch in sample:
        with freeze(model.model), capture(model.model, modules, lambda _, a: a, add_to_sums):
            forward_backward(model, batch, sampler)
        samples += len(batch)
    if not sums:
        raise InvalidInput(
            f"expected documents with labelled tokens to fit the normalizers from; the sample of {samples} has none"
        )

    def make_normalizer(name: str) -> Normalizer:
        stop_if_abandoned()
        return fitter.make(sums[name], samples, eigh)

    return run_in_thread(lambda: {name: make_normalizer(name) for name in modules if name in sums}, tick)


def _require_sides_for_kfac(modules: Mapping[str, TrackedModule]) -> None:
    """Raises `InvalidInput` where a module has a side that K-FAC's matrices are too large for."""
    for name, tracked in modules.items():
        is_embedding = isinstance(tracked.module, nn.Embedding)
        side = tracked.out_features if is_embedding else max(tracked.out_features, tracked.in_features)
        if side > MAX_KFAC_SIDE:
            raise InvalidInput(
                f"module {name!r} has a side of {side}, and kfac has a matrix of side × side: expected at most "
                f"{MAX_KFAC_SIDE}. Leave the module out, or take normalizer adafactor"
            )
