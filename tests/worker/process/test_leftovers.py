"""What killed jobs and workers have left is removed, and nothing else."""

import os
import time
from pathlib import Path

import pytest
from redis import Redis

from bergson_core.storage.index_lock import lock_index
from bergson_core.utils.file_locks import try_lock
from tests.worker.fakes import FakeCore, make_spec, publish_index
from tests.worker.helpers import read_record, submit_job, wait_until
from worker.messages import BuildJob
from worker.process import job_handlers
from worker.process.leftovers import list_index_directories, remove_leftovers
from worker.queue import redis_keys as keys
from worker.settings import Settings

ONE_REDIS = True

WEEK_S = 7 * 24 * 3600


def write(path: Path, age_s: float = 0) -> Path:
    """Writes a file that is so many seconds old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    written_at = time.time() - age_s
    os.utime(path, (written_at, written_at))
    return path


def age(directory: Path, age_s: float) -> None:
    """Makes a directory and all that is in it so many seconds old."""
    written_at = time.time() - age_s
    for path in (*directory.rglob("*"), directory):
        os.utime(path, (written_at, written_at))


def sweep(settings: Settings, *active: str) -> None:
    directories = list_index_directories(settings)
    remove_leftovers(settings, [directory for directory in directories if directory.name not in active])


def test_inline_documents_stay_exactly_while_a_process_reads_them(settings: Settings):
    read, left = (write(settings.uploads_dir / f"{name}-0123.jsonl") for name in ("read", "left"))
    with read.open("rb") as file:
        try_lock(file, shared=True)
        sweep(settings)
        assert (read.exists(), left.exists()) == (True, False)
    sweep(settings)
    assert not read.exists()


def test_the_documents_of_a_running_build_are_never_removed(core: FakeCore, settings: Settings):
    core.during = lambda number: sweep(settings)
    seen = []
    core.after_publish = lambda: seen.extend(settings.uploads_dir.iterdir())
    job = BuildJob(job_id="j-1", index="facts", spec=make_spec(), request_id="r")
    job_handlers.run_build(job, settings, lambda progress: None, lambda: None)
    assert len(seen) == 1 and list(settings.uploads_dir.iterdir()) == []


@pytest.mark.parametrize(
    "names",
    [
        (".lock",),
        (".lock", ".building.json.0123.tmp"),
        ("building.json",),
        (
            *(
                "building.json",
                ".checked.json",
                "takedowns.head.json",
                "documents.arrow",
                ".documents.arrow.tmp",
            ),
            *("statistics/done", "statistics/processor.json", "statistics/.done.0123.tmp"),
            *("shards/00000/gradients.bin", "shards/00000/shard.json", "shards/.00001.0123.tmp/rows.arrow"),
            *("profiles/default/preconditioner.safetensors", "profiles/default/00000.lengths.bin"),
            "search/flat/00000.faiss",
        ),
    ],
)
def test_an_unfinished_build_is_removed_a_week_after_its_last_write(settings: Settings, names: tuple[str]):
    for directory, age_s in (("old", WEEK_S + 60), ("young", WEEK_S - 60)):
        for name in names:
            write(settings.indexes_dir / directory / name)
        age(settings.indexes_dir / directory, age_s)
    sweep(settings)
    assert [path.name for path in settings.indexes_dir.iterdir()] == ["young"]


def test_an_unfinished_build_of_a_queued_job_or_of_a_process_that_writes_is_kept(settings: Settings):
    for name in ("queued", "written"):
        write(settings.indexes_dir / name / "building.json")
    with lock_index(settings.indexes_dir / "written"):
        age(settings.indexes_dir, 2 * WEEK_S)
        sweep(settings, "queued")
    assert {path.name for path in settings.indexes_dir.iterdir()} == {"queued", "written"}


def test_what_no_build_writes_and_what_is_published_is_kept(settings: Settings):
    write(settings.indexes_dir / "mine" / "notes.txt")
    published = settings.indexes_dir / "facts"
    publish_index(published)
    write(published / "building.json")
    age(settings.indexes_dir, 2 * WEEK_S)
    sweep(settings)
    assert (settings.indexes_dir / "mine" / "notes.txt").exists()
    assert (published / "manifest.json").exists()


PUBLISHED = (
    *("statistics/done", "shards/00000/gradients.bin", "shards/00000/rows.arrow", "search/flat/00000.faiss"),
    *(".checked.json", ".lock", ".takedowns.lock", "takedowns.head.json"),
)


@pytest.mark.parametrize(
    "names",
    [
        PUBLISHED,
        (*PUBLISHED, "takedowns.jsonl"),
        ("shards/00000/gradients.bin",),
        ("statistics/done",),
        ("takedowns.jsonl",),
        ("building.json", "takedowns.jsonl"),
    ],
)
def test_an_index_that_has_lost_its_manifest_is_kept(settings: Settings, names: tuple[str]):
    for name in names:
        write(settings.indexes_dir / "facts" / name)
    age(settings.indexes_dir, 2 * WEEK_S)
    sweep(settings)
    assert all((settings.indexes_dir / "facts" / name).exists() for name in names)


@pytest.mark.parametrize(
    "name", [".env", "profiles/thesis.tex", "shards/notes", "statistics/old/done", "model/config.json"]
)
@pytest.mark.parametrize("others", [(), ("building.json", "shards/00000/gradients.bin")])
def test_a_directory_with_a_file_that_no_build_writes_is_kept(
    settings: Settings, name: str, others: tuple[str]
):
    for file in (name, *others):
        write(settings.indexes_dir / "mine" / file)
    age(settings.indexes_dir, 2 * WEEK_S)
    sweep(settings)
    assert (settings.indexes_dir / "mine" / name).exists()


def test_what_a_killed_append_left_is_removed_once_no_job_has_the_index(settings: Settings):
    directory = settings.indexes_dir / "facts"
    publish_index(directory)
    write(directory / ".appending-0123" / "documents.arrow")
    write(directory / "shards" / "00001" / "gradients.bin")
    sweep(settings, "facts")
    assert (directory / ".appending-0123").exists()
    sweep(settings)
    files = {path.name for path in directory.rglob("*") if path.is_file()}
    assert files - {".lock"} == {"manifest.json"}


def test_old_temporary_files_and_deleted_indexes_are_removed(settings: Settings):
    directory = settings.indexes_dir / "facts"
    publish_index(directory)
    parents = (directory, settings.data_dir, settings.uploads_dir)
    old = [write(parent / ".checked.json.0123.tmp", 7200) for parent in parents]
    young = [write(parent / ".checked.json.4567.tmp") for parent in parents]
    write(settings.indexes_dir / ".deleted-0123" / "manifest.json")
    sweep(settings)
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in young)
    assert not (settings.indexes_dir / ".deleted-0123").exists()


def test_a_directory_that_cannot_be_swept_does_not_stop_the_worker(
    redis: Redis, core: FakeCore, settings: Settings, start_worker, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr("worker.process.runner.remove_leftovers", fail)
    start_worker()
    submit_job(redis, index="new")
    assert wait_until(lambda: read_record(redis).finished_at)


def test_a_job_that_was_killed_and_then_cancelled_leaves_nothing(
    redis: Redis, core: FakeCore, settings: Settings, start_worker, make_queue
):
    submit_job(redis, index="new")
    assert make_queue("killed").take_job() is not None
    write(settings.indexes_dir / "new" / "building.json")
    write(settings.uploads_dir / "new-0123.jsonl")
    redis.hset(keys.job_key("j-1"), "cancel", "1")
    redis.zadd(keys.JOB_LEASES, {"j-1": 1})
    start_worker()
    wait_until(lambda: read_record(redis).state == "cancelled")
    wait_until(lambda: not list(settings.uploads_dir.iterdir()))
    assert list(settings.indexes_dir.iterdir()) == []
