"""Fits the normalizers of a gradient processor from a seeded sample of documents."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Literal, cast

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from bergson_core.gradients.fitting_sample import choose_sample
from bergson_core.gradients.fitting_sample import sample_row_numbers as sample_row_numbers
from bergson_core.gradients.gradient_transforms import draw_projections
from bergson_core.gradients.normalizer_fitting import MAX_KFAC_SIDE as MAX_KFAC_SIDE
from bergson_core.gradients.normalizer_fitting import (
    NormalizerFitting,
    count_tokens,
    group_modules,
    require_labels,
)
from bergson_core.gradients.normalizers.matrix_root import EighFunction
from bergson_core.gradients.normalizers.normalizers import Normalizer
from bergson_core.gradients.normalizers.optimizer_checkpoint import read_checkpoint_normalizers
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.models.batch_budget import find_batch_budget
from bergson_core.models.language_model import LanguageModel, as_language_model, token_limits
from bergson_core.models.modules import TrackedModule
from bergson_core.schemas.build import GradientSpec, NormalizerKind
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.tokens.batching import Batch, iter_batches
from bergson_core.tokens.document_tokens import iter_token_chunks
from bergson_core.tokens.tokenization import Tokens
from bergson_core.utils.background import run_in_thread, stop_if_abandoned


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

    The sample is at most `settings.sample_size` documents and `settings.sample_tokens` tokens, drawn with
    `settings.seed`. The default settings are Adafactor's
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
    return fit_from_dataset(
        model, dataset, tokenizer, settings or GradientSpec(), columns or ColumnsSpec(), modules, whole=True
    )


def fit_from_dataset(
    model: nn.Module,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase | None,
    settings: GradientSpec,
    columns: ColumnsSpec,
    modules: str | Iterable[str] | None = None,
    *,
    whole: bool,
) -> GradientProcessor:
    """Returns what `fit_processor` does, with normalizers for whole gradients or without.

    The arguments are those of `fit_processor`; `whole` is that of `fit_processor_from_batches`.
    """
    language_model = as_language_model(model, tokenizer)
    limits = token_limits(language_model, settings.max_tokens)

    def tokenize(numbers: Sequence[int]) -> dict[int, Tokens]:
        chunks = iter_token_chunks(
            tokenizer,
            dataset,
            columns,
            limits,
            settings.loss,
            numbers,
            preference_beta=settings.preference_beta,
        )
        return dict(zip(numbers, chain.from_iterable(chunks), strict=True))

    documents = choose_sample(len(dataset), settings, tokenize)
    tracked = language_model.select_modules(
        modules or settings.modules, split_heads=settings.split_heads, include_bias=settings.include_bias
    )
    longest = max((tokens.longest for tokens in documents), default=0)
    budget = find_batch_budget(language_model, tracked, longest)
    return fit_processor_from_batches(
        language_model, tracked, iter_batches(documents, budget, language_model.device), settings, whole=whole
    )


def fit_processor_from_batches(
    model: LanguageModel,
    modules: dict[str, TrackedModule],
    sample: Iterable[Batch],
    settings: GradientSpec,
    tick: Callable[[], object] = lambda: None,
    eigh: EighFunction = torch.linalg.eigh,
    *,
    whole: bool = True,
) -> GradientProcessor:
    """Returns a gradient processor, fitted in one streaming pass over batches, or a few where memory is short.

    Args:
        model: The model, on its device.
        modules: The modules to fit, by name.
        sample: The batches, which are not read where the settings name an optimizer's checkpoint.
        settings: The normalizer, the loss and the projection.
        tick: Called some fifty times a second while matrices are decomposed; it may raise to stop.
        eigh: The eigendecomposition to use.
        whole: Whether the normalizers are for whole gradients too. Otherwise those of K-FAC hold no more than the
            processor's projections need (`ProjectedKfacNormalizer`).

    Raises:
        InvalidInput: No token of the sample is labelled, a module is too wide for K-FAC, or an optimizer's checkpoint
            does not fit the model.
    """
    bias = settings.include_bias
    processor = GradientProcessor(
        settings.projection_dim, None, settings.seed, bias, settings.projection, settings.split_heads
    )
    if settings.optimizer_state is not None:
        # GradientSpec accepts no other normalizers with an optimizer's state.
        kind = cast("Literal['adafactor', 'adam']", settings.normalizer)
        processor.normalizers = read_checkpoint_normalizers(
            settings.optimizer_state, model.model, modules, kind, include_bias=bias
        )
        return processor
    processor.normalizers = fit_normalizers(
        model.for_tracking(modules.values()),
        modules,
        sample,
        settings.normalizer,
        include_bias=bias,
        sampler=label_sampler(model, settings),
        tick=tick,
        eigh=eigh,
        projected_by=None if whole else processor,
    )
    return processor


def label_sampler(model: LanguageModel, settings: GradientSpec) -> torch.Generator | None:
    """Returns the generator that draws labels from the model's predictions, or None where labels are the documents'."""
    if settings.fit_labels != "sampled":
        return None
    return torch.Generator(model.device).manual_seed(settings.seed)


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
    projected_by: GradientProcessor | None = None,
) -> dict[str, Normalizer]:
    """Returns a normalizer for each module that the model runs, fitted in one streaming pass over batches.

    If K-FAC's moments of all modules do not fit into memory together, the modules are fitted in groups, with a pass for
    each. A document whose activations or output gradients in a module are not finite adds nothing to the module's sums.

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
        projected_by: A processor whose projections the normalizers are for. By default they are for all projections,
            and for whole gradients.

    Raises:
        InvalidInput: No token of the sample is labelled, or a module is too wide for K-FAC.
    """
    if kind == "none":
        return {}
    groups = group_modules(model, modules, kind, None)
    if len(groups) > 1:
        sample = list(sample) if iter(sample) is sample else sample  # it is read more than once
        groups = group_modules(model, modules, kind, count_tokens(sample))
    normalizers: dict[str, Normalizer] = {}
    samples = 0
    for group in groups:
        fitting = NormalizerFitting(model, group, kind, include_bias=include_bias, sampler=sampler)
        for batch in sample:
            fitting.add(batch)
        samples = fitting.samples
        make = partial(_make_all, fitting, group, projected_by, eigh)
        normalizers |= run_in_thread(make, tick)
    require_labels(normalizers, samples)
    return normalizers


def _make_all(
    fitting: NormalizerFitting,
    modules: Mapping[str, TrackedModule],
    projected_by: GradientProcessor | None,
    eigh: EighFunction,
) -> dict[str, Normalizer]:
    """Returns the normalizers of all modules of a fitting that the model has run."""
    normalizers = {}
    for name in fitting.names:
        stop_if_abandoned()
        projections = None if projected_by is None else draw_projections(projected_by, modules[name])
        normalizers[name] = fitting.make(name, projections, eigh)
        fitting.forget(name)
    return normalizers
