"""`collect_gradients`: a dataset with the projected gradient of each document as a new column.

Legend: n documents, s tokens of a document, D numbers per row.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets
from torch import nn
from transformers import PreTrainedTokenizerBase

from bergson_core.errors import InvalidInput
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.processor_fitting import fit_processor
from bergson_core.gradients.row_collector import MAX_TOKEN_ROW_NUMBERS, RowCollector, collect_rows
from bergson_core.models.batch_budget import find_batch_budget
from bergson_core.models.language_model import LanguageModel, as_language_model, token_limits
from bergson_core.schemas.build import GradientSpec, Loss
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.tokens.document_tokens import iter_token_chunks
from bergson_core.tokens.tokenization import Tokens
from bergson_core.utils.scratch_directories import scratch_directory_until_exit


def collect_gradients(
    model: nn.Module,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase | None = None,
    processor: GradientProcessor | None = None,
    *,
    columns: ColumnsSpec | None = None,
    loss: Loss = "sum",
    per_token: bool = False,
    modules: str | Iterable[str] | None = None,
    budget_tokens: int | None = None,
) -> Dataset:
    """Returns `dataset` with the gradient of each document as a new column, and the document's loss as another.

    A gradient is that of the cross-entropy of the document's labelled tokens: of all tokens, of the completion alone
    where there is a completion column, of what the assistant says where there is a messages column. It is multiplied by
    the number in the weight column, where there is one. The gradients lie in a temporary file that the dataset maps, so
    that memory does not grow with the dataset. The model is left as it was.

    Args:
        model: A causal language model, in memory and on its device.
        dataset: The n documents.
        tokenizer: The model's tokenizer. Without one, the column `input_ids` is used. Padding that `attention_mask`
            marks is left out, and `labels`, `completion_mask`, `assistant_masks` or `loss_mask` say which tokens are
            labelled. A row that holds several packed documents is an error.
        processor: How gradients are normalized and projected. By default the one that `fit_processor` returns for this
            dataset: Adafactor, fitted from a sample, and 16 × 16 numbers per module.
        columns: The dataset's columns; by default the text is in the column `text`.
        loss: Whether a document's loss is the sum of its tokens' cross-entropies, or their mean.
        per_token: Whether to keep the tokens apart: what each token's position adds to the document's gradient.
        modules: Which modules to track, as in `GradientCollector`.
        budget_tokens: The most tokens of a batch, padding included; by default as many as fit into the device's memory.

    Returns:
        The dataset with two more columns. `gradients` is float32 of shape [D]: the modules' gradients in natural order
        of the modules' names, each flattened, so that D is 256 numbers per module by default. With `per_token` its
        shape is [s, D] for a document of s tokens, and its sum over s is the document's gradient. `loss` is float64,
        always the plain sum over the labelled tokens, in nats.

    Raises:
        ColumnNotFound: The dataset lacks a column that `columns` names, or there is neither a tokenizer nor a column
            `input_ids`.
        TooLong: A document has more tokens than the model takes.
        InvalidInput: A document is not text, has a token that the model has no embedding for, or a column beside
            `input_ids` that cannot be honoured; no module is selected; or the normalizers cannot be fitted.

    Source: The gradients are those of TrackStar (Chang et al., arXiv 2410.17413, section 3), without its
    preconditioner and before scaling to unit length.

    Example:
        >>> columns = ColumnsSpec(prompt="question", completion="answer")
        >>> dataset = collect_gradients(model, dataset, tokenizer, columns=columns)
        >>> rows = torch.tensor(dataset["gradients"])
    """
    columns = columns or ColumnsSpec()
    if tokenizer is None and (columns.completion or columns.messages or columns.chosen):
        raise InvalidInput(
            "columns names completions or messages, which only a tokenizer can read: pass the tokenizer, or mark the "
            "labelled tokens in a column 'labels'"
        )
    if processor is None:
        settings = GradientSpec(loss=loss)
        processor = fit_processor(model, dataset, tokenizer, settings, columns=columns, modules=modules)
    language_model = as_language_model(model, tokenizer)
    tracked = language_model.select_modules(
        modules, split_heads=processor.split_heads, include_bias=processor.include_bias
    )
    collector = RowCollector(language_model, processor, list(tracked), per_token=per_token)
    row = pa.list_(pa.float32(), collector.dimensions)
    schema = pa.schema({"gradients": pa.list_(row) if per_token else row, "loss": pa.float64()})
    # The file has to live as long as the dataset that maps it, of which there may be copies.
    chunks = iter_token_chunks(tokenizer, dataset, columns, token_limits(language_model), loss)
    with (
        scratch_directory_until_exit() as directory,
        pa.OSFile(path := str(directory / "gradients.arrow"), "wb") as file,
        pa.ipc.new_stream(file, schema) as writer,
    ):
        for documents, budget in _with_budgets(chunks, collector, language_model, budget_tokens):
            rows, losses = collect_rows(collector, documents, budget)
            gradients = _as_arrow(rows, [len(tokens.ids) for tokens in documents] if per_token else None)
            writer.write_batch(pa.record_batch([gradients, pa.array(losses)], schema=schema))
    return concatenate_datasets([dataset, Dataset.from_file(path)], axis=1)


def _with_budgets(
    chunks: Iterable[list[Tokens]], collector: RowCollector, model: LanguageModel, budget_tokens: int | None
) -> Iterator[tuple[list[Tokens], int]]:
    """Yields documents whose rows fit into memory together, and the tokens that a batch of them may have.

    The budget is measured again whenever a document is longer than all before it, unless the caller has set it.
    """
    longest, budget = 0, budget_tokens or 0
    for chunk in chunks:
        longest_in_chunk = max(tokens.longest for tokens in chunk)
        if budget_tokens is None and longest_in_chunk > longest:
            longest = longest_in_chunk
            budget = find_batch_budget(model, collector.modules, longest)
        if not collector.per_token:
            yield chunk, budget
            continue
        budget = max(1, min(budget, MAX_TOKEN_ROW_NUMBERS // collector.dimensions))
        for documents in _split_by_tokens(chunk, collector.dimensions):
            yield documents, budget


def _split_by_tokens(documents: list[Tokens], dimensions: int) -> Iterator[list[Tokens]]:
    """Yields the documents in order, as many at a time as have token rows that fit into memory together."""
    part: list[Tokens] = []
    for tokens in documents:
        if part and sum(len(other.ids) for other in (*part, tokens)) * dimensions > MAX_TOKEN_ROW_NUMBERS:
            yield part
            part = []
        part.append(tokens)
    yield part


def _as_arrow(rows: np.ndarray, token_counts: Sequence[int] | None) -> Any:
    """Returns the column `gradients` of rows [r, D]; with the token counts of documents, of lists of rows."""
    gradients: Any = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    if token_counts is not None:
        ends = np.cumsum([0, *token_counts])
        gradients = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), gradients)
    return gradients
