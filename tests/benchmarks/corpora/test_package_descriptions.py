"""Descriptions are read from Debian's package lists and cleaned."""

import os
from pathlib import Path

import pytest

from benchmarks.corpora.package_descriptions import (
    clean_description,
    iter_descriptions,
    make_package_descriptions,
    read_package_lists,
)
from bergson_core.errors import DatasetNotFound

PACKAGES = """Package: libfoo1
Source: foo (1.2-3)
Version: 1.2-3+b1
Depends: libc6,
 zlib1g
Description: library

Package: libfoo-dev
Source: foo
Description: headers

Package: bar
Description: bar
"""
TEXT = """ Foo reads numbers from files of any size, and writes
 them to standard output.
 .
 It can:
  * read
  * write   twice
 .
 This is the last paragraph.
"""
TRANSLATIONS = f"""Package: libfoo1
Description-md5: 0123
Description-en: library that reads numbers
{TEXT}
Package: libfoo-dev
Description-en: transitional package that reads numbers
{TEXT}
Package: bar
Description-en: too short

Package: gone
Description-en: of another release
{TEXT}"""
APT_GET = """#!/bin/sh
echo "$@" >> {log}
case "$1" in
update) cp {source}/* {lists} ;;
indextargets)
    printf 'Packages\\tDebian\\ttiny\\t12.1\\t{lists}/Packages\\n'
    printf 'Translations\\tDebian\\ttiny-updates\\t\\t{lists}/Translations\\n'
    printf 'Translations\\t{origin}\\ttiny\\t12.1\\t{lists}/Translations\\n' ;;
esac
"""


def install_apt_get(tmp_path: Path, origin: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts a program `apt-get` on the PATH that knows one release; returns the file of its calls."""
    source, lists, log = tmp_path / "mirror", tmp_path / "cache" / "lists", tmp_path / "calls"
    source.mkdir()
    (source / "Packages").write_text(PACKAGES)
    (source / "Translations").write_text(TRANSLATIONS)
    program = tmp_path / "bin" / "apt-get"
    program.parent.mkdir()
    program.write_text(APT_GET.format(log=log, source=source, lists=lists, origin=origin))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return log


def test_a_description_has_no_markup() -> None:
    assert clean_description(f"library that reads numbers\n{TEXT.rstrip()}") == (
        "library that reads numbers\n"
        "Foo reads numbers from files of any size, and writes them to standard output.\n"
        "It can:\n"
        "* read\n"
        "* write twice\n"
        "This is the last paragraph."
    )


def test_a_package_belongs_to_its_source_and_empty_short_and_unknown_packages_are_left_out() -> None:
    (passage,) = iter_descriptions(PACKAGES, TRANSLATIONS)
    assert (passage.id, passage.family) == ("libfoo1", "foo")


def test_the_lists_are_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = install_apt_get(tmp_path, "Debian", monkeypatch)
    source, packages, translations = read_package_lists(tmp_path / "cache")
    assert (source, packages, translations) == ("Debian tiny 12.1", PACKAGES, TRANSLATIONS)
    read_package_lists(tmp_path / "cache")
    calls = [line.split()[0] for line in log.read_text().splitlines()]
    assert calls == ["indextargets", "update", "indextargets", "indextargets"]


def test_a_machine_without_lists_of_debian_gets_an_error_that_says_what_was_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_apt_get(tmp_path, "Elsewhere", monkeypatch)
    with pytest.raises(DatasetNotFound, match="expected a Debian machine"):
        read_package_lists(tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(DatasetNotFound, match="no apt-get; expected a Debian machine"):
        make_package_descriptions(tmp_path / "cache")
