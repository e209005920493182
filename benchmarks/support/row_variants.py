"""Rows in memory in every variant that an index can have, made by the code that builds an index.

Legend: n documents, q queries, m modules, d numbers of a module; C is the second moment of the rows.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from bergson_core.gradients.fitting_sample import choose_sample
from bergson_core.gradients.normalizers.normalizers import Normalizer
from bergson_core.gradients.preconditioner import Preconditioner, SecondMoment
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.processor_fitting import fit_processor_from_batches
from bergson_core.gradients.row_collector import RowCollector, collect_rows
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.tracking.selection import select_modules
from bergson_core.schemas.build import GradientSpec, Normalize, RowKind
from bergson_core.search.features import compute_features
from bergson_core.shards.codecs import CODECS
from bergson_core.tokens.batching import BUDGET_TOKENS, iter_batches
from bergson_core.tokens.tokenization import Tokens

ALL_TOKENS: Final = 10**12
"""Tokens of a sample that may have all tokens of a corpus."""
LARGE_MODEL: Final = 10**8
"""Parameters from which on batches are a quarter as large, since 4,096 tokens of SmolLM2 take 8 GB."""
DAMPING: Final = 0.1
"""Damping of the preconditioner C^-½, in units of the mean eigenvalue."""


def batch_tokens(model: LanguageModel) -> int:
    """Returns the tokens of a batch, padding included."""
    return BUDGET_TOKENS if model.parameter_count < LARGE_MODEL else BUDGET_TOKENS // 4


class RowVariants:
    """The rows of documents and queries under one gradient processor, and scores of them in several variants.

    Args:
        model: The model.
        documents: Tokens of the documents.
        queries: Tokens of the queries.
        settings: How gradients become rows.
        normalizers: Normalizers that are fitted already; by default they are fitted as a build would.

    Attributes:
        modules: Names of the m tracked modules.
        query_rows: Rows of the queries [q, m, d].
        document_rows: Rows of the documents [n, m, d] in float32.
    """

    def __init__(
        self,
        model: LanguageModel,
        documents: list[Tokens],
        queries: list[Tokens],
        settings: GradientSpec,
        normalizers: Mapping[str, Normalizer] | None = None,
    ) -> None:
        if normalizers is None:
            normalizers = fit_index_normalizers(model, documents, settings)
        processor = GradientProcessor(
            settings.projection_dim, normalizers, settings.seed, projection=settings.projection
        )
        collector = RowCollector(model, processor, settings.modules)
        self.modules = tuple(collector.slices)

        def collect(tokens: list[Tokens]) -> Tensor:
            rows, _ = collect_rows(collector, tokens, batch_tokens(model))
            return torch.from_numpy(rows).reshape(len(tokens), len(self.modules), -1)

        self.query_rows = collect(queries)
        self.document_rows = collect(documents)

    @cached_property
    def stored_document_rows(self) -> Float[Tensor, "n m d"]:
        """The rows of the documents as float16 keeps them."""
        return store_and_load("float16", self.document_rows)

    def preconditioner(self) -> Preconditioner:
        """Returns C^-½ of the documents."""
        return Preconditioner.fit(second_moment(self.stored_document_rows), 1, DAMPING)

    def scores(
        self, preconditioner: Preconditioner | None, normalize: Normalize, kind: RowKind = "float16"
    ) -> Float[Tensor, "q n"]:
        """Returns scores from rows that are stored as numbers."""
        rows = self.stored_document_rows if kind == "float16" else store_and_load(kind, self.document_rows)
        return compute_scores(rows, self.query_rows, preconditioner, normalize)

    def sign_scores(self, preconditioner: Preconditioner | None = None) -> Float[Tensor, "q n"]:
        """Returns scores from rows of one bit per number; the preconditioner is applied before the sign is taken."""
        query_features, _ = compute_features(self.query_rows, preconditioner, "block")
        rows = self.stored_document_rows
        signs = store_and_load("sign", preconditioner.apply(rows) if preconditioner else rows)
        return query_features @ signs.flatten(1).mT


def fit_index_normalizers(
    model: LanguageModel, documents: list[Tokens], settings: GradientSpec
) -> dict[str, Normalizer]:
    """Fits the normalizers to the sample of the documents that a build would take."""
    sample = choose_sample(
        len(documents), settings, lambda numbers: {number: documents[number] for number in numbers}
    )
    batches = iter_batches(sample, batch_tokens(model))
    modules = select_modules(model.model, settings.modules)
    return dict(fit_processor_from_batches(model, modules, batches, settings).normalizers)


def compute_scores(
    document_rows: Float[Tensor, "n m d"],
    query_rows: Float[Tensor, "q m d"],
    preconditioner: Preconditioner | None,
    normalize: Normalize,
) -> Float[Tensor, "q n"]:
    """Returns the score of every document with every query."""
    query_features, _ = compute_features(query_rows, preconditioner, normalize)
    document_features, _ = compute_features(document_rows, preconditioner, normalize)
    return query_features @ document_features.mT


def second_moment(rows: Float[Tensor, "n m d"]) -> Float64[Tensor, "m d d"]:
    """Returns the second moment of the rows of each module."""
    _, modules, width = rows.shape
    moment = SecondMoment(modules, width)
    moment.add(rows)
    return moment.total.double() / len(rows)


def store_and_load(kind: RowKind, rows: Float[Tensor, "n m d"]) -> Float[Tensor, "n m d"]:
    """Returns rows as they come back from an index that stores them as `kind`."""
    blocks, scales = CODECS[kind].encode(rows)
    return CODECS[kind].decode(blocks.numpy(), scales.numpy(), rows.shape[2])
