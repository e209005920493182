"""Names and paths of the files in the directory of an index that several modules use."""

from pathlib import Path
from typing import Final

from bergson_core.schemas.build import SearchKind

LOCK_FILE: Final = ".lock"
"""Locked by the process that writes to the index. The kernel releases the lock when the process dies."""
TAKEDOWN_LOCK_FILE: Final = ".takedowns.lock"
"""Locked by the process that writes a takedown. The lock of the index may be held by another one meanwhile."""
BUILD_STAMP_FILE: Final = "building.json"
"""Says whose build the directory holds until the index is published."""
REFERENCE_FILE: Final = "reference.safetensors"
"""What the reference model says of the pairs of a build, until the index is published."""
APPEND_DIRECTORY_PREFIX: Final = ".appending-"
"""Beginning of the names of the directories that appends read documents into."""
CHECKED_FILE: Final = ".checked.json"
"""Notes which files were found intact. Readers write it, without the lock."""
TAKEDOWN_LOG_FILE: Final = "takedowns.jsonl"
TAKEDOWN_HEAD_FILE: Final = "takedowns.head.json"
BEHAVIOURS_DIRECTORY: Final = "behaviours"
"""Holds the behaviours of the index (`storage.behaviours`), which no manifest lists."""
INDEX_FILES: Final = frozenset(
    {"manifest.json", "statistics", "profiles", "shards", "search", "words", "documents.arrow"}
    | {BEHAVIOURS_DIRECTORY}
    | {BUILD_STAMP_FILE, REFERENCE_FILE, TAKEDOWN_LOG_FILE, TAKEDOWN_HEAD_FILE}
)
"""Names that an index uses in its directory, and that no model or dataset inside it may have."""
DEFAULT_PROFILE: Final = "default"


def preconditioner_path(root: Path, profile: str = DEFAULT_PROFILE) -> Path:
    """Returns the path of a profile's preconditioner in the index at `root`."""
    return root / "profiles" / profile / "preconditioner.safetensors"


def lengths_path(profile: str, shard: str) -> str:
    """Returns the path, below the index directory, of the lengths of a shard's rows under a profile."""
    return f"profiles/{profile}/{shard}.lengths.bin"


def words_path(shard: str, documents_sha256: str) -> str:
    """Returns the path, below the index directory, of the words of a shard whose documents have this sha256."""
    return f"words/{shard}.{documents_sha256[:16]}.1.arrow"


def search_path(kind: SearchKind, shard: str) -> str:
    """Returns the path, below the index directory, of the FAISS file that finds candidates in a shard."""
    return f"search/{kind}/{shard}.faiss"
