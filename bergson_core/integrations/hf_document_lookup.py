"""Finds the documents of a tokenised dataset that the samples of a training run's batches are."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
from datasets import Dataset
from jaxtyping import Int
from torch import Tensor

from bergson_core.data.documents import READ_CHUNK_SIZE
from bergson_core.errors import InvalidInput
from bergson_core.tokens.token_columns import LABEL_COLUMNS, TOKEN_COLUMNS, read_token_row, read_token_rows
from bergson_core.tokens.tokenization import Tokens


class DocumentLookup:
    """Finds documents of a dataset by 64-bit hashes of their tokens and labels. Takes 32 bytes for each document.

    Args:
        dataset: The documents, with a column `input_ids`.
        pad_token_id: Id of the token that collators pad with. They take the labels from every token of this id, even
            where it ends a document, so that labels are not compared there.

    Raises:
        InvalidInput: A column of the dataset changes what its tokens mean in a way that cannot be honoured.
    """

    def __init__(self, dataset: Dataset, pad_token_id: int | None) -> None:
        self._pad_token_id = pad_token_id
        chunks = cast(Iterator[dict[str, Any]], dataset.iter(READ_CHUNK_SIZE))
        by_tokens: list[int] = []
        by_labels: list[int] = []
        for chunk in chunks:
            first = len(by_tokens)
            for tokens in read_token_rows(chunk, range(first, first + len(chunk["input_ids"]))):
                by_tokens.append(_hash(tokens.ids))
                by_labels.append(_hash(tokens.ids, self._compared_labels(tokens)))
        self._by_tokens, self._by_labels = _SortedHashes(by_tokens), _SortedHashes(by_labels)

    def find_samples(self, batch: Mapping[str, Any]) -> list[Int[np.ndarray, " k"]]:
        """Returns for each sample of a batch the numbers of all documents with exactly these tokens and labels.

        Args:
            batch: What the model is called with. Without labels, samples are found by their tokens alone.

        Raises:
            InvalidInput: A sample is no document, or the batch has something that cannot be honoured.
        """
        rows, has_labels = _split_batch(batch), batch.get("labels") is not None
        return [self._find(read_token_row(row, "a sample of a batch"), has_labels) for row in rows]

    def _find(self, tokens: Tokens, has_labels: bool) -> Int[np.ndarray, " k"]:
        numbers = self._by_tokens.find(_hash(tokens.ids))
        if not len(numbers):
            raise InvalidInput(
                f"a batch holds {len(tokens.ids)} tokens that are no document of the dataset: expected its rows as "
                "they are, neither packed, cut nor changed on the way, and an attention_mask where they are padded"
            )
        if has_labels:
            numbers = self._by_labels.find(_hash(tokens.ids, self._compared_labels(tokens)))
            if not len(numbers):
                raise InvalidInput(
                    "a batch has other labels than the dataset for the same tokens: expected a dataset that says which "
                    f"tokens are labelled, in one of the columns {', '.join(LABEL_COLUMNS)}"
                )
        return numbers

    def _compared_labels(self, tokens: Tokens) -> np.ndarray:
        if self._pad_token_id is None:
            return tokens.labels
        return tokens.labels & (tokens.ids != self._pad_token_id)


class _SortedHashes:
    """The numbers of documents by their hashes."""

    def __init__(self, hashes: list[int]) -> None:
        array = np.array(hashes, dtype=np.uint64)
        self._order = np.argsort(array, kind="stable")
        self._sorted = array[self._order]

    def find(self, value: int) -> Int[np.ndarray, " k"]:
        """Returns the numbers of all documents with this hash."""
        first, end = (np.searchsorted(self._sorted, np.uint64(value), side) for side in ("left", "right"))
        return self._order[first:end]


def _split_batch(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the columns of each sample of a batch. Raises `InvalidInput` for a column that has no row for each."""
    ids: Tensor = batch["input_ids"]
    rows: list[dict[str, Any]] = [{} for _ in range(len(ids))]
    for name in (name for name in TOKEN_COLUMNS if batch.get(name) is not None):
        value = batch[name]
        if isinstance(value, Tensor):
            try:
                value = value.expand(ids.shape).cpu().numpy()
            except RuntimeError:
                raise InvalidInput(
                    f"a batch has {name!r} of shape {list(value.shape)}; expected {list(ids.shape)}, as input_ids: a "
                    "document per row, not packed"
                ) from None
        for row, part in zip(
            rows, value if isinstance(value, np.ndarray) else [value] * len(rows), strict=True
        ):
            row[name] = part
    return rows


def _hash(tokens: np.ndarray, labels: np.ndarray | None = None) -> int:
    content = tokens.astype("<i8").tobytes() + (b"" if labels is None else labels.tobytes())
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
