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
from bergson_core.gradients.device_to_host import overlap_copies
from bergson_core.gradients.preconditioner import SecondMoment
from bergson_core.models.loading import LanguageModel
from bergson_core.models.tokenization import tokenize_documents
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.record import Record
from bergson_core.shards.row_encoder import RowEncoder
from bergson_core.shards.shard import ShardPosition, ShardWriter, WrittenShard
from bergson_core.utils.progress import ProgressCallback, StageProgress, iterate_while_running

logger = logging.getLogger(__name__)

_TOKENIZED_AT_ONCE: Final = 256


@dataclass(frozen=True)
class CheckedDocuments:
    """Documents that were read and checked before any gradient is computed; the longest has `longest` tokens."""

    spec: BuildSpec
    documents: Documents
    longest: int
    content_sha256: str

    @classmethod
    def survey(
        cls, spec: BuildSpec, documents: Documents, model: LanguageModel, report: ProgressCallback
    ) -> "CheckedDocuments":
        """Looks at every one of `documents`. Raises `InvalidInput` for one that cannot be taken, naming it."""
        documents.check_ids()
        digest, clock, longest = hashlib.sha256(), StageProgress("read", len(documents)), 0
        for chunk in documents.chunks():
            lengths = [len(one.ids) for one in tokenize_documents(chunk, spec, model)]
            longest = max(longest, *lengths)
            for record in chunk:
                # Without its number, which is another one when an append that is done already is tried again.
                digest.update(repr(record if spec.columns.id else replace(record, id="")).encode())
            report(clock.advance(len(chunk), sum(lengths)))
        return cls(spec, documents, longest, digest.hexdigest())

    def read(self, model: LanguageModel, numbers: Sequence[int]) -> list[Tokens]:
        """Tokens of the documents of these numbers."""
        return tokenize_documents(self.documents.read(numbers), self.spec, model)


@dataclass(frozen=True)
class ShardTask:
    """A shard that is to be made: of these documents, at this place."""

    name: str
    numbers: range
    place: ShardPosition


def plan_shards(total: int, rows_a_shard: int, place: ShardPosition, first_name: int = 0) -> list[ShardTask]:
    """The shards of `total` documents in order; the first of them is at `place`."""
    return [
        ShardTask(
            f"{first_name + number:05d}",
            range(start, min(start + rows_a_shard, total)),
            replace(place, first_row=place.first_row + start),
        )
        for number, start in enumerate(range(0, total, rows_a_shard))
    ]


@dataclass(frozen=True)
class ShardStep:
    """What has been done of a shard since the step before; the last one says where it was written.

    `skipped` are the ids of its documents whose gradients are not finite.
    """

    documents: int = 0
    tokens: int = 0
    written: WrittenShard | None = None
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShardBuilder:
    """Makes shards beside their places below `output`. With `moments`, the second moment of its rows lies in each."""

    output: Path
    spec: BuildSpec
    model: LanguageModel
    rows: RowEncoder
    budget_tokens: int
    moments: bool

    def make(self, task: ShardTask, records: Sequence[Record]) -> Iterator[ShardStep]:
        """Runs these documents through the model and writes their shard: a step for each batch, and the last one.

        Empty steps come in between where something takes long, so that whoever takes them may do something else too.
        """
        tokens: list[Tokens] = []
        for start in range(0, len(records), _TOKENIZED_AT_ONCE):
            tokens += tokenize_documents(records[start : start + _TOKENIZED_AT_ONCE], self.spec, self.model)
            yield ShardStep()
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
        for batch, blocks, scales, losses in overlap_copies(map(encoded, work)):
            writer.put(batch.numbers, blocks, scales, losses)
            yield ShardStep(len(batch), batch.tokens)
        skipped = tuple(record.id for record, skip in zip(records, writer.skipped, strict=True) if skip)
        labelled = [one.labelled for one in tokens]
        written = yield from iterate_while_running(
            lambda: writer.write(records, labelled, moment, task.place), ShardStep()
        )
        yield ShardStep(written=written, skipped=skipped)
