"""Reads published indexes from disk, where an index exists exactly if it has a manifest."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from bergson_core.errors import DocumentNotFound, IdsExist, IndexCorrupt, IndexNotFound, InvalidInput
from bergson_core.schemas.build import AppendSpec, BuildSpec
from bergson_core.schemas.build_parts.inline_documents import find_inline_problem
from bergson_core.schemas.documents import find_id_value_problem
from bergson_core.schemas.results import SizesBytes
from bergson_core.storage.manifest import (
    MANIFEST_FILE,
    Manifest,
    iter_published_indexes,
    read_manifest,
    require_appendable,
)
from bergson_core.storage.metadata_types import add_document_types, recorded_types
from bergson_core.storage.takedown_log import TakedownLog
from service.index_schemas import DocumentDetail, IndexDetail, IndexPage, IndexSummary
from worker.problem import Problem


def _measure_sizes(manifest: Manifest) -> SizesBytes:
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
        size_bytes=_measure_sizes(manifest),
        spec=_without_documents(manifest.spec),
        fingerprint=manifest.fingerprint,
        model_sha256=manifest.model_sha256,
        documents=manifest.documents,
        profiles=[entry.name for entry in manifest.profiles],
        compacted=manifest.compacted,
        search=manifest.search,
        notice=manifest.notice,
    )


@lru_cache(maxsize=512)
def _read_cached(path: Path, inode: int, modified_ns: int) -> IndexDetail:
    """Reads each version of a manifest once, because it may hold thousands of inline documents.

    A changed manifest is a new file under the same name, with another inode and time of modification.
    """
    return _make_detail(path.name, read_manifest(path))


def _read(path: Path) -> IndexDetail:
    try:
        stat = (path / MANIFEST_FILE).stat()
    except FileNotFoundError:
        raise IndexNotFound.for_name(path.name) from None
    try:
        return _read_cached(path, stat.st_ino, stat.st_mtime_ns)
    except IndexCorrupt as error:
        return IndexDetail(name=path.name, state="corrupt", error=Problem(code=error.code, detail=str(error)))


def read_index_detail(root: Path, name: str) -> IndexDetail:
    """Returns the details of a published index.

    Args:
        root: Directory of all indexes.
        name: Name of the index.

    Raises:
        IndexNotFound: There is no index of this name.
    """
    detail = _read(root / name)
    if detail.state != "ready":
        return detail
    log = TakedownLog(root / name)
    log.skip_to_end()
    return detail.model_copy(update={"taken_down": log.end.lines})


def require_index(root: Path, name: str) -> Path:
    """Returns the directory of the published index `name`. Raises `IndexNotFound`."""
    if not (root / name / MANIFEST_FILE).is_file():
        raise IndexNotFound.for_name(name)
    return root / name


def read_document(root: Path, name: str, document_id: str) -> DocumentDetail:
    """Returns a document of an index. Raises `IndexNotFound` and `DocumentNotFound`."""
    # Here and below: pyarrow is slow to load, and most web processes never need it.
    from bergson_core.storage.document_lookup import find_document

    document = find_document(require_index(root, name), document_id)
    fields = {field: value for field, value in document.items() if field in DocumentDetail.model_fields}
    return DocumentDetail(index=name, **fields)


def require_documents(root: Path, name: str, ids: Sequence[str]) -> None:
    """Checks that an index has these documents. Raises `IndexNotFound` and `DocumentNotFound`."""
    from bergson_core.storage.document_lookup import find_existing_ids

    existing = set(find_existing_ids(require_index(root, name), ids))
    if missing := [document_id for document_id in ids if document_id not in existing]:
        raise DocumentNotFound.for_ids(name, missing)


def take_down_document(root: Path, name: str, document_id: str) -> None:
    """Hides a document from every answer, from now on. Raises `IndexNotFound` and `DocumentNotFound`."""
    from bergson_core.storage import document_lookup

    document_lookup.take_down_document(require_index(root, name), document_id)


def require_valid_append(root: Path, name: str, spec: AppendSpec) -> None:
    """Checks that an append can succeed, before it is queued.

    Raises:
        IndexNotFound: There is no index of this name.
        InvalidInput: The spec differs from how the index was built, an inline document has a wrong id or text, or its
            metadata is of another type than that of the index.
        IdsExist: The index has documents with ids of the inline documents. Ids of a dataset are left to the worker.
    """
    directory = require_index(root, name)
    manifest = read_manifest(directory)
    require_appendable(name, manifest, spec)
    skips_bad = (spec.on_bad_document or manifest.spec.on_bad_document) == "skip"
    if found := find_inline_problem(spec.documents or (), manifest.spec.columns, skips_bad=skips_bad):
        (number, column), problem = found
        raise InvalidInput(f"documents.{number}.{column}: {problem}")
    if (types := recorded_types(manifest)) is not None:  # otherwise the worker reads them from the documents
        for number, document in enumerate(spec.documents or ()):
            types = add_document_types(name, types, f"documents.{number}", document)
    column = manifest.spec.columns.id
    values = [document.get(column) for document in spec.documents or ()] if column else []
    if ids := [str(value) for value in values if not find_id_value_problem(value)]:
        from bergson_core.storage.document_lookup import find_existing_ids

        if existing_ids := find_existing_ids(directory, ids):
            raise IdsExist.for_ids(existing_ids)


def make_building_detail(name: str, job_id: str) -> IndexDetail:
    """Returns the details of an index that the job `job_id` is building."""
    return IndexDetail(name=name, state="building", job_id=job_id)


def _make_summary(detail: IndexDetail) -> IndexSummary:
    return IndexSummary.model_construct(
        **{field: getattr(detail, field) for field in IndexSummary.model_fields}
    )


def read_index_page(
    root: Path, active_jobs: Mapping[str, str], after: str, limit: int, is_visible: Callable[[str], bool]
) -> IndexPage:
    """Returns a page of indexes, in the order of their names.

    Args:
        root: Directory of all indexes.
        active_jobs: Name of each index that is being built or changed, and the id of the job.
        after: The page starts after this name.
        limit: Most indexes on the page.
        is_visible: Whether the caller may see the index of this name.
    """
    published = dict(iter_published_indexes(root))
    names = sorted(filter(is_visible, {*published, *active_jobs}))
    start = bisect_right(names, after)
    page_names = names[start : start + limit]
    details = [
        _read(published[name]) if name in published else make_building_detail(name, active_jobs[name])
        for name in page_names
    ]
    has_more = start + limit < len(names)
    return IndexPage(
        items=[_make_summary(detail) for detail in details], next_cursor=page_names[-1] if has_more else None
    )
