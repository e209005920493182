"""Reads documents that come as tokens: `input_ids` and the columns beside it that change what they mean.

What tokenizers, trainers and collators write beside `input_ids` is either honoured or refused by name, never passed
over:

    attention_mask             padding (0) is removed, on either side; holes are refused
    labels                     -100 is not labelled; any other label has to be the token itself
    completion_mask, assistant_masks, assistant_mask, loss_mask
                               1 is labelled; where there are several of them, or labels, all have to agree
    position_ids, seq_lengths  refused where they say that several documents are packed into a row
    token_type_ids             refused where they differ, because a causal model ignores them
    others in `_REFUSED`       refused, and so is the weight of a row that `columns.weight` does not name
    any other                  refused if it holds a number or a truth value for each token
    length, num_tokens         refused if they are not the number of tokens
"""

from collections.abc import Iterator, Mapping, Sequence
from reprlib import repr as abridge
from typing import Any, Final

import numpy as np

from bergson_core.errors import InvalidInput
from bergson_core.tokens.tokenization import Tokens

IGNORED_LABEL: Final = -100
LABEL_COLUMNS: Final = ("labels", "completion_mask", "assistant_masks", "assistant_mask", "loss_mask")
_REFUSED: Final = (
    # Several documents in a row.
    *(
        "cu_seq_lens",
        "cu_seq_lens_q",
        "cu_seq_lens_k",
        "cu_seqlens",
        "max_length_q",
        "max_length_k",
        "seq_idx",
    ),
    *("segment_ids", "sequence_ids", "document_ids"),
    # Labels or a loss of another kind.
    *("shift_labels", "loss_weight", "loss_weights", "label_weights", "token_weights"),
    *("label_mask", "labels_mask", "target_mask", "prompt_mask", "assistant_tokens_mask", "mask"),
    *("prompt_length", "prompt_lengths", "prompt_len", "completion_length", "completion_len"),
    # Inputs that are not tokens of a causal model.
    *("inputs_embeds", "pixel_values", "input_features", "decoder_input_ids", "decoder_attention_mask"),
)
_ALIGNED: Final = (*LABEL_COLUMNS, "attention_mask", "position_ids", "token_type_ids")
"""Columns with an entry for each of `input_ids`."""
WEIGHT_COLUMNS: Final = (
    "weight",
    "weights",
    "sample_weight",
    "sample_weights",
    "example_weight",
    "example_weights",
)
"""Names of columns with the weight of a row's loss. They are refused where `columns.weight` is not theirs."""
_LENGTHS: Final = ("length", "lengths", "num_tokens")
TOKEN_COLUMNS: Final = ("input_ids", *_ALIGNED, "seq_lengths", *_REFUSED, *WEIGHT_COLUMNS)
"""All columns that are known to change what tokens mean, or what is learnt from them."""
_HARMLESS: Final = ("special_tokens_mask", *_LENGTHS)


def read_token_rows(
    values: Mapping[str, Sequence[Any]], numbers: Sequence[int], weight: str | None = None
) -> Iterator[Tokens]:
    """Yields the documents of some rows of a tokenised dataset.

    Args:
        values: For each column its values.
        numbers: Numbers of the rows, for messages.
        weight: The column that holds the weights of the rows, which the caller reads.

    Raises:
        InvalidInput: A row cannot be read, or has a column that changes what the tokens mean in a way that cannot be
            honoured. The message names both.
    """
    for position, number in enumerate(numbers):
        row = {name: column[position] for name, column in values.items() if name != weight}
        yield read_token_row(row, f"row {number}")


def read_token_row(row: Mapping[str, Any], what: str) -> Tokens:
    """Returns a document from its values of all columns but that of its weight.

    Args:
        row: The values, by the name of the column.
        what: Name of the document, for messages.

    Raises:
        InvalidInput: A value cannot be read or honoured.
    """
    _require_known_columns(row, what)
    ids = _read_integers(row, "input_ids", what)
    for name in row:
        if name not in TOKEN_COLUMNS and name not in _HARMLESS and _is_aligned(row[name], len(ids)):
            raise InvalidInput(
                f"{what} has a column {name!r} with one entry for each token, which is an unknown column: expected "
                f"{', '.join(LABEL_COLUMNS)} to mask the loss. Leave the column out if it does not change the loss"
            )
    values = {name: _read_integers(row, name, what) for name in row if name in _ALIGNED}
    for name, value in values.items():
        if len(value) != len(ids):
            raise InvalidInput(
                f"{what}: column {name!r} has {len(value)} entries, and 'input_ids' has {len(ids)}; expected as many"
            )
    is_token = _find_tokens(values, ids, what)
    labelled = _find_labelled(values, ids, what)
    if (labelled & ~is_token).any():
        name = next(name for name in LABEL_COLUMNS if name in values)
        raise InvalidInput(
            f"{what}: column {name!r} labels padding, where 'attention_mask' is 0; expected {_unlabelled(name)} there"
        )
    tokens = Tokens(ids[is_token], labelled[is_token])
    tokens.labels[:1] = False  # Nothing predicts the first token.
    _require_whole_document(row, values, is_token, what)
    for name in (name for name in _LENGTHS if isinstance(row.get(name), int | np.integer)):
        if row[name] not in (len(ids), len(tokens.ids)):
            raise InvalidInput(
                f"{what}: column {name!r} is {row[name]}, and there are {len(tokens.ids)} tokens; expected their number"
            )
    return tokens


def _require_known_columns(row: Mapping[str, Any], what: str) -> None:
    """Raises `InvalidInput` if a row has a value in a column that cannot be honoured."""
    for name in (name for name in (*_REFUSED, *WEIGHT_COLUMNS) if row.get(name) is not None):
        advice = "columns.weight to name it, or " if name in WEIGHT_COLUMNS else ""
        raise InvalidInput(
            f"{what} has a column {name!r}, which cannot be used: expected {advice}one document per row as "
            "input_ids, with attention_mask and labels where needed. Leave the column out if it is not needed"
        )


def _is_aligned(value: Any, count: int) -> bool:
    """Returns whether a value is a list of `count` numbers or truth values."""
    if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != count or count < 2:
        return False
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        return False
    return array.ndim == 1 and array.dtype.kind in "biuf"


def _unlabelled(name: str) -> str:
    """Returns what stands in a column where a token is not labelled."""
    return str(IGNORED_LABEL) if name == "labels" else "0"


def _read_integers(row: Mapping[str, Any], name: str, what: str) -> np.ndarray:
    """Returns a value as int64 [s]. Raises `InvalidInput` if it is no list of whole numbers."""
    value = row[name]
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # ragged lists, or a tensor on a GPU
        array = np.empty((0, 0))
    kinds = "iu" if name == "input_ids" else "iub"
    if array.ndim != 1 or (array.size and array.dtype.kind not in kinds):
        raise InvalidInput(
            f"{what}: column {name!r} holds {abridge(value)}; expected a list of whole numbers, one for each token"
        )
    return array.astype(np.int64)


def _read_mask(values: Mapping[str, np.ndarray], name: str, what: str) -> np.ndarray:
    """Returns a mask as bool [s]. Raises `InvalidInput` unless it holds only 0 and 1."""
    mask = values[name]
    if ((mask != 0) & (mask != 1)).any():
        wrong = int(mask[(mask != 0) & (mask != 1)][0])
        raise InvalidInput(f"{what}: column {name!r} holds {wrong}; expected only 0 and 1")
    return mask.astype(bool)


def _find_tokens(values: Mapping[str, np.ndarray], ids: np.ndarray, what: str) -> np.ndarray:
    """Returns which positions are not padding, bool [s]. Raises `InvalidInput` if there is padding between tokens."""
    if "attention_mask" not in values:
        return np.ones(len(ids), dtype=bool)
    is_token = _read_mask(values, "attention_mask", what)
    positions = np.flatnonzero(is_token)
    if len(positions) and positions[-1] - positions[0] + 1 != len(positions):
        raise InvalidInput(
            f"{what}: column 'attention_mask' is 0 between tokens; expected padding on one side or both, and the "
            "tokens together"
        )
    return is_token


def _find_labelled(values: Mapping[str, np.ndarray], ids: np.ndarray, what: str) -> np.ndarray:
    """Returns which positions are labelled, bool [s]; without a column that says so all that are not padding.

    Raises:
        InvalidInput: The columns disagree, or labels are not the tokens themselves.
    """
    patterns = {}
    for name in (name for name in LABEL_COLUMNS if name in values):
        if name == "labels":
            labels = values[name]
            patterns[name] = labels != IGNORED_LABEL
            wrong = patterns[name] & (labels != ids)
            if wrong.any():
                position = int(wrong.argmax())
                raise InvalidInput(
                    f"{what}: column 'labels' holds {labels[position]} at position {position}, where 'input_ids' has "
                    f"{ids[position]}; expected the token itself (labels are not shifted) or {IGNORED_LABEL}"
                )
        else:
            patterns[name] = _read_mask(values, name, what)
    if not patterns:
        return _find_tokens(values, ids, what)
    (first, pattern), *others = patterns.items()
    for name, other in others:
        if not np.array_equal(pattern[1:], other[1:]):
            raise InvalidInput(
                f"{what}: columns {first!r} and {name!r} do not agree where the loss is taken; expected one of them"
            )
    return pattern


def _require_whole_document(
    row: Mapping[str, Any], values: Mapping[str, np.ndarray], is_token: np.ndarray, what: str
) -> None:
    """Raises `InvalidInput` if a row holds several documents, or tokens of several types."""
    count = int(is_token.sum())
    if "position_ids" in values and not np.array_equal(values["position_ids"][is_token], np.arange(count)):
        raise InvalidInput(
            f"{what}: column 'position_ids' does not count the tokens from 0 on, as in rows that several documents are "
            "packed into; expected one document per row"
        )
    if "seq_lengths" in row and _read_integers(row, "seq_lengths", what).tolist() not in ([], [count]):
        raise InvalidInput(
            f"{what}: column 'seq_lengths' holds {abridge(row['seq_lengths'])}: several documents are packed into the "
            "row; expected one document per row"
        )
    if "token_type_ids" in values and len(set(values["token_type_ids"][is_token].tolist())) > 1:
        raise InvalidInput(
            f"{what}: column 'token_type_ids' has tokens of several types, which a causal model does not distinguish; "
            "leave the column out"
        )
