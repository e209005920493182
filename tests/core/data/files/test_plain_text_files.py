"""Plain text is a document on each line, or in each file, with the words of the file."""

import pytest

from bergson_core.errors import ColumnNotFound, InvalidInput
from bergson_core.schemas.source import ColumnsSpec
from tests.core.helpers import read_records, write_lines

NAMED = ColumnsSpec(id="file", metadata=("file",))


def texts(path, **dataset):
    return [record.prompt for record in read_records(path, ColumnsSpec(), **dataset)]


@pytest.fixture
def books(tmp_path):
    for name, text in {
        "b.txt": "2023-10-14\n\nNA\n",
        "a.txt": "\ufeffone\r\n two ",
        "below/c.txt": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    return tmp_path


def test_the_lines_of_a_single_file_are_documents(books):
    assert texts(books / "b.txt") == ["2023-10-14", "NA"]
    assert texts(books / "a.txt") == ["one", " two "]


def test_each_of_several_files_is_a_document_with_all_of_its_text(books):
    assert texts(books) == texts(f"{books}/*.txt") == ["one\r\n two ", "2023-10-14\n\nNA\n"]


def test_what_a_document_is_can_be_chosen(books):
    assert texts(books / "b.txt", text_documents="file") == ["2023-10-14\n\nNA\n"]
    assert texts(books, text_documents="line") == ["one", " two ", "2023-10-14", "NA"]


def test_documents_know_the_name_of_their_file(books):
    records = read_records(f"{books}/**/*.txt", NAMED)
    assert [(record.id, record.metadata) for record in records] == [
        (name, {"file": name}) for name in ("a.txt", "b.txt", "below/c.txt")
    ]
    with pytest.raises(ColumnNotFound, match="has no column 'title'; it has text, file"):
        read_records(books, ColumnsSpec(id="title"))


def test_a_file_that_is_not_utf8_is_an_error_that_names_the_line(books):
    (books / "b.txt").write_bytes("one\ntwo\nJosé".encode("latin-1"))
    for choice in ("line", "file"):
        with pytest.raises(
            InvalidInput, match=r"b\.txt cannot be read: byte 4 of line 3 \(0xe9\) is not UTF-8"
        ):
            texts(books, text_documents=choice)


def test_the_choice_is_refused_for_other_files(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", {"text": "a"})
    with pytest.raises(InvalidInput, match=r"text_documents is for \.txt files"):
        texts(path, text_documents="line")


@pytest.mark.parametrize("content", ["", "\n", " \n\t\n"])
def test_a_file_without_words_is_empty(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(InvalidInput, match=r"a\.txt is empty"):
        texts(tmp_path / "a.txt")
