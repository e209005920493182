"""Which tokens of a training sample its score comes from.

Legend: k samples, s positions, m layers, d numbers a layer.

A sample's row is the sum of what its positions add to its gradient, and a score is linear in the row as it is stored
(`exact`). So the sample runs through the model once more, this time with a row u_s for each position, and the same
linear functional is taken of each. What is stored is not quite Σ u_s: it is rounded, or signs alone are left, or it is
multiplied by a weight that the index does not keep. So each block is written as

    stored = a Σ u_s + rest,    a = ⟨stored, Σ u_s⟩ / ‖Σ u_s‖²

with the a of least squares. A position gets a u_s, and of each number of the rest a share by its |u_s| among all
positions. So the parts sum to the score exactly, and no share is larger than what is shared; where nothing was lost, a
is the weight, or 1, and the rest is 0. For float16 and int8 the rest is the rounding. For signs it is large: the sign
of a number says nothing of its size, so that the score is not linear in the gradient, and a part is a share of it, no
derivative. To give a position stored · u_s / Σ u_s, number by number, would sum to the score too, but without bound
where the sum is near 0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bergson_core.data.batching import Tokens, iter_batches
from bergson_core.errors import InvalidInput
from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import MAX_TOKEN_ROW_NUMBERS, RowCollector
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.tokenization import tokenize_documents
from bergson_core.schemas.record import Record, record_from_stored
from bergson_core.schemas.results import TokenInfluence
from bergson_core.search.exact_scores import StoredRow
from bergson_core.search.searcher import StoredDocument
from bergson_core.storage.layout import preconditioner_path
from bergson_core.storage.manifest import Manifest


@dataclass(frozen=True)
class ScoreDecomposer:
    """Takes the scores of an index's samples apart by their tokens; `collector` is that of the index."""

    root: Path
    manifest: Manifest
    model: LanguageModel
    processor: GradientProcessor
    collector: RowCollector

    def require_supported(self) -> None:
        """Raises `InvalidInput` for an index whose rows are not gradients of its model."""
        if self.manifest.origin == "training":
            raise InvalidInput(
                f"{self.root.name} holds what a training run did for its documents, step by step, which its finished "
                "model cannot tell apart by tokens: leave `tokens` out of include"
            )

    def token_influences(self, samples: Sequence[StoredDocument]) -> list[list[TokenInfluence]]:
        """The tokens of each sample in order, with their parts of its score. The model runs on all samples once.

        That is once for as many modules as have rows for the longest sample's tokens in 128 MiB.
        """
        columns = self.manifest.spec.columns
        records = [
            record_from_stored(str(k), one.prompt, one.completion, columns) for k, one in enumerate(samples)
        ]
        tokens = tokenize_documents(records, self.manifest.spec, self.model)
        totals = [torch.zeros(len(one.ids), dtype=torch.float64) for one in tokens]
        for layers, collector, budget in self._passes(max(len(one.ids) for one in tokens)):
            for batch in iter_batches(tokens, budget, self.collector.device):
                rows, _ = collector.collect(batch)
                for number, of_tokens in zip(batch.indices, rows, strict=True):
                    of_tokens = of_tokens[: len(totals[number])].cpu()
                    of_tokens = of_tokens.reshape(len(of_tokens), layers.stop - layers.start, -1)
                    totals[number] += split_score_by_position(
                        self._kept(of_tokens, layers), samples[number].stored, layers
                    )
        tokenizer = self.model.tokenizer
        assert tokenizer is not None  # load_model always gives one
        return [
            [
                TokenInfluence(token=text, start=start, end=end, influence=float(part))
                for (text, start, end), part in zip(_pieces(tokenizer, record, one), parts, strict=True)
            ]
            for record, one, parts in zip(records, tokens, totals, strict=True)
        ]

    def _passes(self, longest: int) -> Iterator[tuple[slice, RowCollector, int]]:
        """(layers, what collects token rows of them, tokens of a batch), so that a batch's rows fit into memory."""
        names, width = list(self.collector.slices), self.collector.dimensions // len(self.collector.slices)
        at_once = max(1, MAX_TOKEN_ROW_NUMBERS // (width * longest))
        for start in range(0, len(names), at_once):
            layers = slice(start, min(start + at_once, len(names)))
            here = names[layers]
            collector = RowCollector(
                self.model, self.processor, here, per_token=True, share_with=self.collector
            )
            yield layers, collector, max(1, MAX_TOKEN_ROW_NUMBERS // (width * len(here)))

    def _kept(self, rows: Float[Tensor, "s m d"], layers: slice) -> Float[Tensor, "s m d"]:
        """Rows of these layers as they are before they are stored; 0 where they are not finite, as there."""
        rows = rows.nan_to_num(0, 0, 0) if not rows.isfinite().all() else rows
        if self._before is None:
            return rows
        return Preconditioner(self._before.inverse_root[layers]).apply(rows)

    @cached_property
    def _before(self) -> Preconditioner | None:
        """What goes before signs are taken."""
        spec = self.manifest.spec
        if spec.gradients.rows != "sign" or not spec.scoring.preconditioner:
            return None
        return Preconditioner.load(preconditioner_path(self.root))


def split_score_by_position(
    tokens: Float[Tensor, "s m d"], stored: StoredRow, layers: slice = slice(None)
) -> Float[Tensor, " s"]:
    """What each position adds to the products of these layers of a stored row with its weights, in float64.

    They sum to the products' sum, whatever the rows of the positions are.
    """
    found = torch.zeros(len(tokens), dtype=torch.float64)
    kept = zip(tokens.unbind(1), stored.row[layers], stored.weights[layers], strict=True)
    for by_token, row, weights in kept:
        by_token, row, weights = by_token.double(), row.double(), weights.double()
        whole = by_token.sum(0)
        square = whole @ whole
        scaled = by_token * (row @ whole / square if square > 0 else 0)
        sizes = by_token.abs()
        size = sizes.sum(0)
        # A number that no position adds to is stored as 0, or, of signs, as if it were negative: all share it.
        share = torch.where(size > 0, sizes / size, 1 / len(tokens))
        found += scaled @ weights + share @ ((row - scaled.sum(0)) * weights)
    return found


def _pieces(
    tokenizer: PreTrainedTokenizerBase, record: Record, tokens: Tokens
) -> Iterator[tuple[str, int | None, int | None]]:
    """(text, start, end) of each token of a document."""
    ids = tokens.ids.tolist()
    if record.messages is not None or not tokenizer.is_fast:
        yield from ((str(tokenizer.decode([one])), None, None) for one in ids)
        return
    text = record.prompt + (record.completion or "")
    encoded = tokenizer(text, return_offsets_mapping=True, return_attention_mask=False)
    assert np.array_equal(encoded["input_ids"], ids)  # the same text
    for one, (start, end) in zip(ids, encoded["offset_mapping"], strict=True):
        if start < end:
            yield text[start:end], start, end
        else:  # put in by the tokenizer
            yield str(tokenizer.convert_ids_to_tokens(one)), None, None
