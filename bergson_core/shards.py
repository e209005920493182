"""Documents → shards: what a build, an append and each of several machines do alike.

A shard is a function of its documents and of what is fixed before the first: `Corpus`, the processor, the budget of a
batch. So shards may be made in any order, anywhere, again; each is written whole or not at all.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bergson_core.batching import Batch, Tokens, batches, check_length
from bergson_core.documents import Documents, Record, tokenize_records
from bergson_core.manifest import ShardEntry
from bergson_core.models import LanguageModel, context_limit
from bergson_core.preconditioners import SecondMoment
from bergson_core.progress import Clock
from bergson_core.publishing import Confirm, Report
from bergson_core.rows import RowMaker
from bergson_core.specs import BuildSpec
from bergson_core.store import Place, ShardWriter, finished_shard
from bergson_core.transfer import one_late

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Documents that were read and checked before any gradient is computed.

    `limit` is the longest document allowed, `longest` the longest there is, in tokens.
    """

    spec: BuildSpec
    documents: Documents
    limit: int | None
    longest: int
    content_sha256: str

    @classmethod
    def survey(cls, spec: BuildSpec, documents: Documents, model: LanguageModel, report: Report) -> "Corpus":
        """Looks at every one of `documents`. Raises `InvalidInput` for one that cannot be taken, naming it."""
        documents.check_ids()
        corpus = cls(spec, documents, context_limit(model, spec.gradients.max_tokens), 0, "")
        digest, clock, longest = hashlib.sha256(), Clock("read", len(documents)), 0
        for chunk in documents.chunks():
            lengths = [len(one.ids) for one in corpus.tokens(model, chunk)]
            longest = max(longest, *lengths)
            for record in chunk:
                # Without its number, which is another one when an append that is done already is tried again.
                digest.update(repr(record if spec.columns.id else replace(record, id="")).encode())
            report(clock.tick(len(chunk), sum(lengths)))
        return replace(corpus, longest=longest, content_sha256=digest.hexdigest())

    def tokens(self, model: LanguageModel, records: Sequence[Record]) -> list[Tokens]:
        """Tokens of each record. Raises `TooLong` naming the document that does not fit."""
        assert model.tokenizer is not None  # load_model always gives one
        tokens = tokenize_records(model.tokenizer, records, self.spec.gradients.loss)
        for record, one in zip(records, tokens, strict=True):
            check_length(one, self.limit, f"document {record.id!r}")
        return tokens

    def read(self, model: LanguageModel, numbers: Sequence[int]) -> list[Tokens]:
        """Tokens of the documents of these numbers."""
        return self.tokens(model, self.documents.read(numbers))


@dataclass(frozen=True)
class Task:
    """A shard that is to be made: of these documents, at this place."""

    name: str
    numbers: range
    place: Place


def tasks(total: int, rows_a_shard: int, place: Place, first_name: int = 0) -> list[Task]:
    """The shards of `total` documents in order; the first of them is at `place`."""
    return [
        Task(
            f"{first_name + number:05d}",
            range(start, min(start + rows_a_shard, total)),
            replace(place, first_row=place.first_row + start),
        )
        for number, start in enumerate(range(0, total, rows_a_shard))
    ]


@dataclass(frozen=True)
class ShardMaker:
    """Makes shards of a corpus below `output`. With `moments`, the second moment of its rows lies beside each."""

    output: Path
    corpus: Corpus
    model: LanguageModel
    rows: RowMaker
    budget_tokens: int
    moments: bool

    def make_all(self, work: Sequence[Task], report: Report, confirm: Confirm) -> list[ShardEntry]:
        """The shards of `work`, but for those that an earlier run has finished."""
        clock, entries = Clock("gradients", sum(len(task.numbers) for task in work)), []
        for task in work:
            entry = finished_shard(self.output, task.name, task.place, len(task.numbers))
            entries.append(entry or self.make(task, report, confirm, clock))
            clock.skip_to(task.numbers.stop)
        return entries

    def make(self, task: Task, report: Report, confirm: Confirm, clock: Clock) -> ShardEntry:
        """Runs these documents through the model and writes their shard."""
        records = self.corpus.documents.read(task.numbers)
        tokens = self.corpus.tokens(self.model, records)
        shape, moment = self.rows.shape, None
        if self.moments:
            moment = SecondMoment(shape.layers, shape.width, self.model.device)
        writer = ShardWriter(self.output, task.name, len(task.numbers), shape)

        def encoded(batch: Batch) -> tuple[Any, ...]:
            blocks, losses = self.rows.blocks(batch)
            if moment is not None:
                moment.add(blocks)
            return batch, *shape.codec.encode(blocks), losses

        work = batches(tokens, self.budget_tokens, self.model.device)
        for batch, blocks, scales, losses in one_late(map(encoded, work)):
            writer.put(batch.numbers, blocks, scales, losses)
            report(clock.tick(len(batch), batch.tokens))
        confirm()
        if skipped := [record.id for record, skip in zip(records, writer.skipped, strict=True) if skip]:
            logger.warning("gradients that are not finite; these documents can never be found: %s", skipped)
        return writer.finish(records, [one.labelled for one in tokens], moment, task.place)
