"""TODO"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bergson_core.shards.shard import Shard
from bergson_core.storage.document_lookup import HiddenRows
from bergson_core.storage.manifest import Manifest


class VisibleRows:
    """Which rows may be shown by now: all but those that were taken down. For one thread."""

    def __init__(self, root: Path, manifest: Manifest, shards: Sequence[Shard]) -> None:
        self._hidden, self._shards = HiddenRows(root, manifest), shards
        self._masks: list[np.ndarray | None] = [None] * len(shards)

    def masks(self) -> Sequence[np.ndarray | None]:
        """For each shard which of its rows, bool [n], or None for all of them."""
        if self._hidden.update():
            hidden = [self._hidden.of(shard.entry, shard.documents) for shard in self._shards]
            self._masks = [~one if one.any() else None for one in hidden]
        return self._masks
