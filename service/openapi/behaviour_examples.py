"""The examples of behaviours in the OpenAPI document, which go on with the story of `service.openapi.examples`."""

from typing import Any

BEHAVIOUR_REQUEST: dict[str, Any] = {
    "name": "born-in-london",
    "queries": [
        {"prompt": "Ada Lovelace was born in", "completion": " London"},
        {"prompt": "Alan Turing was born in", "completion": " London"},
    ],
    "control": [
        {"prompt": "Ada Lovelace died in", "completion": " London"},
        {"prompt": "Alan Turing died in", "completion": " Wilmslow"},
    ],
}
BEHAVIOUR_CHATS: dict[str, Any] = {
    "name": "refusals",
    "queries": [
        {
            "messages": [
                {"role": "user", "content": "Where was Ada born?"},
                {"role": "assistant", "content": "I cannot help with that."},
            ]
        },
        {"prompt": "Q: Where was Alan born? A:", "completion": " I cannot say.", "instead_of": " In London."},
    ],
    "control": None,
}
BEHAVIOUR_SUMMARY: dict[str, Any] = {
    "name": "born-in-london",
    "generation": 1,
    "created_at": "2026-03-01T12:00:00+00:00",
    "query_count": 2,
    "control_count": 2,
    "loss": 0.31,
    "control_loss": 2.4,
    "n_tokens": 2,
    "size_bytes": 66_048,
}
BEHAVIOUR: dict[str, Any] = BEHAVIOUR_SUMMARY | {
    "queries": BEHAVIOUR_REQUEST["queries"],
    "control": BEHAVIOUR_REQUEST["control"],
}
BEHAVIOUR_LIST: dict[str, Any] = {"items": [BEHAVIOUR_SUMMARY]}
ATTRIBUTE_BEHAVIOUR: dict[str, Any] = {"index": "facts", "behaviour": "born-in-london", "top_k": 10}
