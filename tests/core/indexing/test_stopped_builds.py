"""Nothing of a build goes on once its call has raised an error: its directory is free for the next build at once."""

import shutil
import threading
import time
from pathlib import Path

import pytest
import torch

from bergson_core import append_documents, build_index, compact_index, fit_profile
from bergson_core.errors import Cancelled, IndexCorrupt
from bergson_core.indexing import publish
from bergson_core.schemas.build import BuildSpec, GradientSpec
from bergson_core.schemas.results import Progress
from bergson_core.storage.deletion import delete_index
from bergson_core.storage.index_lock import lock_index
from bergson_core.storage.takedown_log import record_takedown
from bergson_core.utils import background
from tests.core.helpers import add_again_spec, file_hashes, make_spec, stop_after

STAGES = ("load", "read", "statistics", "gradients", "preconditioner", "search", "measure")
KINDS = {
    "adafactor": {},
    "kfac": {"gradients": GradientSpec(projection_dim=4, normalizer="kfac")},
    "signs": {"gradients": GradientSpec(projection_dim=4, rows="sign")},
}


class SlowWork:
    """Counts the work of builds that runs in threads, and makes each piece of it take a while longer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.running = 0
        run = background.iterate_while_running

        def run_slowly(work, item):
            return (yield from run(lambda: self._count(work), item))

        monkeypatch.setattr(background, "iterate_while_running", run_slowly)
        monkeypatch.setattr("bergson_core.indexing.shard_builder.iterate_while_running", run_slowly)

    def _count(self, work):
        self.running += 1
        try:
            time.sleep(0.05)
            return work()
        finally:
            self.running -= 1


def cancel_in(stage: str):
    def report(progress: Progress) -> None:
        if progress.stage == stage:
            raise Cancelled("x")

    return report


def require_free(work: SlowWork, directory: Path) -> None:
    assert work.running == 0
    with lock_index(directory):
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_a_build_that_is_cancelled_at_any_stage_has_ended_and_can_be_built_again(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    spec = make_spec(sources, **KINDS[kind])
    build_index(spec, tmp_path / "undisturbed", shard_rows=16)
    work, path, cancelled = SlowWork(monkeypatch), tmp_path / "facts", 0
    for stage in STAGES:
        try:
            build_index(spec, path, shard_rows=16, report=cancel_in(stage))
        except Cancelled:  # its traceback keeps everything alive here that has not ended
            require_free(work, path)
            cancelled += 1
        delete_index(path)
    assert cancelled >= len(STAGES) - 1
    build_index(spec, path, shard_rows=16)
    assert file_hashes(path) == file_hashes(tmp_path / "undisturbed")


def test_a_cancelled_build_decomposes_no_further_matrix(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    begun = threading.Event()
    matrices = []

    def eigh(matrix):
        matrices.append(matrix)
        begun.set()
        time.sleep(0.2)
        return torch.linalg.eigh(matrix)

    def report(progress: Progress) -> None:
        if progress.stage == "preconditioner" and begun.is_set():
            raise Cancelled("x")

    save = publish.save_preconditioner

    def save_slowly(output, total, rows, damping, _eigh):
        return save(output, total, rows, damping, eigh)

    monkeypatch.setattr(publish, "save_preconditioner", save_slowly)
    with pytest.raises(Cancelled):
        build_index(make_spec(sources), tmp_path / "facts", report=report)
    assert 1 <= len(matrices) <= 2
    assert not (tmp_path / "facts" / "profiles").exists()


def test_an_error_of_the_work_itself_leaves_no_thread_either(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    work = SlowWork(monkeypatch)

    def fail(*arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(publish, "save_preconditioner", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        build_index(make_spec(sources), tmp_path / "facts")
    require_free(work, tmp_path / "facts")


@pytest.mark.parametrize("stage", ["preconditioner", "search"])
def test_fitting_a_profile_can_be_cancelled(index_copy: Path, sample, monkeypatch, stage: str):
    fit_profile(index_copy, "first", sample, mixing=0.5)
    before, work = file_hashes(index_copy), SlowWork(monkeypatch)
    with pytest.raises(Cancelled):
        fit_profile(index_copy, "second", sample, mixing=0.5, report=cancel_in(stage))
    require_free(work, index_copy)
    assert file_hashes(index_copy) == before
    assert fit_profile(index_copy, "second", sample, mixing=0.5).generation == 3


def test_a_compaction_can_be_cancelled(index_copy: Path, monkeypatch):
    record_takedown(index_copy, "doc-1", lambda: 1)
    work = SlowWork(monkeypatch)
    for stage in ("compact", "search"):
        with pytest.raises(Cancelled):
            compact_index(index_copy, report=cancel_in(stage))
        require_free(work, index_copy)
    assert compact_index(index_copy).rows == 39


def test_a_build_that_was_killed_before_its_stamp_was_written_is_no_obstacle(spec: BuildSpec, tmp_path: Path):
    path = tmp_path / "facts"
    path.mkdir()
    (path / ".building.json.0123.tmp").write_text('{"spec"')
    build_index(spec, path)
    assert not list(path.glob("*.tmp"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_build_whose_statistics_were_damaged_while_it_was_stopped_starts_again(
    sources: Path, tmp_path: Path, kind: str
):
    spec = make_spec(sources, **KINDS[kind])
    undisturbed = tmp_path / "undisturbed"
    build_index(spec, undisturbed, shard_rows=16)
    stopped = tmp_path / "stopped"
    with pytest.raises(Cancelled):
        build_index(spec, stopped, shard_rows=16, report=stop_after(16))
    parts = [stopped / part for part in ("statistics", "profiles")]
    names = [path.relative_to(stopped) for part in parts for path in part.rglob("*") if path.is_file()]
    assert Path("statistics/done") in names
    assert (stopped / "shards" / "00000").is_dir()
    for number, name in enumerate(sorted(names)):
        copy = tmp_path / str(number)
        shutil.copytree(stopped, copy)
        content = (copy / name).read_bytes()
        middle = len(content) // 2
        if number % 3 == 0:
            (copy / name).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        elif number % 3 == 1:
            (copy / name).write_bytes(content[:middle])
        else:
            (copy / name).unlink()
        build_index(spec, copy, shard_rows=16)
        assert file_hashes(copy) == file_hashes(undisturbed)


def test_an_append_to_an_index_whose_stamp_of_the_statistics_was_altered_is_refused_by_name(index_copy: Path):
    stamp = index_copy / "statistics" / "done"
    stamp.write_bytes(stamp.read_bytes().replace(b'"budget_tokens": ', b'"budget_tokens": 1'))
    with pytest.raises(IndexCorrupt, match="statistics/done"):
        append_documents(index_copy, add_again_spec())
