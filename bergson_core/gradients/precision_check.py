"""Does a document's gradient depend on its company? Attention kernels and low precision can make it so.

Legend: n documents, D numbers a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bergson_core.data.batching import Tokens, batches
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.loading import LanguageModel, load_model
from bergson_core.schemas.build import Dtype

MIN_SAME_COSINE: Final = 0.99
"""Cosine from which two rows count as the same."""
_DOCUMENTS, _LONGEST = 8, 128


@dataclass(frozen=True)
class PrecisionCheck:
    """Least cosine over all documents of a row with the row of the same document alone.

    batched    in a batch of documents of its length, in the same precision
    padded     in a batch with longer documents, in the same precision
    precision  alone in both, this precision against float32
    """

    dtype: Dtype
    batched: float
    padded: float
    precision: float

    @property
    def passed(self) -> bool:
        return min(self.batched, self.padded, self.precision) >= MIN_SAME_COSINE


def check_precision(
    name: str, revision: str | None = None, dtypes: Sequence[Dtype] = ("float32", "bfloat16")
) -> list[PrecisionCheck]:
    """One check for each precision, on documents of random tokens, by rows of 16 × 16 numbers a layer.

    Raises `ModelNotFound`.
    """
    exact, checks = None, []
    for dtype in dict.fromkeys(("float32", *dtypes)):
        model = load_model(name, revision, dtype)
        collector = RowCollector(model, GradientProcessor(16))
        documents = _documents(model)
        alone = _rows(collector, model, documents, 1)
        exact = alone if exact is None else exact
        short, long = documents[: _DOCUMENTS // 2], documents[_DOCUMENTS // 2 :]
        batched = torch.cat([_rows(collector, model, same, 10**9) for same in (short, long)])
        padded = _rows(collector, model, documents, 10**9)
        if dtype in dtypes:
            least = (_least_cosine(alone, other) for other in (batched, padded, exact))
            checks.append(PrecisionCheck(dtype, *least))
    return checks


def recommend_dtype(checks: Sequence[PrecisionCheck]) -> Dtype | None:
    """The cheapest precision that passed, None where none did."""
    passed = {check.dtype for check in checks if check.passed}
    order: tuple[Dtype, ...] = ("bfloat16", "float32", "float64")
    return next((dtype for dtype in order if dtype in passed), None)


def _documents(model: LanguageModel) -> list[Tokens]:
    """Half of them half as long as the others."""
    longest = min(_LONGEST, model.max_tokens or _LONGEST)
    assert model.tokenizer is not None  # load_model always gives one
    vocabulary = len(model.tokenizer.get_vocab())
    rng = np.random.default_rng(0)
    lengths = [longest // 2] * (_DOCUMENTS // 2) + [longest] * (_DOCUMENTS // 2)
    return [Tokens.labelled_from(rng.integers(0, vocabulary, length), 1) for length in lengths]


def _rows(
    collector: RowCollector, model: LanguageModel, documents: list[Tokens], budget_tokens: int
) -> Float[Tensor, "n D"]:
    rows = torch.zeros(len(documents), collector.dimensions, dtype=torch.float64)
    for batch in batches(documents, budget_tokens, model.device):
        rows[batch.numbers] = collector.collect(batch)[0].double().cpu()
    return rows


def _least_cosine(one: Float[Tensor, "n D"], other: Float[Tensor, "n D"]) -> float:
    return torch.nn.functional.cosine_similarity(one, other, dim=1).min().item()
