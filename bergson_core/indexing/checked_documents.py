"""The documents of a build or an append, read and checked before any gradient is computed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bergson_core.data.batching import Tokens
from bergson_core.data.documents import Documents
from bergson_core.data.word_joins import JoinChecker, MissingSpaceCounter
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.tokenization import tokenize_documents
from bergson_core.schemas.build import BuildSpec
from bergson_core.utils.progress import ProgressCallback, StageProgress


@dataclass(frozen=True)
class CheckedDocuments:
    """Documents that are all valid.

    Attributes:
        spec: How the documents are tokenised.
        documents: The documents. They stay on disk.
        longest_tokens: The number of tokens in the longest document.
        content_sha256: A hash of the text, metadata and weights of all documents, and of their ids if these come from a
            column.
    """

    spec: BuildSpec
    documents: Documents
    longest_tokens: int
    content_sha256: str

    def __len__(self) -> int:
        return len(self.documents)

    def tokenize(self, model: LanguageModel, numbers: Sequence[int]) -> list[Tokens]:
        """Reads the documents of these numbers and returns their tokens."""
        return tokenize_documents(self.documents.read(numbers), self.spec, model)


def check_documents(
    spec: BuildSpec, documents: Documents, model: LanguageModel, report: ProgressCallback
) -> CheckedDocuments:
    """Reads and tokenises every document once, to check it.

    A warning is logged if most completions lack the space that the tokenizer expects before them.

    Raises:
        InvalidInput: A document is not text, or its id is not unique or cannot stand in a URL. The message names it.
        TooLong: A document has more tokens than the model or the spec allows.
    """
    documents.require_valid_ids()
    assert model.tokenizer is not None  # load_model always loads one
    spaces = MissingSpaceCounter(JoinChecker(model.tokenizer))
    digest, progress, longest = hashlib.sha256(), StageProgress("read", len(documents)), 0
    for chunk in documents.iter_chunks():
        lengths = [len(tokens.ids) for tokens in tokenize_documents(chunk, spec, model)]
        longest = max(longest, *lengths)
        spaces.add(chunk)
        for record in chunk:
            # Ids that are only numbers are left out: when an append is repeated that is already in the index, its
            # documents get other numbers.
            digest.update(repr(record if spec.columns.id else replace(record, id="")).encode())
        report(progress.advance(len(chunk), sum(lengths)))
    spaces.log_warning("documents")
    return CheckedDocuments(spec, documents, longest, digest.hexdigest())
