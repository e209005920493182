"""What each kind of job does to the data directory, over a fake core."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from bergson_core.errors import Cancelled, ColumnNotFound, IndexExists, InvalidInput, LeaseLost
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.results import Progress
from tests.worker.fakes import FakeCore, make_spec, publish_index
from worker.messages import JOB_ADAPTER, BuildJob
from worker.process import job_handlers
from worker.process.index_cache import IndexCache
from worker.settings import Settings

ONE_REDIS = True


def run_build(
    settings: Settings,
    spec: BuildSpec,
    report: Callable[[Progress], None] = lambda progress: None,
    index: str = "facts",
) -> None:
    job = BuildJob(job_id="j-1", index=index, spec=spec, request_id="r")
    job_handlers.run_build(job, settings, report, lambda: None)


def list_uploads(settings: Settings) -> list[Path]:
    return list(settings.uploads_dir.iterdir())


def test_inline_documents_are_read_from_a_file_that_is_removed_afterwards(core: FakeCore, settings: Settings):
    documents = ({"text": "é\nü", "n": 1}, {"text": "a line\u2028separator"})
    content = []
    core.during = lambda number: content.append(list_uploads(settings)[0].read_text())
    run_build(settings, make_spec(documents=documents))
    assert [json.loads(line) for line in content[0].splitlines()] == list(documents)
    built, directory = core.builds[0]
    assert directory == settings.data_dir / "indexes" / "facts"
    assert built.documents is None
    assert built.dataset is not None
    assert built.columns == make_spec().columns
    assert list_uploads(settings) == []


def test_an_error_of_inline_documents_names_no_file_of_the_service(core: FakeCore, settings: Settings):
    def fail(number: int) -> None:
        raise ColumnNotFound(f"{list_uploads(settings)[0]}: row 1 of column 'year' is text")

    core.during = fail
    with pytest.raises(ColumnNotFound, match=r"^documents: row 1 of column 'year' is text$"):
        run_build(settings, make_spec())


def test_the_same_documents_give_the_same_build(core: FakeCore, settings: Settings):
    run_build(settings, make_spec())
    (settings.indexes_dir / "facts" / "manifest.json").unlink()
    run_build(settings, make_spec())
    assert core.builds[0][0].fingerprint() == core.builds[1][0].fingerprint()


@pytest.mark.parametrize("error", [InvalidInput("x"), Cancelled("x"), LeaseLost("x")])
@pytest.mark.parametrize("is_read", [False, True])
def test_the_file_stays_only_where_another_worker_reads_it(
    core: FakeCore, settings: Settings, error: Exception, is_read: bool
):
    def fail(number: int) -> None:
        if is_read:
            core.during = fail_alone
            with pytest.raises(type(error)):
                run_build(settings, make_spec())  # another worker, which ends first
            assert len(list_uploads(settings)) == 1
        raise error

    def fail_alone(number: int) -> None:
        raise error

    core.during = fail
    with pytest.raises(type(error)):
        run_build(settings, make_spec())
    assert list_uploads(settings) == []


def test_the_setting_chooses_the_executor_of_builds_and_indexes(core: FakeCore, settings: Settings):
    on_ray = settings.model_copy(update={"executor": "ray"})
    run_build(on_ray, make_spec())
    IndexCache(on_ray.indexes_dir, 1, on_ray.executor).get("facts")
    run_build(settings, make_spec(), index="other")
    assert core.executors == ["ray", "ray", "local"]


def test_jobs_with_the_same_documents_do_not_share_a_file(core: FakeCore, settings: Settings):
    def nested(number: int) -> None:
        core.during = lambda number: None
        run_build(settings, make_spec(), index="other")
        assert len(list_uploads(settings)) == 1

    core.during = nested
    run_build(settings, make_spec())


def test_an_unfinished_build_of_another_spec_is_replaced(core: FakeCore, settings: Settings):
    def stop(progress: Progress) -> None:
        raise Cancelled("x")

    with pytest.raises(Cancelled):
        run_build(settings, make_spec(), stop)
    run_build(settings, make_spec(model="another"))
    assert (settings.indexes_dir / "facts" / "manifest.json").exists()


def test_a_published_index_is_never_replaced(core: FakeCore, settings: Settings):
    directory = settings.indexes_dir / "facts"
    publish_index(directory)
    (directory / "building.json").write_text("of an older build")
    with pytest.raises(IndexExists):
        run_build(settings, make_spec(model="another"))
    assert not job_handlers.discard_unfinished(directory)
    assert (directory / "manifest.json").exists()


@pytest.mark.parametrize(
    "name",
    [
        "takedowns.jsonl",
        "takedowns.head.json",
        ".checked.json",
        "search/flat/00000.faiss",
        ".env",
        "profiles/x",
    ],
)
def test_what_was_published_or_put_there_is_not_discarded(tmp_path: Path, name: str):
    for file in (name, "shards/00000/gradients.bin", "statistics/done"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("x")
    assert not job_handlers.discard_unfinished(tmp_path)
    assert (tmp_path / name).exists()
    (tmp_path / name).unlink()
    assert job_handlers.discard_unfinished(tmp_path)


def test_only_an_unfinished_build_that_nobody_works_on_is_discarded(tmp_path: Path):
    assert not job_handlers.discard_unfinished(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("mine")
    assert not job_handlers.discard_unfinished(tmp_path)
    (tmp_path / "building.json").write_text("{}")
    with FileLock(tmp_path / ".lock"):
        assert not job_handlers.discard_unfinished(tmp_path)
    assert job_handlers.discard_unfinished(tmp_path)
    assert not tmp_path.exists()


@pytest.mark.parametrize("kind", ["append", "profile"])
def test_an_append_or_profile_with_a_forbidden_path_is_refused(settings: Settings, tmp_path: Path, kind: str):
    publish_index(settings.indexes_dir / "facts")
    spec = {"dataset": {"path": "/etc/passwd"}} | ({"name": "law"} if kind == "profile" else {})
    job = JOB_ADAPTER.validate_python(
        {"kind": kind, "job_id": "j-1", "index": "facts", "request_id": "r", "spec": spec}
    )
    with pytest.raises(InvalidInput, match=r"dataset\.path: expected"):
        job_handlers.run_job(job, settings, lambda progress: None, lambda: None, IndexCache(tmp_path, 1).get)


def test_of_a_published_index_only_the_files_of_a_stopped_change_are_removed(tmp_path: Path):
    publish_index(tmp_path)
    (tmp_path / "shards" / "00007").mkdir(parents=True)
    (tmp_path / "shards" / "00007" / "rows.arrow").write_text("half")
    (tmp_path / "takedowns.jsonl").write_text("")
    assert not job_handlers.discard_unfinished(tmp_path)
    assert not (tmp_path / "shards" / "00007").exists()
    assert {path.name for path in tmp_path.iterdir()} >= {"manifest.json", "takedowns.jsonl"}


def test_a_job_with_a_forbidden_path_builds_nothing(core: FakeCore, settings: Settings):
    with pytest.raises(InvalidInput):
        run_build(settings, make_spec(model="/etc"))
    assert core.builds == []
