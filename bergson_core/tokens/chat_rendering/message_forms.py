"""Renders a chat in the form that its template takes.

Some templates take the arguments of tool calls as JSON text and some as objects; some take contents as text only and
not as a list of parts.
"""

import json
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from bergson_core.tokens.chat_rendering.renderer import Chat, ChatError, Message, Rendered, Renderer

Convert = Callable[[Any], Any]


def render_in_form(renderer: Renderer, chat: Chat) -> tuple[Chat, Rendered]:
    """Returns the chat in the form that the template takes, and how it is rendered.

    The chat stays as it is if the template renders it, and neither puts JSON text into JSON text nor writes a list of
    parts as Python does. A list without parts is a content without text.

    Raises:
        ChatError: The template refuses every form, and the error is that of the chat as it is; or it does not render
            the tool calls of a message.
    """
    chat = [{**message, "content": ""} if message.get("content") == [] else message for message in chat]
    form, rendered = _find_form(renderer, chat)
    _require_tool_calls(renderer, form, rendered[0])
    return form, rendered


def _require_tool_calls(renderer: Renderer, chat: Chat, text: str) -> None:
    """Raises `ChatError` where the text of a chat is the same without the tool calls of a message."""
    for number, message in enumerate(chat):
        if message["role"] != "assistant" or not message.get("tool_calls"):
            continue
        without_calls = {name: value for name, value in message.items() if name != "tool_calls"}
        if renderer.try_render([*chat[:number], without_calls, *chat[number + 1 :]]) == text:
            raise ChatError(
                f"the chat template does not render the tool_calls of message {number}, which would be missing in what "
                "the assistant says; expected a template that renders tool calls, or messages without them"
            )


def _find_form(renderer: Renderer, chat: Chat) -> tuple[Chat, Rendered]:
    refusal: ChatError | None = None
    twice_encoded: tuple[Chat, Rendered] | None = None
    for arguments, contents in product((_as_is, _as_object, _as_text), (_as_is, _as_joined_text)):
        form = [_convert_message(message, arguments, contents) for message in chat]
        if form == chat and (arguments, contents) != (_as_is, _as_is):
            continue
        try:
            rendered = renderer.render(form)
        except ChatError as error:
            refusal = refusal or error
            continue
        if any(parts in rendered[0] for parts in _lists_of_parts(form)):
            refusal = refusal or ChatError(
                "the chat template does not accept a content that is a list of parts; expected text, or parts of text"
            )
        elif any(text in rendered[0] for text in _twice_encoded_arguments(form)):
            twice_encoded = twice_encoded or (form, rendered)
        else:
            return form, rendered
    if twice_encoded is None:
        assert refusal is not None  # the chat as it is was refused
        raise refusal
    return twice_encoded  # its arguments are no JSON objects


def _as_is(value: Any) -> Any:
    return value


def _as_object(arguments: Any) -> Any:
    try:
        parsed = json.loads(arguments)
    except (TypeError, ValueError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _as_text(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _as_joined_text(content: Any) -> Any:
    texts = [part if isinstance(part, str) else _text_of_part(part) for part in content]
    return "".join(filter(None, texts)) if None not in texts else content


def _text_of_part(part: dict[str, Any]) -> str | None:
    text = part.get("text") if part.get("type", "text") == "text" else None
    return text if isinstance(text, str) else None


def _convert_message(message: Message, arguments: Convert, contents: Convert) -> Message:
    message = dict(message)
    if isinstance(message.get("content"), list):
        message["content"] = contents(message["content"])
    if isinstance(message.get("tool_calls"), list):
        message["tool_calls"] = [_convert_call(call, arguments) for call in message["tool_calls"]]
    return message


def _convert_call(call: Any, convert: Convert) -> Any:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _convert_call(call["function"], convert)}
    return {**call, "arguments": convert(call["arguments"])} if "arguments" in call else call


def _lists_of_parts(chat: Chat) -> Iterator[str]:
    """Yields the lists of parts as Python writes them, which a template does that takes contents for text."""
    yield from (
        str(message["content"])
        for message in chat
        if message.get("content") and isinstance(message["content"], list)
    )


def _twice_encoded_arguments(chat: Chat) -> Iterator[str]:
    """Yields the arguments that are JSON text as they are inside JSON text."""
    for message in chat:
        for call in message.get("tool_calls") or ():
            function = call.get("function", call) if isinstance(call, dict) else {}
            arguments = function.get("arguments") if isinstance(function, dict) else None
            if isinstance(arguments, str) and '"' in arguments:
                yield json.dumps(arguments, ensure_ascii=False)[1:-1]
