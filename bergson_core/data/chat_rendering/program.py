"""The program that `data/chat_template.py` runs in a sandbox, in a process of its own.

Standard input: {"template", "variables": of the template, "date": ISO or null, "tokens": names of added tokens,
                 "closing": those of them that are special, "chats": lists of messages without nulls}
Standard output: for each chat {"text", "spans": [[start, end], …]} or {"error"}; spans count characters of the text.
"""

import json
import sys
from datetime import datetime
from typing import Any

from bergson_core.data.chat_rendering.assistant_turns import TurnFinder
from bergson_core.data.chat_rendering.message_forms import render_in_form
from bergson_core.data.chat_rendering.renderer import Chat, ChatError, Renderer


def main() -> None:
    """Renders the chats of standard input."""
    task = json.load(sys.stdin)
    now = datetime.fromisoformat(task["date"]) if task["date"] else datetime.now()
    renderer = Renderer(task["template"], task["variables"], now)
    json.dump(
        [_render_chat(renderer, chat, task["tokens"], task["closing"]) for chat in task["chats"]], sys.stdout
    )


def _render_chat(renderer: Renderer, chat: Chat, tokens: list[str], closing: list[str]) -> dict[str, Any]:
    """Returns the text of a chat and the spans of it that the assistant says, or why there is none."""
    try:
        form, (text, spans) = render_in_form(renderer, chat)
        if len(text) > (limit := 100_000 + 10 * len(json.dumps(chat))):
            raise ChatError(f"the template makes {len(text)} characters of it; expected at most {limit}")
        if not renderer.has_marks:
            longest_first = tuple(sorted(closing, key=len, reverse=True))
            spans = TurnFinder(renderer, form, text, tuple(tokens), longest_first).find()
        return {"text": text, "spans": spans}
    except ChatError as error:
        return {"error": str(error)}
