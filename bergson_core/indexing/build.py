"""Builds an index. Each stage of a build is a function; they run in this order:

    load_tracked_model      loads the model and checks that it has modules to track
    check_documents         reads every document before any gradient is computed (`checked_documents.py`)
    add_reference_margins   asks the reference model about preference pairs (`preference/reference_margins.py`)
    fit_statistics          fits the processor from a sample of the documents
    build_shards            computes the rows of all documents, shard by shard (`executor.py`)
    collect_recall_queries  makes queries of some documents, which the search is measured with
    publish_index           fits the preconditioner, builds the search files, writes the manifest last (`publish.py`)

A file that the manifest does not name is not part of the index, so a build may be killed at any moment.

Documents are read and tokenised three times, on purpose:

1. `check_documents` reads all of them, so that an invalid document is an error in the first minutes, not after hours.
2. `fit_statistics` reads a sample, since the statistics must be known before the first row is computed.
3. `build_shards` reads the documents of one shard at a time, so that memory does not grow with the dataset, and any
   machine can build any shard, as can a later run that resumes the build.

Keeping the tokens of all documents from the first reading would take memory or disk in proportion to the dataset and
save little: tokenising takes far less time than computing gradients.

Files of an unfinished build, beside those in `output_directory.py`:
    <output>/statistics/done   the build that the statistics belong to, and their hashes; written after them
    <output>/documents.arrow   the documents from files or a stream, until the index is published (`data/streaming.py`)
"""

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bergson_core.data.streaming import load_documents_streaming
from bergson_core.errors import IndexNotFound, InvalidInput
from bergson_core.gradients.checkpoints.collector import open_row_collector
from bergson_core.gradients.checkpoints.fitting import fit_index_processor
from bergson_core.gradients.fitting_sample import choose_sample, sample_row_numbers
from bergson_core.gradients.normalizers.optimizer_checkpoint import find_checkpoint_file
from bergson_core.gradients.preconditioner import SecondMoment
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.indexing.build_context import BuildContext, always_confirm, ignore_progress
from bergson_core.indexing.checked_documents import CheckedDocuments, check_documents
from bergson_core.indexing.executor import Executor, LocalExecutor
from bergson_core.indexing.output_directory import (
    find_finished_statistics,
    index_write_lock,
    remove_build_stamp,
    remove_rejected_build,
    require_free_directory,
    write_build_stamp,
    write_statistics_stamp,
)
from bergson_core.indexing.preference.reference_margins import add_reference_margins
from bergson_core.indexing.publish import publish_index, save_preconditioner
from bergson_core.indexing.shard_builder import ShardBuilder, plan_shards, rows_per_shard
from bergson_core.indexing.shard_building import build_shards
from bergson_core.models.batch_budget import find_batch_budget
from bergson_core.models.checkpoints.loading import checkpoint_sources
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.loading import is_out_of_memory, load_model
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.results import Progress
from bergson_core.search.measuring.null_queries import SOURCE_DOCUMENTS, QuerySources
from bergson_core.search.measuring.recall import RecallQueries
from bergson_core.shards.row_encoder import RowEncoder, has_preconditioned_signs, open_row_encoder
from bergson_core.shards.shard import Shard
from bergson_core.shards.shard_writer import ShardPosition
from bergson_core.storage.deletion import remove_unpublished_files
from bergson_core.storage.locations import locate_sources, without_paths
from bergson_core.storage.manifest import FORMAT_VERSION, Manifest, ShardEntry, read_manifest
from bergson_core.tokens.batching import Batch, iter_batches
from bergson_core.utils.atomic_files import file_sha256
from bergson_core.utils.background import compute_in_this_thread, run_in_thread, stop_if_abandoned
from bergson_core.utils.disk_errors import translate_disk_errors
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback, StageProgress


def build_index(
    spec: BuildSpec,
    output: str | Path,
    *,
    report: ProgressCallback | None = None,
    confirm: ConfirmCallback | None = None,
    shard_rows: int | None = None,
    executor: Executor = LocalExecutor(),
) -> Manifest:
    """Builds the index that `spec` describes in the directory `output`.

    To resume a build that was stopped or killed, make the same call again: it keeps the finished shards, and the
    resulting rows are byte-identical. If the index is already complete, the call returns at once.

    Args:
        spec: The model, the documents, and how gradients are collected and searched.
        output: The directory of the index. It is created if it does not exist.
        report: Called with the progress after every batch, and some fifty times a second meanwhile. It may raise to
            stop the build. Without it, the build takes place in the calling thread, which is faster.
        confirm: Called before each shard is accepted and before the index is published. It may raise to stop the build.
        shard_rows: The maximum number of rows in a shard. By default a shard has about 64 MiB, or a thousandth of a
            large index.
        executor: Where shards are built: in this process, or on a Ray cluster with `RayExecutor()`; see
            docs/scaling.md.

    Returns:
        The manifest of the index.

    Raises:
        IndexExists: `output` holds something other than this build.
        IndexBusy: Another process is building in `output`.
        ModelNotFound: The model cannot be loaded.
        DatasetNotFound: The dataset cannot be read.
        InvalidInput: A setting, a column or a document is invalid (this is found before any gradient is computed), a
            batch does not fit into the device's memory, or no search reaches `min_recall`.
        DiskFull: The disk is full.
        ReadOnly: `output` may not be written to.
        ClusterUnavailable: The executor has no cluster to build shards on.
    """
    output, spec = Path(output), locate_sources(BuildSpec.model_validate(spec))
    require_free_directory(output, spec)
    executor.prepare()
    is_new = not output.exists()
    context = BuildContext(spec, output, report or ignore_progress, confirm or always_confirm)
    with translate_disk_errors(output), compute_in_this_thread(when=report is None):
        try:
            output.mkdir(parents=True, exist_ok=True)
            with index_write_lock(output), translate_out_of_memory():
                return _run_build(context, shard_rows, executor)
        except InvalidInput:
            if not (output / "statistics").exists():  # the build has done nothing yet that is worth keeping
                remove_rejected_build(output, is_new=is_new)
            raise


@contextmanager
def translate_out_of_memory() -> Iterator[None]:
    """Turns an error of too little memory into an `InvalidInput` that says what to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InvalidInput(
            f"a batch does not fit into the device's memory: expected shorter documents (max_tokens), dtype "
            f"bfloat16, or a larger device; {error}"
        ) from error


def _run_build(context: BuildContext, shard_rows: int | None, executor: Executor) -> Manifest:
    try:
        manifest = read_manifest(context.output)
        remove_unpublished_files(
            context.output, manifest
        )  # of a build that was killed after it had published
    except IndexNotFound:
        # When this call returns, the documents are closed and their mapped pages are no longer in memory.
        model, encoder, shards, queries, fields = _build_rows(context, shard_rows, executor)
        manifest = publish_index(context, model, encoder, shards, queries, **fields)
    remove_build_stamp(context.output)
    done = Progress(stage="done", done=manifest.rows, total=manifest.rows, documents=manifest.documents)
    context.report(done)
    return manifest


def _build_rows(
    context: BuildContext, shard_rows: int | None, executor: Executor
) -> tuple[LanguageModel, RowEncoder, list[ShardEntry], RecallQueries | None, dict[str, Any]]:
    """Runs the stages before the publication, and returns what is to be published.

    The last of these are fields of the manifest about the documents.
    """
    spec, output = context.spec, context.output
    model = load_tracked_model(context)
    model = replace(model, chat_date=write_build_stamp(output, spec))
    documents = check_documents(
        spec, load_documents_streaming(spec, output, context.report), model, context.report
    )
    documents = add_reference_margins(context, documents, model, output)
    fingerprint = rows_fingerprint(spec, model, documents)
    budget_tokens = fit_statistics(context, model, documents, fingerprint)
    builder = make_shard_builder(context, model, budget_tokens)
    tasks = plan_shards(
        len(documents),
        shard_rows or rows_per_shard(builder.encoder.shape, len(documents)),
        ShardPosition(0, fingerprint),
    )
    shards = build_shards(builder, documents.documents, tasks, context.report, context.confirm, executor)
    queries = collect_recall_queries(context, documents, builder, shards, len(documents))
    fields = {
        "numbered": documents.read,
        "documents": documents.report,
        "reference_sha256": documents.reference_sha256,
    }
    return model, builder.encoder, shards, queries, fields


def load_tracked_model(context: BuildContext) -> LanguageModel:
    """Loads the model, and checks that it has modules to track."""
    spec = context.spec
    context.report(Progress(stage="load"))
    checkpoints = checkpoint_sources(spec.models)
    model = load_model(
        spec.model, spec.revision, spec.dtype, device_map=spec.device_map, checkpoints=checkpoints
    )
    model.select_for(spec.gradients)
    return model


def rows_fingerprint(spec: BuildSpec, model: LanguageModel, documents: CheckedDocuments) -> str:
    """Returns a hash of everything that the rows depend on: builds with the same fingerprint may share shards."""
    checkpoint = spec.gradients.optimizer_state
    checkpoint_sha256 = file_sha256(find_checkpoint_file(checkpoint)) if checkpoint is not None else ""
    parts = (
        str(FORMAT_VERSION),
        without_paths(spec).rows_fingerprint(),
        model.sha256,
        documents.content_sha256,
        checkpoint_sha256,
        *([model.chat_date.isoformat()] if model.chat_date is not None and _may_be_chats(spec) else ()),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _may_be_chats(spec: BuildSpec) -> bool:
    return spec.columns.messages is not None or spec.columns.chosen is not None


def fit_statistics(
    context: BuildContext, model: LanguageModel, documents: CheckedDocuments, fingerprint: str
) -> int:
    """Fits the processor from a sample of the documents and saves it; for sign rows, the preconditioner as well.

    If an earlier run of this build has already saved them, they are left as they are.

    Args:
        context: The build.
        model: The model.
        documents: The documents of the build.
        fingerprint: The build's `rows_fingerprint`.

    Returns:
        The maximum number of tokens in a batch, padding included. A resumed build keeps the number of the earlier run
        if such a batch still fits into memory, since rows are rounded differently in batches of another size.
    """
    spec, steps = context.spec, context.steps
    settings, directory = spec.gradients, context.output / "statistics"
    modules = model.select_for(settings)
    budget_tokens = find_batch_budget(model, modules, documents.longest_tokens)
    if finished := find_finished_statistics(context.output, fingerprint):
        return min(budget_tokens, finished.budget_tokens)
    # A killed run may have left a part of them; the manifest lists whatever is in the directory. Shards were made with
    # the statistics that are gone, and perhaps in batches of another size.
    for leftover in (context.output / "shards", context.output / "profiles", directory):
        shutil.rmtree(leftover, ignore_errors=True)
    tokens = choose_sample(
        len(documents),
        settings,
        lambda numbers: dict(zip(numbers, documents.tokenize(model, numbers), strict=True)),
    )
    sample = _CountedSample(context, list(iter_batches(tokens, budget_tokens, model.device)))
    sample.report()
    processor = run_in_thread(
        lambda: fit_index_processor(model, modules, sample, settings, stop_if_abandoned, steps.eigh),
        sample.report,
    )
    sample.report()
    processor.save(directory)
    if has_preconditioned_signs(spec):
        collector = open_row_collector(model, processor, settings.modules, make=steps.make_collector)
        encoder = RowEncoder(collector, settings.rows)
        batches = iter_batches(tokens, budget_tokens, model.device)
        run_in_thread(
            lambda: _fit_preconditioner(context, encoder, batches),
            lambda: context.report(Progress(stage="preconditioner")),
        )
    write_statistics_stamp(context.output, fingerprint, budget_tokens)
    return budget_tokens


def _fit_preconditioner(context: BuildContext, encoder: RowEncoder, batches: Iterable[Batch]) -> None:
    """Fits the preconditioner of sign rows to the rows of a sample, before their signs are taken, and saves it."""
    moment = SecondMoment(encoder.shape.modules, encoder.shape.width, encoder.collector.device)
    for batch in batches:
        moment.add(encoder.encode(batch)[0])
        stop_if_abandoned()
    damping, eigh = context.spec.scoring.damping, context.steps.eigh
    save_preconditioner(context.output, moment.total, moment.rows, damping, eigh)


def make_shard_builder(context: BuildContext, model: LanguageModel, budget_tokens: int) -> ShardBuilder:
    """Opens the saved statistics, and returns the builder of the shards.

    It saves the second moment of the rows with each shard, for the preconditioner to be fitted from. Sign rows do not
    need this: their preconditioner is fitted before the first shard.
    """
    spec = context.spec

    def make_collector(language_model: LanguageModel, processor: GradientProcessor) -> RowCollector:
        make = context.steps.make_collector
        return open_row_collector(language_model, processor, spec.gradients.modules, make=make)

    encoder = open_row_encoder(spec, context.output, model, make_collector)
    save_moments = spec.scoring.preconditioner and encoder.preconditioner is None
    return ShardBuilder(context.output, spec, model, encoder, budget_tokens, save_moments)


def collect_recall_queries(
    context: BuildContext,
    documents: CheckedDocuments,
    builder: ShardBuilder,
    shards: Sequence[ShardEntry],
    index_rows: int,
) -> RecallQueries | None:
    """Makes queries of the documents of `shards`, which the search of an index of `index_rows` rows is measured with.

    Returns None if the spec says not to measure it.
    """
    if not context.spec.search.measure:
        return None
    context.report(Progress(stage="measure", unit="queries"))
    numbers = sample_row_numbers(len(documents), SOURCE_DOCUMENTS, context.spec.gradients.seed)
    tokens = documents.tokenize(builder.model, numbers)
    open_shards = [Shard.open(context.output, entry, builder.encoder.shape) for entry in shards]
    sources = replace(QuerySources.of_rows(open_shards, numbers, tokens), index_rows=index_rows)
    return RecallQueries.collect(builder.encoder.collector, sources, builder.budget_tokens, context.report)


class _CountedSample:
    """The batches of a sample, which are counted as they are used. They may be read more than once, in any thread."""

    def __init__(self, context: BuildContext, batches: Sequence[Batch]) -> None:
        self._context, self._batches = context, batches
        self._progress = StageProgress("statistics", sum(map(len, batches)))

    def __iter__(self) -> Iterator[Batch]:
        progress = self._progress = StageProgress("statistics", sum(map(len, self._batches)))
        for batch in self._context.steps.select_batches(self._batches):
            yield batch
            progress.advance(len(batch), batch.n_tokens)
            stop_if_abandoned()

    def report(self) -> None:
        """Reports how far the reader is."""
        self._context.report(self._progress.now())
