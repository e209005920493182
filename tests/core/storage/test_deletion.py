"""Whatever stands in the place of an index can be deleted, except while a process writes it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from bergson_core.errors import IndexBusy, IndexNotFound
from bergson_core.storage.deletion import delete_index
from bergson_core.storage.index_lock import find_writer, lock_index
from bergson_core.storage.layout import LOCK_FILE


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")


LEFTOVERS: dict[str, Callable[[Path], object]] = {
    "an empty directory": Path.mkdir,
    "a lock alone": lambda path: write(path / LOCK_FILE),
    "shards without a stamp": lambda path: write(path / "shards" / "00000" / "gradients.bin"),
    "a stamp alone": lambda path: write(path / "building.json"),
    "half of a stamp": lambda path: write(path / ".building.json.0123.tmp"),
    "statistics alone": lambda path: write(path / "statistics" / "done"),
    "files of somebody else": lambda path: write(path / "notes.txt"),
    "a file": write,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("leftover", LEFTOVERS.values(), ids=LEFTOVERS)
def test_what_is_left_in_the_place_of_an_index_is_deleted(tmp_path: Path, leftover: Callable[[Path], object]):
    leftover(tmp_path / "facts")
    delete_index(tmp_path / "facts")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(IndexNotFound):
        delete_index(tmp_path / "facts")


def test_a_link_is_deleted_and_not_what_it_leads_to(tmp_path: Path):
    write(tmp_path / "elsewhere" / "manifest.json")
    (tmp_path / "facts").symlink_to(tmp_path / "elsewhere")
    delete_index(tmp_path / "facts")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    assert (tmp_path / "elsewhere" / "manifest.json").exists()


def test_nothing_is_deleted_while_a_process_writes_and_the_error_names_it(tmp_path: Path):
    write(tmp_path / "facts" / "building.json")
    with lock_index(tmp_path / "facts"), pytest.raises(IndexBusy, match=r"\(process \d+ on .+\)"):
        delete_index(tmp_path / "facts")
    assert (tmp_path / "facts" / "building.json").exists()


def test_what_a_killed_call_has_renamed_is_removed_by_the_next(tmp_path: Path):
    write(tmp_path / ".deleted-0123" / "shards" / "x")
    write(tmp_path / "facts" / "x")
    delete_index(tmp_path / "facts")
    assert list(tmp_path.iterdir()) == []


def test_the_lock_keeps_out_releases_that_lock_the_same_file_with_filelock(tmp_path: Path):
    with FileLock(tmp_path / LOCK_FILE), pytest.raises(IndexBusy), lock_index(tmp_path):
        pass
    with lock_index(tmp_path), pytest.raises(TimeoutError), FileLock(tmp_path / LOCK_FILE, timeout=0):
        pass


def test_the_writer_of_a_directory_is_known_while_it_writes(tmp_path: Path):
    assert find_writer(tmp_path) is None and find_writer(tmp_path / "absent") is None
    with lock_index(tmp_path):
        writer = find_writer(tmp_path)
        assert writer is not None and writer.startswith("another process (process ")
    assert find_writer(tmp_path) is None
    (tmp_path / LOCK_FILE).write_bytes(b"\x00\xff" * 1000)
    with FileLock(tmp_path / LOCK_FILE):
        assert find_writer(tmp_path) == "another process"


def test_a_directory_that_is_deleted_while_its_lock_is_waited_for_is_not_written(tmp_path: Path, monkeypatch):
    (tmp_path / "facts").mkdir()

    def delete_first(handle: int) -> bool:
        (tmp_path / "facts" / LOCK_FILE).rename(tmp_path / "moved")
        return True

    monkeypatch.setattr("bergson_core.storage.index_lock.try_lock", delete_first)
    with pytest.raises(IndexBusy, match="removed"), lock_index(tmp_path / "facts"):
        pass
