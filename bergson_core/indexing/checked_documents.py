"""The documents of a build or an append, read and checked before any gradient is computed.

A document that cannot be indexed stops the build, or is left out (`on_bad_document`). One that is too long stops it, is
left out, or is cut (`long_documents`). What is left are the rows of the index.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from bergson_core.data.documents import READ_CHUNK_SIZE, Documents
from bergson_core.errors import InvalidInput, TooLong
from bergson_core.models.batch_budget import find_token_limit
from bergson_core.models.index_tokens import tokenize_documents
from bergson_core.models.language_model import LanguageModel, token_limits
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.documents import (
    MAX_LISTED,
    DocumentReport,
    LeftOutDocument,
    chunk_id,
    find_id_problem,
)
from bergson_core.schemas.record import Record
from bergson_core.tokens.cutting import TextPart, iter_text_parts
from bergson_core.tokens.document_parts import DocumentParts, PartTable
from bergson_core.tokens.document_tokens import tokenize_records
from bergson_core.tokens.token_limits import TokenLimits
from bergson_core.tokens.tokenization import Tokens
from bergson_core.tokens.word_joins import JoinChecker, MissingSpaceCounter
from bergson_core.utils.progress import ProgressCallback, StageProgress

_MAX_NAMED = 5
"""Documents that an error names one by one."""


@dataclass(frozen=True)
class CheckedDocuments:
    """Documents that are all valid.

    Attributes:
        spec: How the documents are tokenised.
        documents: The documents, one for each row of the index. They stay on disk.
        longest_tokens: The number of tokens in the longest sequence that the model reads.
        content_sha256: A hash of the text, metadata and weights of all documents, and of their ids if these come from a
            column.
        read: The number of documents that were read, with those that are left out.
        report: What was left out or cut.
        reference_sha256: The hash of the reference model that preference pairs have their margins of, or None.
    """

    spec: BuildSpec
    documents: Documents
    longest_tokens: int
    content_sha256: str
    read: int
    report: DocumentReport
    reference_sha256: str | None = None

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
        InvalidInput: A document cannot be indexed, or its id is not unique or cannot be used in a URL; the message
            names it. Or no document is left.
        TooLong: Documents have more tokens than the model or the spec allows. The message counts them all.
    """
    documents.require_valid_ids()
    checker = _Checker(spec, documents, model, _find_limits(spec, model))
    progress = StageProgress("read", len(documents))
    report(progress.now())
    for start in range(0, len(documents), READ_CHUNK_SIZE):
        positions = range(start, min(start + READ_CHUNK_SIZE, len(documents)))
        tokens = sum(checker.check(positions))
        report(progress.advance(len(positions), tokens).model_copy(update={"documents": checker.report}))
    return checker.finish()


def _find_limits(spec: BuildSpec, model: LanguageModel) -> TokenLimits:
    """Returns which documents the model takes.

    Raises:
        InvalidInput: Documents are to be cut, and it is not stated where, or the tokenizer cannot do it.
    """
    limits = token_limits(model, spec.gradients.max_tokens)
    if spec.long_documents != "error":
        if limits.max_tokens is None:
            raise InvalidInput(
                f"long_documents is {spec.long_documents!r}, and the model states no context to cut documents to: "
                "expected gradients.max_tokens"
            )
        if 2 * spec.chunk_overlap > limits.max_tokens:
            raise InvalidInput(
                f"chunk_overlap is {spec.chunk_overlap}: expected at most half of the {limits.max_tokens} tokens that "
                "a document may have"
            )
        if limits.tokenizer is None or not limits.tokenizer.is_fast:
            raise InvalidInput(
                f"{type(limits.tokenizer).__name__} does not report which characters a token stands for; expected a "
                "fast tokenizer (a tokenizer.json) where long documents are cut"
            )
    if limits.max_tokens is None:
        modules = model.select_for(spec.gradients)
        return replace(limits, max_tokens=find_token_limit(model, modules))
    return limits


@dataclass
class _Checker:
    """Checks documents chunk by chunk, and gathers what becomes of them."""

    spec: BuildSpec
    documents: Documents
    model: LanguageModel
    limits: TokenLimits
    report: DocumentReport = field(default_factory=DocumentReport)
    parts: PartTable = field(default_factory=PartTable)
    longest: int = 0

    def __post_init__(self) -> None:
        self._digest = hashlib.sha256()
        self._too_long: list[str] = []
        self._too_long_count = 0
        assert self.model.tokenizer is not None  # load_model always loads one
        self._spaces = MissingSpaceCounter(JoinChecker(self.model.tokenizer))

    def check(self, positions: range) -> Iterator[int]:
        """Checks the documents at these positions, and yields the number of tokens of each part that is indexed."""
        for position, tokenized in self._tokenize(positions):
            if isinstance(tokenized, InvalidInput):
                self._leave_out(position, tokenized)
                continue
            record, tokens = tokenized
            self._spaces.add([record])
            try:
                self.limits.require_known(tokens, "the text")
                lengths = self._add(position, record, tokens.longest)
            except TooLong as error:
                self._leave_out_long(position, tokens.longest, error)
                continue
            except InvalidInput as error:
                self._leave_out(position, error)
                continue
            # Ids that are only numbers are left out: when an append is repeated that is already in the index, its
            # documents get other numbers.
            self._digest.update(repr(record if self.spec.columns.id else replace(record, id="")).encode())
            if record.pair is not None:
                self._digest.update(repr(record.pair).encode())
            self.longest = max(self.longest, *lengths)
            yield sum(lengths)

    def finish(self) -> CheckedDocuments:
        """Returns the documents that are left.

        Raises:
            TooLong: Some are too long, and are neither to be cut nor to be left out.
            InvalidInput: None is left, or chunks would get the ids of other documents.
        """
        if self._too_long_count:
            more = self._too_long_count - len(self._too_long)
            raise TooLong(
                f"{self._too_long_count} of {len(self.documents)} documents have more tokens than the "
                f"{self.limits.max_tokens} allowed: {', '.join(self._too_long)}{f' and {more} more' * (more > 0)}. "
                "Expected one of long_documents truncate (only the beginning of each is indexed), chunk (each is cut "
                "into several documents) or error (nothing is built, as now), or on_bad_document skip (they are left "
                "out)"
            )
        if not len(self.parts):
            raise InvalidInput(f"no document is left of {self.documents.name}. {self.report.sentences()[0]}")
        self._spaces.log_warning("documents")
        documents = self.documents
        if not self.parts.is_everything(len(documents)):
            self._digest.update(self.parts.to_bytes())
            documents = DocumentParts.of(documents, self.parts)
            documents.require_distinct_ids()
        return CheckedDocuments(
            self.spec, documents, self.longest, self._digest.hexdigest(), len(self.documents), self.report
        )

    def _tokenize(self, positions: range) -> Iterator[tuple[int, tuple[Record, Tokens] | InvalidInput]]:
        """Yields each position with the document and its tokens, or with the reason for which it has none.

        Documents are tokenised together, and where that fails, in halves, until the one at fault is alone.
        """
        try:
            records = self.documents.read(positions)
            assert self.model.tokenizer is not None  # load_model always loads one
            settings = self.spec.gradients
            tokens = tokenize_records(
                self.model.tokenizer,
                records,
                settings.loss,
                chat_date=self.model.chat_date,
                preference_beta=settings.preference_beta,
            )
        except InvalidInput as error:
            if len(positions) == 1:
                yield positions[0], error
                return
            middle = len(positions) // 2
            yield from self._tokenize(positions[:middle])
            yield from self._tokenize(positions[middle:])
        else:
            yield from zip(positions, zip(records, tokens, strict=True), strict=True)

    def _add(self, position: int, record: Record, tokens: int) -> list[int]:
        """Adds a document, or the parts that it is cut into, and returns the number of tokens of each.

        Raises:
            TooLong: The document is too long and is not to be cut.
            InvalidInput: It cannot be cut.
        """
        limit = self.limits.max_tokens
        if self.spec.long_documents == "error" or limit is None or tokens <= limit:
            self.limits.require_length(tokens, "the text")
            self.parts.add_whole(position)
            return [tokens]
        parts = self._cut(record.prompt, limit)
        if self.spec.long_documents == "truncate":
            self.parts.add_beginning(position, parts[0])
            self.report = self.report.plus(DocumentReport(truncated=1))
        else:
            if problem := find_id_problem(chunk_id(record.id, len(parts))):
                raise InvalidInput(
                    f"it is cut into {len(parts)} chunks, and the id of the last one {problem}"
                )
            self.parts.add_chunks(position, parts)
            self.report = self.report.plus(DocumentReport(chunked=1))
        return [part.tokens for part in parts]

    def _cut(self, text: str, limit: int) -> list[TextPart]:
        assert self.model.tokenizer is not None  # checked by `_find_limits`
        parts = iter_text_parts(self.model.tokenizer, text, limit, self.spec.chunk_overlap)
        return [next(parts)] if self.spec.long_documents == "truncate" else list(parts)

    def _leave_out_long(self, position: int, tokens: int, error: TooLong) -> None:
        """Leaves out a document that is too long, or notes it for the error that counts them all."""
        if self.spec.on_bad_document == "skip":
            self._leave_out(position, error)
            return
        self._too_long_count += 1
        if len(self._too_long) < _MAX_NAMED:
            self._too_long.append(f"{self._name(position)} has {tokens}")

    def _leave_out(self, position: int, error: InvalidInput) -> None:
        """Leaves a bad document out. Raises the error, with the document's name, if bad documents are errors."""
        if self.spec.on_bad_document == "error":
            raise type(error)(f"{self._name(position)}: {error}") from error
        listed: tuple[LeftOutDocument, ...] = ()
        if len(self.report.first_left_out) < MAX_LISTED:
            (document_id,), row = self.documents.read_ids([position]), self.documents.row(position)
            listed = (LeftOutDocument(id=document_id, row=row, reason=str(error)),)
        self.report = self.report.plus(DocumentReport(left_out=1, first_left_out=listed))

    def _name(self, position: int) -> str:
        (document_id,) = self.documents.read_ids([position])
        return f"document {document_id!r} (row {self.documents.row(position)})"
