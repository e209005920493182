"""TODO"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.schemas.build import BuildSpec, SearchKind
from bergson_core.schemas.results import Progress
from bergson_core.search.background_sample import BackgroundSample
from bergson_core.search.candidates import CandidateSearch
from bergson_core.search.faiss_index import build_faiss_file
from bergson_core.search.features import iter_shard_features
from bergson_core.search.profile import Profile, write_lengths
from bergson_core.search.recall import RecallQueries, choose_search_kind, measure_recall, search_kinds_to_try
from bergson_core.search.significance import calibrate_notice
from bergson_core.shards.shard import RowShape, Shard
from bergson_core.storage.integrity import file_entry, flush_files, remove_unpublished_files
from bergson_core.storage.layout import (
    DEFAULT_PROFILE,
    lengths_path,
    preconditioner_path,
    search_path,
)
from bergson_core.storage.manifest import (
    MANIFEST_FILE,
    FileEntry,
    Manifest,
    NoticeEntry,
    SearchEntry,
    ShardEntry,
)
from bergson_core.utils.atomic_files import write_durably
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback, run_in_thread


@dataclass
class SearchFiles:
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
                build_faiss_file, self.root, shard, preconditioner, self.spec.scoring.normalize, kind
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
            candidates = CandidateSearch.open(self.root, self._opened, kind, low_memory=True)
            return run_in_thread(
                lambda: measure_recall(
                    sample, profile, self._opened, candidates, self.spec.search.min_recall
                ),
                lambda: report(Progress(stage="measure", unit="rows")),
            )

        count = sum(entry.rows for entry in self.shards)
        return choose_search_kind(
            search_kinds_to_try(self.spec.search, self.shape, count), self.spec.search.min_recall, of
        )

    def calibrated(
        self, sample: RecallQueries, search: SearchEntry, report: ProgressCallback
    ) -> NoticeEntry | None:
        """What an answer's notice goes by, for candidates that are found as `search` says."""
        if sample.null_rows is None:
            return None
        queries, seed = sample.null_rows, self.spec.gradients.seed
        profile = Profile.open(self.root, self.spec, DEFAULT_PROFILE, self.shards)
        candidates = CandidateSearch.open(self.root, self._opened, search.kind, low_memory=True)
        sampled = BackgroundSample.read(self._opened, sum(entry.rows for entry in self.shards), seed)
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
                parts = iter_shard_features(shard, preconditioner, self.spec.scoring.normalize)
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
