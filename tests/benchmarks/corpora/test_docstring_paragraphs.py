"""Paragraphs of prose are found in source files, which are not imported."""

from pathlib import Path

import pytest

from benchmarks.corpora.docstring_paragraphs import is_prose, iter_paragraphs

PROSE = (
    "This sentence has more than enough words to count as a paragraph of prose\n{}that anybody would read."
)
MODULE = f'''"""{PROSE.format("")}"""

raise SystemExit("imported")


class Reader:
    """Reads.

    {PROSE.format("    ").replace("This", "Another")}

    >>> This is a doctest with more than enough words to count as a paragraph of prose and so on.
    """

    async def read(self):
        """Short.

        {PROSE.format("        ").replace("This", "The last")}

        Parameters
        ----------
        size : int
            How much to read, in more than enough words to count as a paragraph of prose, it seems.
        """
'''


def test_paragraphs_of_modules_classes_and_functions_are_joined_lines_with_full_names(tmp_path: Path) -> None:
    path = tmp_path / "io.py"
    path.write_text(MODULE)
    passages = {passage.id: passage for passage in iter_paragraphs(path, "pkg.io")}
    assert list(passages) == ["pkg.io#0", "pkg.io.Reader#1", "pkg.io.Reader.read#1"]
    assert passages["pkg.io.Reader#1"].text.startswith("Another sentence has")
    assert passages["pkg.io.Reader#1"].family == "pkg.io.Reader"
    assert all("\n" not in passage.text and "  " not in passage.text for passage in passages.values())


@pytest.mark.parametrize(
    "paragraph",
    [
        ">>> f(1)\n2.",
        "A sentence.\n>>> f(1)",
        "=====  =====\nName   Value.\n=====  =====",
        "Name    Value    Meaning.",
        "size : int\n    How much to read.",
        ".. note:: Read this.",
        ":param size: How much to read.",
        "Returns\n-------",
        "* One.\n  Two.",
        "starts in the middle of a sentence.",
        "Ends without a full stop",
    ],
)
def test_doctests_tables_lists_and_parameters_are_no_prose(paragraph: str) -> None:
    assert not is_prose(paragraph)


@pytest.mark.parametrize(
    "paragraph", ["One sentence.", "Two lines\nof one.", "`x` is given:", "    All lines\n    indented."]
)
def test_whole_sentences_are_prose(paragraph: str) -> None:
    assert is_prose(paragraph)
