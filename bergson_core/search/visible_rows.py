"""Which rows of an index may be shown: all but those whose documents were taken down."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bergson_core.shards.shard import Shard
from bergson_core.storage.document_lookup import HiddenRows
from bergson_core.storage.manifest import Manifest


class VisibleRows:
    """Follows the takedowns of an index, also those that other processes record. For use by one thread.

    Legend: n rows of a shard.
    """

    def __init__(self, root: Path, manifest: Manifest, shards: Sequence[Shard]) -> None:
        self._hidden, self._shards = HiddenRows(root, manifest.takedowns, manifest.compacted), shards
        self._masks: list[np.ndarray | None] = [None] * len(shards)

    def masks(self) -> Sequence[np.ndarray | None]:
        """Returns for each shard which of its rows may be shown by now: bool [n], or None for all of them."""
        if self._hidden.refresh():
            hidden = [self._hidden.mask(shard.entry, shard.documents) for shard in self._shards]
            self._masks = [~in_shard if in_shard.any() else None for in_shard in hidden]
        return self._masks
