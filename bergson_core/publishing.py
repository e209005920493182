"""The end of every build: preconditioner, search, and the manifest last.

Legend: m layers, d numbers a layer.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float
from torch import Tensor

from bergson_core.answers import Progress
from bergson_core.layers import coverage_percent
from bergson_core.manifest import (
    FILE_NAME,
    FORMAT_VERSION,
    FileEntry,
    Manifest,
    ModuleEntry,
    Origin,
    ProfileEntry,
    SearchEntry,
    SearchKind,
    ShardEntry,
)
from bergson_core.models import LanguageModel
from bergson_core.preconditioners import Preconditioner
from bergson_core.profiles import DEFAULT, Profile, preconditioner_path, write_lengths
from bergson_core.recall import Sample, choose, ladder, measure
from bergson_core.rows import RowMaker
from bergson_core.search import Candidates, build_shard_search
from bergson_core.specs import BuildSpec
from bergson_core.store import RowShape, Shard, file_entry, sync_files, total_moment, write_durably

SHARD_BYTES: Final = 64 * 2**20
MAX_SHARD_ROWS: Final = 4096

Report = Callable[[Progress], None]


def rows_a_shard(shape: RowShape) -> int:
    """Rows of a shard of about `SHARD_BYTES`."""
    return max(1, min(MAX_SHARD_ROWS, SHARD_BYTES // shape.row_bytes))


def save_preconditioner(
    output: Path, total: Float[Tensor, "m d d"], rows: int, damping: float
) -> Preconditioner:
    """Fits the default profile's preconditioner from Σ row rowᵀ over `rows` rows."""
    preconditioner = Preconditioner.fit(total, rows, damping)
    preconditioner.save(preconditioner_path(output), total / rows)
    return preconditioner


def publish(
    spec: BuildSpec,
    output: Path,
    model: LanguageModel,
    rows: RowMaker,
    shards: Sequence[ShardEntry],
    sample: Sample,
    report: Report = lambda progress: None,
    confirm: Callable[[], None] = lambda: None,
    origin: Origin = "build",
) -> Manifest:
    """Fits the preconditioner, builds and measures the search, and writes the manifest of finished shards.

    Raises `InvalidInput` where the candidates for the `sample` do not hold `min_recall`.
    """
    scoring, collector = spec.scoring, rows.collector
    layers = list(collector.layers.values())
    count = sum(entry.rows for entry in shards)
    preconditioner = rows.before
    files = [file_entry(path, output) for path in sorted((output / "statistics").iterdir())]
    of_profile: list[FileEntry] = []
    if scoring.preconditioner:
        if preconditioner is None:
            total = total_moment(output, shards)
            preconditioner = save_preconditioner(output, total, count, scoring.damping)
        of_profile.append(file_entry(preconditioner_path(output), output))
    opened = [Shard.open(output, entry, rows.shape) for entry in shards]
    search: list[FileEntry] = []
    lengths: list[np.ndarray] = []

    def measured(kind: SearchKind) -> SearchEntry:
        search.clear()
        lengths.clear()
        for done, shard in enumerate(opened, start=1):
            file, of_rows = build_shard_search(
                output, shard, preconditioner, scoring.normalize, kind, generation=1
            )
            search.append(file)
            lengths.append(of_rows)
            report(Progress(stage="search", done=done, total=len(shards), unit="shards"))
        before = None if kind == "hamming" else preconditioner
        profile = Profile(preconditioner, before, None, lengths, scoring.normalize, is_default=True)
        candidates = Candidates.read(output, shards, kind, rows.shape, generation=1)
        return measure(sample, profile, opened, candidates, spec.search.min_recall)

    found = choose(ladder(spec.search, rows.shape, count), spec.search.min_recall, measured)
    if found.kind != "hamming":
        of_profile += [
            write_lengths(output, DEFAULT, entry.name, of_rows)
            for entry, of_rows in zip(shards, lengths, strict=True)
        ]
    files += search
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        generation=1,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        origin=origin,
        spec=spec,
        fingerprint=spec.fingerprint(),
        model_sha256=model.sha256,
        modules=tuple(
            ModuleEntry(name=layer.name, out_features=layer.out_features, in_features=layer.in_features)
            for layer in layers
        ),
        coverage_percent=round(coverage_percent(model.model, layers), 2),
        dimensions=collector.dimensions,
        rows=count,
        tokens=sum(entry.tokens for entry in shards),
        skipped=sum(entry.skipped for entry in shards),
        files=tuple(files),
        shards=tuple(shards),
        profiles=(ProfileEntry(name=DEFAULT, files=tuple(of_profile)),),
        search=found,
    )
    sync_files(output, (*files, *of_profile))
    confirm()
    write_durably(output / FILE_NAME, manifest.model_dump_json(indent=1).encode())
    return manifest
