"""The examples of totals in the OpenAPI document, which go on with the story of `service.openapi.examples`."""

from typing import Any

from service.openapi.examples import REQUEST_ID

TOTALS_REQUEST: dict[str, Any] = {
    "prompt": "Ada Lovelace was born in",
    "completion": " London",
    "by": "source",
    "top": 10,
}
TOTALS_CONTRAST: dict[str, Any] = {
    "prompt": "Ada Lovelace was born in",
    "completion": " London",
    "instead_of": " Paris",
    "by": "source",
    "filter": {"year": {"gte": 1990}},
    "threshold": 2.0,
}
TOTALS_BEHAVIOUR: dict[str, Any] = {"behaviour": "born-in-london", "by": "source", "timeout_s": 60}
TOTALS_RESPONSE: dict[str, Any] = {
    "index": "facts",
    "generation": 1,
    "profile": "default",
    "query": {
        "prompt": "Ada Lovelace was born in",
        "completion": " London",
        "generated": False,
        "loss": 0.12,
        "n_tokens": 1,
    },
    "by": "source",
    "threshold": 3.0,
    "groups": [
        {"value": "wiki", "documents": 612, "sum": 3.9, "mean": 0.0064, "interval": [3.1, 4.7]},
        {"value": None, "documents": 40, "sum": 0.0, "mean": 0.0, "interval": None},
        {"value": "forum", "documents": 348, "sum": -0.62, "mean": -0.0018, "interval": [-0.91, -0.33]},
    ],
    "group_count": 3,
    "documents": 1000,
    "sum": 3.28,
    "warnings": [],
    "partial": False,
    "timing_ms": {"queue": 0.8, "gradient": 11.2, "search": 31.5, "total": 43.5},
    "request_id": REQUEST_ID,
}
