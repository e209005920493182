"""Splits the score of a document by the document's tokens.

The row of a document is the sum of what its positions add to its gradient, and a score is linear in the row as it is
stored (`search.exact_scores`). So the document runs through the model once more, this time with a row u_s for each
position, and the same linear functional is applied to each u_s. What is stored is not exactly Σ u_s: it is rounded, or
reduced to signs, or multiplied by the weight of the document. So each block is written as

    stored = a Σ u_s + rest,    a = ⟨stored, Σ u_s⟩ / ‖Σ u_s‖²

where a is that of least squares. A position gets a u_s, and of each number of the rest the share that its |u_s| has
among all positions. So the parts sum to the score exactly, and no share is larger than what is shared. Where nothing
was lost, a is the document's weight, or 1, and the rest is 0.

With float16 and int8 rows, the rest is the rounding. With sign rows it is large: the sign of a number says nothing
about its size, so the score is not linear in the gradient, and a part is a share of the score, not a derivative.
Giving a position stored · u_s / Σ u_s, number by number, would sum to the score too, but without bound where the sum is
near 0.

Legend: s positions, m modules, d numbers per module.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bergson_core.errors import InvalidInput
from bergson_core.gradients.checkpoints.collector import open_token_collector
from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import MAX_TOKEN_ROW_NUMBERS, RowCollector
from bergson_core.models.index_tokens import tokenize_documents
from bergson_core.models.language_model import LanguageModel
from bergson_core.schemas.record import Record, record_from_stored
from bergson_core.schemas.results import TokenInfluence
from bergson_core.search.exact_scores import StoredRow
from bergson_core.search.searcher import StoredDocument
from bergson_core.storage.layout import preconditioner_path
from bergson_core.storage.manifest import Manifest
from bergson_core.tokens.batching import iter_batches
from bergson_core.tokens.tokenization import Tokens


@dataclass(frozen=True)
class _ModuleGroup:
    """Consecutive modules whose token rows fit into memory together.

    `collector` computes their token rows, in batches of at most `budget_tokens`.
    """

    modules: slice
    collector: RowCollector
    budget_tokens: int

    @property
    def size(self) -> int:
        return self.modules.stop - self.modules.start


@dataclass(frozen=True)
class ScoreDecomposer:
    """Splits the scores of an index's documents by their tokens.

    Attributes:
        root: Directory of the index.
        manifest: Manifest of the index.
        model: The model that the index was built from.
        processor: Normalizers and projection of the index's rows.
        collector: Computes rows as the index holds them.
    """

    root: Path
    manifest: Manifest
    model: LanguageModel
    processor: GradientProcessor
    collector: RowCollector

    def require_supported(self) -> None:
        """Raises `InvalidInput` for an index whose rows are not gradients of its model."""
        if self.manifest.origin == "training":
            raise InvalidInput(
                f"{self.root.name} was made by a training run, step by step, and the finished model cannot split its "
                "rows by token: leave `tokens` out of include"
            )

    def token_influences(self, documents: Sequence[StoredDocument]) -> list[list[TokenInfluence]]:
        """Returns for each document its tokens in order, with their parts of its score.

        The model runs on all documents together: once for each group of modules that has rows for the tokens of the
        longest document in 128 MiB.
        """
        records = [
            record_from_stored(document.document, self.manifest.spec.columns) for document in documents
        ]
        tokens = tokenize_documents(records, self.manifest.spec, self.model)
        parts = self._split_scores(tokens, [document.row for document in documents])
        tokenizer = self.model.tokenizer
        assert tokenizer is not None  # load_model always gives one
        return [
            list_token_influences(tokenizer, record, document_tokens, document_parts)
            for record, document_tokens, document_parts in zip(records, tokens, parts, strict=True)
        ]

    def _split_scores(
        self, documents: Sequence[Tokens], stored_rows: Sequence[StoredRow]
    ) -> list[Float64[Tensor, " s"]]:
        """Returns for each document the part of each position in its score."""
        parts = [torch.zeros(len(document.ids), dtype=torch.float64) for document in documents]
        for group in self._module_groups(max(len(document.ids) for document in documents)):
            for batch in iter_batches(documents, group.budget_tokens, self.collector.device):
                padded_rows, _ = group.collector.collect(batch)
                for place, (number, rows) in enumerate(zip(batch.indices, padded_rows, strict=True)):
                    rows = rows.cpu()[batch.token_positions(place)].unflatten(1, (group.size, -1))
                    parts[number] += split_score_by_position(
                        self._as_before_storing(rows, group.modules), stored_rows[number], group.modules
                    )
        return parts

    def _module_groups(self, longest: int) -> Iterator[_ModuleGroup]:
        """Yields the modules in groups; `longest` is the number of tokens of the longest document."""
        names = list(self.collector.slices)
        width = self.collector.dimensions // len(names)
        group_size = max(1, MAX_TOKEN_ROW_NUMBERS // (width * longest))
        for start in range(0, len(names), group_size):
            modules = slice(start, min(start + group_size, len(names)))
            collector = open_token_collector(self.model, self.processor, names[modules], self.collector)
            numbers_a_token = width * (modules.stop - modules.start)
            yield _ModuleGroup(modules, collector, max(1, MAX_TOKEN_ROW_NUMBERS // numbers_a_token))

    def _as_before_storing(self, rows: Float[Tensor, "s m d"], modules: slice) -> Float[Tensor, "s m d"]:
        """Returns rows as they would go to the codec: preconditioned for signs, and 0 where they are not finite."""
        rows = rows.nan_to_num(0, 0, 0) if not rows.isfinite().all() else rows
        if self._sign_preconditioner is None:
            return rows
        return Preconditioner(self._sign_preconditioner.inverse_root[modules]).apply(rows)

    @cached_property
    def _sign_preconditioner(self) -> Preconditioner | None:
        """What rows were multiplied with before their signs were taken, or None."""
        spec = self.manifest.spec
        if spec.gradients.rows != "sign" or not spec.scoring.preconditioner:
            return None
        return Preconditioner.load(preconditioner_path(self.root))


def split_score_by_position(
    token_rows: Float[Tensor, "s m d"], stored: StoredRow, modules: slice = slice(None)
) -> Float64[Tensor, " s"]:
    """Returns the part of each position in the score of a stored row, or in those modules' part of it.

    The parts sum to the products of the stored row and its weights, whatever the rows of the positions are.

    Args:
        token_rows: The rows u_s [s, m, d] of these modules.
        stored: The whole stored row with its weights.
        modules: Which modules of the stored row the token rows are of.
    """
    parts = torch.zeros(len(token_rows), dtype=torch.float64)
    blocks = zip(token_rows.unbind(1), stored.row[modules], stored.weights[modules], strict=True)
    for token_block, stored_block, weights in blocks:
        token_block, stored_block, weights = token_block.double(), stored_block.double(), weights.double()
        total = token_block.sum(0)
        square = total @ total
        scaled = token_block * (stored_block @ total / square if square > 0 else 0)
        sizes = token_block.abs()
        total_size = sizes.sum(0)
        # A number that no position adds to is stored as 0, or, as a sign, as if it were negative: all share it.
        shares = torch.where(total_size > 0, sizes / total_size, 1 / len(token_rows))
        rest = stored_block - scaled.sum(0)
        parts += scaled @ weights + shares @ (rest * weights)
    return parts


def list_token_influences(
    tokenizer: PreTrainedTokenizerBase, record: Record, tokens: Tokens, parts: Float[Tensor, " s"]
) -> list[TokenInfluence]:
    """Returns the tokens of a document in order, with the part of each position in the document's score."""
    texts = _token_texts(tokenizer, record, tokens)
    return [
        TokenInfluence(token=text, start=start, end=end, influence=part, sequence=sequence)
        for (text, start, end), part, sequence in zip(
            texts, parts.tolist(), _sequence_names(tokens), strict=True
        )
    ]


def _sequence_names(tokens: Tokens) -> list[Literal["chosen", "rejected"] | None]:
    """Returns for each token of a preference pair which sequence it is in."""
    if tokens.pair is None:
        return [None] * len(tokens.ids)
    return ["chosen" if place < tokens.pair.chosen_tokens else "rejected" for place in range(len(tokens.ids))]


def _token_texts(
    tokenizer: PreTrainedTokenizerBase, record: Record, tokens: Tokens
) -> Iterator[tuple[str, int | None, int | None]]:
    """Yields for each token of a document its text, and where its characters start and end if it has any."""
    is_chat = record.messages is not None or (record.pair is not None and record.pair.is_chat)
    if is_chat or not tokenizer.is_fast:
        yield from ((str(tokenizer.decode([token_id])), None, None) for token_id in tokens.ids.tolist())
        return
    completions = (
        [record.completion or ""] if record.pair is None else [record.pair.chosen, record.pair.rejected]
    )
    for completion, sequence in zip(completions, tokens.sequences, strict=True):
        yield from _texts_of_sequence(tokenizer, record.prompt + completion, sequence.ids)


def _texts_of_sequence(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: np.ndarray
) -> Iterator[tuple[str, int | None, int | None]]:
    encoded = tokenizer(text, return_offsets_mapping=True, return_attention_mask=False)
    assert np.array_equal(encoded["input_ids"], ids)  # the same text has the same tokens
    for token_id, (start, end) in zip(ids.tolist(), encoded["offset_mapping"], strict=True):
        if start < end:
            yield text[start:end], start, end
        else:  # a special token, which the tokenizer has added
            yield str(tokenizer.convert_ids_to_tokens(token_id)), None, None
