"""The open indexes of a worker: the most recently used ones, opened again when a new generation is published.

Indexes of the same model share it: the model is loaded once, and freed with the last index that uses it. Only the main
thread may open indexes.
"""

import logging
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bergson_core.errors import IndexNotFound
from bergson_core.schemas.build import ExecutorName
from bergson_core.storage.manifest import MANIFEST_FILE, read_manifest
from worker.messages import ResidentModel

if TYPE_CHECKING:
    from bergson_core.attribution.index import AttributionIndex

logger = logging.getLogger(__name__)

_Stamp = tuple[int, int, int]
_ModelKey = tuple[str, str | None, str, str]
"""Name, revision, dtype and sha256: a model whose weights changed under its name is another model."""


@dataclass(frozen=True)
class _OpenIndex:
    index: "AttributionIndex"
    stamp: _Stamp
    models: frozenset[_ModelKey]


class IndexCache:
    """Open indexes, of which the least recently used one is closed when another one needs its place.

    Args:
        root: Parent directory of the indexes.
        capacity: Largest number of open indexes.
        executor: Name of the executor that holds the shards of the indexes.
        max_query_tokens: Largest number of tokens of a query, as in `AttributionIndex.open`.
    """

    def __init__(
        self,
        root: Path,
        capacity: int,
        executor: ExecutorName = "local",
        max_query_tokens: int | None = None,
    ):
        self._root, self._capacity, self._max_query_tokens = root, capacity, max_query_tokens
        self._executor: ExecutorName = executor
        self._open_indexes: OrderedDict[str, _OpenIndex] = OrderedDict()
        self._models: dict[_ModelKey, Any] = {}

    @property
    def names(self) -> list[str]:
        """Names of the open indexes, the least recently used first. Another thread may read it."""
        return list(self._open_indexes)

    @property
    def models(self) -> list[ResidentModel]:
        """The models in memory. Another thread may read it."""
        open_indexes = list(self._open_indexes.items())
        return [
            ResidentModel(
                model=name,
                revision=revision,
                dtype=dtype,
                sha256=sha256,
                parameters=model.parameter_count,
                indexes=[
                    index_name
                    for index_name, open_index in open_indexes
                    if (name, revision, dtype, sha256) in open_index.models
                ],
            )
            for (name, revision, dtype, sha256), model in list(self._models.items())
        ]

    def get(self, name: str) -> "AttributionIndex":
        """Returns the published generation of an index.

        Raises:
            IndexNotFound: There is no such index, or not any more.
            BergsonError: Whatever `AttributionIndex.open` raises.
        """
        path = self._root / name
        stamp = _manifest_stamp(path)
        open_index = self._open_indexes.get(name)
        if open_index is None or open_index.stamp != stamp:
            self._drop(name)
            if stamp is None:
                raise IndexNotFound.for_name(name)
            while len(self._open_indexes) >= self._capacity:
                self._drop(next(iter(self._open_indexes)))
            open_index = self._open_indexes[name] = self._open(path, stamp)
        self._open_indexes.move_to_end(name)
        return open_index.index

    def drop_deleted(self) -> None:
        """Closes indexes that were deleted from disk."""
        for name in self.names:
            if _manifest_stamp(self._root / name) is None:
                self._drop(name)

    def _open(self, path: Path, stamp: _Stamp) -> _OpenIndex:
        from bergson_core.attribution.index import AttributionIndex
        from bergson_core.executors import open_executor
        from bergson_core.models.loading import load_model

        sha256 = read_manifest(path).model_sha256
        used_models: set[_ModelKey] = set()

        def load_shared_model(
            name: str, revision: str | None = None, dtype: str = "float32", **options: Any
        ) -> Any:
            key = (name, revision, dtype, sha256)
            if key not in self._models:
                self._models[key] = load_model(name, revision, dtype, **options)
            used_models.add(key)
            return self._models[key]

        logger.info("opening index %s", path.name)
        try:
            executor = open_executor(self._executor)
            index = AttributionIndex.open(
                path,
                load_model=load_shared_model,
                partial=True,
                executor=executor,
                max_query_tokens=self._max_query_tokens,
            )
            return _OpenIndex(index, stamp, frozenset(used_models))
        except BaseException:
            self._drop_unused_models()
            raise

    def _drop(self, name: str) -> None:
        if self._open_indexes.pop(name, None) is not None:
            logger.info("index %s is no longer in memory", name)
            self._drop_unused_models()

    def _drop_unused_models(self) -> None:
        used = frozenset().union(*(open_index.models for open_index in self._open_indexes.values()))
        self._models = {key: model for key, model in self._models.items() if key in used}


def _manifest_stamp(path: Path) -> _Stamp | None:
    """Returns a value that changes with every publication, or None if the index has no manifest.

    A publication replaces the manifest by renaming, so its inode changes.
    """
    try:
        stat = (path / MANIFEST_FILE).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
