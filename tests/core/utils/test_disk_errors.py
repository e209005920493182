"""Errors of libraries that say that a disk cannot be written to get a name; all others stay as they are."""

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from bergson_core.errors import BergsonError, DatasetNotFound, DiskFailed, DiskFull, ReadOnly
from bergson_core.utils.disk_errors import find_disk_error, translate_disk_errors

KINDS = {
    errno.ENOSPC: DiskFull,
    errno.EDQUOT: DiskFull,
    errno.EFBIG: DiskFull,
    errno.EROFS: ReadOnly,
    errno.EACCES: ReadOnly,
    errno.EPERM: ReadOnly,
    errno.EIO: DiskFailed,
}


@pytest.mark.parametrize(("number", "kind"), KINDS.items())
def test_each_library_s_error_gets_the_name_of_its_kind(
    tmp_path: Path, number: int, kind: type[BergsonError]
):
    text = os.strerror(number)
    for error in (
        OSError(number, text),
        OSError(number, text, str(tmp_path / "facts" / "manifest.json")),
        OSError(number, text, str(tmp_path)),  # the directory in which `facts` cannot be created
        OSError(f"Could not write. Detail: [errno {number}] {text}"),  # of PyArrow
        RuntimeError(f"Error: 'f' failed: could not open 0.faiss for writing: {text}"),  # of faiss
        SafetensorError(f"Error while serializing: I/O error: {text} (os error {number})"),
    ):
        with (
            pytest.raises(kind, match="facts cannot be written") as caught,
            translate_disk_errors(tmp_path / "facts"),
        ):
            raise error
        assert text in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOENT, "No such file or directory"),
        PermissionError(errno.EACCES, "Permission denied", "/elsewhere/model.safetensors"),
        DatasetNotFound("the dataset cannot be read: Permission denied"),
        ValueError("expected a number"),
        KeyboardInterrupt(),
    ],
)
def test_another_error_stays_as_it_is(tmp_path: Path, error: BaseException):
    with pytest.raises(type(error)) as caught, translate_disk_errors(tmp_path):
        raise error
    assert caught.value is error


def test_at_the_edge_of_a_program_only_errors_of_the_system_count():
    full = find_disk_error(OSError(errno.ENOSPC, "No space left on device", "/tmp/x"))
    assert isinstance(full, DiskFull)
    assert "/tmp/x cannot be written" in str(full)
    assert find_disk_error(RuntimeError("No space left on device in this text")) is None
