"""The pages of the library and of the client for mkdocstrings: which public names are on which page."""

from typing import Final

import bergson_core
from bergson_core import errors

_SECTIONS: Final[tuple[tuple[str, str], ...]] = (
    ("Open an index and query it", "attribution"),
    ("Build an index and change it", "indexing"),
    ("Collect gradients", "gradients"),
    ("Load models", "models"),
    ("Measure an index", "evaluation"),
    ("Other people's systems", "integrations"),
    ("What is sent and what comes back", "schemas"),
    ("Files and tools", ""),
)
_HEAD: Final = """# Python library

All public names of `bergson_core`. [Gradients](../gradients.md), [answers](../answers.md) and
[scores of a whole corpus](../corpus.md) are the guides to them.
"""
_CLIENT: Final = """# Python client

[The guide to the client](../client.md) has examples. `AsyncClient` has the same methods as coroutines.

::: service.client.Client
    options:
      inherited_members: true
      show_root_heading: true
"""


def library_reference() -> str:
    """Returns a page with a directive of mkdocstrings for each public name of the library, by folder."""
    names = [name for name in bergson_core.__all__ if name not in ("errors", "__version__")]
    places = {name: getattr(bergson_core, name).__module__.removeprefix("bergson_core.") for name in names}
    lines = [_HEAD]
    for title, folder in _SECTIONS:
        chosen = [name for name in names if places[name].startswith(folder) and name in places]
        lines.append(f"## {title}\n")
        lines += [f"::: bergson_core.{places.pop(name)}.{name}\n" for name in chosen]
        names = [name for name in names if name in places]
    return "\n".join([*lines, "## Errors\n", "```text", *_error_tree(), "```", ""])


def client_reference() -> str:
    """Returns a page with the directives of mkdocstrings for the client of the service."""
    return _CLIENT


def _error_tree() -> list[str]:
    """Returns the tree of errors that stands at the top of `bergson_core.errors`."""
    lines = (errors.__doc__ or "").splitlines()
    return [line.strip() for line in lines if line.startswith("    ")]
