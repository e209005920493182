"""Builds an index: statistics, shards, preconditioner, search, and the manifest last.

    <output>/.lock            held while building; given back by the kernel when the process dies
    <output>/building.json    whose build this is; a build of the same fingerprint goes on from its finished shards
    <output>/documents.arrow  what has been read of a stream (`streaming`)

What is not in the manifest does not exist, so a build may be killed at any moment.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bergson_core.data.batching import Batch, batches
from bergson_core.data.dataset import Documents
from bergson_core.data.streaming import STREAMED_FILE as STREAMED
from bergson_core.data.streaming import load_documents_streaming
from bergson_core.errors import IndexNotFound, InvalidInput
from bergson_core.gradients.normalizer_fitting import fit_processor_from_batches, sample_row_numbers
from bergson_core.gradients.optimizer_checkpoint import find_checkpoint_file
from bergson_core.gradients.preconditioner import SecondMoment
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.indexing.checked_documents import CheckedDocuments
from bergson_core.indexing.executor import Executor, LocalExecutor, build_shards
from bergson_core.indexing.output_directory import _forget, index_write_lock, require_free_directory
from bergson_core.indexing.publish import publish_index, save_preconditioner
from bergson_core.indexing.shard_builder import ShardBuilder, plan_shards, rows_per_shard
from bergson_core.models.batch_budget import find_batch_budget
from bergson_core.models.loading import LanguageModel, load_model
from bergson_core.models.modules import select_modules
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.results import Progress
from bergson_core.search.recall import RECALL_QUERY_COUNT, RecallQueries
from bergson_core.shards.row_encoder import RowEncoder, has_preconditioned_signs, open_row_encoder
from bergson_core.shards.shard import ShardPosition
from bergson_core.storage.layout import BUILD_STAMP_FILE
from bergson_core.storage.manifest import FORMAT_VERSION, Manifest, ShardEntry, read_manifest
from bergson_core.utils.atomic_files import file_sha256, write_durably
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback, StageProgress


def build_index(
    spec: BuildSpec,
    output: str | Path,
    *,
    report: ProgressCallback = lambda progress: None,
    confirm: ConfirmCallback = lambda: None,
    shard_rows: int | None = None,
    executor: Executor = LocalExecutor(),
) -> Manifest:
    """Builds the index that `spec` describes in the directory `output`, and returns its manifest.

    `report` is called after every batch and `confirm` before each publish; either may raise to stop the build,
    which keeps its finished shards. Called again with the same spec, a build resumes, and a finished one returns
    at once; rows are byte-identical either way. `shard_rows` bounds the rows of a shard; by default a shard is
    about 64 MiB, or a thousandth of the index. `executor` says where shards are made; docs/scaling.md is about `ray`.
    Raises `IndexExists` where `output` holds something else, `IndexBusy` while another process builds there,
    `InvalidInput` for a bad model, dataset or document, before any gradient is computed, `DiskFull`, and
    `ClusterUnavailable` where there is no Ray to make shards.
    """
    output = Path(output)
    require_free_directory(output, spec)
    executor.prepare()
    fresh = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    try:
        with index_write_lock(output), out_of_memory_errors():
            return IndexBuild(spec, output, report, confirm, shard_rows, executor).run()
    except InvalidInput:
        if not (output / "statistics").exists():  # nothing was begun: leave nothing behind
            _forget(output, fresh)
        raise


@contextmanager
def out_of_memory_errors() -> Iterator[None]:
    """Raises `InvalidInput` where a batch does not fit into the device's memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InvalidInput(
            f"a batch does not fit into the device's memory: expected shorter documents (max_tokens), dtype "
            f"bfloat16, or a larger device; {error}"
        ) from error


class IndexBuild:
    """One run of a build. The steps are in `run` and `_rows`, in order."""

    def __init__(
        self,
        spec: BuildSpec,
        output: Path,
        report: ProgressCallback,
        confirm: ConfirmCallback,
        shard_rows: int | None,
        executor: Executor = LocalExecutor(),
    ) -> None:
        self.spec, self.output = spec, output
        self._report, self._confirm = report, confirm
        self._shard_rows = shard_rows
        self._executor = executor

    def run(self) -> Manifest:
        try:
            manifest = read_manifest(self.output)
        except IndexNotFound:
            rows = self._rows()  # whose documents are closed by now, and their mapped pages given back
            manifest = publish_index(self.spec, self.output, *rows, self._report, self._confirm)
        for name in (STREAMED, BUILD_STAMP_FILE):
            (self.output / name).unlink(missing_ok=True)
        self._report(Progress(stage="done", done=manifest.rows, total=manifest.rows))
        return manifest

    def _rows(self) -> tuple[LanguageModel, RowEncoder, list[ShardEntry], RecallQueries]:
        """What is published: the shards of all documents, and some documents as queries to measure the search with."""
        self._report(Progress(stage="load"))
        model = load_model(self.spec.model, self.spec.revision, self.spec.dtype)
        select_modules(model.model, self.spec.gradients.modules)
        stamp = {"spec": self.spec.rows_fingerprint()}
        write_durably(self.output / BUILD_STAMP_FILE, json.dumps(stamp).encode())
        corpus = self._survey(model)
        self._source = rows_fingerprint(self.spec, model, corpus)
        self._budget_tokens = self._statistics(model, corpus)
        rows = open_row_encoder(self.spec, self.output, model, self._collector)
        shards = self._shards(model, corpus, rows)
        return model, rows, shards, self._sample(model, corpus, rows.collector)

    def _survey(self, model: LanguageModel) -> CheckedDocuments:
        return CheckedDocuments.survey(self.spec, self._documents(), model, self._report)

    def _documents(self) -> Documents:
        return load_documents_streaming(self.spec, self.output, self._report)

    def _collector(self, model: LanguageModel, processor: GradientProcessor) -> RowCollector:
        return RowCollector(model, processor, self.spec.gradients.modules)

    def _statistics(self, model: LanguageModel, corpus: CheckedDocuments) -> int:
        """Saves what is fitted from the sample, unless an earlier run of this build has; returns the tokens of a batch.

        These are that run's where they still fit, since another size of batches rounds rows differently.
        """
        settings, directory = self.spec.gradients, self.output / "statistics"
        layers = select_modules(model.model, settings.modules)
        budget, done = find_batch_budget(model, layers, corpus.longest_tokens), directory / "done"
        if done.is_file() and (before := json.loads(done.read_text()))["build"] == self._source:
            return min(budget, before["budget_tokens"])
        numbers = sample_row_numbers(len(corpus.documents), settings.sample_size, settings.seed)
        tokens = corpus.tokenize(model, numbers)
        clock = StageProgress("statistics", len(numbers))
        sample = self._reported(batches(tokens, budget, model.device), clock)
        processor = fit_processor_from_batches(
            model, layers, sample, settings, lambda: self._report(clock.advance(0, 0))
        )
        processor.save(directory)
        if has_preconditioned_signs(self.spec):
            rows = RowEncoder(self._collector(model, processor), settings.rows)
            moment = SecondMoment(rows.shape.modules, rows.shape.width, model.device)
            for batch in batches(tokens, budget, model.device):
                moment.add(rows.encode(batch)[0])
            save_preconditioner(self.output, moment.total, moment.rows, self.spec.scoring.damping)
        stamp = {"build": self._source, "budget_tokens": budget}
        write_durably(done, json.dumps(stamp).encode())
        return budget

    def _shards(self, model: LanguageModel, corpus: CheckedDocuments, rows: RowEncoder) -> list[ShardEntry]:
        moments = self.spec.scoring.preconditioner and rows.preconditioner is None
        maker = ShardBuilder(self.output, self.spec, model, rows, self._budget_tokens, moments)
        total = len(corpus.documents)
        size = self._shard_rows or rows_per_shard(rows.shape, total)
        work = plan_shards(total, size, ShardPosition(0, self._source))
        return build_shards(maker, corpus.documents, work, self._report, self._confirm, self._executor)

    def _sample(
        self, model: LanguageModel, corpus: CheckedDocuments, collector: RowCollector
    ) -> RecallQueries:
        """Some documents as queries, to measure the search with."""
        numbers = sample_row_numbers(len(corpus.documents), RECALL_QUERY_COUNT, self.spec.gradients.seed)
        tokens, telling = corpus.tokenize(model, numbers), Progress(stage="measure", unit="rows")
        return RecallQueries.collect(
            collector, numbers, tokens, self._budget_tokens, lambda: self._report(telling)
        )

    def _reported(self, source: Iterator[Batch], clock: StageProgress) -> Iterator[Batch]:
        for batch in source:
            yield batch
            self._report(clock.advance(len(batch), batch.tokens))


def rows_fingerprint(spec: BuildSpec, model: LanguageModel, corpus: CheckedDocuments) -> str:
    """Everything that decides the rows: two builds with the same one may share shards."""
    state = spec.gradients.optimizer_state
    moments = file_sha256(find_checkpoint_file(state)) if state is not None else ""
    parts = (str(FORMAT_VERSION), spec.rows_fingerprint(), model.sha256, corpus.content_sha256, moments)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
