"""Reads preference pairs: prompt, chosen and rejected completions, in the forms that trainers of DPO take.

    prompt, chosen, rejected             texts; a completion follows the prompt as it stands
    prompt, chosen, rejected             lists of messages; those of a completion follow those of the prompt
    chosen, rejected                     texts or lists of messages whose shared beginning is the prompt

The shared beginning of two texts ends at white space, so that no word is divided between prompt and completion.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

from bergson_core.data.column_values import Describe, require_weights
from bergson_core.errors import InvalidInput
from bergson_core.schemas.build_parts.pair_values import find_pair_problem
from bergson_core.schemas.preference.pair_texts import PairTexts
from bergson_core.schemas.record import Messages, Record, drop_nulls, record_of_pair
from bergson_core.schemas.source import ColumnsSpec

_PURPOSES: Final = ("prompt", "completion", "rejected", "is_chat", "reference_margin")
"""What a table of documents has of a pair, in the order of the fields of `PairTexts`."""


def columns_of_pairs(
    values: Mapping[str, Sequence[Any]], columns: ColumnsSpec, describe: Describe
) -> dict[str, list[Any]]:
    """Returns the preference pairs in some rows as the columns of a table of documents.

    Arguments and errors are those of `require_pairs`.
    """
    pairs = require_pairs(values, columns, describe)
    return {
        purpose: [getattr(pair, field.name) for pair in pairs]
        for purpose, field in zip(_PURPOSES, fields(PairTexts), strict=True)
    }


def records_of_pairs(ids: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[Record]:
    """Returns the documents that are preference pairs, from the columns of a table of documents."""
    parts = (columns[purpose] for purpose in _PURPOSES)
    metadata = columns.get("metadata") or [{} for _ in ids]
    weights = columns.get("weight") or [1.0] * len(ids)
    return [
        record_of_pair(document_id, PairTexts(*values), own, weight)
        for document_id, own, weight, *values in zip(ids, metadata, weights, *parts, strict=True)
    ]


def require_pairs(
    values: Mapping[str, Sequence[Any]], columns: ColumnsSpec, describe: Describe
) -> list[PairTexts]:
    """Returns the preference pairs in some rows.

    Args:
        values: The values of the columns that `columns` names.
        columns: Which columns have the parts of a pair.
        describe: Says where a value stands.

    Raises:
        InvalidInput: A part is missing, empty, neither text nor a chat, or of another form than the others; both
            completions are the same; or a chat does not end with what the assistant says.
    """
    assert columns.chosen is not None and columns.rejected is not None
    chosen, rejected = values[columns.chosen], values[columns.rejected]
    prompts = [None] * len(chosen) if columns.prompt is None else values[columns.prompt]
    margins = _reference_margins(values, columns, describe)
    return [
        _read_pair(position, columns, parts, margin, describe)
        for position, (*parts, margin) in enumerate(zip(prompts, chosen, rejected, margins, strict=True))
    ]


def _reference_margins(
    values: Mapping[str, Sequence[Any]], columns: ColumnsSpec, describe: Describe
) -> Sequence[float]:
    if columns.ref_chosen_logps is None or columns.ref_rejected_logps is None:
        assert columns.chosen is not None
        return [0.0] * len(values[columns.chosen])
    chosen, rejected = (
        require_weights(values[name], name, describe)
        for name in (columns.ref_chosen_logps, columns.ref_rejected_logps)
    )
    return [a - b for a, b in zip(chosen, rejected, strict=True)]


def _read_pair(
    position: int, columns: ColumnsSpec, parts: Sequence[Any], margin: float, describe: Describe
) -> PairTexts:
    """Returns the pair of one row from its prompt, which may be None, its chosen and its rejected completion."""
    names = (columns.prompt, columns.chosen or "", columns.rejected or "")
    given = {name: part for name, part in zip(names, parts, strict=True) if name is not None}
    if problem := find_pair_problem(given, columns):
        column, what = problem
        raise InvalidInput(f"{describe(position, column)} {what}")
    if isinstance(parts[1], str):
        return PairTexts(*_split_texts(*parts), is_chat=False, reference_margin=margin)
    prompt, chosen, rejected = (None if part is None else drop_nulls(part) for part in parts)
    texts = map(_dumps, _split_chats(prompt, chosen, rejected))
    return PairTexts(*texts, is_chat=True, reference_margin=margin)


def _split_texts(prompt: str | None, chosen: str, rejected: str) -> tuple[str, str, str]:
    """Returns the prompt and both completions; without a prompt it is what the completions begin with."""
    if prompt is not None:
        return prompt, chosen, rejected
    shared = next(
        (place for place, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
        min(len(chosen), len(rejected)),
    )
    while shared and not chosen[shared - 1 : shared].isspace():
        shared -= 1
    while shared and chosen[shared - 1].isspace():
        shared -= 1
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _split_chats(prompt: Messages | None, chosen: Any, rejected: Any) -> tuple[Messages, Messages, Messages]:
    """Returns the same for messages. Each completion keeps one at least."""
    if prompt is not None:
        return prompt, chosen, rejected
    longest = min(len(chosen), len(rejected)) - 1
    shared = next((place for place in range(longest) if chosen[place] != rejected[place]), longest)
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _dumps(messages: Messages) -> str:
    return json.dumps(messages, ensure_ascii=False, default=str)
