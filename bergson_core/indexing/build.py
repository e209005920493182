"""Builds an index. Each stage of a build is a function, in the order in which the stages run:

    load_tracked_model      loads the model and checks that it has modules to track
    check_documents         reads every document before any gradient is computed (`checked_documents.py`)
    fit_statistics          fits the processor from a sample of the documents
    build_shards            computes the rows of all documents, shard by shard (`executor.py`)
    collect_recall_queries  takes some documents as queries, by which the search is measured
    publish_index           fits the preconditioner, builds the search files, writes the manifest last (`publish.py`)

What the manifest does not name is not part of the index, so that a build may be killed at any moment.

Documents are read and tokenised three times on purpose: when all of them are checked, for the sample that the
statistics are fitted from, and for the shard that they go into. A document that cannot be taken is thus an error in the
first minutes and not after hours. The statistics have to be known before the first row is made. A shard then needs its
own documents alone, so that memory does not grow with the dataset, and a shard can be built on another machine, or
again by the run that resumes a build. Keeping the tokens would take memory or disk for all documents, and saves little:
tokenising takes far less time than the gradients.

    <output>/statistics/done   {"build": fingerprint, "budget_tokens": tokens of a batch}, once the statistics are whole
    <output>/documents.arrow   what was read of a stream, until the index is published (`data/streaming.py`)
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bergson_core.data.batching import Batch, iter_batches
from bergson_core.data.streaming import load_documents_streaming
from bergson_core.errors import IndexNotFound, InvalidInput
from bergson_core.gradients.normalizer_fitting import fit_processor_from_batches, sample_row_numbers
from bergson_core.gradients.optimizer_checkpoint import find_checkpoint_file
from bergson_core.gradients.preconditioner import SecondMoment
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.indexing.build_context import BuildContext, always_confirm, ignore_progress
from bergson_core.indexing.checked_documents import CheckedDocuments, check_documents
from bergson_core.indexing.executor import Executor, LocalExecutor, build_shards
from bergson_core.indexing.output_directory import (
    index_write_lock,
    remove_build_stamp,
    remove_rejected_build,
    require_free_directory,
    statistics_stamp_path,
    write_build_stamp,
)
from bergson_core.indexing.publish import publish_index, save_preconditioner
from bergson_core.indexing.shard_builder import ShardBuilder, plan_shards, rows_per_shard
from bergson_core.models.batch_budget import find_batch_budget
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.loading import load_model
from bergson_core.models.modules import select_modules
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.results import Progress
from bergson_core.search.recall import RECALL_QUERY_COUNT, RecallQueries
from bergson_core.shards.row_encoder import RowEncoder, has_preconditioned_signs, open_row_encoder
from bergson_core.shards.shard_writer import ShardPosition
from bergson_core.storage.manifest import FORMAT_VERSION, Manifest, ShardEntry, read_manifest
from bergson_core.utils.atomic_files import file_sha256, write_durably
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

    A build that was stopped or killed is resumed by the same call and keeps its finished shards; a finished one returns
    at once. The rows are byte-identical either way.

    Args:
        spec: The model, the documents, and how gradients are collected and searched.
        output: The directory of the index. It is created where it does not exist.
        report: Called with the progress after every batch. It may raise to stop the build.
        confirm: Called before each shard is accepted and before the index is published. It may raise to stop the build.
        shard_rows: The most rows of a shard; by default a shard is about 64 MiB, or a thousandth of a large index.
        executor: Where shards are built: in this process, or on a Ray cluster with `RayExecutor()`; see
            docs/scaling.md.

    Returns:
        The manifest of the index.

    Raises:
        IndexExists: `output` holds something else.
        IndexBusy: Another process builds there.
        ModelNotFound: The model cannot be loaded.
        DatasetNotFound: The dataset cannot be read.
        InvalidInput: The spec, a column or a document is wrong, or a batch does not fit into the device's memory. What
            is wrong with a document is found before any gradient is computed. Also where no search holds `min_recall`.
        DiskFull: There is no room left on the disk.
        ClusterUnavailable: The executor has no cluster to build shards on.
    """
    output = Path(output)
    require_free_directory(output, spec)
    executor.prepare()
    is_new = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    context = BuildContext(spec, output, report or ignore_progress, confirm or always_confirm)
    try:
        with index_write_lock(output), translate_out_of_memory():
            return _run_build(context, shard_rows, executor)
    except InvalidInput:
        if not (output / "statistics").exists():  # no work was done yet that is worth keeping
            remove_rejected_build(output, is_new=is_new)
        raise


@contextmanager
def translate_out_of_memory() -> Iterator[None]:
    """Raises `InvalidInput` where a batch inside the context does not fit into the device's memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InvalidInput(
            f"a batch does not fit into the device's memory: expected shorter documents (max_tokens), dtype "
            f"bfloat16, or a larger device; {error}"
        ) from error


def _run_build(context: BuildContext, shard_rows: int | None, executor: Executor) -> Manifest:
    try:
        manifest = read_manifest(context.output)
    except IndexNotFound:
        # Once this call has returned, the documents are closed and their mapped pages are out of memory.
        model, encoder, shards, queries = _build_rows(context, shard_rows, executor)
        manifest = publish_index(context, model, encoder, shards, queries)
    remove_build_stamp(context.output)
    context.report(Progress(stage="done", done=manifest.rows, total=manifest.rows))
    return manifest


def _build_rows(
    context: BuildContext, shard_rows: int | None, executor: Executor
) -> tuple[LanguageModel, RowEncoder, list[ShardEntry], RecallQueries]:
    """Runs the stages up to the publication, and returns what is published."""
    spec, output = context.spec, context.output
    model = load_tracked_model(context)
    write_build_stamp(output, spec)
    documents = check_documents(
        spec, load_documents_streaming(spec, output, context.report), model, context.report
    )
    fingerprint = rows_fingerprint(spec, model, documents)
    budget_tokens = fit_statistics(context, model, documents, fingerprint)
    builder = make_shard_builder(context, model, budget_tokens)
    tasks = plan_shards(
        len(documents),
        shard_rows or rows_per_shard(builder.encoder.shape, len(documents)),
        ShardPosition(0, fingerprint),
    )
    shards = build_shards(builder, documents.documents, tasks, context.report, context.confirm, executor)
    queries = collect_recall_queries(context, documents, builder)
    return model, builder.encoder, shards, queries


def load_tracked_model(context: BuildContext) -> LanguageModel:
    """Loads the model, and checks that it has modules to track."""
    spec = context.spec
    context.report(Progress(stage="load"))
    model = load_model(spec.model, spec.revision, spec.dtype)
    select_modules(model.model, spec.gradients.modules)
    return model


def rows_fingerprint(spec: BuildSpec, model: LanguageModel, documents: CheckedDocuments) -> str:
    """Returns a hash of everything that decides the rows: two builds with the same one may share shards."""
    checkpoint = spec.gradients.optimizer_state
    checkpoint_sha256 = file_sha256(find_checkpoint_file(checkpoint)) if checkpoint is not None else ""
    parts = (
        str(FORMAT_VERSION),
        spec.rows_fingerprint(),
        model.sha256,
        documents.content_sha256,
        checkpoint_sha256,
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def fit_statistics(
    context: BuildContext, model: LanguageModel, documents: CheckedDocuments, fingerprint: str
) -> int:
    """Fits the processor from a sample of the documents, and for signs the preconditioner as well, and saves them.

    Where an earlier run of this build has saved them, they stay as they are.

    Args:
        context: The build.
        model: The model.
        documents: The documents of the build.
        fingerprint: The build's `rows_fingerprint`.

    Returns:
        The tokens of a batch, padding included. A resumed build goes on with those of the earlier run where they still
        fit, since the rows of batches of another size are rounded differently.
    """
    spec, steps = context.spec, context.steps
    settings, directory = spec.gradients, context.output / "statistics"
    modules = select_modules(model.model, settings.modules)
    budget_tokens = find_batch_budget(model, modules, documents.longest_tokens)
    stamp = statistics_stamp_path(context.output)
    if stamp.is_file() and (saved := json.loads(stamp.read_text()))["build"] == fingerprint:
        return min(budget_tokens, saved["budget_tokens"])
    numbers = sample_row_numbers(len(documents), settings.sample_size, settings.seed)
    tokens = documents.tokenize(model, numbers)
    progress = StageProgress("statistics", len(numbers))
    sample = steps.select_batches(iter_batches(tokens, budget_tokens, model.device))
    processor = fit_processor_from_batches(
        model,
        modules,
        _report_each(sample, progress, context.report),
        settings,
        lambda: context.report(progress.advance(0, 0)),
        steps.eigh,
    )
    processor.save(directory)
    if has_preconditioned_signs(spec):
        encoder = RowEncoder(steps.make_collector(model, processor, settings.modules), settings.rows)
        moment = SecondMoment(encoder.shape.modules, encoder.shape.width, model.device)
        for batch in iter_batches(tokens, budget_tokens, model.device):
            moment.add(encoder.encode(batch)[0])
        save_preconditioner(context.output, moment.total, moment.rows, spec.scoring.damping, steps.eigh)
    write_durably(stamp, json.dumps({"build": fingerprint, "budget_tokens": budget_tokens}).encode())
    return budget_tokens


def make_shard_builder(context: BuildContext, model: LanguageModel, budget_tokens: int) -> ShardBuilder:
    """Returns what builds the shards, from the statistics that were saved.

    The second moment of the rows, which the preconditioner is fitted from, is saved with each shard, unless the
    preconditioner was fitted before, as that of sign rows is.
    """
    spec = context.spec

    def make_collector(model: LanguageModel, processor: GradientProcessor) -> RowCollector:
        return context.steps.make_collector(model, processor, spec.gradients.modules)

    encoder = open_row_encoder(spec, context.output, model, make_collector)
    save_moments = spec.scoring.preconditioner and encoder.preconditioner is None
    return ShardBuilder(context.output, spec, model, encoder, budget_tokens, save_moments)


def collect_recall_queries(
    context: BuildContext, documents: CheckedDocuments, builder: ShardBuilder
) -> RecallQueries:
    """Takes a sample of the documents as queries, by which the search is measured."""
    numbers = sample_row_numbers(len(documents), RECALL_QUERY_COUNT, context.spec.gradients.seed)
    tokens = documents.tokenize(builder.model, numbers)
    progress = Progress(stage="measure", unit="rows")
    return RecallQueries.collect(
        builder.encoder.collector, numbers, tokens, builder.budget_tokens, lambda: context.report(progress)
    )


def _report_each(
    sample: Iterator[Batch], progress: StageProgress, report: ProgressCallback
) -> Iterator[Batch]:
    """Yields the batches, and reports each one once it was used."""
    for batch in sample:
        yield batch
        report(progress.advance(len(batch), batch.n_tokens))
