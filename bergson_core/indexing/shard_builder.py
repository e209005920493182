"""Turns documents into shards: for a build, for an append, and on each machine of a cluster.

A shard depends only on its documents and on what is fixed before the first shard: the spec, the model, the processor
and the number of tokens in a batch. Shards can therefore be built in any order, on any machine, and more than once. A
shard is written completely or not at all. It becomes part of the index when the process that holds the lock of the
index accepts it.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bergson_core.gradients.preconditioner import SecondMoment
from bergson_core.models.device_to_host import overlap_copies
from bergson_core.models.index_tokens import tokenize_documents
from bergson_core.models.language_model import LanguageModel
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.record import Record
from bergson_core.shards.row_encoder import RowEncoder
from bergson_core.shards.shard import RowShape
from bergson_core.shards.shard_writer import ShardPosition, ShardWriter, WrittenShard
from bergson_core.tokens.batching import Batch, iter_batches
from bergson_core.tokens.tokenization import Tokens
from bergson_core.utils.background import iterate_in_thread, iterate_while_running

TARGET_SHARD_BYTES: Final = 64 * 2**20
MAX_SHARD_ROWS: Final = 4096
MAX_SHARDS: Final = 1000
"""Shards in an index: each takes about 0.1 ms to open, so a large index has larger shards instead of more."""
MAX_SHARD_BYTES: Final = 2 * 2**30
"""Bytes of a shard, however large the index is: a shard is held in memory while it is built."""
_TOKENIZE_CHUNK_SIZE: Final = 256


@dataclass(frozen=True)
class ShardTask:
    """A shard to build: its name, the numbers of its documents, and its position in the index."""

    name: str
    numbers: range
    position: ShardPosition


def rows_per_shard(shape: RowShape, total: int) -> int:
    """Returns how many rows each shard of an index of `total` rows has.

    A shard has about `TARGET_SHARD_BYTES` and at most `MAX_SHARD_ROWS` rows, or more if the index would otherwise have
    more than `MAX_SHARDS` shards.
    """
    usual = min(MAX_SHARD_ROWS, TARGET_SHARD_BYTES // shape.row_bytes)
    of_large_index = min(-(-total // MAX_SHARDS), MAX_SHARD_BYTES // shape.row_bytes)
    return max(1, usual, of_large_index)


def plan_shards(total: int, shard_rows: int, first: ShardPosition, first_name: int = 0) -> list[ShardTask]:
    """Divides documents into shards, in order.

    Args:
        total: The number of documents.
        shard_rows: The number of documents in each shard; the last shard has the rest.
        first: The position of the first shard.
        first_name: The number that is the name of the first shard.
    """
    return [
        ShardTask(
            name=f"{first_name + number:05d}",
            numbers=range(start, min(start + shard_rows, total)),
            position=replace(first, first_row=first.first_row + start),
        )
        for number, start in enumerate(range(0, total, shard_rows))
    ]


@dataclass(frozen=True)
class ShardStep:
    """Progress on a shard since the step before.

    Attributes:
        documents: The number of documents that ran through the model. It is negative if the work of an actor that died
            is taken back.
        tokens: The number of their tokens.
        written: The shard as it lies on disk, in its last step; None in all others.
        skipped_ids: The ids of the documents whose gradients are not finite, in the last step.
    """

    documents: int = 0
    tokens: int = 0
    written: WrittenShard | None = None
    skipped_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShardBuilder:
    """Builds shards, each in a directory beside its final place below `output`.

    With `save_moments`, the second moment of a shard's rows is written with the shard.
    """

    output: Path
    spec: BuildSpec
    model: LanguageModel
    encoder: RowEncoder
    budget_tokens: int
    save_moments: bool

    def build(self, task: ShardTask, records: Sequence[Record]) -> Iterator[ShardStep]:
        """Runs the documents `records` through the model and writes them as the shard `task`.

        Batches run in a thread of their own, beside whatever the caller does between two steps.

        Yields:
            A step for each batch, and a last step with the written shard. While something takes long, empty steps come
            in between, so that the caller can do other work.
        """
        tokens: list[Tokens] = []
        for start in range(0, len(records), _TOKENIZE_CHUNK_SIZE):
            tokens += tokenize_documents(records[start : start + _TOKENIZE_CHUNK_SIZE], self.spec, self.model)
            yield ShardStep()
        shape, moment = self.encoder.shape, None
        if self.save_moments:
            moment = SecondMoment(shape.modules, shape.width, self.model.device)
        writer = ShardWriter(self.output, task.name, len(records), shape)

        def encode(batch: Batch) -> tuple[Any, ...]:
            blocks, losses = self.encoder.encode(batch)
            if moment is not None:
                moment.add(blocks)
            return batch, *shape.codec.encode(blocks), losses

        encoded = overlap_copies(map(encode, iter_batches(tokens, self.budget_tokens, self.model.device)))
        with closing(iterate_in_thread(encoded, None)) as items:
            for item in items:
                if item is None:
                    yield ShardStep()
                    continue
                batch, blocks, scales, losses = item
                writer.put(batch.indices, blocks, scales, losses)
                yield ShardStep(len(batch), batch.n_tokens)
        skipped_ids = tuple(
            record.id for record, skipped in zip(records, writer.skipped, strict=True) if skipped
        )
        labelled = [document.n_labelled for document in tokens]
        written = yield from iterate_while_running(
            lambda: writer.write(records, labelled, moment, task.position), ShardStep()
        )
        yield ShardStep(written=written, skipped_ids=skipped_ids)
