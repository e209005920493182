"""Documents, queries and gold of a corpus, in memory and as files."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.corpora.corpus import Document, read_corpus
from benchmarks.models.small_models import CHAT_TEMPLATE
from bergson_core.demo.training import fit_tokenizer
from bergson_core.errors import DatasetNotFound
from tests.benchmarks.helpers import make_tiny_corpus


@pytest.mark.parametrize("chat", [False, True])
def test_a_saved_corpus_is_read_back_as_it_was(chat: bool, tmp_path: Path) -> None:
    corpus = make_tiny_corpus(chat)
    path = corpus.save(tmp_path / "corpora")
    assert read_corpus(path) == corpus
    assert path.name == f"tiny-{corpus.sha256()[:16]}"
    assert corpus.save(tmp_path / "corpora") == path


def test_the_digest_depends_on_every_text_and_on_nothing_else() -> None:
    corpus = make_tiny_corpus()
    assert corpus.sha256() == make_tiny_corpus().sha256()
    assert corpus.sha256() == dataclasses.replace(corpus, source="elsewhere").sha256()
    changed = dataclasses.replace(corpus.documents[0], completion="another text")
    assert corpus.sha256() != dataclasses.replace(corpus, documents=(changed,)).sha256()
    assert corpus.sha256() != dataclasses.replace(corpus, queries=corpus.queries[:1]).sha256()


def test_a_corpus_whose_files_were_changed_is_refused(tmp_path: Path) -> None:
    path = make_tiny_corpus().save(tmp_path)
    file = path / "documents.jsonl"
    file.write_text(file.read_text().replace("number 1", "number 9"))
    with pytest.raises(DatasetNotFound, match="have changed"):
        read_corpus(path)
    with pytest.raises(DatasetNotFound, match="no corpus"):
        read_corpus(tmp_path / "missing")


def test_a_document_without_gold_is_right_for_no_query() -> None:
    corpus = make_tiny_corpus()
    gold = corpus.gold_ids()
    assert gold == {"q0": {"d0"}, "q1": {"d1"}}
    nobody = dataclasses.replace(corpus.queries[0], gold="")
    without = Document("d9", "text", "")
    other = dataclasses.replace(corpus, documents=(*corpus.documents, without), queries=(nobody,))
    assert other.gold_ids() == {"q0": frozenset()}


def test_all_tokens_of_a_text_are_labelled_and_of_a_query_the_completion() -> None:
    corpus = make_tiny_corpus()
    tokenizer = fit_tokenizer([document.text for document in corpus.documents], 300)
    documents, queries = corpus.tokenize(tokenizer)
    assert all(tokens.n_labelled == len(tokens.ids) - 1 for tokens in documents)
    assert [tokenizer.decode(tokens.ids[tokens.labels]) for tokens in queries] == [" number 0", " number 1"]


def test_of_a_chat_the_answer_is_labelled() -> None:
    corpus = make_tiny_corpus(chat=True)
    tokenizer = fit_tokenizer([document.text for document in corpus.documents], 300)
    tokenizer.chat_template = CHAT_TEMPLATE
    documents, queries = corpus.tokenize(tokenizer)
    assert tokenizer.decode(documents[1].ids) == "user: What is 1?\nassistant: the answer is number 1\n"
    assert tokenizer.decode(documents[1].ids[documents[1].labels]).strip() == "the answer is number 1"
    assert len(queries) == 2


def test_the_file_of_a_chat_has_its_messages_and_columns(tmp_path: Path) -> None:
    path = make_tiny_corpus(chat=True).save(tmp_path)
    row = json.loads((path / "documents.jsonl").read_text().splitlines()[0])
    assert row["messages"] == [
        {"role": "user", "content": "What is 0?"},
        {"role": "assistant", "content": "the answer is number 0"},
    ]
    assert (row["id"], row["gold"], row["kind"]) == ("d0", "g0", "x")
