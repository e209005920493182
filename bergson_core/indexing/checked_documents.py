"""TODO"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bergson_core.data.batching import Tokens
from bergson_core.data.dataset import Documents
from bergson_core.models.loading import LanguageModel
from bergson_core.models.tokenization import tokenize_documents
from bergson_core.schemas.build import BuildSpec
from bergson_core.utils.progress import ProgressCallback, StageProgress


@dataclass(frozen=True)
class CheckedDocuments:
    """Documents that were read and checked before any gradient is computed; the longest has `longest` tokens."""

    spec: BuildSpec
    documents: Documents
    longest_tokens: int
    content_sha256: str

    @classmethod
    def survey(
        cls, spec: BuildSpec, documents: Documents, model: LanguageModel, report: ProgressCallback
    ) -> "CheckedDocuments":
        """Looks at every one of `documents`. Raises `InvalidInput` for one that cannot be taken, naming it."""
        documents.check_ids()
        digest, clock, longest = hashlib.sha256(), StageProgress("read", len(documents)), 0
        for chunk in documents.chunks():
            lengths = [len(one.ids) for one in tokenize_documents(chunk, spec, model)]
            longest = max(longest, *lengths)
            for record in chunk:
                # Without its number, which is another one when an append that is done already is tried again.
                digest.update(repr(record if spec.columns.id else replace(record, id="")).encode())
            report(clock.advance(len(chunk), sum(lengths)))
        return cls(spec, documents, longest, digest.hexdigest())

    def tokenize(self, model: LanguageModel, numbers: Sequence[int]) -> list[Tokens]:
        """Tokens of the documents of these numbers."""
        return tokenize_documents(self.documents.read(numbers), self.spec, model)
