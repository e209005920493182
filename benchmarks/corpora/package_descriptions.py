"""Descriptions of Debian's packages, from the package lists of the machine's own apt sources.

A bare Debian has the lists without the descriptions: images for containers leave out the translations, and the English
descriptions are one. Therefore `apt-get update` runs once with the language English and directories of its own, where
it needs no rights and changes nothing that the machine uses. The lists stay in the cache, since they change with each
point release, so that a corpus can be made again.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from benchmarks.corpora.corpus import Corpus
from benchmarks.corpora.held_out_passages import Passage, count_words, divide_passages
from bergson_core.errors import DatasetNotFound

NAME: Final = "package_descriptions"
WORDS: Final = range(12, 46)
"""Numbers of words that a description may have: longer ones make the training runs long."""
_TARGET_FIELDS: Final = ("IDENTIFIER", "ORIGIN", "CODENAME", "VERSION", "FILENAME")


def make_package_descriptions(
    cache: Path, documents: int = 1500, queries: int = 160, seed: int = 0
) -> Corpus:
    """Returns descriptions of packages; a family is the binary packages of one source package.

    Args:
        cache: Directory that keeps the package lists.
        documents: Number of training documents.
        queries: Number of held-out descriptions.
        seed: Chooses the packages.

    Raises:
        DatasetNotFound: This machine has no apt-get, or no package lists of Debian.
        InvalidInput: There are too few descriptions.
    """
    source, packages, translations = read_package_lists(cache / "debian-package-lists")
    passages = iter_descriptions(packages, translations)
    return divide_passages(NAME, source, passages, documents, queries, seed)


def read_package_lists(directory: Path) -> tuple[str, str, str]:
    """Returns the name of the Debian release, its list of packages and its English descriptions.

    Args:
        directory: Where the lists are kept; they are downloaded if they are not there.

    Raises:
        DatasetNotFound: This machine has no apt-get, or no package lists of Debian.
    """
    if (apt := shutil.which("apt-get")) is None:
        raise DatasetNotFound("there is no apt-get; expected a Debian machine for the package descriptions")
    lists = directory.absolute() / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::State::Lists": str(lists),
        "Dir::Cache": str(directory.absolute() / "cache"),
        "Acquire::Languages": "en",
        "Acquire::GzipIndexes": "false",
    }
    options = [option for name, value in settings.items() for option in ("-o", f"{name}={value}")]
    targets, problem = _list_targets(apt, options), ""
    if not targets:
        update = subprocess.run([apt, "update", *options], capture_output=True, text=True)
        targets, problem = _list_targets(apt, options), update.stderr.strip()[-300:]
    if not targets:
        raise DatasetNotFound(
            "the apt sources of this machine give no package lists of a Debian release with English descriptions; "
            f"expected a Debian machine that reaches its mirror. {problem}".strip()
        )
    release = targets["Packages"]
    source = f"Debian {release['CODENAME']} {release['VERSION']}"
    packages, translations = (
        Path(targets[kind]["FILENAME"]).read_text("utf-8") for kind in ("Packages", "Translations")
    )
    return source, packages, translations


def iter_descriptions(packages: str, translations: str) -> Iterator[Passage]:
    """Yields the description of each package whose length is within bounds.

    Args:
        packages: Text of the file Packages, which tells the source of each package.
        translations: Text of the file Translation-en.
    """
    sources = {
        stanza["Package"]: stanza.get("Source", stanza["Package"]).split()[0]
        for stanza in iter_stanzas(packages, ("Package", "Source"))
    }
    for stanza in iter_stanzas(translations, ("Package", "Description-en")):
        name, text = stanza["Package"], clean_description(stanza.get("Description-en", ""))
        synopsis = text.partition("\n")[0].casefold()
        is_empty_package = "transitional" in synopsis or "dummy package" in synopsis
        if name in sources and count_words(text) in WORDS and not is_empty_package:
            yield Passage(name, sources[name], text)


def iter_stanzas(text: str, fields: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Yields the chosen fields of each stanza of a control file; a field keeps the lines that continue it."""
    for stanza in text.split("\n\n"):
        values: dict[str, str] = {}
        name = ""
        for line in stanza.split("\n"):
            if line.startswith((" ", "\t")):
                if name in values:
                    values[name] += f"\n{line}"
                continue
            name, _, value = line.partition(":")
            if name in fields:
                values[name] = value.strip()
        if "Package" in values:
            yield values


def clean_description(field: str) -> str:
    """Returns a description without the markup of control files.

    The synopsis is the first line. Each paragraph becomes a line, and so does each line that is indented by two spaces
    or more, which is to be shown as it is (Debian Policy, section 5.6.13).
    """
    synopsis, *body = field.split("\n")
    lines, continues = [synopsis.strip()], False
    for line in body:
        is_blank, is_verbatim = line.strip() == ".", re.match(r"\s{2}", line) is not None
        text = " ".join(line.split())
        if is_blank:
            continues = False
        elif continues and not is_verbatim:
            lines[-1] += f" {text}"
        else:
            lines.append(text)
            continues = not is_verbatim
    return "\n".join(lines)


def _list_targets(apt: str, options: list[str]) -> Mapping[str, dict[str, str]]:
    """Returns the files of the first Debian release that has both packages and English descriptions, by kind."""
    layout = "\t".join(f"$({field})" for field in _TARGET_FIELDS)
    listed = subprocess.run(
        [apt, "indextargets", *options, "--format", layout], capture_output=True, text=True
    )
    releases: dict[str, dict[str, dict[str, str]]] = {}
    for line in listed.stdout.splitlines():
        target: dict[str, str] = dict(zip(_TARGET_FIELDS, line.split("\t"), strict=True))
        is_release = target["ORIGIN"] == "Debian" and "-" not in target["CODENAME"]
        if is_release and Path(target["FILENAME"]).is_file():
            releases.setdefault(target["CODENAME"], {}).setdefault(target["IDENTIFIER"], target)
    complete = (targets for targets in releases.values() if {"Packages", "Translations"} <= targets.keys())
    return next(complete, {})
