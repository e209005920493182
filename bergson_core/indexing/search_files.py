"""Builds the files that the shards of an index are searched with, and measures how well they find the best rows.

Each shard has a FAISS file, which finds candidates (sign rows need none), and for each profile the lengths of its rows,
which scores are divided by.
"""

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
from bergson_core.search.measuring.recall import (
    RecallQueries,
    choose_search_kind,
    measure_recall,
    search_kinds_to_try,
    unmeasured_entry,
)
from bergson_core.search.measuring.significance import calibrate_notice
from bergson_core.search.profile import Profile, write_lengths
from bergson_core.shards.shard import RowShape, Shard
from bergson_core.storage.integrity import make_file_entry
from bergson_core.storage.layout import DEFAULT_PROFILE, lengths_path, preconditioner_path, search_path
from bergson_core.storage.manifest import FileEntry, NoticeEntry, SearchEntry, ShardEntry
from bergson_core.utils.background import run_in_thread
from bergson_core.utils.progress import ProgressCallback


@dataclass
class SearchFiles:
    """The files that the shards of an index are searched with, both published and new.

    Attributes:
        root: The directory of the index.
        spec: The spec that the index is built by.
        shape: What a row consists of.
        shards: The shards of the next generation, in order.
        published: The files of the current generation, by path. They are not built again.
        entries: The published files, the files of the shards, and all files built since, by path.
    """

    root: Path
    spec: BuildSpec
    shape: RowShape
    shards: Sequence[ShardEntry]
    published: Mapping[str, FileEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.entries = dict(self.published)
        self._open_shards = [Shard.open(self.root, entry, self.shape) for entry in self.shards]
        for shard in self.shards:
            self.entries |= {file.path: file for file in shard.files}

    def add_file(self, entry: FileEntry) -> None:
        """Adds a file that was written elsewhere."""
        self.entries[entry.path] = entry

    def build_search(self, kind: SearchKind, report: ProgressCallback) -> None:
        """Builds the FAISS file of each shard that has none of this kind, and writes the lengths of its rows.

        Sign rows need neither: they are searched by Hamming distance.
        """
        if kind == "hamming":
            return
        missing = [
            shard for shard in self._open_shards if search_path(kind, shard.entry.name) not in self.entries
        ]
        path = preconditioner_path(self.root)
        preconditioner = Preconditioner.load(path) if self.spec.scoring.preconditioner else None
        for done, shard in enumerate(missing, start=1):
            before = Progress(stage="search", done=done - 1, total=len(missing), unit="shards")
            report(before)
            scaling = self.spec.scoring.normalize, kind, self.spec.checkpoints
            build_file = partial(build_faiss_file, self.root, shard, preconditioner, *scaling)
            file, lengths = run_in_thread(build_file, partial(report, before))
            self.add_file(file)
            if lengths_path(DEFAULT_PROFILE, shard.entry.name) not in self.entries:
                self.add_file(write_lengths(self.root, DEFAULT_PROFILE, shard.entry.name, lengths))
            report(Progress(stage="search", done=done, total=len(missing), unit="shards"))

    def choose_search(self, queries: RecallQueries | None, report: ProgressCallback) -> SearchEntry:
        """Builds the leanest kind of search whose recall reaches `min_recall`, and returns what was measured.

        Without queries nothing is measured, and the last of the kinds is built, which needs it least.

        Raises:
            InvalidInput: No kind of search that the spec allows reaches it.
        """
        kinds = search_kinds_to_try(self.spec.search, self.shape, self._row_count)
        if queries is None:
            self.build_search(kinds[-1], report)
            return unmeasured_entry(kinds[-1], self._row_count)
        measuring = _measuring(queries)

        def build_and_measure(kind: SearchKind) -> SearchEntry:
            self.build_search(kind, report)
            report(measuring)
            profile, candidates = self._open_search(kind)
            return run_in_thread(
                lambda: measure_recall(queries, profile, self._open_shards, candidates, min_recall),
                partial(report, measuring),
            )

        min_recall = self.spec.search.min_recall
        return choose_search_kind(kinds, min_recall, build_and_measure)

    def calibrate(
        self, queries: RecallQueries | None, search: SearchEntry, report: ProgressCallback
    ) -> NoticeEntry | None:
        """Calibrates the prominence that a result must have to count as an influence.

        Args:
            queries: Queries with `null_queries`, which no document answers; None to calibrate nothing.
            search: The search by which candidates are found.
            report: Called with the progress.

        Returns:
            The entry of the manifest, or None if the index has too few rows.
        """
        if queries is None or queries.null_queries is None:
            return None
        null_queries, measuring = queries.null_queries, _measuring(queries)
        profile, candidates = self._open_search(search.kind)
        background = BackgroundSample.read(self._open_shards, self._row_count, self.spec.gradients.seed)
        return run_in_thread(
            lambda: calibrate_notice(null_queries, profile, candidates, search.candidates, background),
            partial(report, measuring),
        )

    def add_profile(self, name: str) -> None:
        """Adds a fitted profile: its preconditioner, and the lengths of its rows for each shard that has none yet."""
        path = preconditioner_path(self.root, name)
        preconditioner = Preconditioner.load(path)
        self.add_file(make_file_entry(path, self.root))
        for shard in self._open_shards:
            if lengths_path(name, shard.entry.name) not in self.entries:
                normalize, checkpoints = self.spec.scoring.normalize, self.spec.checkpoints
                features = iter_shard_features(shard, preconditioner, normalize, checkpoints)
                lengths = torch.cat([chunk_lengths for _, chunk_lengths in features]).numpy()
                self.add_file(write_lengths(self.root, name, shard.entry.name, lengths))

    def faiss_entries(self, kind: SearchKind) -> tuple[FileEntry, ...]:
        """Returns the entries of the shards' FAISS files of this kind, in the order of the shards."""
        if kind == "hamming":
            return ()
        return tuple(self.entries[search_path(kind, shard.name)] for shard in self.shards)

    def profile_entries(self, name: str) -> tuple[FileEntry, ...]:
        """Returns the entries of a profile's files: its preconditioner, and the lengths of each shard's rows."""
        preconditioner = str(preconditioner_path(self.root, name).relative_to(self.root))
        paths = [preconditioner, *(lengths_path(name, shard.name) for shard in self.shards)]
        return tuple(self.entries[path] for path in paths if path in self.entries)

    @property
    def _row_count(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def _open_search(self, kind: SearchKind) -> tuple[Profile, CandidateSearch]:
        profile = Profile.open(self.root, self.spec, DEFAULT_PROFILE, self.shards)
        return profile, CandidateSearch.open(self.root, self._open_shards, kind, low_memory=True)


def _measuring(queries: RecallQueries) -> Progress:
    """Returns the progress while the search is measured, when all queries have been collected."""
    count = len(queries.rows if queries.null_queries is None else queries.null_queries.rows)
    return Progress(stage="measure", done=count, total=count, unit="queries")
