"""Renders a chat with a chat template, as `apply_chat_template` of transformers does.

The environment of templates is that of transformers, made of jinja2's sandbox: transformers itself takes a second to
import, ten times as long as everything else that a query's chat takes.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

Message = dict[str, Any]
Chat = list[Message]
Rendered = tuple[str, list[list[int]]]
"""The text of a chat, and the characters [start, end) of it that the template marks, span by span."""

_MARK: Final = re.compile(r"\{%-?\s*generation\s*-?%\}")
_REASONING_FIELDS: Final = ("reasoning_content", "thinking", "reasoning")


class ChatError(Exception):
    """A chat that cannot be rendered, or in which the assistant's turns cannot be found."""


class _GenerationTag(Extension):
    """The tag `generation`, which notes where its content is in the rendered text."""

    tags = {"generation"}
    blocks: list[str] | None = None
    """What was rendered so far, while `record` is open."""

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return CallBlock(self.call_method("_note", []), [], [], body).set_lineno(line)

    def _note(self, caller: Any) -> str:
        content = caller()
        if self.blocks is not None:
            start = sum(map(len, self.blocks))
            self.spans.append([start, start + len(content)])
        return content

    @contextmanager
    def record(self) -> Iterator[tuple[list[str], list[list[int]]]]:
        """Gives a list, to which the caller appends each rendered block, and the list of the noted spans."""
        self.blocks, self.spans = [], []
        try:
            yield self.blocks, self.spans
        finally:
            self.blocks = None


class _Namespace(Namespace):
    """A namespace without underscored names, through which a template could reach Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, attributes = args[0], dict(*args[1:], **kwargs)
        for name in attributes:
            _require_plain_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_plain_name(name)
        super().__setitem__(name, value)


class _DictFunction:
    """The function `dict` of templates, without the attributes of the type, which may lead to Python's internals."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _require_plain_name(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a template cannot set the attribute {name!r}")


class Renderer:
    """Renders chats as `apply_chat_template` of transformers does.

    Args:
        template: Source of the template.
        variables: What the template sees beside the messages, such as the special tokens.
        now: What the template is given as the time.
    """

    def __init__(self, template: str, variables: dict[str, Any], now: datetime) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": now.strftime,
            "dict": _DictFunction(),
            "namespace": _Namespace,
        }
        self._tag: _GenerationTag = next(
            tag for tag in environment.extensions.values() if isinstance(tag, _GenerationTag)
        )
        self._template = environment.from_string(template)
        self._variables = {"tools": None, "documents": None, **variables}
        self.has_marks = _MARK.search(template) is not None
        self.asks_for_prompt = "add_generation_prompt" in template
        self.text_tokens = tuple(filter(None, (variables.get(name) for name in ("bos_token", "eos_token"))))
        """The tokens with which whole texts begin and end; some templates begin with that of the end."""

    def render(self, chat: Chat, generation_prompt: bool = False) -> Rendered:
        """Returns the text of a chat, and the spans of it that the template marks.

        Raises:
            ChatError: The template refuses the chat.
        """
        variables = {
            "messages": [_with_all_names_of_reasoning(message) for message in chat],
            "add_generation_prompt": generation_prompt,
        }
        with self._tag.record() as (blocks, spans):
            try:
                for block in self._template.generate(**variables, **self._variables):
                    blocks.append(block)
            except Exception as error:  # a template may do whatever Python does
                raise ChatError(
                    f"the chat template refuses it: {type(error).__name__}: {error}"[:300]
                ) from error
        return "".join(blocks), spans

    def try_render(self, chat: Chat, generation_prompt: bool = False) -> str | None:
        """Returns the text of a chat, or None where the template refuses it."""
        try:
            return self.render(chat, generation_prompt)[0]
        except ChatError:
            return None


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, **options: Any) -> str:
    """The filter `tojson`, which does not escape HTML, other than jinja2's."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _with_all_names_of_reasoning(message: Message) -> Message:
    """Returns a message whose reasoning has all the names under which templates read it."""
    for name in _REASONING_FIELDS:
        if (reasoning := message.get(name)) is not None:
            return {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message
