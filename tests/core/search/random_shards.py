"""Shards of random rows."""

from pathlib import Path

import numpy as np
import torch

from bergson_core.schemas.record import Record
from bergson_core.shards.shard import RowShape, Shard
from bergson_core.shards.shard_writer import ShardPosition, write_shard
from bergson_core.storage.document_table import make_document_table

ROWS = (50, 7, 120)


def write_shards(root: Path, shape: RowShape) -> list[Shard]:
    """Writes three shards of random rows of a shape, and opens them."""
    opened, first_row = [], 0
    for number, count in enumerate(ROWS):
        rows = torch.randn(count, shape.modules, shape.width, generator=torch.Generator().manual_seed(number))
        blocks, scales = (part.numpy() for part in shape.codec.encode(rows))
        records = [Record(str(first_row + offset), "", None, {}) for offset in range(count)]
        documents = make_document_table(records, np.zeros(count), [1] * count)
        position = ShardPosition(first_row, "")
        written = write_shard(root, f"{number:05d}", blocks, scales, documents, position)
        opened.append(Shard.open(root, written.accept(), shape))
        first_row += count
    return opened
