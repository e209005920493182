"""API keys: who a caller is, what the caller may do, and the file that keeps the keys.

    <data_dir>/keys.json         mode 0600   {"format": 1, "keys": [`ApiKey`, …], "sha256": …} (`utils.sealed_json`)
    <data_dir>/.keys.json.made   exists once there was a key: if the file of keys is gone then, nobody is let in

A key reads `bg_<id>_<secret>`. The id is not secret and finds the key's record. The secret is 256 random bits, of which
only the sha256 is kept. Salt and slow hashes protect passwords, which can be guessed; nobody guesses 256 bits, and
there are no tables of them.
"""

import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import lru_cache
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock
from limits import RateLimitItem, parse_many
from pydantic import AfterValidator, Field

from bergson_core.errors import InvalidInput, Unavailable
from bergson_core.schemas.base import ResultModel
from bergson_core.utils.atomic_files import write_durably
from bergson_core.utils.disk_errors import translate_disk_errors
from bergson_core.utils.sealed_json import seal, unseal

logger = logging.getLogger(__name__)

KEY_FILE_NAME = "keys.json"
Scope = Literal["read", "write", "admin"]
_SCOPES_ASCENDING: tuple[Scope, ...] = ("read", "write", "admin")
_KEY_PATTERN = re.compile(r"bg_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_DUMMY_SHA256 = sha256(b"").hexdigest()
"""What a secret is compared with when its id is unknown."""


@lru_cache(maxsize=256)
def parse_rate(text: str) -> RateLimitItem:
    """Returns a rate such as `100/minute` as a number of calls and a span of time.

    Raises:
        ValueError: `text` is not a single rate of at least one call.
    """
    try:
        rates = parse_many(text)
    except ValueError:
        rates = []
    if len(rates) != 1 or rates[0].amount < 1:
        raise ValueError(f"expected a rate such as 100/minute or 5/second, got {text!r}")
    return rates[0]


def _require_rate(text: str) -> str:
    parse_rate(text)
    return text


KeyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$")]
IndexPattern = Annotated[str, Field(pattern=r"^[a-z0-9_*?\[\]!-]{1,64}$")]


class Caller(ResultModel):
    """Whoever makes a request, with their permissions. The defaults allow everything."""

    id: str = ""
    """The id in the API key; empty when no key was needed."""
    name: str = ""
    """Name of the API key."""
    scope: Scope = "admin"
    """What the key may do; each scope includes those before it: read, write, admin."""
    indexes: tuple[IndexPattern, ...] = ()
    """Indexes that the key may see, as shell patterns such as `facts-*`. Without any, the key sees all indexes."""
    text: bool = True
    """Whether the key may see prompts, completions and metadata of documents."""
    rate: Annotated[str, AfterValidator(_require_rate)] | None = None
    """Most calls in a span of time, such as `100/minute`."""
    concurrent: int | None = Field(default=None, ge=1)
    """Most calls that may be open at once in one web process."""

    def has_scope(self, scope: Scope) -> bool:
        """Returns whether the caller's scope includes `scope`."""
        return _SCOPES_ASCENDING.index(self.scope) >= _SCOPES_ASCENDING.index(scope)

    def can_see(self, index: str | None) -> bool:
        """Returns whether the caller may know of an index.

        Args:
            index: Name of the index. None stands for something that belongs to no index, such as the estimate of a
                build; only callers who see all indexes see that.
        """
        return not self.indexes or any(fnmatchcase(index or "", pattern) for pattern in self.indexes)


class ApiKey(Caller):
    """The record of a key in the file."""

    id: str = Field(pattern="^[0-9a-f]{12}$")
    name: KeyName = Field()
    """Unique among the keys."""
    scope: Scope = Field()
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Hash of the secret."""
    created_at: float
    """Unix time in seconds."""
    expires_at: float | None = None
    """Unix time in seconds; null for a key that never expires."""

    def is_active(self) -> bool:
        """Returns whether the key has not expired."""
        return self.expires_at is None or time.time() < self.expires_at


class _KeyFileContent(ResultModel):
    format: Literal[1] = 1
    keys: tuple[ApiKey, ...] = ()


class KeyFile:
    """The file of the keys in a data directory. It is read again only after it has changed."""

    def __init__(self, data_dir: Path):
        self.path = data_dir / KEY_FILE_NAME
        self._marker = data_dir / f".{KEY_FILE_NAME}.made"
        self._stamp: tuple[int, ...] = ()
        self._keys: tuple[ApiKey, ...] | None = None

    def read(self) -> tuple[ApiKey, ...] | None:
        """Returns all keys, also expired ones; None when there never was a key.

        There are no keys where the file is gone. That is logged once.

        Raises:
            Unavailable: The file cannot be read. The reason is logged once.
        """
        keys = self._read_file()
        if keys is None and self._marker.exists():
            if self._stamp != (0,):
                self._stamp = (0,)
                logger.error(
                    "every request is refused because %s is missing: restore it, create new keys, or remove %s to run "
                    "without keys",
                    *(self.path, self._marker),
                )
            return ()
        return keys

    def _read_file(self) -> tuple[ApiKey, ...] | None:
        try:
            stat = self.path.stat()
            stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        except FileNotFoundError:
            return None
        except OSError as error:  # such as a link to itself; reading fails as well, and logs the reason
            stamp = (error.errno or 0,)
        if stamp != self._stamp:
            self._stamp, self._keys = stamp, self._parse()
        if self._keys is None:
            raise Unavailable(
                "the file of the API keys cannot be read, so all keys are refused; the log gives the reason"
            )
        return self._keys

    def _parse(self) -> tuple[ApiKey, ...] | None:
        try:
            return _KeyFileContent.model_validate_json(unseal(self.path.read_bytes())).keys
        except (OSError, ValueError) as error:
            logger.error(
                "every request is refused because %s cannot be read: repair it, or remove it and create new keys (%s)",
                *(self.path, str(error).replace("\n", " ")),
            )
            return None

    def find(self, presented_key: str) -> ApiKey | None:
        """Returns the record of a key; None when the key is unknown, wrong or expired.

        An unknown id takes as long as a wrong secret, so that nobody can learn the ids by measuring time.

        Raises:
            Unavailable: The file cannot be read.
        """
        match = _KEY_PATTERN.fullmatch(presented_key)
        key_id, secret = match.groups() if match else ("", "")
        key = next((key for key in self.read() or () if key.id == key_id), None)
        is_right = compare_digest(sha256(secret.encode()).hexdigest(), key.sha256 if key else _DUMMY_SHA256)
        return key if key is not None and is_right and key.is_active() else None

    def create(self, caller: Caller, expires_at: float | None = None) -> str:
        """Adds a key.

        Args:
            caller: Name and permissions of the key.
            expires_at: Unix time in seconds; None for a key that never expires.

        Returns:
            The key itself, which cannot be shown again.

        Raises:
            InvalidInput: There is a key of this name.
            Unavailable: The file cannot be read.
        """
        key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        new = ApiKey.model_validate(
            caller.model_dump()
            | {"id": key_id, "sha256": sha256(secret.encode()).hexdigest()}
            | {"created_at": time.time(), "expires_at": expires_at}
        )

        def with_new_key(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
            if any(key.name == new.name for key in keys):
                raise InvalidInput(
                    f"a key named {new.name!r} exists already: choose another name, or revoke it first"
                )
            return (*keys, new)

        self._update(with_new_key)
        return f"bg_{key_id}_{secret}"

    def revoke(self, name: str) -> None:
        """Removes a key, so that the next request with it is refused.

        Raises:
            InvalidInput: There is no key of this name.
            Unavailable: The file cannot be read.
        """

        def without_key(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
            if name not in (key.name for key in keys):
                raise InvalidInput(f"there is no key named {name!r}: `bergson keys list` shows them")
            return tuple(key for key in keys if key.name != name)

        self._update(without_key)

    def _update(self, change: Callable[[tuple[ApiKey, ...]], tuple[ApiKey, ...]]) -> None:
        """Replaces the file by one with the changed keys, which only its owner can read.

        The process must do nothing else meanwhile, because the mask of file modes is that of the whole process.
        """
        previous_umask = os.umask(0o077)
        try:
            with translate_disk_errors(self.path.parent):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(self.path.with_name(f".{KEY_FILE_NAME}.lock")):
                    content = _KeyFileContent(keys=change(self._read_file() or ()))
                    write_durably(self._marker, b"")  # first, so that a kill between the two lets nobody in
                    write_durably(self.path, seal(content.model_dump_json(indent=1)))
        finally:
            os.umask(previous_umask)
