"""Measures whether a document's gradient depends on the documents in its batch and on the precision.

Attention kernels and low precision can make it so.

Legend: n documents, D numbers per row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.loading import load_model
from bergson_core.schemas.build import Dtype
from bergson_core.tokens.batching import iter_batches
from bergson_core.tokens.tokenization import Tokens

MIN_SAME_COSINE: Final = 0.99
"""Cosine from which two rows count as the same."""
_DOCUMENTS: Final = 8
_MAX_DOCUMENT_TOKENS: Final = 128
_UNLIMITED_BUDGET_TOKENS: Final = 10**9
"""Puts all documents into one batch."""


@dataclass(frozen=True)
class PrecisionCheck:
    """How much a document's row differs from the row of the same document alone, in one precision.

    The three numbers are cosines of two rows, each the smallest over all documents.

    Attributes:
        dtype: The precision.
        batched: In a batch of documents of the same length, against alone in the same precision.
        padded: In a batch with longer documents, against alone in the same precision.
        precision: Alone in this precision, against alone in float32.
    """

    dtype: Dtype
    batched: float
    padded: float
    precision: float

    @property
    def passed(self) -> bool:
        """Whether all three cosines are at least `MIN_SAME_COSINE`."""
        return min(self.batched, self.padded, self.precision) >= MIN_SAME_COSINE


def check_precision(
    name: str, revision: str | None = None, dtypes: Sequence[Dtype] = ("float32", "bfloat16")
) -> list[PrecisionCheck]:
    """Returns a check for each precision, on documents of random tokens, by rows of 16 × 16 numbers per module.

    Args:
        name: The hub id or directory of the model.
        revision: Branch, tag or commit of the hub's repository.
        dtypes: The precisions.

    Raises:
        ModelNotFound: The model cannot be loaded.
        InvalidInput: The model does not fit into memory.
    """
    exact, checks = None, []
    for dtype in dict.fromkeys(("float32", *dtypes)):
        model = load_model(name, revision, dtype)
        collector = RowCollector(model, GradientProcessor(16))
        documents = _make_documents(model)
        alone = _collect(collector, model, documents, 1)
        exact = alone if exact is None else exact
        short, long = documents[: _DOCUMENTS // 2], documents[_DOCUMENTS // 2 :]
        batched = torch.cat(
            [_collect(collector, model, group, _UNLIMITED_BUDGET_TOKENS) for group in (short, long)]
        )
        padded = _collect(collector, model, documents, _UNLIMITED_BUDGET_TOKENS)
        if dtype in dtypes:
            cosines = (_min_cosine(alone, rows) for rows in (batched, padded, exact))
            checks.append(PrecisionCheck(dtype, *cosines))
    return checks


def recommend_dtype(checks: Sequence[PrecisionCheck]) -> Dtype | None:
    """Returns the cheapest precision that passed its check, or None where none did."""
    passed = {check.dtype for check in checks if check.passed}
    cheapest_first: tuple[Dtype, ...] = ("bfloat16", "float32", "float64")
    return next((dtype for dtype in cheapest_first if dtype in passed), None)


def _make_documents(model: LanguageModel) -> list[Tokens]:
    """Returns documents of random tokens; the first half of them has half as many tokens each as the second."""
    longest = min(_MAX_DOCUMENT_TOKENS, model.max_tokens or _MAX_DOCUMENT_TOKENS)
    assert model.tokenizer is not None  # load_model always loads one
    vocabulary = len(model.tokenizer.get_vocab())
    rng = np.random.default_rng(0)
    lengths = [longest // 2] * (_DOCUMENTS // 2) + [longest] * (_DOCUMENTS // 2)
    return [Tokens.labelled_from(rng.integers(0, vocabulary, length), 1) for length in lengths]


def _collect(
    collector: RowCollector, model: LanguageModel, documents: list[Tokens], budget_tokens: int
) -> Float[Tensor, "n D"]:
    """Returns the rows of documents in float64, with at most `budget_tokens` in a batch."""
    rows = torch.zeros(len(documents), collector.dimensions, dtype=torch.float64)
    for batch in iter_batches(documents, budget_tokens, model.device):
        rows[batch.indices] = collector.collect(batch)[0].double().cpu()
    return rows


def _min_cosine(rows: Float[Tensor, "n D"], others: Float[Tensor, "n D"]) -> float:
    return torch.nn.functional.cosine_similarity(rows, others, dim=1).min().item()
