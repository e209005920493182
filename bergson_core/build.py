"""Builds an index: statistics, shards, preconditioner, search, and the manifest last.

    <output>/.lock          held while building; given back by the kernel when the process dies
    <output>/building.json  whose build this is; a build of the same fingerprint goes on from its finished shards

What is not in the manifest does not exist, so a build may be killed at any moment.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from bergson_core.answers import Progress
from bergson_core.batching import Batch, Tokens, batches, check_length
from bergson_core.budget import find_budget
from bergson_core.collect import RowCollector
from bergson_core.documents import Documents, Record, load_documents, tokenize_records
from bergson_core.errors import IndexBusy, IndexExists, IndexNotFound, InvalidInput
from bergson_core.fitting import fit, sample_numbers
from bergson_core.layers import select
from bergson_core.manifest import (
    FORMAT_VERSION,
    Manifest,
    ShardEntry,
    read_manifest,
)
from bergson_core.models import LanguageModel, context_limit, load_model
from bergson_core.optimizer_state import checkpoint_file
from bergson_core.preconditioners import Preconditioner, SecondMoment
from bergson_core.processor import GradientProcessor
from bergson_core.profiles import preconditioner_path
from bergson_core.progress import Clock
from bergson_core.publishing import Report, publish, rows_a_shard, save_preconditioner
from bergson_core.recall import SAMPLE, Sample
from bergson_core.rows import RowMaker
from bergson_core.specs import BuildSpec
from bergson_core.store import (
    ShardWriter,
    drop_build_files,
    file_sha256,
    finished_shard,
    write_durably,
)
from bergson_core.transfer import one_late

logger = logging.getLogger(__name__)


def build_index(
    spec: BuildSpec,
    output: str | Path,
    *,
    report: Report = lambda progress: None,
    confirm: Callable[[], None] = lambda: None,
    shard_rows: int | None = None,
) -> Manifest:
    """Builds the index that `spec` describes in the directory `output`, and returns its manifest.

    `report` is called after every batch and `confirm` before each publish; either may raise to stop the build,
    which keeps its finished shards. Called again with the same spec, a build resumes, and a finished one returns
    at once; rows are byte-identical either way. `shard_rows` bounds the rows of a shard; by default a shard is
    about 64 MiB.
    Raises `IndexExists` where `output` holds something else, `IndexBusy` while another process builds there, and
    `InvalidInput` for a bad model, dataset or document, before any gradient is computed.
    """
    output = Path(output)
    check_free(output, spec)
    fresh = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / ".lock", timeout=0):
            try:
                return _Build(spec, output, report, confirm, shard_rows).run()
            except InvalidInput:
                if fresh:  # nothing was begun: leave nothing behind
                    _remove_empty(output)
                raise
            except torch.OutOfMemoryError as error:
                raise InvalidInput(
                    f"a batch does not fit into the device's memory: expected shorter documents (max_tokens), dtype "
                    f"bfloat16, or a larger device; {error}"
                ) from error
    except Timeout:
        raise IndexBusy(f"{output} is being built by another process; wait for it or stop it") from None


def check_free(output: Path, spec: BuildSpec) -> None:
    """Raises `IndexExists` unless `output` is absent, empty, or this very build."""
    if output.exists() and not output.is_dir():
        raise IndexExists(f"{output} is a file; expected a new directory")
    try:
        own, other = spec.fingerprint(), read_manifest(output).fingerprint
    except IndexNotFound:
        stamp = output / "building.json"
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


def _remove_empty(output: Path) -> None:
    if {path.name for path in output.iterdir()} <= {"building.json", ".lock"}:
        shutil.rmtree(output)


@dataclass(frozen=True)
class _Plan:
    """What one look at every document gave.

    `limit` is the longest document allowed, `longest` the longest there is, in tokens.
    """

    documents: Documents
    limit: int | None
    longest: int
    content_sha256: str


class _Build:
    """One run of a build. The steps are in `run`, in order."""

    def __init__(
        self,
        spec: BuildSpec,
        output: Path,
        report: Report,
        confirm: Callable[[], None],
        shard_rows: int | None,
    ) -> None:
        self.spec, self.output = spec, output
        self._report, self._confirm = report, confirm
        self._shard_rows = shard_rows

    def run(self) -> Manifest:
        try:
            return read_manifest(self.output)
        except IndexNotFound:
            pass
        self._report(Progress(stage="load"))
        model = load_model(self.spec.model, self.spec.revision, self.spec.dtype)
        select(model.model, self.spec.gradients.modules)
        plan = self._plan(model)
        self.fingerprint = _fingerprint(self.spec, model, plan.content_sha256)
        stamp = {"spec": self.spec.rows_fingerprint(), "build": self.fingerprint}
        write_durably(self.output / "building.json", json.dumps(stamp).encode())
        self._budget_tokens = self._statistics(model, plan)
        rows = self._open_rows(model)
        shards = self._shards(model, plan, rows)
        sample = self._sample(model, plan, rows.collector)
        manifest = publish(self.spec, self.output, model, rows, shards, sample, self._report, self._confirm)
        (self.output / "building.json").unlink(missing_ok=True)
        drop_build_files(self.output, shards)
        self._report(Progress(stage="done", done=manifest.rows, total=manifest.rows))
        return manifest

    def _plan(self, model: LanguageModel) -> _Plan:
        """Reads and checks every document before any gradient is computed."""
        documents = load_documents(self.spec)
        documents.check_ids()
        limit = context_limit(model, self.spec.gradients.max_tokens)
        digest, clock, longest = hashlib.sha256(), Clock("read", len(documents)), 0
        for chunk in documents.chunks():
            lengths = [len(one.ids) for one in self._tokens(model, chunk, limit)]
            longest = max(longest, *lengths)
            for record in chunk:
                digest.update(repr(record).encode())
            self._report(clock.tick(len(chunk), sum(lengths)))
        return _Plan(documents, limit, longest, digest.hexdigest())

    def _tokens(self, model: LanguageModel, records: Sequence[Record], limit: int | None) -> list[Tokens]:
        """Tokens of each record. Raises `TooLong` naming the document that does not fit."""
        assert model.tokenizer is not None  # load_model always gives one
        tokens = tokenize_records(model.tokenizer, records, self.spec.gradients.loss)
        for record, one in zip(records, tokens, strict=True):
            check_length(one, limit, f"document {record.id!r}")
        return tokens

    @property
    def _signs_preconditioned(self) -> bool:
        """C^-½ goes before the signs are taken, so that it has to be known by then."""
        return self.spec.gradients.rows == "sign" and self.spec.scoring.preconditioner

    def _statistics(self, model: LanguageModel, plan: _Plan) -> int:
        """Saves what is fitted from the sample, unless an earlier run of this build has; returns the tokens of a batch.

        These are that run's where they still fit, since another size of batches rounds rows differently.
        """
        settings, directory = self.spec.gradients, self.output / "statistics"
        layers = select(model.model, settings.modules)
        budget, done = find_budget(model, layers, plan.longest), directory / "done"
        if done.is_file() and (before := json.loads(done.read_text()))["build"] == self.fingerprint:
            return min(budget, before["budget_tokens"])
        numbers = sample_numbers(len(plan.documents), settings.sample_size, settings.seed)
        tokens = self._tokens(model, plan.documents.read(numbers), plan.limit)
        clock = Clock("statistics", len(numbers))
        sample = self._reported(batches(tokens, budget, model.device), clock)
        processor = fit(model, layers, sample, settings)
        processor.save(directory)
        if self._signs_preconditioned:
            rows = RowMaker(RowCollector(model, processor, settings.modules), settings.rows)
            moment = SecondMoment(rows.shape.layers, rows.shape.width, model.device)
            for batch in batches(tokens, budget, model.device):
                moment.add(rows.blocks(batch)[0])
            save_preconditioner(self.output, moment.total, moment.rows, self.spec.scoring.damping)
        stamp = {"build": self.fingerprint, "budget_tokens": budget}
        write_durably(done, json.dumps(stamp).encode())
        return budget

    def _open_rows(self, model: LanguageModel) -> RowMaker:
        settings = self.spec.gradients
        collector = RowCollector(model, GradientProcessor.load(self.output / "statistics"), settings.modules)
        before = (
            Preconditioner.load(preconditioner_path(self.output), model.device)
            if self._signs_preconditioned
            else None
        )
        return RowMaker(collector, settings.rows, before)

    def _shards(self, model: LanguageModel, plan: _Plan, rows: RowMaker) -> list[ShardEntry]:
        total = len(plan.documents)
        size = self._shard_rows or rows_a_shard(rows.shape)
        clock = Clock("gradients", total)
        entries = []
        for number, start in enumerate(range(0, total, size)):
            name, numbers = f"{number:05d}", range(start, min(start + size, total))
            entry = finished_shard(self.output, name, self.fingerprint)
            if entry is None or (entry.first_row, entry.rows) != (start, len(numbers)):
                entry = self._collect_shard(name, model, plan, rows, numbers, clock)
            clock.skip_to(numbers.stop)
            entries.append(entry)
        return entries

    def _sample(self, model: LanguageModel, plan: _Plan, collector: RowCollector) -> Sample:
        """Some documents as queries, to measure the search with."""
        numbers = sample_numbers(len(plan.documents), SAMPLE, self.spec.gradients.seed)
        tokens = self._tokens(model, plan.documents.read(numbers), plan.limit)
        return Sample.collect(collector, numbers, tokens, self._budget_tokens)

    def _collect_shard(
        self,
        name: str,
        model: LanguageModel,
        plan: _Plan,
        rows: RowMaker,
        numbers: range,
        clock: Clock,
    ) -> ShardEntry:
        """Runs these documents through the model and writes their shard."""
        records = plan.documents.read(numbers)
        tokens = self._tokens(model, records, plan.limit)
        shape, moment = rows.shape, None
        if self.spec.scoring.preconditioner and not self._signs_preconditioned:
            moment = SecondMoment(shape.layers, shape.width, model.device)
        writer = ShardWriter(self.output, name, len(numbers), shape)

        def encoded(batch: Batch) -> tuple[Any, ...]:
            blocks, losses = rows.blocks(batch)
            if moment is not None:
                moment.add(blocks)
            return batch, *shape.codec.encode(blocks), losses

        work = batches(tokens, self._budget_tokens, model.device)
        for batch, blocks, scales, losses in one_late(map(encoded, work)):
            writer.put(batch.numbers, blocks, scales, losses)
            self._report(clock.tick(len(batch), batch.tokens))
        self._confirm()
        if skipped := [record.id for record, skip in zip(records, writer.skipped, strict=True) if skip]:
            logger.warning("gradients that are not finite; these documents can never be found: %s", skipped)
        return writer.finish(
            records, [one.labelled for one in tokens], moment, numbers.start, self.fingerprint
        )

    def _reported(self, source: Iterator[Batch], clock: Clock) -> Iterator[Batch]:
        for batch in source:
            yield batch
            self._report(clock.tick(len(batch), batch.tokens))


def _fingerprint(spec: BuildSpec, model: LanguageModel, content_sha256: str) -> str:
    """Everything that decides the rows: two builds with the same one may share shards."""
    state = spec.gradients.optimizer_state
    moments = file_sha256(checkpoint_file(state)) if state is not None else ""
    parts = (str(FORMAT_VERSION), spec.rows_fingerprint(), model.sha256, content_sha256, moments)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
