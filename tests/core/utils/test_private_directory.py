"""A private directory is created for its owner alone; one that exists is left as it is, with a warning if need be."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from bergson_core.errors import InvalidInput
from bergson_core.utils import private_directory
from bergson_core.utils.private_directory import prepare_private_directory


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    previous = os.umask(0o022)
    yield
    os.umask(previous)


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that everybody may enter, as are those above it for these tests, unlike pytest's own."""
    real_stat = Path.stat

    def stat_with_open_ancestors(path: Path, **options: bool) -> os.stat_result:
        status = real_stat(path, **options)
        return os.stat_result((status.st_mode | 0o005, *status[1:])) if path in tmp_path.parents else status

    tmp_path.chmod(0o755)
    monkeypatch.setattr(private_directory.Path, "stat", stat_with_open_ancestors)
    return tmp_path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_directory_is_for_its_owner_alone_and_its_parents_are_as_usual(parent: Path) -> None:
    assert prepare_private_directory(parent / "srv" / "data") is None
    assert (mode_of(parent / "srv"), mode_of(parent / "srv" / "data")) == (0o755, 0o700)


@pytest.mark.parametrize("mode", [0o755, 0o751, 0o777, 0o1777])
def test_a_directory_that_others_may_enter_keeps_its_mode_and_gives_a_warning(
    parent: Path, mode: int
) -> None:
    (parent / "data").mkdir()
    (parent / "data").chmod(mode)
    warning = prepare_private_directory(parent / "data")
    assert warning is not None and f"chmod o-rwx {parent / 'data'}" in warning
    assert mode_of(parent / "data") == mode


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o770, 0o2770])
def test_a_directory_of_its_owner_and_group_gives_no_warning(parent: Path, mode: int) -> None:
    (parent / "data").mkdir()
    (parent / "data").chmod(mode)
    assert prepare_private_directory(parent / "data") is None
    assert mode_of(parent / "data") == mode


def test_a_directory_below_a_private_one_gives_no_warning(parent: Path) -> None:
    (parent / "home").mkdir(mode=0o700)
    (parent / "home" / "data").mkdir()
    assert prepare_private_directory(parent / "home" / "data") is None


def test_a_link_counts_by_where_it_leads(parent: Path) -> None:
    (parent / "home" / "data").mkdir(parents=True)
    (parent / "home").chmod(0o700)
    (parent / "data").symlink_to(parent / "home" / "data")
    assert prepare_private_directory(parent / "data") is None
    (parent / "home").chmod(0o755)
    assert prepare_private_directory(parent / "data") is not None


@pytest.mark.parametrize("name", ["file", "file/data"])
def test_a_file_in_its_place_is_named(parent: Path, name: str) -> None:
    (parent / "file").write_text("")
    with pytest.raises(InvalidInput, match=f"{name}: expected a directory"):
        prepare_private_directory(parent / name)
