"""Asks the reference model how much likelier each chosen completion is than the rejected one.

<output>/reference.safetensors   the margins, float64 [n], with hashes of them and of what they are of; until the index
                                 is published

A build stores the margins with the pairs, so that the reference is needed by builds and appends alone. It is loaded
after the documents were checked, and is gone before the first gradient is computed. A build that is resumed reads the
margins of the run before, since a pass in other batches could round them differently.

Legend: n pairs.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from bergson_core.data.documents import READ_CHUNK_SIZE, Documents
from bergson_core.errors import InvalidInput, TooLong
from bergson_core.indexing.build_context import BuildContext
from bergson_core.indexing.checked_documents import CheckedDocuments
from bergson_core.models.batch_budget import find_batch_budget
from bergson_core.models.forward_backward import compute_document_losses
from bergson_core.models.language_model import LanguageModel, token_limits
from bergson_core.models.loading import load_model
from bergson_core.schemas.record import Record
from bergson_core.storage.layout import REFERENCE_FILE
from bergson_core.tokens.tokenization import Tokens
from bergson_core.utils.atomic_files import write_durably
from bergson_core.utils.background import run_in_thread, stop_if_abandoned
from bergson_core.utils.progress import StageProgress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DocumentsWithMargins(Documents):
    """The documents of `source`, which are pairs, with these margins of the reference [n]."""

    source: Documents | None = None
    margins: Sequence[float] = ()

    def __len__(self) -> int:
        return len(self.margins)

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Returns the records at these positions."""
        assert self.source is not None
        return [
            replace(record, pair=record.pair and replace(record.pair, reference_margin=self.margins[index]))
            for index, record in zip(indices, self.source.read(indices), strict=True)
        ]

    def read_ids(self, indices: Sequence[int]) -> list[str]:
        """Returns the ids at these positions."""
        assert self.source is not None
        return self.source.read_ids(indices)

    def read_whole_ids(self, indices: Sequence[int]) -> list[str]:
        """Returns the ids of the documents that these are parts of."""
        assert self.source is not None
        return self.source.read_whole_ids(indices)

    def row(self, index: int) -> int:
        """Returns the number of a document's row in the dataset."""
        assert self.source is not None
        return self.source.row(index)


def load_reference(context: BuildContext) -> LanguageModel | None:
    """Loads the reference that a spec names, or returns None if it names none.

    Raises:
        ModelNotFound: The reference cannot be loaded.
    """
    spec = context.spec
    if spec.reference_model is None:
        return None
    context.report(StageProgress("reference", 0).now())
    return load_model(spec.reference_model, spec.reference_revision, spec.dtype, device_map=spec.device_map)


def add_reference_margins(
    context: BuildContext, documents: CheckedDocuments, model: LanguageModel, directory: Path
) -> CheckedDocuments:
    """Returns the documents with the margins of the reference model that the spec names; without one, as they are.

    Args:
        context: The build or append.
        documents: The documents, which are preference pairs if there is a reference.
        model: The model of the index, whose tokenizer and labels the reference is asked with.
        directory: Where the margins are kept until the documents are in the index.

    Raises:
        ModelNotFound: The reference cannot be loaded.
        InvalidInput: It has no embedding for a token of the documents.
        TooLong: A sequence is longer than the reference takes.
    """
    reference = load_reference(context)
    if reference is None:
        return documents
    source = hashlib.sha256(f"{reference.sha256}\0{documents.content_sha256}".encode()).hexdigest()
    path = directory / REFERENCE_FILE
    margins = _read(path, source)
    if margins is None:
        margins = compute_margins(context, documents, model, reference)
        metadata = {"source": source, "sha256": hashlib.sha256(margins.tobytes()).hexdigest()}
        write_durably(path, save({"margins": torch.from_numpy(margins)}, metadata))
    pairs = documents.documents
    own = {field.name: getattr(pairs, field.name) for field in fields(Documents)}
    with_margins = DocumentsWithMargins(**own, source=pairs, margins=margins.tolist())
    return replace(
        documents, documents=with_margins, content_sha256=source, reference_sha256=reference.sha256
    )


def compute_margins(
    context: BuildContext, documents: CheckedDocuments, model: LanguageModel, reference: LanguageModel
) -> Float64[np.ndarray, " n"]:
    """Returns log p(chosen) - log p(rejected) of each pair."""
    limits, margins = token_limits(reference), np.zeros(len(documents))
    budget = find_batch_budget(reference, {}, documents.longest_tokens)
    progress = StageProgress("reference", len(documents))
    for start in range(0, len(documents), READ_CHUNK_SIZE):
        numbers = range(start, min(start + READ_CHUNK_SIZE, len(documents)))
        pairs = documents.tokenize(model, numbers)
        sequences: list[Tokens] = []
        for document_id, pair in zip(documents.documents.read_ids(numbers), pairs, strict=True):
            try:
                limits.require(pair, f"document {document_id!r}")
            except (InvalidInput, TooLong) as error:
                raise type(error)(f"reference_model: {error}") from error
            sequences += pair.sequences
        losses = run_in_thread(
            lambda texts=sequences: compute_document_losses(reference, texts, budget, stop_if_abandoned),
            lambda: context.report(progress.now()),
        )
        margins[start : start + len(pairs)] = losses[1::2] - losses[::2]
        context.report(progress.advance(len(pairs), sum(len(pair.ids) for pair in pairs)))
    return margins


def _read(path: Path, source: str) -> Float64[np.ndarray, " n"] | None:
    """Returns the margins that an earlier run has written, or None if they are of other documents, or damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            margins = file.get_tensor("margins")
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        logger.warning("%s cannot be read, so that the reference is asked again: %s", path, error)
        return None
    if metadata.get("source") != source:
        return None
    if hashlib.sha256(margins.numpy().tobytes()).hexdigest() != metadata.get("sha256"):
        logger.warning("%s was altered, so that the reference is asked again", path)
        return None
    return margins.numpy()
