"""Builds an index: statistics, shards, preconditioner, search, and the manifest last.

    <output>/.lock            held while building; given back by the kernel when the process dies
    <output>/building.json    whose build this is; a build of the same fingerprint goes on from its finished shards
    <output>/documents.arrow  what has been read of a stream (`streaming`)

What is not in the manifest does not exist, so a build may be killed at any moment.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch

from bergson_core.data.batching import Batch, batches
from bergson_core.data.dataset import Documents
from bergson_core.data.streaming import FILE_NAME as STREAMED
from bergson_core.data.streaming import load_streamed
from bergson_core.errors import IndexExists, IndexNotFound, InvalidInput
from bergson_core.gradients.normalizer_fitting import fit, sample_numbers
from bergson_core.gradients.optimizer_checkpoint import checkpoint_file
from bergson_core.gradients.preconditioner import SecondMoment
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.indexing.executor import Executor, LocalExecutor, build_shards
from bergson_core.indexing.publish import Confirm, Report, publish, rows_a_shard, save_preconditioner, writing
from bergson_core.indexing.shard_builder import Corpus, ShardMaker, tasks
from bergson_core.models.batch_budget import find_budget
from bergson_core.models.loading import LanguageModel, load_model
from bergson_core.models.modules import select
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.results import Progress
from bergson_core.search.recall import SAMPLE, Sample
from bergson_core.shards.row_encoder import RowMaker, open_rows, signs_preconditioned
from bergson_core.shards.shard import Place
from bergson_core.storage.manifest import FORMAT_VERSION, Manifest, ShardEntry, read_manifest
from bergson_core.utils.atomic_files import file_sha256, write_durably
from bergson_core.utils.progress import Clock

STAMP: Final = "building.json"


def build_index(
    spec: BuildSpec,
    output: str | Path,
    *,
    report: Report = lambda progress: None,
    confirm: Confirm = lambda: None,
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
    check_free(output, spec)
    executor.prepare()
    fresh = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    try:
        with writing(output), fitting_into_memory():
            return Build(spec, output, report, confirm, shard_rows, executor).run()
    except InvalidInput:
        if not (output / "statistics").exists():  # nothing was begun: leave nothing behind
            _forget(output, fresh)
        raise


@contextmanager
def fitting_into_memory() -> Iterator[None]:
    """Raises `InvalidInput` where a batch does not fit into the device's memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InvalidInput(
            f"a batch does not fit into the device's memory: expected shorter documents (max_tokens), dtype "
            f"bfloat16, or a larger device; {error}"
        ) from error


def check_free(output: Path, spec: BuildSpec) -> None:
    """Raises `IndexExists` unless `output` is absent, empty, or this very build."""
    if output.exists() and not output.is_dir():
        raise IndexExists(f"{output} is a file; expected a new directory")
    try:
        own, other = spec.fingerprint(), read_manifest(output).fingerprint
    except IndexNotFound:
        stamp = output / STAMP
        if not stamp.is_file():
            if output.exists() and any(path.name != ".lock" for path in output.iterdir()):
                raise IndexExists(
                    f"{output} is not empty and holds no index; expected a new directory"
                ) from None
            return
        own, other = spec.rows_fingerprint(), json.loads(stamp.read_text())["spec"]
    if other != own:
        raise IndexExists(
            f"{output} holds an index of another model, dataset or settings; choose another directory"
        )


def _forget(output: Path, fresh: bool) -> None:
    """Removes what was read of documents that are wrong, so that they can be put right, and a `fresh` directory."""
    for name in (STAMP, STREAMED):
        (output / name).unlink(missing_ok=True)
    if fresh:
        shutil.rmtree(output)


class Build:
    """One run of a build. The steps are in `run` and `_rows`, in order."""

    def __init__(
        self,
        spec: BuildSpec,
        output: Path,
        report: Report,
        confirm: Confirm,
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
            manifest = publish(self.spec, self.output, *rows, self._report, self._confirm)
        for name in (STREAMED, STAMP):
            (self.output / name).unlink(missing_ok=True)
        self._report(Progress(stage="done", done=manifest.rows, total=manifest.rows))
        return manifest

    def _rows(self) -> tuple[LanguageModel, RowMaker, list[ShardEntry], Sample]:
        """What is published: the shards of all documents, and some documents as queries to measure the search with."""
        self._report(Progress(stage="load"))
        model = load_model(self.spec.model, self.spec.revision, self.spec.dtype)
        select(model.model, self.spec.gradients.modules)
        stamp = {"spec": self.spec.rows_fingerprint()}
        write_durably(self.output / STAMP, json.dumps(stamp).encode())
        corpus = self._survey(model)
        self._source = fingerprint(self.spec, model, corpus)
        self._budget_tokens = self._statistics(model, corpus)
        rows = open_rows(self.spec, self.output, model, self._collector)
        shards = self._shards(model, corpus, rows)
        return model, rows, shards, self._sample(model, corpus, rows.collector)

    def _survey(self, model: LanguageModel) -> Corpus:
        return Corpus.survey(self.spec, self._documents(), model, self._report)

    def _documents(self) -> Documents:
        return load_streamed(self.spec, self.output, self._report)

    def _collector(self, model: LanguageModel, processor: GradientProcessor) -> RowCollector:
        return RowCollector(model, processor, self.spec.gradients.modules)

    def _statistics(self, model: LanguageModel, corpus: Corpus) -> int:
        """Saves what is fitted from the sample, unless an earlier run of this build has; returns the tokens of a batch.

        These are that run's where they still fit, since another size of batches rounds rows differently.
        """
        settings, directory = self.spec.gradients, self.output / "statistics"
        layers = select(model.model, settings.modules)
        budget, done = find_budget(model, layers, corpus.longest), directory / "done"
        if done.is_file() and (before := json.loads(done.read_text()))["build"] == self._source:
            return min(budget, before["budget_tokens"])
        numbers = sample_numbers(len(corpus.documents), settings.sample_size, settings.seed)
        tokens = corpus.read(model, numbers)
        clock = Clock("statistics", len(numbers))
        sample = self._reported(batches(tokens, budget, model.device), clock)
        processor = fit(model, layers, sample, settings, lambda: self._report(clock.tick(0, 0)))
        processor.save(directory)
        if signs_preconditioned(self.spec):
            rows = RowMaker(self._collector(model, processor), settings.rows)
            moment = SecondMoment(rows.shape.layers, rows.shape.width, model.device)
            for batch in batches(tokens, budget, model.device):
                moment.add(rows.blocks(batch)[0])
            save_preconditioner(self.output, moment.total, moment.rows, self.spec.scoring.damping)
        stamp = {"build": self._source, "budget_tokens": budget}
        write_durably(done, json.dumps(stamp).encode())
        return budget

    def _shards(self, model: LanguageModel, corpus: Corpus, rows: RowMaker) -> list[ShardEntry]:
        moments = self.spec.scoring.preconditioner and rows.before is None
        maker = ShardMaker(self.output, self.spec, model, rows, self._budget_tokens, moments)
        total = len(corpus.documents)
        size = self._shard_rows or rows_a_shard(rows.shape, total)
        work = tasks(total, size, Place(0, self._source))
        return build_shards(maker, corpus.documents, work, self._report, self._confirm, self._executor)

    def _sample(self, model: LanguageModel, corpus: Corpus, collector: RowCollector) -> Sample:
        """Some documents as queries, to measure the search with."""
        numbers = sample_numbers(len(corpus.documents), SAMPLE, self.spec.gradients.seed)
        tokens, telling = corpus.read(model, numbers), Progress(stage="measure", unit="rows")
        return Sample.collect(collector, numbers, tokens, self._budget_tokens, lambda: self._report(telling))

    def _reported(self, source: Iterator[Batch], clock: Clock) -> Iterator[Batch]:
        for batch in source:
            yield batch
            self._report(clock.tick(len(batch), batch.tokens))


def fingerprint(spec: BuildSpec, model: LanguageModel, corpus: Corpus) -> str:
    """Everything that decides the rows: two builds with the same one may share shards."""
    state = spec.gradients.optimizer_state
    moments = file_sha256(checkpoint_file(state)) if state is not None else ""
    parts = (str(FORMAT_VERSION), spec.rows_fingerprint(), model.sha256, corpus.content_sha256, moments)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
