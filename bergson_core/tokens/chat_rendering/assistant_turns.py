"""Finds what the assistant says in the text of a chat whose template does not mark it.

The turns are found by rendering parts of the chat:

    start   where the chat before the turn ends, with the generation prompt
    end     where the chat with this turn as the last one ends, without white space after a token that closes the turn

Both renderings have to be the beginning of the whole one. They are not where a template treats the last turn in
another way: it keeps its reasoning, opens a reasoning in the generation prompt, puts the system's turn before the last
user's, or ends the whole chat with a token. Then the turn is rendered with a placeholder as its content, and what comes
before and after the placeholder is what frames the turn.

Some templates write the header of the assistant's next turn at the end of every chat, whether they are asked for a
generation prompt or not. Nobody says it, so that a turn ends before it.
"""

import re
from functools import cached_property
from itertools import count
from typing import Final

from bergson_core.tokens.chat_rendering.renderer import Chat, ChatError, Renderer

_ROLES_WITHOUT_LOSS: Final = {
    *("system", "developer", "user", "tool", "function", "ipython", "context", "documents")
}
_TAG: Final = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
"""What special tokens look like, and what templates write where a tokenizer has none."""
_ADVICE: Final = (
    "mark what the assistant says in the template with {% generation %} … {% endgeneration %}, or give prompts and "
    "completions as columns of text"
)


class TurnFinder:
    """Finds the assistant's turns in the text of a chat whose template does not mark them.

    Args:
        renderer: The renderer.
        chat: The chat.
        text: The whole text of the chat.
        special_tokens: Names of the tokenizer's special tokens, such as `<|im_end|>`.
    """

    def __init__(self, renderer: Renderer, chat: Chat, text: str, special_tokens: tuple[str, ...]) -> None:
        self._renderer, self._chat, self._text = renderer, chat, text
        self._special_tokens = special_tokens
        self._placeholder = _find_absent_word(text)

    def find(self) -> list[list[int]]:
        """Returns the spans of the assistant's turns.

        Raises:
            ChatError: They cannot be told from the rest, or there is a role that no template knows.
        """
        spans: list[list[int]] = []
        for number, message in enumerate(self._chat):
            if message["role"] == "assistant":
                start, end = self._find_start(number), self._find_end(number)
                if start is None or end is None or not (spans[-1][1] if spans else 0) <= start <= end:
                    raise ChatError(
                        f"the chat template does not mark what the assistant says, and where message {number} begins "
                        f"or ends cannot be seen by rendering parts of the chat; {_ADVICE}"
                    )
                spans.append([start, self._without_space_after_closing(start, end)])
        if not spans and (unknown := {message["role"] for message in self._chat} - _ROLES_WITHOUT_LOSS):
            raise ChatError(
                f"no message has the role 'assistant', and {min(unknown)!r} is not known; name the roles system, "
                f"user, assistant and tool, or {_ADVICE}"
            )
        return spans

    def _find_start(self, number: int) -> int | None:
        has_prompt = self._renderer.asks_for_prompt or self._closing_before_header is not None
        if not has_prompt and (start := self._find_content_start(number)) is not None:
            return start
        prompt = self._renderer.try_render(self._chat[:number], generation_prompt=True)
        if prompt is not None:
            if self._text.startswith(prompt):
                return len(prompt)
            if (start := self._find_start_before_reasoning(number, prompt)) is not None:
                return start
        return self._find_content_start(number)

    def _find_start_before_reasoning(self, number: int, prompt: str) -> int | None:
        """Returns where the turn starts if the generation prompt ends with what the turn itself lacks, as `<think>`.

        The prompt is cut where a tag begins, because a turn may begin with the same characters as one. A part of the
        generation prompt has to remain.
        """
        before = self._renderer.try_render(self._chat[:number])
        if before is None:
            return None
        common, header = (_common_prefix_length(prompt, text) for text in (self._text, before))
        for start in range(common, header, -1):
            if _TAG.match(prompt, start):
                return start
        return None

    def _find_end(self, number: int) -> int | None:
        if (closing := self._closing_before_header) is not None:
            frame = self._find_frame(number)
            if frame is None or not self._text.endswith(frame[1]) or not frame[1].startswith(closing):
                return None
            return len(self._text) - len(frame[1]) + len(closing)
        if number == len(self._chat) - 1:
            return len(self._text)
        until = self._renderer.try_render(self._chat[: number + 1])
        if until is not None and self._text.startswith(until):
            return len(until)
        frame, frame_of_last = self._find_frame(number), self._find_frame(number, is_last=True)
        if frame is None or frame_of_last is None or not self._text.endswith(frame[1]):
            return None
        # What comes after the content here, and also where the chat ends with this turn, closes the turn.
        return len(self._text) - len(frame[1]) + self._common_prefix_of_tags(frame[1], frame_of_last[1])

    @cached_property
    def _closing_before_header(self) -> str | None:
        """What closes a turn, if the template writes the header of a next turn at the end of every chat, else None.

        A turn that the user's follows and one that ends the chat are closed by the same text. The headers after it may
        begin in the same way too, and then every chat begins so.
        """
        number = next(k for k, message in enumerate(self._chat) if message["role"] == "assistant")
        before = self._chat[:number] or [{"role": "user", "content": "Hi"}]
        prompt = self._renderer.try_render(before)
        if prompt is None or self._renderer.try_render(before, generation_prompt=True) != prompt:
            return None
        word = self._placeholder
        turn, question = {"role": "assistant", "content": word}, {"role": "user", "content": "Hi"}
        as_last = self._renderer.try_render([*before, turn])
        as_earlier = self._renderer.try_render([*before, turn, question])
        if not as_last or not as_earlier or not as_last.count(word) == as_earlier.count(word) == 1:
            return None
        header, _, after = as_last.partition(word)
        common = after[: self._common_prefix_of_tags(after, as_earlier.partition(word)[2])]
        opening = self._find_opening(common)
        closing = common.removesuffix(opening)
        written = after.removeprefix(closing)
        n_before = len(prompt) - len(written)
        is_header = prompt.endswith(written) and self._common_prefix_of_tags(prompt, header) > n_before
        return closing if written.strip() and (is_header or opening) else None

    def _find_opening(self, text: str) -> str:
        """Returns the longest end of a text with which chats begin, after BOS; it is empty or more than white space."""
        for first in (self._chat[0]["role"], "user"):
            chat = [{"role": first, "content": self._placeholder}]
            beginning = (self._renderer.try_render(chat) or "").partition(self._placeholder)[0]
            for token in self._renderer.text_tokens:
                beginning = beginning.removeprefix(token)
            for start in range(len(text)):
                if text[start:].strip() and beginning.startswith(text[start:]):
                    return text[start:]
        return ""

    def _find_content_start(self, number: int) -> int | None:
        frame = self._find_frame(number)
        return len(frame[0]) if frame is not None and self._text.startswith(frame[0]) else None

    def _find_frame(self, number: int, *, is_last: bool = False) -> tuple[str, str] | None:
        """Returns what comes before and after the content of a turn, or None if that is not clear.

        Args:
            number: Number of the turn's message.
            is_last: Whether the chat is rendered up to this turn only.
        """
        after_turn = [] if is_last else self._chat[number + 1 :]
        turn = {"role": "assistant", "content": self._placeholder}
        text = self._renderer.try_render([*self._chat[:number], turn, *after_turn])
        if text is None or text.count(self._placeholder) != 1:
            return None
        before, _, after = text.partition(self._placeholder)
        return before, after

    def _common_prefix_of_tags(self, first: str, second: str) -> int:
        """Returns how many characters two texts have in common at their beginning, without the part of a tag."""
        common = _common_prefix_length(first, second)
        tags = (*_TAG.finditer(first), *_TAG.finditer(second))
        return min((tag.start() for tag in tags if tag.start() < common < tag.end()), default=common)

    def _without_space_after_closing(self, start: int, end: int) -> int:
        """Returns the end of a turn without the white space after a token that closes it: nothing predicts it."""
        turn = self._text[start:end].rstrip()
        return start + len(turn) if turn.endswith(self._special_tokens) else end


def _find_absent_word(text: str) -> str:
    """Returns a word that does not occur in a text."""
    return next(word for number in count() if (word := f"Placeholder{number}") not in text)


def _common_prefix_length(first: str, second: str) -> int:
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if second.startswith(first[:middle]) else (low, middle - 1)
    return low
