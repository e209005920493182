"""Large, deep, wide and wrong bodies for any model of a request, as strategies of Hypothesis.

They are made from the JSON schema of the model, so that a route and a field that are added are attacked as well.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from service.http.problems import MEDIA_TYPE

SMALL_VALUES = [
    "0",
    "{}",
    "[]",
    "null",
    '""',
    '"text"',
    '{"":{}}',
    "[[]]",
    '{"role":"user"}',
    "1e308",
    '{"a":[{}]}',
]
"""Values, as JSON, of which large bodies are made."""


def examples(count: int, long_form: bool) -> settings:
    """Returns how many examples are drawn; the long form draws many more."""
    return settings(
        max_examples=100 * count if long_form else count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )


def fill_list(value: str, size: int) -> str:
    """Returns a list of copies of a value, as JSON of about `size` bytes."""
    return "[" + ",".join([value] * max(1, size // (len(value) + 1))) + "]"


def fill_object(value: str, size: int) -> str:
    """Returns an object of many names with the same value, as JSON of about `size` bytes."""
    count = max(1, size // (len(value) + 9))
    return "{" + ",".join(f'"{number:05x}":{value}' for number in range(count)) + "}"


def fill_depth(value: str, size: int) -> str:
    """Returns a list of lists that are nested as deeply as is allowed, as JSON of about `size` bytes."""
    return fill_list("[" * 190 + value + "]" * 190, size)


def fill_text(value: str, size: int) -> str:
    """Returns a text of about `size` bytes."""
    return json.dumps(value * (size // max(1, len(json.dumps(value)) - 2)))


def fill_digits(value: str, size: int) -> str:
    """Returns an integer of `size` digits."""
    return "1" * size


FILLS: dict[str, Callable[[str, int], str]] = {
    "list": fill_list,
    "object": fill_object,
    "depth": fill_depth,
    "text": fill_text,
    "digits": fill_digits,
}


def iter_paths(
    schema: dict[str, Any], definitions: dict[str, Any], depth: int = 0
) -> Iterator[tuple[str | int, ...]]:
    """Yields the place of each field in a JSON schema: names of fields, and 0 for the item of a list."""
    if depth > 6:
        return
    for alternative in (schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())):
        if "$ref" in alternative:
            alternative = definitions[alternative["$ref"].rpartition("/")[2]]
            yield from iter_paths(alternative, definitions, depth + 1)
        for name, part in alternative.get("properties", {}).items():
            yield (name,)
            yield from ((name, *path) for path in iter_paths(part, definitions, depth + 1))
        items = alternative.get("items") or alternative.get("additionalProperties")
        if isinstance(items, dict):
            step = 0 if "items" in alternative else "name"
            yield (step,)
            yield from ((step, *path) for path in iter_paths(items, definitions, depth + 1))


def put_into(example: Any, path: tuple[str | int, ...], filling: str) -> str:
    """Returns `example` as JSON, with `filling`, which is JSON, at a place that is made where there is none."""
    marker = "\uf8ff"

    def put(value: Any, rest: tuple[str | int, ...]) -> Any:
        if not rest:
            return marker
        if rest[0] == 0:
            items = value if isinstance(value, list) and value else [None]
            return [put(items[0], rest[1:]), *items[1:]]
        fields = value if isinstance(value, dict) else {}
        return fields | {rest[0]: put(fields.get(rest[0]), rest[1:])}

    return json.dumps(put(example, path), ensure_ascii=False).replace(f'"{marker}"', filling)


def hostile_parts(
    schema: dict[str, Any], definitions: dict[str, Any]
) -> st.SearchStrategy[tuple[tuple[str | int, ...], str, str]]:
    """Returns a strategy of arguments for `make_hostile_body`: a place, one of `FILLS`, one of `SMALL_VALUES`.

    Args:
        schema: The JSON schema of the model.
        definitions: The schemas that it refers to.
    """
    paths = [(), *dict.fromkeys(iter_paths(schema, definitions))]
    return st.tuples(st.sampled_from(paths), st.sampled_from(list(FILLS)), st.sampled_from(SMALL_VALUES))


def make_hostile_body(example: Any, part: tuple[tuple[str | int, ...], str, str], size: int) -> str:
    """Returns a body of about `size` bytes: `example`, which is right, with a part that is large and mostly wrong."""
    path, fill, value = part
    return put_into(example, path, FILLS[fill](value, size))


def require_no_failure(response: httpx.Response) -> None:
    """Checks that a response is no failure of the service, and that a refusal is a problem."""
    assert response.status_code < 500 or response.status_code in (503, 504), response.text
    if response.status_code >= 400:
        assert response.headers["content-type"] == MEDIA_TYPE, response.text
        assert response.json()["status"] == response.status_code
