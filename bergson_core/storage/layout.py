"""TODO"""

from pathlib import Path
from typing import Final

DEFAULT_PROFILE: Final = "default"


def preconditioner_path(root: Path, profile: str = DEFAULT_PROFILE) -> Path:
    """Where the index in directory `root` keeps the preconditioner of a profile."""
    return root / "profiles" / profile / "preconditioner.safetensors"


def lengths_path(profile: str, shard: str) -> str:
    """Where below its directory an index keeps the lengths of a shard's rows under a profile."""
    return f"profiles/{profile}/{shard}.lengths.bin"
