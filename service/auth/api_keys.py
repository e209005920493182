"""API keys: who asks, what they may, and the file that says so.

    <data_dir>/keys.json   mode 0600   {"format": 1, "keys": [`Key`, …]}; it is there as soon as keys are wanted

A key is `bg_<id>_<secret>`. The id is no secret and finds the record; the secret is 256 random bits, and only its
sha256 is kept. Salt and slow hashes protect passwords, which can be guessed: nobody guesses 256 bits, and nobody has
tables of them. No torch here.
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
from pydantic import AfterValidator, Field, ValidationError

from bergson_core.errors import InvalidInput, Unavailable
from bergson_core.schemas.base import ResultModel

logger = logging.getLogger(__name__)

KEY_FILE_NAME = "keys.json"
Scope = Literal["read", "write", "admin"]
_SCOPES_ASCENDING: tuple[Scope, ...] = ("read", "write", "admin")
_KEY_PATTERN = re.compile(r"bg_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_DUMMY_SHA256 = sha256(b"").hexdigest()


@lru_cache(maxsize=256)
def parse_rate(text: str) -> RateLimitItem:
    """`100/minute` as calls and a span of time. Raises `ValueError`."""
    try:
        found = parse_many(text)
    except ValueError:
        found = []
    if len(found) != 1 or found[0].amount < 1:
        raise ValueError(f"expected a rate such as 100/minute or 5/second, got {text!r}")
    return found[0]


def _validate_rate(text: str) -> str:
    parse_rate(text)
    return text


KeyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$")]
IndexPattern = Annotated[str, Field(pattern=r"^[a-z0-9_*?\[\]!-]{1,64}$")]


class Caller(ResultModel):
    """Who asks, and what they may; by default anybody, and everything."""

    id: str = ""
    """What stands in the key itself; empty where nothing asked for a key."""
    name: str = ""
    scope: Scope = "admin"
    """Each one includes those before it: read, write, admin."""
    indexes: tuple[IndexPattern, ...] = ()
    """Names of the indexes that there are for this caller, as shell patterns (`facts-*`); empty: all."""
    text: bool = True
    """Whether prompts, completions and metadata of documents are shown."""
    rate: Annotated[str, AfterValidator(_validate_rate)] | None = None
    """Calls in a span of time: `100/minute`."""
    concurrent: int | None = Field(default=None, ge=1)
    """Calls that may be open at once in one web process."""

    def has_scope(self, needed: Scope) -> bool:
        """Whether the scope includes `needed`."""
        return _SCOPES_ASCENDING.index(self.scope) >= _SCOPES_ASCENDING.index(needed)

    def can_see(self, index: str | None) -> bool:
        """Whether there is such an index for this caller; what belongs to no index is seen by those who see all."""
        return not self.indexes or any(fnmatchcase(index or "", pattern) for pattern in self.indexes)


class ApiKey(Caller):
    """A key as it is kept."""

    id: str = Field(pattern="^[0-9a-f]{12}$")
    name: KeyName = Field()
    """Unique among the keys."""
    scope: Scope = Field()
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of the secret."""
    created_at: float
    """Unix time in seconds, as `expires_at`."""
    expires_at: float | None = None

    def is_active(self) -> bool:
        """Whether it has not expired."""
        return self.expires_at is None or time.time() < self.expires_at


class _KeyFileContent(ResultModel):
    format: Literal[1] = 1
    keys: tuple[ApiKey, ...] = ()


class KeyFile:
    """The keys below a data directory. What is read is kept until the file is another one."""

    def __init__(self, data_dir: Path):
        self.path = data_dir / KEY_FILE_NAME
        self._stamp: tuple[int, ...] = ()
        self._found: tuple[ApiKey, ...] | None = None

    def read(self) -> tuple[ApiKey, ...] | None:
        """All keys, also expired ones; None where there is no file.

        Raises `Unavailable` where the file cannot be read, and says why in the log, once.
        """
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return None
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if stamp != self._stamp:
            self._stamp, self._found = stamp, self._parse()
        if self._found is None:
            raise Unavailable(
                "the file of the API keys cannot be read, so that all are refused; the log says more"
            )
        return self._found

    def _parse(self) -> tuple[ApiKey, ...] | None:
        try:
            return _KeyFileContent.model_validate_json(self.path.read_bytes()).keys
        except (OSError, ValidationError) as error:
            logger.error(
                "every request is refused, for %s cannot be read: mend it, or remove it and make new keys (%s)",
                *(self.path, str(error).replace("\n", " ")),
            )
            return None

    def find(self, presented: str) -> ApiKey | None:
        """The key that was presented, or None where it is not one, or has expired.

        As long for an unknown id as for a wrong secret, so that nobody learns the ids by the clock.
        """
        parts = _KEY_PATTERN.fullmatch(presented)
        key_id, secret = parts.groups() if parts else ("", "")
        found = next((key for key in self.read() or () if key.id == key_id), None)
        same = compare_digest(sha256(secret.encode()).hexdigest(), found.sha256 if found else _DUMMY_SHA256)
        return found if found is not None and same and found.is_active() else None

    def create(self, caller: Caller, expires_at: float | None = None) -> str:
        """Adds a key that may what `caller` may; the key, which nothing can show again. Raises `InvalidInput`."""
        key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        new = ApiKey.model_validate(
            caller.model_dump()
            | {"id": key_id, "sha256": sha256(secret.encode()).hexdigest()}
            | {"created_at": time.time(), "expires_at": expires_at}
        )

        def added(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
            if any(key.name == new.name for key in keys):
                raise InvalidInput(
                    f"there is a key named {new.name!r}: choose another name, or revoke it first"
                )
            return (*keys, new)

        self._update(added)
        return f"bg_{key_id}_{secret}"

    def revoke(self, name: str) -> None:
        """Removes a key: the next request with it is refused. Raises `InvalidInput` where there is none."""

        def left(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
            if name not in (key.name for key in keys):
                raise InvalidInput(f"there is no key named {name!r}: `bergson keys list` shows them")
            return tuple(key for key in keys if key.name != name)

        self._update(left)

    def _update(self, change: Callable[[tuple[ApiKey, ...]], tuple[ApiKey, ...]]) -> None:
        """For a process that does nothing else meanwhile: the mask of file modes is the whole process's."""
        from bergson_core.utils.atomic_files import write_durably  # brings pyarrow along

        self.path.parent.mkdir(parents=True, exist_ok=True)
        before = os.umask(0o077)
        try:
            with FileLock(self.path.with_name(f".{KEY_FILE_NAME}.lock")):
                content = _KeyFileContent(keys=change(self.read() or ()))
                write_durably(self.path, content.model_dump_json(indent=2).encode())
        finally:
            os.umask(before)
