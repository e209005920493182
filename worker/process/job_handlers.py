"""Runs each kind of job. The modules that need torch are imported only when a job is run."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bergson_core.errors import IndexBusy, IndexExists, InvalidInput, LeaseLost
from bergson_core.schemas.build import BuildSpec, DatasetSpec, InlineDocument
from bergson_core.schemas.results import Estimate
from bergson_core.storage.deletion import remove_unpublished_files
from bergson_core.storage.layout import BUILD_STAMP_FILE, LOCK_FILE
from bergson_core.storage.manifest import MANIFEST_FILE, read_manifest
from bergson_core.utils.atomic_files import write_atomically
from bergson_core.utils.disk_errors import translate_disk_errors
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback
from worker.messages import AppendJob, BuildJob, CompactJob, EstimateJob, Job, ProfileJob
from worker.process.path_checks import require_allowed_dataset, require_allowed_paths
from worker.settings import Settings

logger = logging.getLogger(__name__)


def run_job(
    job: Job, settings: Settings, report: ProgressCallback, confirm: ConfirmCallback
) -> Estimate | None:
    """Runs a job on an index in the data directory.

    Args:
        job: The job.
        settings: Directories, what the operator allows, and the executor.
        report: Called after each batch, as in `build_index`.
        confirm: Called before something is published, as in `build_index`.

    Returns:
        What an estimate has found, None for every other kind of job.

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
        case CompactJob():
            from bergson_core.indexing.compact import compact_index

            compact_index(settings.indexes_dir / job.index, report=report, confirm=confirm)
        case EstimateJob():
            from bergson_core.indexing.estimation.estimate import estimate_build

            require_allowed_paths(job.spec, settings)
            return estimate_build(job.spec, report=report)
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

    In the directory of a published index only the files that an append or a compaction left are removed.

    Returns:
        Whether the whole directory was removed.
    """
    if not (directory / BUILD_STAMP_FILE).is_file() and not (directory / MANIFEST_FILE).exists():
        return False
    try:
        with FileLock(directory / LOCK_FILE, timeout=0):
            if (directory / MANIFEST_FILE).exists():
                remove_unpublished_files(directory, read_manifest(directory))
                return False
            logger.info("removing the unfinished build in %s", directory)
            shutil.rmtree(directory)
    except Timeout:
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
    path = _write_documents(job.spec.documents, uploads, job.index)
    dataset = DatasetSpec(path=str(path), split="train")
    try:
        yield job.spec.model_copy(update={"documents": None, "dataset": dataset})
    except (LeaseLost, IndexBusy):
        raise  # another worker reads the file
    except InvalidInput as error:
        path.unlink(missing_ok=True)
        raise type(error)(str(error).replace(str(path), "documents")) from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    path.unlink(missing_ok=True)


def _write_documents(documents: Iterable[InlineDocument], uploads: Path, index: str) -> Path:
    """Writes documents as JSON lines to uploads/<index>-<sha256>.jsonl, all or nothing, and returns its path."""
    content = "".join(json.dumps(document) + "\n" for document in documents).encode()
    path = uploads / f"{index}-{hashlib.sha256(content).hexdigest()}.jsonl"
    with translate_disk_errors(uploads):
        uploads.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return path
