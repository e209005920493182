"""Which shards of an index are damaged, and the error that says so.

A file belongs to one shard (its rows, its FAISS file, its lengths under each profile), or to all shards. An index that
lacks a shard can still be searched for what the other shards hold; without a shared file it cannot.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bergson_core.errors import IndexCorrupt
from bergson_core.storage.integrity import find_damaged_files
from bergson_core.storage.layout import lengths_path, search_path
from bergson_core.storage.manifest import Manifest, ShardEntry


def find_damaged_shards(root: Path, manifest: Manifest, shards: Sequence[ShardEntry]) -> dict[str, str]:
    """Returns what is wrong with each damaged shard, by the name of the shard.

    Args:
        root: Directory of the index.
        manifest: Manifest of the index.
        shards: The shards to check.

    Raises:
        IndexCorrupt: A file that all shards share is damaged.
    """
    shard_by_path: dict[str, str] = {}
    for shard in shards:
        shard_by_path |= {file.path: shard.name for file in shard.files}
        shard_by_path[search_path(manifest.search.kind, shard.name)] = shard.name
        shard_by_path |= {lengths_path(profile.name, shard.name): shard.name for profile in manifest.profiles}
    files = [file for part in (manifest, *shards, *manifest.profiles) for file in part.files]
    # The FAISS files and lengths of shards that are not checked are left out.
    files = [
        file
        for file in files
        if file.path in shard_by_path or not file.path.endswith((".faiss", ".lengths.bin"))
    ]
    damage: dict[str, str] = {}
    for file, problem in find_damaged_files(root, files):
        if file.path not in shard_by_path:
            raise IndexCorrupt(f"{problem}; restore it from a copy or build the index again")
        damage[shard_by_path[file.path]] = problem
    return damage


def require_intact(root: Path, manifest: Manifest) -> None:
    """Checks all files of an index, before some of them are read to make others, which would get valid checksums.

    Raises:
        IndexCorrupt: A file is missing or was altered.
    """
    if damaged := find_damaged_shards(root, manifest, manifest.shards):
        raise damaged_shards_error(root.name, damaged, has_others=False)


def damaged_shards_error(name: str, damaged: Mapping[str, str], has_others: bool = True) -> IndexCorrupt:
    """Returns the error that names the damaged shards of the index `name`, and what is wrong with the first.

    Args:
        name: Name of the index.
        damaged: What is wrong with each damaged shard.
        has_others: Whether there are other shards, which can be searched alone.
    """
    advice = "restore the files from a copy or build the index again"
    if has_others:
        advice = (
            "restore the files from a copy, build the index again, or set partial (`--partial` on the command line) "
            "to search the other shards alone"
        )
    shards = f"shard{'s' * (len(damaged) > 1)} {', '.join(damaged)}"
    return IndexCorrupt(
        f"{shards} of the index {name} cannot be used: {next(iter(damaged.values()))}; {advice}"
    )
