"""Tokenises documents: records, and the rows of a dataset, chunk by chunk."""

from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any, Final

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from bergson_core.data.column_values import require_weights
from bergson_core.data.documents import READ_CHUNK_SIZE, as_slice, documents_from_dataset
from bergson_core.data.row_chunks import missing_column
from bergson_core.errors import ColumnNotFound, InvalidInput
from bergson_core.schemas.build import GradientSpec, Loss
from bergson_core.schemas.record import Record
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.tokens.chat_template import tokenize_chats
from bergson_core.tokens.preference_pairs import tokenize_pairs
from bergson_core.tokens.token_columns import read_token_rows
from bergson_core.tokens.token_limits import NO_LIMITS, TokenLimits
from bergson_core.tokens.tokenization import Tokens, tokenize, with_loss_weight
from bergson_core.tokens.word_joins import JoinChecker, MissingSpaceCounter

DEFAULT_BETA: Final[float] = GradientSpec.model_fields["preference_beta"].default


def tokenize_records(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    loss: Loss = "sum",
    *,
    label_end: bool = True,
    chat_date: date | None = None,
    preference_beta: float = DEFAULT_BETA,
) -> list[Tokens]:
    """Tokenises documents that all have messages, or all have completions, or all have neither, or are all pairs.

    Args:
        tokenizer: Tokenizer of the model.
        records: The documents.
        loss: Whether a document's loss is the sum over its labelled tokens or their mean.
        label_end: Whether special tokens that the tokenizer puts after a text are labelled, as in `tokenize`.
        chat_date: The date that a chat template is told if it asks for today's; by default it is today's.
        preference_beta: β of the loss of preference pairs.

    Raises:
        InvalidInput: A document cannot be tokenised, or preference pairs are to have the mean of a loss.
    """
    chats = [record.messages for record in records if record.messages is not None]
    completions = [record.completion for record in records if record.completion is not None]
    if any(record.pair is not None for record in records):
        if loss != "sum":
            raise InvalidInput(
                "the loss of a preference pair compares log-probabilities, which are sums: expected loss sum"
            )
        tokenized = tokenize_pairs(tokenizer, records, preference_beta, chat_date)
    elif chats:
        names = [f"document {record.id!r}" for record in records]
        tokenized = tokenize_chats(tokenizer, chats, chat_date, names)
    else:
        prompts = [record.prompt for record in records]
        tokenized = tokenize(tokenizer, prompts, completions or None, label_end=label_end)
    return [
        with_loss_weight(tokens, loss, record.weight)
        for tokens, record in zip(tokenized, records, strict=True)
    ]


def iter_token_chunks(
    tokenizer: PreTrainedTokenizerBase | None,
    dataset: Dataset,
    columns: ColumnsSpec,
    limits: TokenLimits = NO_LIMITS,
    loss: Loss = "sum",
    numbers: Sequence[int] | None = None,
    *,
    label_end: bool = True,
    chat_date: date | None = None,
    preference_beta: float = DEFAULT_BETA,
) -> Iterator[list[Tokens]]:
    """Yields the tokens of documents of a dataset in order, `READ_CHUNK_SIZE` documents at a time.

    Args:
        tokenizer: Tokenizer of the model, or None to take the tokens from the column `input_ids` and those beside it
            (`tokens/token_columns.py`). Without labels or a mask all tokens but the first are labelled.
        dataset: The dataset.
        columns: The columns to read and what they hold; without a tokenizer, only that of the weights.
        limits: Which tokens the model takes, and how many.
        loss: Whether a document's loss is the sum over its labelled tokens or their mean.
        numbers: Numbers of the rows to read; by default all.
        label_end: Whether special tokens that the tokenizer puts after a text are labelled, as in `tokenize`.
        chat_date: The date that a chat template is told if it asks for today's; by default it is today's.
        preference_beta: β of the loss of preference pairs.

    Raises:
        TooLong: A document has too many tokens.
        ColumnNotFound: A column is missing.
        InvalidInput: The dataset is empty, a value cannot be read, or a column says something of the tokens that cannot
            be honoured.
    """
    if tokenizer is None and "input_ids" not in dataset.column_names:
        raise ColumnNotFound("expected a tokenizer, or a column 'input_ids' that holds tokens")
    documents = documents_from_dataset(dataset, columns) if tokenizer is not None else None
    spaces = MissingSpaceCounter(JoinChecker(tokenizer)) if tokenizer is not None else None
    rows = range(len(dataset)) if numbers is None else numbers
    for start in range(0, len(rows), READ_CHUNK_SIZE):
        indices = rows[start : start + READ_CHUNK_SIZE]
        if documents is None or tokenizer is None or spaces is None:
            values = dataset[as_slice(indices)]
            weights = _read_weights(values, columns.weight, indices)
            tokenized = read_token_rows(values, indices, columns.weight)
            chunk = [
                with_loss_weight(tokens, loss, weight)
                for tokens, weight in zip(tokenized, weights, strict=True)
            ]
        else:
            records = documents.read(indices)
            chunk = tokenize_records(
                tokenizer,
                records,
                loss,
                label_end=label_end,
                chat_date=chat_date,
                preference_beta=preference_beta,
            )
            spaces.add(records)
        for index, tokens in zip(indices, chunk, strict=True):
            limits.require(tokens, f"row {index}")
        yield chunk
    if spaces is not None:
        spaces.log_warning("rows")


def _read_weights(values: dict[str, Any], column: str | None, indices: Sequence[int]) -> list[float]:
    """Returns the weights of the documents of a tokenised dataset: 1 without a column that has them."""
    if column is None:
        return [1.0] * len(indices)
    if column not in values:
        raise missing_column("the dataset", column, values)
    weights = [getattr(value, "item", lambda value=value: value)() for value in values[column]]
    return require_weights(
        weights, column, lambda position, name: f"row {indices[position]} of column {name!r}"
    )
