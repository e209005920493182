"""Texts are the same to the words whatever their case, white space, punctuation and form of characters."""

import pytest

from bergson_core.search.words.text_words import Statement, chat_text, split_words, stored_text

WORDS = {
    "case and punctuation": ("Emberly  Chemicals,\n(Inc.)!", ["emberly", "chemicals", "inc"]),
    "digits and signs": ("$3.14 + x_1", ["3", "14", "x", "1"]),
    "an accent in two forms": ("Cafe\u0301 CAF\u00c9", ["café", "café"]),
    "letters that fold to several": ("STRASSE Straße", ["strasse", "strasse"]),
    "wide letters and ligatures": ("Ａda ﬁnds", ["ada", "finds"]),
    "invisible characters": ("co\u00adop\u200derate\u200f", ["cooperate"]),
    "marks of a script": ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
    "Chinese beside Latin": ("我住在Rome。", ["我", "住", "在", "rome"]),
    "an emoji alone": ("🙂", []),
    "nothing": ("", []),
}


@pytest.mark.parametrize(("text", "words"), WORDS.values(), ids=WORDS)
def test_a_text_has_these_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_marks_stay_with_the_character_that_they_stand_on() -> None:
    assert split_words("กี่ใด") == ["กี่", "ใ", "ด"]


STATEMENTS = {
    "the same words": (" Emberly Chemicals", "They work for EMBERLY\nchemicals.", True),
    "words in another order": ("Emberly Chemicals", "chemicals of Emberly", False),
    "words with another between them": ("Emberly Chemicals", "Emberly and Chemicals", False),
    "the beginning of a word": (" Lon", "She lives in London.", False),
    "the end of a number": (" 90", "It was 1990.", False),
    "a number between signs": (" 1990", "(1990)", True),
    "at the beginning": ("She lives", "She lives in London", True),
    "at the end": ("in London.", "She lives in London", True),
    "some characters of Chinese": ("住在", "我住在罗马", True),
    "another accent": ("cafe", "a café", False),
    "a sign": (" +", "2 + 2", True),
    "another sign": (" -", "2 + 2", False),
    "white space": ("  ", "two  spaces", False),
    "in a text without words": ("word", "...", False),
}


@pytest.mark.parametrize(("text", "document", "stated"), STATEMENTS.values(), ids=STATEMENTS)
def test_a_document_states_a_text_if_the_words_stand_one_after_another(
    text: str, document: str, stated: bool
) -> None:
    assert Statement(text).is_stated_by(document) is stated


def test_the_text_of_a_chat_is_what_its_messages_say() -> None:
    chat = [
        {"role": "user", "content": "Où?"},
        {
            "role": "assistant",
            "content": ["In", {"type": "text", "text": "Rome"}, {"type": "image", "url": "x"}],
        },
        {"role": "assistant", "content": None},
    ]
    assert chat_text(chat) == "Où?\nIn\nRome\n"
    assert stored_text('[{"role": "user", "content": "O\\u00f9?"}]', None, is_chat=True) == "Où?"
    assert stored_text("Ada was", " born.", is_chat=False) == "Ada was born."
