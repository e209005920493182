"""Published indexes, read from disk. Disk is the truth: what has no manifest does not exist."""

from bisect import bisect_right
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from bergson_core.errors import IndexCorrupt, IndexNotFound
from bergson_core.manifest import FILE_NAME, Manifest, published, read_manifest
from bergson_core.specs import BuildSpec
from service.schemas import IndexDetail, IndexPage, IndexSummary, SizesBytes
from worker.messages import Problem


def _sizes(manifest: Manifest) -> SizesBytes:
    rows = sum(entry.bytes for shard in manifest.shards for entry in shard.files)
    search = sum(entry.bytes for entry in manifest.files if entry.path.startswith("search/"))
    total = manifest.total_bytes()
    return SizesBytes(rows=rows, search=search, statistics=total - rows - search, total=total)


def _without_documents(spec: BuildSpec) -> BuildSpec:
    return spec if spec.documents is None else spec.model_copy(update={"documents": ()})


def _detail(name: str, manifest: Manifest) -> IndexDetail:
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
        size_bytes=_sizes(manifest),
        spec=_without_documents(manifest.spec),
        fingerprint=manifest.fingerprint,
        model_sha256=manifest.model_sha256,
        profiles=[entry.name for entry in manifest.profiles],
        search=manifest.search,
    )


@lru_cache(maxsize=512)
def _cached(path: Path, inode: int, modified_ns: int) -> IndexDetail:
    """A manifest is replaced by rename and may hold thousands of inline documents: read each version once."""
    return _detail(path.name, read_manifest(path))


def _read(path: Path) -> IndexDetail:
    try:
        stat = (path / FILE_NAME).stat()
    except FileNotFoundError:
        raise IndexNotFound(f"no index named {path.name!r}: GET /index lists them") from None
    try:
        return _cached(path, stat.st_ino, stat.st_mtime_ns)
    except IndexCorrupt as error:
        return IndexDetail(name=path.name, state="corrupt", error=Problem(code=error.code, detail=str(error)))


def detail(root: Path, name: str) -> IndexDetail:
    """The published index `name` below `root`. Raises `IndexNotFound`."""
    return _read(root / name)


def being_built(name: str, job_id: str) -> IndexDetail:
    """The index that `job_id` will publish."""
    return IndexDetail(name=name, state="building", job_id=job_id)


def _summary(detail: IndexDetail) -> IndexSummary:
    return IndexSummary.model_construct(
        **{field: getattr(detail, field) for field in IndexSummary.model_fields}
    )


def page(root: Path, building: Mapping[str, str], after: str, limit: int) -> IndexPage:
    """Up to `limit` indexes whose names come after `after`; `building` maps names to job ids."""
    ready = dict(published(root))
    names = sorted({*ready, *building})
    start = bisect_right(names, after)
    chosen = names[start : start + limit]
    items = [_read(ready[name]) if name in ready else being_built(name, building[name]) for name in chosen]
    more = start + limit < len(names)
    return IndexPage(items=[_summary(item) for item in items], next_cursor=chosen[-1] if more else None)
