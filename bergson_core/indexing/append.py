"""Adds documents to a published index: their shards beside the old ones, then a new generation of the manifest.

Statistics stay: normalizers, projections, preconditioners. So the old rows stay too, and the cost is that of the new
documents, plus, each time that the index has grown by a tenth, one reading of all rows to measure the search again.
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
from bergson_core.indexing.build import out_of_memory_errors, rows_fingerprint
from bergson_core.indexing.checked_documents import CheckedDocuments
from bergson_core.indexing.executor import Executor, LocalExecutor, build_shards
from bergson_core.indexing.output_directory import index_write_lock
from bergson_core.indexing.publish import publish_next_generation
from bergson_core.indexing.shard_builder import ShardBuilder, plan_shards, rows_per_shard
from bergson_core.models.batch_budget import find_batch_budget
from bergson_core.models.loading import LanguageModel, LoadModel, load_model, require_same_model
from bergson_core.models.tokenization import tokenize_documents
from bergson_core.schemas.build import AppendSpec, BuildSpec
from bergson_core.schemas.record import Record, record_from_row
from bergson_core.schemas.results import Progress
from bergson_core.search.recall import RECALL_QUERY_COUNT, RecallQueries
from bergson_core.shards.row_encoder import RowEncoder, open_row_encoder
from bergson_core.shards.shard import ShardPosition
from bergson_core.storage.document_lookup import existing_ids
from bergson_core.storage.document_table import document_at, iter_document_tables
from bergson_core.storage.integrity import APPENDING
from bergson_core.storage.manifest import Manifest, check_append, read_manifest
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback

_MEASURED_FOR: Final = 1.1
"""Times the rows that the search was measured over: with more, it is measured again."""
_IDS_AT_ONCE: Final = 2**16


def append_documents(
    index: str | Path,
    spec: AppendSpec,
    *,
    key: str = "",
    report: ProgressCallback = lambda progress: None,
    confirm: ConfirmCallback = lambda: None,
    load_model: LoadModel = load_model,
    shard_rows: int | None = None,
    executor: Executor = LocalExecutor(),
) -> Manifest:
    """Adds the documents of `spec` to the index in directory `index`, and returns its new manifest.

    Readers see the old generation until the new one is whole. An append that was stopped goes on from its finished
    shards, and one that is in the index already returns at once: that is told by its documents and by `key`, which a
    caller gives who may send the same documents twice on purpose. `report`, `confirm`, `shard_rows` and `executor` are
    those of `build_index`.
    Raises `IdsExist` where the index has documents of the same ids; `InvalidInput` where `spec` says something else
    than the index was built with, for a bad document, and for an index of a training run; `IndexCorrupt` where the
    model is not the one of the index; `IndexNotFound`, `IndexBusy` while another process writes there, `DiskFull` and
    `ClusterUnavailable`.
    """
    root = Path(index)
    check_append(root.name, read_manifest(root), spec)
    executor.prepare()
    with index_write_lock(root), out_of_memory_errors():
        old = read_manifest(root)
        report(Progress(stage="load"))
        model = load_model(old.spec.model, old.revision, old.spec.dtype)
        require_same_model(root.name, old, model)
        new = old.spec.model_copy(update={"dataset": spec.dataset, "documents": spec.documents})
        documents = load_documents_streaming(new, _workspace(root, spec, key), report)
        corpus = CheckedDocuments.survey(new, replace(documents, first_number=old.numbered), model, report)
        source = _source(new, model, corpus, key)
        if source in {shard.source for shard in old.shards}:
            return old
        _check_ids(root, corpus)
        rows = open_row_encoder(new, root, model)
        maker = ShardBuilder(root, new, model, rows, _budget_tokens(root, model, rows, corpus), False)
        place = ShardPosition(old.rows, source, old.generation + 1)
        first_name = 1 + max(int(shard.name) for shard in old.shards)
        size = shard_rows or rows_per_shard(rows.shape, old.rows + len(corpus.documents))
        work = plan_shards(len(corpus.documents), size, place, first_name)
        made = build_shards(maker, corpus.documents, work, report, confirm, executor)
        shards = (*old.shards, *made)
        sample = None
        if old.rows + len(corpus.documents) > _MEASURED_FOR * old.search.rows:
            sample = _sample(root, old.model_copy(update={"shards": shards}), maker, report)
        numbered = old.numbered + len(corpus.documents)
        manifest = publish_next_generation(root, old, shards, sample, report, confirm, numbered=numbered)
        report(Progress(stage="done", done=len(corpus.documents), total=len(corpus.documents)))
        return manifest


def _workspace(root: Path, spec: AppendSpec, key: str) -> Path:
    """Where a stream is read into, for this append alone; what was stopped finds it again."""
    name = hashlib.sha256(f"{key}\0{spec.model_dump_json()}".encode()).hexdigest()[:16]
    path = root / f"{APPENDING}{name}"
    path.mkdir(exist_ok=True)
    return path


def _source(spec: BuildSpec, model: LanguageModel, corpus: CheckedDocuments, key: str) -> str:
    parts = (rows_fingerprint(spec, model, corpus), key)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _check_ids(root: Path, corpus: CheckedDocuments) -> None:
    documents = corpus.documents
    if documents.columns.id is None:
        return
    found: list[str] = []
    for start in range(0, len(documents), _IDS_AT_ONCE):
        part = documents.dataset[start : start + _IDS_AT_ONCE][documents.columns.id]
        found += existing_ids(root, [str(one) for one in part])
    if found:
        raise IdsExist.of(found)


def _budget_tokens(root: Path, model: LanguageModel, rows: RowEncoder, corpus: CheckedDocuments) -> int:
    """As the build's batches, where these still fit: a document gets the row that it would have got there."""
    before = json.loads((root / "statistics" / "done").read_text())["budget_tokens"]
    return min(before, find_batch_budget(model, rows.collector.modules, corpus.longest_tokens))


def _sample(root: Path, manifest: Manifest, maker: ShardBuilder, report: ProgressCallback) -> RecallQueries:
    """Documents of the whole index as queries, from their stored text."""
    total = sum(shard.rows for shard in manifest.shards)
    numbers = sample_row_numbers(total, RECALL_QUERY_COUNT, manifest.spec.gradients.seed)
    tokens = tokenize_documents(_records(root, manifest, numbers), maker.spec, maker.model)
    telling = Progress(stage="measure", unit="rows")
    return RecallQueries.collect(
        maker.encoder.collector, numbers, tokens, maker.budget_tokens, lambda: report(telling)
    )


def _records(root: Path, manifest: Manifest, numbers: Sequence[int]) -> list[Record]:
    records = []
    for entry, texts in iter_document_tables(root, manifest):
        for number in numbers:
            if entry.first_row <= number < entry.first_row + entry.rows:
                row = document_at(texts, number - entry.first_row)
                records.append(
                    record_from_row(row["id"], row["prompt"], row["completion"], manifest.spec.columns)
                )
    return records
