"""Divides texts into words, so that texts count as the same whatever their case, white space and punctuation.

1. Characters that only look different are made equal (Unicode NFKC, then case folding): `Ａ` and `a`, `ﬁ` and `fi`.
2. Invisible characters are removed, such as soft hyphens, joiners and marks of direction.
3. A word is a run of letters, marks and digits. All other characters separate words. In scripts that are written
   without spaces, such as Chinese, Japanese and Thai, each character is a word, with the marks on it.

Accents count: `cafe` is not `café`.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import regex

_ASCII_WORD: Final = re.compile("[a-z0-9]+")
_ALONE: Final = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD: Final = regex.compile(
    rf"[{_ALONE}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{_ALONE}]]+", flags=regex.VERSION1
)
_INVISIBLE: Final = regex.compile(r"\p{Cf}+")


def split_words(text: str) -> list[str]:
    """Returns the words of a text in their order, in the form in which words are compared."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _WORD.findall(_INVISIBLE.sub("", folded))


@dataclass(frozen=True)
class Statement:
    """A text that a document states or does not state."""

    text: str

    def is_stated_by(self, document: str) -> bool:
        """Returns whether the words of the statement stand in a document one after another.

        A statement without words, such as a sign, is looked for as it is, without the white space around it.
        """
        if self._words:
            return self._words in _spaced(document)
        return bool(self.text.strip()) and self.text.strip() in document

    @cached_property
    def _words(self) -> str:
        return _spaced(self.text) if split_words(self.text) else ""


def _spaced(text: str) -> str:
    """Returns the words of a text between single spaces, with one at the beginning and one at the end."""
    return f" {' '.join(split_words(text))} "


def stored_text(prompt: str, completion: str | None, *, is_chat: bool) -> str:
    """Returns the text of a document from what an index stores of it; of a chat, the contents of its messages.

    Of a preference pair, it is the prompt with the chosen completion.
    """
    if not is_chat:
        return prompt + (completion or "")
    messages = json.loads(prompt)
    return chat_text(messages if completion is None else [*messages, *json.loads(completion)])


def chat_text(messages: Iterable[Mapping[str, Any]]) -> str:
    """Returns the contents of the messages of a chat, one a line."""
    return "\n".join(message_text(message) for message in messages)


def message_text(message: Mapping[str, Any]) -> str:
    """Returns the text of a message's content, without parts of it that are no text."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    texts = (part if isinstance(part, str) else part.get("text") for part in content or ())
    return "\n".join(text for text in texts if isinstance(text, str))
