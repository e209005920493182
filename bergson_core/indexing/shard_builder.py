"""Documents → shards: what a build, an append and each of several machines do alike.

A shard is a function of its documents and of what is fixed before the first: the spec, the model, the processor, the
budget of a batch. So shards may be made in any order, anywhere, again; each is written whole or not at all, and an
index has it once the one that holds the index's lock accepts it.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bergson_core.data.batching import Batch, Tokens, batches
from bergson_core.gradients.device_to_host import overlap_copies
from bergson_core.gradients.preconditioner import SecondMoment
from bergson_core.models.loading import LanguageModel
from bergson_core.models.tokenization import tokenize_documents
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.record import Record
from bergson_core.shards.row_encoder import RowEncoder
from bergson_core.shards.shard import RowShape, ShardPosition, ShardWriter, WrittenShard
from bergson_core.utils.progress import (
    iterate_while_running,
)

logger = logging.getLogger(__name__)

_TOKENIZED_AT_ONCE: Final = 256


@dataclass(frozen=True)
class ShardTask:
    """A shard that is to be made: of these documents, at this place."""

    name: str
    numbers: range
    position: ShardPosition


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
    skipped_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShardBuilder:
    """Makes shards beside their places below `output`. With `moments`, the second moment of its rows lies in each."""

    output: Path
    spec: BuildSpec
    model: LanguageModel
    encoder: RowEncoder
    budget_tokens: int
    save_moments: bool

    def build(self, task: ShardTask, records: Sequence[Record]) -> Iterator[ShardStep]:
        """Runs these documents through the model and writes their shard: a step for each batch, and the last one.

        Empty steps come in between where something takes long, so that whoever takes them may do something else too.
        """
        tokens: list[Tokens] = []
        for start in range(0, len(records), _TOKENIZED_AT_ONCE):
            tokens += tokenize_documents(records[start : start + _TOKENIZED_AT_ONCE], self.spec, self.model)
            yield ShardStep()
        shape, moment = self.encoder.shape, None
        if self.save_moments:
            moment = SecondMoment(shape.modules, shape.width, self.model.device)
        writer = ShardWriter(self.output, task.name, len(records), shape)

        def encoded(batch: Batch) -> tuple[Any, ...]:
            blocks, losses = self.encoder.encode(batch)
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
            lambda: writer.write(records, labelled, moment, task.position), ShardStep()
        )
        yield ShardStep(written=written, skipped_ids=skipped)


TARGET_SHARD_BYTES: Final = 64 * 2**20


MAX_SHARD_ROWS: Final = 4096


MAX_SHARDS: Final = 1000
"""Of an index: each takes about a tenth of a millisecond to open. So those of a large one are larger."""


MAX_SHARD_BYTES: Final = 2 * 2**30
"""Whatever the index: a shard is in memory while it is made."""


def rows_per_shard(shape: RowShape, total: int) -> int:
    """Rows of a shard of about `SHARD_BYTES`, or more where an index of `total` rows had too many of these."""
    usual = min(MAX_SHARD_ROWS, TARGET_SHARD_BYTES // shape.row_bytes)
    large = min(-(-total // MAX_SHARDS), MAX_SHARD_BYTES // shape.row_bytes)
    return max(1, usual, large)
