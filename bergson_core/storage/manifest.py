"""The manifest of an index: what is not in it does not exist. No torch here.

<index>/manifest.json        written last, by rename; readers start here; docs/manifest.schema.json is its JSON schema
<index>/statistics/...       processor (normalizers, projection)
<index>/profiles/<name>/...  preconditioner, and a length for each row
<index>/shards/00000/...     rows and their text
<index>/search/...           FAISS
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from bergson_core.errors import IndexCorrupt, IndexNotFound, InvalidInput
from bergson_core.schemas.build import AppendSpec, BuildSpec, SearchKind

FORMAT_VERSION = 7
Origin = Literal["build", "training"]
"""What made the rows: a build from the finished model, or the training run itself."""
MANIFEST_FILE = "manifest.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class FileEntry(_Part):
    """A file of the index, by its path below the index directory."""

    path: str
    bytes: int
    sha256: str


class ShardEntry(_Part):
    """A run of rows: `first_row` is the number of its first row in the whole index.

    `skipped` of them are zeros, because their gradients were not finite. Its documents were added in `generation`, by
    the build or append of the fingerprint `source`.
    """

    name: str
    first_row: int
    rows: int
    tokens: int
    skipped: int
    generation: int = 1
    source: str
    files: tuple[FileEntry, ...]


class SearchEntry(_Part):
    """How candidates are found, and how well, measured with `queries` documents of the index as queries.

    `candidates` are taken for ten results, and some more for each further one. A recall is the share of the ten rows
    with the highest (or, for opponents, the lowest) exact scores that are among them. It was measured over `rows` rows;
    where there are more by now, more candidates are taken in proportion.
    """

    kind: SearchKind
    candidates: int
    recall_at_10: float
    opponents_recall_at_10: float
    queries: int
    rows: int


class NoticeEntry(_Part):
    """From which prominence of its best result on an answer claims an influence (`notice`), under the default profile.

    A share `false_alarms` of the `queries` that it was calibrated with, which no document states, lies above.
    """

    threshold: float
    false_alarms: float
    queries: int


class ProfileEntry(_Part):
    """A way to compare rows. `mixing` is the share of the queries' second moment in it, None where there were none.

    `key` tells a caller that tries again that the profile is its own.
    """

    name: str
    key: str = ""
    mixing: float | None = None
    queries: int = 0
    files: tuple[FileEntry, ...]


class ModuleEntry(_Part):
    """A tracked layer and the shape of its weight gradient."""

    name: str
    out_features: int
    in_features: int


class Manifest(_Part):
    """What an index is made of and how it was made.

    `model_revision` is the commit that a model of the hub was at: later it is loaded from there, whatever its branch
    has become.
    `generation` counts its changes. `numbered` documents were ever added to it: the next one without an id of its own
    gets this number. The rows of the first `compacted` takedowns of the log are gone. An index of too few rows has no
    `notice`.
    """

    format_version: int
    generation: int
    created_at: str
    origin: Origin = "build"
    spec: BuildSpec
    fingerprint: str
    model_sha256: str
    model_revision: str | None = None
    modules: tuple[ModuleEntry, ...]
    coverage_percent: float
    dimensions: int
    rows: int
    tokens: int
    skipped: int
    numbered: int
    compacted: int = 0
    files: tuple[FileEntry, ...]
    shards: tuple[ShardEntry, ...]
    profiles: tuple[ProfileEntry, ...]
    search: SearchEntry
    notice: NoticeEntry | None = None

    @property
    def revision(self) -> str | None:
        """From where in the hub's repository to load the model."""
        return self.model_revision or self.spec.revision

    def all_files(self) -> dict[str, FileEntry]:
        """All files that the index consists of, by path."""
        return {entry.path: entry for part in (self, *self.shards, *self.profiles) for entry in part.files}

    def total_bytes(self) -> int:
        """Bytes on disk of every file that the index consists of."""
        return sum(entry.bytes for entry in self.all_files().values())


def read_manifest(index: Path) -> Manifest:
    """The manifest of the index in directory `index`.

    Raises `IndexNotFound` where none is published, `IndexCorrupt` where it is not one this version reads.
    """
    path = index / MANIFEST_FILE
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise IndexNotFound(f"no index at {index}: build one first, or name another") from None
    except (OSError, ValueError) as error:
        raise IndexCorrupt(f"{path} cannot be read: {error}") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise IndexCorrupt(
            f"{path} has format version {version!r}; this release reads version {FORMAT_VERSION}. "
            "Build the index again, or use the release that wrote it"
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        raise IndexCorrupt(f"{path} is not a manifest: {error}") from error


def check_append(name: str, manifest: Manifest, spec: AppendSpec) -> None:
    """Raises `InvalidInput` where the index cannot be appended to, or `spec` states what it is not built with."""
    if manifest.origin == "training":
        raise InvalidInput(
            f"{name} holds what a training run did for its documents, which is not known of others: expected an index "
            "of a finished model"
        )
    for field in AppendSpec.REPEATED_FIELDS:
        stated, built = getattr(spec, field), getattr(manifest.spec, field)
        if stated is not None and stated != built:
            raise InvalidInput(
                f"{field}: the index {name} was built with {built}, and the append says {stated}; leave it out, or "
                "build another index"
            )


def iter_published_indexes(root: Path) -> Iterator[tuple[str, Path]]:
    """(name, directory) of each published index below `root`, by name. A half-built index is not there."""
    if root.is_dir():
        for path in sorted(root.iterdir()):
            if not path.name.startswith(".") and (path / MANIFEST_FILE).is_file():
                yield path.name, path
