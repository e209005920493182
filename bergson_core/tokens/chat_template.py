"""Tokenises chats with the model's own template, and finds what the assistant says; the loss is taken over that."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

import numpy as np
from transformers import PreTrainedTokenizerBase

from bergson_core.errors import InvalidInput
from bergson_core.schemas.record import Messages, drop_nulls
from bergson_core.tokens.tokenization import Tokens, encode
from bergson_core.utils import sandbox

Span = tuple[int, int]
"""Characters [start, end) of a text."""
TIME_LIMIT_S: Final = 10
"""Seconds that a template may take to start, and again for each two hundred messages."""
_PROGRAM: Final = f"""
import sys
sys.path.append({str(Path(__file__).parents[2])!r})
from bergson_core.tokens.chat_rendering.program import main
main()
"""


@dataclass(frozen=True)
class RenderedChat:
    """A chat as the model sees it.

    Attributes:
        text: The text that the template makes of it.
        spans: The parts of the text that the assistant says, each with the token that ends it, in order.
    """

    text: str
    spans: Sequence[Span]


def tokenize_chats(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Messages],
    chat_date: date | None = None,
    names: Sequence[str] = (),
) -> list[Tokens]:
    """Tokenises each chat as the model's template renders it. What the assistant says is labelled.

    Args:
        tokenizer: Tokenizer of the model.
        chats: The messages of each chat.
        chat_date: The date that a template is told if it asks for today's; by default it is today's.
        names: Name of each chat, for messages.

    Raises:
        InvalidInput: The tokenizer has no template or is not a fast one, or a chat cannot be rendered, or what the
            assistant says in it cannot be told from the rest.
    """
    rendered: list[RenderedChat] = []
    for number, chat in enumerate(render_chats(tokenizer, chats, chat_date)):
        if isinstance(chat, InvalidInput):
            raise InvalidInput(f"{names[number] if names else f'chat {number}'}: {chat}")
        rendered.append(chat)
    return tokenize_rendered(tokenizer, rendered)


def render_chats(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Messages], chat_date: date | None = None
) -> list[RenderedChat | InvalidInput]:
    """Returns for each chat its text with what the assistant says in it, or the error that this chat alone has caused.

    The template comes with the tokenizer and may be malicious. It runs in jinja2's sandbox, which limits neither time
    nor memory, and that runs in a subprocess which limits both. A field that is null, at any depth of a message, is
    treated as missing. Arguments and errors are those of `tokenize_chats`.
    """
    if not chats:
        return []
    template = _choose_template(tokenizer)
    if not tokenizer.is_fast:
        raise InvalidInput(
            f"{type(tokenizer).__name__} cannot mark tokens; expected a fast tokenizer for messages"
        )
    special_tokens = {
        token.content for token in tokenizer.added_tokens_decoder.values() if token.special
    }.union(tokenizer.all_special_tokens)
    task: dict[str, Any] = {
        "template": template,
        "variables": tokenizer.special_tokens_map,
        "date": None if chat_date is None else chat_date.isoformat(),
        "special_tokens": sorted(name for name in special_tokens if name.strip()),
    }
    limit_s = TIME_LIMIT_S + TIME_LIMIT_S * sum(map(len, chats)) / 200
    try:
        task["chats"] = [drop_nulls(chat) for chat in chats]
        outcomes = sandbox.run_sandboxed(_PROGRAM, task, limit_s)
    except TimeoutError:
        raise InvalidInput(
            f"the chat template takes more than {limit_s:g} s for {len(chats)} chats; expected one that ends"
        ) from None
    except ValueError as error:
        raise InvalidInput(f"the chat template cannot be used: {error}") from error
    except RecursionError:
        raise InvalidInput(
            "a message is nested too deeply; expected plain fields, lists and objects"
        ) from None
    return [
        InvalidInput(outcome["error"])
        if "error" in outcome
        else RenderedChat(outcome["text"], [(start, end) for start, end in outcome["spans"]])
        for outcome in outcomes
    ]


def tokenize_rendered(tokenizer: PreTrainedTokenizerBase, chats: Sequence[RenderedChat]) -> list[Tokens]:
    """Returns the tokens of rendered chats; those that share characters with what the assistant says are labelled."""
    texts = [chat.text for chat in chats]
    encoded = encode(tokenizer, texts, add_special_tokens=False, return_offsets_mapping=True)
    tokenized = zip(encoded["input_ids"], encoded["offset_mapping"], chats, strict=True)
    return [_label_spans(ids, offsets, chat.spans) for ids, offsets, chat in tokenized]


def _choose_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the template of a tokenizer: the only one, or the one that is named `default`."""
    templates: Any = tokenizer.chat_template
    if not templates:
        raise InvalidInput(
            "the tokenizer has no chat template; expected one where there are messages, or prompts and completions"
        )
    if isinstance(templates, str):
        return templates
    if len(templates) > 1 and "default" not in templates:
        raise InvalidInput(
            f"the tokenizer has several chat templates and none of them is named default: {', '.join(templates)}; "
            "expected one named default. Save the one that the model was trained with as chat_template.jinja"
        )
    return templates.get("default") or next(iter(templates.values()))


def _label_spans(ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> Tokens:
    """Returns the s tokens of a chat, labelled where they share characters with one of the spans."""
    labels = np.zeros(len(ids), dtype=bool)
    starts, ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T
    for start, end in spans:
        labels |= (starts < end) & (ends > start)
    labels[:1] = False  # Nothing predicts the first token.
    return Tokens(np.asarray(ids, dtype=np.int64), labels)
