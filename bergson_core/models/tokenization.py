"""TODO"""

from collections.abc import Sequence
from typing import Any

from bergson_core.data.batching import Tokens, require_max_tokens
from bergson_core.data.documents import tokenize_records
from bergson_core.models.language_model import LanguageModel, context_limit
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.record import Record, record_from_stored


def tokenize_documents(records: Sequence[Record], spec: BuildSpec, model: LanguageModel) -> list[Tokens]:
    """Tokens of each record. Raises `TooLong` naming the document that does not fit."""
    assert model.tokenizer is not None  # load_model always gives one
    tokens = tokenize_records(model.tokenizer, records, spec.gradients.loss)
    limit = context_limit(model, spec.gradients.max_tokens)
    for record, one in zip(records, tokens, strict=True):
        require_max_tokens(one, limit, f"document {record.id!r}")
    return tokens


def tokenize_stored(rows: Sequence[dict[str, Any]], spec: BuildSpec, model: LanguageModel) -> list[Tokens]:
    """Tokens of documents that an index keeps (`texts.document`), as it was built from them, but for their weights."""
    records = [record_from_stored(row["id"], row["prompt"], row["completion"], spec.columns) for row in rows]
    return tokenize_documents(records, spec, model)
