"""A process that hangs in a takedown is named, and keeps nobody waiting for long."""

import threading
import time
from pathlib import Path

import pytest

from bergson_core import compact_index, take_down_document
from bergson_core.errors import Cancelled, IndexBusy
from bergson_core.schemas.results import Progress
from bergson_core.storage import index_lock
from bergson_core.storage.index_lock import find_writer, lock_takedowns
from bergson_core.storage.takedown_log import protect_takedowns
from tests.processes import stopped_takedown


def test_a_process_that_hangs_in_a_takedown_is_named_and_later_calls_are_refused_at_once(tmp_path: Path):
    with stopped_takedown(tmp_path, stopped_s=60) as pid:
        assert f"(process {pid} on " in (find_writer(tmp_path) or "")
        started = time.monotonic()
        with pytest.raises(IndexBusy, match=rf"\(process {pid} on "), lock_takedowns(tmp_path):
            pass
        assert time.monotonic() - started < 1.5
    assert find_writer(tmp_path) is None
    with lock_takedowns(tmp_path):
        assert find_writer(tmp_path) is None  # a takedown that has just begun is no obstacle


def test_a_clock_that_was_set_back_makes_nobody_wait_for_ever(tmp_path: Path):
    with (
        stopped_takedown(tmp_path, stopped_s=-3600),
        pytest.raises(IndexBusy),
        lock_takedowns(tmp_path),
    ):
        pass


def test_takedowns_that_come_at_once_wait_for_each_other_however_many_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(index_lock, "TAKEDOWN_PATIENCE_S", 1.0)
    seen: list[int] = []

    def hold() -> None:
        with lock_takedowns(tmp_path):
            time.sleep(0.1)
            seen.append(1)

    threads = [threading.Thread(target=hold) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 20


def test_a_generation_that_is_to_be_published_waits_for_longer_than_a_takedown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(index_lock, "TAKEDOWN_PATIENCE_S", 0.1)
    with stopped_takedown(tmp_path, stopped_s=5):
        waiting = threading.Thread(target=protect_takedowns, args=[tmp_path])
        waiting.start()
        waiting.join(1)
        assert waiting.is_alive()
    waiting.join()
    assert (tmp_path / "takedowns.head.json").exists() or not (tmp_path / "takedowns.jsonl").exists()


def test_a_job_that_waits_to_publish_can_be_cancelled_and_one_that_begins_does_no_work(index_copy: Path):
    take_down_document(index_copy, "doc-7")
    with stopped_takedown(index_copy, stopped_s=5):
        reports: list[Progress] = []
        with pytest.raises(IndexBusy, match="takedown"):
            compact_index(index_copy, report=reports.append)
        assert not reports
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bergson_core.indexing.output_directory.find_hung_takedown", lambda root: None)

        def cancel(progress: Progress) -> None:
            reports.append(progress)
            if len(reports) > 40:
                raise Cancelled("cancelled on request")

        with stopped_takedown(index_copy), pytest.raises(Cancelled):
            compact_index(index_copy, report=cancel)
    assert compact_index(index_copy).rows == 39
