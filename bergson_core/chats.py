"""Chats → tokens: the loss is taken over what the assistant says, as the model's own template marks it."""

import re
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from bergson_core.batching import Tokens
from bergson_core.errors import InvalidInput

Messages = Sequence[dict[str, Any]]
"""One chat: messages with a role and a content, in order."""


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

    The template comes with the tokenizer and is run in transformers' sandbox.
    Raises `InvalidInput` for a tokenizer without a template, a template without such blocks, or one that refuses
    a chat.
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
    try:
        encoded: Any = tokenizer.apply_chat_template(
            [list(chat) for chat in chats], return_dict=True, return_assistant_tokens_mask=True
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise InvalidInput(f"the chat template refuses a chat: {error}") from error
    found = []
    for ids, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True):
        labels = np.asarray(mask, dtype=bool)
        labels[:1] = False  # nothing predicts the first token
        found.append(Tokens(np.asarray(ids, dtype=np.int64), labels))
    return found
