"""Adds documents to a published index: new shards beside the old ones, then a new generation of the manifest.

The statistics stay as the build fitted them (normalizers, projections, preconditioners), and so do the old rows. An
append costs what its own documents cost and, each time the index has grown by a tenth, one scan of all rows by which
the search is measured again.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from bergson_core.data.streaming import load_documents_streaming
from bergson_core.errors import IdsExist
from bergson_core.gradients.normalizer_fitting import sample_row_numbers
from bergson_core.indexing.build import rows_fingerprint, translate_out_of_memory
from bergson_core.indexing.build_context import BuildContext, always_confirm, ignore_progress
from bergson_core.indexing.checked_documents import CheckedDocuments, check_documents
from bergson_core.indexing.executor import Executor, LocalExecutor, build_shards
from bergson_core.indexing.output_directory import index_write_lock, statistics_stamp_path
from bergson_core.indexing.publish import publish_next_generation
from bergson_core.indexing.shard_builder import ShardBuilder, plan_shards, rows_per_shard
from bergson_core.models import loading
from bergson_core.models.batch_budget import find_batch_budget
from bergson_core.models.language_model import LanguageModel, require_same_model
from bergson_core.models.loading import LoadModel
from bergson_core.models.tokenization import tokenize_documents
from bergson_core.schemas.build import AppendSpec
from bergson_core.schemas.record import Record, record_from_stored
from bergson_core.schemas.results import Progress
from bergson_core.search.recall import RECALL_QUERY_COUNT, RecallQueries
from bergson_core.shards.row_encoder import open_row_encoder
from bergson_core.shards.shard_writer import ShardPosition
from bergson_core.storage.document_lookup import find_existing_ids
from bergson_core.storage.document_table import iter_document_tables, read_document
from bergson_core.storage.layout import APPEND_DIRECTORY_PREFIX
from bergson_core.storage.manifest import Manifest, read_manifest, require_appendable
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

    Readers see the old generation until the new one is whole. An append that was stopped or killed is resumed by the
    same call and keeps its finished shards; one that is already in the index returns at once.

    Args:
        index: The directory of the index.
        spec: The documents. What it states beside them has to be what the index was built with.
        key: Tells an append that is tried again from one that adds the same documents on purpose: both have the same
            documents, but the latter has another key.
        report: Called with the progress after every batch. It may raise to stop the append.
        confirm: Called before each shard is accepted and before the new generation is published. It may raise to stop
            the append.
        load_model: Loads the model; `bergson_core.load_model` by default. A caller that has the model in memory passes
            a function that returns it.
        shard_rows: The most rows of a shard, as in `build_index`.
        executor: Where shards are built, as in `build_index`.

    Returns:
        The new manifest of the index.

    Raises:
        IdsExist: The index has documents of the same ids.
        InvalidInput: `spec` states something else than the index was built with, a document cannot be taken, or the
            index is that of a training run.
        IndexCorrupt: The model is not the one that the index was built from.
        IndexNotFound: There is no index.
        IndexBusy: Another process writes there.
        DiskFull: There is no room left on the disk.
        ClusterUnavailable: The executor has no cluster to build shards on.
    """
    root = Path(index)
    report, confirm = report or ignore_progress, confirm or always_confirm
    require_appendable(root.name, read_manifest(root), spec)
    executor.prepare()
    with index_write_lock(root), translate_out_of_memory():
        old = read_manifest(root)
        report(Progress(stage="load"))
        model = (load_model or loading.load_model)(old.spec.model, old.revision, old.spec.dtype)
        require_same_model(root.name, old, model)
        new_spec = old.spec.model_copy(update={"dataset": spec.dataset, "documents": spec.documents})
        context = BuildContext(new_spec, root, report, confirm)
        read = load_documents_streaming(new_spec, _make_stream_directory(root, spec, key), report)
        documents = check_documents(new_spec, replace(read, first_number=old.numbered), model, report)
        source = _fingerprint(context, model, documents, key)
        if source in {shard.source for shard in old.shards}:
            return old
        _require_new_ids(root, documents)
        builder = _make_shard_builder(context, model, documents)
        rows = old.rows + len(documents)
        tasks = plan_shards(
            len(documents),
            shard_rows or rows_per_shard(builder.encoder.shape, rows),
            ShardPosition(old.rows, source, old.generation + 1),
            first_name=1 + max(int(shard.name) for shard in old.shards),
        )
        new = build_shards(builder, documents.documents, tasks, report, confirm, executor)
        shards, queries = (*old.shards, *new), None
        if rows > _MAX_GROWTH * old.search.rows:
            queries = _collect_recall_queries(context, old.model_copy(update={"shards": shards}), builder)
        numbered = old.numbered + len(documents)
        manifest = publish_next_generation(root, old, shards, queries, report, confirm, numbered=numbered)
        report(Progress(stage="done", done=len(documents), total=len(documents)))
        return manifest


def _make_stream_directory(root: Path, spec: AppendSpec, key: str) -> Path:
    """Makes the directory that this append reads a stream into. The same append finds it again when it is resumed."""
    name = hashlib.sha256(f"{key}\0{spec.model_dump_json()}".encode()).hexdigest()[:16]
    path = root / f"{APPEND_DIRECTORY_PREFIX}{name}"
    path.mkdir(exist_ok=True)
    return path


def _fingerprint(context: BuildContext, model: LanguageModel, documents: CheckedDocuments, key: str) -> str:
    """Returns what tells this append from all others, as its shards note it."""
    parts = (rows_fingerprint(context.spec, model, documents), key)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _require_new_ids(root: Path, checked: CheckedDocuments) -> None:
    """Raises `IdsExist` where the index in `root` has documents of the same ids."""
    documents = checked.documents
    if documents.columns.id is None:
        return
    existing: list[str] = []
    for start in range(0, len(documents), _ID_CHUNK_SIZE):
        ids = documents.dataset[start : start + _ID_CHUNK_SIZE][documents.columns.id]
        existing += find_existing_ids(root, [str(document_id) for document_id in ids])
    if existing:
        raise IdsExist.for_ids(existing)


def _make_shard_builder(
    context: BuildContext, model: LanguageModel, documents: CheckedDocuments
) -> ShardBuilder:
    """Returns what builds the new shards, with batches of the build's size where these still fit.

    So a document gets the row that it would have got in the build.
    """
    encoder = open_row_encoder(context.spec, context.output, model)
    of_build = json.loads(statistics_stamp_path(context.output).read_text())["budget_tokens"]
    fitting = find_batch_budget(model, encoder.collector.modules, documents.longest_tokens)
    return ShardBuilder(
        context.output, context.spec, model, encoder, min(of_build, fitting), save_moments=False
    )


def _collect_recall_queries(
    context: BuildContext, manifest: Manifest, builder: ShardBuilder
) -> RecallQueries:
    """Takes a sample of all documents of the index as queries, from their stored text."""
    rows = sum(shard.rows for shard in manifest.shards)
    numbers = sample_row_numbers(rows, RECALL_QUERY_COUNT, manifest.spec.gradients.seed)
    tokens = tokenize_documents(
        _read_stored_records(context.output, manifest, numbers), builder.spec, builder.model
    )
    progress = Progress(stage="measure", unit="rows")
    return RecallQueries.collect(
        builder.encoder.collector, numbers, tokens, builder.budget_tokens, lambda: context.report(progress)
    )


def _read_stored_records(root: Path, manifest: Manifest, numbers: Sequence[int]) -> list[Record]:
    """Reads the documents of these rows, whose numbers ascend, from the index."""
    records = []
    for shard, table in iter_document_tables(root, manifest):
        for number in numbers:
            if shard.first_row <= number < shard.first_row + shard.rows:
                row = read_document(table, number - shard.first_row)
                records.append(
                    record_from_stored(row["id"], row["prompt"], row["completion"], manifest.spec.columns)
                )
    return records
