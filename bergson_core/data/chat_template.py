"""Chats → tokens: the loss is taken over what the assistant says, as the model's own template marks it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from bergson_core.data.batching import Tokens, encode
from bergson_core.errors import InvalidInput
from bergson_core.schemas.record import Messages
from bergson_core.utils import sandbox

Span = tuple[int, int]
"""Characters [start, end)."""
LIMIT_S: Final = 10
"""Seconds for a template and a hundred chats, and for each hundred more."""
_RENDER: Final = """
import json, sys
from transformers.utils.chat_template_utils import render_jinja_template
template, variables, chats = json.load(sys.stdin)
texts, spans = [], []
try:
    for chat in chats:
        (text,), (said,) = render_jinja_template(
            [chat], chat_template=template, return_assistant_tokens_mask=True, **variables
        )
        if len(text) > (most := 100_000 + 10 * len(json.dumps(chat))):
            raise ValueError(f"it makes {len(text)} characters of it; expected at most {most}")
        texts.append(text)
        spans.append(said)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}"[:200])
json.dump([texts, spans], sys.stdout)
"""


def check_messages(value: Any, what: str) -> Messages:
    """`value` where it is a chat. Raises `InvalidInput`, naming `what`, where it is none."""
    messages = value if isinstance(value, list) else []
    if not messages or not all(
        isinstance(one, dict) and isinstance(one.get("role"), str) for one in messages
    ):
        raise InvalidInput(f"{what} is no chat; expected a list of messages, each with a role and a content")
    return messages


def tokenize_chats(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Messages]) -> list[Tokens]:
    """Tokens of each chat as its template renders it; labelled are those inside `{% generation %}` blocks.

    The template comes with the tokenizer and is run in transformers' sandbox, which bounds neither time nor memory,
    and in a process of its own, which does. A field that is null is as if it were not there.
    Raises `InvalidInput` for a tokenizer without a template, a template without such blocks, one that refuses a chat,
    and one that does not end.
    """
    template = cast(str, tokenizer.get_chat_template()) if tokenizer.chat_template else None
    if template is None:
        raise InvalidInput(
            "the tokenizer has no chat template; expected one where the dataset holds messages"
        )
    if not re.search(r"\{%-?\s*generation\s*-?%\}", template):
        raise InvalidInput(
            "the chat template does not mark what the assistant says; expected {% generation %} … {% endgeneration %} "
            "around it. Put them into the template, or give prompts and completions as columns of text"
        )
    if not tokenizer.is_fast:
        raise InvalidInput(
            f"{type(tokenizer).__name__} cannot mark tokens; expected a fast tokenizer for messages"
        )
    texts, spans = _render(template, tokenizer.special_tokens_map, chats)
    encoded = encode(tokenizer, texts, add_special_tokens=False, return_offsets_mapping=True)
    found = zip(encoded["input_ids"], encoded["offset_mapping"], spans, strict=True)
    return [_labelled(*one) for one in found]


def _labelled(ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> Tokens:
    """Tokens of which those are labelled that have characters in one of `spans`."""
    labels = np.zeros(len(ids), dtype=bool)
    starts, ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T
    for start, end in spans:
        labels |= (starts < end) & (ends > start)
    labels[:1] = False  # nothing predicts the first token
    return Tokens(np.asarray(ids, dtype=np.int64), labels)


def _render(
    template: str, variables: Mapping[str, Any], chats: Sequence[Messages]
) -> tuple[list[str], list[list[Span]]]:
    """The text of each chat, and which characters of it the assistant says."""
    present = [[{k: v for k, v in one.items() if v is not None} for one in chat] for chat in chats]
    limit_s = LIMIT_S + LIMIT_S * len(chats) / 100
    try:
        return sandbox.run_sandboxed(_RENDER, [template, variables, present], limit_s)
    except TimeoutError:
        raise InvalidInput(
            f"the chat template takes more than {limit_s:g} s for {len(chats)} chats; expected one that ends"
        ) from None
    except ValueError as error:
        raise InvalidInput(f"the chat template refuses a chat: {error}") from error
