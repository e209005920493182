"""The examples of links in the OpenAPI document, which go on with the story of `service.openapi.examples`."""

from typing import Any

from service.openapi import examples

LINK_ID = "69cbbcd09b1f6c0d2e7a4f8855ab3c1e90d2f417"
LINK_REQUEST: dict[str, Any] = {
    "request": {"index": "facts", "prompt": "Ada Lovelace was born in", "completion": " London", "top_k": 1}
}
LINK: dict[str, Any] = {
    "id": LINK_ID,
    "request": LINK_REQUEST["request"],
    "index": "facts",
    "generation": 1,
    "fingerprint": examples.INDEX_DETAIL["fingerprint"],
    "created_at": 1772366400.0,
    "expires_at": 1774958400.0,
    "stale": False,
    "current_generation": 1,
    "removed": 0,
    "answer": examples.ATTRIBUTE_RESPONSE,
}
