"""Names the fields in which two specs differ, for messages that say which setting is another one."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel

_MAX_SHOWN: Final = 120

Difference = tuple[str, str, str]
"""Path of a field, and its values before and after as text."""


def find_differences(before: Any, after: Any) -> list[Difference]:
    """Returns the fields in which two specs, or mappings of specs, differ: path, value before, value after.

    A field of a nested spec is named by its path, such as `gradients.projection_dim`.
    """
    return list(_iter_differences("", _plain(before), _plain(after)))


def _iter_differences(path: str, before: Any, after: Any) -> Iterator[Difference]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in dict.fromkeys((*before, *after)):
            nested = f"{path}.{name}" if path else name
            yield from _iter_differences(nested, _plain(before.get(name)), _plain(after.get(name)))
    elif before != after:
        yield path, _show(before), _show(after)


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, BaseModel) else value


def _show(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
