"""The manifest of an index, which lists everything that belongs to the index.

<index>/manifest.json        written last, by rename; readers start here; docs/manifest.schema.json is its JSON schema
<index>/statistics/...       the processor: normalizers and projections
<index>/profiles/<name>/...  a preconditioner, and a length for each row
<index>/shards/00000/...     rows and their documents
<index>/search/...           FAISS files
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from bergson_core.errors import IndexCorrupt, IndexNotFound, InvalidInput
from bergson_core.schemas.base import ResultModel
from bergson_core.schemas.build import AppendSpec, BuildSpec, SearchKind
from bergson_core.schemas.documents import DocumentReport

FORMAT_VERSION = 7
Origin = Literal["build", "training"]
"""What made the rows: a build from the finished model, or the training run itself."""
MANIFEST_FILE = "manifest.json"


class FileEntry(ResultModel):
    """A file of the index."""

    path: str
    """Path below the index directory."""
    bytes: int
    sha256: str


class ShardEntry(ResultModel):
    """A run of consecutive rows and their documents."""

    name: str
    first_row: int
    """Number of the shard's first row in the whole index."""
    rows: int
    tokens: int
    skipped: int
    """Rows that are zeros, because their gradients were not finite."""
    generation: int = 1
    """Generation of the index in which the documents were added."""
    source: str
    """Fingerprint of the build or append that added the documents."""
    files: tuple[FileEntry, ...]


class SearchEntry(ResultModel):
    """How candidates are found, and the recall that was measured with documents of the index as queries.

    A recall is the share of the ten rows with the highest exact scores that are among the candidates; for opponents, of
    the ten with the lowest.
    """

    kind: SearchKind
    candidates: int
    """Candidates for ten results. Each further result takes some more, and in an index that has grown beyond `rows`
    their number grows in proportion."""
    recall_at_10: float
    opponents_recall_at_10: float
    queries: int
    """Documents that the recall was measured with."""
    rows: int
    """Rows that the recall was measured over."""


class NoticeEntry(ResultModel):
    """When an answer under the default profile claims an influence, and when its `notice` says that there is none."""

    threshold: float
    """An influence is claimed if the prominence of the best result is above this."""
    false_alarms: float
    """Share of the calibration queries, whose completions no document states, that are above the threshold."""
    queries: int
    """Number of calibration queries."""


class ProfileEntry(ResultModel):
    """A way to compare rows: a preconditioner, and the lengths of the rows under it."""

    name: str
    key: str = ""
    """Identifies the caller that fitted the profile, so that a repeated call recognises its own."""
    mixing: float | None = None
    """Share of the queries' second moment in the preconditioner's; null without queries."""
    queries: int = 0
    files: tuple[FileEntry, ...]


class ModuleEntry(ResultModel):
    """A tracked module and the shape of its weight gradient."""

    name: str
    out_features: int
    in_features: int


class Manifest(ResultModel):
    """What an index consists of, and how it was made."""

    format_version: int
    generation: int
    """Number of the index's changes, counted from 1."""
    created_at: str
    origin: Origin = "build"
    spec: BuildSpec
    fingerprint: str
    model_sha256: str
    model_revision: str | None = None
    """Commit of a hub model at the time of the build. The model is loaded from this commit even after its branch has
    moved."""
    modules: tuple[ModuleEntry, ...]
    coverage_percent: float
    dimensions: int
    rows: int
    tokens: int
    skipped: int
    numbered: int
    """Documents that were ever added to the index, or left out. The next document without an id of its own gets this
    number."""
    documents: DocumentReport = DocumentReport()
    """Documents of the build and of all appends that were left out or cut."""
    compacted: int = 0
    """Number of takedowns, from the beginning of the log, whose rows are gone."""
    files: tuple[FileEntry, ...]
    shards: tuple[ShardEntry, ...]
    profiles: tuple[ProfileEntry, ...]
    search: SearchEntry
    notice: NoticeEntry | None = None
    """Null for an index of too few rows."""

    @property
    def revision(self) -> str | None:
        """Revision of the hub's repository to load the model from."""
        return self.model_revision or self.spec.revision

    def all_files(self) -> dict[str, FileEntry]:
        """Returns all files of the index, by path."""
        return {entry.path: entry for part in (self, *self.shards, *self.profiles) for entry in part.files}

    def total_bytes(self) -> int:
        """Returns the size on disk of all files of the index."""
        return sum(entry.bytes for entry in self.all_files().values())


def read_manifest(index: str | Path) -> Manifest:
    """Reads the manifest of an index.

    Args:
        index: Directory of the index.

    Raises:
        IndexNotFound: No index is published there.
        IndexCorrupt: The manifest cannot be read, or is of a format that this version does not read.
    """
    path = Path(index) / MANIFEST_FILE
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


def require_appendable(name: str, manifest: Manifest, spec: AppendSpec) -> None:
    """Checks that documents can be added to an index.

    Args:
        name: Name of the index, for messages.
        manifest: Manifest of the index.
        spec: The documents to add.

    Raises:
        InvalidInput: The index was made by a training run, `spec` repeats a field with another value than that which
            the index was built with, or states fields that do not go together with the build's.
    """
    if manifest.origin == "training":
        raise InvalidInput(
            f"{name} holds what a training run did for its documents, which is not known of others: expected an index "
            "of a finished model"
        )
    for field in AppendSpec.REPEATED_FIELDS:
        repeated, built = getattr(spec, field), getattr(manifest.spec, field)
        if repeated is not None and repeated != built:
            raise InvalidInput(
                f"{field}: the index {name} was built with {built}, and the append says {repeated}; leave it out, or "
                "build another index"
            )
    spec.as_build(manifest.spec)


def iter_published_indexes(root: Path) -> Iterator[tuple[str, Path]]:
    """Yields name and directory of each published index below `root`, sorted by name."""
    if root.is_dir():
        for path in sorted(root.iterdir()):
            if not path.name.startswith(".") and (path / MANIFEST_FILE).is_file():
                yield path.name, path
