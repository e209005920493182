"""Rows of every kind in memory, made by the same code as an index, for the benchmarks that compare them."""

import torch
from torch import Tensor

from bergson_core.attribution.profile_fitting import matching_mixing
from bergson_core.data.batching import BUDGET_TOKENS, Tokens, batches
from bergson_core.gradients.normalizer_fitting import fit_gradient_processor, sample_row_numbers
from bergson_core.gradients.normalizers import Normalizer
from bergson_core.gradients.preconditioner import Preconditioner, SecondMoment
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector, collect_rows
from bergson_core.models.loading import LanguageModel
from bergson_core.models.modules import select_modules
from bergson_core.schemas.build import GradientSpec, Normalize, RowKind
from bergson_core.search.faiss_index import score_features
from bergson_core.shards.codecs import CODECS

DAMPING = 0.1


class Rows:
    """Rows of the documents (`raw`: before they were kept) and of the queries [., m, d] under one processor, and C^-½.

    `C` is of the documents, `C mixed` of them and the queries, by the rule of TrackStar, whose λ is `mixing`.
    """

    def __init__(
        self,
        model: LanguageModel,
        documents: list[Tokens],
        queries: list[Tokens],
        settings: GradientSpec,
        normalizers: dict[str, Normalizer] | None = None,
    ) -> None:
        if normalizers is None:
            normalizers = fitted(model, documents, settings)
        processor = GradientProcessor(settings.projection_dim, normalizers, settings.seed)
        collector = RowCollector(model, processor, settings.modules)
        self.layers = len(collector.slices)

        def collect(tokens: list[Tokens]) -> Tensor:
            rows, _ = collect_rows(collector, tokens, BUDGET_TOKENS)
            return torch.from_numpy(rows).reshape(len(tokens), self.layers, -1)

        self.queries = collect(queries)
        self.raw = collect(documents)
        self.documents = kept("float16", self.raw)

    def root(self) -> Preconditioner:
        """C^-½ of the documents."""
        return Preconditioner.fit(second_moment(self.documents), 1, DAMPING)

    def mixed_root(self) -> Preconditioner:
        """C^-½ of the documents and the queries, by the rule of TrackStar."""
        of_documents, of_queries = second_moment(self.documents), second_moment(self.queries)
        mixing = matching_mixing(of_queries, of_documents)
        return Preconditioner.fit(mixing * of_queries + (1 - mixing) * of_documents, 1, DAMPING)

    def scores(self, root: Preconditioner | None, normalize: Normalize, kind: RowKind = "float16") -> Tensor:
        """Scores [q, n] from rows with magnitudes."""
        documents = self.documents if kind == "float16" else kept(kind, self.raw)
        return scores(documents, self.queries, root, normalize)

    def sign_scores(self, root: Preconditioner | None = None) -> Tensor:
        """Scores [q, n] from one bit a number, where C^-½ goes before the sign."""
        asked, _ = score_features(self.queries, root, "block")
        signs = kept("sign", root.apply(self.documents) if root else self.documents)
        return asked @ signs.flatten(1).mT


def fitted(model: LanguageModel, documents: list[Tokens], settings: GradientSpec) -> dict[str, Normalizer]:
    """Normalizers from the sample that an index takes."""
    places = sample_row_numbers(len(documents), settings.sample_size, settings.seed)
    sample = batches([documents[place] for place in places], BUDGET_TOKENS)
    return dict(
        fit_gradient_processor(
            model, select_modules(model.model, settings.modules), sample, settings
        ).normalizers
    )


def scores(documents: Tensor, queries: Tensor, root: Preconditioner | None, normalize: Normalize) -> Tensor:
    """Scores [q, n]."""
    return score_features(queries, root, normalize)[0] @ score_features(documents, root, normalize)[0].mT


def second_moment(rows: Tensor) -> Tensor:
    moment = SecondMoment(*rows.shape[1:])
    moment.add(rows)
    return moment.total.double() / len(rows)


def kept(kind: RowKind, rows: Tensor) -> Tensor:
    """Rows [n, m, d] as they come back from disk."""
    blocks, scales = CODECS[kind].encode(rows)
    return CODECS[kind].decode(blocks.numpy(), scales.numpy(), rows.shape[2])
