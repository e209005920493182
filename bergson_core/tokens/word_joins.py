"""Finds prompts and completions that meet without the white space that was probably meant.

Most tokenizers mark a word by the white space before it: " London" is a token, and "London" is another one, which the
model has rarely seen after "born in". A completion that lacks its space is therefore not what the model would say, and
its gradient is that of a text which hardly any document has.

A space is expected where prompt and completion both end at the edge of a word of a script that separates words by
spaces, and where the tokenizer needs no fewer tokens without the space: "Lon" and "don" are the parts of one token.
A capital letter after a small one begins a word. A small letter after another letter may continue it, as "ber" does
after "ü", so that both words have to be whole tokens. Nothing is expected within an abbreviation, a file name or an
address, and between a number and its unit.
"""

import logging
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from transformers import PreTrainedTokenizerBase

from bergson_core.schemas.record import Record
from bergson_core.schemas.results import QueryWarning
from bergson_core.tokens.tokenization import encode, encode_context

logger = logging.getLogger(__name__)

_SPACE_MARKERS: Final = "Ġ▁ "
"""What tokens that begin with a space are spelled with: by byte-level tokenizers, by SentencePiece, by others."""
_BEFORE_SPACE: Final = ".,;:!?…)]%”»،؛؟।"
"""Punctuation that is usually followed by a space; after quotes that may open, dashes and slashes often is none."""
_UNSPACED_SCRIPTS: Final = (
    "CJK HIRAGANA KATAKANA KATAKANA-HIRAGANA HALFWIDTH IDEOGRAPHIC BOPOMOFO YI THAI LAO KHMER MYANMAR TIBETAN TAI NEW "
    "JAVANESE BALINESE"
).split()
"""First words of the names of characters whose scripts put no spaces between words."""
_NAME: Final = re.compile(r"[/\\@_]|[^\W\d]\.\w|\w\.[^\W\d]|^\W*[^\W\d]\.$")
"""What paths, addresses, file names and abbreviations have in them, unlike other words: "a/b", "e.g", "U.S.", "J."."""
_LAST_WORD: Final = re.compile(r"[^\W\d_]+\Z")
_FIRST_WORD: Final = re.compile(r"\A[^\W\d_]+")
_MAX_UNIT_CHARS: Final = 3
"""Letters of the longest units and endings that are written right after a number, such as "rd", "km" and "mph"."""
_WINDOW_CHARS: Final = 60
"""Characters on each side of the place where prompt and completion meet whose tokens are looked at."""
_MAX_COUNTED: Final = 1000
"""Documents of a dataset that are looked at: enough to tell whether most of them lack the space."""


@dataclass(frozen=True)
class JoinChecker:
    """Tells whether a completion lacks the space that the tokenizer would put before it."""

    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def marks_words(self) -> bool:
        """Whether some tokens are words with the space before them, unlike those of characters or of WordPiece."""
        return any(
            token[:1] and token[0] in _SPACE_MARKERS and token[1:2].isalpha()
            for token in map(str, self.tokenizer.get_vocab())
        )

    def expects_space(self, prompt: str, completion: str) -> bool:
        """Returns whether a space was probably meant between a prompt and a completion that meet without one."""
        if not _meet_at_words(prompt, completion) or not self.marks_words:
            return False
        left, right = _window(prompt, completion)
        if self._ends_in_special_token(left) or not self._begins_word(left, right):
            return False
        return self._count_tokens(left + right) >= self._count_tokens(f"{left} {right}")

    def join(self, prompt: str, completion: str) -> str:
        """Returns the completion with a space in front of it where one is expected."""
        return f" {completion}" if self.expects_space(prompt, completion) else completion

    def given_warnings(self, prompt: str, completion: str) -> list[QueryWarning]:
        """Returns the warnings of a completion that was given."""
        if self.expects_space(prompt, completion):
            left, right = _window(prompt, completion)
            meant = f" {completion}"
            detail = (
                "prompt and completion meet without white space, and were tokenised as "
                f"{self._describe_tokens(left, right)}; with a space they are "
                f"{self._describe_tokens(left, f' {right}')}. The answer explains the completion as it was given: "
                "begin it with a space, or ask with join: space, if that was meant"
            )
            return [QueryWarning(code="missing_space", detail=detail, suggestion=meant)]
        if _meet_at_two_spaces(prompt, completion):
            detail = (
                "the prompt ends with a space and the completion begins with one, so that the text has two, tokenised "
                f"as {self._describe_tokens(*_window(prompt, completion))}: leave one out if that was not meant"
            )
            return [QueryWarning(code="double_space", detail=detail, suggestion=completion[1:])]
        return []

    def generated_warnings(
        self, prompt: str, completion: str, context_ids: Sequence[int]
    ) -> list[QueryWarning]:
        """Returns the warnings of a completion that the model generated after the tokens `context_ids` of the prompt.

        A prompt that ends with a space ends with a token that texts hardly ever have before a word, because there the
        space is a part of the word's token.
        """
        if not prompt.endswith(" ") or not prompt.strip() or not self.marks_words:
            return []
        natural = encode_context(self.tokenizer, prompt + completion)[: len(context_ids)]
        if natural == list(context_ids) and not completion.startswith(" "):
            return []
        detail = (
            "the prompt ends with a space, which the tokenizer would join to the word after it, so that the model has "
            "continued a text such as it rarely sees: leave the space out"
        )
        return [QueryWarning(code="trailing_space", detail=detail, suggestion=prompt.rstrip(" "))]

    def _begins_word(self, left: str, right: str) -> bool:
        """Returns whether `right`, whose first character is a letter or a digit, begins a word of its own after `left`.

        It does not if it continues a name, an abbreviation, or the word or the number before it.
        """
        if _NAME.search(left.split()[-1]) or (left[-1] == "." and right[0].islower()):
            return False
        last, first = _first_match(_LAST_WORD, left), _first_match(_FIRST_WORD, right)
        if left[-1].isdecimal():
            return len(first) > _MAX_UNIT_CHARS or (len(first) == _MAX_UNIT_CHARS and first.istitle())
        if not last:  # after punctuation
            return True
        if not first:  # a number, as in "H" and "2O"
            return len(last) > 1
        if first.isupper():  # an acronym, or the rest of one
            return len(last) > 1 and not last.isupper()
        return not first[0].islower() or self._are_words(last, first)

    def _are_words(self, last: str, first: str) -> bool:
        """Returns whether the last word of a prompt is a token, and the first one of a completion with its space is."""
        n_marked = len(self._encode(f"{last} {first}")) - len(self._encode(last))
        return n_marked == 1 and self._count_tokens(f" {last}") == 1

    def _encode(self, text: str) -> list[int]:
        return list(encode(self.tokenizer, text, add_special_tokens=False)["input_ids"])

    def _count_tokens(self, text: str) -> int:
        """Returns the number of tokens, without those that are white space alone."""
        return sum(bool(str(self.tokenizer.decode([token_id])).strip()) for token_id in self._encode(text))

    def _ends_in_special_token(self, text: str) -> bool:
        return self._encode(text)[-1:] in ([token_id] for token_id in self.tokenizer.all_special_ids)

    def _describe_tokens(self, left: str, right: str) -> str:
        """Returns the texts of the tokens around the place where `left` and `right` meet."""
        text, start, pieces = left + right, 0, []
        offsets = encode(self.tokenizer, text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        for _, end in offsets:  # Some tokenizers leave the space out of a token's characters: it is put back.
            if end > start:
                pieces.append((end, text[start:end]))
                start = end
        n_before = sum(end <= len(left) for end, _ in pieces)
        shown = pieces[max(0, n_before - 2) : n_before + 3]
        return " ".join(repr(piece) for _, piece in shown)


@dataclass
class MissingSpaceCounter:
    """Counts among the first documents, or queries of a dataset, those whose completions lack the space before them."""

    checker: JoinChecker
    seen: int = 0
    missing: int = 0
    example: tuple[str, str] = ("", "")

    def add(self, records: Sequence[Record]) -> None:
        """Counts records that have a completion, up to a thousand in all."""
        for record in records[: _MAX_COUNTED - self.seen]:
            if (
                record.completion is None
                or record.messages is not None
                or (record.pair and record.pair.is_chat)
            ):
                continue
            self.seen += 1
            if self.checker.expects_space(record.prompt, record.completion):
                self.missing += 1
                self.example = _window(record.prompt, record.completion)

    def log_warning(self, what: str) -> None:
        """Logs a warning if most completions lack the space; `what` are the things that were counted."""
        if 2 * self.missing > self.seen:
            prompt, completion = self.example
            logger.warning(
                "%d of the first %d %s have a completion without the space that the tokenizer expects before a word, "
                "such as %r after %r: begin completions with a space, unless the model was trained on such texts",
                self.missing,
                self.seen,
                what,
                completion,
                prompt,
            )


def _meet_at_words(prompt: str, completion: str) -> bool:
    """Returns whether a word begins where the completion does, and a word or a part of a sentence ends before it."""
    if not prompt or not completion:
        return False
    before, after = prompt[-1], completion[0]
    if unicodedata.category(after)[0] != "L" and not after.isdecimal():
        return False
    if after.isdecimal() and (before.isdecimal() or prompt[-2:-1].isdecimal()):
        return False  # "19" and "84", "3." and "14", "12:" and "30"
    if _is_unspaced(before) or _is_unspaced(after):
        return False
    is_spaced_sign = before == "=" and prompt[-2:-1].isspace()
    return unicodedata.category(before)[0] in "LMN" or before in _BEFORE_SPACE or is_spaced_sign


def _meet_at_two_spaces(prompt: str, completion: str) -> bool:
    """Returns whether a space ends the prompt and another begins the completion, other than after a sentence."""
    left, right = prompt[-2:], completion[:2]
    return (
        len(left) == len(right) == 2
        and left[1] == right[0] == " "
        and not left[0].isspace()
        and left[0] not in ".!?"
        and not right[1].isspace()
    )


def _first_match(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match[0] if match else ""


def _is_unspaced(character: str) -> bool:
    return unicodedata.name(character, "").split(" ")[0] in _UNSPACED_SCRIPTS


def _window(prompt: str, completion: str) -> tuple[str, str]:
    """Returns the end of the prompt and the beginning of the completion, cut at white space where there is some."""
    left, right = prompt[-_WINDOW_CHARS:], completion[:_WINDOW_CHARS]
    if len(left) < len(prompt):
        left = left.split(" ", 1)[-1] or left
    if len(right) < len(completion):
        right = right.rsplit(" ", 1)[0] or right
    return left, right
