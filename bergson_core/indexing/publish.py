"""The end of every build and of every change of an index: search, profiles, and the manifest last.

What is new lies beside what is published until the manifest is replaced, in one step; then what no longer belongs to
the index is removed. Whoever reads has the old index or the new one, whole.

Legend: m layers, d numbers a layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from filelock import FileLock, Timeout
from jaxtyping import Float
from torch import Tensor

from bergson_core.errors import IndexBusy
from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.models.loading import LanguageModel
from bergson_core.models.modules import coverage_percent
from bergson_core.schemas.build import BuildSpec, SearchKind
from bergson_core.schemas.results import Progress
from bergson_core.search.background_sample import SampledRows
from bergson_core.search.candidates import Candidates
from bergson_core.search.faiss_index import build_shard_search, shard_features
from bergson_core.search.profile import Profile, write_lengths
from bergson_core.search.recall import RecallQueries, candidate_kinds, choose_kind, measure_recall
from bergson_core.search.significance import calibrate_notice
from bergson_core.shards.row_encoder import RowEncoder
from bergson_core.shards.shard import RowShape, Shard, disk_errors, total_moment
from bergson_core.storage.integrity import file_entry, flush_files, remove_unpublished_files
from bergson_core.storage.layout import (
    DEFAULT_PROFILE,
    LOCK_FILE,
    lengths_path,
    preconditioner_path,
    search_path,
)
from bergson_core.storage.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    FileEntry,
    Manifest,
    ModuleEntry,
    NoticeEntry,
    Origin,
    ProfileEntry,
    SearchEntry,
    ShardEntry,
)
from bergson_core.utils.atomic_files import write_durably
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback, run_in_thread

SHARD_BYTES: Final = 64 * 2**20
MAX_SHARD_ROWS: Final = 4096
MOST_SHARDS: Final = 1000
"""Of an index: each takes about a tenth of a millisecond to open. So those of a large one are larger."""
LARGEST_SHARD_BYTES: Final = 2 * 2**30
"""Whatever the index: a shard is in memory while it is made."""


@contextmanager
def index_write_lock(root: Path) -> Iterator[None]:
    """Keeps all other writers out of the index in directory `root`.

    Raises `IndexBusy` where one is there, and `DiskFull` where there is no room for what is written here.
    """
    try:
        with FileLock(root / LOCK_FILE, timeout=0), disk_errors(root):
            yield
    except Timeout:
        raise IndexBusy(f"{root} is being written by another process; wait for it or stop it") from None


def rows_per_shard(shape: RowShape, total: int) -> int:
    """Rows of a shard of about `SHARD_BYTES`, or more where an index of `total` rows had too many of these."""
    usual = min(MAX_SHARD_ROWS, SHARD_BYTES // shape.row_bytes)
    large = min(-(-total // MOST_SHARDS), LARGEST_SHARD_BYTES // shape.row_bytes)
    return max(1, usual, large)


def save_preconditioner(
    output: Path, total: Float[Tensor, "m d d"], rows: int, damping: float
) -> Preconditioner:
    """Fits the default profile's preconditioner from Σ row rowᵀ over `rows` rows."""
    preconditioner = Preconditioner.fit(total, rows, damping)
    preconditioner.save(preconditioner_path(output), total / rows)
    return preconditioner


def publish_index(
    spec: BuildSpec,
    output: Path,
    model: LanguageModel,
    rows: RowEncoder,
    shards: Sequence[ShardEntry],
    sample: RecallQueries,
    report: ProgressCallback = lambda progress: None,
    confirm: ConfirmCallback = lambda: None,
    origin: Origin = "build",
) -> Manifest:
    """Fits the preconditioner, builds and measures the search, and writes the manifest of finished shards.

    Raises `InvalidInput` where the candidates for the `sample` do not hold `min_recall`.
    """
    scoring, collector = spec.scoring, rows.collector
    layers, count = list(collector.layers.values()), sum(entry.rows for entry in shards)
    if scoring.preconditioner and rows.before is None:
        run_in_thread(
            lambda: save_preconditioner(output, total_moment(output, shards), count, scoring.damping),
            lambda: report(Progress(stage="preconditioner")),
        )
    index = IndexFiles(output, spec, rows.shape, shards)
    statistics = [file_entry(path, output) for path in sorted((output / "statistics").iterdir())]
    if scoring.preconditioner:
        index.add(file_entry(preconditioner_path(output), output))
    found = index.measured(sample, report)
    return index.publish(
        Manifest(
            format_version=FORMAT_VERSION,
            generation=1,
            created_at=_now(),
            origin=origin,
            spec=spec,
            fingerprint=spec.fingerprint(),
            model_sha256=model.sha256,
            model_revision=model.revision,
            modules=tuple(
                ModuleEntry(name=one.name, out_features=one.out_features, in_features=one.in_features)
                for one in layers
            ),
            coverage_percent=round(coverage_percent(model.model, layers), 2),
            dimensions=collector.dimensions,
            numbered=count,
            profiles=(ProfileEntry(name=DEFAULT_PROFILE, files=()),),
            search=found,
            notice=index.calibrated(sample, found, report),
            files=tuple(statistics),
            **_counts(shards),
        ),
        confirm,
    )


def publish_next_generation(
    root: Path,
    old: Manifest,
    shards: Sequence[ShardEntry],
    sample: RecallQueries | None = None,
    report: ProgressCallback = lambda progress: None,
    confirm: ConfirmCallback = lambda: None,
    **changes: Any,
) -> Manifest:
    """Replaces `old` by an index of these shards, of which only the new ones are looked at; statistics stay.

    With a `sample` the search is measured again, and of another kind where the index has grown so far, or its kind no
    longer holds `min_recall`, and the notice is calibrated again. `changes` are fields of the manifest.
    """
    index = IndexFiles(root, old.spec, RowShape.of(old), shards, old.all_files())
    found, threshold = old.search, old.notice
    if sample is None:
        index.build(old.search.kind, report)
    else:
        found = index.measured(sample, report)
        threshold = index.calibrated(sample, found, report)
    for profile in old.profiles:
        if profile.name != DEFAULT_PROFILE:
            index.add_profile(profile.name)
    new = {"generation": old.generation + 1, "created_at": _now(), "search": found, "notice": threshold}
    return index.publish(old.model_copy(update=new | _counts(shards) | changes), confirm)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _counts(shards: Sequence[ShardEntry]) -> dict[str, Any]:
    return {
        "rows": sum(entry.rows for entry in shards),
        "tokens": sum(entry.tokens for entry in shards),
        "skipped": sum(entry.skipped for entry in shards),
        "shards": tuple(shards),
    }


@dataclass
class IndexFiles:
    """The files of an index on their way into its next manifest; those in `published` are in the last one."""

    root: Path
    spec: BuildSpec
    shape: RowShape
    shards: Sequence[ShardEntry]
    published: Mapping[str, FileEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.files = dict(self.published)
        self._opened = [Shard.open(self.root, entry, self.shape) for entry in self.shards]
        for entry in self.shards:
            self.files |= {file.path: file for file in entry.files}

    def add(self, entry: FileEntry) -> None:
        """Makes a file a part of the index."""
        self.files[entry.path] = entry

    def build(self, kind: SearchKind, report: ProgressCallback) -> None:
        """Builds what finds candidates in each shard that has no such thing yet, and the lengths of its rows.

        Sign rows need neither.
        """
        if kind == "hamming":
            return
        missing = [one for one in self._opened if search_path(kind, one.entry.name) not in self.files]
        path = preconditioner_path(self.root)
        preconditioner = Preconditioner.load(path) if self.spec.scoring.preconditioner else None
        for done, shard in enumerate(missing, start=1):
            before = Progress(stage="search", done=done - 1, total=len(missing), unit="shards")
            make = partial(
                build_shard_search, self.root, shard, preconditioner, self.spec.scoring.normalize, kind
            )
            file, lengths = run_in_thread(make, partial(report, before))
            self.add(file)
            if lengths_path(DEFAULT_PROFILE, shard.entry.name) not in self.files:
                self.add(write_lengths(self.root, DEFAULT_PROFILE, shard.entry.name, lengths))
            report(Progress(stage="search", done=done, total=len(missing), unit="shards"))

    def measured(self, sample: RecallQueries, report: ProgressCallback) -> SearchEntry:
        """The leanest search that holds `min_recall`. Raises `InvalidInput` where none does."""

        def of(kind: SearchKind) -> SearchEntry:
            self.build(kind, report)
            profile = Profile.open(self.root, self.spec, DEFAULT_PROFILE, self.shards)
            candidates = Candidates.open(self.root, self._opened, kind, briefly=True)
            return run_in_thread(
                lambda: measure_recall(
                    sample, profile, self._opened, candidates, self.spec.search.min_recall
                ),
                lambda: report(Progress(stage="measure", unit="rows")),
            )

        count = sum(entry.rows for entry in self.shards)
        return choose_kind(
            candidate_kinds(self.spec.search, self.shape, count), self.spec.search.min_recall, of
        )

    def calibrated(
        self, sample: RecallQueries, search: SearchEntry, report: ProgressCallback
    ) -> NoticeEntry | None:
        """What an answer's notice goes by, for candidates that are found as `search` says."""
        if sample.joined is None:
            return None
        queries, seed = sample.joined, self.spec.gradients.seed
        profile = Profile.open(self.root, self.spec, DEFAULT_PROFILE, self.shards)
        candidates = Candidates.open(self.root, self._opened, search.kind, briefly=True)
        sampled = SampledRows.read(self._opened, sum(entry.rows for entry in self.shards), seed)
        return run_in_thread(
            lambda: calibrate_notice(queries, profile, candidates, search.candidates, sampled),
            lambda: report(Progress(stage="measure", unit="rows")),
        )

    def add_profile(self, name: str) -> None:
        """Adds the lengths under a fitted profile of the rows of each shard that has none yet."""
        preconditioner = Preconditioner.load(preconditioner_path(self.root, name))
        self.add(file_entry(preconditioner_path(self.root, name), self.root))
        for shard in self._opened:
            if lengths_path(name, shard.entry.name) not in self.files:
                parts = shard_features(shard, preconditioner, self.spec.scoring.normalize)
                lengths = torch.cat([of_rows for _, of_rows in parts]).numpy()
                self.add(write_lengths(self.root, name, shard.entry.name, lengths))

    def publish(self, manifest: Manifest, confirm: ConfirmCallback) -> Manifest:
        """Writes `manifest` with the files that its shards and profiles have, and removes all others."""
        names = [entry.name for entry in self.shards]
        shared = [entry for entry in manifest.files if not entry.path.startswith("search/")]
        kind = manifest.search.kind
        search = [self.files[search_path(kind, name)] for name in names if kind != "hamming"]
        profiles = tuple(
            one.model_copy(update={"files": tuple(self._of_profile(one.name, names))})
            for one in manifest.profiles
        )
        manifest = manifest.model_copy(update={"files": (*shared, *search), "profiles": profiles})
        files = manifest.all_files()
        flush_files(self.root, [one for path, one in files.items() if path not in self.published])
        confirm()
        write_durably(self.root / MANIFEST_FILE, manifest.model_dump_json(indent=1).encode())
        remove_unpublished_files(self.root, manifest)
        return manifest

    def _of_profile(self, name: str, shards: Sequence[str]) -> list[FileEntry]:
        own = str(preconditioner_path(self.root, name).relative_to(self.root))
        paths = [own, *(lengths_path(name, shard) for shard in shards)]
        return [self.files[path] for path in paths if path in self.files]
