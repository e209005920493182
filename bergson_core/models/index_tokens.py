"""Tokenises documents for the model of an index: those that are to be indexed, and those that an index has stored."""

from collections.abc import Sequence
from typing import Any

from bergson_core.errors import InvalidInput
from bergson_core.models.language_model import LanguageModel, token_limits
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.record import Record, record_from_stored, stored_weight
from bergson_core.tokens.document_tokens import tokenize_records
from bergson_core.tokens.tokenization import Tokens


def tokenize_documents(records: Sequence[Record], spec: BuildSpec, model: LanguageModel) -> list[Tokens]:
    """Returns the tokens of documents, with the labels and weights that `spec` gives them.

    Args:
        records: The documents.
        spec: What the index is built from.
        model: The model of the index, with its tokenizer.

    Raises:
        TooLong: A document has more tokens than the model takes or `spec` allows; the message names it.
        InvalidInput: A document has a token that the model has no embedding for, a chat cannot be laid out by the
            tokenizer's chat template, or the tokenizer failed on a text.
    """
    assert model.tokenizer is not None  # load_model always loads one
    settings = spec.gradients
    documents = tokenize_records(
        model.tokenizer,
        records,
        settings.loss,
        chat_date=model.chat_date,
        preference_beta=settings.preference_beta,
    )
    limits = token_limits(model, settings.max_tokens)
    for record, tokens in zip(records, documents, strict=True):
        limits.require(tokens, f"document {record.id!r}")
    return documents


def tokenize_stored(rows: Sequence[dict[str, Any]], spec: BuildSpec, model: LanguageModel) -> list[Tokens]:
    """Returns the tokens of documents that an index has stored, with the labels and weights that they were built with.

    Args:
        rows: Rows of the index's document tables (`storage.document_table`).
        spec: What the index was built from.
        model: The model of the index, with its tokenizer.

    Raises:
        TooLong: A document has more tokens than the model takes or `spec` allows; the message names it.
        InvalidInput: The documents had weights, and were added by a release that did not store them.
    """
    records = []
    for row in rows:
        weight = stored_weight(row, spec.columns)
        if weight is None:
            raise InvalidInput(
                f"the weights of the documents (column {spec.columns.weight!r}) are not in the index: release 0.1.0, "
                f"which added document {row['id']!r}, did not store them; build the index again to unlearn documents "
                "or to train on them"
            )
        records.append(record_from_stored(row, spec.columns, weight))
    return tokenize_documents(records, spec, model)
