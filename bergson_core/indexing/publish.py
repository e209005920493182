"""Publishes an index: the end of every build, append, compaction and fitting of a profile.

New files are written beside the published ones. Then the manifest is replaced, in one step, and the files that the new
manifest does not name are removed. A reader sees either the old generation of the index or the new one, both complete.

Legend: m modules, d numbers per module.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bergson_core.gradients.normalizers.matrix_root import EighFunction
from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.indexing.build_context import BuildContext, always_confirm, ignore_progress
from bergson_core.indexing.search_files import SearchFiles
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.modules import coverage_percent
from bergson_core.schemas.results import Progress
from bergson_core.search.measuring.recall import RecallQueries
from bergson_core.shards.row_encoder import RowEncoder
from bergson_core.shards.shard import RowShape
from bergson_core.shards.shard_writer import sum_second_moments
from bergson_core.storage.deletion import remove_unpublished_files
from bergson_core.storage.integrity import flush_files, make_file_entry
from bergson_core.storage.layout import DEFAULT_PROFILE, preconditioner_path
from bergson_core.storage.manifest import (
    FORMAT_VERSION,
    Manifest,
    ModuleEntry,
    ProfileEntry,
    ShardEntry,
    write_manifest,
)
from bergson_core.storage.takedown_log import protect_takedowns
from bergson_core.utils.background import run_in_thread
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback


def save_preconditioner(
    output: Path,
    total: Float[Tensor, "m d d"],
    rows: int,
    damping: float,
    eigh: EighFunction = torch.linalg.eigh,
) -> Preconditioner:
    """Fits the preconditioner of the default profile, saves it in the index at `output`, and returns it.

    Args:
        output: The directory of the index.
        total: Σ row rowᵀ [m, d, d].
        rows: The number of rows in that sum.
        damping: Added to each eigenvalue, in units of the mean eigenvalue.
        eigh: The eigendecomposition to use.
    """
    preconditioner = Preconditioner.fit(total, rows, damping, eigh)
    preconditioner.save(preconditioner_path(output), total / rows)
    return preconditioner


def publish_index(
    context: BuildContext,
    model: LanguageModel,
    encoder: RowEncoder,
    shards: Sequence[ShardEntry],
    queries: RecallQueries | None,
    **fields: Any,
) -> Manifest:
    """Fits the preconditioner, builds and measures the search, and writes the manifest of a new index.

    Args:
        context: The build that the shards come from.
        model: The model that the index is queried with.
        encoder: The encoder that made the rows.
        shards: The finished shards, in order.
        queries: The queries that the search is measured with; None to measure nothing.
        **fields: Values of further fields of the manifest, such as its origin.

    Raises:
        InvalidInput: No search that the spec allows reaches `min_recall`; nothing is published.
    """
    spec, output, report = context.spec, context.output, context.report
    rows = sum(shard.rows for shard in shards)
    if spec.scoring.preconditioner and encoder.preconditioner is None:
        report(Progress(stage="preconditioner"))
        damping, eigh = spec.scoring.damping, context.steps.eigh
        run_in_thread(
            lambda: save_preconditioner(output, sum_second_moments(output, shards), rows, damping, eigh),
            lambda: report(Progress(stage="preconditioner")),
        )
    files = SearchFiles(output, spec, encoder.shape, shards)
    if spec.scoring.preconditioner:
        files.add_file(make_file_entry(preconditioner_path(output), output))
    search = files.choose_search(queries, report)
    notice = files.calibrate(queries, search, report)
    modules = list(encoder.collector.modules.values())
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        generation=1,
        created_at=_utc_now(),
        spec=spec,
        fingerprint=spec.fingerprint(),
        model_sha256=model.sha256,
        model_files=dict(model.files.sha256_by_name) if model.files is not None else {},
        model_revision=model.revision,
        checkpoint_revisions=model.checkpoint_revisions,
        adapter_base=model.adapter_base,
        chat_date=model.chat_date or datetime.now(UTC).date(),
        modules=tuple(
            ModuleEntry(name=module.name, out_features=module.out_features, in_features=module.in_features)
            for module in modules
        ),
        coverage_percent=round(coverage_percent(model.model, modules) / spec.checkpoints, 2),
        dimensions=encoder.collector.dimensions,
        numbered=rows,
        profiles=(ProfileEntry(name=DEFAULT_PROFILE, files=()),),
        search=search,
        notice=notice,
        files=tuple(make_file_entry(path, output) for path in sorted((output / "statistics").iterdir())),
        **_shard_fields(shards),
    )
    return publish_manifest(manifest.model_copy(update=fields), files, context.report, context.confirm)


def publish_next_generation(
    root: Path,
    old: Manifest,
    shards: Sequence[ShardEntry],
    queries: RecallQueries | None = None,
    report: ProgressCallback = ignore_progress,
    confirm: ConfirmCallback = always_confirm,
    **changes: Any,
) -> Manifest:
    """Publishes the next generation of an index, with these shards, and returns its manifest.

    The statistics stay as they are. Search files are built for the new shards only.

    Args:
        root: The directory of the index.
        old: Its current manifest.
        shards: The shards of the new generation, in order.
        queries: If given, the search is measured again with them, and the notice is calibrated again. The kind of
            search may then change: if the index has grown large enough for another one, or if the old one no longer
            reaches `min_recall`.
        report: Called with the progress.
        confirm: Called just before the new generation is published.
        **changes: Values of further fields of the manifest.

    Raises:
        InvalidInput: With `queries`, no search that the spec allows reaches `min_recall`.
    """
    files = SearchFiles(root, old.spec, RowShape.of(old), shards, old.all_files())
    search, notice = old.search, old.notice
    if queries is None:
        files.build_search(old.search.kind, report)
    else:
        search = files.choose_search(queries, report)
        notice = files.calibrate(queries, search, report)
    for profile in old.profiles:
        if profile.name != DEFAULT_PROFILE:
            run_in_thread(
                partial(files.add_profile, profile.name),
                lambda: report(Progress(stage="search", unit="shards")),
            )
    new = {
        "generation": old.generation + 1,
        "created_at": _utc_now(),
        "search": search,
        "notice": notice,
        **_shard_fields(shards),
    }
    return publish_manifest(old.model_copy(update=new | changes), files, report, confirm)


def publish_manifest(
    manifest: Manifest, files: SearchFiles, report: ProgressCallback, confirm: ConfirmCallback
) -> Manifest:
    """Adds the search files and the profiles' files to `manifest`, writes it, and removes all other files.

    Returns:
        The manifest as it was written.
    """
    shared = (entry for entry in manifest.files if not entry.path.startswith("search/"))
    profiles = tuple(
        profile.model_copy(update={"files": files.profile_entries(profile.name)})
        for profile in manifest.profiles
    )
    all_files = (*shared, *files.faiss_entries(manifest.search.kind))
    manifest = manifest.model_copy(update={"files": all_files, "profiles": profiles})
    takedowns = run_in_thread(
        partial(protect_takedowns, files.root), lambda: report(Progress(stage="search", unit="shards"))
    )
    manifest = manifest.model_copy(update={"takedowns": takedowns})
    entries = manifest.all_files()
    flush_files(files.root, [entry for path, entry in entries.items() if path not in files.published])
    confirm()
    write_manifest(files.root, manifest)
    remove_unpublished_files(files.root, manifest)
    return manifest


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _shard_fields(shards: Sequence[ShardEntry]) -> dict[str, Any]:
    """Returns the fields of a manifest that follow from its shards."""
    return {
        "rows": sum(shard.rows for shard in shards),
        "tokens": sum(shard.tokens for shard in shards),
        "skipped": sum(shard.skipped for shard in shards),
        "shards": tuple(shards),
    }
