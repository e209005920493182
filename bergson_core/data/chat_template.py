"""Tokenises chats with the model's own template, which marks what the assistant says; the loss is taken over that."""

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
"""Characters [start, end) of a text."""
TIME_LIMIT_S: Final = 10
"""Seconds that a template may take to start, and again for each hundred chats."""
_PROGRAM: Final = """
import json, sys
from transformers.utils.chat_template_utils import render_jinja_template
template, variables, chats = json.load(sys.stdin)
texts, spans = [], []
try:
    for chat in chats:
        (text,), (assistant_spans,) = render_jinja_template(
            [chat], chat_template=template, return_assistant_tokens_mask=True, **variables
        )
        if len(text) > (limit := 100_000 + 10 * len(json.dumps(chat))):
            raise ValueError(f"it makes {len(text)} characters of it; expected at most {limit}")
        texts.append(text)
        spans.append(assistant_spans)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}"[:200])
json.dump([texts, spans], sys.stdout)
"""


def require_messages(value: Any, what: str) -> Messages:
    """Returns `value` if it is a chat.

    Args:
        value: What a dataset holds where a chat is expected.
        what: Where the value stands, for the message.

    Raises:
        InvalidInput: It is not a list of messages that each have a role.
    """
    messages = value if isinstance(value, list) else []
    if not messages or not all(
        isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages
    ):
        raise InvalidInput(f"{what} is no chat; expected a list of messages, each with a role and a content")
    return messages


def tokenize_chats(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Messages]) -> list[Tokens]:
    """Tokenises each chat as the model's template renders it. Tokens inside `{% generation %}` blocks are labelled.

    The template comes with the tokenizer and may be malicious. It runs in transformers' sandbox, which limits neither
    time nor memory, and that runs in a subprocess which limits both. A field of a message that is null is treated as
    missing.

    Args:
        tokenizer: Tokenizer of the model.
        chats: The messages of each chat.

    Raises:
        InvalidInput: The tokenizer has no template or is not a fast one; or the template has no `{% generation %}`
            block, refuses a chat, or takes too long.
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
    tokenized = zip(encoded["input_ids"], encoded["offset_mapping"], spans, strict=True)
    return [_label_spans(*chat) for chat in tokenized]


def _label_spans(ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> Tokens:
    """Returns the s tokens of a chat, labelled where they share characters with one of the spans."""
    labels = np.zeros(len(ids), dtype=bool)
    starts, ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T
    for start, end in spans:
        labels |= (starts < end) & (ends > start)
    labels[:1] = False  # Nothing predicts the first token.
    return Tokens(np.asarray(ids, dtype=np.int64), labels)


def _render(
    template: str, variables: Mapping[str, Any], chats: Sequence[Messages]
) -> tuple[list[str], list[list[Span]]]:
    """Returns the text of each chat, and the characters of it that the assistant says."""
    given = [
        [{name: value for name, value in message.items() if value is not None} for message in chat]
        for chat in chats
    ]
    limit_s = TIME_LIMIT_S + TIME_LIMIT_S * len(chats) / 100
    try:
        return sandbox.run_sandboxed(_PROGRAM, [template, variables, given], limit_s)
    except TimeoutError:
        raise InvalidInput(
            f"the chat template takes more than {limit_s:g} s for {len(chats)} chats; expected one that ends"
        ) from None
    except ValueError as error:
        raise InvalidInput(f"the chat template refuses a chat: {error}") from error
