"""Replaces Starlette's convertor `path` when it is imported, so that paths are taken whole, character by character.

Starlette ends the pattern of a route with `$`, which also matches before a line break at the end, and its own pattern
for the rest of a path stops at line breaks. So `/documents/abc%0A` would be `/documents/abc`: another document.
"""

from urllib.parse import unquote_to_bytes

from fastapi import HTTPException, Request
from starlette.convertors import PathConvertor, register_url_convertor

from bergson_core.errors import InvalidInput


class _WholePathConvertor(PathConvertor):
    """The rest of a path, with the line breaks in it: `{document_id:path}`."""

    regex = "(?s:.*)"


register_url_convertor("path", _WholePathConvertor())


async def require_whole_path(request: Request) -> None:
    """Refuses a path with a line break at its end that is no part of a parameter. It is a dependency of all routes.

    Raises:
        HTTPException: There is no such path.
    """
    if request.scope["path"].endswith("\n") and not any(
        str(value).endswith("\n") for value in request.path_params.values()
    ):
        raise HTTPException(404)


async def require_utf8_path(request: Request) -> None:
    """Refuses a path that is not UTF-8, which servers decode with U+FFFD in place of what they cannot read.

    Raises:
        InvalidInput: The path is not UTF-8.
    """
    raw_path: bytes = request.scope.get("raw_path") or b""
    try:
        unquote_to_bytes(raw_path).decode()
    except UnicodeDecodeError:
        raise InvalidInput("the path is not UTF-8: expected an id as percent-encoded UTF-8") from None
