"""Where in the directory of an index each file lies, and the names of those that several modules touch."""

from pathlib import Path
from typing import Final

from bergson_core.schemas.build import SearchKind

LOCK_FILE: Final = ".lock"
"""Held by whoever writes in the directory of an index; the kernel releases it when the process dies."""
BUILD_STAMP_FILE: Final = "building.json"
"""Whose build this is, as long as it is not published."""
TAKEDOWN_LOG_FILE: Final = "takedowns.jsonl"
DEFAULT_PROFILE: Final = "default"


def preconditioner_path(root: Path, profile: str = DEFAULT_PROFILE) -> Path:
    """Where the index in directory `root` keeps the preconditioner of a profile."""
    return root / "profiles" / profile / "preconditioner.safetensors"


def lengths_path(profile: str, shard: str) -> str:
    """Where below its directory an index keeps the lengths of a shard's rows under a profile."""
    return f"profiles/{profile}/{shard}.lengths.bin"


def search_path(kind: SearchKind, shard: str) -> str:
    """Where below its directory an index keeps what finds candidates in a shard."""
    return f"search/{kind}/{shard}.faiss"
