"""Documents → shards: what a build, an append and each of several machines do alike.

A shard is a function of its documents and of what is fixed before the first: the spec, the model, the processor, the
budget of a batch. So shards may be made in any order, anywhere, again; each is written whole or not at all, and an
index has it once the one that holds the index's lock accepts it.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bergson_core.data.batching import Batch, Tokens, batches
from bergson_core.data.dataset import Documents
from bergson_core.gradients.device_to_host import one_late
from bergson_core.gradients.preconditioner import SecondMoment
from bergson_core.indexing.publish import Report
from bergson_core.models.loading import LanguageModel
from bergson_core.models.tokenization import tokens_of
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.record import Record
from bergson_core.shards.row_encoder import RowMaker
from bergson_core.shards.shard import Place, ShardWriter, Written
from bergson_core.utils.progress import Clock, meanwhile

logger = logging.getLogger(__name__)

_TOKENIZED_AT_ONCE: Final = 256


@dataclass(frozen=True)
class Corpus:
    """Documents that were read and checked before any gradient is computed; the longest has `longest` tokens."""

    spec: BuildSpec
    documents: Documents
    longest: int
    content_sha256: str

    @classmethod
    def survey(cls, spec: BuildSpec, documents: Documents, model: LanguageModel, report: Report) -> "Corpus":
        """Looks at every one of `documents`. Raises `InvalidInput` for one that cannot be taken, naming it."""
        documents.check_ids()
        digest, clock, longest = hashlib.sha256(), Clock("read", len(documents)), 0
        for chunk in documents.chunks():
            lengths = [len(one.ids) for one in tokens_of(chunk, spec, model)]
            longest = max(longest, *lengths)
            for record in chunk:
                # Without its number, which is another one when an append that is done already is tried again.
                digest.update(repr(record if spec.columns.id else replace(record, id="")).encode())
            report(clock.tick(len(chunk), sum(lengths)))
        return cls(spec, documents, longest, digest.hexdigest())

    def read(self, model: LanguageModel, numbers: Sequence[int]) -> list[Tokens]:
        """Tokens of the documents of these numbers."""
        return tokens_of(self.documents.read(numbers), self.spec, model)


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
class Step:
    """What has been done of a shard since the step before; the last one says where it was written.

    `skipped` are the ids of its documents whose gradients are not finite.
    """

    documents: int = 0
    tokens: int = 0
    written: Written | None = None
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShardMaker:
    """Makes shards beside their places below `output`. With `moments`, the second moment of its rows lies in each."""

    output: Path
    spec: BuildSpec
    model: LanguageModel
    rows: RowMaker
    budget_tokens: int
    moments: bool

    def make(self, task: Task, records: Sequence[Record]) -> Iterator[Step]:
        """Runs these documents through the model and writes their shard: a step for each batch, and the last one.

        Empty steps come in between where something takes long, so that whoever takes them may do something else too.
        """
        tokens: list[Tokens] = []
        for start in range(0, len(records), _TOKENIZED_AT_ONCE):
            tokens += tokens_of(records[start : start + _TOKENIZED_AT_ONCE], self.spec, self.model)
            yield Step()
        shape, moment = self.rows.shape, None
        if self.moments:
            moment = SecondMoment(shape.layers, shape.width, self.model.device)
        writer = ShardWriter(self.output, task.name, len(records), shape)

        def encoded(batch: Batch) -> tuple[Any, ...]:
            blocks, losses = self.rows.blocks(batch)
            if moment is not None:
                moment.add(blocks)
            return batch, *shape.codec.encode(blocks), losses

        work = batches(tokens, self.budget_tokens, self.model.device)
        for batch, blocks, scales, losses in one_late(map(encoded, work)):
            writer.put(batch.numbers, blocks, scales, losses)
            yield Step(len(batch), batch.tokens)
        skipped = tuple(record.id for record, skip in zip(records, writer.skipped, strict=True) if skip)
        labelled = [one.labelled for one in tokens]
        written = yield from meanwhile(lambda: writer.write(records, labelled, moment, task.place), Step())
        yield Step(written=written, skipped=skipped)
