"""The program that `tokens/chat_template.py` runs in a sandbox, in a process of its own.

Standard input: {"template", "variables": of the template, "date": ISO or null, "special_tokens": their names,
                 "chats": lists of messages without nulls}
Standard output: for each chat {"text", "spans": [[start, end], …]} or {"error"}; spans count characters of the text.
"""

import json
import sys
from datetime import datetime
from typing import Any

from bergson_core.tokens.chat_rendering.assistant_turns import TurnFinder
from bergson_core.tokens.chat_rendering.message_forms import render_in_form
from bergson_core.tokens.chat_rendering.renderer import Chat, ChatError, Renderer


def main() -> None:
    """Renders the chats of standard input."""
    task = json.load(sys.stdin)
    now = datetime.fromisoformat(task["date"]) if task["date"] else datetime.now()
    renderer = Renderer(task["template"], task["variables"], now)
    special_tokens = tuple(task["special_tokens"])
    json.dump([_render_chat(renderer, chat, special_tokens) for chat in task["chats"]], sys.stdout)


def _render_chat(renderer: Renderer, chat: Chat, special_tokens: tuple[str, ...]) -> dict[str, Any]:
    """Returns the text of a chat and the spans of it that the assistant says, or why there is none."""
    try:
        form, (text, spans) = render_in_form(renderer, chat)
        if len(text) > (limit := 100_000 + 10 * len(json.dumps(chat))):
            raise ChatError(f"the template makes {len(text)} characters of it; expected at most {limit}")
        if not renderer.has_marks:
            spans = TurnFinder(renderer, form, text, special_tokens).find()
        return {"text": text, "spans": spans}
    except ChatError as error:
        return {"error": str(error)}
