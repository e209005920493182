"""`Behaviours`: the behaviours of an open index, which are created, listed, read and deleted here, and asked for.

The score of a document with a behaviour is the mean of its scores with the queries, less the mean of those with the
control set. A score is φ(document) · φ(query), so that this is the inner product with one vector:

    mean φ(query) - mean φ(control query)

φ depends on the profile, and the rows that are kept do not. So a behaviour can be asked for under every profile, also
one that was fitted after it, and the vector of a profile is computed when it is first asked for.

Legend: q queries, m modules, d numbers per module.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bergson_core.attribution.behaviours.creation import ROW_CODEC, BehaviourWriter
from bergson_core.attribution.queries.query_tokenizer import QueryTokenizer
from bergson_core.errors import InvalidInput
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.indexing.build_context import always_confirm, ignore_progress
from bergson_core.indexing.output_directory import index_write_lock
from bergson_core.schemas.behaviours.results import BehaviourDetail, BehaviourSummary
from bergson_core.schemas.behaviours.spec import BehaviourQuery, BehaviourSpec
from bergson_core.schemas.results import QueryEcho
from bergson_core.search.profile import Profile
from bergson_core.search.searcher import Searcher
from bergson_core.shards.shard import BLOCKS_FILE, SCALES_FILE
from bergson_core.storage.behaviours import (
    BehaviourRecord,
    behaviour_path,
    behaviour_stamp,
    delete_behaviour,
    list_behaviours,
    read_detail,
    read_record,
    remove_unfinished_behaviours,
    require_intact,
    require_new_behaviour,
)
from bergson_core.storage.manifest import Manifest, read_manifest
from bergson_core.utils.memory_map import map_array
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback

_CHUNK_NUMBERS: Final = 2**22
"""Numbers of rows that are in memory at a time: 16 MiB."""
_MAX_KEPT_VECTORS: Final = 32
"""Vectors that are kept in memory."""


class Behaviours:
    """The behaviours of an open index. For use by one thread.

    Args:
        root: Directory of the index.
        manifest: Manifest of the index.
        processor: Normalizers and projection of the rows.
        collector: Computes rows as the index holds them.
        query_tokenizer: Tokenises queries.
        searcher: The shards of the index, with their profiles.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        processor: GradientProcessor,
        collector: RowCollector,
        query_tokenizer: QueryTokenizer,
        searcher: Searcher,
    ) -> None:
        self._root, self._manifest, self._processor = root, manifest, processor
        self._collector, self._query_tokenizer, self._searcher = collector, query_tokenizer, searcher
        self._vectors: OrderedDict[tuple[Any, ...], Float[Tensor, "m d"]] = OrderedDict()

    def create(
        self,
        name: str,
        queries: Iterable[BehaviourQuery | Mapping[str, Any]],
        control: Iterable[BehaviourQuery | Mapping[str, Any]] | None = None,
        *,
        key: str = "",
        report: ProgressCallback | None = None,
        confirm: ConfirmCallback | None = None,
    ) -> BehaviourDetail:
        """Creates a behaviour, which is then kept with the index.

        All queries are checked before the first one runs through the model. Later generations of the index use the
        behaviour as well; it makes no generation of its own.

        Example:
            index.behaviours.create("polite", [{"prompt": "Pass the salt", "completion": ", please."}])
            answer = index.query(behaviour="polite")

        Args:
            name: Name of the behaviour: lower-case letters, digits, - and _.
            queries: What the model says when it behaves so, up to 4,096 queries or their fields.
            control: Queries that are like them except for the behaviour, whose mean score is subtracted.
            key: Makes a call repeatable: if an earlier call with the same key has created the behaviour, this one
                returns it at once.
            report: Called with the progress. It may raise to stop the work.
            confirm: Called before the behaviour is published. It may raise to stop the work.

        Returns:
            The behaviour.

        Raises:
            BehaviourExists: The index has a behaviour of this name.
            InvalidInput: A field is wrong, the control set is the set itself, or this index cannot answer a query; the
                message has the number of the query.
            TooLong: A query is longer than the model takes.
            IndexBusy: Another process is writing to the index.
        """
        spec = BehaviourSpec.model_validate(
            {
                "name": name,
                "queries": [_fields(query) for query in queries],
                "control": None if control is None else [_fields(query) for query in control],
            }
        )
        with index_write_lock(self._root):
            remove_unfinished_behaviours(self._root)
            if not (key and self._has(name, key)):
                require_new_behaviour(self._root, name)
                # Documents may have been appended since this index was opened.
                manifest = read_manifest(self._root)
                writer = BehaviourWriter(
                    self._root, manifest, self._fingerprint, self._collector, self._query_tokenizer
                )
                writer.write(spec, key, report or ignore_progress, confirm or always_confirm)
        return read_detail(self._root, name)

    def list(self) -> Sequence[BehaviourSummary]:
        """Returns the behaviours, in the order of their names."""
        return list_behaviours(self._root)

    def get(self, name: str) -> BehaviourDetail:
        """Returns a behaviour with its queries. Raises `BehaviourNotFound`, which names those that there are."""
        return read_detail(self._root, name)

    def delete(self, name: str) -> None:
        """Deletes a behaviour. Raises `BehaviourNotFound`."""
        delete_behaviour(self._root, name)

    def read(self, name: str) -> BehaviourRecord:
        """Returns the record of a behaviour, which has to be one of this index.

        Raises:
            BehaviourNotFound: There is no behaviour of this name.
            InvalidInput: It was made with another processor or model than the rows of this index.
            IndexCorrupt: It is damaged.
        """
        record = read_record(self._root, name)
        expected = (
            self._fingerprint,
            self._manifest.model_sha256,
            tuple(module.name for module in self._manifest.modules),
        )
        if (record.processor, record.model_sha256, record.modules) != expected:
            raise InvalidInput(
                f"the behaviour {name!r} was made with another processor or another model than the rows of "
                f"{self._root.name}, so that they cannot be compared: delete it and create it again"
            )
        return record

    def features(self, name: str, profile: str) -> Float[Tensor, "m d"]:
        """Returns the mean φ of a behaviour's queries under a profile, less that of its control set.

        The errors are those of `read`.
        """
        record = self.read(name)
        cache_key = (name, behaviour_stamp(self._root, name), profile)
        if cache_key not in self._vectors:
            self._vectors[cache_key] = self._compute(record, self._searcher.profiles[profile])
            if len(self._vectors) > _MAX_KEPT_VECTORS:
                self._vectors.popitem(last=False)
        self._vectors.move_to_end(cache_key)
        return self._vectors[cache_key]

    def difference(self, name: str, other: str | None, profile: str) -> Float[Tensor, "m d"]:
        """Returns `features` of a behaviour, less those of another one if there is another one."""
        features = self.features(name, profile)
        return features if other is None else features - self.features(other, profile)

    def weights(self, name: str, other: str | None, profile: str) -> Float[Tensor, "m d"]:
        """Returns what stored rows are multiplied with to get their scores for `difference`."""
        features = self.difference(name, other, profile)
        _, weights = self._searcher.profiles[profile].prepare_features(features[None])
        return weights[0]

    def echo(self, name: str, other: str | None) -> QueryEcho:
        """Returns what an answer says of a query for a behaviour, or for the difference of two behaviours."""
        record, other_record = self.read(name), None if other is None else self.read(other)
        return QueryEcho(
            behaviour=name,
            loss=record.loss,
            n_tokens=record.n_tokens,
            instead_of_behaviour=other,
            instead_of_loss=None if other_record is None else other_record.loss,
        )

    @cached_property
    def _fingerprint(self) -> str:
        return self._processor.fingerprint()

    def _has(self, name: str, key: str) -> bool:
        return behaviour_stamp(self._root, name) is not None and read_record(self._root, name).key == key

    def _compute(self, record: BehaviourRecord, profile: Profile) -> Float[Tensor, "m d"]:
        require_intact(self._root, record, (BLOCKS_FILE, SCALES_FILE))
        directory, count = behaviour_path(self._root, record.name), record.query_count
        total, modules = count + record.control_count, len(record.modules)
        blocks = map_array(directory / BLOCKS_FILE, ROW_CODEC.block_dtype, (total, modules, record.width))
        scales = map_array(directory / SCALES_FILE, ROW_CODEC.scale_dtype, (total, modules))
        query_weights = np.r_[np.full(count, 1 / count), np.full(total - count, -1 / max(1, total - count))]
        vector = torch.zeros(modules, record.width, dtype=torch.float64)
        chunk = max(1, _CHUNK_NUMBERS // (modules * record.width))
        for start in range(0, total, chunk):
            part = slice(start, start + chunk)
            rows = ROW_CODEC.decode(blocks[part], scales[part], record.width)
            features = profile.query_features(rows).double()
            vector += torch.einsum("q,qmd->md", torch.from_numpy(query_weights[part]), features)
        return vector.float()


def _fields(query: BehaviourQuery | Mapping[str, Any]) -> Any:
    return query.model_dump() if isinstance(query, BehaviourQuery) else query
