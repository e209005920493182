"""Runs each kind of job. The modules that need torch are imported only when a job is run."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bergson_core.errors import IndexBusy, IndexExists, IndexNotFound, InvalidInput
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.source import DatasetSpec, InlineDocument
from bergson_core.storage.deletion import delete_index, remove_unpublished_files
from bergson_core.storage.index_lock import lock_index
from bergson_core.storage.manifest import MANIFEST_FILE, read_manifest
from bergson_core.storage.unfinished_builds import is_unfinished_build
from bergson_core.utils.atomic_files import atomic_path, file_sha256
from bergson_core.utils.disk_errors import translate_disk_errors
from bergson_core.utils.file_locks import remove_if_unused, try_lock
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback
from worker.messages import (
    AppendJob,
    BehaviourJob,
    BuildJob,
    CompactJob,
    EstimateJob,
    Job,
    JobResult,
    ProfileJob,
    UnlearnJob,
)
from worker.process.path_checks import require_allowed_dataset, require_allowed_paths
from worker.settings import Settings

if TYPE_CHECKING:
    from bergson_core.attribution.index import AttributionIndex

logger = logging.getLogger(__name__)


def run_job(
    job: Job,
    settings: Settings,
    report: ProgressCallback,
    confirm: ConfirmCallback,
    open_index: "Callable[[str], AttributionIndex]",
) -> JobResult | None:
    """Runs a job on an index in the data directory.

    Args:
        job: The job.
        settings: Directories, what the operator allows, and the executor.
        report: Called after each batch, as in `build_index`.
        confirm: Called before something is published, as in `build_index`.
        open_index: Returns an index of the worker, which queries use as well.

    Returns:
        What an estimate or a preview has found, None for every other kind of job.

    Raises:
        InvalidInput: The job names a hub id or a local path that the operator does not allow.
        BergsonError: Whatever else the core raises.
    """
    match job:
        case BuildJob():
            run_build(job, settings, report, confirm)
        case AppendJob():
            run_append(job, settings, report, confirm)
        case ProfileJob():
            run_profile_fit(job, settings, report, confirm)
        case BehaviourJob():
            # A behaviour that an earlier start of the same job has created is kept.
            open_index(job.index).behaviours.create(
                job.spec.name,
                job.spec.queries,
                job.spec.control,
                key=job.job_id,
                report=report,
                confirm=confirm,
            )
        case CompactJob():
            from bergson_core.indexing.compact import compact_index

            compact_index(settings.indexes_dir / job.index, report=report, confirm=confirm)
        case EstimateJob():
            from bergson_core.indexing.estimation.estimate import estimate_build

            require_allowed_paths(job.spec, settings)
            return estimate_build(job.spec, report=report)
        case UnlearnJob():
            from bergson_core.attribution.groups.unlearning_preview import run_preview

            return run_preview(open_index(job.index), job.spec, settings.max_unlearned_documents, report)
    return None


def run_build(job: BuildJob, settings: Settings, report: ProgressCallback, confirm: ConfirmCallback) -> None:
    """Builds an index, in place of an unfinished build of another spec if there is one."""
    from bergson_core.executors import open_executor
    from bergson_core.indexing.build import build_index

    executor = open_executor(settings.executor)
    require_allowed_paths(job.spec, settings)
    directory = settings.indexes_dir / job.index
    with _documents_in_file(job, settings.uploads_dir) as spec:
        try:
            build_index(spec, directory, report=report, confirm=confirm, executor=executor)
        except IndexExists:
            if not discard_unfinished(directory):
                raise
            build_index(spec, directory, report=report, confirm=confirm, executor=executor)


def run_append(
    job: AppendJob, settings: Settings, report: ProgressCallback, confirm: ConfirmCallback
) -> None:
    """Adds documents to an index. The job's id identifies them, so a job that is started again adds them once."""
    from bergson_core.executors import open_executor
    from bergson_core.indexing.append import append_documents

    if job.spec.dataset is not None:
        require_allowed_dataset(job.spec.dataset, settings)
    append_documents(
        settings.indexes_dir / job.index,
        job.spec,
        key=job.job_id,
        report=report,
        confirm=confirm,
        executor=open_executor(settings.executor),
    )


def run_profile_fit(
    job: ProfileJob, settings: Settings, report: ProgressCallback, confirm: ConfirmCallback
) -> None:
    """Adds a profile to an index. A profile that an earlier start of the same job has added is kept."""
    from datasets import Dataset

    from bergson_core.attribution.profile_fitting import fit_profile
    from bergson_core.data.dataset import load_dataset_spec

    spec, directory = job.spec, settings.indexes_dir / job.index
    if spec.dataset is not None:
        require_allowed_dataset(spec.dataset, settings)
        queries = load_dataset_spec(spec.dataset, ("prompt", "completion"))
    else:
        queries = Dataset.from_list([query.model_dump() for query in spec.queries or ()])
    fit_profile(
        directory, spec.name, queries, mixing=spec.mixing, key=job.job_id, report=report, confirm=confirm
    )


def discard_unfinished(directory: Path) -> bool:
    """Removes what an unfinished build left in a directory, unless another process writes there.

    In the directory of a published index only the files that an append or a compaction left are removed. A directory
    without the stamp of a build is removed if it holds nothing but files that builds write before they publish, some of
    which a process may have left that was killed. An index that has lost its manifest is kept.

    Returns:
        Whether the whole directory was removed.
    """
    try:
        if (directory / MANIFEST_FILE).exists():
            with lock_index(directory):
                remove_unpublished_files(directory, read_manifest(directory))
            return False
        if not is_unfinished_build(directory):
            return False
        logger.info("removing the unfinished build in %s", directory)
        delete_index(directory)
    except (IndexBusy, IndexNotFound):
        return False
    return True


@contextmanager
def _documents_in_file(job: BuildJob, uploads: Path) -> Iterator[BuildSpec]:
    """Yields the job's spec, with its inline documents in a file below `uploads` while the context is open.

    The file name has the hash of the content, so that a build which is resumed has the same fingerprint, and the name
    of the index, so that no other job uses the file.
    """
    if job.spec.documents is None:
        yield job.spec
        return
    with _uploaded_file(job.spec.documents, uploads, job.index) as path:
        dataset = DatasetSpec(path=str(path), split="train")
        try:
            yield job.spec.model_copy(update={"documents": None, "dataset": dataset})
        except InvalidInput as error:
            raise type(error)(str(error).replace(str(path), "documents")) from error


@contextmanager
def _uploaded_file(documents: Iterable[InlineDocument], uploads: Path, index: str) -> Iterator[Path]:
    """Writes documents as JSON lines to uploads/<index>-<sha256>.jsonl, unless they are there, and yields the path.

    Every process that reads the file holds a shared lock of it. So the last one removes it, and what a process has left
    that was killed is known by having no lock (`leftovers`).
    """
    content = "".join(json.dumps(document) + "\n" for document in documents).encode()
    sha256 = hashlib.sha256(content).hexdigest()
    path = uploads / f"{index}-{sha256}.jsonl"
    with translate_disk_errors(uploads), ExitStack() as stack:
        uploads.mkdir(parents=True, exist_ok=True)
        stack.callback(remove_if_unused, path)
        file = stack.enter_context(path.open("rb")) if path.exists() else None
        if file is None or not try_lock(file, shared=True) or file_sha256(path) != sha256:
            with atomic_path(path) as temporary:
                file = stack.enter_context(temporary.open("wb"))
                try_lock(file, shared=True)
                file.write(content)
                file.flush()
        yield path
