"""What is done for each kind of job. No Redis here, and torch only once a job is run."""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

from filelock import FileLock, Timeout

from bergson_core.errors import IndexBusy, IndexExists, InvalidInput, LeaseLost
from bergson_core.models.lora import read_adapter_base
from bergson_core.schemas.build import BuildSpec, DatasetSpec, InlineDocument
from bergson_core.schemas.results import Estimate
from bergson_core.storage.integrity import remove_unpublished_files
from bergson_core.storage.layout import BUILD_STAMP_FILE, LOCK_FILE
from bergson_core.storage.manifest import MANIFEST_FILE, read_manifest
from bergson_core.utils.atomic_files import write_atomically
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback
from worker.messages import AppendJob, BuildJob, EstimateJob, Job, ProfileJob
from worker.settings import Settings

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def run_job(
    job: Job, settings: Settings, report: ProgressCallback, confirm: ConfirmCallback
) -> Estimate | None:
    """Does what `job` says to an index in the data directory, or finds out what it would take.

    `report` and `confirm` are those of `build_index`; the core's errors come through. Raises `InvalidInput` where the
    job names a local path that is not allowed.
    """
    if isinstance(job, BuildJob):
        run_build(job, settings, report, confirm)
    elif isinstance(job, AppendJob):
        run_append(job, settings, report, confirm)
    elif isinstance(job, ProfileJob):
        run_profile_fit(job, settings, report, confirm)
    elif isinstance(job, EstimateJob):
        from bergson_core.indexing.estimate import estimate_build

        require_allowed_paths(job.spec, settings)
        return estimate_build(job.spec, report=report)
    else:
        from bergson_core.indexing.compact import compact_index

        compact_index(settings.indexes_dir / job.index, report=report, confirm=confirm)
    return None


def run_build(job: BuildJob, settings: Settings, report: ProgressCallback, confirm: ConfirmCallback) -> None:
    """Builds an index."""
    from bergson_core.executors import open_executor
    from bergson_core.indexing.build import build_index

    executor = open_executor(settings.executor)
    require_allowed_paths(job.spec, settings)
    directory = settings.indexes_dir / job.index
    with _read_from_file(job, settings.uploads_dir) as spec:
        try:
            build_index(spec, directory, report=report, confirm=confirm, executor=executor)
        except IndexExists:
            if not discard_unfinished(directory):
                raise
            build_index(spec, directory, report=report, confirm=confirm, executor=executor)


def run_append(
    job: AppendJob, settings: Settings, report: ProgressCallback, confirm: ConfirmCallback
) -> None:
    """Adds documents to an index; a job that was started before is told by its id."""
    from bergson_core.executors import open_executor
    from bergson_core.indexing.append import append_documents

    if job.spec.dataset is not None:
        require_allowed_path("dataset.path", job.spec.dataset.path, settings, settings.allowed_datasets)
    directory = settings.indexes_dir / job.index
    append_documents(
        directory,
        job.spec,
        key=job.job_id,
        report=report,
        confirm=confirm,
        executor=open_executor(settings.executor),
    )


def run_profile_fit(
    job: ProfileJob, settings: Settings, report: ProgressCallback, confirm: ConfirmCallback
) -> None:
    """Adds a profile to an index; one that a start of the same job has added already stays."""
    from datasets import Dataset

    from bergson_core.attribution import profile_fitting
    from bergson_core.data.dataset import load_dataset_spec

    spec, directory = job.spec, settings.indexes_dir / job.index
    if spec.dataset is not None:
        require_allowed_path("dataset.path", spec.dataset.path, settings, settings.allowed_datasets)
        queries = load_dataset_spec(spec.dataset)
    else:
        queries = Dataset.from_list([query.model_dump() for query in spec.queries or ()])
    profile_fitting.fit_profile(
        directory, spec.name, queries, mixing=spec.mixing, key=job.job_id, report=report, confirm=confirm
    )


def discard_unfinished(directory: Path) -> bool:
    """Removes what a build left that will not be resumed; False where there is no such thing.

    Of a published index only what an append or a compaction left is removed. What another process is writing stays.
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


def require_allowed_paths(spec: BuildSpec, settings: Settings) -> None:
    """Raises `InvalidInput` where `spec` names a hub id or something local that the operator does not allow.

    What is local is what has that name here. Links and `..` are followed before it is compared.
    """
    models, datasets = settings.allowed_models, settings.allowed_datasets
    require_allowed_path("model", spec.model, settings, models)
    if base := read_adapter_base(Path(spec.model).expanduser()):
        require_allowed_path("the model of its adapters", base.name, settings, models)
    if spec.dataset is not None:
        require_allowed_path("dataset.path", spec.dataset.path, settings, datasets)
    if spec.gradients.optimizer_state is not None:
        require_allowed_path("gradients.optimizer_state", spec.gradients.optimizer_state, settings, ())


def require_allowed_path(field: str, name: str, settings: Settings, patterns: Sequence[str]) -> None:
    """`patterns` are the hub ids that are allowed; without any, only what is local is.

    Of a directory, what it links to has to be allowed too, down to the files of its splits.
    """
    try:
        path = Path(name).expanduser()
        is_hub_id = patterns and _HUB_ID.fullmatch(name) and not os.path.lexists(path)
        real = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise InvalidInput(f"{field}: {name!r} is neither a hub id nor a path: {error}") from None
    if is_hub_id and not any(fnmatchcase(name, pattern) for pattern in patterns):
        raise InvalidInput(
            f"{field}: expected a hub id that matches {' or '.join(patterns)}, got {name!r}. The operator allows more "
            "with BERGSON_ALLOWED_MODELS and BERGSON_ALLOWED_DATASETS"
        )
    if is_hub_id:
        return
    links = (one for one in chain(real.glob("*"), real.glob("*/*")) if one.is_symlink())
    if not settings.may_read(real):
        wrong = name
    elif not (wrong := next((str(one) for one in links if not _leads_to_allowed(one, settings)), "")):
        return
    allowed = ", ".join(str(root) for root in settings.readable_roots)
    raise InvalidInput(
        f"{field}: expected a {'hub id or a ' * bool(patterns)}path below {allowed}, outside of what the service "
        f"itself keeps there; got {wrong!r}. The operator allows more with BERGSON_ALLOWED_ROOTS"
    )


def _leads_to_allowed(link: Path, settings: Settings) -> bool:
    try:
        return settings.may_read(link.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return False


@contextmanager
def _read_from_file(job: BuildJob, uploads: Path) -> Iterator[BuildSpec]:
    """The job's spec, with inline documents moved to a file of `uploads` while the context is open.

    The file bears the name of its content, so that a build that is taken up again has the same fingerprint, and
    of the index, so that it is this job's alone.
    """
    if job.spec.documents is None:
        yield job.spec
        return
    path = _write(job.spec.documents, uploads, job.index)
    dataset = DatasetSpec(path=str(path), split="train")
    try:
        yield job.spec.model_copy(update={"documents": None, "dataset": dataset})
    except (LeaseLost, IndexBusy):
        raise  # another worker is reading it
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    path.unlink(missing_ok=True)


def _write(documents: Iterable[InlineDocument], uploads: Path, index: str) -> Path:
    """Writes one JSON object a line, all or nothing; returns uploads/<index>-<sha256>.jsonl."""
    content = "".join(json.dumps(document) + "\n" for document in documents).encode()
    path = uploads / f"{index}-{hashlib.sha256(content).hexdigest()}.jsonl"
    uploads.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return path
