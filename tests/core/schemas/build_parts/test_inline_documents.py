"""The first wrong id or text of inline documents is named by its place."""

from typing import Any

import pytest

from bergson_core.schemas.build_parts.inline_documents import find_inline_problem
from bergson_core.schemas.inline_values import huge_integer
from bergson_core.schemas.source import ColumnsSpec

COLUMNS = ColumnsSpec(id="id", prompt="text")
GOOD = {"id": "a", "text": "some words"}


@pytest.mark.parametrize(
    ("document", "column", "message"),
    [
        ({"id": "a", "text": "b"}, "id", "documents.0 has the id 'a' too"),
        ({"id": "", "text": "b"}, "id", "the id is empty"),
        ({"id": "..", "text": "b"}, "id", "another path"),
        ({"id": "a\nb", "text": "b"}, "id", "control character or line break (U+000A) at position 1"),
        ({"id": "x" * 4097, "text": "b"}, "id", "4,097 characters"),
        ({"id": None, "text": "b"}, "id", "null or missing"),
        ({"text": "b"}, "id", "null or missing"),
        ({"id": 1.5, "text": "b"}, "id", "1.5; expected an id that is text or an integer"),
        ({"id": True, "text": "b"}, "id", "True; expected an id that is text or an integer"),
        ({"id": ["a"], "text": "b"}, "id", "['a']; expected an id that is text or an integer"),
        ({"id": huge_integer(5000), "text": "b"}, "id", "integer of 5,000 digits"),
        ({"id": "b", "text": 5}, "text", "expected text in the column 'text'; got 5"),
        ({"id": "b", "text": None}, "text", "got None"),
        ({"id": "b", "txt": "b"}, "text", "the document has 'id', 'txt'"),
        ({"id": "b", "text": huge_integer(5000)}, "text", "integer of 5,000 digits"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_the_first_wrong_value_is_named(document: dict[str, Any], column: str, message: str) -> None:
    found = find_inline_problem([GOOD, document, {}], COLUMNS, skips_bad=False)
    assert found is not None
    assert found[0] == (1, column) and message in found[1]


def test_an_integer_and_the_same_text_are_one_id() -> None:
    found = find_inline_problem([{"id": 3, "text": "a"}, {"id": "3", "text": "b"}], COLUMNS, skips_bad=False)
    assert found is not None and found[0] == (1, "id")


def test_bad_documents_that_are_left_out_may_stand_there_but_each_id_once() -> None:
    bad: list[dict[str, Any]] = [{"id": None}, {"id": ""}, {"id": "b", "text": 5}, {}]
    assert find_inline_problem([GOOD, *bad], COLUMNS, skips_bad=True) is None
    found = find_inline_problem([GOOD, *bad, GOOD], COLUMNS, skips_bad=True)
    assert found is not None and found[0] == (5, "id")


@pytest.mark.parametrize(
    "columns",
    [
        {"messages": "chat"},
        {"chosen": "good", "rejected": "bad"},
        {"prompt": "q", "completion": "a"},
        {},
    ],
)
def test_documents_of_every_kind_pass(columns: dict[str, Any]) -> None:
    said = [{"role": "assistant", "content": "yes"}]
    document = {"q": "a", "a": "b", "text": "c", "chat": said, "good": "yes", "bad": "no"}
    assert find_inline_problem([document] * 2, ColumnsSpec(**columns), skips_bad=False) is None


SAID, OTHER = ([{"role": "assistant", "content": text}] for text in ("yes", "no"))


@pytest.mark.parametrize(
    ("document", "column", "message"),
    [
        ({"good": "a", "bad": "a"}, "good", "the value is the same as 'bad'"),
        ({"good": SAID, "bad": SAID}, "good", "the value is the same as 'bad'"),
        ({"good": "", "bad": "a"}, "good", "the value is empty; expected a completion"),
        ({"good": "a", "bad": []}, "bad", "the value is empty; expected a completion"),
        ({"good": "a"}, "bad", "the value is null or missing"),
        ({"good": "a", "bad": 3}, "bad", "the value is int, expected text or a list of messages"),
        ({"good": "a", "bad": OTHER}, "good", "expected both as texts, or both as lists of messages"),
        ({"good": SAID, "bad": ["no"]}, "bad", "the value is not a chat: message 0"),
        ({"good": SAID, "bad": [{"role": "user", "content": "?"}]}, "bad", "expected one of the assistant"),
        ({"good": "a", "bad": huge_integer(5000)}, "bad", "integer of 5,000 digits"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_the_first_wrong_part_of_a_pair_is_named(document: dict[str, Any], column: str, message: str) -> None:
    pairs = ColumnsSpec(chosen="good", rejected="bad")
    good = {"good": "yes", "bad": "no"}
    found = find_inline_problem([good, document, {}], pairs, skips_bad=False)
    assert found is not None
    assert found[0] == (1, column) and message in found[1]
    assert find_inline_problem([good, document], pairs, skips_bad=True) is None


@pytest.mark.parametrize("chat", [None, [], "hello", 3, [{"content": "yes"}], huge_integer(5000)], ids=repr)
def test_a_wrong_chat_is_named(chat: object) -> None:
    found = find_inline_problem(
        [{"chat": SAID}, {"chat": chat}], ColumnsSpec(messages="chat"), skips_bad=False
    )
    assert found is not None and found[0] == (1, "chat")
