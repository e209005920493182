"""Which indexes are in memory: the last few that were asked for, opened again when a new one is published.

Models are shared: two indexes of one model hold it once, and it goes with the last of them. For one thread.
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


@dataclass(frozen=True)
class _Resident:
    index: "AttributionIndex"
    stamp: _Stamp
    models: frozenset[_ModelKey]


class IndexCache:
    """At most `bound` open indexes out of the directory `root`; `executor` holds their shards."""

    def __init__(self, root: Path, bound: int, executor: ExecutorName = "local"):
        self._root, self._bound = root, bound
        self._executor: ExecutorName = executor
        self._residents: OrderedDict[str, _Resident] = OrderedDict()
        self._models: dict[_ModelKey, Any] = {}

    @property
    def names(self) -> list[str]:
        """Names of the open indexes, the least recently used first. May be read by another thread."""
        return list(self._residents)

    @property
    def models(self) -> list[ResidentModel]:
        """Models in memory. May be read by another thread."""
        residents = list(self._residents.items())
        return [
            ResidentModel(
                model=name,
                revision=revision,
                dtype=dtype,
                sha256=sha256,
                parameters=model.parameter_count,
                indexes=[index for index, one in residents if (name, revision, dtype, sha256) in one.models],
            )
            for (name, revision, dtype, sha256), model in list(self._models.items())
        ]

    def get(self, name: str) -> "AttributionIndex":
        """The index as it is published now.

        Raises `IndexNotFound` where there is none (any more), and what `AttributionIndex.open` raises.
        """
        path = self._root / name
        stamp = _stamp(path)
        resident = self._residents.get(name)
        if resident is None or resident.stamp != stamp:
            self._drop(name)
            if stamp is None:
                raise IndexNotFound.named(name)
            while len(self._residents) >= self._bound:
                self._drop(next(iter(self._residents)))
            resident = self._residents[name] = self._open(path, stamp)
        self._residents.move_to_end(name)
        return resident.index

    def drop_deleted(self) -> None:
        """Lets go of indexes that were deleted."""
        for name in self.names:
            if _stamp(self._root / name) is None:
                self._drop(name)

    def _open(self, path: Path, stamp: _Stamp) -> _Resident:
        from bergson_core.attribution.index import AttributionIndex
        from bergson_core.executors import open_executor
        from bergson_core.models.loading import load_model

        sha256 = read_manifest(path).model_sha256  # a model that changed under its name is another model
        used: set[_ModelKey] = set()

        def shared(name: str, revision: str | None = None, dtype: str = "float32") -> Any:
            key = (name, revision, dtype, sha256)
            if key not in self._models:
                self._models[key] = load_model(name, revision, dtype)
            used.add(key)
            return self._models[key]

        logger.info("opening index %s", path.name)
        try:
            executor = open_executor(self._executor)
            index = AttributionIndex.open(path, load_model=shared, partial=True, executor=executor)
            return _Resident(index, stamp, frozenset(used))
        except BaseException:
            self._forget_models()
            raise

    def _drop(self, name: str) -> None:
        if self._residents.pop(name, None) is not None:
            logger.info("index %s is no longer in memory", name)
            self._forget_models()

    def _forget_models(self) -> None:
        """Lets go of the models that no open index uses."""
        used = frozenset().union(*(resident.models for resident in self._residents.values()))
        self._models = {key: model for key, model in self._models.items() if key in used}


def _stamp(path: Path) -> _Stamp | None:
    """Changes with every publication, which replaces the manifest by rename; None where there is no manifest."""
    try:
        stat = (path / MANIFEST_FILE).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
