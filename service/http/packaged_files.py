"""The scripts, styles and pictures of the pages, which are sent from memory and are compressed once."""

import gzip
import hashlib
import mimetypes
from collections.abc import AsyncIterator
from functools import cache, cached_property
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

STATIC = Path(__file__).parent.parent / "static"
MIN_COMPRESSED_BYTES = 1024
"""Size from which a file is compressed; a smaller one fits into one packet as it is."""

_PIECE_BYTES = 64 * 1024
"""Bytes that are handed over at once: a client that reads slowly does not make the process copy the whole file."""

_FOREVER = "public, max-age=31536000, immutable"


class PackagedFile:
    """One file with its compressed form.

    Attributes:
        headers: Headers of the response that do not depend on the request.
    """

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        self.etag = f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'
        media_type = mimetypes.guess_type(path.name)[0] or "text/plain"
        charset = "; charset=utf-8" if media_type.startswith("text/") else ""
        self.headers = {"Content-Type": media_type + charset, "ETag": self.etag, "Vary": "Accept-Encoding"}

    @cached_property
    def compressed(self) -> bytes:
        """The file in the form of gzip."""
        return gzip.compress(self.content, mtime=0)


class PackagedFiles:
    """An ASGI application that serves the files of a directory.

    The path of a file may begin with `digest`, the digest of all files. Browsers keep such a file without asking for it
    again: another version of the service has another digest, so its page never runs with the scripts of an older one.

    Attributes:
        digest: Twelve hexadecimal digits.
    """

    def __init__(self, directory: Path) -> None:
        paths = sorted(path for path in directory.rglob("*") if path.is_file())
        self._files = {path.relative_to(directory).as_posix(): PackagedFile(path) for path in paths}
        names = "".join(f"{name} {file.etag}\n" for name, file in self._files.items())
        self.digest = hashlib.sha256(names.encode()).hexdigest()[:12]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._respond(scope)(scope, receive, send)

    def _respond(self, scope: Scope) -> Response:
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        path = scope["path"].removeprefix(scope.get("root_path", "")).lstrip("/")
        name = path.removeprefix(f"{self.digest}/")
        file = self._files.get(name)
        if file is None:
            raise HTTPException(404)
        headers = file.headers | {"Cache-Control": "no-cache" if name == path else _FOREVER}
        asked = Headers(scope=scope)
        known = asked.get("if-none-match", "")
        if file.etag in [tag.strip().removeprefix("W/") for tag in known.split(",")]:
            return Response(status_code=304, headers=headers)
        return _make_response(file, headers, "gzip" in asked.get("accept-encoding", ""))


def _make_response(file: PackagedFile, headers: dict[str, str], accepts_gzip: bool) -> Response:
    """Returns the whole file, compressed where the client accepts it and where that makes it smaller."""
    body = file.content
    if accepts_gzip and len(body) >= MIN_COMPRESSED_BYTES:
        body, headers = file.compressed, headers | {"Content-Encoding": "gzip"}
    if len(body) <= _PIECE_BYTES:
        return Response(body, headers=headers)
    return StreamingResponse(_cut(body), headers=headers | {"Content-Length": str(len(body))})


async def _cut(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), _PIECE_BYTES):
        yield body[start : start + _PIECE_BYTES]


@cache
def load_files() -> PackagedFiles:
    """Returns the files of the pages, which are read once in a process."""
    return PackagedFiles(STATIC)
