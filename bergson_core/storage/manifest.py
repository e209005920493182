"""The manifest of an index, which lists everything that belongs to the index.

<index>/manifest.json        written last, by rename; readers start here; docs/manifest.schema.json is its JSON schema;
                             its last field is the sha256 of the others (`utils.sealed_json`)
<index>/statistics/...       the processor: normalizers and projections
<index>/profiles/<name>/...  a preconditioner, and a length for each row
<index>/shards/00000/...     rows and their documents
<index>/search/...           FAISS files
"""

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from bergson_core.errors import IndexCorrupt, IndexNotFound, InvalidInput
from bergson_core.schemas.base import ResultModel, describe_validation_error
from bergson_core.schemas.build import NAME_PATTERN, AppendSpec, BuildSpec, SearchKind
from bergson_core.schemas.differences import find_differences
from bergson_core.schemas.documents import DocumentReport
from bergson_core.storage.layout import BUILD_STAMP_FILE, words_path
from bergson_core.storage.locations import (
    absolute_path,
    locate,
    name_in_memory,
    name_on_disk,
    names_in_memory,
    names_on_disk,
)
from bergson_core.storage.takedown_log import TakedownHead
from bergson_core.utils.atomic_files import write_durably
from bergson_core.utils.sealed_json import SEAL_FIELD, seal, unseal

FORMAT_VERSION = 7
Origin = Literal["build", "training"]
"""What made the rows: a build from the finished model, or the training run itself."""
MANIFEST_FILE = "manifest.json"
Count = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
PositiveCount = Annotated[int, Field(ge=1, lt=2**63, strict=True)]
DirectoryName = Annotated[str, Field(pattern=NAME_PATTERN)]
"""The name of a shard or a profile, which is that of a directory."""
InnerPath = Annotated[str, Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$", max_length=1000)]
"""A path that leads to no place outside of the directory that it begins in."""


class FileEntry(ResultModel):
    """A file of the index."""

    path: InnerPath
    """Path below the index directory."""
    bytes: Count
    sha256: str


class ShardEntry(ResultModel):
    """A run of consecutive rows and their documents."""

    name: DirectoryName
    first_row: Count
    """Number of the shard's first row in the whole index."""
    rows: PositiveCount
    tokens: Count
    skipped: Count
    """Rows that are zeros, because their gradients were not finite."""
    generation: PositiveCount = 1
    """Generation of the index in which the documents were added."""
    source: str
    """Fingerprint of the build or append that added the documents."""
    merged_sources: tuple[str, ...] = ()
    """Fingerprints of the further appends whose shards were merged into this one."""
    metadata_types: dict[str, str] | None = None
    """Type of the values of each metadata column, such as `integer` or `list of text`; null in shards that were written
    before types were recorded."""
    files: tuple[FileEntry, ...]

    @property
    def all_sources(self) -> tuple[str, ...]:
        """Fingerprints of the build and the appends that added the documents."""
        return self.source, *self.merged_sources

    @property
    def words_path(self) -> str:
        """Path, below the index directory, of the words of the documents, where a query has asked for them."""
        documents = next(file for file in self.files if file.path.endswith("/rows.arrow"))
        return words_path(self.name, documents.sha256)


class SearchEntry(ResultModel):
    """How candidates are found, and the recall that was measured with queries made up of documents of the index.

    A recall is the share of the ten rows with the highest exact scores that are among the candidates; for opponents, of
    the ten with the lowest. It is null if it was not measured.
    """

    kind: SearchKind
    candidates: PositiveCount
    """Candidates for ten results. Each further result takes some more, and in an index that has grown beyond `rows`
    their number grows in proportion."""
    recall_at_10: float | None
    opponents_recall_at_10: float | None
    queries: Count
    """Queries that the recall was measured with: 0 if it was not measured, or if every row is a candidate."""
    rows: PositiveCount
    """Rows that the recall was measured over, or that the candidates were chosen for."""


class NoticeEntry(ResultModel):
    """When an answer under the default profile claims an influence, and when its `notice` says that there is none."""

    threshold: float
    """An influence is claimed if the prominence of the best result is above this."""
    false_alarms: float
    """Share of queries that no document supports that are above the threshold, as estimated from the calibration
    queries."""
    queries: Count
    """Number of calibration queries."""


class ProfileEntry(ResultModel):
    """A way to compare rows: a preconditioner, and the lengths of the rows under it."""

    name: DirectoryName
    key: str = ""
    """Identifies the caller that fitted the profile, so that a repeated call recognises its own."""
    mixing: float | None = None
    """Share of the queries' second moment in the preconditioner's; null without queries."""
    queries: Count = 0
    files: tuple[FileEntry, ...]


class ModuleEntry(ResultModel):
    """A tracked module and the shape of its weight gradient."""

    name: str
    out_features: PositiveCount
    in_features: Count
    """Without the bias: 0 for a bias that is tracked by itself, since it belongs to no head."""


def _describe_seal(json_schema: dict[str, Any]) -> None:
    """Adds the last field of the file, which only the file has."""
    json_schema["properties"][SEAL_FIELD] = {
        "type": "string",
        "description": "The sha256 of the file without this field. Older releases did not write it.",
    }


class Manifest(ResultModel):
    """What an index consists of, and how it was made."""

    model_config = ConfigDict(json_schema_extra=_describe_seal)

    format_version: int
    """Version of the layout on disk; another version is refused."""
    generation: PositiveCount
    """Number of the index's changes, counted from 1."""
    created_at: str
    """Time of this generation, in ISO 8601 with UTC offset."""
    origin: Origin = "build"
    """Whether a build or a training run has made the index."""
    spec: BuildSpec
    fingerprint: str
    """The sha256 of the spec."""
    model_sha256: str
    """The sha256 of all files of the model that decide weights and tokens."""
    model_files: dict[str, str] = {}
    """The sha256 of each file that decides the model's weights and tokens, by name. Empty in an index of release 0.1.0,
    whose `model_sha256` covers `*.json` and `*.safetensors` only."""
    model_revision: str | None = None
    """Commit of a hub model at the time of the build. The model is loaded from this commit even after its branch has
    moved."""
    checkpoint_revisions: tuple[str | None, ...] = ()
    """For each of the spec's `models` the commit of a hub model at the time of the build, null for a local one."""
    reference_sha256: str | None = None
    """The sha256 of the files of the reference model of preference pairs; null without one."""
    adapter_base: str | None = None
    """Directory of the model that local adapters belong to, if that model is local too."""
    chat_date: date | None = None
    """Date of the build, which a chat template that asks for today's date is told. Null if the index was built by a
    version that told the template the day on which a chat was rendered."""
    modules: tuple[ModuleEntry, ...]
    """The tracked modules, in natural order of their names, which is their order in a row."""
    coverage_percent: float
    """Share of the model's parameters that the tracked modules hold."""
    dimensions: PositiveCount
    """Numbers per row."""
    rows: Count
    """Rows in the shards. Documents that were taken down count until the index is compacted."""
    tokens: Count
    """Tokens that the loss is taken over."""
    skipped: Count
    """Documents whose gradient was not finite, so that no query finds them."""
    numbered: Count
    """Documents that were ever added to the index, or left out. The next document without an id of its own gets this
    number."""
    documents: DocumentReport = DocumentReport()
    """Documents of the build and of all appends that were left out or cut."""
    compacted: Count = 0
    """Number of takedowns, from the beginning of the log, whose rows are gone."""
    takedowns: TakedownHead | None = None
    """The log of takedowns when this generation was published; it has only grown since. Null in an index of an older
    release."""
    files: tuple[FileEntry, ...]
    """Files of the statistics, with their sizes and hashes."""
    shards: tuple[ShardEntry, ...]
    """The shards, in the order of their rows."""
    profiles: tuple[ProfileEntry, ...]
    """The profiles that queries can score with."""
    search: SearchEntry
    notice: NoticeEntry | None = None
    """Null for an index of too few rows, and for one whose search was not measured."""

    @property
    def revision(self) -> str | None:
        """Revision of the hub's repository to load the model from."""
        return self.model_revision or self.spec.revision

    @property
    def model_source(self) -> str:
        """What to load the model from: the id of a hub model, which has a commit, or else an absolute path."""
        return self.spec.model if self.model_revision is not None else absolute_path(self.spec.model)

    def all_files(self) -> dict[str, FileEntry]:
        """Returns all files of the index, by path."""
        return {entry.path: entry for part in (self, *self.shards, *self.profiles) for entry in part.files}

    def total_bytes(self) -> int:
        """Returns the size on disk of all files of the index."""
        return sum(entry.bytes for entry in self.all_files().values())


def read_manifest(index: str | Path) -> Manifest:
    """Reads the manifest of an index. Paths inside the index are absolute in what is returned.

    Args:
        index: Directory of the index.

    Raises:
        IndexNotFound: No index is published there.
        IndexCorrupt: The manifest cannot be read, or is of a format that this version does not read.
    """
    path = Path(index) / MANIFEST_FILE
    try:
        content = path.read_bytes()
        raw = from_json(content, allow_inf_nan=False)
    except (FileNotFoundError, NotADirectoryError):
        raise _index_not_found(Path(index)) from None
    except (OSError, ValueError) as error:
        raise IndexCorrupt(f"{path} cannot be read: {error}") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise IndexCorrupt(
            f"{path} has format version {version!r}; this release reads version {FORMAT_VERSION}. "
            "Build the index again, or use the release that wrote it"
        )
    try:
        manifest = Manifest.model_validate({name: value for name, value in raw.items() if name != SEAL_FIELD})
        unseal(content)
    except ValidationError as error:
        raise IndexCorrupt(
            f"{path} is not a manifest that this release reads: {describe_validation_error(error, 'manifest')}"
        ) from error
    except ValueError as error:
        raise IndexCorrupt(f"{path} is damaged: {error}") from error
    base = manifest.adapter_base and name_in_memory(manifest.adapter_base, path.parent)
    return manifest.model_copy(
        update={"spec": names_in_memory(manifest.spec, path.parent), "adapter_base": base}
    )


def write_manifest(index: Path, manifest: Manifest) -> None:
    """Replaces the manifest of an index in one step. The caller holds the lock of the index."""
    base = manifest.adapter_base and name_on_disk(manifest.adapter_base, index)
    stored = manifest.model_copy(update={"spec": names_on_disk(manifest.spec, index), "adapter_base": base})
    write_durably(index / MANIFEST_FILE, seal(stored.model_dump_json(indent=1)))


def _index_not_found(index: Path) -> IndexNotFound:
    if index.is_file():
        return IndexNotFound(f"{index} is a file; expected the directory of an index")
    if (index / BUILD_STAMP_FILE).is_file():
        return IndexNotFound(
            f"no index at {index}: its build is not finished; run the same build again to go on with it"
        )
    return IndexNotFound(f"no index at {index}: build one first, or name another")


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
    stated = {field: getattr(spec, field) for field in AppendSpec.REPEATED_FIELDS}
    if stated["model"] is not None and locate(stated["model"]) == locate(manifest.spec.model):
        stated["model"] = manifest.spec.model
    for field, value in stated.items():
        built = getattr(manifest.spec, field)
        if value is not None and (differences := find_differences(built, value)):
            before, after = built, value
            if isinstance(value, BaseModel):
                before = ", ".join(f"{path} {value}" for path, value, _ in differences)
                after = ", ".join(f"{path} {value}" for path, _, value in differences)
            raise InvalidInput(
                f"{field}: the index {name} was built with {before}, and the append says {after}; leave it out, or "
                "build another index"
            )
    spec.as_build(manifest.spec)


def iter_published_indexes(root: Path) -> Iterator[tuple[str, Path]]:
    """Yields name and directory of each published index below `root`, sorted by name."""
    if root.is_dir():
        for path in sorted(root.iterdir()):
            if not path.name.startswith(".") and (path / MANIFEST_FILE).exists():
                yield path.name, path
