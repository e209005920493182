"""Paragraphs of prose from the docstrings of the standard library and of NumPy.

The source files are those that are installed with the interpreter that runs this. They are parsed, never imported.
Doctests, tables, lists and descriptions of parameters are left out.
"""

import ast
import importlib.util
import platform
import re
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Final

from benchmarks.corpora.corpus import Corpus
from benchmarks.corpora.held_out_passages import Passage, count_words, divide_passages
from bergson_core.errors import DatasetNotFound

NAME: Final = "docstring_paragraphs"
WORDS: Final = range(14, 61)
"""Numbers of words that a paragraph may have."""
_LEFT_OUT: Final = {
    *("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "ensurepip", "turtledemo"),
    *("__pycache__", "_pyrepl", "pydoc_data"),
}
"""Folders with tests, with other people's code, or with copies."""
_NO_PROSE: Final = re.compile(r">>>|^\.\.|^:\w+|^\S+ : |[-=+~^#*|_]{4,}|\s{3,}", re.MULTILINE)
"""Doctests, directives, fields, parameters of numpydoc, rules and tables."""

_Named = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def make_docstring_paragraphs(documents: int = 1100, queries: int = 160, seed: int = 0) -> Corpus:
    """Returns paragraphs of docstrings; a family is the paragraphs of one docstring.

    Args:
        documents: Number of training documents.
        queries: Number of held-out paragraphs.
        seed: Chooses the paragraphs.

    Raises:
        DatasetNotFound: There are no source files of the standard library or of NumPy.
        InvalidInput: There are too few paragraphs.
    """
    numpy = importlib.util.find_spec("numpy")
    standard_library = Path(sysconfig.get_path("stdlib"))
    if numpy is None or numpy.origin is None or not (standard_library / "ast.py").is_file():
        raise DatasetNotFound(
            f"expected the source files of the standard library in {standard_library}, and NumPy; use an "
            "interpreter that has both"
        )
    source = f"Python {platform.python_version()} and NumPy {version('numpy')}"
    roots = {"": standard_library, "numpy.": Path(numpy.origin).parent}
    passages = (
        passage
        for prefix, root in roots.items()
        for path in sorted(root.rglob("*.py"))
        if not _LEFT_OUT & set(path.relative_to(root).parts)
        for passage in iter_paragraphs(path, prefix + ".".join(path.relative_to(root).with_suffix("").parts))
    )
    return divide_passages(NAME, source, passages, documents, queries, seed)


def iter_paragraphs(path: Path, module: str) -> Iterator[Passage]:
    """Yields the paragraphs of prose of the docstrings in a source file.

    Args:
        path: The source file.
        module: Name of its module.
    """
    for name, docstring in _iter_docstrings([(module, ast.parse(path.read_bytes()))]):
        for number, paragraph in enumerate(re.split(r"\n\s*\n", docstring)):
            text = " ".join(paragraph.split())
            if is_prose(paragraph) and count_words(text) in WORDS:
                yield Passage(f"{name}#{number}", name, text)


def is_prose(paragraph: str) -> bool:
    """Returns whether a paragraph is running text: lines of equal indentation that are whole sentences."""
    lines = paragraph.strip("\n").split("\n")
    indentations = {len(line) - len(line.lstrip()) for line in lines}
    text = paragraph.strip()
    return (
        len(indentations) == 1
        and re.match(r"[A-Z`'\"]", text) is not None
        and text.endswith((".", "!", "?", ":"))
        and not any(_NO_PROSE.search(line.strip()) for line in lines)
    )


def _iter_docstrings(nodes: Iterable[tuple[str, ast.Module | _Named]]) -> Iterator[tuple[str, str]]:
    """Yields the full name and the docstring of each node, and of the classes and functions in it."""
    for name, node in nodes:
        if docstring := ast.get_docstring(node):
            yield name, docstring
        yield from _iter_docstrings(
            (f"{name}.{part.name}", part) for part in node.body if isinstance(part, _Named)
        )
