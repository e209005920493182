"""A completion that lacks the space before it is recognised, and hardly anything else is taken for it."""

import logging

import pytest
from transformers import PreTrainedTokenizerBase

from bergson_core.schemas.record import Record
from bergson_core.tokens.word_joins import JoinChecker, MissingSpaceCounter
from tests import tiny
from tests.core import tokenizer_kinds

MARKING = {
    "byte-level": tokenizer_kinds.byte_level(),
    "byte-level with trimmed offsets": tokenizer_kinds.byte_level(trim_offsets=True),
    "byte-level with BOS and EOS": tokenizer_kinds.byte_level(bos=True, eos=True),
    "SentencePiece": tokenizer_kinds.sentencepiece(),
    "SentencePiece with BOS": tokenizer_kinds.sentencepiece(bos=True),
}
NOT_MARKING = {"characters": tokenizer_kinds.characters(), "WordPiece": tokenizer_kinds.wordpiece()}

LACKING_SPACE = [
    ("Ada was born in", "London"),
    ("The band is called", "Sylvania City"),
    ("it is a", "city"),
    ("Answer:", "Paris"),
    ("born in", "1815"),
    ("in 1815", "London"),
    ("in London.", "Bo"),
    ("Really?", "Ada"),
    ("(Ada)", "was"),
    ("the “city”", "of"),
    ("the sum is 2 + 2 =", "4"),
    ("Question:\nwhere? Answer:", "in"),
    ("in", "Zxqvzx"),
    ("Ада родилась в", "Лондоне"),
    ("दिल्ली में", "London"),
    ("나는", "서울"),
    ("in", "Łódź"),
    ("x" * 300 + " in", "London " + "y" * 300),
    ("Ada was born in", "Rome"),
    ("Bo works for", "Oslo"),
    ("Ada was in", "NASA"),
    ("in 1815", "Ada"),
    ("in 1815", "people"),
    ("I", "London"),
    ("born in the", "city"),
    ("3.5 %", "of"),
]
COMPLETE = [
    ("Ada was born in", " London"),
    ("born in ", "London"),
    ("born in\n", "London"),
    ("born in\t", "London"),
    ("born in\u00a0", "London"),
    ("born in", "\u00a0London"),
    ("born in", "\nLondon"),
    ("", "London"),
    ("born in", ", London"),
    ("London", "."),
    ("London", ")"),
    ("London", "”"),
    ("Lon", "don"),
    ("19", "84"),
    ("3.", "14"),
    ("12:", "30"),
    ("1,", "000"),
    ("2+2=", "4"),
    ("(", "London"),
    ('said "', "London"),
    ("“", "London"),
    ("well-", "known"),
    ("and/", "or"),
    ("snake_", "case"),
    ("don'", "t"),
    ("don’", "t"),
    ("don", "'t"),
    ("#", "Ada"),
    ("@", "Ada"),
    ("$", "5"),
    ("<s>", "London"),
    ("Farm:", "🐑"),
    ("我住在", "北京"),
    ("我住在", "London"),
    ("live in", "北京"),
    ("我住在北京。", "北京"),
    ("ฉันอยู่", "กรุงเทพ"),
    ("file.", "txt"),
    ("see file.", "txt"),
    ("notes.tar", "gz"),
    ("http://a.", "com"),
    ("http://a.com/", "Ada"),
    ("https://a.com/b", "Ada"),
    ("ada@example", "Org"),
    ("src/main", "Ada"),
    ("C:\\docs", "Ada"),
    ("U.S.", "A"),
    ("U.S", "A"),
    ("the U.", "S"),
    ("e.", "g"),
    ("e.g", "x"),
    ("3", "rd"),
    ("I am 5", "km"),
    ("5", "kg of it"),
    ("at 9", "am"),
    ("2024", "년"),
    ("a 4", "K"),
    ("Ro", "me"),
    ("born in Ro", "me"),
    ("ü", "ber"),
    ("he is ü", "ber"),
    ("Ü", "ber"),
    ("un", "believably"),
    ("m", "RNA"),
    ("NA", "SA"),
    ("H", "2O"),
    ("В", "место"),
]


@pytest.mark.parametrize("tokenizer", MARKING.values(), ids=MARKING)
@pytest.mark.parametrize(("prompt", "completion"), LACKING_SPACE)
def test_a_word_that_meets_a_word_lacks_its_space(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str
):
    checker = JoinChecker(tokenizer)
    (warning,) = checker.given_warnings(prompt, completion)
    assert (warning.code, warning.suggestion) == ("missing_space", f" {completion}")
    assert checker.join(prompt, completion) == f" {completion}"
    assert checker.given_warnings(prompt, f" {completion}") == []


@pytest.mark.parametrize("tokenizer", MARKING.values(), ids=MARKING)
@pytest.mark.parametrize(("prompt", "completion"), COMPLETE)
def test_nothing_else_lacks_a_space(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str):
    checker = JoinChecker(tokenizer)
    assert checker.given_warnings(prompt, completion) == []
    assert checker.join(prompt, completion) == completion


TINY = {
    "of sentences": tiny.tokenizer(tiny.texts(20)),
    "of one text": tiny.tokenizer(("a small text in which Bo is called",)),
    "byte-level": tokenizer_kinds.byte_level(280),
}


@pytest.mark.parametrize("tokenizer", TINY.values(), ids=TINY)
@pytest.mark.parametrize(
    ("prompt", "completion"),
    [("The band is called", "Sylvania City"), ("Ada was born in", "Rome"), ("Bo works for", "Oslo")],
)
def test_a_capital_letter_begins_a_word_that_a_small_vocabulary_lacks(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str
):
    assert JoinChecker(tokenizer).expects_space(prompt, completion)


@pytest.mark.parametrize("tokenizer", NOT_MARKING.values(), ids=NOT_MARKING)
@pytest.mark.parametrize(("prompt", "completion"), LACKING_SPACE)
def test_tokenizers_that_do_not_mark_words_expect_no_space(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str
):
    assert JoinChecker(tokenizer).given_warnings(prompt, completion) == []
    assert JoinChecker(tokenizer).join(prompt, completion) == completion


@pytest.mark.parametrize("tokenizer", MARKING.values(), ids=MARKING)
def test_the_warning_shows_both_ways_to_tokenise(tokenizer: PreTrainedTokenizerBase):
    (warning,) = JoinChecker(tokenizer).given_warnings("The band is called", "Sylvania City")
    assert "' called' 'Sy" in warning.detail
    assert "' called' ' Sylvania' ' City'" in warning.detail


@pytest.mark.parametrize(
    ("prompt", "completion", "code"),
    [
        ("Ada was born in ", " London", "double_space"),
        ("Answer: ", " Paris", "double_space"),
        ("in London. ", " Bo", None),
        ("if x:\n    ", " return", None),
        (" ", " London", None),
        ("born in ", "  London", None),
        ("born in \n", " London", None),
    ],
)
def test_two_spaces_are_told_except_between_sentences_and_in_indentation(
    prompt: str, completion: str, code: str | None
):
    warnings = JoinChecker(MARKING["byte-level"]).given_warnings(prompt, completion)
    assert [warning.code for warning in warnings] == ([code] if code else [])
    assert all(warning.suggestion == completion[1:] for warning in warnings)


@pytest.mark.parametrize(
    ("completions", "warned"),
    [(["London", "Paris", " Paris"], True), (["London", " Paris"], False), ([" London"], False), ([], False)],
)
def test_a_dataset_is_told_of_when_most_of_its_completions_lack_the_space(
    completions: list[str], warned: bool, caplog: pytest.LogCaptureFixture
):
    counter = MissingSpaceCounter(JoinChecker(MARKING["byte-level"]))
    counter.add([Record("0", "a text without a completion", None, {})])
    counter.add([Record("0", "Ada was born in", completion, {}) for completion in completions])
    with caplog.at_level(logging.WARNING):
        counter.log_warning("documents")
    assert bool(caplog.records) == warned
    if warned:
        assert "2 of the first 3 documents" in caplog.text
