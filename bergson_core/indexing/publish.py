"""The end of every build and of every change of an index: search, profiles, and the manifest last.

What is new lies beside what is published until the manifest is replaced, in one step; then what no longer belongs to
the index is removed. Whoever reads has the old index or the new one, whole.

Legend: m layers, d numbers a layer.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.indexing.search_files import SearchFiles
from bergson_core.models.loading import LanguageModel
from bergson_core.models.modules import coverage_percent
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.results import Progress
from bergson_core.search.recall import RecallQueries
from bergson_core.shards.row_encoder import RowEncoder
from bergson_core.shards.shard import RowShape, sum_second_moments
from bergson_core.storage.integrity import file_entry
from bergson_core.storage.layout import (
    DEFAULT_PROFILE,
    preconditioner_path,
)
from bergson_core.storage.manifest import (
    FORMAT_VERSION,
    Manifest,
    ModuleEntry,
    Origin,
    ProfileEntry,
    ShardEntry,
)
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback, run_in_thread


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
    layers, count = list(collector.modules.values()), sum(entry.rows for entry in shards)
    if scoring.preconditioner and rows.preconditioner is None:
        run_in_thread(
            lambda: save_preconditioner(output, sum_second_moments(output, shards), count, scoring.damping),
            lambda: report(Progress(stage="preconditioner")),
        )
    index = SearchFiles(output, spec, rows.shape, shards)
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
    index = SearchFiles(root, old.spec, RowShape.of(old), shards, old.all_files())
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
