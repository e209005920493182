"""The files of the links, which all web processes of a data directory share.

    <data_dir>/links/<key>/<id>.json     a `KeptAnswer`, sealed (`utils.sealed_json`); <key> is the id of the API key
                                         that has made the link, or `anybody` where none was needed

The first eight digits of an id are the time at which the link ends, as hexadecimal Unix time in seconds, so that
nothing has to be read to find what has ended. The other 128 bits are random: nobody guesses an id. The directory of a
key is how its links are counted.
"""

import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from filelock import FileLock
from pydantic import ValidationError

from bergson_core.errors import DiskFull, Forbidden, LinkNotFound
from bergson_core.utils.atomic_files import write_durably
from bergson_core.utils.disk_errors import translate_disk_errors
from bergson_core.utils.sealed_json import seal, unseal
from service.auth.api_keys import Caller
from service.links.kept_answer import KeptAnswer
from service.settings import ServiceSettings

logger = logging.getLogger(__name__)

_TIME_DIGITS: Final = 8
_NO_KEY: Final = "anybody"


def make_link_id(expires_at: float) -> str:
    """Returns a new id for a link that ends at `expires_at`, Unix time in seconds."""
    return f"{int(expires_at):0{_TIME_DIGITS}x}{secrets.token_hex(16)}"


class LinkStore:
    """Writes, reads and removes the files of links. Its methods wait for the disk: call them in a thread."""

    def __init__(self, settings: ServiceSettings):
        self._root = settings.data_dir / "links"
        self._max_bytes = settings.links_bytes

    def require_enabled(self) -> None:
        """Raises `Forbidden` if the service keeps no links."""
        if not self._max_bytes:
            raise Forbidden("this service keeps no links (BERGSON_LINKS_BYTES is 0)")

    def write(self, kept: KeptAnswer, caller: Caller) -> None:
        """Writes the file of a new link, and removes those of links that have ended. It is on disk when this returns.

        Raises:
            DiskFull: The links of all callers, or those of this one, would take too much space.
            ReadOnly: The data directory may not be written to.
            DiskFailed: The disk reports an error.
        """
        content = seal(kept.model_dump_json(indent=1, exclude_unset=True))
        directory = self._root / (caller.id or _NO_KEY)
        with translate_disk_errors(self._root):
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(self._root / ".lock"):
                self._remove_ended()
                self._require_room(len(content), directory if caller.id else None)
                directory.mkdir(mode=0o700, exist_ok=True)
                write_durably(directory / f"{kept.id}.json", content)

    def read(self, link_id: str) -> KeptAnswer:
        """Returns what is kept under an id. Raises `LinkNotFound`."""
        path = self._find(link_id)
        try:
            kept = KeptAnswer.model_validate_json(unseal(path.read_bytes()))
        except FileNotFoundError:  # another process has just removed it
            raise _not_found(link_id) from None
        except (OSError, ValueError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            logger.error("%s cannot be read: %s", path, reason)  # the file is at fault, not the code
            raise _not_found(link_id) from None
        if kept.expires_at <= time.time():
            with suppress(OSError):  # the disk may be read-only
                path.unlink()
            raise _not_found(link_id)
        return kept

    def remove(self, link_id: str, caller: Caller) -> None:
        """Removes a link, which the caller may see.

        Raises:
            LinkNotFound: There is no such link.
            Forbidden: Another key has made it, and this key may not write.
        """
        path = self._find(link_id)
        if path.parent.name != (caller.id or _NO_KEY) and not caller.has_scope("write"):
            raise Forbidden(
                "another key made this link: only that key, or a key of scope write, can remove it"
            )
        with translate_disk_errors(self._root):
            path.unlink(missing_ok=True)

    def _find(self, link_id: str) -> Path:
        path = next(self._root.glob(f"*/{link_id}.json"), None)
        if path is None:
            raise _not_found(link_id)
        return path

    def _files(self) -> Iterator[Path]:
        """Yields the files of all links, and what killed processes have left beside them."""
        for directory in self._root.iterdir():
            if directory.is_dir():
                yield from directory.iterdir()

    def _remove_ended(self) -> None:
        now = time.time()
        for path in list(self._files()):
            is_left_over = path.name.startswith(".")  # whoever writes holds the lock
            if is_left_over or _end_of(path) <= now:
                path.unlink(missing_ok=True)

    def _require_room(self, new_bytes: int, own_directory: Path | None) -> None:
        total, own = 0, 0
        for path in self._files():
            size = path.stat().st_size
            total += size
            own += size if path.parent == own_directory else 0
        free = self._max_bytes - total
        if new_bytes > free:
            raise DiskFull(
                f"the links use {total:,} of {self._max_bytes:,} bytes (BERGSON_LINKS_BYTES), and this link needs "
                f"{new_bytes:,}: raise the limit, ask for fewer results, or wait until older links end"
            )
        if own_directory is not None and own + new_bytes > free:
            raise DiskFull(
                f"the links of this key take {own:,} bytes and this one needs {new_bytes:,}, and a key may have as "
                f"much as the others leave, {free:,} of {self._max_bytes:,} bytes (BERGSON_LINKS_BYTES): remove links, "
                "or raise the limit"
            )


def _end_of(path: Path) -> int:
    """Returns the time at which the link of a file ends, Unix time in seconds; 0 for a file of another name."""
    try:
        return int(path.name[:_TIME_DIGITS], 16)
    except ValueError:
        return 0


def _not_found(link_id: str) -> LinkNotFound:
    return LinkNotFound.for_id(link_id)
