"""The log of takedowns says when it is damaged, and no killed process damages it."""

import json
import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bergson_core.errors import DiskFull, IndexCorrupt, ReadOnly
from bergson_core.storage import takedown_log
from bergson_core.storage.takedown_log import TakedownLog, protect_takedowns, record_takedown

LOG, HEAD = "takedowns.jsonl", "takedowns.head.json"
IDS = ("doc-1", 'ü", "sha256": "' + "0" * 64 + '"}', "doc-3")


def read_ids(root: Path) -> list[str]:
    return [line["id"] for line in TakedownLog(root).read_new_lines()]


def take_down(root: Path, *ids: str) -> None:
    for document_id in ids:
        record_takedown(root, document_id, lambda: 1)


def write_old_log(root: Path, *ids: str) -> bytes:
    """Writes a log as release 0.1.0 wrote it."""
    lines = [json.dumps({"id": name, "generation": 1, "at": "2026-01-01T00:00:00+00:00"}) for name in ids]
    content = "".join(f"{line}\n" for line in lines).encode()
    (root / LOG).write_bytes(content)
    return content


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with three takedowns."""
    take_down(tmp_path, *IDS)
    return tmp_path


def test_a_changed_bit_of_any_byte_of_the_log_and_of_its_head_is_noticed(root: Path):
    seeded = random.Random(0)
    for name in (LOG, HEAD):
        content = (root / name).read_bytes()
        for position in range(len(content)):
            altered = bytearray(content)
            altered[position] ^= 1 << seeded.randrange(8)
            (root / name).write_bytes(altered)
            with pytest.raises(IndexCorrupt, match="takedowns of the index"):
                read_ids(root)
        (root / name).write_bytes(content)
    assert read_ids(root) == list(IDS)


def test_every_lost_end_of_the_log_and_of_its_head_is_noticed_by_readers_and_by_writers(root: Path):
    for name in (LOG, HEAD):
        content = (root / name).read_bytes()
        for length in range(len(content)):
            (root / name).write_bytes(content[:length])
            with pytest.raises(IndexCorrupt):
                read_ids(root)
            with pytest.raises(IndexCorrupt):
                take_down(root, "doc-4")
            assert (root / name).read_bytes() == content[:length]
        (root / name).write_bytes(content)


@pytest.mark.parametrize("name", [LOG, HEAD])
def test_a_file_that_is_gone_is_noticed(root: Path, name: str):
    reader = TakedownLog(root)
    reader.skip_to_end()
    (root / name).unlink()
    for read in (lambda: read_ids(root), reader.read_new_lines, lambda: take_down(root, "doc-4")):
        with pytest.raises(IndexCorrupt, match=name):
            read()


def test_the_loss_of_both_files_is_noticed_by_who_knows_the_manifest(root: Path):
    least = protect_takedowns(root)
    (root / LOG).unlink()
    (root / HEAD).unlink()
    with pytest.raises(IndexCorrupt, match=r"head\.json is missing"):
        TakedownLog(root, least).read_new_lines()


def test_an_older_copy_of_both_files_is_noticed_by_who_knows_the_manifest(root: Path):
    copies = {name: (root / name).read_bytes() for name in (LOG, HEAD)}
    take_down(root, "doc-4")
    least = protect_takedowns(root)
    for name, content in copies.items():
        (root / name).write_bytes(content)
    with pytest.raises(IndexCorrupt, match="3 lines, which are not the 4"):
        TakedownLog(root, least).read_new_lines()


def test_swapped_repeated_and_missing_lines_are_noticed(root: Path):
    first, second, third = (root / LOG).read_bytes().splitlines(keepends=True)
    for lines in (
        [second, first, third],
        [first, third],
        [first, first, second, third],
        [first, second, third, third],
    ):
        (root / LOG).write_bytes(b"".join(lines))
        with pytest.raises(IndexCorrupt):
            read_ids(root)


def test_half_a_line_is_a_crash_that_the_next_takedown_mends(root: Path):
    content = (root / LOG).read_bytes()
    reader, skipping = TakedownLog(root), TakedownLog(root)
    for length in range(1, len(content.splitlines()[-1])):
        (root / LOG).write_bytes(content + content.splitlines()[-1][:length])
        assert read_ids(root) == list(IDS)
    assert len(reader.read_new_lines()) == 3
    skipping.skip_to_end()
    take_down(root, "doc-4")
    assert [line["id"] for line in reader.read_new_lines()] == ["doc-4"]
    assert [line["id"] for line in skipping.read_new_lines()] == ["doc-4"]
    assert read_ids(root) == [*IDS, "doc-4"]


def test_a_takedown_that_was_written_but_not_acknowledged_is_vouched_for_by_the_next_call(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    head = (root / HEAD).read_bytes()
    take_down(root, "doc-4")
    (root / HEAD).write_bytes(head)  # as if the process had been killed before it replaced the head

    def refuse() -> int:
        raise LookupError("the index has no such document")

    with pytest.raises(LookupError):
        record_takedown(root, "doc-4", refuse)
    content = (root / LOG).read_bytes()
    (root / LOG).write_bytes(content[: content[:-1].rfind(b"\n") + 1])
    with pytest.raises(IndexCorrupt):
        read_ids(root)


def test_a_log_of_an_old_release_opens_and_its_lines_are_covered_from_the_next_line_on(tmp_path: Path):
    old = write_old_log(tmp_path, "a", "b")
    assert read_ids(tmp_path) == ["a", "b"]
    take_down(tmp_path, "c")
    assert (tmp_path / LOG).read_bytes().startswith(old)
    assert read_ids(tmp_path) == ["a", "b", "c"]
    (tmp_path / LOG).write_bytes((tmp_path / LOG).read_bytes().replace(b'"a"', b'"x"'))
    with pytest.raises(IndexCorrupt):
        read_ids(tmp_path)


def test_a_log_of_an_old_release_is_covered_once_it_is_protected(tmp_path: Path):
    content = write_old_log(tmp_path, "a", "b")
    protect_takedowns(tmp_path)
    assert (tmp_path / LOG).read_bytes() == content
    (tmp_path / LOG).write_bytes(content[: content.index(b"\n") + 1])
    with pytest.raises(IndexCorrupt):
        read_ids(tmp_path)


def test_a_line_without_a_digest_is_refused_after_the_head(root: Path):
    with (root / LOG).open("a") as file:
        file.write('{"id": "doc-9", "generation": 1, "at": "2026-01-01"}\n')
    with pytest.raises(IndexCorrupt, match="line 4"):
        read_ids(root)


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"id": 1, "generation": 1}', '{"id": "a"}', '{"id": "a", "generation": "x"}']
)
def test_a_line_of_an_old_release_that_cannot_be_read_is_named(tmp_path: Path, line: str):
    write_old_log(tmp_path, "a")
    with (tmp_path / LOG).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(IndexCorrupt, match=f"line 2 of {LOG} cannot be read"):
        read_ids(tmp_path)


def test_a_reader_that_runs_beside_a_writer_never_sees_damage(tmp_path: Path):
    pid = os.fork()
    if not pid:
        take_down(tmp_path, *map(str, range(300)))
        os._exit(0)
    reader, seen = TakedownLog(tmp_path), 0
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        seen += len(reader.read_new_lines())
        skipping = TakedownLog(tmp_path)
        skipping.skip_to_end()
        assert skipping.end.lines <= len(read_ids(tmp_path))
    assert seen + len(reader.read_new_lines()) == 300


def test_the_log_of_a_deleted_index_is_empty_and_that_of_its_successor_is_no_damage(tmp_path: Path):
    old = tmp_path / "facts"
    old.mkdir()
    take_down(old, *IDS)
    reader = TakedownLog(old)
    reader.skip_to_end()
    old.rename(tmp_path / ".deleted")
    assert reader.read_new_lines() == []
    old.mkdir()
    assert reader.read_new_lines() == []
    take_down(old, "new")
    assert [line["id"] for line in reader.read_new_lines()] == ["new"]


@pytest.mark.parametrize("later", [(), ("doc-5",), ("doc-5", "doc-6"), ("doc-44",), ("doc-5", *"abcdef")])
def test_a_reader_reads_a_restored_log_from_its_beginning_and_follows_it(root: Path, later: tuple[str, ...]):
    copies = {name: (root / name).read_bytes() for name in (LOG, HEAD)}
    take_down(root, "doc-4")
    reader = TakedownLog(root)
    assert len(reader.read_new_lines()) == 4
    for name, content in copies.items():
        (root / name).write_bytes(content)
    take_down(root, *later)
    assert [line["id"] for line in reader.read_new_lines()] == [*IDS, *later]
    take_down(root, "doc-9")
    assert [line["id"] for line in reader.read_new_lines()] == ["doc-9"]


def test_a_reader_refuses_a_damaged_log_until_it_is_restored(root: Path):
    copies = {name: (root / name).read_bytes() for name in (LOG, HEAD)}
    reader = TakedownLog(root)
    reader.read_new_lines()
    (root / LOG).write_bytes(copies[LOG][:-9])
    for _ in range(2):
        with pytest.raises(IndexCorrupt):
            reader.read_new_lines()
    (root / LOG).write_bytes(copies[LOG])
    assert reader.read_new_lines() == []


@pytest.mark.parametrize(
    "change",
    [
        *({field: -1} for field in ("lines", "bytes")),
        *({field: None} for field in ("lines", "bytes", "sha256")),
        *({field: 10**30} for field in ("lines", "bytes")),
        {"bytes": "300"},
        {"lines": True},
        {"other": 1},
    ],
)
def test_a_head_with_a_wrong_or_missing_number_is_refused_by_name(root: Path, change: dict[str, Any]):
    content = json.loads((root / HEAD).read_bytes()) | change
    for altered in (content, {name: value for name, value in content.items() if value is not None}, {}, []):
        (root / HEAD).write_text(json.dumps(altered))
        for call in (lambda: read_ids(root), lambda: protect_takedowns(root)):
            with pytest.raises(IndexCorrupt, match="takedowns of the index"):
                call()


@pytest.mark.parametrize("room", range(0, 200, 7))
def test_a_disk_that_becomes_full_in_a_line_or_in_the_head_changes_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, room: int
):
    """No file may get larger than the log is now plus `room` bytes, or `room` bytes for the head."""
    before = {name: (root / name).read_bytes() for name in (LOG, HEAD)}
    limit = len(before[LOG]) + room if room % 2 else room
    status = os.fork()
    if not status:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            take_down(root, "doc-4")
        except DiskFull:
            os._exit(28)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(status, 0)[1])
    if code == 0:
        assert read_ids(root) == [*IDS, "doc-4"]
        return
    assert code == 28
    assert {name: (root / name).read_bytes() for name in (LOG, HEAD)} == before
    take_down(root, "doc-4")
    assert read_ids(root) == [*IDS, "doc-4"]


def test_a_directory_that_is_read_only_is_named_and_its_takedowns_are_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise OSError(30, "Read-only file system", str(root / LOG))

    monkeypatch.setattr(takedown_log, "lock_takedowns", refuse)
    with pytest.raises(ReadOnly, match="read-only"):
        take_down(root, "doc-4")
    assert read_ids(root) == list(IDS)


def test_random_changes_never_show_a_document_again(root: Path):
    generator, files = random.Random(0), {name: (root / name).read_bytes() for name in (LOG, HEAD)}
    for _ in range(300):
        name = generator.choice([LOG, HEAD])
        content = bytearray(files[name])
        start = generator.randrange(len(content))
        content[start : start + generator.randrange(8)] = generator.randbytes(generator.randrange(8))
        (root / name).write_bytes(content)
        with suppress(IndexCorrupt):
            assert read_ids(root)[:3] == list(IDS)
        (root / name).write_bytes(files[name])
