"""The words of an index are counted once, kept on disk, and ranked as bm25s ranks them."""

import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bergson_core import AttributionIndex, compact_index, take_down_document
from bergson_core.evaluation.baseline_rankings import bm25_scores
from bergson_core.search.words import shard_words, word_index
from bergson_core.search.words.bm25 import WordRanking, rank_by_words
from bergson_core.search.words.shard_words import ShardWords, WordCounter
from bergson_core.search.words.text_words import split_words
from bergson_core.search.words.word_index import WordIndex
from bergson_core.utils.background import run_to_completion

VOCABULARY = [f"word{number}" for number in range(30)]
QUESTION = "word1 word2 word2 word29 unknown"


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Returns texts of up to twenty words, of which some have none."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(VOCABULARY, k=draw.randrange(20))) for _ in range(count)]


def count_words(texts: Sequence[str]) -> ShardWords:
    counter = WordCounter()
    for text in texts:
        counter.add(text)
    return counter.finish()


def rank(shards: Sequence[ShardWords], visible, allowed=None, question: str = QUESTION) -> WordRanking:
    allowed = visible if allowed is None else allowed
    return run_to_completion(rank_by_words(shards, visible, allowed, split_words(question)))


def test_scores_are_those_of_bm25s_over_all_shards() -> None:
    texts = make_texts(50)
    ranking = rank([count_words(texts[:7]), count_words(texts[7:30]), count_words(texts[30:])], [None] * 3)
    (expected,) = bm25_scores(texts, [QUESTION])
    np.testing.assert_allclose(ranking.scores, expected, rtol=1e-5, atol=1e-6)
    assert 10 < (expected > 0).sum() < 50


def test_hidden_documents_count_in_none_of_the_numbers() -> None:
    texts, visible = make_texts(50), np.arange(50) % 3 > 0
    ranking = rank([count_words(texts[:20]), count_words(texts[20:])], [visible[:20], visible[20:]])
    (expected,) = bm25_scores([text for text, shown in zip(texts, visible, strict=True) if shown], [QUESTION])
    np.testing.assert_allclose(ranking.scores[visible], expected, rtol=1e-5, atol=1e-6)
    assert (ranking.scores[~visible] == 0).all()


def test_what_may_not_be_found_counts_in_the_scores_and_not_in_the_ranks() -> None:
    texts, allowed = make_texts(50), np.arange(50) % 2 > 0
    whole, some = (rank([count_words(texts)], [None], [mask]) for mask in (None, allowed))
    np.testing.assert_array_equal(some.scores, np.where(allowed, whole.scores, 0))
    found = [int(number) for number in whole.best(50) if allowed[number]]
    assert some.best(50).tolist() == found
    assert [some.rank(number) for number in found] == [
        1 + sum(whole.scores[other] > whole.scores[number] for other in found) for number in found
    ]


@pytest.mark.parametrize("count", [1, 3, 1000])
def test_the_best_are_in_order_and_equal_ones_share_a_rank(count: int) -> None:
    ranking = WordRanking(np.array([0.5, 2.0, 0.0, 2.0, 1.0]))
    assert ranking.best(count).tolist() == [1, 3, 4, 0][:count]
    assert [ranking.rank(number) for number in range(5)] == [4, 1, None, 1, 3]


@pytest.mark.parametrize("question", ["", "?!", "unknown"])
def test_a_question_without_known_words_ranks_nothing(question: str) -> None:
    ranking = rank([count_words(["a b", ""])], [None], question=question)
    assert ranking.best(10).tolist() == []
    assert ranking.rank(0) is None


def test_words_that_are_counted_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = count_words(make_texts(40))
    monkeypatch.setattr(shard_words, "_MERGE_AT_WORDS", 7)
    assert count_words(make_texts(40)).table.equals(whole.table)


def test_a_file_has_the_words_that_were_saved(tmp_path: Path) -> None:
    words = count_words(make_texts(40))
    words.save(tmp_path / "words.arrow")
    opened = ShardWords.open(tmp_path / "words.arrow", 40)
    assert opened is not None
    assert opened.table.equals(words.table)
    assert opened.lengths.tolist() == [len(text.split()) for text in make_texts(40)]


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "altered": lambda path: path.write_bytes(path.read_bytes().replace(b"word1", b"word0", 1)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_not_opened(tmp_path: Path, damage) -> None:
    count_words(make_texts(40)).save(tmp_path / "words.arrow")
    damage(tmp_path / "words.arrow")
    assert ShardWords.open(tmp_path / "words.arrow", 40) is None


def test_a_file_of_another_number_of_documents_is_not_opened(tmp_path: Path) -> None:
    count_words(make_texts(40)).save(tmp_path / "words.arrow")
    assert ShardWords.open(tmp_path / "words.arrow", 41) is None


@pytest.fixture
def opened(index_copy: Path) -> AttributionIndex:
    """An index whose words nobody has asked for; other tests may have asked the index that it is a copy of."""
    shutil.rmtree(index_copy / "words", ignore_errors=True)
    return AttributionIndex.open(index_copy)


def prepare(opened: AttributionIndex, path: Path) -> list[dict]:
    words = WordIndex(path, opened.shards, is_chat=False)
    run_to_completion(words.prepare())
    return [shard.table.to_pydict() for shard in words.by_shard]


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that grows by one for each document whose words are counted."""
    calls: list[int] = []

    class Counter(WordCounter):
        def add(self, text: str) -> None:
            calls.append(1)
            super().add(text)

    monkeypatch.setattr(word_index, "WordCounter", Counter)
    return calls


def test_the_words_are_counted_once_and_read_from_disk_afterwards(opened, index_copy, monkeypatch) -> None:
    calls = count_calls(monkeypatch)
    first = prepare(opened, index_copy)
    assert len(calls) == opened.manifest.rows
    assert prepare(opened, index_copy) == first
    assert len(calls) == opened.manifest.rows


def test_a_damaged_file_is_made_again_and_the_others_are_kept(opened, index_copy, monkeypatch) -> None:
    first = prepare(opened, index_copy)
    path = sorted((index_copy / "words").iterdir())[1]
    content = path.read_bytes()
    path.write_bytes(content[:100])
    calls = count_calls(monkeypatch)
    assert prepare(opened, index_copy) == first
    assert len(calls) == opened.shards[1].entry.rows
    assert path.read_bytes() == content


def test_what_is_done_is_kept_when_the_work_is_given_up(opened, index_copy, monkeypatch) -> None:
    monkeypatch.setattr(word_index, "_PART_CHARACTERS", 1)
    monkeypatch.setattr(word_index, "_READ_ROWS", 1)
    calls = count_calls(monkeypatch)
    words = WordIndex(index_copy, opened.shards, is_chat=False)
    for parts in (3, 15, 9):
        work = words.prepare()
        for _ in range(parts):
            next(work)
        work.close()
    run_to_completion(words.prepare())
    assert len(calls) == opened.manifest.rows
    monkeypatch.undo()
    assert [shard.table.to_pydict() for shard in words.by_shard] == prepare(opened, index_copy)


def test_where_nothing_can_be_written_the_words_are_kept_in_memory(
    opened, index_copy, monkeypatch, caplog
) -> None:
    (index_copy / "words").write_text("a file where the directory would be")
    words = prepare(opened, index_copy)
    assert "are not kept" in caplog.text
    os.unlink(index_copy / "words")
    assert prepare(opened, index_copy) == words


def test_words_of_shards_that_were_replaced_meanwhile_do_not_stay(opened, index_copy) -> None:
    take_down_document(index_copy, "doc-3")
    compact_index(index_copy)
    prepare(opened, index_copy)
    replaced = {shard.entry.words_path for shard in opened.shards} - {
        shard.entry.words_path for shard in AttributionIndex.open(index_copy).shards
    }
    assert len(replaced) == 1
    assert not (index_copy / replaced.pop()).exists()
    assert len(list((index_copy / "words").iterdir())) == 2
