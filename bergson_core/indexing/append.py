"""Adds documents to a published index: new shards beside the old ones, then a new generation of the manifest.

The statistics (normalizers, projections, preconditioners) stay as the build fitted them, and so do the old rows. An
append computes gradients for its own documents only. Each time the index has grown by a tenth, it also scans all rows
once, to measure the search again.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from bergson_core.data.streaming import load_documents_streaming
from bergson_core.errors import IdsExist, IndexCorrupt, InvalidInput
from bergson_core.gradients.checkpoints.collector import open_row_collector
from bergson_core.gradients.processor_fitting import sample_row_numbers
from bergson_core.indexing.build import rows_fingerprint, translate_out_of_memory
from bergson_core.indexing.build_context import BuildContext, always_confirm, ignore_progress
from bergson_core.indexing.checked_documents import CheckedDocuments, check_documents
from bergson_core.indexing.executor import Executor, LocalExecutor
from bergson_core.indexing.merge_shards import merge_small_shards
from bergson_core.indexing.output_directory import index_write_lock, read_statistics_stamp
from bergson_core.indexing.preference.reference_margins import add_reference_margins
from bergson_core.indexing.publish import publish_next_generation
from bergson_core.indexing.shard_builder import ShardBuilder, plan_shards, rows_per_shard
from bergson_core.indexing.shard_building import build_shards
from bergson_core.models.batch_budget import find_batch_budget
from bergson_core.models.index_model import load_index_model
from bergson_core.models.index_tokens import tokenize_documents
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.loading import LoadModel
from bergson_core.schemas.build import AppendSpec
from bergson_core.schemas.record import Record, record_from_stored
from bergson_core.schemas.results import Progress
from bergson_core.search.measuring.null_queries import SOURCE_DOCUMENTS, QuerySources
from bergson_core.search.measuring.recall import RecallQueries
from bergson_core.shards.row_encoder import open_row_encoder
from bergson_core.shards.shard import Shard
from bergson_core.shards.shard_writer import ShardPosition
from bergson_core.storage.damaged_shards import require_intact
from bergson_core.storage.deletion import remove_unpublished_files
from bergson_core.storage.document_lookup import HiddenRows, find_existing_ids
from bergson_core.storage.document_table import iter_document_tables, read_column_types, read_document
from bergson_core.storage.layout import APPEND_DIRECTORY_PREFIX
from bergson_core.storage.locations import locate_dataset
from bergson_core.storage.manifest import Manifest, read_manifest, require_appendable
from bergson_core.storage.metadata_types import add_document_types, recorded_types
from bergson_core.utils.background import compute_in_this_thread, run_in_thread
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback

_MAX_GROWTH: Final = 1.1
"""The search is measured again when the index has more than so many times the rows that it was measured over."""
_ID_CHUNK_SIZE: Final = 2**16


def append_documents(
    index: str | Path,
    spec: AppendSpec,
    *,
    key: str = "",
    report: ProgressCallback | None = None,
    confirm: ConfirmCallback | None = None,
    load_model: LoadModel | None = None,
    shard_rows: int | None = None,
    executor: Executor = LocalExecutor(),
) -> Manifest:
    """Adds the documents of `spec` to the index in the directory `index`.

    Readers see the old generation until the new one is complete. To resume an append that was stopped or killed, make
    the same call again: it keeps the finished shards. If the documents are in the index already, it returns at once.

    Args:
        index: The directory of the index.
        spec: The documents. Any other setting that it states must equal that of the build.
        key: An idempotency key. A repeated call with the same documents and the same key adds nothing; pass another key
            to add the same documents again on purpose.
        report: Called with the progress after every batch. It may raise to stop the append.
        confirm: Called before each shard is accepted and before the new generation is published. It may raise to stop
            the append.
        load_model: A function that loads the model; `bergson_core.load_model` by default. Callers that hold the model
            in memory can pass a function that returns it.
        shard_rows: The most rows of a shard, as in `build_index`.
        executor: Where shards are built, as in `build_index`.

    Returns:
        The new manifest of the index.

    Raises:
        IdsExist: The index has documents with the same ids.
        InvalidInput: `spec` states a setting that differs from the build's, a document is invalid, its metadata is of
            another type than that of the index, or the index comes from a training run.
        IndexCorrupt: The model or the reference model is not that of the build, or files of the index are damaged.
        IndexNotFound: There is no index in the directory.
        IndexBusy: Another process is writing to the index.
        DiskFull: The disk is full.
        ReadOnly: The directory of the index may not be written to.
        ClusterUnavailable: The executor has no cluster to build shards on.
    """
    spec, root = AppendSpec.model_validate(spec), Path(index)
    in_this_thread = compute_in_this_thread(when=report is None)
    report, confirm = report or ignore_progress, confirm or always_confirm
    if spec.dataset is not None:
        spec = spec.model_copy(update={"dataset": locate_dataset(spec.dataset)})
    require_appendable(root.name, read_manifest(root), spec)
    executor.prepare()
    with (
        index_write_lock(root),
        translate_out_of_memory(),
        _documents_directory(root, spec, key) as directory,
        in_this_thread,
    ):
        old = read_manifest(root)
        require_intact(root, old)
        hidden = HiddenRows(root, old.takedowns, old.compacted)
        hidden.refresh()  # raises where the log is damaged
        report(Progress(stage="load"))
        model = load_index_model(root, old, load_model)
        new_spec = spec.as_build(old.spec)
        context = BuildContext(new_spec, root, report, confirm)
        # The build has made sure that no metadata column is a typing error.
        optional = new_spec.columns.metadata
        read = load_documents_streaming(new_spec, directory, report, optional)
        documents = check_documents(new_spec, replace(read, first_number=old.numbered), model, report)
        documents = add_reference_margins(context, documents, model, directory)
        _require_same_reference(root, old, documents)
        source = _fingerprint(context, model, documents, key)
        if source in {source for shard in old.shards for source in shard.all_sources}:
            remove_unpublished_files(root, old)  # of an append that was killed after it had published
            return old
        _require_new_ids(root, documents)
        _require_same_types(root, old, documents)
        modules = [module.name for module in old.modules]
        builder = _make_shard_builder(context, model, documents, modules)
        rows = old.rows + len(documents)
        tasks = plan_shards(
            len(documents),
            shard_rows or rows_per_shard(builder.encoder.shape, rows),
            ShardPosition(old.rows, source, old.generation + 1),
            first_name=1 + max(int(shard.name) for shard in old.shards),
        )
        new = build_shards(builder, documents.documents, tasks, report, confirm, executor)
        hidden.refresh()
        next_name = 1 + max(int(shard.name) for shard in (*old.shards, *new))
        merged = run_in_thread(
            partial(merge_small_shards, root, old.shards, builder.encoder.shape, hidden, next_name),
            lambda: report(Progress(stage="search", unit="shards")),
        )
        shards, queries = (*merged, *new), None
        if old.spec.search.measure and rows > _MAX_GROWTH * old.search.rows:
            queries = _collect_recall_queries(context, old.model_copy(update={"shards": shards}), builder)
        changes = {
            "numbered": old.numbered + documents.read,
            "documents": old.documents.plus(documents.report),
        }
        manifest = publish_next_generation(root, old, shards, queries, report, confirm, **changes)
        rows = len(documents)
        report(Progress(stage="done", done=rows, total=rows, documents=documents.report))
        return manifest


@contextmanager
def _documents_directory(root: Path, spec: AppendSpec, key: str) -> Iterator[Path]:
    """Creates the directory that this append reads its documents into, and removes it at the end.

    An append that was stopped or killed leaves it for the one that resumes it, which finds the same directory. An
    append that is refused leaves nothing.
    """
    name = hashlib.sha256(f"{key}\0{spec.model_dump_json()}".encode()).hexdigest()[:16]
    path = root / f"{APPEND_DIRECTORY_PREFIX}{name}"
    path.mkdir(exist_ok=True)
    try:
        yield path
    except (InvalidInput, IdsExist):
        shutil.rmtree(path)
        raise
    shutil.rmtree(path, ignore_errors=True)  # it is already gone if something was published


def _fingerprint(context: BuildContext, model: LanguageModel, documents: CheckedDocuments, key: str) -> str:
    """Returns the fingerprint of this append, which its shards record as their source."""
    parts = (rows_fingerprint(context.spec, model, documents), key)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _require_same_reference(root: Path, manifest: Manifest, documents: CheckedDocuments) -> None:
    """Raises `IndexCorrupt` if the reference of preference pairs is not that of the build."""
    if documents.reference_sha256 != manifest.reference_sha256:
        raise IndexCorrupt(
            f"the reference model {manifest.spec.reference_model} is not the one that the index {root.name} was built "
            "with: its files have changed; restore it or build the index again"
        )


def _require_new_ids(root: Path, checked: CheckedDocuments) -> None:
    """Raises `IdsExist` if the index in `root` already has documents, or chunks, with the same ids."""
    documents = checked.documents
    if documents.columns.id is None:
        return
    existing: list[str] = []
    for start in range(0, len(documents), _ID_CHUNK_SIZE):
        records = range(start, min(start + _ID_CHUNK_SIZE, len(documents)))
        ids = [*documents.read_whole_ids(records), *documents.read_ids(records)]
        existing += find_existing_ids(root, list(dict.fromkeys(ids)))
    if existing:
        raise IdsExist.for_ids(list(dict.fromkeys(existing)))


def _require_same_types(root: Path, manifest: Manifest, checked: CheckedDocuments) -> None:
    """Raises `InvalidInput` if metadata of the documents is of another type than its column in the index."""
    if not manifest.spec.columns.metadata:
        return
    types = recorded_types(manifest) or read_column_types(root, manifest)
    for chunk in checked.documents.iter_chunks():
        for record in chunk:
            types = add_document_types(root.name, types, f"the document {record.id!r}", record.metadata)


def _make_shard_builder(
    context: BuildContext, model: LanguageModel, documents: CheckedDocuments, modules: Sequence[str]
) -> ShardBuilder:
    """Returns the builder of the new shards, with rows of the modules that the index has.

    Its batches have as many tokens as those of the build if these still fit into memory, so that a document gets the
    row that the build would have computed.
    """
    encoder = open_row_encoder(
        context.spec, context.output, model, partial(open_row_collector, modules=modules)
    )
    of_build = read_statistics_stamp(context.output).budget_tokens
    fitting = find_batch_budget(model, encoder.collector.modules, documents.longest_tokens)
    return ShardBuilder(
        context.output, context.spec, model, encoder, min(of_build, fitting), save_moments=False
    )


def _collect_recall_queries(
    context: BuildContext, manifest: Manifest, builder: ShardBuilder
) -> RecallQueries:
    """Makes queries of some of all documents of the index, from their stored text."""
    context.report(Progress(stage="measure", unit="queries"))
    rows = sum(shard.rows for shard in manifest.shards)
    numbers = sample_row_numbers(rows, SOURCE_DOCUMENTS, manifest.spec.gradients.seed)
    tokens = tokenize_documents(
        _read_stored_records(context.output, manifest, numbers), builder.spec, builder.model
    )
    shape = builder.encoder.shape
    shards = [Shard.open(context.output, entry, shape) for entry in manifest.shards]
    sources = QuerySources.of_rows(shards, numbers, tokens)
    return RecallQueries.collect(builder.encoder.collector, sources, builder.budget_tokens, context.report)


def _read_stored_records(root: Path, manifest: Manifest, numbers: Sequence[int]) -> list[Record]:
    """Reads the documents of the rows with these ascending numbers from the index."""
    records = []
    for shard, table in iter_document_tables(root, manifest):
        for number in numbers:
            if shard.first_row <= number < shard.first_row + shard.rows:
                row = read_document(table, number - shard.first_row)
                weight = row.get("weight", 1.0)  # as queries, documents with another weight do as well
                records.append(record_from_stored(row, manifest.spec.columns, weight))
    return records
