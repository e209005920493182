"""Published indexes, read from disk. Disk is the truth: what has no manifest does not exist."""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from bergson_core.errors import IdsExist, IndexCorrupt, IndexNotFound
from bergson_core.schemas.build import AppendSpec, BuildSpec
from bergson_core.schemas.results import SizesBytes
from bergson_core.storage.manifest import MANIFEST_FILE, Manifest, iter_published_indexes, read_manifest
from bergson_core.storage.manifest import check_append as check_stated
from bergson_core.storage.takedown_log import TakedownLog
from service.schemas import DocumentDetail, IndexDetail, IndexPage, IndexSummary
from worker.messages import Problem


def _sizes_bytes(manifest: Manifest) -> SizesBytes:
    rows = sum(entry.bytes for shard in manifest.shards for entry in shard.files)
    search = sum(entry.bytes for entry in manifest.files if entry.path.startswith("search/"))
    total = manifest.total_bytes()
    return SizesBytes(rows=rows, search=search, statistics=total - rows - search, total=total)


def _without_documents(spec: BuildSpec) -> BuildSpec:
    return spec if spec.documents is None else spec.model_copy(update={"documents": ()})


def _make_detail(name: str, manifest: Manifest) -> IndexDetail:
    return IndexDetail(
        name=name,
        state="ready",
        generation=manifest.generation,
        created_at=manifest.created_at,
        model=manifest.spec.model,
        rows=manifest.rows,
        tokens=manifest.tokens,
        skipped=manifest.skipped,
        modules=len(manifest.modules),
        dimensions=manifest.dimensions,
        coverage_percent=manifest.coverage_percent,
        size_bytes=_sizes_bytes(manifest),
        spec=_without_documents(manifest.spec),
        fingerprint=manifest.fingerprint,
        model_sha256=manifest.model_sha256,
        profiles=[entry.name for entry in manifest.profiles],
        compacted=manifest.compacted,
        search=manifest.search,
        notice=manifest.notice,
    )


@lru_cache(maxsize=512)
def _read_cached(path: Path, inode: int, modified_ns: int) -> IndexDetail:
    """A manifest is replaced by rename and may hold thousands of inline documents: read each version once."""
    return _make_detail(path.name, read_manifest(path))


def _read(path: Path) -> IndexDetail:
    try:
        stat = (path / MANIFEST_FILE).stat()
    except FileNotFoundError:
        raise IndexNotFound.named(path.name) from None
    try:
        return _read_cached(path, stat.st_ino, stat.st_mtime_ns)
    except IndexCorrupt as error:
        return IndexDetail(name=path.name, state="corrupt", error=Problem(code=error.code, detail=str(error)))


def read_index_detail(root: Path, name: str) -> IndexDetail:
    """The published index `name` below `root`. Raises `IndexNotFound`."""
    found = _read(root / name)
    if found.state != "ready":
        return found
    log = TakedownLog(root / name)
    log.read_new_lines()
    return found.model_copy(update={"taken_down": log.lines})


def require_index(root: Path, name: str) -> Path:
    """The directory of the published index `name`. Raises `IndexNotFound`."""
    if not (root / name / MANIFEST_FILE).is_file():
        raise IndexNotFound.named(name)
    return root / name


def read_document(root: Path, name: str, document_id: str) -> DocumentDetail:
    """A document of an index. Raises `IndexNotFound` and `DocumentNotFound`."""
    from bergson_core.storage.document_lookup import (
        find_document,  # pyarrow is not loaded before somebody asks
    )

    return DocumentDetail(index=name, **find_document(require_index(root, name), document_id))


def take_document_down(root: Path, name: str, document_id: str) -> None:
    """Hides a document from now on. Raises `IndexNotFound` and `DocumentNotFound`."""
    from bergson_core.storage.document_lookup import take_down_document

    take_down_document(require_index(root, name), document_id)


def require_valid_append(root: Path, name: str, spec: AppendSpec) -> None:
    """Raises `IndexNotFound`, `InvalidInput` for what the worker would refuse, `IdsExist` for inline documents."""
    directory = require_index(root, name)
    manifest = read_manifest(directory)
    check_stated(name, manifest, spec)
    column = manifest.spec.columns.id
    ids = [str(one[column]) for one in spec.documents or () if column in one] if column else []
    if ids:
        from bergson_core.storage.document_lookup import existing_ids

        if found := existing_ids(directory, ids):
            raise IdsExist.of(found)


def make_building_detail(name: str, job_id: str) -> IndexDetail:
    """The index that `job_id` will publish."""
    return IndexDetail(name=name, state="building", job_id=job_id)


def _make_summary(detail: IndexDetail) -> IndexSummary:
    return IndexSummary.model_construct(
        **{field: getattr(detail, field) for field in IndexSummary.model_fields}
    )


def read_index_page(
    root: Path, building: Mapping[str, str], after: str, limit: int, shown: Callable[[str], bool]
) -> IndexPage:
    """Up to `limit` indexes whose names come after `after`; `building` maps names to job ids.

    Of those alone that are `shown`, which is asked with their names.
    """
    ready = dict(iter_published_indexes(root))
    names = sorted(filter(shown, {*ready, *building}))
    start = bisect_right(names, after)
    chosen = names[start : start + limit]
    items = [
        _read(ready[name]) if name in ready else make_building_detail(name, building[name]) for name in chosen
    ]
    more = start + limit < len(names)
    return IndexPage(items=[_make_summary(item) for item in items], next_cursor=chosen[-1] if more else None)
